//! `wgpu-optim train --compare`: regimes side by side with the best of a grid of fixed rates, and with the best peak of the same grid
//! under warm-up and cosine, over rules, data sets, settings and seeds.

mod report;
mod summary;

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use wgpu_optim::Averaging;

use self::report::ReportFile;
use self::summary::overall;
use super::engine::OptimizerSettings;
use super::report::Run;
use super::verdict::Verdict;
use super::{Args, AverageName, Look, RegimeName, RuleName, ScheduleName, Watch, name_of, progress_bar, train};
use crate::CliError;
use crate::data::{self, Dataset};
use crate::model::Model;
use crate::table::{Columns, say};
use crate::target::{Target, TuningSource};

/// The options that go with `--compare`.
#[derive(Debug, Clone, clap::Args)]
pub struct CompareArgs {
    /// Compare regimes with the best of a grid of fixed rates, and with the best peak of that grid under warm-up and cosine: a table for
    /// each data set and setting, and a summary of all. --data takes a comma-separated list; --last evaluates the regimes by their last
    /// weights; a run that diverges counts as the most frequent class
    #[arg(
        long,
        help_heading = "Compare",
        conflicts_with_all = [
            "rule", "regime", "lr", "schedule", "average", "seed", "trace", "checkpoint"
        ]
    )]
    pub compare: bool,
    /// Update rules to compare
    #[arg(
        long,
        help_heading = "Compare",
        value_enum,
        value_delimiter = ',',
        default_value = "sgd,sgdm,signsgd,adamw,lion",
        requires = "compare"
    )]
    rules: Vec<RuleName>,
    /// Regimes to compare [default: all but fixed]
    #[arg(long, help_heading = "Compare", value_enum, value_delimiter = ',', requires = "compare")]
    regimes: Option<Vec<RegimeName>>,
    /// Schedules to compare: for each a row with the best of the fixed rates under it, and one for every regime under it
    #[arg(
        long,
        help_heading = "Compare",
        value_enum,
        value_delimiter = ',',
        default_value = "constant",
        requires = "compare"
    )]
    schedules: Vec<ScheduleName>,
    /// Seeds to take means over
    #[arg(long, help_heading = "Compare", value_delimiter = ',', default_value = "0,1,2", requires = "compare")]
    seeds: Vec<u64>,
    /// Batches and epochs, a table for each, such as 64x10,128x3 [default: --batch and --epochs, which are 64 and 10, or 64 and 40 for the
    /// sets that are made]
    #[arg(
        long,
        help_heading = "Compare",
        value_name = "BATCHxEPOCHS",
        value_delimiter = ',',
        value_parser = parse_setting,
        requires = "compare",
        conflicts_with_all = ["batch", "epochs"]
    )]
    settings: Option<Vec<Setting>>,
    /// Fixed rates to choose the best from, and peaks of the cosine [default: half decades from 0.01 to 10 for sgd, 0.001 to 1 for sgdm
    /// and nesterov, 3e-4 to 0.1 for adamw, 1e-4 to 0.03 for signsgd, signum and lion, and up to three more beyond an end where the
    /// best one is]
    #[arg(
        long,
        help_heading = "Compare",
        value_name = "RATES",
        value_delimiter = ',',
        allow_negative_numbers = true,
        requires = "compare"
    )]
    lrs: Option<Vec<f32>>,
    /// ε of the first step's length ε (1 + ‖w₀‖), a row for each: how much the one number left matters [default: each regime's own]
    #[arg(
        long,
        help_heading = "Compare",
        value_name = "EPSILONS",
        value_delimiter = ',',
        allow_negative_numbers = true,
        requires = "compare"
    )]
    first_steps: Option<Vec<f32>>,
    /// Factors on every gradient, a row for each: what a rescaled loss does to each regime, and to the fixed rate that is best
    /// without. CPU path only
    #[arg(
        long,
        help_heading = "Compare",
        value_name = "FACTORS",
        value_delimiter = ',',
        allow_negative_numbers = true,
        requires = "compare"
    )]
    gradient_scales: Option<Vec<f32>>,
    /// Print Markdown rows, as in docs/results.md, instead of tables
    #[arg(long, help_heading = "Compare", requires = "compare", conflicts_with = "json")]
    markdown: bool,
}

/// Rows per step and passes over the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Setting {
    batch: u32,
    epochs: u32,
}

fn parse_setting(text: &str) -> Result<Setting, String> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|&number| number > 0);
    text.split_once('x')
        .and_then(|(batch, epochs)| Some(Setting { batch: number(batch)?, epochs: number(epochs)? }))
        .ok_or_else(|| "give rows per step and epochs, both at least 1, such as 64x10".to_owned())
}

/// The fixed rates that a regime is held against, where --lrs gives none: half decades around what the rule usually takes.
fn default_rates(rule: RuleName) -> &'static [f32] {
    match rule {
        RuleName::Sgd => &[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
        RuleName::Sgdm | RuleName::Nesterov => &[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
        RuleName::AdamW => &[3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
        RuleName::SignSgd | RuleName::Signum | RuleName::Lion => &[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    }
}

/// How many rates a default grid may get beyond an end at which its best one is.
const EXTENSIONS: usize = 3;

/// The next half decade up or down: 0.1, 0.3, 1, …
fn next_rate(rate: f32, up: bool) -> f32 {
    let text = format!("{rate:e}");
    let exponent: i32 = text.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    let digit = match (text.starts_with('3'), up) {
        (false, true) => format!("3e{exponent}"),
        (false, false) => format!("3e{}", exponent - 1),
        (true, true) => format!("1e{}", exponent + 1),
        (true, false) => format!("1e{exponent}"),
    };
    digit.parse().unwrap_or(rate)
}

/// What every regime is held against, by the schedule of the fixed rates: the best rate without one, and the best peak with warm-up and
/// cosine.
const REFERENCES: [ScheduleName; 2] = [ScheduleName::Constant, ScheduleName::WarmupCosine];
/// The references' names.
const REFERENCE_NAMES: [&str; 2] = ["best fixed", "best cosine"];

/// What sets the rate in a case.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Variant {
    regime: RegimeName,
    lr: Option<f32>,
    schedule: ScheduleName,
    first_step: Option<f32>,
    gradient_scale: f32,
}

impl Variant {
    fn fixed(lr: f32, schedule: ScheduleName, gradient_scale: f32) -> Self {
        Variant { regime: RegimeName::Fixed, lr: Some(lr), schedule, first_step: None, gradient_scale }
    }
}

/// `seesaw, step, ε 0.1, g × 100`: the row's name.
impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reference = REFERENCES.iter().position(|&of| of == self.schedule);
        match (self.regime, reference) {
            (RegimeName::Fixed, Some(index)) => write!(f, "{}", REFERENCE_NAMES[index])?,
            (RegimeName::Fixed, None) => write!(f, "best fixed, {}", name_of(self.schedule))?,
            (regime, Some(0)) => write!(f, "{}", name_of(regime))?,
            (regime, _) => write!(f, "{}, {}", name_of(regime), name_of(self.schedule))?,
        }
        if let Some(first_step) = self.first_step {
            write!(f, ", ε {}", rate_in_words(first_step))?;
        }
        if self.gradient_scale != 1.0 {
            write!(f, ", g × {}", rate_in_words(self.gradient_scale))?;
        }
        Ok(())
    }
}

/// What is run once for every seed.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Case {
    /// Index of the data set.
    data: usize,
    setting: Setting,
    rule: RuleName,
    variant: Variant,
}

/// A case and what came of it. A run that diverged is a result like any other.
struct Cell {
    case: Case,
    /// One for each seed.
    runs: Vec<Run>,
    /// What a run that diverged counts as: the answer that has not looked at the features.
    chance: f64,
}

impl Cell {
    /// The test accuracy of each run, from 0 to 1.
    fn accuracies(&self) -> impl ExactSizeIterator<Item = f64> {
        self.runs.iter().map(|run| match run.verdict {
            Verdict::Ok => run.test_accuracy,
            Verdict::Diverged | Verdict::Skipped => self.chance,
        })
    }

    /// Mean test accuracy, from 0 to 1.
    fn accuracy(&self) -> f64 {
        mean(self.accuracies())
    }

    /// Mean test accuracy of the last iterates, from 0 to 1.
    fn last_accuracy(&self) -> f64 {
        mean(self.runs.iter().map(|run| match run.verdict {
            Verdict::Ok => run.last_test_accuracy.unwrap_or(run.test_accuracy),
            Verdict::Diverged | Verdict::Skipped => self.chance,
        }))
    }

    /// Sample deviation of the accuracy; none with one seed.
    fn deviation(&self) -> Option<f64> {
        if self.runs.len() < 2 {
            return None;
        }
        let center = self.accuracy();
        let squares: f64 = self.accuracies().map(|x| (x - center).powi(2)).sum();
        Some((squares / (self.runs.len() - 1) as f64).sqrt())
    }

    /// Mean training loss; not finite where one is not.
    fn loss(&self) -> f64 {
        mean(self.runs.iter().map(|run| run.train_loss))
    }

    /// Runs that diverged, or skipped every step.
    fn diverged(&self) -> usize {
        let failed = self.runs.iter().filter(|run| run.verdict != Verdict::Ok);
        failed.count()
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// A data set with what trains on it.
struct Subject {
    dataset: Dataset,
    model: Model,
    target: Target,
    tuning: TuningSource,
    settings: Vec<Setting>,
    chance: f64,
}

/// Everything that a comparison runs over.
struct Comparison<'a> {
    args: &'a Args,
    subjects: Vec<Subject>,
    /// The rows that are not the best fixed rate's, in order.
    variants: Vec<Variant>,
    gradient_scales: Vec<f32>,
}

/// Trains all of it, and reports.
pub fn run(args: &Args) -> Result<(), CliError> {
    let comparison = Comparison::new(args)?;
    // Before training, which a path that cannot be written should not cost.
    let report = args.report.as_deref();
    let report = report.map(ReportFile::create).transpose()?;
    if let Some(subject) = comparison.subjects.first() {
        subject.target.explain();
    }
    let started = Instant::now();
    let first = comparison.first_cases();
    let later = comparison.cases_per_scale() * comparison.other_scales().count();
    eprintln!(
        "{} runs{}",
        (first.len() + later) * args.compare.seeds.len(),
        match args.compare.lrs {
            Some(_) => "",
            None => ", and some more where the best rate is at the end of its grid",
        }
    );
    let progress = comparison.progress_bar(&first);
    let mut cells = comparison.run_cases(first, &progress)?;
    for _ in 0..EXTENSIONS {
        let more = comparison.beyond_the_grids(&cells);
        if more.is_empty() {
            break;
        }
        let steps: u64 = more.iter().map(|case| comparison.steps(case)).sum();
        progress.inc_length(steps * args.compare.seeds.len() as u64);
        cells.extend(comparison.run_cases(more, &progress)?);
    }
    // What is tuned at one scale, at the others: only now is it known which rate that is.
    let tuned = comparison.tuned_at_other_scales(&cells);
    cells.extend(comparison.run_cases(tuned, &progress)?);
    progress.finish_and_clear();
    eprintln!("done in {:.1} s", started.elapsed().as_secs_f64());
    let results = Results { comparison: &comparison, cells };
    if let Some(report) = report {
        report.write(&results)?;
    }
    if args.json {
        say(results.json())
    } else if args.compare.markdown {
        results.print_markdown()
    } else {
        results.print_tables()
    }
}

/// Refuses a list that is empty or has a value twice, which would count twice in every mean.
fn check_list<T: PartialEq>(option: &str, values: &[T], show: impl Fn(&T) -> String) -> Result<(), CliError> {
    for (index, value) in values.iter().enumerate() {
        if values[..index].contains(value) {
            return Err(CliError::Usage(format!("--{option} has {} twice: leave one of them out", show(value))));
        }
    }
    if values.is_empty() {
        return Err(CliError::Usage(format!("--{option} is empty: give it at least one value")));
    }
    Ok(())
}

impl<'a> Comparison<'a> {
    /// Looks at everything that can be wrong before the first run.
    fn new(args: &'a Args) -> Result<Self, CliError> {
        let options = &args.compare;
        let regimes = options.regimes.clone().unwrap_or_else(|| {
            let all = RegimeName::value_variants().iter().copied();
            all.filter(|&regime| regime != RegimeName::Fixed).collect()
        });
        let gradient_scales = options.gradient_scales.clone().unwrap_or_else(|| vec![1.0]);
        check_list("rules", &options.rules, |&rule| name_of(rule))?;
        check_list("regimes", &regimes, |&regime| name_of(regime))?;
        check_list("schedules", &options.schedules, |&schedule| name_of(schedule))?;
        check_list("seeds", &options.seeds, u64::to_string)?;
        if let Some(settings) = &options.settings {
            check_list("settings", settings, |setting| format!("{}x{}", setting.batch, setting.epochs))?;
        }
        check_list("gradient-scales", &gradient_scales, f32::to_string)?;
        for (option, list) in [("lrs", &options.lrs), ("first-steps", &options.first_steps)] {
            if let Some(list) = list {
                check_list(option, list, f32::to_string)?;
            }
        }
        if regimes.contains(&RegimeName::Fixed) {
            return Err(CliError::Usage(
                "--regimes needs no fixed, the best fixed rate is in every table: choose its grid with --lrs"
                    .to_owned(),
            ));
        }
        if let Some(scale) = gradient_scales.iter().find(|scale| !(scale.is_finite() && **scale > 0.0)) {
            return Err(CliError::Usage(format!(
                "--gradient-scales has {scale}, but a factor must be finite and above 0"
            )));
        }
        let first_steps = match &options.first_steps {
            Some(list) => list.iter().copied().map(Some).collect(),
            None => vec![None],
        };
        let mut variants = Vec::new();
        for &gradient_scale in &gradient_scales {
            for &regime in &regimes {
                for &schedule in &options.schedules {
                    variants.extend(first_steps.iter().map(|&first_step| Variant {
                        regime,
                        lr: None,
                        schedule,
                        first_step,
                        gradient_scale,
                    }));
                }
            }
        }
        let names: Vec<&str> = args.data.split(',').map(str::trim).collect();
        if names.contains(&"") {
            return Err(CliError::Usage(format!(
                "--data \"{}\" has an empty name: give {} or paths, with one comma between two of them",
                args.data,
                data::NAMES
            )));
        }
        check_list("data", &names, |name| format!("\"{name}\""))?;
        let mut comparison = Comparison { args, subjects: Vec::new(), variants, gradient_scales };
        for &rule in &options.rules {
            for variant in comparison.first_variants(rule) {
                comparison.optimizer(rule, variant, 1)?.check()?;
            }
        }
        // A regime without a rule to be had with is refused in its own words.
        for &variant in &comparison.variants {
            let mut rules = options.rules.iter();
            if let Some(&rule) = options.rules.first()
                && !rules.any(|&rule| comparison.variants_of(rule).any(|other| other == variant))
            {
                comparison.optimizer(rule, variant, 1)?.check()?;
            }
        }
        let datasets = names.iter().map(|name| data::load(name)).collect::<Result<Vec<_>, _>>()?;
        let target = args.target.find()?;
        if matches!(target, Target::Gpu(_)) && options.gradient_scales.is_some() {
            return Err(CliError::Usage(
                "--gradient-scales works on the CPU path only: add --backend cpu, or leave it out".to_owned(),
            ));
        }
        for (name, dataset) in names.into_iter().zip(datasets) {
            let hidden = args.hidden as usize;
            let model = Model::new(args.model, dataset.features, dataset.classes, hidden);
            let (target, tuning) = target.clone().tuned_for(model.padded_len());
            comparison.subjects.push(Subject {
                settings: options.settings.clone().unwrap_or_else(|| {
                    vec![Setting {
                        batch: args.batch,
                        epochs: args.epochs.unwrap_or_else(|| data::default_epochs(name)),
                    }]
                }),
                chance: dataset.chance(),
                dataset,
                model,
                target,
                tuning,
            });
        }
        Ok(comparison)
    }

    /// What sets the rate beside the fixed ones, for this rule: not every regime can be had with every rule.
    fn variants_of(&self, rule: RuleName) -> impl Iterator<Item = Variant> {
        let fits = move |variant: &Variant| {
            let rule = self.options_of(rule, *variant).rule();
            variant.regime.with_defaults(1.0).fits(&rule)
        };
        self.variants.iter().copied().filter(fits)
    }

    fn rates(&self, rule: RuleName) -> &[f32] {
        match &self.args.compare.lrs {
            Some(rates) => rates,
            None => default_rates(rule),
        }
    }

    /// The options of a single run with this rule and rate. What is tuned is evaluated by its polynomial average beside its last iterate,
    /// what is not as it would be by itself.
    fn options_of(&self, rule: RuleName, variant: Variant) -> Args {
        let tuned = variant.regime == RegimeName::Fixed;
        Args {
            rule,
            regime: variant.regime,
            lr: variant.lr,
            schedule: variant.schedule,
            average: tuned.then_some(AverageName::Polynomial),
            last: self.args.last && !tuned,
            ..self.args.clone()
        }
    }

    /// The options of a single run that is the same.
    fn single(&self, case: &Case, seed: u64) -> Args {
        Args {
            batch: case.setting.batch,
            epochs: Some(case.setting.epochs),
            seed,
            ..self.options_of(case.rule, case.variant)
        }
    }

    fn optimizer(&self, rule: RuleName, variant: Variant, steps: u64) -> Result<OptimizerSettings, CliError> {
        let args = self.options_of(rule, variant);
        Ok(OptimizerSettings {
            rule: args.rule(),
            regime: variant.regime.regime(variant.lr, variant.first_step)?,
            schedule: variant.schedule.over(steps),
            // Neither of the two that there are depends on the epochs.
            averaging: args.averaged().map_or(Averaging::Off, |average| average.over(1, steps)),
            weight_decay: args.weight_decay(),
            clip_norm: args.clip_norm,
            telemetry: false,
            gradient_scale: variant.gradient_scale,
        })
    }

    fn other_scales(&self) -> impl Iterator<Item = f32> {
        self.gradient_scales.iter().copied().filter(|&scale| scale != 1.0)
    }

    /// One for each table and rule.
    fn cases_per_scale(&self) -> usize {
        self.combinations().count()
    }

    /// Every table's data, setting and rule, in the order they are shown.
    fn combinations(&self) -> impl Iterator<Item = (usize, Setting, RuleName)> {
        self.subjects.iter().enumerate().flat_map(move |(data, subject)| {
            subject.settings.iter().flat_map(move |&setting| {
                let rules = self.args.compare.rules.iter();
                rules.map(move |&rule| (data, setting, rule))
            })
        })
    }

    /// The schedules that fixed rates are run under: those of the references first.
    fn fixed_schedules(&self) -> impl Iterator<Item = ScheduleName> {
        let others = self.args.compare.schedules.iter().copied();
        let others = others.filter(|schedule| !REFERENCES.contains(schedule));
        REFERENCES.into_iter().chain(others)
    }

    /// The next rate beyond every default grid whose best one is at its end.
    fn beyond_the_grids(&self, cells: &[Cell]) -> Vec<Case> {
        let mut cases = Vec::new();
        if self.args.compare.lrs.is_some() {
            return cases;
        }
        for (data, setting, rule) in self.combinations() {
            for schedule in self.fixed_schedules() {
                let Some((best, end)) = end_of_grid(cells, data, setting, rule, schedule) else {
                    continue;
                };
                cases.push(Case {
                    data,
                    setting,
                    rule,
                    variant: Variant::fixed(next_rate(best, end == End::Upper), schedule, 1.0),
                });
            }
        }
        cases
    }

    /// The grid of fixed rates and every regime that the rule can have.
    fn first_variants(&self, rule: RuleName) -> impl Iterator<Item = Variant> {
        self.fixed_schedules()
            .flat_map(move |schedule| {
                let rates = self.rates(rule).iter();
                rates.map(move |&rate| Variant::fixed(rate, schedule, 1.0))
            })
            .chain(self.variants_of(rule))
    }

    fn first_cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for (data, setting, rule) in self.combinations() {
            cases.extend(self.first_variants(rule).map(|variant| Case { data, setting, rule, variant }));
        }
        cases
    }

    fn tuned_at_other_scales(&self, cells: &[Cell]) -> Vec<Case> {
        let mut cases = Vec::new();
        for (data, setting, rule) in self.combinations() {
            let Some(lr) =
                best_fixed(cells, data, setting, rule, ScheduleName::Constant).and_then(|cell| cell.case.variant.lr)
            else {
                continue;
            };
            cases.extend(self.other_scales().map(|scale| Case {
                data,
                setting,
                rule,
                variant: Variant::fixed(lr, ScheduleName::Constant, scale),
            }));
        }
        cases
    }

    fn steps(&self, case: &Case) -> u64 {
        let args = self.single(case, 0);
        args.steps(&self.subjects[case.data].dataset)
    }

    /// Counts the steps of all runs, those of the second round included.
    fn progress_bar(&self, first: &[Case]) -> ProgressBar {
        let scales = self.other_scales().count() as u64;
        let placeholder = Variant::fixed(1.0, ScheduleName::Constant, 1.0);
        let later = self.combinations().map(|(data, setting, rule)| Case { data, setting, rule, variant: placeholder });
        let steps = first.iter().map(|case| self.steps(case)).sum::<u64>()
            + later.map(|case| scales * self.steps(&case)).sum::<u64>();
        let bar = progress_bar(steps * self.args.compare.seeds.len() as u64);
        // Without the message: several runs would write it at once.
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len} steps, {eta} left") {
            bar.set_style(style);
        }
        bar
    }

    fn run_one(&self, case: &Case, seed: u64, progress: &ProgressBar) -> Result<Run, CliError> {
        let subject = &self.subjects[case.data];
        let settings = self.optimizer(case.rule, case.variant, self.steps(case))?;
        let args = self.single(case, seed);
        let run = train(
            &args,
            &settings,
            &subject.dataset,
            &subject.target,
            &subject.model,
            None,
            &mut Watch { history: None, saved_history: None, progress, trace: None, saving: None, lose_device: None },
            match case.variant.regime {
                RegimeName::Fixed => Look::Better,
                _ => Look::Judged,
            },
        )?;
        Ok(Run { tuning: subject.tuning, ..run })
    }

    /// Runs every case with every seed; the results come in the order of the cases, whichever run ends first.
    fn run_cases(&self, cases: Vec<Case>, progress: &ProgressBar) -> Result<Vec<Cell>, CliError> {
        let seeds = &self.args.compare.seeds;
        let count = cases.len() * seeds.len();
        let run_at = |index: usize| {
            let case = &cases[index / seeds.len()];
            self.run_one(case, seeds[index % seeds.len()], progress)
        };
        // One device takes one run after the other; on the host each run has a core, which beats a core's share of every step.
        let threads = match self.subjects.first().map(|subject| &subject.target) {
            Some(Target::Cpu { .. }) => rayon::current_num_threads().min(count),
            _ => 1,
        };
        let mut results = if threads > 1 {
            in_parallel(count, threads, run_at)?
        } else {
            (0..count).map(run_at).collect::<Result<Vec<_>, _>>()?
        }
        .into_iter();
        Ok(cases
            .iter()
            .map(|&case| Cell {
                case,
                chance: self.subjects[case.data].chance,
                runs: results.by_ref().take(seeds.len()).collect(),
            })
            .collect())
    }
}

/// Calls `run_at` for every index on so many threads; the results by index, or the error of the lowest index that has one.
///
/// Each thread is a rayon pool of its own: in one common pool a thread that waits within a step would begin another run on top of
/// it, and hold up the first.
fn in_parallel<T: Send>(
    count: usize,
    threads: usize,
    run_at: impl Fn(usize) -> Result<T, CliError> + Sync,
) -> Result<Vec<T>, CliError> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let done = Mutex::new(Vec::with_capacity(count));
    let work = || {
        let work = || {
            while !failed.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    break;
                }
                let result = run_at(index);
                if result.is_err() {
                    failed.store(true, Ordering::Relaxed);
                }
                if let Ok(mut done) = done.lock() {
                    done.push((index, result));
                }
            }
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        match pool {
            Ok(pool) => pool.install(work),
            // No thread to be had: then in the pool that there is.
            Err(_) => work(),
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The best fixed rate of a table's column under a schedule: the best mean accuracy on the test rows, then the lowest loss, then the first.
fn best_fixed(cells: &[Cell], data: usize, setting: Setting, rule: RuleName, schedule: ScheduleName) -> Option<&Cell> {
    let loss = |cell: &Cell| {
        let loss = cell.loss();
        if loss.is_finite() { loss } else { f64::INFINITY }
    };
    grid(cells, data, setting, rule, schedule).reduce(|best, cell| {
        let better =
            cell.accuracy() > best.accuracy() || (cell.accuracy() == best.accuracy() && loss(cell) < loss(best));
        if better { cell } else { best }
    })
}

/// An end of a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Lower,
    Upper,
}

/// The best of a grid of rates where it is at an end of it. A grid of one rate has two ends, of which the upper one is said.
fn end_of_grid(
    cells: &[Cell],
    data: usize,
    setting: Setting,
    rule: RuleName,
    schedule: ScheduleName,
) -> Option<(f32, End)> {
    let best = best_fixed(cells, data, setting, rule, schedule)?;
    let best = best.case.variant.lr?;
    let rates = || grid(cells, data, setting, rule, schedule).filter_map(|cell| cell.case.variant.lr);
    if !rates().any(|rate| rate > best) {
        Some((best, End::Upper))
    } else if !rates().any(|rate| rate < best) {
        Some((best, End::Lower))
    } else {
        None
    }
}

/// The fixed rates of a table's column under a schedule, unscaled.
fn grid(
    cells: &[Cell],
    data: usize,
    setting: Setting,
    rule: RuleName,
    schedule: ScheduleName,
) -> impl Iterator<Item = &Cell> {
    cells.iter().filter(move |Cell { case, .. }| {
        (case.data, case.setting, case.rule) == (data, setting, rule)
            && case.variant.regime == RegimeName::Fixed
            && case.variant.schedule == schedule
            && case.variant.gradient_scale == 1.0
    })
}

/// A run as `--json` has it: what `train --json` says of it, and what that does not.
#[derive(Serialize)]
struct ComparedRun<'a> {
    #[serde(flatten)]
    run: &'a Run,
    lr: Option<f64>,
    first_step: Option<f64>,
    gradient_scale: f64,
}

/// A cell of a table as `--json` has it.
#[derive(Serialize)]
struct Summary<'a> {
    data: &'a str,
    batch: u32,
    epochs: u32,
    rule: String,
    regime: String,
    schedule: String,
    lr: Option<f64>,
    first_step: Option<f64>,
    gradient_scale: f64,
    seeds: usize,
    test_accuracy: f64,
    test_accuracy_deviation: Option<f64>,
    train_loss: f64,
    diverged: usize,
    best_fixed_lr: Option<f64>,
    best_cosine_lr: Option<f64>,
    /// Points of accuracy above the references; below where negative.
    above_best_fixed: Option<f64>,
    above_best_cosine: Option<f64>,
    above_best_last: Option<f64>,
}

/// The number that was given, without the digits of a widened f32.
fn as_given(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// Widest table, so that it can be read in a window of 120 columns.
const TABLE_WIDTH: usize = 120;
/// Columns that one rule takes in a table: `100.00 ±0.00`, `00.0000`, `to fixed` and `to cosine` with their frames.
const RULE_WIDTH: usize = 15 + 10 + 11 + 12;

struct Results<'a> {
    comparison: &'a Comparison<'a>,
    cells: Vec<Cell>,
}

impl Results<'_> {
    /// What a column's regimes are held against, as [`REFERENCES`] has them.
    fn references(&self, data: usize, setting: Setting, rule: RuleName) -> [Option<&Cell>; 2] {
        REFERENCES.map(|schedule| best_fixed(&self.cells, data, setting, rule, schedule))
    }

    /// By how many points a cell is above the best of the fixed rates that are judged by their last iterates, as a run without averages is.
    fn above_last(&self, cell: &Cell) -> Option<f64> {
        let Case { data, setting, rule, .. } = cell.case;
        let rates = grid(&self.cells, data, setting, rule, ScheduleName::Constant);
        let best = rates.map(Cell::last_accuracy).max_by(f64::total_cmp)?;
        Some(100.0 * (cell.accuracy() - best))
    }

    fn cell(&self, case: &Case) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.case == *case)
    }

    /// The rows of every table: the best fixed rate, that under each schedule, then for each scale the best rate again and the regimes.
    fn rows(&self) -> Vec<Variant> {
        let schedules = self.comparison.fixed_schedules();
        let mut rows: Vec<Variant> = schedules.map(|schedule| Variant::fixed(f32::NAN, schedule, 1.0)).collect();
        for &scale in &self.comparison.gradient_scales {
            if scale != 1.0 {
                rows.push(Variant::fixed(f32::NAN, ScheduleName::Constant, scale));
            }
            let regimes = self.comparison.variants.iter();
            rows.extend(regimes.filter(|variant| variant.gradient_scale == scale));
        }
        rows
    }

    /// The cell of a row, and by how many points of accuracy it is above each reference, unscaled.
    fn at(&self, data: usize, setting: Setting, rule: RuleName, row: Variant) -> Option<(&Cell, [f64; 2])> {
        let lr = match row.regime {
            RegimeName::Fixed => {
                let best = best_fixed(&self.cells, data, setting, rule, row.schedule)?;
                best.case.variant.lr
            }
            _ => row.lr,
        };
        let variant = Variant { lr, ..row };
        let cell = self.cell(&Case { data, setting, rule, variant })?;
        let [Some(fixed), Some(cosine)] = self.references(data, setting, rule) else {
            return None;
        };
        let above = |best: &Cell| 100.0 * (cell.accuracy() - best.accuracy());
        Some((cell, [above(fixed), above(cosine)]))
    }

    fn json(&self) -> String {
        let lr = |cell: &Cell| cell.case.variant.lr.map(as_given);
        let first_step = |cell: &Cell| cell.case.variant.first_step.map(as_given);
        let mut runs = Vec::new();
        let mut summaries = Vec::new();
        for cell in &self.cells {
            let Case { data, setting, rule, variant } = cell.case;
            runs.extend(cell.runs.iter().map(|run| ComparedRun {
                run,
                lr: lr(cell),
                first_step: first_step(cell),
                gradient_scale: as_given(variant.gradient_scale),
            }));
            let [fixed, cosine] = self.references(data, setting, rule);
            let above = |best: &Cell| 100.0 * (cell.accuracy() - best.accuracy());
            summaries.push(Summary {
                data: &self.comparison.subjects[data].dataset.name,
                batch: setting.batch,
                epochs: setting.epochs,
                rule: name_of(rule),
                regime: name_of(variant.regime),
                schedule: name_of(variant.schedule),
                lr: lr(cell),
                first_step: first_step(cell),
                gradient_scale: as_given(variant.gradient_scale),
                seeds: cell.runs.len(),
                test_accuracy: cell.accuracy(),
                test_accuracy_deviation: cell.deviation(),
                train_loss: cell.loss(),
                diverged: cell.diverged(),
                best_fixed_lr: fixed.and_then(lr),
                best_cosine_lr: cosine.and_then(lr),
                above_best_fixed: fixed.map(above),
                above_best_cosine: cosine.map(above),
                above_best_last: self.above_last(cell),
            });
        }
        serde_json::json!({ "runs": runs, "summary": summaries, "overall": overall(self) }).to_string()
    }

    /// What a table is about.
    fn title(&self, data: usize, setting: Setting) -> String {
        let subject = &self.comparison.subjects[data];
        format!(
            "{} on {}, batch {}, {} epoch{}, {}",
            subject.model,
            subject.dataset.name,
            setting.batch,
            setting.epochs,
            if setting.epochs == 1 { "" } else { "s" },
            subject.target.adapter()
        )
    }

    /// What the columns mean, and which rates the best was chosen from.
    fn caption(&self) -> Vec<String> {
        let seeds = &self.comparison.args.compare.seeds;
        let listed: Vec<String> = seeds.iter().map(u64::to_string).collect();
        let listed = listed.join(", ");
        let mut lines = if seeds.len() > 1 {
            vec![
                format!("accuracy: percent of the test rows, mean ± sample deviation of seeds {listed}"),
                "loss: over the training rows after the last step, mean".to_owned(),
            ]
        } else {
            vec![
                format!("accuracy: percent of the test rows, seed {listed}"),
                "loss: over the training rows after the last step".to_owned(),
            ]
        };
        lines.extend([
            "to fixed: points of accuracy above (+) or below (-) the best of the fixed rates".to_owned(),
            "to cosine: the same against the best peak of these rates, with warm-up over 5 % of the steps and a cosine down to 0"
                .to_owned(),
            "both are chosen on the test rows, and of their last iterate and its polynomial average the better counts: that flatters them"
                .to_owned(),
            "best fixed, last: the best of the fixed rates by their last iterates alone, as a run without averages has them".to_owned(),
            "a run that diverged counts as if it had answered with the most frequent class".to_owned(),
        ]);
        for &rule in &self.comparison.args.compare.rules {
            let rates = self.comparison.rates(rule).iter();
            let rates: Vec<String> = rates.map(|&rate| rate_in_words(rate)).collect();
            let further = match self.comparison.args.compare.lrs {
                Some(_) => "",
                None => ", further where the best is at an end",
            };
            lines.push(format!("{}: {}{further}; {}", name_of(rule), rates.join(", "), self.evaluation_in_words(rule)));
        }
        lines
    }

    /// By what the regimes with this rule are judged.
    fn evaluation_in_words(&self, rule: RuleName) -> String {
        let mut averages: Vec<&str> = Vec::new();
        for variant in self.comparison.variants_of(rule) {
            let average = self.comparison.options_of(rule, variant).averaged();
            let words = average.map_or("last iterate", AverageName::in_words);
            let words = match (rule, average) {
                (RuleName::AdamW, Some(AverageName::ScheduleFree)) => "schedule-free average with beta1 = 0",
                _ => words,
            };
            if !averages.contains(&words) {
                averages.push(words);
            }
        }
        format!("regimes are judged by their {}", averages.join(" or "))
    }

    fn print_tables(&self) -> Result<(), CliError> {
        for data in 0..self.comparison.subjects.len() {
            for &setting in &self.comparison.subjects[data].settings {
                say(self.title(data, setting))?;
                self.print_table(data, setting)?;
            }
        }
        summary::print(self)?;
        self.caption().into_iter().try_for_each(say)
    }

    /// One table, or one for some of the rules after the other where all of them do not fit a window.
    fn print_table(&self, data: usize, setting: Setting) -> Result<(), CliError> {
        let rows = self.rows();
        let label_width = rows.iter().map(|row| row.to_string().chars().count() + 4).max().unwrap_or(0);
        let rules_per_table = (TABLE_WIDTH.saturating_sub(label_width) / RULE_WIDTH).max(1);
        let mut notes = Vec::new();
        for rules in self.comparison.args.compare.rules.chunks(rules_per_table) {
            let mut header = vec!["rate from".to_owned()];
            for &rule in rules {
                let others = ["loss", "to fixed", "to cosine"].map(str::to_owned);
                header.push(name_of(rule));
                header.extend(others);
            }
            let mut table = Columns::new(header.iter().map(String::as_str), 1);
            for &row in &rows {
                let mut cells = vec![row.to_string()];
                for &rule in rules {
                    let Some((cell, above)) = self.at(data, setting, rule, row) else {
                        cells.extend([const { String::new() }; 4]);
                        continue;
                    };
                    cells.extend([
                        accuracy_in_words(cell, 2),
                        loss_in_words(cell.loss()),
                        points_in_words(above[0]),
                        points_in_words(above[1]),
                    ]);
                    if cell.diverged() > 0 {
                        notes.push(format!(
                            "{}, {row}: {} of {} runs diverged, and count as the most frequent class",
                            name_of(rule),
                            cell.diverged(),
                            cell.runs.len()
                        ));
                    }
                }
                table.row(cells);
                if row.regime == RegimeName::Fixed && row.gradient_scale == 1.0 {
                    let mut cells = vec!["  its rate".to_owned()];
                    for &rule in rules {
                        let best = self.at(data, setting, rule, row);
                        let rate = best.and_then(|(cell, _)| cell.case.variant.lr);
                        let rate = rate.map(rate_in_words).unwrap_or_default();
                        cells.push(rate);
                        cells.extend([const { String::new() }; 3]);
                        notes.extend(self.edge_of_grid(data, setting, rule, row.schedule));
                    }
                    table.row(cells);
                }
            }
            table.print()?;
        }
        notes.into_iter().try_for_each(say)
    }

    /// A best rate at the end of its grid may not be the best there is, which flatters the regimes.
    fn edge_of_grid(&self, data: usize, setting: Setting, rule: RuleName, schedule: ScheduleName) -> Option<String> {
        let (rate, end) = end_of_grid(&self.cells, data, setting, rule, schedule)?;
        Some(format!(
            "{}, {}: {} is at the {} end of its grid, a wider one (--lrs) may have a better",
            name_of(rule),
            Variant::fixed(rate, schedule, 1.0),
            rate_in_words(rate),
            match end {
                End::Lower => "lower",
                End::Upper => "upper",
            }
        ))
    }

    /// A row per data set, setting and variant, a column per rule.
    fn print_markdown(&self) -> Result<(), CliError> {
        let rules = &self.comparison.args.compare.rules;
        let names: Vec<String> = rules.iter().map(|&rule| name_of(rule).to_uppercase()).collect();
        say(format!("| data | batch, epochs | rate from | {} |", names.join(" | ")))?;
        say(format!("|{}", "---|".repeat(3 + rules.len())))?;
        for (data, subject) in self.comparison.subjects.iter().enumerate() {
            for (index, &setting) in subject.settings.iter().enumerate() {
                for (at, row) in self.rows().into_iter().enumerate() {
                    // A name stands where it begins, as in a merged cell.
                    let first = at == 0;
                    let mut cells = vec![
                        if first && index == 0 { subject.dataset.name.clone() } else { String::new() },
                        if first { format!("{}, {}", setting.batch, setting.epochs) } else { String::new() },
                        row.to_string(),
                    ];
                    for &rule in rules {
                        cells.push(self.markdown_cell(data, setting, rule, row));
                    }
                    let line: Vec<String> = cells
                        .into_iter()
                        .map(|cell| {
                            if cell.is_empty() {
                                "| ".to_owned()
                            } else {
                                // A bar in a file's name would end the cell.
                                format!("| {} ", cell.replace('|', "\\|"))
                            }
                        })
                        .collect();
                    say(format!("{}|", line.concat()))?;
                }
            }
        }
        summary::print_markdown(self)?;
        say("")?;
        let mut notes = self.caption();
        for (data, setting, rule) in self.comparison.combinations() {
            let Setting { batch, epochs } = setting;
            // Not the title, which names the machine: the page is about figures that are the same on all.
            let place = format!("{} {batch}x{epochs}", self.comparison.subjects[data].dataset.name);
            let schedules = self.comparison.fixed_schedules();
            notes.extend(schedules.filter_map(|schedule| {
                let note = self.edge_of_grid(data, setting, rule, schedule)?;
                Some(format!("{place}, {note}"))
            }));
        }
        notes.into_iter().try_for_each(|line| say(format!("- {line}")))
    }

    /// Accuracy to a tenth of a percent, and for a regime by how much it is above or below the references; bold where it is a point or
    /// more below the best fixed rate.
    fn markdown_cell(&self, data: usize, setting: Setting, rule: RuleName, row: Variant) -> String {
        let Some((cell, above)) = self.at(data, setting, rule, row) else {
            return String::new();
        };
        let accuracy = accuracy_in_words(cell, 1);
        let accuracy = match cell.diverged() {
            some if some > 0 && some < cell.runs.len() => {
                format!("{accuracy}, {some} of {} diverged", cell.runs.len())
            }
            _ => accuracy,
        };
        match cell.case.variant.lr {
            Some(lr) if row.gradient_scale == 1.0 => {
                format!("{accuracy} (at {})", rate_in_words(lr))
            }
            _ => {
                let gaps = above.map(tenths_in_words).join(", ");
                let accuracy = if above[0] <= -1.0 { format!("**{accuracy}**") } else { accuracy };
                format!("{accuracy} ({gaps})")
            }
        }
    }
}

fn accuracy_in_words(cell: &Cell, digits: usize) -> String {
    if cell.diverged() == cell.runs.len() {
        return "diverged".to_owned();
    }
    let accuracy = 100.0 * cell.accuracy();
    match cell.deviation() {
        Some(deviation) => format!("{accuracy:.digits$} ±{:.digits$}", 100.0 * deviation),
        None => format!("{accuracy:.digits$}"),
    }
}

fn loss_in_words(loss: f64) -> String {
    if loss.is_finite() && !(1e-4..100.0).contains(&loss) { format!("{loss:.1e}") } else { format!("{loss:.4}") }
}

/// With its sign, unless it is rounded to zero.
fn points_in_words(points: f64) -> String {
    let text = format!("{points:+.2}");
    if points.abs() < 0.005 { "0.00".to_owned() } else { text }
}

/// The same to a tenth of a point.
fn tenths_in_words(points: f64) -> String {
    if points.abs() < 0.05 { "0.0".to_owned() } else { format!("{points:+.1}") }
}

fn rate_in_words(rate: f32) -> String {
    if (1e-3..1e4).contains(&rate) { rate.to_string() } else { format!("{rate:e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_decades_follow_each_other() {
        let mut rate = 0.01;
        for next in [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0] {
            let before = rate;
            rate = next_rate(rate, true);
            assert_eq!(rate, next);
            assert_eq!(next_rate(rate, false), before);
        }
        for rule in RuleName::value_variants() {
            let rates = default_rates(*rule);
            for pair in rates.windows(2) {
                assert_eq!(next_rate(pair[0], true), pair[1], "{rule:?}");
            }
        }
        assert_eq!(next_rate(1e-4, false), 3e-5);
    }
}
