//! Cases of a comparison: every rule, regime and rate with every data set and setting, once for each seed.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use indicatif::ProgressBar;
use wgpu_optim::SchedulePolicy;

use super::super::engine::OptimizerSettings;
use super::super::options::{Args, AverageName, RegimeName, RuleName, ScheduleName, name_of};
use super::super::report::Run;
use super::super::{Job, Look, Watch};
use super::Setting;
use super::results::{Cell, best_fixed, end_of_grid};
use super::tables::rate_in_words;
use crate::CliError;
use crate::data::{self, Dataset};
use crate::model::Model;
use crate::parallel::in_parallel;
use crate::table::{progress_bar, tell};
use crate::target::{Target, TuningSource};
use crate::words::count;

/// Returns the default fixed rates of a rule if --lrs is not given: half decades around its usual rates.
fn default_rates(RuleName(rule): RuleName) -> &'static [f32] {
    if rule.is_sign() {
        &[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    } else if rule.is_scale_free() {
        &[3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    } else if rule.has_momentum() {
        &[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
    } else {
        &[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    }
}

/// Number of rates by which a default grid may grow beyond an end with the best rate.
const EXTENSIONS: usize = 3;

/// Returns the next half decade up or down: 0.1, 0.3, 1, …
fn next_rate(rate: f32, up: bool) -> f32 {
    let text = format!("{rate:e}");
    let exponent: i32 = text.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    let next = match (text.starts_with('3'), up) {
        (false, true) => format!("3e{exponent}"),
        (false, false) => format!("3e{}", exponent - 1),
        (true, true) => format!("1e{}", exponent + 1),
        (true, false) => format!("1e{exponent}"),
    };
    next.parse().unwrap_or(rate)
}

/// References of every regime, by the schedule of the fixed rates and by name: the best rate without a schedule, and
/// the best peak with warm-up and cosine.
pub const REFERENCES: [(ScheduleName, &str); 2] =
    [(ScheduleName::CONSTANT, "best fixed"), (ScheduleName::WARMUP_COSINE, "best cosine")];

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variant {
    pub regime: RegimeName,
    /// Rate of the regime, or `None` if it finds its own.
    pub lr: Option<f32>,
    /// Whether --schedule-policy gives the rate.
    pub is_learned: bool,
    pub schedule: ScheduleName,
    pub first_step: Option<f32>,
    pub gradient_scale: f32,
}

impl Variant {
    pub fn fixed(lr: f32, schedule: ScheduleName, gradient_scale: f32) -> Self {
        let regime = RegimeName::fixed();
        Variant { regime, lr: Some(lr), is_learned: false, schedule, first_step: None, gradient_scale }
    }

    /// Returns the variant whose rate is the output of the policy.
    fn learned() -> Self {
        Variant { lr: None, is_learned: true, ..Variant::fixed(1.0, ScheduleName::CONSTANT, 1.0) }
    }

    /// Returns true for a rate of a grid.
    pub fn is_fixed(&self) -> bool {
        self.regime.is_fixed() && !self.is_learned
    }

    /// Returns what the rate comes from, as --json names it.
    pub fn source(&self) -> String {
        if self.is_learned { LEARNED.to_owned() } else { name_of(self.regime) }
    }
}

const LEARNED: &str = "learned-schedule";

/// Formats as the row's name: `seesaw, step, ε 0.1, g × 100`.
impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reference = REFERENCES.iter().find(|(schedule, _)| *schedule == self.schedule);
        match reference {
            Some((_, name)) if self.is_fixed() => write!(f, "{name}")?,
            None if self.is_fixed() => write!(f, "best fixed, {}", name_of(self.schedule))?,
            _ if self.schedule == ScheduleName::CONSTANT => write!(f, "{}", self.source())?,
            _ => write!(f, "{}, {}", self.source(), name_of(self.schedule))?,
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

/// Column of a table: a data set by its index, a setting and a rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    pub data: usize,
    pub setting: Setting,
    pub rule: RuleName,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    pub place: Place,
    pub variant: Variant,
}

pub struct Subject {
    pub dataset: Dataset,
    pub model: Model,
    pub target: Target,
    tuning: TuningSource,
    pub settings: Vec<Setting>,
    chance: f64,
    policy: Option<SchedulePolicy>,
}

/// All data sets, settings, rules and variants of a comparison.
pub struct Comparison<'a> {
    pub args: &'a Args,
    pub subjects: Vec<Subject>,
    /// Rows except the best fixed rates, in order.
    pub variants: Vec<Variant>,
    pub gradient_scales: Vec<f32>,
    /// One line about each data set.
    about_data: Vec<String>,
}

/// Returns an error if a list contains a value twice, because it would count twice in every mean.
fn check_list<T: PartialEq>(option: &str, values: &[T], show: impl Fn(&T) -> String) -> Result<(), CliError> {
    let twice = (1..values.len()).find(|&index| values[..index].contains(&values[index]));
    twice.map_or(Ok(()), |index| {
        CliError::usage(format!("--{option} has {} twice: leave one of them out", show(&values[index])))
    })
}

impl<'a> Comparison<'a> {
    /// Checks everything before the first run. Also returns the files that were read.
    pub fn new(args: &'a Args) -> Result<(Self, Vec<PathBuf>), CliError> {
        let options = &args.compare;
        args.check_heeded(&options.rules)?;
        let regimes = options.regimes.clone().unwrap_or_else(|| {
            let all = RegimeName::value_variants().iter().copied();
            all.filter(|regime| !regime.is_fixed()).collect()
        });
        let gradient_scales = options.gradient_scales.clone().unwrap_or_else(|| vec![1.0]);
        check_list("rules", &options.rules, |&rule| name_of(rule))?;
        check_list("regimes", &regimes, |&regime| name_of(regime))?;
        check_list("schedules", &options.schedules, |&schedule| name_of(schedule))?;
        check_list("seeds", &options.seeds, u64::to_string)?;
        check_list("settings", options.settings.as_deref().unwrap_or_default(), Setting::to_string)?;
        check_list("gradient-scales", &gradient_scales, f32::to_string)?;
        check_list("lrs", options.lrs.as_deref().unwrap_or_default(), f32::to_string)?;
        check_list("first-steps", options.first_steps.as_deref().unwrap_or_default(), f32::to_string)?;
        if regimes.iter().any(|regime| regime.is_fixed()) {
            return CliError::usage(
                "--regimes needs no fixed, the best fixed rate is in every table: choose its grid with --lrs",
            );
        }
        if let Some(scale) = gradient_scales.iter().find(|scale| !(scale.is_finite() && **scale > 0.0)) {
            return CliError::usage(format!("--gradient-scales has {scale}, but a factor must be finite and above 0"));
        }
        let first_steps = match &options.first_steps {
            Some(list) => list.iter().copied().map(Some).collect(),
            None => vec![None],
        };
        let mut variants = Vec::new();
        for &gradient_scale in &gradient_scales {
            for &regime in &regimes {
                for &schedule in &options.schedules {
                    let of = |&first_step| Variant {
                        regime,
                        lr: None,
                        is_learned: false,
                        schedule,
                        first_step,
                        gradient_scale,
                    };
                    variants.extend(first_steps.iter().map(of));
                }
            }
        }
        variants.extend(args.schedule_policy.is_some().then(Variant::learned));
        // The path of an existing file may contain a comma.
        let list = args.data.to_str().filter(|_| !Path::new(&args.data).exists());
        let names: Vec<&OsStr> = match list {
            Some(list) => list.split(',').map(|name| OsStr::new(name.trim())).collect(),
            None => vec![&args.data],
        };
        if names.contains(&OsStr::new("")) {
            return CliError::usage(format!(
                "--data \"{}\" has an empty name: give {} or paths, with one comma between two of them",
                args.data.display(),
                data::NAMES
            ));
        }
        check_list("data", &names, |name| format!("\"{}\"", name.display()))?;
        if args.label.is_some() && names.iter().all(data::is_named) {
            return CliError::usage(format!(
                "--label goes with a CSV file, {} is none: leave it out",
                args.data.display()
            ));
        }
        let mut comparison =
            Comparison { args, subjects: Vec::new(), variants, gradient_scales, about_data: Vec::new() };
        for &rule in &options.rules {
            for variant in comparison.first_variants(rule) {
                comparison.optimizer(rule, variant, 1)?.check()?;
            }
        }
        // A regime that no rule supports is left out or, if the user named it, refused.
        let mut had = comparison.variants.clone();
        had.retain(|variant| {
            options.rules.iter().any(|&rule| comparison.variants_of(rule).any(|other| other == *variant))
        });
        if options.regimes.is_some() {
            for &variant in comparison.variants.iter().filter(|variant| !had.contains(variant)) {
                comparison.optimizer(options.rules[0], variant, 1)?.check()?;
            }
        }
        comparison.variants = had;
        // Only files have columns to choose from.
        let label = |name: &OsStr| args.label.as_deref().filter(|_| !data::is_named(name));
        let load = |name: &&OsStr| data::load_from(name, label(name));
        let datasets = names.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        let files = datasets.iter().flat_map(|loaded| loaded.files.iter().cloned());
        let read = files.chain(args.schedule_policy.clone()).collect();
        let target = args.target.find()?;
        if matches!(target, Target::Gpu(_)) && options.gradient_scales.is_some() {
            return CliError::usage("--gradient-scales works on the CPU path only: add --backend cpu, or leave it out");
        }
        for (name, data::Loaded { dataset, about, .. }) in names.into_iter().zip(datasets) {
            comparison.about_data.push(about);
            let model = Model::new(args.model, dataset.features, dataset.classes, args.hidden());
            let (target, tuning) = target.clone().tuned_for(model.padded_len());
            let epochs = args.epochs.unwrap_or_else(|| data::default_epochs(name));
            let settings = options.settings.clone().unwrap_or_else(|| vec![Setting { batch: args.batch, epochs }]);
            let chance = dataset.chance();
            let policy = args.policy(&dataset)?;
            comparison.subjects.push(Subject { dataset, model, target, tuning, settings, chance, policy });
        }
        Ok((comparison, read))
    }

    /// Returns the variants beside the fixed rates that this rule supports.
    pub fn variants_of(&self, rule: RuleName) -> impl Iterator<Item = Variant> {
        let fits = move |variant: &Variant| {
            let options = self.options_of(rule, *variant);
            let is_free = options.averaged() == Some(AverageName::ScheduleFree);
            (is_free || !variant.regime.0.needs_schedule_free()) && variant.regime.0.fits(&options.rule())
        };
        self.variants.iter().copied().filter(fits)
    }

    pub fn rates(&self, rule: RuleName) -> &[f32] {
        self.args.compare.lrs.as_deref().unwrap_or_else(|| default_rates(rule))
    }

    /// Returns the options of a single run with this rule and rate. Fixed rates are evaluated by their polynomial
    /// average and their last iterate, regimes as in a run of their own.
    pub fn options_of(&self, rule: RuleName, variant: Variant) -> Args {
        let tuned = variant.is_fixed();
        Args {
            rule,
            regime: variant.regime,
            lr: if variant.is_learned { Some(1.0) } else { variant.lr },
            schedule_policy: self.args.schedule_policy.clone().filter(|_| variant.is_learned),
            schedule: variant.schedule,
            average: tuned.then_some(AverageName::Polynomial),
            last: self.args.last && !tuned,
            telemetry: false,
            ..self.args.clone()
        }
    }

    /// Returns the options of an equivalent single run.
    fn single(&self, case: &Case, seed: u64) -> Args {
        let Setting { batch, epochs } = case.place.setting;
        Args { batch, epochs: Some(epochs), seed, ..self.options_of(case.place.rule, case.variant) }
    }

    fn optimizer(&self, rule: RuleName, variant: Variant, steps: u64) -> Result<OptimizerSettings, CliError> {
        let options = self.options_of(rule, variant);
        Ok(OptimizerSettings {
            regime: variant.regime.regime(options.lr, variant.first_step)?,
            gradient_scale: variant.gradient_scale,
            // Neither of the two possible averages depends on the number of epochs.
            ..options.settings(1, steps)?
        })
    }

    fn other_scales(&self) -> impl Iterator<Item = f32> {
        self.gradient_scales.iter().copied().filter(|&scale| scale != 1.0)
    }

    /// Returns the columns of every table, in the order in which they are shown.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.tables().flat_map(|(data, setting)| {
            let rules = self.args.compare.rules.iter();
            rules.map(move |&rule| Place { data, setting, rule })
        })
    }

    /// Returns every table, in the order in which they are shown.
    pub fn tables(&self) -> impl Iterator<Item = (usize, Setting)> {
        let subjects = self.subjects.iter().enumerate();
        subjects.flat_map(|(data, subject)| subject.settings.iter().map(move |&setting| (data, setting)))
    }

    /// Returns the schedules of the fixed rates. Those of the references come first.
    pub fn fixed_schedules(&self) -> impl Iterator<Item = ScheduleName> {
        let references = REFERENCES.map(|(schedule, _)| schedule);
        let others = self.args.compare.schedules.iter().copied();
        references.into_iter().chain(others.filter(move |schedule| !references.contains(schedule)))
    }

    /// Returns the next rate beyond every default grid whose best rate is at its end.
    fn beyond_the_grids(&self, cells: &[Cell]) -> Vec<Case> {
        if self.args.compare.lrs.is_some() {
            return Vec::new();
        }
        let grids = self.places().flat_map(|place| self.fixed_schedules().map(move |schedule| (place, schedule)));
        let beyond = grids.filter_map(|(place, schedule)| {
            let (best, is_upper) = end_of_grid(cells, place, schedule)?;
            Some(Case { place, variant: Variant::fixed(next_rate(best, is_upper), schedule, 1.0) })
        });
        beyond.collect()
    }

    /// Returns the grid of fixed rates and every regime that the rule supports.
    fn first_variants(&self, rule: RuleName) -> impl Iterator<Item = Variant> {
        let fixed = self.fixed_schedules().flat_map(move |schedule| {
            let rates = self.rates(rule).iter();
            rates.map(move |&rate| Variant::fixed(rate, schedule, 1.0))
        });
        fixed.chain(self.variants_of(rule))
    }

    /// Returns the cases of the best fixed rates at the other gradient scales.
    fn tuned_at_other_scales(&self, cells: &[Cell]) -> Vec<Case> {
        let best = |place| best_fixed(cells, place, ScheduleName::CONSTANT)?.case.variant.lr;
        let tuned = self.places().filter_map(|place| Some((place, best(place)?)));
        let at_others = tuned.flat_map(|(place, lr)| {
            let variant = move |scale| Variant::fixed(lr, ScheduleName::CONSTANT, scale);
            self.other_scales().map(move |scale| Case { place, variant: variant(scale) })
        });
        at_others.collect()
    }

    /// Returns the number of steps of these cases with every seed.
    fn steps<'c>(&self, cases: impl IntoIterator<Item = &'c Case>) -> u64 {
        let steps = |case: &Case| self.single(case, 0).steps(&self.subjects[case.place.data].dataset);
        cases.into_iter().map(steps).sum::<u64>() * self.args.compare.seeds.len() as u64
    }

    /// Runs all cases, or those that finish before a signal.
    pub fn run(&self) -> Result<Vec<Cell>, CliError> {
        let of_place = |place: Place| self.first_variants(place.rule).map(move |variant| Case { place, variant });
        let first: Vec<Case> = self.places().flat_map(of_place).collect();
        // Only the number of runs of the second round is known. Their rates do not matter for the number of steps.
        let placeholder = Variant::fixed(1.0, ScheduleName::CONSTANT, 1.0);
        let at_scales = |place| self.other_scales().map(move |_| Case { place, variant: placeholder });
        let later: Vec<Case> = self.places().flat_map(at_scales).collect();
        self.about_data.iter().for_each(tell);
        tell(format!(
            "{}{}",
            count(((first.len() + later.len()) * self.args.compare.seeds.len()) as u64, "run"),
            match self.args.compare.lrs {
                Some(_) => "",
                None => ", and some more where the best rate is at the end of its grid",
            }
        ));
        // The progress bar has no message, because several runs would write it at once.
        let progress = progress_bar(self.steps(first.iter().chain(&later)), "{bar:32} {pos}/{len} steps, {eta} left");
        let mut cells = self.run_cases(first, &progress)?;
        for _ in 0..EXTENSIONS {
            let more = self.beyond_the_grids(&cells);
            progress.inc_length(self.steps(&more));
            cells.extend(self.run_cases(more, &progress)?);
        }
        // The rates tuned at one scale are run at the others. They are only known now.
        let tuned = self.tuned_at_other_scales(&cells);
        cells.extend(self.run_cases(tuned, &progress)?);
        progress.finish_and_clear();
        Ok(cells)
    }

    /// Runs one case. Returns `None` if a signal interrupted it.
    fn run_one(&self, case: &Case, seed: u64, progress: &ProgressBar) -> Result<Option<Run>, CliError> {
        let subject = &self.subjects[case.place.data];
        let args = self.single(case, seed);
        let steps = args.steps(&subject.dataset);
        let policy = subject.policy.clone().filter(|_| case.variant.is_learned);
        let settings = OptimizerSettings { policy, ..self.optimizer(case.place.rule, case.variant, steps)? };
        let job = Job { args: &args, settings, dataset: &subject.dataset, model: &subject.model };
        let look = if case.variant.is_fixed() { Look::Better } else { Look::Judged };
        let run = job.train(&subject.target, None, &mut Watch::new(progress), look)?;
        Ok(Some(Run { tuning: subject.tuning, ..run }).filter(|run| run.stopped_by.is_none()))
    }

    /// Runs every case with every seed. The results are in the order of the cases, whichever run ends first. After a
    /// signal, cases without all their runs are left out.
    fn run_cases(&self, cases: Vec<Case>, progress: &ProgressBar) -> Result<Vec<Cell>, CliError> {
        let seeds = &self.args.compare.seeds;
        let count = cases.len() * seeds.len();
        let run_at = |index: usize| self.run_one(&cases[index / seeds.len()], seeds[index % seeds.len()], progress);
        // A device takes one run after the other. On the host each run has its own core, which is faster than sharing
        // every step.
        let threads = match self.subjects.first().map(|subject| &subject.target) {
            Some(Target::Cpu { .. }) => rayon::current_num_threads().min(count),
            _ => 1,
        };
        // Each run has its own rayon pool. In a common pool a thread that waits within a step would begin another run
        // and delay the first.
        let run_alone = |index: usize| match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
            Ok(pool) if threads > 1 => pool.install(|| run_at(index)),
            // Without a new thread, or with a single run at a time, the existing pool is used.
            _ => run_at(index),
        };
        let mut runs = in_parallel(count, threads, run_alone)?.into_iter();
        let cell = |case: Case| {
            let runs: Vec<Run> = runs.by_ref().take(seeds.len()).flatten().collect();
            let is_whole = runs.len() == seeds.len();
            is_whole.then(|| Cell { case, runs, chance: self.subjects[case.place.data].chance })
        };
        Ok(cases.iter().copied().filter_map(cell).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_decades_follow_each_other() {
        for pair in [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0].windows(2) {
            assert_eq!(next_rate(pair[0], true), pair[1]);
            assert_eq!(next_rate(pair[1], false), pair[0]);
        }
        for rule in RuleName::value_variants() {
            for pair in default_rates(*rule).windows(2) {
                assert_eq!(next_rate(pair[0], true), pair[1], "{rule:?}");
            }
        }
        assert_eq!(next_rate(1e-4, false), 3e-5);
    }
}
