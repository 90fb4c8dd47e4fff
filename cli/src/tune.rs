//! `wgpu-optim tune`: finds the fastest kernel geometry for a device, and stores it.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use wgpu_optim::gpu::{Candidate, TuneOptions, TuneReport, Tuning, TuningCache};

use crate::CliError;
use crate::files::start_of;
use crate::signals;
use crate::table::{Columns, say};
use crate::target::{Geometry, Target, TargetArgs, driver_in_words, size_in_words};
use crate::train::{RegimeName, RuleName};

#[derive(Debug, clap::Args)]
#[command(after_help = crate::target::ENVIRONMENT)]
pub struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Sizes to tune for, as powers of two of the number of parameters, separated by commas; each serves sizes within a
    /// factor of eight
    #[arg(long, default_value = "20", value_delimiter = ',', value_name = "POWER", value_parser = clap::value_parser!(u32).range(0..=30))]
    power: Vec<u32>,
    /// Update rule whose step is measured
    #[arg(long, value_enum, default_value = "sgdm")]
    rule: RuleName,
    /// Learning-rate regime whose step is measured
    #[arg(long, value_enum, default_value = "seesaw")]
    regime: RegimeName,
    /// Milliseconds to spend on each size
    #[arg(long, default_value_t = 5000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    budget_ms: u64,
    /// Replace the file that WGPU_OPTIM_TUNING_CACHE names even if it is not a tuning cache
    #[arg(long)]
    force: bool,
    /// Measure, but write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

const SHOWN: usize = 10;

#[derive(Serialize)]
struct Report {
    device: String,
    driver: String,
    backend: String,
    /// Path of the file, or `None` if nothing was written.
    written: Option<String>,
    sizes: Vec<Size>,
}

#[derive(Serialize)]
struct Size {
    elements: u64,
    rule: &'static str,
    regime: &'static str,
    seconds: f64,
    timestamps: bool,
    preset: Measured,
    best: Measured,
    candidates: Vec<Measured>,
}

#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    geometry: Geometry,
    ns_per_param: Option<f64>,
    /// Reason why the geometry cannot be used.
    problem: Option<String>,
    #[serde(skip)]
    tuning: Tuning,
}

impl Measured {
    fn new(tuning: Tuning, ns_per_param: Option<f64>, problem: Option<String>) -> Self {
        Measured { geometry: tuning.into(), ns_per_param, problem, tuning }
    }

    fn of(candidate: &Candidate) -> Self {
        let result = candidate.ns_per_param.as_ref();
        Self::new(candidate.tuning, result.ok().copied(), result.err().cloned())
    }
}

pub fn run(args: &Args) -> Result<(), CliError> {
    let gpu = match args.target.find()? {
        Target::Gpu(gpu) => gpu,
        Target::Cpu { reason } => {
            let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
            return CliError::usage(format!(
                "there is nothing to tune on the CPU path{reason}: name a device with --backend or --adapter"
            ));
        }
    };
    let cache = if args.dry_run { None } else { TuningCache::from_env() };
    if cache.is_none() && !args.dry_run {
        return CliError::usage(
            "there is no file to keep the tuning in: name one in WGPU_OPTIM_TUNING_CACHE, or add --dry-run",
        );
    }
    if let Some(path) = cache.as_ref().map(TuningCache::path).filter(|path| !args.force && !may_be_replaced(path)) {
        return CliError::usage(format!(
            "{}, which WGPU_OPTIM_TUNING_CACHE names, is no tuning cache: name another file, or add --force to replace it",
            path.display()
        ));
    }
    let info = gpu.device().adapter_info();
    let mut report = Report {
        device: gpu.describe(),
        driver: driver_in_words(&info),
        backend: info.backend.to_str().to_owned(),
        written: None,
        sizes: Vec::new(),
    };
    let (rule, regime) = (args.rule.0.with_momentum(0.9), args.regime.0);
    signals::watch();
    for &power in args.power.iter().take_while(|_| signals::received().is_none()) {
        let (started, budget) = (Instant::now(), Duration::from_millis(args.budget_ms));
        let options = TuneOptions { elements: 1 << power, rule, regime, budget };
        let found = gpu.tune(&options)?;
        report.sizes.push(Size::new(&options, &found, started.elapsed()));
    }
    // The measurements are shown even if they cannot be stored.
    let mut kept = Ok(());
    if let Some(cache) = &cache {
        kept = report.sizes.iter().try_for_each(|size| cache.put(&gpu, size.elements, size.best.tuning));
        if kept.is_ok() {
            report.written = Some(cache.path().display().to_string());
        }
    }
    if args.json {
        say(serde_json::json!(report))?;
    } else {
        print(&report)?;
    }
    kept?;
    match signals::received() {
        Some(signal) if report.sizes.len() < args.power.len() => {
            Err(signal.stopped(format!("stopped after {} of {} sizes", report.sizes.len(), args.power.len())))
        }
        _ => Ok(()),
    }
}

/// Returns true if a path is a tuning cache (even a damaged one), an empty file, or not a file.
fn may_be_replaced(path: &Path) -> bool {
    match path.metadata() {
        Ok(about) if about.is_file() && about.len() > 0 => {
            let start = start_of(path);
            start.trim_start().starts_with('{') && start.contains("\"version\"") && start.contains("\"entries\"")
        }
        // A path that is not a file cannot be replaced. The attempt reports that.
        _ => true,
    }
}

impl Size {
    fn new(options: &TuneOptions, found: &TuneReport, time: Duration) -> Self {
        let preset = found.candidates.iter().find(|candidate| candidate.tuning == found.preset);
        let problem = preset.and_then(|preset| preset.ns_per_param.as_ref().err().cloned());
        Size {
            elements: options.elements,
            rule: options.rule.name(),
            regime: options.regime.name(),
            seconds: time.as_secs_f64(),
            timestamps: found.timestamps,
            preset: Measured::new(found.preset, found.preset_ns_per_param, problem),
            best: Measured::new(found.best, Some(found.best_ns_per_param), None),
            candidates: found.candidates.iter().map(Measured::of).collect(),
        }
    }

    fn verdict(&self) -> String {
        let (preset, best) = (&self.preset, &self.best);
        let (of_preset, of_best) = (ns(preset.ns_per_param), ns(best.ns_per_param));
        let geometry = &best.geometry;
        match (preset.ns_per_param, best.ns_per_param) {
            _ if self.candidates.len() == 1 => {
                format!(
                    "only the preset was measured, because there was no time for others (--budget-ms): {geometry}, {of_preset} ns/param"
                )
            }
            _ if best.tuning == preset.tuning => {
                format!("the preset stays, nothing is faster by more than 3 %: {geometry}, {of_preset} ns/param")
            }
            (Some(before), Some(after)) => format!(
                "best: {geometry}: {of_best} ns/param against {of_preset} of the preset, in alternating rounds ({:+.1} %)",
                100.0 * (after / before - 1.0)
            ),
            _ => format!(
                "best: {geometry}: {of_best} ns/param; the preset failed: {}",
                preset.problem.as_deref().unwrap_or("for no known reason")
            ),
        }
    }
}

fn ns(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

fn print(report: &Report) -> Result<(), CliError> {
    say(format!("{}; {}", report.device, report.driver))?;
    for size in &report.sizes {
        let clock = if size.timestamps { "the device's timestamps" } else { "the wall clock" };
        say(format!(
            "{} parameters, {}, {}: {} in {:.1} s, by {clock}",
            size_in_words(size.elements),
            size.rule,
            size.regime,
            if size.candidates.len() == 1 {
                "1 geometry".to_owned()
            } else {
                format!("{} geometries", size.candidates.len())
            },
            size.seconds
        ))?;
        let mut table = Columns::new(&["partials", "", "workgroup", "quads", "finish", "ns/param"], 2);
        let mut order: Vec<&Measured> = size.candidates.iter().collect();
        let rank = |of: &Measured| of.ns_per_param.unwrap_or(f64::INFINITY);
        order.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
        for candidate in order.into_iter().take(SHOWN) {
            let role = match candidate.tuning {
                tuning if tuning == size.preset.tuning => "preset",
                tuning if tuning == size.best.tuning => "best",
                _ => "",
            };
            let Tuning { workgroup_size, quads_per_invocation, partials, finish_workgroup_size } = candidate.tuning;
            let numbers =
                [workgroup_size, quads_per_invocation, finish_workgroup_size].map(|number| number.to_string());
            let words = [partials.name(), role].map(str::to_owned);
            table.row(words.into_iter().chain(numbers).chain([ns(candidate.ns_per_param)]));
        }
        table.print()?;
        say(size.verdict())?;
    }
    match &report.written {
        Some(path) => say(format!("written to {path}")),
        None => say("nothing written"),
    }
}
