//! NaN and infinities of every sign and payload, at the first, the middle and the last element of every tensor, and as the loss: the
//! step is skipped bit for bit, on the device as on the CPU path, and the record names the element.

use wgpu_optim::{Record, Regime, Rule, WeightDecay};
use wgpu_optim_conformance::spec::{Spec, lengths, without_counts};

use super::case::{Case, Outcome, Path, Subject, less, shorter};
use super::run::{DeviceRun, HostRun};
use super::scenario::{Scenario, loss_of, with_lengths};
use crate::CliError;

/// Every kind of f32 that is not finite.
const BITS: [u32; 10] = [
    0x7f80_0000, // +inf
    0xff80_0000, // -inf
    0x7fc0_0000, // the quiet NaN
    0xffc0_0000, // negative
    0x7f80_0001, // signalling, the least payload
    0xff80_0001, // signalling, negative
    0x7fff_ffff, // the largest payload
    0xffff_ffff, // negative
    0x7fa5_a5a5, // signalling, a payload
    0xffd5_5555, // negative, a payload
];

#[derive(Debug, Clone, Copy)]
enum Position {
    First,
    Middle,
    Last,
}

#[derive(Debug, Clone, Copy)]
enum Bad {
    Element { tensor: usize, position: Position },
    Loss,
}

fn in_words(bad: Bad, bits: u32) -> String {
    match bad {
        Bad::Loss => format!("{bits:08x} as the loss"),
        Bad::Element { tensor, position } => {
            let position = match position {
                Position::First => "first",
                Position::Middle => "middle",
                Position::Last => "last",
            };
            format!("{bits:08x} as the {position} gradient of tensor {tensor}")
        }
    }
}

/// Good steps, then bad ones, then a good one.
#[derive(Clone)]
struct Skipping {
    /// Its steps are those before the bad ones.
    scenario: Scenario,
    bad: Vec<(Bad, u32)>,
}

pub fn cases(subject: &Subject) -> Vec<Box<dyn Case>> {
    // Several blocks, where they are not huge.
    let block = (subject.gpu.tuning().block_elements() as usize).min(1 << 14);
    let group = |rule, regime, name: &str, lengths: &[usize]| {
        with_lengths(Spec::new(rule, regime, Vec::new()).named(name), lengths)
    };
    let specs = vec![
        group(Rule::sgd(), Regime::seesaw(), "counters", &[block + 809, 7]),
        Spec {
            decay: WeightDecay::Coupled(0.1),
            clip: 3.0,
            ..group(Rule::sgdm(0.9), Regime::seesaw(), "momentum", &[130])
        },
        group(Rule::adamw(), Regime::seesaw(), "two moments", &[61]),
        group(Rule::sign_sgd(), Regime::fixed(0.01), "plain", &[5]),
        group(Rule::sgd(), Regime::polyak(), "by the loss", &[33]),
    ];
    let tensors = lengths(&specs).count();
    let mut bad: Vec<(Bad, u32)> = Vec::new();
    for tensor in [0, tensors / 2, tensors - 1] {
        for position in [Position::First, Position::Middle, Position::Last] {
            bad.extend(BITS.map(|bits| (Bad::Element { tensor, position }, bits)));
        }
    }
    bad.extend(BITS.map(|bits| (Bad::Loss, bits)));
    // Before the first step, and where every state has been written.
    let case = |steps| {
        Box::new(Skipping { scenario: Scenario::new("not finite", steps, specs.clone()), bad: bad.clone() })
            as Box<dyn Case>
    };
    [0, 3].map(case).into()
}

/// A step to be skipped.
struct BadStep {
    gradients: Vec<Vec<f32>>,
    loss: f32,
    /// What its record must name: tensor and element, or nothing where it is the loss.
    place: Option<(usize, u64)>,
}

impl Skipping {
    /// `None` where the case has become too small to have it.
    fn bad_step(&self, bad: Bad, bits: u32, step: usize) -> Option<BadStep> {
        let mut gradients = self.scenario.gradients(step);
        let value = f32::from_bits(bits);
        match bad {
            Bad::Loss => {
                let mut parts = self.scenario.parts.iter();
                let heard = parts.any(|part| part.spec.regime.needs_loss());
                heard.then_some(BadStep { gradients, loss: value, place: None })
            }
            Bad::Element { tensor, position } => {
                let tensor_values = gradients.get_mut(tensor)?;
                let last = tensor_values.len().checked_sub(1)?;
                let element = match position {
                    Position::First => 0,
                    Position::Middle => last / 2,
                    Position::Last => last,
                };
                tensor_values[element] = value;
                Some(BadStep { gradients, loss: loss_of(step), place: Some((tensor, element as u64)) })
            }
        }
    }
}

fn judge_records(
    outcome: &mut Outcome,
    path: Path,
    what: &str,
    records: &[Record],
    skipped: u32,
    place: Option<(usize, u64)>,
) {
    for record in records {
        let found = (
            record.flags.skipped(),
            record.flags.nonfinite_loss(),
            record.skipped,
            record.nonfinite.map(|found| (found.count, found.tensor, found.element)),
        );
        let expected = (true, place.is_none(), skipped, place.map(|(tensor, element)| (1, tensor, element)));
        outcome.same(
            path,
            || format!("{what}: skipped, by the loss, times, (elements, tensor, element)"),
            found,
            expected,
        );
    }
}

impl Case for Skipping {
    fn name(&self) -> String {
        let bad = match &self.bad[..] {
            &[(bad, bits)] => in_words(bad, bits),
            all => format!("{} bad steps", all.len()),
        };
        format!("{bad} after: {}", self.scenario.name())
    }

    fn run(&self, subject: &Subject) -> Result<Outcome, CliError> {
        let mut outcome = Outcome::default();
        let scenario = &self.scenario;
        let mut host = HostRun::new(&scenario.specs(), scenario.told())?;
        let mut device: DeviceRun = scenario.device_run(subject, &subject.gpu)?;
        let mut undisturbed: DeviceRun = scenario.device_run(subject, &subject.gpu)?;
        for step in 1..=scenario.steps {
            let (gradients, loss) = (scenario.gradients(step), loss_of(step));
            host.step(&gradients, loss)?;
            device.step(&gradients, loss)?;
            undisturbed.step(&gradients, loss)?;
        }
        let before = (device.parameters()?, without_counts(&device.states()?), device.rates()?);
        let host_before = (host.parameters(), without_counts(host.states()));
        let next = scenario.steps + 1;
        let mut skipped = 0;
        for &(bad, bits) in &self.bad {
            let Some(BadStep { gradients, loss, place }) = self.bad_step(bad, bits, next) else {
                continue;
            };
            skipped += 1;
            let what = in_words(bad, bits);
            let records = device.step(&gradients, loss)?;
            judge_records(&mut outcome, Path::Device, &what, &records, skipped, place);
            outcome.same_tensors(Path::Device, &what, &device.parameters()?, &before.0);
            let records = host.step(&gradients, loss)?;
            judge_records(&mut outcome, Path::Cpu, &what, &records, skipped, place);
            outcome.same_tensors(Path::Cpu, &what, &host.parameters(), &host_before.0);
        }
        let states = || "states after all bad steps".to_owned();
        let after = without_counts(&device.states()?);
        outcome.same(Path::Device, states, after, before.1);
        outcome.same(Path::Cpu, states, without_counts(host.states()), host_before.1);
        let rates = || "learning rates after all bad steps".to_owned();
        outcome.same(Path::Device, rates, device.rates()?, before.2);
        // Momentum and counters show in the step that follows.
        let (gradients, loss) = (scenario.gradients(next), loss_of(next));
        device.step(&gradients, loss)?;
        undisturbed.step(&gradients, loss)?;
        outcome.same_tensors(
            Path::Device,
            "the step after all bad ones, against one without them",
            &device.parameters()?,
            &undisturbed.parameters()?,
        );
        Ok(outcome)
    }

    fn smaller(&self) -> Vec<Box<dyn Case>> {
        let mut smaller: Vec<Skipping> =
            shorter(&self.bad).into_iter().take(2).map(|bad| Skipping { bad, ..self.clone() }).collect();
        let with = |change: &dyn Fn(&mut Scenario)| {
            let mut case = self.clone();
            change(&mut case.scenario);
            case
        };
        let steps = less(self.scenario.steps, 0).into_iter();
        smaller.extend(steps.map(|steps| with(&|scenario| scenario.steps = steps)));
        // Groups from the end, so that tensors keep their numbers.
        if self.scenario.parts.len() > 1 {
            smaller.push(with(&|scenario| drop(scenario.parts.pop())));
        }
        for (part, tensors) in self.scenario.parts.iter().map(|p| &p.spec.tensors).enumerate() {
            for (tensor, values) in tensors.iter().enumerate() {
                let lengths = less(values.len(), 1).into_iter();
                smaller.extend(
                    lengths.map(|len| with(&|scenario| scenario.parts[part].spec.tensors[tensor].truncate(len))),
                );
            }
        }
        smaller.into_iter().map(|case| Box::new(case) as Box<dyn Case>).collect()
    }
}
