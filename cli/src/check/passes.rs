//! Each pass by itself: the sums of passes 1 and 2 with every kind of partials, pass 3 where the sums have no rounding, the update at a
//! fixed rate.

use wgpu_optim::gpu::{Partials, PassName, Tuning};
use wgpu_optim::layout::{GroupState, ScopeSums};
use wgpu_optim::{Lion, Regime, Rule, Sgdm, WeightDecay};
use wgpu_optim_conformance::spec::Spec;

use super::case::{Case, Outcome, Path, Subject, ulp};
use super::regimes;
use super::run::HostRun;
use super::scenario::{Gradients, RATE_ULPS, Scenario, Tolerance, describe, loss_of, with_lengths};
use super::steps::lengths;
use crate::CliError;

pub fn cases(subject: &Subject) -> Vec<Box<dyn Case>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for tuning in tunings(subject) {
        cases.push(Box::new(Sums { tuning, scenario: sums(tuning) }));
    }
    cases.extend(rates().map(|scenario| Box::new(Rates(scenario)) as Box<dyn Case>));
    cases.push(update().boxed());
    cases
}

/// The subject's own geometry, and beside the preset every other kind of partials in workgroups of several subgroups.
fn tunings(subject: &Subject) -> Vec<Tuning> {
    let own = subject.gpu.tuning();
    let mut tunings = vec![own];
    if subject.geometry == super::PRESET {
        let features = subject.gpu.device().features();
        let kinds = Partials::ALL.into_iter();
        tunings.extend(kinds.filter(|kind| kind.is_supported(features)).map(|partials| Tuning {
            workgroup_size: own.workgroup_size.max(64),
            quads_per_invocation: 8,
            partials,
            finish_workgroup_size: own.finish_workgroup_size,
        }));
    }
    tunings
}

/// Groups of every kind of memory, of every length; the last step is looked at.
fn sums(tuning: Tuning) -> Scenario {
    let mut specs = Vec::new();
    for (name, rule, regime, decay, clip) in [
        ("norm", Rule::sgd(), Regime::norm_ratio(), 0.0, f32::INFINITY),
        ("counters", Rule::sgd(), Regime::seesaw(), 0.1, f32::INFINITY),
        ("momentum", Rule::sgdm(0.9), Regime::seesaw(), 0.1, 1.0),
    ] {
        for length in lengths((tuning.block_elements() as usize).min(1 << 14)) {
            let spec = Spec {
                decay: WeightDecay::Coupled(decay),
                clip,
                ..Spec::new(rule, regime, Vec::new()).named(format!("{name} {length}"))
            };
            specs.push(with_lengths(spec, &[length]));
        }
    }
    Scenario::new("sums of passes 1 and 2", 3, specs)
}

/// Passes 1 and 2 against f64 and against the CPU path.
#[derive(Clone)]
struct Sums {
    tuning: Tuning,
    scenario: Scenario,
}

/// Units in the last place that a sum of squares may be off: half a unit for each addition in a row.
fn allowed_of_squares(tuning: Tuning, elements: usize) -> f64 {
    let trips = tuning.quads_per_invocation as usize;
    // Heads and tails are blocks of their own; a subgroup may add one invocation after the other.
    let blocks = elements.div_ceil(tuning.block_elements() as usize) + 2;
    let partials = blocks * tuning.partials_per_block() as usize;
    let strides = partials.div_ceil(tuning.finish_workgroup_size as usize);
    let meeting = match tuning.partials {
        Partials::Subgroup => tuning.workgroup_size as usize,
        Partials::PerInvocation | Partials::PerWorkgroup => 0,
    };
    // The last two: two trees of up to 2^10 leaves; lanes, squares and scales.
    (trips + strides + meeting + 20 + 6) as f64 / 2.0
}

/// Of the CPU path: rows of 16 in blocks of 4096.
const CPU_SQUARES: f64 = (4096.0 / 16.0 + 26.0) / 2.0;

/// Products of either sign, in units of the last place of the product of the norms.
const PRODUCTS: f64 = 64.0;

impl Sums {
    fn judge(
        &self,
        outcome: &mut Outcome,
        path: Path,
        sums: &[ScopeSums],
        before: &[Vec<f32>],
        gradients: &[Vec<f32>],
    ) {
        for (group, part) in self.scenario.parts.iter().enumerate() {
            let spec = &part.spec;
            let name = format!("{} of {}", describe(spec, part.gradients), before[group].len());
            let decay = spec.decay.coupled();
            let wide = |x: &f32| f64::from(*x);
            let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
            let pairs = || gradients[group].iter().zip(&before[group]);
            // Rounded to f32 once or twice, as in the kernels: not an error of the sum.
            let seen = square(&mut pairs().map(|(g, w)| wide(&(g + decay * w))));
            let raw = square(&mut gradients[group].iter().map(wide));
            let mut expected = vec![("Σ g²", sums[group].square.value(), seen)];
            if spec.clip.is_finite() {
                expected.push(("Σ g² without decay", sums[group].raw_square.value(), raw));
            }
            let allowed = match path {
                Path::Device => allowed_of_squares(self.tuning, before[group].len()),
                Path::Cpu => CPU_SQUARES,
            };
            for (what, got, exact) in expected {
                let what = || format!("{what}, {name}");
                outcome.near(path, what, got, exact, ulp(exact), allowed);
            }
            let nonfinite = || format!("elements that are not finite, {name}");
            outcome.same(path, nonfinite, sums[group].nonfinite, 0);
        }
    }
}

impl Case for Sums {
    fn name(&self) -> String {
        let Tuning { workgroup_size, quads_per_invocation, .. } = self.tuning;
        format!(
            "{} ({workgroup_size} x {quads_per_invocation} quads, {})",
            self.scenario.name(),
            self.tuning.partials.name()
        )
    }

    fn run(&self, subject: &Subject) -> Result<Outcome, CliError> {
        let mut outcome = Outcome::default();
        let scenario = &self.scenario;
        let gpu = subject.gpu.clone().with_tuning(self.tuning)?;
        let mut device = scenario.device_run(subject, &gpu)?;
        let mut host = HostRun::new(&scenario.specs(), scenario.told())?;
        for step in 1..scenario.steps {
            let gradients = scenario.gradients(step);
            device.step(&gradients, loss_of(step))?;
            host.step(&gradients, loss_of(step))?;
        }
        let gradients = scenario.gradients(scenario.steps);
        let on_device = device.true_parameters()?;
        let on_host = host.parameters();
        device.write(&gradients, loss_of(scenario.steps));
        device.run_passes(|pass| matches!(pass, PassName::ReduceGradient | PassName::FinishReduction));
        device.count(1);
        let scales: Vec<i32> = host.states().iter().map(|s| s.gradient_exponent).collect();
        host.step(&gradients, loss_of(scenario.steps))?;
        let sums = device.sums()?;
        self.judge(&mut outcome, Path::Device, &sums, &on_device, &gradients);
        self.judge(&mut outcome, Path::Cpu, host.sums(), &on_host, &gradients);
        // The products against the CPU path's: the memory that they are taken with is not for reading.
        for (group, (got, expected)) in sums.iter().zip(host.sums()).enumerate() {
            let part = &scenario.parts[group];
            let name = describe(&part.spec, part.gradients);
            let directions = f64::from(expected.direction_square);
            // The norm at the scale of the products.
            let n = expected.square.value().sqrt() * f64::from(-scales[group]).exp2();
            let elements = (on_host[group].len().max(1) as f64).sqrt();
            for (what, got, expected, size) in [
                ("⟨g, u⟩", got.slow_dot, expected.slow_dot, n * directions.sqrt()),
                ("⟨g, sign u⟩", got.fast_dot, expected.fast_dot, n * elements),
                ("Σ |g|", got.absolute, expected.absolute, n * elements),
                ("‖u‖²", got.direction_square, expected.direction_square, directions),
            ] {
                outcome.near(
                    Path::Device,
                    || format!("{what} against the CPU path's, {name}"),
                    got.into(),
                    expected.into(),
                    ulp(size),
                    PRODUCTS,
                );
            }
        }
        Ok(outcome)
    }

    fn smaller(&self) -> Vec<Box<dyn Case>> {
        let tuning = self.tuning;
        boxed(&self.scenario, |scenario| Sums { tuning, scenario })
    }
}

/// Every rule and regime where all sums are exact, so that passes 1 and 2 give pass 3 the same bits on every path.
fn rates() -> impl Iterator<Item = Scenario> {
    Rule::all().into_iter().map(|rule| {
        // Powers of two, so that momentum has no rounding either.
        let rule = match rule {
            Rule::Sgdm(Sgdm { nesterov, .. }) if nesterov => Rule::nesterov(0.5),
            Rule::Sgdm(_) => Rule::sgdm(0.5),
            Rule::Signum(_) => Rule::signum(0.5),
            Rule::Lion(_) => Rule::Lion(Lion { beta1: 0.5, beta2: 0.75 }),
            rule => rule,
        };
        let specs = regimes()
            .into_iter()
            // AutoSgd has no other regime beside it; the steps have it.
            .filter(|regime| !regime.needs_streams() && regime.fits(&rule))
            .map(|regime| {
                let name = format!("{} {}", rule.name(), regime.name());
                let mut spec = Spec::new(rule, regime, Vec::new()).named(name);
                // Whole quads, for which half as many kernels are compiled.
                spec.tensors = vec![(0..64).map(|i| Gradients::Dyadic.value(1, 0.0, i, 0)).collect()];
                spec
            })
            .collect();
        let mut scenario = Scenario::new("pass 3 given the same sums", 4, specs);
        for part in &mut scenario.parts {
            part.gradients = Gradients::Dyadic;
        }
        scenario
    })
}

/// Pass 3 against its twin.
#[derive(Clone)]
struct Rates(Scenario);

/// Units in the last place that a rate, or a term in those of 1, may be off where the sums have the same bits: over four steps, each with
/// a dozen roundings, a root, and a logarithm and an exponential of our own.
const PASS_3: f64 = 24.0;

impl Case for Rates {
    fn name(&self) -> String {
        self.0.name()
    }

    fn run(&self, subject: &Subject) -> Result<Outcome, CliError> {
        let mut outcome = Outcome::default();
        let scenario = &self.0;
        let mut device = scenario.device_run(subject, &subject.gpu)?;
        let mut host = HostRun::new(&scenario.specs(), scenario.told())?;
        let mut exact = vec![true; scenario.parts.len()];
        for step in 1..=scenario.steps {
            let gradients = scenario.gradients(step);
            let on_device = device.step(&gradients, loss_of(step))?;
            let on_host = host.step(&gradients, loss_of(step))?;
            let sums = device.sums()?;
            for (group, part) in scenario.parts.iter().enumerate() {
                let name = format!("step {step}, {}", describe(&part.spec, part.gradients));
                let (got, expected) = (sums[group], host.sums()[group]);
                let square = || format!("Σ g² of {name}");
                outcome.same(Path::Device, square, got.square, expected.square);
                // Distances from the start are of parameters, which are rounded.
                exact[group] &= got == expected;
                let allowed = if exact[group] { PASS_3 } else { RATE_ULPS };
                let (got, expected) = (&on_device[group], &on_host[group]);
                for (what, got, expected) in [
                    ("learning rate", got.learning_rate, expected.learning_rate),
                    ("norm", got.norm, expected.norm),
                    ("n̂", got.smoothed_norm, expected.smoothed_norm),
                    ("clip factor", got.clip_factor, expected.clip_factor),
                ] {
                    let unit = ulp(expected.into());
                    outcome.near(
                        Path::Device,
                        || format!("{what} of {name}"),
                        got.into(),
                        expected.into(),
                        unit,
                        allowed,
                    );
                }
                for ((term, got), (_, expected)) in got.terms().into_iter().zip(expected.terms()) {
                    outcome.near(
                        Path::Device,
                        || format!("{} term of {name}", term.name()),
                        got.into(),
                        expected.into(),
                        ulp(1.0),
                        allowed,
                    );
                }
                let flags = || format!("flags of {name}");
                outcome.same(Path::Device, flags, got.flags, expected.flags);
            }
        }
        let counts = |states: &[GroupState]| -> Vec<[u32; 4]> {
            let counts = |s: &GroupState| [s.steps_low, s.skipped, s.started, s.momentum_started];
            states.iter().map(counts).collect()
        };
        outcome.same(
            Path::Device,
            || "counts of every state".to_owned(),
            counts(&device.states()?),
            counts(host.states()),
        );
        Ok(outcome)
    }

    fn smaller(&self) -> Vec<Box<dyn Case>> {
        boxed(&self.0, Rates)
    }
}

/// Every rule with every decay at a fixed rate: what is left is the update.
fn update() -> Scenario {
    let mut specs = Vec::new();
    for rule in Rule::all() {
        for (name, decay) in [
            ("plain", WeightDecay::Coupled(0.0)),
            ("coupled", WeightDecay::Coupled(0.1)),
            ("decoupled", WeightDecay::Decoupled(0.1)),
        ] {
            let spec = Spec { decay, ..Spec::new(rule, Regime::fixed(0.037), Vec::new()) };
            let spec = spec.named(format!("{} {name}", rule.name()));
            specs.push(with_lengths(spec, &[1001, 1, 3, 4, 5, 33]));
        }
    }
    Scenario {
        // A product, a decay and a difference are rounded, and two products and a sum before them where there is momentum.
        tolerance: Tolerance::OfEach(3.0),
        ..Scenario::new("pass 4 at a fixed rate", 3, specs)
    }
}

fn boxed<C: Case + 'static>(scenario: &Scenario, case: impl Fn(Scenario) -> C) -> Vec<Box<dyn Case>> {
    let smaller = scenario.smaller_scenarios().into_iter();
    smaller.map(|scenario| Box::new(case(scenario)) as Box<dyn Case>).collect()
}
