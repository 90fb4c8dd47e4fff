//! Repeats: the same steps, recorded in different ways, have the same bits.

use wgpu_optim::{Record, Regime, Rule};
use wgpu_optim_conformance::run::Run;

use super::case::{Cases, Outcome, Path, Subject};
use super::scenario::{Scenario, group, loss_of};
use crate::CliError;

const STEPS: usize = 5;

/// How the steps are recorded and submitted.
#[derive(Debug, Clone, Copy)]
enum Way {
    Apart,
    OneEncoder,
    OnePass,
    /// All command buffers are recorded before the first one is submitted.
    RecordedAhead,
    /// The caller records the dispatches one by one.
    ByHand,
}

const WAYS: [(Way, &str); 5] = [
    (Way::Apart, "the same once more"),
    (Way::OneEncoder, "all steps in one encoder"),
    (Way::OnePass, "all steps in one pass"),
    (Way::RecordedAhead, "command buffers recorded ahead"),
    (Way::ByHand, "dispatches recorded one by one"),
];

pub fn cases(_: &Subject) -> Cases {
    let specs = [
        (Rule::sgd(), Regime::seesaw()),
        (Rule::sgdm(0.9), Regime::seesaw()),
        (Rule::adamw(), Regime::seesaw()),
        (Rule::sign_sgd(), Regime::norm_ratio()),
    ];
    // Whole quads need half as many kernels, and these are compiled six times.
    let specs = specs.map(|(rule, regime)| group(rule.name(), rule, regime, &[20_004, 64, 4]));
    vec![Scenario { judge: compare_ways, ..Scenario::new("repeats", STEPS, specs.into()) }.boxed()]
}

struct Done {
    records: Vec<Record>,
    rates: Vec<f32>,
    parameters: Vec<Vec<f32>>,
}

fn run_as(scenario: &Scenario, subject: &Subject, way: Way) -> Result<Done, CliError> {
    let steps = scenario.steps;
    let mut device = scenario.device_run(subject, &subject.gpu)?;
    // The same gradients are used for all steps.
    device.write(&scenario.gradients(1), loss_of(1));
    let optimizer = &device.run.optimizer;
    let mut encoder = device.run.encoder();
    match way {
        Way::Apart => {
            for _ in 0..steps {
                let mut encoder = device.run.encoder();
                optimizer.encode_step(&mut encoder)?;
                device.submit([encoder]);
            }
        }
        Way::OneEncoder => (0..steps).try_for_each(|_| optimizer.encode_step(&mut encoder))?,
        Way::OnePass => {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            (0..steps).try_for_each(|_| optimizer.encode_step_in(&mut pass))?;
        }
        Way::RecordedAhead => {
            let record = |_| {
                let mut encoder = device.run.encoder();
                optimizer.encode_step(&mut encoder)?;
                Ok(encoder)
            };
            device.submit((0..steps).map(record).collect::<Result<Vec<_>, CliError>>()?);
        }
        Way::ByHand => (0..steps).for_each(|_| device.run_passes(|_| true)),
    }
    device.submit([encoder]);
    let (records, rates) = (device.run.try_records()?.records, device.run.try_rates()?);
    Ok(Done { records, rates, parameters: device.parameters()? })
}

/// Compares runs that must agree bit for bit.
fn compare_ways(scenario: &Scenario, subject: &Subject) -> Result<Outcome, CliError> {
    let mut outcome = Outcome::default();
    let first = run_as(scenario, subject, Way::Apart)?;
    let what = || "records of as many steps".to_owned();
    outcome.same(Path::Device, what, first.records.len(), scenario.steps * first.rates.len());
    for (way, name) in WAYS {
        let again = run_as(scenario, subject, way)?;
        let what = format!("{name} against a submit for each step");
        for (group, (&got, &expected)) in again.rates.iter().zip(&first.rates).enumerate() {
            outcome.same_bits(Path::Device, || format!("{what}, learning rate of group {group}"), got, expected);
        }
        let records = || format!("{what}, records");
        outcome.same(Path::Device, records, format!("{:?}", again.records), format!("{:?}", first.records));
        outcome.same_tensors(Path::Device, &what, &again.parameters, &first.parameters);
    }
    Ok(outcome)
}
