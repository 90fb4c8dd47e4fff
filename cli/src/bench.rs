//! `wgpu-optim bench`: measures the time of a step, against copy and triad on the same device in the same run.

mod report;
mod rows;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use indicatif::ProgressBar;
use serde::Serialize;
use wgpu_optim::{ErrorKind, Gpu, Regime, Rule, wgpu};
use wgpu_optim_conformance::bench::device::Device;
use wgpu_optim_conformance::bench::host::Host;
use wgpu_optim_conformance::bench::measure::{Effort, ROUNDS};
use wgpu_optim_conformance::bench::workload::{MANY, MANY_GROUPS, MODES, every_regime, every_rule, regimes, rules};

use crate::CliError;
use crate::memory;
use crate::page::command;
use crate::signals;
use crate::table::{Columns, progress_bar, say};
use crate::target::{Target, TargetArgs, TuningSource, driver_in_words, size_in_words};
use report::ReportFile;
use rows::{Clock, Entry, OVERHEAD_ELEMENTS, Row, Selection, bytes_of, measure_size};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Smallest size, as a power of two of the number of parameters
    #[arg(long, default_value_t = 10, value_name = "POWER", value_parser = clap::value_parser!(u32).range(0..=30))]
    from: u32,
    /// Largest size, as a power of two of the number of parameters [default: 22 on software drivers, else 26]
    #[arg(long, value_name = "POWER", value_parser = clap::value_parser!(u32).range(0..=30))]
    to: Option<u32>,
    /// Distance from one power of two to the next
    #[arg(long, default_value_t = 2, value_name = "POWERS", value_parser = clap::value_parser!(u32).range(1..=30))]
    step: u32,
    /// Rules, separated by commas [default: sgd, sgdm, signsgd, signum, adamw, lion]
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(every_rule().iter().map(Rule::name)))]
    rule: Vec<String>,
    /// Regimes, separated by commas [default: fixed, norm-ratio, seesaw]. Regimes that need a second gradient of each
    /// batch are measured without it
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(every_regime().iter().map(Regime::name)))]
    regime: Vec<String>,
    /// Modes, separated by commas [default: f32, unchecked]. In bf16 and f16, parameters and gradients have that
    /// element type, with f32 masters; in bf16-stochastic they are rounded stochastically. Schedule-free runs only the
    /// rules without momentum. Unchecked is f32 at a fixed rate without the pass that measures the gradients
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(MODES.iter().map(|mode| mode.name)))]
    mode: Vec<String>,
    /// Milliseconds that each measurement takes in each of its seven rounds
    #[arg(long, default_value_t = 30, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    round_ms: u64,
    /// Also time each pass of a step, if the device has timestamps
    #[arg(long)]
    passes: bool,
    /// Write a page with a roofline plot and the table, or the plot alone if the name ends in .svg
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Replace the file of --report even if it is not a report
    #[arg(long, requires = "report")]
    force: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
pub struct Report {
    /// Adapter, or the CPU path with its threads.
    device: String,
    /// Driver, or processor.
    driver: String,
    backend: String,
    command: String,
    /// Number of rounds. Each figure is the median over them.
    rounds: usize,
    /// Source of the kernels' geometry, by size.
    tuning: Vec<SizeTuning>,
    notes: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct SizeTuning {
    elements: usize,
    source: TuningSource,
}

pub fn run(args: &Args) -> Result<(), CliError> {
    if let Some(to) = args.to.filter(|&to| args.from > to) {
        let from = args.from;
        return CliError::usage(format!("--from {from} is above --to {to}: give the smaller power of two first"));
    }
    let selection = args.selection();
    let idle = args.idle(&selection);
    if selection.entries(1).is_empty() {
        return CliError::usage(format!(
            "nothing is left to measure, as {} do not go together: name others",
            idle.join(", ")
        ));
    }
    let target = args.target.find()?;
    target.explain();
    // The file is checked before minutes of measuring.
    let file = args.report.as_deref().map(|path| ReportFile::create(path, args.force)).transpose()?;
    // Largest size that a run of about two minutes can measure.
    let default_to = if matches!(&target, Target::Gpu(gpu) if is_software(gpu)) { 22 } else { 26 };
    let powers = (args.from..=args.to.unwrap_or(default_to.max(args.from))).step_by(args.step as usize);
    let mut sizes: Vec<(String, usize, Vec<Entry>)> =
        powers.map(|power| (format!("2^{power}"), 1 << power, selection.entries(1 << power))).collect();
    sizes.push(("overhead".to_owned(), OVERHEAD_ELEMENTS, selection.overhead_entries()));
    let mut report = Report {
        device: target.adapter(),
        driver: driver(&target),
        backend: target.backend(),
        command: command(),
        rounds: ROUNDS,
        tuning: Vec::new(),
        notes: idle
            .iter()
            .map(|named| format!("{named} is measured nowhere: nothing else that is named goes with it"))
            .collect(),
        rows: Vec::new(),
    };
    let effort = Effort { round: Duration::from_millis(args.round_ms), by_pass: args.passes };
    let progress = progress_bar((sizes.len() * ROUNDS) as u64, "{wide_bar} {msg} {elapsed}");
    signals::watch();
    for (name, elements, entries) in sizes {
        if signals::received().is_some() {
            report.notes.push(format!("stopped before {name}"));
            break;
        }
        progress.set_message(name);
        report.measure(&target, elements, entries, effort, &progress)?;
    }
    progress.finish_and_clear();

    let printed = if args.json { say(serde_json::json!(report)) } else { print(&report) };
    let written = file.and_then(|file| file.write(&report).err());
    let stopped = signals::received().map(|signal| signal.stopped("stopped, with what was measured"));
    CliError::all([printed.err(), written, stopped].into_iter().flatten())
}

impl Args {
    fn selection(&self) -> Selection {
        let among = |names: &[String], name: &str| names.iter().any(|n| n == name);
        let mut rules = if self.rule.is_empty() { rules().to_vec() } else { every_rule() };
        let mut regimes = if self.regime.is_empty() { regimes().to_vec() } else { every_regime() };
        let mut modes = MODES.to_vec();
        rules.retain(|rule| self.rule.is_empty() || among(&self.rule, rule.name()));
        regimes.retain(|regime| self.regime.is_empty() || among(&self.regime, regime.name()));
        modes.retain(|mode| if self.mode.is_empty() { mode.is_default() } else { among(&self.mode, mode.name) });
        Selection { rules, regimes, modes }
    }

    /// Returns the options that name what no step has, because it fits nothing else that is named.
    fn idle(&self, selection: &Selection) -> Vec<String> {
        let entries = selection.entries(1);
        let option = |option: &str, names: &[String], of: fn(&Entry) -> &'static str| {
            let is_idle = |name: &&String| entries.iter().all(|entry| of(entry) != *name);
            names.iter().filter(is_idle).map(|name| format!("{option} {name}")).collect::<Vec<_>>()
        };
        [
            option("--rule", &self.rule, |entry| entry.spec.rule.name()),
            option("--regime", &self.regime, |entry| entry.spec.regime.name()),
            option("--mode", &self.mode, |entry| entry.spec.mode.name),
        ]
        .concat()
    }
}

fn is_software(gpu: &Gpu) -> bool {
    gpu.device().adapter_info().device_type == wgpu::DeviceType::Cpu
}

impl Report {
    /// Measures the entries of one size that fit into memory.
    fn measure(
        &mut self,
        target: &Target,
        elements: usize,
        entries: Vec<Entry>,
        effort: Effort,
        progress: &ProgressBar,
    ) -> Result<(), CliError> {
        let in_host_memory = match target {
            Target::Cpu { .. } => true,
            Target::Gpu(gpu) => is_software(gpu),
        };
        let needed = bytes_of(elements, &entries);
        let room = memory::available().filter(|_| in_host_memory);
        // Drivers and the staging of uploads need the remaining memory.
        if let Some(room) = room.filter(|room| needed > 0.7 * room) {
            let [needed, usable, room] = [needed, 0.7 * room, room].map(|bytes| bytes / GIB);
            self.notes.push(format!(
                "{elements} parameters skipped: {needed:.1} GiB needed, {usable:.1} GiB of the {room:.1} GiB available may be used"
            ));
            return Ok(());
        }
        let (target, source) = target.clone().tuned_for(elements);
        self.tuning.push(SizeTuning { elements, source });
        let (notes, done) = (&mut self.notes, || progress.inc(1));
        let rows = match &target {
            Target::Cpu { .. } => measure_size(&mut Host::new(elements), elements, entries, effort, notes, done)?,
            Target::Gpu(gpu) => match Device::new(gpu, elements) {
                Ok(mut device) => measure_size(&mut device, elements, entries, effort, notes, done)?,
                Err(error) if matches!(error.kind(), ErrorKind::Limit | ErrorKind::DeviceRefused) => {
                    notes.push(format!("{elements} parameters skipped: {error}"));
                    Vec::new()
                }
                Err(error) => return Err(error.into()),
            },
        };
        self.rows.extend(rows);
        Ok(())
    }
}

const GIB: f64 = (1u64 << 30) as f64;

/// Returns the driver with its version. For the CPU path it is the processor, if the system reports it.
fn driver(target: &Target) -> String {
    let processor = || {
        let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    match target {
        Target::Gpu(gpu) => driver_in_words(&gpu.device().adapter_info()),
        Target::Cpu { .. } => processor().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
    }
}

/// Returns the names of the passes that were timed.
fn passes(rows: &[Row]) -> Vec<&'static str> {
    let most = rows.iter().map(|row| &row.pass_ns_per_param).max_by_key(|passes| passes.len());
    most.into_iter().flatten().map(|&(pass, _)| pass).collect()
}

/// Returns the rows of the table. The copy and triad rows of the overhead measurements appear only in JSON.
fn shown(report: &Report) -> impl Iterator<Item = &Row> {
    report.rows.iter().filter(|row| row.elements != OVERHEAD_ELEMENTS || !row.rule.is_empty())
}

/// Column of the table: its name, and a function that formats its cells.
type Column = (&'static str, fn(&Row) -> String);

const COLUMNS: [Column; 11] = [
    ("what", |row| row.by.map_or_else(|| row.what.to_owned(), |by| format!("{} ({by})", row.what))),
    ("rule", |row| row.rule.to_owned()),
    ("regime", |row| row.regime.to_owned()),
    ("mode", |row| row.mode.to_owned()),
    ("parameters", |row| size_in_words(row.elements as u64)),
    ("ns/param", |row| digits(row.ns_per_param)),
    ("min to max", |row| format!("{} to {}", digits(row.spread_low), digits(row.spread_high))),
    ("GB/s", |row| digits(row.gb_per_s)),
    ("% copy", |row| digits(row.percent_of_copy)),
    ("% triad", |row| digits(row.percent_of_triad)),
    ("µs/step", |row| digits(row.us_per_step)),
];

/// Additional columns for a device.
const DEVICE_COLUMNS: [Column; 3] = [
    ("clock", |row| if row.clock == Clock::Wall { "wall" } else { "timestamps" }.to_owned()),
    ("wall ns/param", |row| digits(row.wall_ns_per_param)),
    ("record µs", |row| {
        let recording = row.encode_us_per_step.zip(row.finish_us_per_step);
        recording.map_or_else(String::new, |(encode, finish)| digits(encode + finish))
    }),
];

/// Returns the table's header and rows. The first [`TEXT_COLUMNS`] columns are text.
fn table(report: &Report) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let passes = passes(&report.rows);
    let of_device = if report.backend == "cpu" { &[] } else { &DEVICE_COLUMNS[..] };
    let columns = || COLUMNS.iter().chain(of_device);
    let cells = |row: &Row| {
        let timed = passes.iter().map(|pass| {
            let ns = row.pass_ns_per_param.iter().find(|(name, _)| name == pass);
            ns.map_or_else(String::new, |&(_, ns)| digits(ns))
        });
        columns().map(|(_, cell)| cell(row)).chain(timed).collect()
    };
    let rows = shown(report).map(cells).collect();
    (columns().map(|&(name, _)| name).chain(passes.iter().copied()).collect(), rows)
}

/// Number of columns with text.
const TEXT_COLUMNS: usize = 4;

/// Formats a number with at least three digits.
fn digits(value: f64) -> String {
    match value {
        value if value < 0.1 => format!("{value:.4}"),
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// Returns remarks that explain the table.
fn remarks(report: &Report) -> Vec<String> {
    let mut remarks = vec![
        "GB/s: bytes that cannot be done without, by time. Copy moves 8 bytes per element, triad (a = b + s c) 12; a step reads and \
         writes in place, so that more than 100 % of either is possible."
            .to_owned(),
    ];
    if report.backend != "cpu" {
        let count = |clock| shown(report).filter(|row| row.clock == clock).count();
        remarks.push(match (count(Clock::Timestamps), count(Clock::Wall)) {
            (0, _) => "all figures by the wall clock: the device has no timestamps, or implausible ones".to_owned(),
            (timed, wall) => format!("{timed} rows by the device's timestamps, {wall} by the wall clock"),
        });
    }
    let cached = report.tuning.iter().filter(|size| size.source == TuningSource::Cached);
    let cached: Vec<String> = cached.map(|size| size_in_words(size.elements as u64)).collect();
    if !cached.is_empty() {
        let sizes = cached.join(", ");
        remarks
            .push(format!("in the geometry that `wgpu-optim tune` found: {sizes}; all else in the adapter's preset"));
    }
    if !passes(&report.rows).is_empty() {
        remarks.push(
            "passes in ns/param, each timed in a compute pass of its own: at small sizes they come to more than the step"
                .to_owned(),
        );
    }
    let recording =
        |row: &Row| row.encode_us_per_step.zip(row.finish_us_per_step).filter(|_| row.what == "many-tensors");
    if let Some((encode, finish)) = report.rows.iter().rev().find_map(recording) {
        remarks.push(format!(
            "recording a step of {MANY} tensors in {MANY_GROUPS} groups costs the host {} µs in encode_step and {} µs in finish",
            digits(encode),
            digits(finish)
        ));
    }
    remarks.extend(report.notes.iter().map(|note| format!("note: {note}")));
    remarks
}

/// Columns that fit a terminal, after the name of the row.
const NARROW_COLUMNS: [Column; 5] = [
    ("ns/param", |row| digits(row.ns_per_param)),
    ("max/min", |row| digits(row.spread_high / row.spread_low)),
    ("GB/s", |row| digits(row.gb_per_s)),
    ("% copy", |row| digits(row.percent_of_copy)),
    ("µs/step", |row| digits(row.us_per_step)),
];

fn print(report: &Report) -> Result<(), CliError> {
    say(format!("{}; {}; medians of {} alternating rounds", report.device, report.driver, report.rounds))?;
    let mut modes = shown(report).map(|row| row.mode).filter(|mode| !mode.is_empty());
    let one_mode = modes.next().is_none_or(|first| modes.all(|mode| mode == first));
    let name = |row: &Row| {
        let mode = if one_mode { "" } else { row.mode };
        let words = [(COLUMNS[0].1)(row), row.rule.to_owned(), row.regime.to_owned(), mode.to_owned()];
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    };
    let header: Vec<&str> = ["what"].into_iter().chain(NARROW_COLUMNS.map(|(name, _)| name)).collect();
    let mut columns = Columns::new(&header, 1);
    let mut size = None;
    for row in shown(report) {
        if size.replace(row.elements) != Some(row.elements) {
            columns.row([format!("{} parameters", size_in_words(row.elements as u64))]);
        }
        columns.row([name(row)].into_iter().chain(NARROW_COLUMNS.map(|(_, cell)| cell(row))));
    }
    columns.print_narrow()?;
    for row in shown(report).filter(|row| !row.pass_ns_per_param.is_empty()) {
        let times = row.pass_ns_per_param.iter().map(|(pass, ns)| format!("{pass} {}", digits(*ns)));
        let size = size_in_words(row.elements as u64);
        say(format!("{}, {size} parameters: {}", name(row), times.collect::<Vec<_>>().join(", ")))?;
    }
    say("--json and --report have more columns")?;
    remarks(report).into_iter().try_for_each(say)
}
