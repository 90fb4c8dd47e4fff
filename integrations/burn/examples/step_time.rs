//! The time of a step over many tensors: ours, which measures the norm, finds its rate and keeps a record, and burn's SGD and AdamW, which do
//! none of that. See ../README.md.
#![forbid(unsafe_code)]

use std::time::Instant;

use burn::backend::Cube;
use burn::module::{Module, Param};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Distribution, Tensor};
use clap::Parser;
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
    /// The gradients are computed, and that is all.
    None,
    Ours(Box<WgpuOptim>),
    Burns(ModuleOptimizer),
}

struct Contestant {
    name: &'static str,
    optimizer: Optimizer,
    net: Option<Net>,
    /// Milliseconds of a step, of each turn.
    times: Vec<f64>,
}

impl Contestant {
    fn step(&mut self, device: &Device) -> Result<()> {
        let net = self.net.take().ok_or("a step failed before")?;
        // Gradients that are computed, as a backward pass does it, so that fusion has what it would have.
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
        // What comes next in training is not part of the step.
        device.flush()?;
        self.net = Some(net);
        Ok(())
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (plain, gpu) = share_burns(Device::wgpu_options())?;
    let device = plain.clone().autodiff();
    let elements = args.parameters.div_ceil(args.tensors as usize);
    let net = || Net {
        tensors: (0..args.tensors)
            .map(|_| Param::from_tensor(Tensor::random([elements], Distribution::Default, &device)))
            .collect(),
    };
    let ours = |name, rule| {
        let net = net();
        let optim = WgpuOptimConfig::new(OptimizerBuilder::new(rule)).init(&net, &gpu)?;
        Ok::<_, wgpu_optim_burn::Error>(Contestant {
            name,
            optimizer: Optimizer::Ours(Box::new(optim)),
            net: Some(net),
            times: Vec::new(),
        })
    };
    let burns = |name, optimizer| Contestant {
        name,
        optimizer: Optimizer::Burns(optimizer),
        net: Some(net()),
        times: Vec::new(),
    };
    let mut contestants = vec![
        Contestant {
            name: "none: the gradients alone",
            optimizer: Optimizer::None,
            net: Some(net()),
            times: Vec::new(),
        },
        ours("wgpu-optim SGD, Seesaw", Rule::sgd())?,
        ours("wgpu-optim AdamW, Seesaw", Rule::adamw())?,
        burns("burn SGD", SgdConfig::new().init()),
        burns("burn AdamW", AdamWConfig::new().init()),
    ];
    contestants.retain(|contestant| contestant.name.contains(&args.only));
    for round in 0..=args.rounds {
        for contestant in &mut contestants {
            let start = Instant::now();
            for _ in 0..args.steps {
                contestant.step(&device)?;
            }
            plain.sync()?;
            // The first round compiles and tunes.
            if round > 0 {
                contestant.times.push(1e3 * start.elapsed().as_secs_f64() / f64::from(args.steps));
            }
        }
    }
    println!(
        "{} tensors, {} parameters; {}; fusion: {}",
        args.tensors,
        elements * args.tensors as usize,
        gpu.describe(),
        std::any::type_name::<Cube>().contains("Fusion")
    );
    println!("| step | ms, median (lowest to highest) |\n|---|---|");
    for contestant in &mut contestants {
        contestant.times.sort_by(f64::total_cmp);
        let times = &contestant.times;
        println!(
            "| {} | {:.2} ({:.2} to {:.2}) |",
            contestant.name,
            times[times.len() / 2],
            times[0],
            times[times.len() - 1]
        );
    }
    Ok(())
}
