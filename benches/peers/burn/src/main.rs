//! Benchmark of burn's SGD, AdamW and Muon against wgpu-optim's, on one device, in turn. See ../README.md.
#![forbid(unsafe_code)]

mod matrices;

use std::error::Error;
use std::time::{Duration, Instant};

use burn::grad_clipping::{GradientClipping, GradientClippingConfig};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, Optimizer as BurnOptimizer, SgdConfig};
use burn::tensor::wgpu::WgpuBackend;
use burn::tensor::{Device, DeviceKind, Tensor, TensorData};
use clap::Parser;
use wgpu_optim::{Gpu, Group, NonFinitePolicy, Optimizer, OptimizerBuilder, Regime, Rule, wgpu};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// burn's SGD and AdamW, or Muon, against wgpu-optim's, on one device, in turn.
#[derive(Debug, Parser)]
struct Args {
    /// Parameters, as powers of two
    #[arg(long, value_delimiter = ',', default_value = "20,22", value_parser = clap::value_parser!(u32).range(4..=28))]
    power: Vec<u32>,
    /// Measure Muon, and burn's product of matrices, over squares of these sides instead
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=8192))]
    matrices: Vec<u32>,
    /// Rounds in which all take turns
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Milliseconds of each turn, steps permitting
    #[arg(long, default_value_t = 300)]
    round_ms: u64,
    /// Graphics API
    #[arg(long, default_value = "vulkan", value_parser = ["vulkan", "metal", "dx12"])]
    backend: String,
    /// A hardware GPU rather than a software driver
    #[arg(long)]
    hardware: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

const RATE: f32 = 1e-3;
const CLIP: f32 = 1.0;

fn main() -> Result<()> {
    let args = Args::parse();
    let api = match args.backend.as_str() {
        "metal" => WgpuBackend::Metal,
        "dx12" => WgpuBackend::Dx12,
        _ => WgpuBackend::Vulkan,
    };
    let kind = if args.hardware { DeviceKind::DefaultDevice } else { DeviceKind::Cpu };
    let (device, setup) = Device::wgpu_options().graphics_api(api).device_kind(kind).init_with_setup()?;
    let gpu = Gpu::from_parts(setup.device, setup.queue);
    let fusion = cfg!(feature = "fusion");
    if !args.matrices.is_empty() {
        return matrices::measure(&args, &device, &gpu);
    }
    let mut rows = Vec::new();
    for &power in &args.power {
        rows.extend(measure(&args, &device, &gpu, 1 << power)?);
    }
    let burn = format!("burn 0.22.1, {} fusion", if fusion { "with" } else { "without" });
    if args.json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        let report = serde_json::json!({ "device": gpu.describe(), "burn": burn, "rows": rows });
        println!("{report}");
    } else {
        println!("{}; {burn}; medians of {} rounds, ns per parameter", gpu.describe(), args.rounds);
        println!("{:<36} {:>10} {:>8} {:>18} {:>12}", "what", "parameters", "ns", "min to max", "burn / ours");
        for row in &rows {
            let ratio = row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            let spread = format!("{:.2} to {:.2}", row.times[0], row.times[row.times.len() - 1]);
            println!("{:<36} {:>10} {:>8.2} {:>18} {:>12}", row.name, row.elements, row.median(), spread, ratio);
        }
    }
    Ok(())
}

struct Row {
    name: String,
    elements: usize,
    /// Nanoseconds per parameter, sorted.
    times: Vec<f64>,
    /// Median over the rounds of burn's time divided by wgpu-optim's for the same rule.
    ratio: Option<f64>,
}

impl Row {
    fn median(&self) -> f64 {
        self.times[self.times.len() / 2]
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "what": self.name,
            "elements": self.elements,
            "ns_per_param": self.median(),
            "spread_low": self.times[0],
            "spread_high": self.times[self.times.len() - 1],
            "burn_by_ours": self.ratio,
        })
    }
}

/// Benchmarked code that takes steps and can wait for them.
trait Contestant {
    fn step(&mut self) -> Result<()>;
    fn wait(&mut self) -> Result<()>;
    fn parameters(&mut self) -> Result<Vec<f32>>;
}

/// Optimizer of burn with one tensor.
struct Burn<O: BurnOptimizer, const D: usize> {
    device: Device,
    optimizer: O,
    clip: Option<GradientClipping>,
    parameters: Option<Tensor<D>>,
    gradients: Tensor<D>,
    state: Option<O::State<D>>,
}

impl<O: BurnOptimizer, const D: usize> Burn<O, D> {
    fn new(device: &Device, optimizer: O, [parameters, gradients]: [&[f32]; 2], shape: [usize; D], clip: bool) -> Self {
        let tensor = |values: &[f32]| Tensor::from_data(TensorData::new(values.to_vec(), shape), device);
        Burn {
            device: device.clone(),
            optimizer,
            clip: clip.then(|| GradientClippingConfig::Norm(CLIP).init()),
            parameters: Some(tensor(parameters)),
            gradients: tensor(gradients),
            state: None,
        }
    }
}

/// Rule of both libraries.
#[derive(Clone, Copy)]
enum Step {
    Sgd,
    Sgdm,
    AdamW,
}

const EPSILON: f32 = 1e-8;

impl Step {
    fn name(self) -> &'static str {
        self.ours().name()
    }

    fn ours(self) -> Rule {
        match self {
            Step::Sgd => Rule::sgd(),
            Step::Sgdm => Rule::sgdm(0.9),
            Step::AdamW => Rule::adamw(),
        }
    }

    fn burns(self, device: &Device, values: &[f32], clip: bool) -> Box<dyn Contestant> {
        let sgd = |momentum| SgdConfig::new().with_momentum(momentum).build();
        let (values, shape) = ([values; 2], [values.len()]);
        match self {
            Step::Sgd => Box::new(Burn::new(device, sgd(None), values, shape, clip)),
            Step::Sgdm => {
                let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
                Box::new(Burn::new(device, sgd(Some(momentum)), values, shape, clip))
            }
            Step::AdamW => {
                let adamw = AdamWConfig::new().with_weight_decay(0.0).with_epsilon(EPSILON).build();
                Box::new(Burn::new(device, adamw, values, shape, clip))
            }
        }
    }

    /// Returns the sum of the directions of three steps with a constant gradient.
    fn directions(self, g: f64) -> f64 {
        match self {
            Step::Sgd => 3.0 * g,
            // With momentum 0.9 the sum is 1 + 1.9 + 2.71 times the gradient.
            Step::Sgdm => 5.61 * g,
            Step::AdamW => 3.0 * g / (g.abs() + f64::from(EPSILON)),
        }
    }
}

impl<O: BurnOptimizer, const D: usize> Contestant for Burn<O, D> {
    fn step(&mut self) -> Result<()> {
        let mut gradients = self.gradients.clone();
        if let Some(clip) = &self.clip {
            gradients = clip.clip_gradient(gradients);
        }
        let parameters = self.parameters.take().ok_or("a step failed before")?;
        let (parameters, state) = self.optimizer.step(f64::from(RATE), parameters, gradients, self.state.take());
        self.parameters = Some(parameters);
        self.state = state;
        // Without a flush, fusion would combine many steps into one kernel, because the gradients never change here.
        Ok(self.device.flush()?)
    }

    fn wait(&mut self) -> Result<()> {
        Ok(self.device.sync()?)
    }

    fn parameters(&mut self) -> Result<Vec<f32>> {
        let parameters = self.parameters.clone().ok_or("a step failed before")?;
        Ok(parameters.into_data().try_to_vec::<f32>().map_err(|error| format!("{error:?}"))?)
    }
}

#[derive(Clone, Copy)]
struct Settings {
    clip: bool,
    /// True if the gradients are measured, and a gradient that is not finite skips the step.
    checks: bool,
}

struct Ours {
    gpu: Gpu,
    optimizer: Optimizer,
    parameters: wgpu::Buffer,
    elements: usize,
}

impl Ours {
    fn new(gpu: &Gpu, values: &[f32], shape: &[usize], rule: Rule, regime: Regime, settings: Settings) -> Result<Self> {
        let buffer = |label| {
            let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: 4 * values.len() as u64,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(values));
            buffer
        };
        let (parameters, gradients) = (buffer("parameters"), buffer("gradients"));
        let optimizer = OptimizerBuilder::new(rule)
            .regime(regime)
            .clip_norm(if settings.clip { CLIP } else { f32::INFINITY })
            .nonfinite_policy(if settings.checks { NonFinitePolicy::Skip } else { NonFinitePolicy::Unchecked })
            .decoupled_weight_decay(0.0)
            .group(Group::new("all").shaped_tensor("w", shape, parameters.slice(..), gradients.slice(..)))
            .build(gpu)?;
        Ok(Ours { gpu: gpu.clone(), optimizer, parameters, elements: values.len() })
    }
}

impl Contestant for Ours {
    fn step(&mut self) -> Result<()> {
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.optimizer.encode_step(&mut encoder)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        self.gpu.device().poll(wgpu::PollType::wait_indefinitely())?;
        Ok(())
    }

    fn parameters(&mut self) -> Result<Vec<f32>> {
        let device = self.gpu.device();
        let staging = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("staging"),
            size: self.parameters.size(),
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&self.parameters, 0, &staging, 0, staging.size());
        self.gpu.queue().submit([encoder.finish()]);
        let (sender, receiver) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // Sending fails only if the receiver was dropped.
            let _ = sender.send(result);
        });
        self.wait()?;
        receiver.recv()??;
        let view = staging.get_mapped_range(..)?;
        Ok(bytemuck::pod_collect_to_vec::<u8, f32>(&view)[..self.elements].to_vec())
    }
}

/// Returns small values, none of which is zero or denormal.
fn values(elements: usize) -> Vec<f32> {
    (0..elements).map(|i| 1e-3 * ((i % 251) as f32 - 125.5)).collect()
}

fn measure(args: &Args, device: &Device, gpu: &Gpu, elements: usize) -> Result<Vec<Row>> {
    let values = values(elements);
    let ours = |step: Step, regime, clip, checks| {
        Ours::new(gpu, &values, &[elements], step.ours(), regime, Settings { clip, checks })
    };
    let mut contestants: Vec<(String, Option<usize>, Box<dyn Contestant>)> = Vec::new();
    for step in [Step::Sgd, Step::Sgdm, Step::AdamW] {
        let name = step.name();
        for clip in [false, true] {
            let what = if clip { format!("{name} + clip") } else { name.to_owned() };
            let mut burn = step.burns(device, &values, clip);
            // burn measures gradients only for a clip, and so does wgpu-optim here. The cost of the norm has its own row.
            let mut own = ours(step, Regime::fixed(RATE), clip, clip)?;
            let right = is_right(burn.as_mut(), &values, step, clip)?;
            if !is_right(&mut own, &values, step, clip)? {
                return Err(format!("{what}: our own step is wrong at {elements} parameters").into());
            }
            let burn_name = if right { "burn" } else { "burn (WRONG RESULT)" };
            contestants.push((format!("{what}, {burn_name}"), Some(contestants.len() + 1), burn));
            contestants.push((format!("{what}, ours"), None, Box::new(own)));
        }
        let checked = ours(step, Regime::fixed(RATE), false, true)?;
        contestants.push((format!("{name}, ours, norm and checks"), None, Box::new(checked)));
        let seesaw = ours(step, Regime::seesaw(), false, true)?;
        contestants.push((format!("{name}, ours, seesaw"), None, Box::new(seesaw)));
    }

    let in_turn = contestants.iter_mut().map(|(.., one)| -> &mut dyn Contestant { &mut **one });
    let mut in_turn: Vec<&mut dyn Contestant> = in_turn.collect();
    let times = take_turns(args, &mut in_turn)?;
    let times: Vec<Vec<f64>> =
        times.into_iter().map(|times| times.into_iter().map(|time| 1e9 * time / elements as f64).collect()).collect();
    Ok(contestants
        .iter()
        .zip(&times)
        .map(|((name, own, _), burn)| {
            let ratio = own.map(|own| {
                let mut ratios: Vec<f64> = burn.iter().zip(&times[own]).map(|(burn, own)| burn / own).collect();
                ratios.sort_by(f64::total_cmp);
                ratios[ratios.len() / 2]
            });
            let mut times = burn.clone();
            times.sort_by(f64::total_cmp);
            Row { name: name.clone(), elements, times, ratio }
        })
        .collect())
}

/// Returns the seconds per step of each contestant in each round.
fn take_turns(args: &Args, contestants: &mut [&mut dyn Contestant]) -> Result<Vec<Vec<f64>>> {
    let mut times = vec![Vec::new(); contestants.len()];
    let mut steps = vec![1u32; contestants.len()];
    for round in 0..=args.rounds {
        for (index, contestant) in contestants.iter_mut().enumerate() {
            let taken = turn(&mut **contestant, steps[index])?;
            // The first round warms up and sets the number of steps in a turn.
            if round == 0 {
                let again = turn(&mut **contestant, 2)?.as_secs_f64() / 2.0;
                steps[index] = (1e-3 * args.round_ms as f64 / again).clamp(1.0, 1e4) as u32;
            } else {
                times[index].push(taken.as_secs_f64() / f64::from(steps[index]));
            }
        }
    }
    Ok(times)
}

fn turn(contestant: &mut dyn Contestant, steps: u32) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..steps {
        contestant.step()?;
    }
    contestant.wait()?;
    Ok(start.elapsed())
}

/// Takes three steps and compares the result with one that is computed in f64. For wgpu-optim a wrong result is an error, because a
/// benchmark of wrong results is useless. For burn it is noted beside the times.
fn is_right(contestant: &mut dyn Contestant, values: &[f32], step: Step, clip: bool) -> Result<bool> {
    for _ in 0..3 {
        contestant.step()?;
    }
    let norm = values.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    let factor = if clip { (f64::from(CLIP) / norm).min(1.0) } else { 1.0 };
    let found = contestant.parameters()?;
    let right = |(found, &start): (&f32, &f32)| {
        // Parameters and gradients have the same initial values.
        let moved = f64::from(RATE) * step.directions(factor * f64::from(start));
        // The tolerance is three roundings of the parameter, and one part in 10^4 of the change.
        let error = (f64::from(*found) - (f64::from(start) - moved)).abs();
        error <= 3e-7 * f64::from(start).abs() + 1e-4 * moved.abs()
    };
    Ok(found.len() == values.len() && found.iter().zip(values).all(right))
}
