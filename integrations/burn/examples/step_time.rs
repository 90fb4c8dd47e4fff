//! Time of a step over many tensors with wgpu-optim, which measures the norm, computes the rate and keeps a record, and with burn's SGD and
//! AdamW, which do not. See ../README.md.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use burn::backend::Cube;
use burn::module::{Module, Param};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Distribution, Tensor};
use clap::Parser;
use cubecl_runtime::logging::{LaunchObservation, LaunchObserver};
use wgpu_optim_burn::wgpu_optim::{OptimizerBuilder, Rule};
use wgpu_optim_burn::{WgpuOptim, WgpuOptimConfig, share_burns};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Times steps over many tensors.
#[derive(Debug, Parser)]
struct Args {
    /// Tensors
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    tensors: u32,
    /// Parameters of all of them together
    #[arg(long, default_value_t = 1 << 20)]
    parameters: usize,
    /// Rounds in which all take turns
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Steps of a turn
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Only those whose names contain this
    #[arg(long, default_value = "")]
    only: String,
}

#[derive(Module, Debug)]
struct Net {
    tensors: Vec<Param<Tensor<1>>>,
}

enum Optimizer {
    /// No optimizer: only the gradients are computed.
    None,
    Ours(Box<WgpuOptim>),
    Burns(ModuleOptimizer),
}

struct Contestant {
    name: &'static str,
    optimizer: Optimizer,
    net: Option<Net>,
    /// Milliseconds per step in each turn.
    times: Vec<f64>,
    /// Number of kernels that burn launched in the last turn.
    launches: u64,
}

/// Number of kernels that burn has launched.
#[derive(Default)]
struct Launches(AtomicU64);

impl LaunchObserver for Launches {
    fn launched(&self, _kernel: &'static str) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Contestant {
    fn new(name: &'static str, optimizer: Optimizer, net: Net) -> Self {
        Contestant { name, optimizer, net: Some(net), times: Vec::new(), launches: 0 }
    }

    fn step(&mut self, device: &Device) -> Result<()> {
        let net = self.net.take().ok_or("a step failed before")?;
        // The gradients are computed, as in a backward pass, so that fusion gets the same kind of operations.
        let mut gradients = GradientsParams::new();
        for param in &net.tensors {
            gradients.register(param.id, param.val().inner() * 0.5);
        }
        let net = match &mut self.optimizer {
            Optimizer::None => {
                device.flush()?;
                net
            }
            Optimizer::Ours(optim) => optim.step(net, gradients)?,
            Optimizer::Burns(optim) => optim.step(1e-3, net, gradients),
        };
        // The operations of the step are submitted, so that they are not fused with those that follow.
        device.flush()?;
        self.net = Some(net);
        Ok(())
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (plain, gpu) = share_burns(Device::wgpu_options())?;
    let device = plain.clone().autodiff();
    // The length is a multiple of 4, as in most layers.
    let elements = args.parameters.div_ceil(args.tensors as usize).next_multiple_of(4);
    let net = || Net {
        tensors: (0..args.tensors)
            .map(|_| Param::from_tensor(Tensor::random([elements], Distribution::Default, &device)))
            .collect(),
    };
    let ours = |name, rule| {
        let net = net();
        let optim = WgpuOptimConfig::new(OptimizerBuilder::new(rule)).init(&net, &gpu)?;
        Ok::<_, wgpu_optim_burn::Error>(Contestant::new(name, Optimizer::Ours(Box::new(optim)), net))
    };
    let burns = |name, optimizer| Contestant::new(name, Optimizer::Burns(optimizer), net());
    let mut contestants = vec![
        Contestant::new("none: the gradients alone", Optimizer::None, net()),
        ours("wgpu-optim SGD, Seesaw", Rule::sgd())?,
        ours("wgpu-optim AdamW, Seesaw", Rule::adamw())?,
        burns("burn SGD", SgdConfig::new().init()),
        burns("burn AdamW", AdamWConfig::new().init()),
    ];
    contestants.retain(|contestant| contestant.name.contains(&args.only));
    let launches = Arc::new(Launches::default());
    let _watching = LaunchObservation::new(launches.clone());
    for round in 0..=args.rounds {
        for contestant in &mut contestants {
            let (launched, start) = (launches.0.load(Ordering::Relaxed), Instant::now());
            for _ in 0..args.steps {
                contestant.step(&device)?;
            }
            plain.sync()?;
            // The first round compiles and tunes kernels, and is not timed.
            if round > 0 {
                contestant.times.push(1e3 * start.elapsed().as_secs_f64() / f64::from(args.steps));
            }
            contestant.launches = launches.0.load(Ordering::Relaxed) - launched;
        }
    }
    println!(
        "{} tensors, {} parameters; {}; fusion: {}",
        args.tensors,
        elements * args.tensors as usize,
        gpu.describe(),
        std::any::type_name::<Cube>().contains("Fusion")
    );
    println!("| step | ms, median (lowest to highest) | launches |\n|---|---|---|");
    for contestant in &mut contestants {
        contestant.times.sort_by(f64::total_cmp);
        let times = &contestant.times;
        let ours = match &contestant.optimizer {
            Optimizer::Ours(optim) => optim.optimizer().dispatches().len(),
            _ => 0,
        };
        println!(
            "| {} | {:.2} ({:.2} to {:.2}) | {} |",
            contestant.name,
            times[times.len() / 2],
            times[0],
            times[times.len() - 1],
            ours + (contestant.launches as f64 / f64::from(args.steps)).round() as usize,
        );
    }
    Ok(())
}
