//! Each pass by itself: the sums of passes 1 and 2 with every kind of partial sums, pass 3 with sums that are not
//! rounded, and the update at a fixed rate.

use wgpu_optim::gpu::{Partials, Tuning};
use wgpu_optim::internals::PassName;
use wgpu_optim::internals::layout::{GroupState, ScopeSums};
use wgpu_optim::{Lion, Regime, Rule, Sgdm, WeightDecay};
use wgpu_optim_conformance::run::Run;
use wgpu_optim_conformance::spec::{Spec, regimes};

use super::case::{Cases, Outcome, Path, Subject, ulp};
use super::scenario::{Gradients, LONG_ULPS, Scenario, Tolerance, ULPS, describe, group, loss_of};
use super::steps::lengths;
use crate::CliError;

pub fn cases(subject: &Subject) -> Cases {
    tunings(subject).into_iter().map(sums).chain(rates()).chain([update()]).map(Scenario::boxed).collect()
}

/// Returns the subject's own geometry. For the preset it adds every other kind of partial sums, with workgroups of
/// several subgroups.
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

/// Returns groups with every kind of memory and of every length. The last step is compared.
fn sums(tuning: Tuning) -> Scenario {
    let mut specs = Vec::new();
    for (name, rule, regime, decay, clip) in [
        ("norm", Rule::sgd(), Regime::norm_ratio(), 0.0, f32::INFINITY),
        ("counters", Rule::sgd(), Regime::seesaw(), 0.1, f32::INFINITY),
        ("momentum", Rule::sgdm(0.9), Regime::seesaw(), 0.1, 1.0),
    ] {
        for length in lengths((tuning.block_elements() as usize).min(1 << 14)) {
            let decay = WeightDecay::Coupled(decay);
            specs.push(Spec { decay, clip, ..group(format!("{name} {length}"), rule, regime, &[length]) });
        }
    }
    let scenario = Scenario::new("sums of passes 1 and 2", 3, specs);
    Scenario { tuning: Some(tuning), separate_passes: true, judge: judge_sums, ..scenario }
}

/// Compares the sums of squares with f64, given the parameters before the step.
fn judge_squares(
    scenario: &Scenario,
    outcome: &mut Outcome,
    path: Path,
    sums: &[ScopeSums],
    before: &[Vec<f32>],
    gradients: &[Vec<f32>],
) {
    for (group, part) in scenario.parts.iter().enumerate() {
        let spec = &part.spec;
        let name = format!("{} of {}", describe(spec, part.gradients), before[group].len());
        let decay = spec.decay.coupled();
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
        let pairs = || gradients[group].iter().zip(&before[group]);
        // Rounding the terms to f32 once or twice, as the kernels do, is not an error of the sum.
        let seen = square(&mut pairs().map(|(g, w)| g + decay * w));
        let mut expected = vec![("Σ g²", sums[group].square.value(), seen)];
        if spec.clip.is_finite() {
            let raw = square(&mut gradients[group].iter().copied());
            expected.push(("Σ g² without decay", sums[group].raw_square.value(), raw));
        }
        for (what, got, exact) in expected {
            outcome.near(path, || format!("{what}, {name}"), (got, exact), ulp(exact), ULPS);
        }
        outcome.same(path, || format!("elements that are not finite, {name}"), sums[group].nonfinite, 0);
    }
}

/// Compares passes 1 and 2 with f64 and with the CPU path.
fn judge_sums(scenario: &Scenario, subject: &Subject) -> Result<Outcome, CliError> {
    let mut outcome = Outcome::default();
    let gpu = subject.gpu.clone().with_tuning(scenario.tuning.unwrap_or(subject.gpu.tuning()))?;
    let (mut device, mut host) = scenario.runs(subject, &gpu)?;
    for step in 1..scenario.steps {
        let gradients = scenario.gradients(step);
        device.step(&gradients, loss_of(step))?;
        host.step(&gradients, loss_of(step))?;
    }
    let gradients = scenario.gradients(scenario.steps);
    let (on_device, on_host) = (device.run.try_params()?, host.parameters()?);
    device.write(&gradients, loss_of(scenario.steps));
    device.run_passes(|pass| matches!(pass, PassName::ReduceGradient | PassName::FinishReduction));
    let scales: Vec<i32> = host.run.states().iter().map(|s| s.gradient_exponent).collect();
    host.step(&gradients, loss_of(scenario.steps))?;
    let (sums, host_sums) = (device.sums()?, host.sums()?);
    judge_squares(scenario, &mut outcome, Path::Device, &sums, &on_device, &gradients);
    judge_squares(scenario, &mut outcome, Path::Cpu, &host_sums, &on_host, &gradients);
    // The products are compared with the CPU path's, because the memory that they use cannot be read.
    for (group, (got, expected)) in sums.iter().zip(&host_sums).enumerate() {
        let part = &scenario.parts[group];
        let name = describe(&part.spec, part.gradients);
        let directions = f64::from(expected.direction_square);
        // Norm at the scale of the products.
        let n = expected.square.value().sqrt() * f64::from(-scales[group]).exp2();
        let elements = (on_host[group].len().max(1) as f64).sqrt();
        for (what, got, expected, size) in [
            ("⟨g, u⟩", got.slow_dot, expected.slow_dot, n * directions.sqrt()),
            ("⟨g, sign u⟩", got.fast_dot, expected.fast_dot, n * elements),
            ("Σ |g|", got.absolute, expected.absolute, n * elements),
            ("‖u‖²", got.direction_square, expected.direction_square, directions),
        ] {
            let what = || format!("{what} against the CPU path's, {name}");
            outcome.near(Path::Device, what, (got, expected), ulp(size), ULPS);
        }
    }
    Ok(outcome)
}

/// Returns every rule and regime with exact sums, so that passes 1 and 2 give pass 3 the same bits on every path.
fn rates() -> impl Iterator<Item = Scenario> {
    Rule::all().into_iter().map(|rule| {
        // With powers of two, momentum is not rounded either.
        let rule = match rule {
            Rule::Sgdm(Sgdm { nesterov, .. }) if nesterov => Rule::nesterov(0.5),
            Rule::Sgdm(_) => Rule::sgdm(0.5),
            Rule::Signum(_) => Rule::signum(0.5),
            Rule::Lion(_) => Rule::Lion(Lion { beta1: 0.5, beta2: 0.75 }),
            rule => rule,
        };
        let specs = regimes()
            // AutoSgd cannot share an optimizer with other regimes. The steps family tests it.
            .filter(|regime| !regime.needs_streams() && regime.fits(&rule))
            .map(|regime| {
                let name = format!("{} {}", rule.name(), regime.name());
                // Whole quads need half as many kernels.
                let values = (0..64).map(|i| Gradients::Dyadic.value(1, 0.0, i, 0));
                Spec::new(rule, regime, vec![values.collect()]).named(name)
            })
            .collect();
        let scenario = Scenario::new("pass 3 given the same sums", 4, specs).dyadic();
        Scenario { separate_passes: true, judge: judge_rates, ..scenario }
    })
}

/// Compares pass 3 with its twin.
fn judge_rates(scenario: &Scenario, subject: &Subject) -> Result<Outcome, CliError> {
    let mut outcome = Outcome::default();
    let (mut device, mut host) = scenario.runs(subject, &subject.gpu)?;
    let mut exact = vec![true; scenario.parts.len()];
    for step in 1..=scenario.steps {
        let gradients = scenario.gradients(step);
        let on_device = device.step(&gradients, loss_of(step))?;
        let on_host = host.step(&gradients, loss_of(step))?;
        let (sums, host_sums) = (device.sums()?, host.sums()?);
        for (group, part) in scenario.parts.iter().enumerate() {
            let name = format!("step {step}, {}", describe(&part.spec, part.gradients));
            let (got, expected) = (sums[group], host_sums[group]);
            outcome.same(Path::Device, || format!("Σ g² of {name}"), got.square, expected.square);
            // Distances from the start depend on parameters, which are rounded.
            exact[group] &= got == expected;
            let allowed = if exact[group] { ULPS } else { LONG_ULPS };
            let (got, expected) = (&on_device[group], &on_host[group]);
            for (what, got, expected) in [
                ("learning rate", got.learning_rate, expected.learning_rate),
                ("norm", got.norm, expected.norm),
                ("n̂", got.smoothed_norm, expected.smoothed_norm),
                ("clip factor", got.clip_factor, expected.clip_factor),
            ] {
                let what = || format!("{what} of {name}");
                outcome.near(Path::Device, what, (got, expected), ulp(expected.into()), allowed);
            }
            for ((term, got), (_, expected)) in got.terms().zip(expected.terms()) {
                let what = || format!("{} term of {name}", term.name());
                outcome.near(Path::Device, what, (got, expected), ulp(1.0), allowed);
            }
            outcome.same(Path::Device, || format!("flags of {name}"), got.flags, expected.flags);
        }
    }
    let counts = |states: Vec<GroupState>| -> Vec<[u32; 4]> {
        states.iter().map(|s| [s.steps_low, s.skipped, s.started, s.momentum_started]).collect()
    };
    let what = || "counts of every state".to_owned();
    outcome.same(Path::Device, what, counts(device.run.try_states()?), counts(host.run.states()));
    Ok(outcome)
}

/// Returns every rule with every decay at a fixed rate, which leaves only the update to test.
fn update() -> Scenario {
    let mut specs = Vec::new();
    for rule in Rule::all() {
        for (name, decay) in [
            ("plain", WeightDecay::Coupled(0.0)),
            ("coupled", WeightDecay::Coupled(0.1)),
            ("decoupled", WeightDecay::Decoupled(0.1)),
        ] {
            let name = format!("{} {name}", rule.name());
            specs.push(Spec { decay, ..group(name, rule, Regime::fixed(0.037), &[1001, 1, 3, 4, 5, 33]) });
        }
    }
    // A product, a decay and a difference are rounded, and with momentum also two products and a sum before them.
    // Correct runs reach 5 in three steps (RMSprop).
    Scenario { tolerance: Tolerance::OfEach(4.0), ..Scenario::new("pass 4 at a fixed rate", 3, specs) }
}
