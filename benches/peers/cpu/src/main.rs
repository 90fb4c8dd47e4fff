//! The CPU path as a worker of `peers.py`. Standard input has one command per line, and standard output one answer per line.
//!
//! ```text
//! check CASE     values V V … : sampled parameters after three steps, then the sum of all magnitudes
//! norm           norm N : of the gradients, in f64 and past the optimizer
//! run CASE MS    ns NS : nanoseconds per parameter and step, over about so many milliseconds
//! ```
//! The answer to other commands is `error` and the reason. `RAYON_NUM_THREADS` sets the number of threads.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use wgpu_optim::{CpuOptimizer, Group, NonFinitePolicy, OptimizerBuilder, Regime, Rule, Seesaw};

/// The CPU path of wgpu-optim as a worker of peers.py.
#[derive(Debug, Parser)]
struct Args {
    /// Parameters, as a power of two
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(6..=30))]
    power: u32,
}

/// Cases of all libraries come first, then those that only wgpu-optim has.
const CASES: [&str; 17] = [
    "sgd",
    "sgdm",
    "adamw",
    "sgd+clip",
    "sgdm+clip",
    "adamw+clip",
    "sgd+unchecked",
    "sgdm+unchecked",
    "adamw+unchecked",
    "sgd+norm-ratio",
    "sgdm+norm-ratio",
    "adamw+norm-ratio",
    "sgd+seesaw",
    "sgdm+seesaw",
    "adamw+seesaw",
    "sgd+schedule-free",
    "sgd+schedule-free-norm-ratio",
];

// The constants below must equal those of worker.py, because the results are compared.

/// Large, so that a wrong step is visible after three steps.
const CHECK_RATE: f32 = 0.1;
/// Small, so that hundreds of steps hardly change the parameters.
const RUN_RATE: f32 = 1e-4;
/// About half the root mean square of the gradients.
const CLIP_PER_ROOT: f64 = 0.165;
/// Number of parameters that `check` returns.
const SAMPLES: usize = 64;

fn main() -> ExitCode {
    match serve(1 << Args::parse().power) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(elements: usize) -> Result<(), std::io::Error> {
    let mut worker = Worker::new(elements);
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready {}", CASES.join(" "))?;
    for line in std::io::stdin().lock().lines() {
        match worker.answer(&line?) {
            Ok(answer) => writeln!(out, "{answer}")?,
            Err(error) => writeln!(out, "error {error}")?,
        }
    }
    Ok(())
}

struct Worker {
    start: Vec<f32>,
    params: Vec<f32>,
    grads: Vec<f32>,
    /// For each case that has run: its optimizer, and the steps per second.
    running: HashMap<String, (CpuOptimizer, f64)>,
}

impl Worker {
    fn new(elements: usize) -> Self {
        let start: Vec<f32> = (0..elements as u32).map(param).collect();
        Worker {
            params: start.clone(),
            grads: (0..elements as u32).map(grad).collect(),
            start,
            running: HashMap::new(),
        }
    }

    fn answer(&mut self, line: &str) -> Result<String, String> {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["check", case] => {
                let values = self.check(case)?;
                let values: Vec<String> = values.iter().map(f64::to_string).collect();
                Ok(format!("values {}", values.join(" ")))
            }
            ["norm"] => {
                let squares = self.grads.iter().map(|&g| f64::from(g).powi(2));
                Ok(format!("norm {}", squares.sum::<f64>().sqrt()))
            }
            ["run", case, milliseconds] => {
                let milliseconds: f64 =
                    milliseconds.parse().map_err(|_| format!("not a number of milliseconds: {milliseconds}"))?;
                Ok(format!("ns {}", self.run(case, 1e-3 * milliseconds)?))
            }
            _ => Err(format!("not a command: {line}")),
        }
    }

    fn check(&mut self, case: &str) -> Result<Vec<f64>, String> {
        let mut optimizer = self.optimizer(case, CHECK_RATE)?;
        self.params.copy_from_slice(&self.start);
        self.time(&mut optimizer, 3)?;
        let mut values: Vec<f64> =
            self.params.iter().step_by(self.params.len() / SAMPLES).map(|&value| f64::from(value)).collect();
        values.push(self.params.iter().map(|&w| f64::from(w.abs())).sum());
        Ok(values)
    }

    fn run(&mut self, case: &str, seconds: f64) -> Result<f64, String> {
        let (mut optimizer, pace) = match self.running.remove(case) {
            Some(running) => running,
            None => {
                let mut optimizer = self.optimizer(case, RUN_RATE)?;
                self.time(&mut optimizer, 2)?;
                let pace = 4.0 / self.time(&mut optimizer, 4)?.max(1e-9);
                (optimizer, pace)
            }
        };
        self.params.copy_from_slice(&self.start);
        let steps = (seconds * pace).clamp(1.0, 1e6) as u32;
        // One step is not timed, so that the state of the caches after the copy or a pause has no influence.
        self.time(&mut optimizer, 1)?;
        let taken = self.time(&mut optimizer, steps)?;
        self.running.insert(case.to_owned(), (optimizer, pace));
        let ordinary = |value: &f32| value.is_finite() && !value.is_subnormal();
        if !self.params.iter().all(ordinary) {
            return Err(format!("{case}: parameters became denormal or infinite"));
        }
        Ok(1e9 * taken / f64::from(steps) / self.params.len() as f64)
    }

    /// Takes steps and returns the seconds.
    fn time(&mut self, optimizer: &mut CpuOptimizer, steps: u32) -> Result<f64, String> {
        let start = Instant::now();
        for _ in 0..steps {
            optimizer.step(&mut [&mut self.params], &[&self.grads]).map_err(|error| error.to_string())?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn optimizer(&self, case: &str, rate: f32) -> Result<CpuOptimizer, String> {
        let (rule, extra) = case.split_once('+').unwrap_or((case, ""));
        let rule = match rule {
            "sgd" => Rule::sgd(),
            "sgdm" => Rule::sgdm(0.9),
            "adamw" => Rule::adamw(),
            _ => return Err(format!("no such case: {case}")),
        };
        // With a gradient that never changes, consecutive steps always agree, and the default gain would raise the rate to its limit.
        let seesaw = Regime::Seesaw(Seesaw { gain: 1e-9, early_steps: 0.0, ..Seesaw::default() });
        let mut builder = OptimizerBuilder::new(rule).regime(Regime::fixed(rate));
        match extra {
            "" => {}
            "clip" => {
                let norm = CLIP_PER_ROOT * (self.params.len() as f64).sqrt();
                builder = builder.clip_norm(norm as f32);
            }
            "norm-ratio" => builder = builder.regime(Regime::norm_ratio()),
            "unchecked" => builder = builder.nonfinite_policy(NonFinitePolicy::Unchecked),
            "seesaw" => builder = builder.regime(seesaw),
            "schedule-free" => builder = builder.regime(seesaw).schedule_free(),
            "schedule-free-norm-ratio" => {
                builder = builder.regime(Regime::norm_ratio()).schedule_free();
            }
            _ => return Err(format!("no such case: {case}")),
        }
        builder
            .group(Group::new("all").tensor("w", &self.params, &self.grads))
            .build_cpu()
            .map_err(|error| error.to_string())
    }
}

/// Returns the initial value of a parameter, of magnitude 1 to 2. It has the same bits as in worker.py.
fn param(index: u32) -> f32 {
    let hash = index.wrapping_mul(2_654_435_761);
    signed(hash, 1.0 + fraction(hash))
}

/// Returns the gradient of a parameter, of magnitude 1/8 to 1/2. It has the same bits as in worker.py.
fn grad(index: u32) -> f32 {
    let hash = index.wrapping_mul(2_246_822_519).wrapping_add(374_761_393);
    signed(hash, 0.125 + 0.375 * fraction(hash))
}

/// Returns the upper bits as a number from 0 to 1. The conversion is exact.
fn fraction(hash: u32) -> f32 {
    (hash >> 8) as f32 / (1 << 24) as f32
}

/// Returns the magnitude with a sign from a lower bit of the hash.
fn signed(hash: u32, magnitude: f32) -> f32 {
    if hash & 0x80 == 0 { magnitude } else { -magnitude }
}
