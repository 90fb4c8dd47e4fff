//! `wgpu-optim check`, the conformance suite, which tests a device's arithmetic. Families of cases run on the device
//! and on the CPU path, and are compared with an f64 reference. A failing case is shrunk to the smallest case that
//! still fails.
//!
//! Rules and regimes are those of [`wgpu_optim::Rule::all`] and [`wgpu_optim::Regime::all`]. A new family is a function
//! and a line in [`FAMILIES`].

mod case;
mod families;
mod halves;
mod matrices;
mod nonfinite;
mod passes;
mod repeats;
mod run;
mod scenario;
mod shards;
mod state;
mod steps;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::time::Instant;

use clap::builder::PossibleValuesParser;
use serde::Serialize;
use wgpu_optim::gpu::{Partials, Tuning, TuningCache};
use wgpu_optim::{Gpu, GpuOptions, wgpu};

use crate::CliError;
use crate::parallel::in_parallel;
use crate::signals;
use crate::table::{Columns, say};
use crate::target::{check_environment, driver_in_words, size_in_words};
use case::{Cases, Mismatch, Outcome, Path, Subject, outcome_of, shrink};
use run::{Fault, Quantity};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Part of the name of the adapters to check [default: all]
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Run only this family of cases; may be given several times
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(FAMILIES.map(|(name, _)| name)))]
    family: Vec<String>,
    /// Run only every Nth case of each family, for slow drivers [default: 1]
    #[arg(long, value_name = "N", default_value = "1", hide_default_value = true)]
    sample: NonZeroUsize,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Falsify values that are read from the devices, to test that every family detects it
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "parameters")]
    seed_fault: Option<Quantity>,
}

/// Family of cases with its name.
type Family = (&'static str, fn(&Subject) -> Cases);

/// All families, in the order of the table.
const FAMILIES: [Family; 14] = [
    ("steps", steps::cases),
    ("passes", passes::cases),
    ("windows", families::windows),
    ("magnitudes", families::magnitudes),
    ("nonfinite", nonfinite::cases),
    ("repeats", repeats::cases),
    ("groups", families::groups),
    ("controls", families::controls),
    ("matrices", matrices::cases),
    ("averages", families::averages),
    ("trust", families::trust),
    ("shards", shards::cases),
    ("halves", halves::cases),
    ("state", state::cases),
];

/// Number of failing cases per row for which the smallest form is searched. Other failures are listed as they are.
const SHRUNK: usize = 1;

/// Results of one family on one adapter in one geometry.
#[derive(Debug, Serialize)]
struct Row {
    family: &'static str,
    adapter: String,
    driver: String,
    /// Source of the geometry: the preset, the preset with subgroups, or the cache.
    geometry: String,
    cases: usize,
    failed: usize,
    /// Outcome of all cases together.
    #[serde(flatten)]
    total: Outcome,
    seconds: f64,
    notes: Vec<String>,
    failures: Vec<Failure>,
}

#[derive(Debug, Serialize)]
struct Failure {
    case: String,
    /// Mismatches of the case, limited to the first few.
    mismatches: Vec<Mismatch>,
    /// Smallest form of the case that still fails, if it was searched.
    smallest: Option<Smallest>,
}

#[derive(Debug, Serialize)]
struct Smallest {
    case: String,
    mismatch: Mismatch,
}

pub fn run(args: &Args) -> Result<(), CliError> {
    let start = Instant::now();
    let wanted = |(name, _): &Family| args.family.is_empty() || args.family.iter().any(|family| family == name);
    let families: Vec<Family> = FAMILIES.into_iter().filter(wanted).collect();
    let mut rows = Vec::new();
    signals::watch();
    for adapter in adapters(args)? {
        let subjects = subjects(&adapter, args)?;
        let row = |index| {
            let (subject, family) = (&subjects[index / families.len()], families[index % families.len()]);
            Ok(run_family(family, subject, args.sample))
        };
        rows.extend(in_parallel(subjects.len() * families.len(), threads_for(&adapter), row)?);
    }
    let (cases, failures) = (rows.iter().map(|row| row.cases).sum(), rows.iter().map(|row| row.failed).sum());
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        say(serde_json::json!({ "cases": cases, "failed": failures, "seconds": seconds, "rows": rows }))?;
    } else {
        print(&rows)?;
        say(format!(
            "{cases} cases, {failures} failed, in {seconds:.0} s. Device and CPU path: the worst distance in ulps, which are units in the last \
             place of the f32 that should come out, or of the largest of its tensor; allowed: the largest share of what is allowed"
        ))?;
    }
    if let Some(signal) = signals::received() {
        return Err(signal.stopped(format!("stopped after {cases} cases, of which {failures} failed")));
    }
    if failures > 0 { Err(CliError::CheckFailed { failures, cases }) } else { Ok(()) }
}

/// Returns the number of families that run at once, because most of their time goes into compiling kernels. wgpu's
/// OpenGL devices do not support several threads.
fn threads_for(adapter: &wgpu::Adapter) -> usize {
    match adapter.get_info().backend {
        wgpu::Backend::Gl => 1,
        _ => std::thread::available_parallelism().map_or(1, |threads| threads.get().min(4)),
    }
}

fn run_family((family, cases): Family, subject: &Subject, sample: NonZeroUsize) -> Row {
    let start = Instant::now();
    let mut row = Row {
        family,
        adapter: subject.gpu.describe(),
        driver: driver_in_words(&subject.adapter.get_info()),
        geometry: subject.geometry.clone(),
        cases: 0,
        failed: 0,
        total: Outcome::default(),
        seconds: 0.0,
        notes: Vec::new(),
        failures: Vec::new(),
    };
    for case in cases(subject).into_iter().step_by(sample.get()) {
        if signals::received().is_some() {
            row.notes.push("stopped".to_owned());
            break;
        }
        let mut outcome = outcome_of(case.as_ref(), subject);
        row.cases += 1;
        row.notes.extend(outcome.note.take());
        let mismatches = std::mem::take(&mut outcome.mismatches);
        if let Some(first) = mismatches.first().cloned() {
            row.failed += 1;
            let name = case.name();
            let smallest = (row.failed <= SHRUNK).then(|| {
                let fails = |case: &_| outcome_of(Box::as_ref(case), subject).mismatches.into_iter().next();
                let (case, mismatch) = shrink(case, first, |case| case.smaller(), fails);
                Smallest { case: case.name(), mismatch }
            });
            row.failures.push(Failure { case: name, mismatches, smallest });
        }
        row.total.merge(outcome);
    }
    row.notes.sort();
    row.notes.dedup();
    row.seconds = start.elapsed().as_secs_f64();
    row
}

fn adapters(args: &Args) -> Result<Vec<wgpu::Adapter>, CliError> {
    check_environment()?;
    let mut adapters = pollster::block_on(Gpu::adapters(None));
    let wanted = args.adapter.as_deref().unwrap_or_default().to_lowercase();
    adapters.retain(|adapter| adapter.get_info().name.to_lowercase().contains(&wanted));
    if adapters.is_empty() {
        // The request returns an error with the adapters that exist.
        let (adapter_name, allow_software) = (args.adapter.clone(), true);
        pollster::block_on(Gpu::request(&GpuOptions { adapter_name, allow_software, ..GpuOptions::default() }))?;
    }
    Ok(adapters)
}

/// Name of the geometry that every adapter has.
const PRESET: &str = "preset";

/// Returns the adapter in its preset, with subgroup sums if it supports them and the preset does not use them, and with
/// its cached tuning.
fn subjects(adapter: &wgpu::Adapter, args: &Args) -> Result<Vec<Subject>, CliError> {
    let gpu = pollster::block_on(Gpu::open(adapter))?;
    let preset = gpu.tuning();
    let mut tunings = vec![(PRESET.to_owned(), preset)];
    if Partials::Subgroup.is_supported(gpu.device().features()) {
        tunings.push(("preset, but by subgroup".to_owned(), Tuning { partials: Partials::Subgroup, ..preset }));
    }
    for (elements, tuning) in TuningCache::from_env().map(|cache| cache.entries(&gpu)).unwrap_or_default() {
        tunings.push((format!("cached for {}", size_in_words(elements)), tuning));
    }
    if args.seed_fault.is_some() {
        // The fault is in the reading of the results, and does not depend on the geometry.
        tunings.truncate(1);
    }
    let mut subjects: Vec<Subject> = Vec::new();
    for (geometry, tuning) in tunings {
        if subjects.iter().all(|subject| subject.gpu.tuning() != tuning) {
            let (adapter, gpu) = (adapter.clone(), gpu.clone().with_tuning(tuning)?);
            subjects.push(Subject {
                adapter,
                gpu,
                geometry,
                fault: args.seed_fault.map(|kind| Fault::new(kind, 1e5, true)),
            });
        }
    }
    Ok(subjects)
}

fn print(rows: &[Row]) -> Result<(), CliError> {
    let columns = ["family", "", "cases", "values", "device", "CPU", "allowed", "s"];
    for rows in rows.chunk_by(|one, other| (&one.adapter, &one.geometry) == (&other.adapter, &other.geometry)) {
        let mut table = Columns::new(&columns, 2);
        for row in rows {
            let share = row.total.share_of_allowed;
            table.row([
                row.family.to_owned(),
                if row.failed == 0 { "ok".to_owned() } else { format!("{} FAILED", row.failed) },
                row.cases.to_string(),
                row.total.values.to_string(),
                format!("{:.1}", row.total.device_ulps),
                format!("{:.1}", row.total.cpu_ulps),
                if share.is_finite() { format!("{:.0} %", 100.0 * share) } else { "beyond".to_owned() },
                format!("{:.1}", row.seconds),
            ]);
        }
        say(format!("{}, {}", rows[0].adapter, rows[0].geometry))?;
        table.print_narrow()?;
        for row in rows.iter().filter(|row| !row.notes.is_empty()) {
            say(format!("{}: {}", row.family, row.notes.join(", ")))?;
        }
    }
    for row in rows {
        for failure in &row.failures {
            say(format!("FAILED on {}, {}: {}: {}", row.adapter, row.geometry, row.family, failure.case))?;
            if let Some(smallest) = &failure.smallest {
                say(format!("  smallest: {}", smallest.case))?;
            }
            let smallest = failure.smallest.as_ref().map(|smallest| &smallest.mismatch);
            smallest.or(failure.mismatches.first()).map_or(Ok(()), |mismatch| say(in_words(mismatch)))?;
        }
    }
    Ok(())
}

/// Formats a mismatch in indented lines.
fn in_words(mismatch: &Mismatch) -> String {
    let ulps = mismatch
        .ulps
        .map_or_else(String::new, |ulps| format!(" ({ulps:.1} ulps, {:.1} allowed)", mismatch.allowed_ulps));
    let path = match mismatch.path {
        Path::Device => "device",
        Path::Cpu => "CPU path",
    };
    let Mismatch { what, got, expected, .. } = mismatch;
    format!("  {path}: {what}\n    is        {got}\n    should be {expected}{ulps}")
}
