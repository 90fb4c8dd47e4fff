//! Repeats: the same steps, recorded in other ways, have the same bits.

use wgpu_optim::{Record, Regime, Rule};
use wgpu_optim_conformance::spec::Spec;

use super::case::{Case, Outcome, Path, Subject};
use super::scenario::{Scenario, loss_of, with_lengths};
use crate::CliError;

const STEPS: usize = 5;

/// How the steps reach the device.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// A submit for each.
    Apart,
    /// All in one encoder.
    OneEncoder,
    /// All in one compute pass.
    OnePass,
    /// Command buffers that were all recorded before the first was submitted.
    RecordedAhead,
    /// Dispatch by dispatch, by a caller with an encoder of their own.
    ByHand,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Apart => "the same once more",
            Way::OneEncoder => "all steps in one encoder",
            Way::OnePass => "all steps in one pass",
            Way::RecordedAhead => "command buffers recorded ahead",
            Way::ByHand => "dispatches recorded one by one",
        }
    }
}

/// Runs that must agree to the bit.
#[derive(Clone)]
struct Repeat(Scenario);

pub fn cases(_: &Subject) -> Vec<Box<dyn Case>> {
    let specs = [
        Spec::new(Rule::sgd(), Regime::seesaw(), Vec::new()),
        Spec::new(Rule::sgdm(0.9), Regime::seesaw(), Vec::new()),
        Spec::new(Rule::adamw(), Regime::seesaw(), Vec::new()),
        Spec::new(Rule::sign_sgd(), Regime::norm_ratio(), Vec::new()),
    ];
    let specs = specs
        .into_iter()
        .map(|spec| {
            let name = spec.rule.name();
            // Whole quads, for which half as many kernels are compiled, six times over.
            with_lengths(spec.named(name), &[20_004, 64, 4])
        })
        .collect();
    vec![Box::new(Repeat(Scenario::new("repeats", STEPS, specs)))]
}

impl Repeat {
    fn run_as(&self, subject: &Subject, way: Way) -> Result<Done, CliError> {
        let Repeat(scenario) = self;
        let steps = scenario.steps;
        let mut run = scenario.device_run(subject, &subject.gpu)?;
        // Once for all steps.
        run.write(&scenario.gradients(1), loss_of(1));
        match way {
            Way::Apart => {
                for _ in 0..steps {
                    let mut encoder = run.encoder();
                    run.optimizer().encode_step(&mut encoder)?;
                    run.submit([encoder]);
                }
            }
            Way::OneEncoder => {
                let mut encoder = run.encoder();
                for _ in 0..steps {
                    run.optimizer().encode_step(&mut encoder)?;
                }
                run.submit([encoder]);
            }
            Way::OnePass => {
                let mut encoder = run.encoder();
                {
                    let mut pass = encoder.begin_compute_pass(&Default::default());
                    for _ in 0..steps {
                        run.optimizer().encode_step_in(&mut pass)?;
                    }
                }
                run.submit([encoder]);
            }
            Way::RecordedAhead => {
                let encoders = (0..steps)
                    .map(|_| {
                        let mut encoder = run.encoder();
                        run.optimizer().encode_step(&mut encoder)?;
                        Ok(encoder)
                    })
                    .collect::<Result<Vec<_>, CliError>>()?;
                run.submit(encoders);
            }
            Way::ByHand => {
                for _ in 0..steps {
                    run.run_passes(|_| true);
                }
            }
        }
        run.count(steps);
        Ok(Done { records: run.records()?, rates: run.rates()?, parameters: run.parameters()? })
    }
}

/// What a run left.
struct Done {
    records: Vec<Record>,
    rates: Vec<f32>,
    parameters: Vec<Vec<f32>>,
}

impl Case for Repeat {
    fn name(&self) -> String {
        self.0.name()
    }

    fn run(&self, subject: &Subject) -> Result<Outcome, CliError> {
        let mut outcome = Outcome::default();
        let first = self.run_as(subject, Way::Apart)?;
        outcome.same(
            Path::Device,
            || "records of as many steps".to_owned(),
            first.records.len(),
            self.0.steps * first.rates.len(),
        );
        for way in [Way::Apart, Way::OneEncoder, Way::OnePass, Way::RecordedAhead, Way::ByHand] {
            let again = self.run_as(subject, way)?;
            let what = format!("{} against a submit for each step", way.name());
            for (group, (&got, &expected)) in again.rates.iter().zip(&first.rates).enumerate() {
                outcome.same_bits(Path::Device, || format!("{what}, learning rate of group {group}"), got, expected);
            }
            let what_records = format!("{what}, records");
            outcome.same(Path::Device, || what_records, format!("{:?}", again.records), format!("{:?}", first.records));
            outcome.same_tensors(Path::Device, &what, &again.parameters, &first.parameters);
        }
        Ok(outcome)
    }

    fn smaller(&self) -> Vec<Box<dyn Case>> {
        self.0.smaller_scenarios().into_iter().map(|scenario| Box::new(Repeat(scenario)) as Box<dyn Case>).collect()
    }
}
