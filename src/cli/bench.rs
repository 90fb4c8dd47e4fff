//! `wgpu-optim bench`: what a step costs, against the copy bandwidth of the same device in the same run.

use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::Serialize;
use wgpu_optim::{Gpu, Group, Optimizer, OptimizerBuilder, Regime, Rule, wgpu};

use crate::CliError;
use crate::table::{Columns, say};
use crate::target::{Target, TargetArgs};

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Smallest size, as a power of two of parameters
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=30))]
    from: u32,
    /// Largest size, as a power of two of parameters
    #[arg(long, default_value_t = 22, value_parser = clap::value_parser!(u32).range(0..=30))]
    to: u32,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// One measurement.
#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    rule: &'static str,
    regime: &'static str,
    mode: &'static str,
    elements: usize,
    ns_per_param: f64,
    gb_per_s: f64,
    percent_of_copy: f64,
}

#[derive(Serialize)]
struct Report {
    device: String,
    rows: Vec<Row>,
}

/// Each figure is the median of this many repeats.
const REPEATS: usize = 7;
/// A repeat takes as many steps as fill this time.
const REPEAT_TIME: Duration = Duration::from_millis(40);

/// Measures.
pub fn run(args: &Args) -> Result<(), CliError> {
    if args.from > args.to {
        return Err(CliError::Usage(format!(
            "--from {} is above --to {}: give the smaller power of two first",
            args.from, args.to
        )));
    }
    let target = args.target.find()?;
    target.explain();
    check_size(&target, args.to)?;
    let mut rows = Vec::new();
    for power in (args.from..=args.to).step_by(2) {
        measure_size(&target, 1 << power, &mut rows)?;
    }
    let report = Report {
        device: target.adapter(),
        rows,
    };
    if args.json {
        say(serde_json::json!(report))
    } else {
        print(&report)
    }
}

/// Refuses sizes that the device cannot allocate.
fn check_size(target: &Target, power: u32) -> Result<(), CliError> {
    if let Target::Gpu(gpu) = target {
        let largest = gpu.device().limits().max_buffer_size;
        if 4u64 << power > largest {
            return Err(CliError::Usage(format!(
                "--to {power} needs buffers of {} bytes, but {} has at most {largest}: give a smaller power of two",
                4u64 << power,
                gpu.describe()
            )));
        }
    }
    Ok(())
}

fn measure_size(target: &Target, elements: usize, rows: &mut Vec<Row>) -> Result<(), CliError> {
    let mut row = |what, rule, regime, bytes_per_param: f64, seconds: f64, copy: Option<f64>| {
        let gb_per_s = bytes_per_param * elements as f64 / seconds * 1e-9;
        rows.push(Row {
            what,
            rule,
            regime,
            mode: "two-pass",
            elements,
            ns_per_param: 1e9 * seconds / elements as f64,
            gb_per_s,
            percent_of_copy: 100.0 * gb_per_s / copy.unwrap_or(gb_per_s),
        });
        gb_per_s
    };
    // A copy reads and writes 4 bytes per element.
    let copy = row("copy", "", "", 8.0, time_copy(target, elements)?, None);
    for rule in [
        Rule::sgd(),
        Rule::sgdm(0.9),
        Rule::sign_sgd(),
        Rule::signum(0.9),
    ] {
        for regime in [Regime::fixed(1e-3), Regime::seesaw()] {
            let seconds = time_step(target, rule, regime, elements)?;
            row(
                "step",
                rule.name(),
                regime.name(),
                bytes_per_param(rule, regime),
                seconds,
                Some(copy),
            );
        }
    }
    Ok(())
}

/// What a step moves at the least: pass 1 reads g and the direction memory, pass 4 reads g and reads and writes w and the memory.
fn bytes_per_param(rule: Rule, regime: Regime) -> f64 {
    let momentum = if rule.has_momentum() { 4.0 } else { 0.0 };
    let counters = if regime.needs_alignment() && !rule.has_momentum() {
        1.0
    } else {
        0.0
    };
    let read_for_alignment = if regime.needs_alignment() {
        momentum + counters
    } else {
        0.0
    };
    4.0 + read_for_alignment + 12.0 + 2.0 * (momentum + counters)
}

/// Median seconds of one call, from repeats that each make enough calls to be measured.
fn median_seconds(mut run: impl FnMut(usize) -> Result<(), CliError>) -> Result<f64, CliError> {
    let mut timed = |calls: usize| -> Result<Duration, CliError> {
        let start = Instant::now();
        run(calls)?;
        Ok(start.elapsed())
    };
    timed(2)?;
    let mut calls = 1;
    loop {
        let time = timed(calls)?;
        if time >= REPEAT_TIME / 4 || calls >= 1 << 16 {
            let scale = REPEAT_TIME.as_secs_f64() / time.as_secs_f64().max(1e-9);
            calls = ((calls as f64 * scale) as usize).clamp(1, 1 << 16);
            break;
        }
        calls *= 4;
    }
    let mut seconds = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        seconds.push(timed(calls)?.as_secs_f64() / calls as f64);
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[REPEATS / 2])
}

fn time_copy(target: &Target, elements: usize) -> Result<f64, CliError> {
    match target {
        Target::Cpu { .. } => {
            let from = vec![1.0f32; elements];
            let mut to = vec![0.0f32; elements];
            median_seconds(|calls| {
                for _ in 0..calls {
                    let (from, to) = std::hint::black_box((&from, &mut to));
                    to.par_chunks_mut(1 << 16)
                        .zip(from.par_chunks(1 << 16))
                        .for_each(|(to, from)| to.copy_from_slice(from));
                }
                Ok(())
            })
        }
        Target::Gpu(gpu) => {
            let (from, to) = buffers(gpu, elements)?;
            median_seconds(|calls| {
                submit(gpu, calls, |encoder| {
                    encoder.copy_buffer_to_buffer(&from, 0, &to, 0, from.size());
                    Ok(())
                })
            })
        }
    }
}

fn time_step(
    target: &Target,
    rule: Rule,
    regime: Regime,
    elements: usize,
) -> Result<f64, CliError> {
    match target {
        Target::Cpu { .. } => {
            let mut params = values(elements);
            let grads = values(elements);
            let mut optimizer = OptimizerBuilder::new(rule)
                .regime(regime)
                .group(Group::new("bench").tensor("bench", &params, &grads))
                .build_cpu()?;
            median_seconds(|calls| {
                for _ in 0..calls {
                    optimizer.step(&mut [&mut params], &[&grads])?;
                }
                Ok(())
            })
        }
        Target::Gpu(gpu) => {
            let (params, grads) = buffers(gpu, elements)?;
            for buffer in [&params, &grads] {
                gpu.queue()
                    .write_buffer(buffer, 0, bytemuck::cast_slice(&values(elements)));
            }
            let optimizer: Optimizer = OptimizerBuilder::new(rule)
                .regime(regime)
                .group(Group::new("bench").tensor("bench", params.slice(..), grads.slice(..)))
                .build(gpu)?;
            median_seconds(|calls| {
                submit(gpu, calls, |encoder| Ok(optimizer.encode_step(encoder)?))
            })
        }
    }
}

/// Small values, none of them zero or denormal, that many steps do not carry off.
fn values(elements: usize) -> Vec<f32> {
    (0..elements)
        .map(|i| 1e-3 * ((i % 251) as f32 - 125.5))
        .collect()
}

fn buffers(gpu: &Gpu, elements: usize) -> Result<(wgpu::Buffer, wgpu::Buffer), CliError> {
    gpu.scoped("two buffers to measure on", || {
        Ok((buffer(gpu, elements), buffer(gpu, elements)))
    })
}

fn buffer(gpu: &Gpu, elements: usize) -> wgpu::Buffer {
    gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("bench"),
        size: (elements as u64 * 4).next_multiple_of(16),
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

/// Records `calls` times into encoders of at most 64, submits, and waits for the device.
fn submit(
    gpu: &Gpu,
    calls: usize,
    mut record: impl FnMut(&mut wgpu::CommandEncoder) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut left = calls;
    while left > 0 {
        let mut encoder = gpu
            .device()
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for _ in 0..left.min(64) {
            record(&mut encoder)?;
        }
        gpu.queue().submit([encoder.finish()]);
        left -= left.min(64);
    }
    gpu.device()
        .poll(wgpu::PollType::wait_indefinitely())
        .map_err(|error| wgpu_optim::Error::Readback {
            what: "the benchmark",
            message: error.to_string(),
        })?;
    Ok(gpu.check_alive()?)
}

fn print(report: &Report) -> Result<(), CliError> {
    say(format!("{}; medians of {REPEATS}", report.device))?;
    let mut table = Columns::new(
        [
            "what",
            "rule",
            "regime",
            "parameters",
            "ns/parameter",
            "GB/s",
            "% of copy",
        ],
        3,
    );
    for row in &report.rows {
        table.row([
            row.what.to_owned(),
            row.rule.to_owned(),
            row.regime.to_owned(),
            row.elements.to_string(),
            format!("{:.3}", row.ns_per_param),
            format!("{:.2}", row.gb_per_s),
            format!("{:.0}", row.percent_of_copy),
        ]);
    }
    table.print()
}
