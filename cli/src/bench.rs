//! `wgpu-optim bench`: what a step costs, against copy and triad on the same device in the same run.

mod report;
mod rows;
#[cfg(test)]
mod tests;

use std::time::Duration;

use clap::builder::PossibleValuesParser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use wgpu_optim::{Error, Gpu, wgpu};
use wgpu_optim_conformance::bench::device::Device;
use wgpu_optim_conformance::bench::host::Host;
use wgpu_optim_conformance::bench::measure::{Bench, Effort, ROUNDS};
use wgpu_optim_conformance::bench::workload::{MANY, MANY_GROUPS, MODES, regimes, rules};

use crate::CliError;
use crate::page::command;
use crate::table::{Columns, say};
use crate::target::{Target, TargetArgs, TuningSource, driver_in_words, size_in_words};
use report::ReportFile;
use rows::{Clock, Entry, OVERHEAD_ELEMENTS, Row, Selection, bytes_of, measure_size};

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Smallest size, as a power of two of parameters
    #[arg(long, default_value_t = 10, value_name = "POWER", value_parser = clap::value_parser!(u32).range(0..=30))]
    from: u32,
    /// Largest size, as a power of two of parameters [default: 22 on software drivers, else 26]
    #[arg(long, value_name = "POWER", value_parser = clap::value_parser!(u32).range(0..=30))]
    to: Option<u32>,
    /// From one power of two to the next
    #[arg(long, default_value_t = 2, value_name = "POWERS", value_parser = clap::value_parser!(u32).range(1..=30))]
    step: u32,
    /// Only these rules, separated by commas
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(rules().map(|rule| rule.name())))]
    rule: Vec<String>,
    /// Only these regimes, separated by commas
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(regimes().map(|regime| regime.name())))]
    regime: Vec<String>,
    /// Only these modes, separated by commas [default: f32]. In bf16 and f16 parameters and gradients are of that element,
    /// with masters of f32; in bf16-stochastic they are rounded at random. In schedule-free there are the rules without momentum
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(MODES.iter().map(|mode| mode.name)))]
    mode: Vec<String>,
    /// Milliseconds that each measurement takes in each of its seven rounds, calls permitting
    #[arg(long, default_value_t = 30, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    round_ms: u64,
    /// Time each pass of a step as well, where the device has timestamps
    #[arg(long)]
    passes: bool,
    /// Write a page with a roofline plot and the table (.html), or the plot alone (.svg)
    #[arg(long, value_name = "FILE")]
    report: Option<String>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// One run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The adapter, or the CPU path and its threads.
    device: String,
    /// The driver, or the processor.
    driver: String,
    /// The backend, `cpu` for the CPU path.
    backend: String,
    /// The command that made the report.
    command: String,
    /// Each figure is the median of so many rounds.
    rounds: usize,
    /// Where the kernels' geometry came from, by size.
    tuning: Vec<SizeTuning>,
    /// What was left out, and why.
    notes: Vec<String>,
    /// The measurements.
    rows: Vec<Row>,
}

/// Where the geometry of one size came from.
#[derive(Debug, Serialize)]
struct SizeTuning {
    elements: usize,
    source: TuningSource,
}

/// Measures.
pub fn run(args: &Args) -> Result<(), CliError> {
    if let Some(to) = args.to.filter(|&to| args.from > to) {
        return CliError::usage(format!(
            "--from {} is above --to {to}: give the smaller power of two first",
            args.from
        ));
    }
    let target = args.target.find()?;
    target.explain();
    // Before minutes of measuring.
    let file = args.report.as_deref().map(ReportFile::create).transpose()?;
    let to = args.to.unwrap_or(default_to(&target).max(args.from));
    let sizes: Vec<u32> = (args.from..=to).step_by(args.step as usize).collect();
    let mut report = Report {
        device: target.adapter(),
        driver: driver(&target),
        backend: target.backend(),
        command: command(),
        rounds: ROUNDS,
        tuning: Vec::new(),
        notes: Vec::new(),
        rows: Vec::new(),
    };
    let selection = args.selection();
    let effort = Effort { round: Duration::from_millis(args.round_ms), by_pass: args.passes };
    let progress = ProgressBar::new(((sizes.len() + 1) * ROUNDS) as u64).with_style(style());
    for &power in &sizes {
        progress.set_message(format!("2^{power}"));
        let elements = 1usize << power;
        let entries = selection.entries(elements);
        measure_group(&target, elements, entries, effort, &mut report, &progress)?;
    }
    progress.set_message("overhead");
    let entries = selection.overhead_entries();
    measure_group(&target, OVERHEAD_ELEMENTS, entries, effort, &mut report, &progress)?;
    progress.finish_and_clear();

    if let Some(file) = file {
        file.write(&report)?;
    }
    if args.json { say(serde_json::json!(report)) } else { print(&report) }
}

impl Args {
    fn selection(&self) -> Selection {
        let among = |names: &[String], name: &str| names.is_empty() || names.iter().any(|n| n == name);
        let mut selection = Selection { rules: rules().to_vec(), regimes: regimes().to_vec(), modes: MODES.to_vec() };
        selection.rules.retain(|rule| among(&self.rule, rule.name()));
        selection.regimes.retain(|regime| among(&self.regime, regime.name()));
        selection.modes.retain(
            |mode| {
                if self.mode.is_empty() { mode.is_default() } else { among(&self.mode, mode.name) }
            },
        );
        selection
    }
}

fn style() -> ProgressStyle {
    // The template is a constant, tried by every run.
    ProgressStyle::with_template("{wide_bar} {msg} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The largest size that a run of about two minutes can afford.
fn default_to(target: &Target) -> u32 {
    match target {
        Target::Gpu(gpu) if is_software(gpu) => 22,
        _ => 26,
    }
}

fn is_software(gpu: &Gpu) -> bool {
    gpu.device().adapter_info().device_type == wgpu::DeviceType::Cpu
}

/// Measures what there is room for at one size.
fn measure_group(
    target: &Target,
    elements: usize,
    entries: Vec<Entry>,
    effort: Effort,
    report: &mut Report,
    progress: &ProgressBar,
) -> Result<(), CliError> {
    let in_host_memory = match target {
        Target::Cpu { .. } => true,
        Target::Gpu(gpu) => is_software(gpu),
    };
    let needed = bytes_of(elements, &entries);
    let room = available_bytes().filter(|_| in_host_memory);
    // Drivers and the staging of uploads want some as well.
    if let Some(room) = room.filter(|room| needed > 0.7 * room) {
        report.notes.push(format!(
            "{elements} parameters skipped: {:.1} GiB needed, {:.1} GiB available",
            needed / GIB,
            room / GIB
        ));
        return Ok(());
    }
    let (target, source) = target.clone().tuned_for(elements);
    report.tuning.push(SizeTuning { elements, source });
    match &target {
        Target::Cpu { .. } => {
            let mut host = Host::new(elements);
            measure_on(&mut host, elements, entries, effort, report, progress)
        }
        Target::Gpu(gpu) => match Device::new(gpu, elements) {
            Ok(mut device) => measure_on(&mut device, elements, entries, effort, report, progress),
            Err(error @ (Error::Limit { .. } | Error::Device { .. })) => {
                let note = format!("{elements} parameters skipped: {error}");
                report.notes.push(note);
                Ok(())
            }
            Err(error) => Err(error.into()),
        },
    }
}

fn measure_on(
    bench: &mut impl Bench,
    elements: usize,
    entries: Vec<Entry>,
    effort: Effort,
    report: &mut Report,
    progress: &ProgressBar,
) -> Result<(), CliError> {
    let rows = measure_size(bench, elements, entries, effort, &mut report.notes, || {
        progress.inc(1);
    })?;
    report.rows.extend(rows);
    Ok(())
}

const GIB: f64 = (1u64 << 30) as f64;

/// Memory that can be had without swapping, where the system tells.
fn available_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024.0 * kib)
}

/// The driver with its version; for the CPU path the processor, where the system tells.
fn driver(target: &Target) -> String {
    match target {
        Target::Gpu(gpu) => driver_in_words(&gpu.device().adapter_info()),
        Target::Cpu { .. } => std::fs::read_to_string("/proc/cpuinfo")
            .ok()
            .and_then(|text| {
                let line = text.lines().find(|line| line.starts_with("model name"))?;
                Some(line.split_once(':')?.1.trim().to_owned())
            })
            .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
    }
}

/// The names of the passes that were timed.
fn passes(rows: &[Row]) -> Vec<&'static str> {
    rows.iter()
        .map(|row| &row.pass_ns_per_param)
        .max_by_key(|passes| passes.len())
        .map(|passes| passes.iter().map(|&(pass, _)| pass).collect())
        .unwrap_or_default()
}

/// The rows of the table. The roofs of the overhead rows only matter to programs.
fn shown(report: &Report) -> impl Iterator<Item = &Row> {
    report.rows.iter().filter(|row| row.elements != OVERHEAD_ELEMENTS || !row.rule.is_empty())
}

/// The table: header and rows, the first [`TEXT_COLUMNS`] of them text.
fn table(report: &Report) -> (Vec<String>, Vec<Vec<String>>) {
    let on_device = report.backend != "cpu";
    let passes = passes(&report.rows);
    let mut header: Vec<String> = [
        "what",
        "rule",
        "regime",
        "mode",
        "parameters",
        "ns/param",
        "min to max",
        "GB/s",
        "% copy",
        "% triad",
        "µs/step",
    ]
    .map(str::to_owned)
    .to_vec();
    if on_device {
        header.extend(["clock", "wall ns/param", "record µs"].map(str::to_owned));
    }
    header.extend(passes.iter().map(|&pass| pass.to_owned()));
    let rows = shown(report).map(|row| {
        let mut cells = vec![
            match row.by {
                Some(by) => format!("{} ({by})", row.what),
                None => row.what.to_owned(),
            },
            row.rule.to_owned(),
            row.regime.to_owned(),
            row.mode.to_owned(),
            size_in_words(row.elements as u64),
            digits(row.ns_per_param),
            format!("{} to {}", digits(row.spread_low), digits(row.spread_high)),
            digits(row.gb_per_s),
            digits(row.percent_of_copy),
            digits(row.percent_of_triad),
            digits(row.us_per_step),
        ];
        if on_device {
            let recording = row.encode_us_per_step.zip(row.finish_us_per_step);
            cells.extend([
                match row.clock {
                    Clock::Timestamps => "timestamps".to_owned(),
                    Clock::Wall => "wall".to_owned(),
                },
                digits(row.wall_ns_per_param),
                recording.map_or_else(String::new, |(encode, finish)| digits(encode + finish)),
            ]);
        }
        cells.extend(passes.iter().map(|&pass| {
            let mut timed = row.pass_ns_per_param.iter();
            timed.find(|(name, _)| *name == pass).map_or_else(String::new, |&(_, ns)| digits(ns))
        }));
        cells
    });
    (header, rows.collect())
}

/// Columns of the table that hold words.
const TEXT_COLUMNS: usize = 4;

/// Three digits or more.
fn digits(value: f64) -> String {
    match value {
        value if value < 0.1 => format!("{value:.4}"),
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// What the table does not say.
fn remarks(report: &Report) -> Vec<String> {
    let mut remarks = vec![
        "GB/s: bytes that cannot be done without, by time. Copy moves 8 bytes per element, triad (a = b + s c) 12; a step reads and \
         writes in place, so that more than 100 % of either is possible."
            .to_owned(),
    ];
    if report.backend != "cpu" {
        let count = |clock| shown(report).filter(|row| row.clock == clock).count();
        remarks.push(match (count(Clock::Timestamps), count(Clock::Wall)) {
            (0, _) => "all figures by the wall clock: the device has no timestamps, or they made no sense".to_owned(),
            (timed, wall) => {
                format!("{timed} rows by the device's timestamps, {wall} by the wall clock")
            }
        });
    }
    let cached: Vec<String> = report
        .tuning
        .iter()
        .filter(|size| size.source == TuningSource::Cached)
        .map(|size| size_in_words(size.elements as u64))
        .collect();
    if !cached.is_empty() {
        remarks.push(format!(
            "in the geometry that `wgpu-optim tune` found: {}; all else in the adapter's preset",
            cached.join(", ")
        ));
    }
    if !passes(&report.rows).is_empty() {
        remarks.push(
            "passes in ns/param, each timed in a compute pass of its own: at small sizes they come to more than the step"
                .to_owned(),
        );
    }
    let encode = |row: &&Row| row.what == "many-tensors" && row.encode_us_per_step.is_some();
    if let Some(row) = report.rows.iter().rfind(encode) {
        remarks.push(format!(
            "recording a step of {MANY} tensors in {MANY_GROUPS} groups costs the host {} µs in encode_step and {} µs in finish",
            digits(row.encode_us_per_step.unwrap_or_default()),
            digits(row.finish_us_per_step.unwrap_or_default()),
        ));
    }
    remarks.extend(report.notes.iter().map(|note| format!("note: {note}")));
    remarks
}

fn print(report: &Report) -> Result<(), CliError> {
    say(format!("{}; {}; medians of {} alternating rounds", report.device, report.driver, report.rounds))?;
    let (header, rows) = table(report);
    let mut columns = Columns::new(&header, TEXT_COLUMNS);
    rows.into_iter().for_each(|row| columns.row(row));
    columns.print()?;
    remarks(report).into_iter().try_for_each(say)
}
