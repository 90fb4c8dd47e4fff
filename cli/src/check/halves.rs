//! Halves: 16-bit parameters and gradients compared with the reference, and code by code with the CPU path;
//! micro-batches; and gradients that are cleared.

use wgpu_optim::{Element, Regime, Rounding, Rule, SecantForm, WeightDecay};
use wgpu_optim_conformance::spec::{DOG, Spec};

use super::case::{Cases, Outcome, Path, Subject};
use super::scenario::{Layout, Scenario, group, loss_of};
use crate::CliError;

const STEPS: usize = 5;

/// Lengths around the boundaries of words, quads and blocks.
const LENGTHS: [usize; 6] = [1, 2, 3, 4, 7, 4099];

/// Element types of parameters and gradients, with the rounding. It does not matter for f32 parameters.
const STORED: [(Element, Element, Rounding); 9] = [
    (Element::F16, Element::F16, Rounding::Masters),
    (Element::Bf16, Element::Bf16, Rounding::Masters),
    (Element::Bf16, Element::F32, Rounding::Masters),
    (Element::F32, Element::F16, Rounding::Masters),
    (Element::F32, Element::Bf16, Rounding::Masters),
    (Element::F16, Element::Bf16, Rounding::Nearest),
    (Element::Bf16, Element::Bf16, Rounding::Nearest),
    (Element::F16, Element::F16, Rounding::Stochastic { seed: 1 }),
    (Element::Bf16, Element::F32, Rounding::Stochastic { seed: 2 }),
];

/// Layout of tensors that begin at odd words.
const LAYOUT: Layout = Layout::Packed { start: 2, gap: 1 };

pub fn cases(_: &Subject) -> Cases {
    let mut cases = Vec::new();
    for (params, grads, rounding) in STORED {
        let specs = specs(params, grads, rounding);
        cases.push(Scenario { layout: LAYOUT, ..Scenario::new("halves", STEPS, specs) });
    }
    for (params, rounding) in [
        (Element::F16, Rounding::Masters),
        (Element::F16, Rounding::Nearest),
        (Element::F16, Rounding::Stochastic { seed: 3 }),
        (Element::Bf16, Rounding::Masters),
        (Element::Bf16, Rounding::Nearest),
        (Element::Bf16, Rounding::Stochastic { seed: 4 }),
    ] {
        cases.push(exact(params, rounding));
    }
    for (grads, micro_batches) in [(Element::F32, 3), (Element::F16, 4), (Element::Bf16, 8)] {
        let specs = [
            group("counters", Rule::sgd(), Regime::seesaw(), &LENGTHS),
            group("secant", Rule::sgdm(0.9), Regime::barzilai_borwein(SecantForm::Long), &LENGTHS),
            Spec { clip: 3.0, ..group("clipped", Rule::adamw(), Regime::norm_ratio(), &LENGTHS) },
        ];
        let specs = specs.map(|spec| spec.stored(Element::F32, grads, Rounding::Masters));
        let scenario = Scenario::new("micro-batches", STEPS, specs.into());
        cases.push(Scenario { layout: LAYOUT, micro_batches, clears: true, judge: cleared, ..scenario });
    }
    cases.into_iter().map(Scenario::boxed).collect()
}

/// Returns rules and regimes that use parameters and gradients in different ways.
fn specs(params: Element, grads: Element, rounding: Rounding) -> Vec<Spec> {
    let mut specs = vec![
        group("sgd", Rule::sgd(), Regime::seesaw(), &LENGTHS),
        group("adamw", Rule::adamw(), Regime::seesaw(), &LENGTHS),
    ];
    if params == Element::F32 || rounding == Rounding::Masters {
        // If the norm depends on the parameters, rounded parameters have another norm.
        let decay = WeightDecay::Coupled(0.05);
        specs.push(Spec { decay, ..group("decay", Rule::sgdm(0.9), Regime::seesaw(), &LENGTHS) });
        specs.push(group("distance", Rule::sgd(), DOG, &LENGTHS));
    } else {
        specs.push(group("sgdm", Rule::sgdm(0.9), Regime::norm_ratio(), &LENGTHS));
    }
    specs.into_iter().map(|spec| spec.stored(params, grads, rounding)).collect()
}

/// Returns steps without rounding in f32, for which every path must find the same codes.
fn exact(params: Element, rounding: Rounding) -> Scenario {
    let rate = |exponent: i32| Regime::fixed((exponent as f32).exp2());
    let ordinary = group("ordinary", Rule::sgd(), rate(-12), &LENGTHS);
    let mut tiny = group("tiny", Rule::sgd(), rate(-30), &LENGTHS);
    // These numbers are denormal in f16.
    for w in tiny.tensors.iter_mut().flatten() {
        *w = (*w * 64.0).round() * 2f32.powi(-24);
    }
    let specs = [ordinary, tiny].map(|spec| spec.stored(params, params, rounding));
    Scenario { layout: LAYOUT, judge: codes, ..Scenario::new("codes", 24, specs.into()).dyadic() }
}

/// Compares the codes of device and CPU path.
fn codes(scenario: &Scenario, subject: &Subject) -> Result<Outcome, CliError> {
    let mut outcome = Outcome::default();
    let (mut device, mut host) = scenario.runs(subject, &subject.gpu)?;
    for step in 1..=scenario.steps {
        let gradients = scenario.gradients(step);
        device.step(&gradients, loss_of(step))?;
        host.step(&gradients, loss_of(step))?;
        let what = format!("parameters after step {step}, against the CPU path");
        outcome.same_tensors(Path::Device, &what, &device.parameters()?, &host.parameters()?);
    }
    device.compare_surroundings(&mut outcome)?;
    Ok(outcome)
}

/// Runs a scenario whose steps clear the gradients, including skipped steps.
fn cleared(scenario: &Scenario, subject: &Subject) -> Result<Outcome, CliError> {
    let mut outcome = scenario.against_oracle(subject)?;
    let mut device = scenario.device_run(subject, &subject.gpu)?;
    let mut gradients = scenario.gradients(1);
    for (what, bad) in [("a step", None), ("a skipped step", Some(f32::INFINITY))] {
        if let (Some(bad), Some(g)) = (bad, gradients.iter_mut().flatten().next()) {
            *g = bad;
        }
        device.step(&gradients, loss_of(1))?;
        let zeros: Vec<Vec<f32>> = gradients.iter().map(|g| vec![0.0; g.len()]).collect();
        let left = device.run.try_grads()?;
        outcome.same_tensors(Path::Device, &format!("gradients after {what}"), &left, &zeros);
    }
    device.compare_surroundings(&mut outcome)?;
    Ok(outcome)
}
