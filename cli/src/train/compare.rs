//! `wgpu-optim train --compare`: compares regimes with the best of a grid of fixed rates, and with the best peak of the
//! same grid under warm-up and cosine, over rules, data sets, settings and seeds.

mod cases;
mod report;
mod results;
mod summary;
mod tables;

use std::fmt;
use std::time::Instant;

use super::options::{Args, RegimeName, RuleName, ScheduleName};
use crate::CliError;
use crate::files::{Check, ReportFile, is_page};
use crate::signals;
use crate::table::{say, tell};
use cases::Comparison;
use results::Results;

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Compare")]
pub struct CompareArgs {
    /// Compare regimes with the best of a grid of fixed rates
    ///
    /// They are also compared with the best peak of that grid under warm-up and cosine. There is a table for each data
    /// set and setting, and a summary of all. --data takes a comma-separated list. --last evaluates the regimes by
    /// their last weights. A run that diverges counts as the most frequent class.
    #[arg(long, conflicts_with_all = ["rule", "regime", "lr", "schedule", "average", "watchdog", "seed", "trace", "checkpoint", "every", "resume", "change", "telemetry", "inject_nan", "inject_spike", "lose_device"])]
    pub compare: bool,
    /// Update rules to compare
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "sgd,sgdm,signsgd,adamw,lion",
        hide_possible_values = true,
        requires = "compare"
    )]
    rules: Vec<RuleName>,
    /// Regimes to compare [default: all but fixed]
    #[arg(long, value_enum, value_delimiter = ',', hide_possible_values = true, requires = "compare")]
    regimes: Option<Vec<RegimeName>>,
    /// Schedules to compare
    ///
    /// Each has a row for the best of the fixed rates under it, and one for every regime under it.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "constant",
        hide_possible_values = true,
        requires = "compare"
    )]
    schedules: Vec<ScheduleName>,
    /// Seeds over which means are taken
    #[arg(long, value_delimiter = ',', default_value = "0,1,2", requires = "compare")]
    seeds: Vec<u64>,
    /// Batch sizes and epochs, one table for each, such as 64x10,128x3 [default: --batch and --epochs]
    #[arg(
        long,
        value_name = "BATCHxEPOCHS",
        value_delimiter = ',',
        value_parser = parse_setting,
        requires = "compare",
        conflicts_with_all = ["batch", "epochs"]
    )]
    settings: Option<Vec<Setting>>,
    /// Fixed rates from which the best is chosen, and peaks of the cosine [default: by rule]
    ///
    /// The defaults are half decades from 0.01 to 10 for sgd, 0.001 to 1 for sgdm and nesterov, 3e-4 to 0.1 for adamw,
    /// 1e-4 to 0.03 for signsgd, signum and lion, and up to three more beyond an end where the best one is.
    #[arg(long, value_name = "RATES", value_delimiter = ',', allow_negative_numbers = true, requires = "compare")]
    lrs: Option<Vec<f32>>,
    /// ε of the first step's length ε (1 + ‖w₀‖), one row for each [default: each regime's own]
    #[arg(long, value_name = "EPSILONS", value_delimiter = ',', allow_negative_numbers = true, requires = "compare")]
    first_steps: Option<Vec<f32>>,
    /// Factors of every gradient, one row for each; on the CPU path only
    ///
    /// They show how a rescaled loss affects each regime, and the fixed rate that is best without rescaling.
    #[arg(long, value_name = "FACTORS", value_delimiter = ',', allow_negative_numbers = true, requires = "compare")]
    gradient_scales: Option<Vec<f32>>,
    /// Print Markdown rows, as in docs/results.md, instead of tables
    #[arg(long, requires = "compare", conflicts_with = "json")]
    markdown: bool,
}

/// Rows per step, and passes over the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Setting {
    batch: u32,
    epochs: u32,
}

/// Formats the setting as `--settings` takes it.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.batch, self.epochs)
    }
}

fn parse_setting(text: &str) -> Result<Setting, String> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|&number| number > 0);
    text.split_once('x')
        .and_then(|(batch, epochs)| Some(Setting { batch: number(batch)?, epochs: number(epochs)? }))
        .ok_or_else(|| "give rows per step and epochs, both at least 1, such as 64x10".to_owned())
}

/// Trains all cases and reports.
pub fn run(args: &Args) -> Result<(), CliError> {
    let (comparison, read) = Comparison::new(args)?;
    let mut check = Check::new(&read, args.force);
    let report = args.report.as_deref().map(|path| check.output("--report", path, is_page)).transpose()?;
    let report = report.map(ReportFile::of).transpose()?;
    if let Some(subject) = comparison.subjects.first() {
        subject.target.explain();
    }
    signals::watch();
    let started = Instant::now();
    let results = Results { cells: comparison.run()?, comparison: &comparison };
    let stopped = signals::received();
    match stopped {
        None => tell(format!("done in {:.1} s", started.elapsed().as_secs_f64())),
        Some(_) => tell("the tables have what was done, and best rates are the best of these"),
    }
    let printed = if args.json {
        say(results.json())
    } else if args.compare.markdown {
        tables::print_markdown(&results)
    } else {
        tables::print(&results)
    };
    let written = report.and_then(|report| report.write(report::page(&results)).err());
    let stopped = stopped.map(|signal| signal.stopped("stopped before all runs were done"));
    CliError::all([printed.err(), written, stopped].into_iter().flatten())
}
