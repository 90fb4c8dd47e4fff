//! NaN and infinities with every sign and payload, at the first, the middle and the last element of every tensor, and
//! as the loss. The step must be skipped bit for bit on the device and on the CPU path, and the record must name the
//! element.

use wgpu_optim::{Record, Regime, Rule, WeightDecay};
use wgpu_optim_conformance::NOT_FINITE;
use wgpu_optim_conformance::run::Run;
use wgpu_optim_conformance::spec::{Spec, lengths, without_counts};

use super::case::{Case, Cases, Outcome, Path, Subject, less, shorter};
use super::scenario::{Scenario, group, loss_of};
use crate::CliError;

/// Position of the non-finite element in its tensor, in halves of the tensor's length.
const POSITIONS: [(&str, usize); 3] = [("first", 0), ("middle", 1), ("last", 2)];

#[derive(Debug, Clone, Copy)]
enum Bad {
    /// An element of a tensor, with its index in [`POSITIONS`].
    Element {
        tensor: usize,
        position: usize,
    },
    Loss,
}

fn in_words(bad: Bad, bits: u32) -> String {
    match bad {
        Bad::Loss => format!("{bits:08x} as the loss"),
        Bad::Element { tensor, position } => {
            format!("{bits:08x} as the {} gradient of tensor {tensor}", POSITIONS[position].0)
        }
    }
}

/// Case with good steps, then steps to be skipped, then a good step.
#[derive(Clone)]
struct Skipping {
    /// Scenario whose steps come before the skipped ones.
    scenario: Scenario,
    bad: Vec<(Bad, u32)>,
}

pub fn cases(subject: &Subject) -> Cases {
    // The tensors have several blocks unless blocks are huge.
    let block = (subject.gpu.tuning().block_elements() as usize).min(1 << 14);
    let momentum = group("momentum", Rule::sgdm(0.9), Regime::seesaw(), &[130]);
    let specs = vec![
        group("counters", Rule::sgd(), Regime::seesaw(), &[block + 809, 7]),
        Spec { decay: WeightDecay::Coupled(0.1), clip: 3.0, ..momentum },
        group("two moments", Rule::adamw(), Regime::seesaw(), &[61]),
        group("plain", Rule::sign_sgd(), Regime::fixed(0.01), &[5]),
        group("by the loss", Rule::sgd(), Regime::polyak(), &[33]),
    ];
    let tensors = lengths(&specs).count();
    let mut bad: Vec<(Bad, u32)> = Vec::new();
    for tensor in [0, tensors / 2, tensors - 1] {
        for position in 0..POSITIONS.len() {
            bad.extend(NOT_FINITE.map(|bits| (Bad::Element { tensor, position }, bits)));
        }
    }
    bad.extend(NOT_FINITE.map(|bits| (Bad::Loss, bits)));
    // One scenario begins with the skipped steps, and the other after every state has been written.
    let scenarios = [0, 3].map(|steps| Scenario::new("not finite", steps, specs.clone()));
    boxed(scenarios.map(|scenario| Skipping { scenario, bad: bad.clone() }))
}

fn boxed(cases: impl IntoIterator<Item = Skipping>) -> Cases {
    cases.into_iter().map(|case| Box::new(case) as Box<dyn Case>).collect()
}

/// Step that must be skipped.
struct BadStep {
    gradients: Vec<Vec<f32>>,
    loss: f32,
    /// Tensor and element that the record must name, or `None` for the loss.
    place: Option<(usize, u64)>,
}

impl Skipping {
    /// Returns the step, or `None` if the case has become too small for it.
    fn bad_step(&self, bad: Bad, bits: u32, step: usize) -> Option<BadStep> {
        let mut gradients = self.scenario.gradients(step);
        let value = f32::from_bits(bits);
        match bad {
            Bad::Loss => {
                let heard = self.scenario.parts.iter().any(|part| part.spec.regime.needs_loss());
                heard.then_some(BadStep { gradients, loss: value, place: None })
            }
            Bad::Element { tensor, position } => {
                let tensor_values = gradients.get_mut(tensor)?;
                let last = tensor_values.len().checked_sub(1)?;
                let element = last * POSITIONS[position].1 / 2;
                tensor_values[element] = value;
                Some(BadStep { gradients, loss: loss_of(step), place: Some((tensor, element as u64)) })
            }
        }
    }
}

/// Compares the record of a skipped step: the reason, the number of skips, and the only element that is not finite.
fn judge_record(outcome: &mut Outcome, path: Path, what: &str, record: &Record, skipped: u32, bad: &BadStep) {
    let flags = record.flags;
    let nonfinite = record.nonfinite.map(|found| (found.count, found.tensor, found.element));
    let found = (flags.skipped(), flags.nonfinite_loss(), record.skipped, nonfinite);
    let expected = (true, bad.place.is_none(), skipped, bad.place.map(|(tensor, element)| (1, tensor, element)));
    let what = || format!("{what}: skipped, by the loss, times, (elements, tensor, element)");
    outcome.same(path, what, found, expected);
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
        let (mut device, mut host) = scenario.runs(subject, &subject.gpu)?;
        let mut undisturbed = scenario.device_run(subject, &subject.gpu)?;
        for step in 1..=scenario.steps {
            let (gradients, loss) = (scenario.gradients(step), loss_of(step));
            host.step(&gradients, loss)?;
            device.step(&gradients, loss)?;
            undisturbed.step(&gradients, loss)?;
        }
        let before = (device.parameters()?, without_counts(&device.run.try_states()?), device.run.try_rates()?);
        let host_before = (host.parameters()?, without_counts(&host.run.states()));
        let next = scenario.steps + 1;
        let mut skipped = 0;
        for &(bad, bits) in &self.bad {
            let Some(step) = self.bad_step(bad, bits, next) else {
                continue;
            };
            skipped += 1;
            let what = in_words(bad, bits);
            for record in device.step(&step.gradients, step.loss)? {
                judge_record(&mut outcome, Path::Device, &what, &record, skipped, &step);
            }
            outcome.same_tensors(Path::Device, &what, &device.parameters()?, &before.0);
            for record in host.step(&step.gradients, step.loss)? {
                judge_record(&mut outcome, Path::Cpu, &what, &record, skipped, &step);
            }
            outcome.same_tensors(Path::Cpu, &what, &host.parameters()?, &host_before.0);
        }
        let states = || "states after all bad steps".to_owned();
        outcome.same(Path::Device, states, without_counts(&device.run.try_states()?), before.1);
        outcome.same(Path::Cpu, states, without_counts(&host.run.states()), host_before.1);
        let rates = || "learning rates after all bad steps".to_owned();
        outcome.same(Path::Device, rates, device.run.try_rates()?, before.2);
        // The next step shows changes of momentum and counters.
        let (gradients, loss) = (scenario.gradients(next), loss_of(next));
        device.step(&gradients, loss)?;
        undisturbed.step(&gradients, loss)?;
        let what = "the step after all bad ones, against one without them";
        outcome.same_tensors(Path::Device, what, &device.parameters()?, &undisturbed.parameters()?);
        Ok(outcome)
    }

    fn smaller(&self) -> Cases {
        let mut smaller: Vec<Skipping> =
            shorter(&self.bad).into_iter().take(2).map(|bad| Skipping { bad, ..self.clone() }).collect();
        let with = |change: &dyn Fn(&mut Scenario)| {
            let mut case = self.clone();
            change(&mut case.scenario);
            case
        };
        let steps = less(self.scenario.steps, 0).into_iter();
        smaller.extend(steps.map(|steps| with(&|scenario| scenario.steps = steps)));
        // Groups are removed from the end, so that tensors keep their indices.
        if self.scenario.parts.len() > 1 {
            smaller.push(with(&|scenario| drop(scenario.parts.pop())));
        }
        for (part, tensors) in self.scenario.parts.iter().map(|p| &p.spec.tensors).enumerate() {
            for (tensor, values) in tensors.iter().enumerate() {
                let lengths = less(values.len(), 1).into_iter();
                let shorter = |len| with(&|scenario| scenario.parts[part].spec.tensors[tensor].truncate(len));
                smaller.extend(lengths.map(shorter));
            }
        }
        boxed(smaller)
    }
}
