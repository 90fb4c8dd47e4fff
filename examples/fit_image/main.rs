//! Fits a picture with 2-D Gaussians on a device, in its own buffers and with its own gradient kernels. The optimizer's step is
//! recorded into the same compute pass. The README in this folder has the results and the essential lines.

mod chart;
mod compare;
mod fit;
mod picture;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use wgpu_optim::{Gpu, Record, Regime, Rule};

use chart::Line;
use fit::{Fit, Norms, TENSORS};
use picture::Picture;

/// Fits a picture with 2-D Gaussians.
#[derive(Debug, Parser)]
struct Arguments {
    /// The picture, a PNG file; without it one is drawn
    #[arg(long, value_name = "FILE.png")]
    image: Option<PathBuf>,
    /// The longer side in pixels; larger pictures are shrunk to it
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(16..=512))]
    side: u16,
    /// How many Gaussians
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=50_000))]
    splats: u16,
    /// How many steps
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: u32,
    /// The start
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The direction of a step
    #[arg(long, value_enum, default_value_t = RuleName::Sgdm)]
    rule: RuleName,
    /// A fixed learning rate for all groups, instead of Seesaw
    #[arg(long)]
    rate: Option<f32>,
    /// Compares Seesaw with the best of a grid of fixed rates, and with fixed rates tuned for each group
    #[arg(long, conflicts_with = "rate")]
    compare: bool,
    /// Over how many seeds a comparison averages
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// Where the result goes
    #[arg(long, value_name = "FILE.png", default_value = "target/fit_image.png")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RuleName {
    Sgd,
    Sgdm,
    Nesterov,
    Signsgd,
    Signum,
}

impl RuleName {
    fn rule(self) -> Rule {
        match self {
            RuleName::Sgd => Rule::sgd(),
            RuleName::Sgdm => Rule::sgdm(0.9),
            RuleName::Nesterov => Rule::nesterov(0.9),
            RuleName::Signsgd => Rule::sign_sgd(),
            RuleName::Signum => Rule::signum(0.9),
        }
    }
}

/// Settings of a fit.
struct Task {
    gpu: Gpu,
    target: Picture,
    splats: usize,
    steps: u32,
    rule: Rule,
}

/// Result of a fit.
struct Outcome {
    before: Picture,
    after: Picture,
    /// Losses before every step and after the last one.
    losses: Vec<f64>,
    records: Vec<Record>,
    time: Duration,
}

impl Outcome {
    fn psnr(&self) -> f64 {
        self.losses.last().map_or(f64::NAN, |&loss| psnr(loss))
    }

    /// Returns the learning rates of each group over the steps.
    fn rates(&self) -> Vec<Line> {
        let of_group = |group| {
            let records = self.records.iter().filter(move |record| record.group == group);
            records.map(|record| f64::from(record.learning_rate)).collect()
        };
        TENSORS
            .iter()
            .enumerate()
            .map(|(group, (name, _))| Line { name: (*name).to_owned(), values: of_group(group) })
            .collect()
    }

    fn quality(&self, name: &str) -> Line {
        Line { name: name.to_owned(), values: self.losses.iter().map(|&loss| psnr(loss)).collect() }
    }
}

/// Returns the peak signal-to-noise ratio in dB for a peak of 1.
fn psnr(mean_square: f64) -> f64 {
    -10.0 * mean_square.log10()
}

impl Task {
    fn run(&self, seed: u64, regimes: [Regime; 4], norms: Norms) -> Result<Outcome, wgpu_optim::Error> {
        let start = fit::random_start(&self.target, self.splats, seed);
        let fit = Fit::new(&self.gpu, &self.target, &start, self.steps as usize);
        let mut optimizer = fit.optimizer(self.rule, regimes, norms, self.steps)?;
        let before = fit.picture()?;
        let started = Instant::now();
        let mut last = None;
        for _ in 0..self.steps {
            last = Some(fit.iterate(&optimizer)?);
        }
        if let Some(last) = &last {
            self.gpu.finish("the steps", last)?;
        }
        let time = started.elapsed();
        let after = fit.picture()?;
        let mut losses: Vec<f64> = fit.losses()?.into_iter().map(f64::from).collect();
        losses.push(after.mean_square_from(&self.target));
        let records = pollster::block_on(optimizer.drain_records())?.records;
        Ok(Outcome { before, after, losses, records, time })
    }
}

/// Opens a device on an adapter that `WGPU_BACKEND` allows.
async fn open() -> Result<(wgpu::Device, wgpu::Queue), Box<dyn Error>> {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    let adapter = wgpu::Instance::new(descriptor)
        .request_adapter(&wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        })
        .await?;
    let opened = adapter
        .request_device(&wgpu::DeviceDescriptor {
            // The optimizer's sums are faster with subgroups.
            required_features: adapter.features() & wgpu::Features::SUBGROUP,
            required_limits: adapter.limits(),
            ..Default::default()
        })
        .await?;
    Ok(opened)
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let side = usize::from(arguments.side);
    let target = match &arguments.image {
        Some(path) => Picture::read(path, side).map_err(|error| format!("{}: {error}", path.display()))?,
        None => Picture::drawn(side),
    };
    let (device, queue) = pollster::block_on(open())?;
    let task = Task {
        gpu: Gpu::from_parts(device, queue),
        target,
        splats: usize::from(arguments.splats),
        steps: arguments.steps,
        rule: arguments.rule.rule(),
    };
    println!(
        "{} x {} pixels, {} Gaussians ({} parameters), {} on {}",
        task.target.width,
        task.target.height,
        task.splats,
        fit::PER_SPLAT * task.splats,
        task.rule.name(),
        task.gpu.describe(),
    );

    let regime = arguments.rate.map_or_else(Regime::seesaw, Regime::fixed);
    let outcome = task.run(arguments.seed, [regime; 4], Norms::ByGroup)?;
    println!(
        "{} steps in {:.2} s: PSNR {:.2} dB, at the start {:.2} dB",
        task.steps,
        outcome.time.as_secs_f64(),
        outcome.psnr(),
        psnr(outcome.losses[0]),
    );
    for line in outcome.rates() {
        let (first, last) = (line.values.first(), line.values.last());
        if let (Some(first), Some(last)) = (first, last) {
            println!("{:>8}: learning rate {first:.3e} at first, {last:.3e} at last", line.name);
        }
    }
    let mut quality = vec![outcome.quality(regime.name())];
    if arguments.compare {
        quality.extend(compare::compare(&task, arguments.seed, arguments.seeds)?);
    }
    write_result(&arguments.out, &task, &outcome, &quality)
}

fn write_result(path: &Path, task: &Task, outcome: &Outcome, quality: &[Line]) -> Result<(), Box<dyn Error>> {
    let pictures = [
        ("start".to_owned(), &outcome.before),
        (format!("after {} steps", task.steps), &outcome.after),
        ("target".to_owned(), &task.target),
    ];
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    chart::write_page(path, &pictures, quality, &outcome.rates())
        .map_err(|error| format!("{}: {error}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
