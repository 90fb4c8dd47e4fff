//! Halves: parameters and gradients of 16 bits against the oracle, and against the CPU path code by code; micro-batches; gradients that
//! are cleared.

use wgpu_optim::{DoG, Element, Regime, Rounding, Rule, SecantForm, WeightDecay};
use wgpu_optim_conformance::spec::Spec;

use super::case::{Case, Outcome, Path, Subject};
use super::run::HostRun;
use super::scenario::{Gradients, Layout, Scenario, loss_of, with_lengths};
use crate::CliError;

const STEPS: usize = 5;

/// Around the boundaries of words, quads and blocks.
const LENGTHS: [usize; 6] = [1, 2, 3, 4, 7, 4099];

/// What is stored as what. Of f32 parameters nothing is rounded.
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

pub fn cases(_: &Subject) -> Vec<Box<dyn Case>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for (params, grads, rounding) in STORED {
        let mut scenario = Scenario::new("halves", STEPS, specs(params, grads, rounding));
        scenario.layout = Layout::Packed { start: 2, gap: 1 };
        cases.push(scenario.boxed());
    }
    for (params, rounding) in [
        (Element::F16, Rounding::Masters),
        (Element::F16, Rounding::Nearest),
        (Element::F16, Rounding::Stochastic { seed: 3 }),
        (Element::Bf16, Rounding::Masters),
        (Element::Bf16, Rounding::Nearest),
        (Element::Bf16, Rounding::Stochastic { seed: 4 }),
    ] {
        cases.push(Box::new(Codes(exact(params, rounding))));
    }
    for (grads, micro_batches) in [(Element::F32, 3), (Element::F16, 4), (Element::Bf16, 8)] {
        let specs = [
            Spec::new(Rule::sgd(), Regime::seesaw(), Vec::new()).named("counters"),
            Spec::new(Rule::sgdm(0.9), Regime::barzilai_borwein(SecantForm::Long), Vec::new()).named("secant"),
            Spec { clip: 3.0, ..Spec::new(Rule::adamw(), Regime::norm_ratio(), Vec::new()).named("clipped") },
        ];
        let specs =
            specs.into_iter().map(|spec| with_lengths(spec, &LENGTHS).stored(Element::F32, grads, Rounding::Masters));
        let mut scenario = Scenario::new("micro-batches", STEPS, specs.collect());
        scenario.layout = Layout::Packed { start: 2, gap: 1 };
        scenario.micro_batches = micro_batches;
        scenario.clears = true;
        cases.push(Box::new(Cleared(scenario)));
    }
    cases
}

/// Rules and regimes that go about parameters and gradients in different ways.
fn specs(params: Element, grads: Element, rounding: Rounding) -> Vec<Spec> {
    let exact = params == Element::F32 || rounding == Rounding::Masters;
    let mut specs = vec![
        Spec::new(Rule::sgd(), Regime::seesaw(), Vec::new()).named("sgd"),
        Spec::new(Rule::adamw(), Regime::seesaw(), Vec::new()).named("adamw"),
    ];
    if exact {
        // Where the norm goes by the parameters, those that are rounded have another.
        specs.push(Spec {
            decay: WeightDecay::Coupled(0.05),
            ..Spec::new(Rule::sgdm(0.9), Regime::seesaw(), Vec::new()).named("decay")
        });
        specs.push(
            Spec::new(
                Rule::sgd(),
                // Steps of the usual 1e-6 are so small beside the parameters that their rounding shows.
                Regime::DoG(DoG { initial_distance: 1e-2 }),
                Vec::new(),
            )
            .named("distance"),
        );
    } else {
        specs.push(Spec::new(Rule::sgdm(0.9), Regime::norm_ratio(), Vec::new()).named("sgdm"));
    }
    specs.into_iter().map(|spec| with_lengths(spec, &LENGTHS).stored(params, grads, rounding)).collect()
}

/// Steps that f32 has no rounding for, so that every path must find the same codes.
fn exact(params: Element, rounding: Rounding) -> Scenario {
    let rate = |exponent: i32| Regime::fixed((exponent as f32).exp2());
    let mut specs = vec![with_lengths(Spec::new(Rule::sgd(), rate(-12), Vec::new()).named("ordinary"), &LENGTHS)];
    // Numbers that are denormal in f16.
    let mut tiny = with_lengths(Spec::new(Rule::sgd(), rate(-30), Vec::new()).named("tiny"), &LENGTHS);
    for w in tiny.tensors.iter_mut().flatten() {
        *w = (*w * 64.0).round() * 2f32.powi(-24);
    }
    specs.push(tiny);
    let specs = specs.into_iter().map(|spec| spec.stored(params, params, rounding)).collect();
    let mut scenario = Scenario::new("codes", 24, specs);
    for part in &mut scenario.parts {
        part.gradients = Gradients::Dyadic;
    }
    scenario.layout = Layout::Packed { start: 2, gap: 1 };
    scenario
}

/// Device and CPU path, code by code.
#[derive(Clone)]
struct Codes(Scenario);

impl Case for Codes {
    fn name(&self) -> String {
        self.0.name()
    }

    fn run(&self, subject: &Subject) -> Result<Outcome, CliError> {
        let Codes(scenario) = self;
        let mut outcome = Outcome::default();
        let mut device = scenario.device_run(subject, &subject.gpu)?;
        let mut host = HostRun::new(&scenario.specs(), scenario.told())?;
        for step in 1..=scenario.steps {
            let gradients = scenario.gradients(step);
            device.step(&gradients, loss_of(step))?;
            host.step(&gradients, loss_of(step))?;
            let what = format!("parameters after step {step}, against the CPU path");
            outcome.same_tensors(Path::Device, &what, &device.parameters()?, &host.parameters());
        }
        device.compare_surroundings(&mut outcome)?;
        Ok(outcome)
    }

    fn smaller(&self) -> Vec<Box<dyn Case>> {
        let smaller = self.0.smaller_scenarios().into_iter();
        smaller.map(|scenario| Box::new(Codes(scenario)) as Box<dyn Case>).collect()
    }
}

/// A scenario whose gradients are cleared by its steps, by those that are skipped too.
#[derive(Clone)]
struct Cleared(Scenario);

impl Case for Cleared {
    fn name(&self) -> String {
        format!("{}, cleared", self.0.name())
    }

    fn run(&self, subject: &Subject) -> Result<Outcome, CliError> {
        let Cleared(scenario) = self;
        let mut outcome = scenario.run(subject)?;
        let mut device = scenario.device_run(subject, &subject.gpu)?;
        let mut gradients = scenario.gradients(1);
        for (what, bad) in [("a step", None), ("a skipped step", Some(f32::INFINITY))] {
            if let (Some(bad), Some(g)) = (bad, gradients.iter_mut().flatten().next()) {
                *g = bad;
            }
            device.step(&gradients, loss_of(1))?;
            let zeros: Vec<Vec<f32>> = gradients.iter().map(|g| vec![0.0; g.len()]).collect();
            let left = device.gradients()?;
            outcome.same_tensors(Path::Device, &format!("gradients after {what}"), &left, &zeros);
        }
        device.compare_surroundings(&mut outcome)?;
        Ok(outcome)
    }

    fn smaller(&self) -> Vec<Box<dyn Case>> {
        let smaller = self.0.smaller_scenarios().into_iter();
        smaller.map(|scenario| Box::new(Cleared(scenario)) as Box<dyn Case>).collect()
    }
}
