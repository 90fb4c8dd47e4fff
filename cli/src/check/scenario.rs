//! Scenario, the case of most families: groups that take some steps on the device and on the CPU path, compared with
//! the reference.

use wgpu_optim::gpu::Tuning;
use wgpu_optim::internals::reference::Moments;
use wgpu_optim::{
    Averaging, Checkpoint, Controls, Element, Gpu, RateFactors, Record, Regime, Rounding, Rule, Schedule, State,
    WeightDecay, wgpu,
};
use wgpu_optim_conformance::codes::{Moment, WrongCode, decoded, wrong_codes};
use wgpu_optim_conformance::oracle::Oracle;
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Setup};
use wgpu_optim_conformance::spec::{Place, Spec, lengths, packed};
use wgpu_optim_conformance::stored::{half_ulp, rounded};

use super::case::{Case, Cases, Outcome, Path, Subject, less, shorter, ulp};
use super::run::{DeviceRun, HostRun, PathRun};
use crate::CliError;

/// One group with its kind of gradients.
#[derive(Debug, Clone)]
pub struct Part {
    pub spec: Spec,
    pub gradients: Gradients,
}

/// Kind of gradients. They are a function of the group's name, the tensor, the element and the step.
#[derive(Debug, Clone, Copy)]
pub enum Gradients {
    /// Half the first parameter, plus noise in [-1, 1).
    Ordinary,
    /// One of these magnitudes with either sign, times a factor in [½, 1). The text names the list.
    Magnitudes(&'static str, &'static [f32]),
    /// Ordinary, but zero in one of three rows of this many elements, which changes with the step.
    SomeRows(usize),
    /// Multiples of ¼ up to 2. Hundreds of their squares and products can be added without rounding.
    Dyadic,
}

/// Tolerance of the parameters.
#[derive(Debug, Clone, Copy)]
pub enum Tolerance {
    /// Units in the last place of the group's largest parameter.
    OfLargest(f64),
    /// Units in the last place, for each step, of the largest number that went into the element.
    OfEach(f64),
}

/// Placement of the tensors in buffers.
#[derive(Debug, Clone, Copy)]
pub enum Layout {
    /// Parameters in one buffer and gradients in another, `gap` elements apart and starting at element `start`.
    Packed { start: usize, gap: usize },
    /// Parameters and gradients of all tensors one after the other in one buffer.
    OneBuffer { gap: usize },
}

/// Tolerance of sums and norms, and of rates and parameters after a few steps, in units of the last place. Alignments
/// and terms use the units of 1. Each step rounds a dozen times, and the errors rarely have the same sign. Correct runs
/// reach 11 on every driver that was tried.
pub const ULPS: f64 = 24.0;

/// Tolerance of rates and parameters in long runs and long tensors. Correct runs reach 94.
pub const LONG_ULPS: f64 = 200.0;

/// Number of steps that the record ring holds. Records are drained after each step.
const RECORD_STEPS: u32 = 16;

/// Offset of the steps whose gradients are used for looks. They differ from the gradients of the look's own step as
/// much as those of the next step do.
const FIRST_LOOK: usize = 1 << 16;

#[derive(Debug, Clone)]
pub struct Scenario {
    pub what: &'static str,
    pub parts: Vec<Part>,
    pub steps: usize,
    pub layout: Layout,
    pub tolerance: Tolerance,
    /// True if denormal numbers occur, which a device may flush to zero.
    pub denormals: bool,
    /// Size of a binding in bytes on a limited device. The scenario also runs on a device without this limit, and the
    /// bits must be the same.
    pub binding_bytes: Option<u64>,
    pub micro_batches: u32,
    /// True if the groups' controls change in every step.
    pub controlled: bool,
    /// True if the device clears the gradients.
    pub clears: bool,
    /// Number of ranks that run the scenario together, each with a piece of every tensor.
    pub ranks: Option<usize>,
    /// True if the passes of a step are dispatches of their own on the device, however small the case is.
    pub separate_passes: bool,
    /// Geometry, if it is not the subject's.
    pub tuning: Option<Tuning>,
    /// Function that runs and judges the scenario.
    pub judge: fn(&Scenario, &Subject) -> Result<Outcome, CliError>,
}

impl Scenario {
    /// Returns groups with ordinary gradients, compared with the reference.
    pub fn new(what: &'static str, steps: usize, specs: Vec<Spec>) -> Self {
        Scenario {
            what,
            parts: specs.into_iter().map(|spec| Part { spec, gradients: Gradients::Ordinary }).collect(),
            steps,
            layout: Layout::Packed { start: 0, gap: 0 },
            tolerance: Tolerance::OfLargest(ULPS),
            denormals: false,
            binding_bytes: None,
            micro_batches: 1,
            controlled: false,
            clears: false,
            ranks: None,
            separate_passes: false,
            tuning: None,
            judge: Scenario::against_oracle,
        }
    }

    /// Returns the scenario with gradients whose sums are not rounded.
    pub fn dyadic(mut self) -> Self {
        self.parts.iter_mut().for_each(|part| part.gradients = Gradients::Dyadic);
        self
    }

    pub fn boxed(self) -> Box<dyn Case> {
        Box::new(self)
    }

    pub fn specs(&self) -> Vec<Spec> {
        self.parts.iter().map(|part| part.spec.clone()).collect()
    }

    /// Returns the gradients of a step, counted from 1, tensor by tensor.
    pub fn gradients(&self, step: usize) -> Vec<Vec<f32>> {
        let mut gradients = Vec::new();
        for Part { spec, gradients: kind } in &self.parts {
            for (tensor, w) in spec.tensors.iter().enumerate() {
                let key = key(&spec.name, tensor);
                let values: Vec<f32> = (0..w.len()).map(|i| kind.value(key, w[i], i, step)).collect();
                // The gradients are rounded to their stored element type.
                gradients.push(rounded(spec.grads, &values));
            }
        }
        gradients
    }

    /// Returns true if a look follows each step. Several ranks do not support looks.
    fn has_looks(&self) -> bool {
        self.ranks.is_none() && self.parts.iter().any(|part| part.spec.regime.needs_looks())
    }

    fn places(&self, specs: &[Spec]) -> Vec<Place> {
        match self.layout {
            Layout::Packed { start, gap } => packed(specs, start, gap),
            Layout::OneBuffer { gap } => {
                let mut at = 0;
                let place = |len| {
                    let (params, grads) = ((0, at), (0, at + len + gap));
                    at += 2 * (len + gap);
                    Place { params, grads }
                };
                lengths(specs).map(place).collect()
            }
        }
    }

    /// Returns the scenario on a device and on the CPU path.
    pub fn runs<'a>(&self, subject: &'a Subject, gpu: &Gpu) -> Result<(DeviceRun<'a>, HostRun), CliError> {
        Ok((self.device_run(subject, gpu)?, self.host_run(&self.specs(), None)?))
    }

    pub fn device_run<'a>(&self, subject: &'a Subject, gpu: &Gpu) -> Result<DeviceRun<'a>, CliError> {
        let specs = self.specs();
        self.device_run_of(subject, gpu, &specs, self.places(&specs), None)
    }

    /// Returns some specs in some places on a device, as one of several ranks or alone.
    pub fn device_run_of<'a>(
        &self,
        subject: &'a Subject,
        gpu: &Gpu,
        specs: &[Spec],
        places: Vec<Place>,
        shard: Option<(u32, u32)>,
    ) -> Result<DeviceRun<'a>, CliError> {
        let setup = self.setup(shard);
        let told = |builder| {
            let builder = setup.tell(builder);
            if self.clears { builder.clear_gradients() } else { builder }
        };
        Ok(PathRun::new(GpuRun::try_with_room(gpu, specs, places, &[], told)?, subject.fault.as_ref()))
    }

    /// Returns some specs on the CPU path, as one of several ranks or alone.
    pub fn host_run(&self, specs: &[Spec], shard: Option<(u32, u32)>) -> Result<HostRun, CliError> {
        Ok(PathRun::new(CpuRun::try_with(specs, self.setup(shard))?, None))
    }

    fn setup(&self, shard: Option<(u32, u32)>) -> Setup {
        let (record_steps, micro_batches) = (Some(RECORD_STEPS), Some(self.micro_batches));
        Setup { record_steps, micro_batches, shard, separate_passes: self.separate_passes, ..Setup::default() }
    }

    /// Runs all steps, and returns their results.
    fn trace<R: Run>(&self, run: &mut PathRun<R>) -> Result<Trace, CliError> {
        let steps = 1..=self.steps;
        let mut checkpoints = Vec::new();
        let mut step = |step| {
            for (number, part) in self.parts.iter().enumerate().filter(|_| self.controlled) {
                run.run.try_control(Some(&part.spec.name), &|group| control(&part.spec, number, step, group))?;
            }
            let records = run.step(&self.gradients(step), loss_of(step));
            if self.parts.iter().any(|part| part.spec.state == State::Bits8) {
                checkpoints.push(run.run.checkpoint());
            }
            if self.has_looks() {
                run.look(&self.gradients(FIRST_LOOK + step))?;
            }
            records
        };
        let records = steps.map(&mut step).collect::<Result<_, _>>()?;
        let parameters = run.parameters()?;
        let mut averages = Vec::new();
        if self.parts.iter().any(|part| part.spec.averaging != Averaging::Off) {
            run.run.try_swap_averages()?;
            averages = run.parameters()?;
        }
        Ok(Trace { records, parameters, averages, checkpoints })
    }

    fn on_device(&self, subject: &Subject, gpu: &Gpu, outcome: &mut Outcome) -> Result<Trace, CliError> {
        let mut run = self.device_run(subject, gpu)?;
        let trace = self.trace(&mut run)?;
        run.compare_surroundings(outcome)?;
        Ok(trace)
    }

    /// Compares both paths with the reference.
    pub fn against_oracle(&self, subject: &Subject) -> Result<Outcome, CliError> {
        let mut outcome = Outcome::default();
        let trace = match self.binding_bytes {
            None => self.on_device(subject, &subject.gpu, &mut outcome)?,
            Some(bytes) => {
                let narrow = with_bindings(subject, bytes)?;
                let wide = subject.gpu.clone().with_tuning(narrow.tuning())?;
                let trace = self.on_device(subject, &narrow, &mut outcome)?;
                let unwindowed = self.on_device(subject, &wide, &mut outcome)?;
                let what = "parameters in many windows against one";
                outcome.same_tensors(Path::Device, what, &trace.parameters, &unwindowed.parameters);
                trace
            }
        };
        self.judge_all(Path::Device, &trace, &mut outcome);
        let trace = self.trace(&mut self.host_run(&self.specs(), None)?)?;
        self.judge_all(Path::Cpu, &trace, &mut outcome);
        Ok(outcome)
    }

    /// Returns the units that one reference computes: a group, the tensors of a group with a rate each, or all groups
    /// that share a norm.
    fn units(&self) -> Vec<Unit> {
        let mut units: Vec<Unit> = Vec::new();
        let (mut tensor, mut group) = (0, 0);
        for &Part { ref spec, gradients } in &self.parts {
            let count = spec.tensors.len();
            let tensors: Vec<usize> = (tensor..tensor + count).collect();
            tensor += count;
            if spec.per_tensor {
                for (index, &tensor) in tensors.iter().enumerate() {
                    let (tensors, shapes) = (vec![spec.tensors[index].clone()], vec![spec.shape(index)]);
                    let spec = Spec { tensors, shapes, ..spec.clone() };
                    units.push(Unit { spec, gradients, tensors: vec![tensor], groups: vec![group] });
                    group += 1;
                }
                continue;
            }
            match units.iter_mut().find(|unit| spec.norm.is_some() && unit.spec.norm == spec.norm) {
                Some(unit) => {
                    unit.spec.shapes = unit.spec.all_shapes();
                    unit.spec.shapes.extend(spec.all_shapes());
                    unit.spec.tensors.extend(spec.tensors.clone());
                    unit.tensors.extend(tensors);
                    unit.groups.push(group);
                }
                None => units.push(Unit { spec: spec.clone(), gradients, tensors, groups: vec![group] }),
            }
            group += 1;
        }
        units
    }

    /// Computes the reference for a unit. With `flushed`, denormal inputs and denormal momentum are zeros. Moments in 8
    /// bits are compared step by step: each step begins with those that the path has stored.
    fn expected(
        &self,
        unit: &Unit,
        gradients: &[Vec<Vec<f32>>],
        flushed: bool,
        checkpoints: &[Checkpoint],
    ) -> Expected {
        let flush = |x: f32| if flushed && !x.is_normal() { 0.0 } else { x };
        let mut spec = unit.spec.clone();
        spec.tensors.iter_mut().flatten().for_each(|w| *w = flush(*w));
        let mut oracle: Oracle = spec.oracle();
        oracle.flushes = flushed;
        let mut largest_gradient = vec![0f64; oracle.w.len()];
        let mut expected = Expected::default();
        let of_unit = |gradients: &[Vec<f32>]| -> Vec<f32> {
            let values = unit.tensors.iter().flat_map(|&tensor| &gradients[tensor]);
            values.map(|&g| flush(g) / self.micro_batches as f32).collect()
        };
        for (index, gradients) in gradients.iter().enumerate() {
            let gradient = of_unit(gradients);
            oracle.loss = f64::from(loss_of(index + 1));
            if self.controlled && !control_oracle(&spec, unit.groups[0], index + 1, &mut oracle) {
                expected.rates.push(f64::NAN);
                expected.rate_sizes.push(f64::NAN);
                expected.norms.push(0.0);
                expected.alignments.push((0.0, 0.0));
                continue;
            }
            let out = oracle.step(&gradient);
            if let (State::Bits8, Some(checkpoint)) = (spec.state, checkpoints.get(index)) {
                self.go_on_from_codes(unit, checkpoint, index, &mut oracle, &mut expected.wrong_codes);
            }
            if self.has_looks() {
                oracle.look(&of_unit(&self.gradients(FIRST_LOOK + index + 1)));
            }
            expected.rates.push(out.rate);
            expected.rate_sizes.push(out.rate_size);
            expected.norms.push(out.norm);
            expected.alignments.push((out.slow, out.fast));
            for (largest, g) in largest_gradient.iter_mut().zip(&gradient) {
                *largest = largest.max(f64::from(g.abs()));
            }
        }
        let largest = oracle.w.iter().fold(0.0, |a: f64, w| a.max(w.abs()));
        let rate = expected.rates.iter().copied().fold(0.0, f64::max);
        // Heavy-ball momentum is at most 1/(1-μ) times the largest gradient, and Nesterov momentum looks ahead by a factor
        // of 1+μ at most.
        let momentum = f64::from(spec.rule.momentum());
        let reach = (1.0 + momentum) / (1.0 - momentum);
        let decay = f64::from(spec.decay.coupled().max(spec.decay.decoupled()));
        let size = |((w, w_0), g): ((&f64, &f32), &f64)| match self.tolerance {
            Tolerance::OfLargest(_) => largest,
            Tolerance::OfEach(_) => {
                let w = w.abs().max(f64::from(w_0.abs()));
                let direction = match spec.rule {
                    // The first directions of RMSprop have no bias correction.
                    Rule::RmsProp(rule) => 1.0 / (1.0 - f64::from(rule.alpha)).sqrt(),
                    rule if rule.is_scale_free() => 1.0,
                    _ => reach * (g + decay * w),
                };
                w.max(rate * direction)
            }
        };
        let start = spec.tensors.iter().flatten();
        expected.sizes = oracle.w.iter().zip(start).zip(&largest_gradient).map(size).collect();
        expected.averages = oracle.average;
        expected.parameters = oracle.w;
        expected
    }

    /// Compares the codes of a unit after a step with the reference's moments, and continues the reference from the
    /// codes.
    fn go_on_from_codes(
        &self,
        unit: &Unit,
        checkpoint: &Checkpoint,
        step: usize,
        oracle: &mut Oracle,
        wrong: &mut Vec<(String, WrongCode)>,
    ) {
        let specs = self.specs();
        let names = specs.iter().flat_map(|spec| (0..spec.tensors.len()).map(|index| spec.tensor_name(index)));
        let names: Vec<String> = names.collect();
        let all_lengths: Vec<usize> = lengths(&specs).collect();
        let seed = match unit.spec.rounding {
            Rounding::Stochastic { seed } => seed,
            _ => 0,
        };
        let Moments { m, v, .. } = oracle.moments().clone();
        let [m, v] = [(Moment::First, m), (Moment::Second, v)].map(|(moment, values)| {
            let values = values?;
            // The reference may keep a moment that the rule does not have.
            if !(checkpoint.names().iter())
                .any(|name| name.starts_with(&format!("{}/{}", moment.entry(), unit.spec.name)))
            {
                return Some(values);
            }
            let (mut kept, mut at) = (Vec::new(), 0);
            for &tensor in &unit.tensors {
                let (name, length) = (&names[tensor], all_lengths[tensor]);
                let first = all_lengths[..tensor].iter().sum::<usize>() as u32;
                let values = &values[at..at + length];
                at += length;
                let found = wrong_codes(checkpoint, moment, name, values, (seed, step as u64, first));
                wrong.extend(found.into_iter().map(|wrong| {
                    let what = if wrong.is_scale { "scale of the block from" } else { "code of" };
                    let of = moment.entry();
                    (format!("{what} element {} in {of}/{name}, step {}", wrong.element, step + 1), wrong)
                }));
                kept.extend(decoded(checkpoint, moment, name)?);
            }
            Some(kept)
        });
        oracle.remember(Moments { m, v, largest_v: None });
    }

    fn judge(&self, path: Path, unit: &Unit, trace: &Trace, expected: &Expected) -> Outcome {
        let mut outcome = Outcome::default();
        let name = describe(&unit.spec, unit.gradients);
        for (what, wrong) in &expected.wrong_codes {
            outcome.near(path, || format!("{what}, {name}"), (wrong.got, wrong.expected), 1.0, 0.0);
        }
        let rate_ulps = match self.tolerance {
            Tolerance::OfLargest(ulps) => ulps,
            Tolerance::OfEach(_) => LONG_ULPS,
        };
        for (index, records) in trace.records.iter().enumerate() {
            let (step, rate) = (index + 1, expected.rates[index]);
            let norm = expected.norms[index].min(f32::MAX.into());
            for record in unit.groups.iter().map(|&group| &records[group]) {
                if record.flags.frozen() && rate.is_nan() {
                    continue;
                }
                let what = || format!("learning rate of step {step}, {name}");
                outcome.near(path, what, (record.learning_rate, rate), ulp(expected.rate_sizes[index]), rate_ulps);
                if unit.spec.regime.needs_alignment() {
                    let (slow, fast) = expected.alignments[index];
                    for (got, exact, which) in
                        [(record.slow_alignment, slow, "slow"), (record.fast_alignment, fast, "fast")]
                    {
                        let what = || format!("{which} alignment of step {step}, {name}");
                        outcome.near(path, what, (got, exact), ulp(1.0), ULPS);
                    }
                }
                let what = || format!("norm of step {step}, {name}");
                outcome.near(path, what, (unless_flushed(record.norm, norm), norm), ulp(norm), ULPS);
            }
        }
        let allowed = match self.tolerance {
            Tolerance::OfLargest(ulps) => ulps,
            Tolerance::OfEach(ulps) => ulps * self.steps as f64,
        };
        let mut compare = |kind: &str, tensors: &[Vec<f32>], exact: &[f64]| {
            let spec = &unit.spec;
            let mut exact = exact.iter().zip(&expected.sizes);
            for (number, &tensor) in unit.tensors.iter().enumerate() {
                for (element, (&got, (&exact, &size))) in tensors[tensor].iter().zip(&mut exact).enumerate() {
                    // The rounding to 16 bits is not an error: half a unit of the last place at the end, half a unit in
                    // each step, or a whole unit in each step with stochastic rounding.
                    let half_unit = |size: f64| half_ulp(spec.params, size);
                    let lost = match spec.rounding {
                        _ if spec.params == Element::F32 => 0.0,
                        Rounding::Masters => {
                            let half_unit = half_unit(f64::from(got).abs().max(exact.abs()));
                            // And a 256th of one in each step.
                            let is_short = spec.state == State::Bits8 && spec.averaging == Averaging::Off;
                            let codes = if is_short { self.steps as f64 / 128.0 } else { 0.0 };
                            half_unit * (1.0 + codes)
                        }
                        Rounding::Nearest => half_unit(size) * self.steps as f64,
                        _ => 2.0 * half_unit(size) * self.steps as f64,
                    };
                    let nearest = if lost > 0.0 { exact + (f64::from(got) - exact).clamp(-lost, lost) } else { exact };
                    let what = || format!("{kind} {element} of tensor {number}, {name}");
                    outcome.near(path, what, (unless_flushed(got, nearest), nearest), ulp(size), allowed);
                }
            }
        };
        compare("parameter", &trace.parameters, &expected.parameters);
        if !trace.averages.is_empty() {
            // Without an average, or before it starts, an exchange changes nothing.
            let averages = expected.averages.as_ref().unwrap_or(&expected.parameters);
            compare("average", &trace.averages, averages);
        }
        outcome
    }

    /// Compares the trace with the reference. With denormal numbers there are two references, and the nearer one
    /// counts.
    pub fn judge_all(&self, path: Path, trace: &Trace, outcome: &mut Outcome) {
        let gradients: Vec<Vec<Vec<f32>>> = (1..=self.steps).map(|step| self.gradients(step)).collect();
        for unit in self.units() {
            let checkpoints = &trace.checkpoints;
            let mut kept = self.judge(path, &unit, trace, &self.expected(&unit, &gradients, false, checkpoints));
            if self.denormals {
                let expected = self.expected(&unit, &gradients, true, checkpoints);
                let flushed = self.judge(path, &unit, trace, &expected);
                let note = match (kept.mismatches.is_empty(), flushed.mismatches.is_empty()) {
                    (true, false) => Some("keeps denormals"),
                    (false, true) => Some("flushes denormals"),
                    _ => None,
                };
                if flushed.share_of_allowed < kept.share_of_allowed {
                    kept = flushed;
                }
                if path == Path::Device {
                    kept.note = note.map(str::to_owned);
                }
            }
            outcome.merge(kept);
        }
    }

    /// Returns scenarios that are each smaller in one way: ranks, groups, steps, layout, tensors, lengths.
    pub fn smaller_scenarios(&self) -> Vec<Scenario> {
        let with = |change: &dyn Fn(&mut Scenario)| {
            let mut scenario = self.clone();
            change(&mut scenario);
            scenario
        };
        let fewer = 1..self.ranks.unwrap_or(1);
        let mut smaller: Vec<Scenario> = fewer.map(|ranks| with(&|case| case.ranks = Some(ranks))).collect();
        let parts = shorter(&self.parts).into_iter();
        smaller.extend(parts.map(|parts| with(&|case| case.parts = parts.clone())));
        let steps = less(self.steps, 1).into_iter();
        smaller.extend(steps.map(|steps| with(&|case| case.steps = steps)));
        if !matches!(self.layout, Layout::Packed { start: 0, gap: 0 }) {
            smaller.push(with(&|case| case.layout = Layout::Packed { start: 0, gap: 0 }));
        }
        // Lengths come last, and only for a few parts.
        for (at, part) in self.parts.iter().enumerate().take(4) {
            let tensors = shorter(&part.spec.tensors).into_iter();
            smaller.extend(tensors.map(|tensors| with(&|case| case.parts[at].spec.tensors = tensors.clone())));
            for (tensor, values) in part.spec.tensors.iter().enumerate().take(4) {
                let lengths = less(values.len(), 1).into_iter();
                smaller.extend(lengths.map(|len| with(&|case| case.parts[at].spec.tensors[tensor].truncate(len))));
            }
        }
        smaller
    }
}

impl Case for Scenario {
    fn name(&self) -> String {
        let in_words = |part: &Part| {
            let lengths = part.spec.tensors.iter().take(6).map(|tensor| tensor.len().to_string());
            let lengths = lengths.collect::<Vec<_>>().join(" + ");
            format!("{}, {lengths} elements", describe(&part.spec, part.gradients))
        };
        let mut parts: Vec<String> = self.parts.iter().take(3).map(in_words).collect();
        if self.parts.len() > parts.len() {
            parts.push(format!("{} more groups", self.parts.len() - parts.len()));
        }
        let ranks = self.ranks.map_or_else(String::new, |ranks| format!("{ranks} ranks, "));
        let binding = self.binding_bytes.map_or_else(String::new, |bytes| format!(", bindings of {bytes} bytes"));
        let layout = match self.layout {
            Layout::Packed { start: 0, gap: 0 } => String::new(),
            Layout::Packed { start, gap } => format!(", from element {start}, {gap} apart"),
            Layout::OneBuffer { .. } => ", in one buffer".to_owned(),
        };
        let geometry = self.tuning.map_or_else(String::new, |tuning| {
            let Tuning { workgroup_size, quads_per_invocation, partials, .. } = tuning;
            format!(" ({workgroup_size} x {quads_per_invocation} quads, {})", partials.name())
        });
        format!(
            "{ranks}{}, {} step{}{binding}{layout}: {}{geometry}{}",
            self.what,
            self.steps,
            if self.steps == 1 { "" } else { "s" },
            parts.join("; "),
            if self.clears { ", cleared" } else { "" }
        )
    }

    fn run(&self, subject: &Subject) -> Result<Outcome, CliError> {
        (self.judge)(self, subject)
    }

    fn smaller(&self) -> Cases {
        self.smaller_scenarios().into_iter().map(Scenario::boxed).collect()
    }
}

pub struct Trace {
    /// Records by step, then by group.
    pub records: Vec<Vec<Record>>,
    pub parameters: Vec<Vec<f32>>,
    /// Averages after an exchange, empty if no group has an average.
    pub averages: Vec<Vec<f32>>,
    /// Checkpoints after each step, empty if no group keeps its state in 8 bits.
    pub checkpoints: Vec<Checkpoint>,
}

struct Unit {
    /// Spec with all tensors of the unit.
    spec: Spec,
    gradients: Gradients,
    /// Indices of the unit's tensors among all tensors.
    tensors: Vec<usize>,
    /// Groups whose records belong to the unit.
    groups: Vec<usize>,
}

#[derive(Default)]
struct Expected {
    rates: Vec<f64>,
    rate_sizes: Vec<f64>,
    norms: Vec<f64>,
    alignments: Vec<(f64, f64)>,
    parameters: Vec<f64>,
    averages: Option<Vec<f64>>,
    /// Size whose last place is the unit of error, for each parameter.
    sizes: Vec<f64>,
    /// Codes and scales that do not match the moments.
    wrong_codes: Vec<(String, WrongCode)>,
}

impl Gradients {
    pub fn value(self, key: u64, first_parameter: f32, element: usize, step: usize) -> f32 {
        let noise = pseudo_random(key, element, step);
        match self {
            Gradients::SomeRows(columns) if (element / columns + step).is_multiple_of(3) => 0.0,
            Gradients::Ordinary | Gradients::SomeRows(_) => 0.5 * first_parameter + noise,
            Gradients::Magnitudes(_, magnitudes) => {
                let share = 0.75 + 0.25 * pseudo_random(key ^ 1, element, step);
                (magnitudes[element % magnitudes.len()] * share).copysign(noise)
            }
            Gradients::Dyadic => (noise * 8.0).round() / 4.0,
        }
    }
}

/// Returns the number, or the exact one if that is denormal and was flushed to zero, which is allowed.
fn unless_flushed(got: f32, exact: f64) -> f64 {
    if got == 0.0 && exact.abs() < f64::from(f32::MIN_POSITIVE) { exact } else { got.into() }
}

/// Returns the controls of a group before a step: a factor of the rate, a factor of decay and clip, and whether it is
/// frozen.
fn controls_of(number: usize, step: usize) -> (f32, f32, bool) {
    let turn = number + step;
    ([1.0, 0.5, 3.0][turn % 3], [1.0, 0.25][turn % 2], turn % 4 == 3)
}

fn control(spec: &Spec, number: usize, step: usize, controls: &mut Controls) {
    let (factor, share, frozen) = controls_of(number, step);
    controls.learning_rate_factor = factor;
    controls.weight_decay = share * spec.decay.coupled().max(spec.decay.decoupled());
    controls.clip_norm = share * spec.clip;
    controls.frozen = frozen;
}

/// Applies the same controls to the reference. Returns false if the group takes no part in the step.
fn control_oracle(spec: &Spec, number: usize, step: usize, oracle: &mut Oracle) -> bool {
    let (factor, share, frozen) = controls_of(number, step);
    oracle.factor = f64::from(factor);
    oracle.decay = match spec.decay {
        WeightDecay::Coupled(lambda) => WeightDecay::Coupled(share * lambda),
        WeightDecay::Decoupled(lambda) => WeightDecay::Decoupled(share * lambda),
    };
    oracle.clip = f64::from(share * spec.clip);
    if frozen {
        oracle.last_factor = oracle.factor;
    }
    !frozen
}

/// Describes a group.
pub fn describe(spec: &Spec, gradients: Gradients) -> String {
    let decay = match spec.decay {
        WeightDecay::Coupled(0.0) => None,
        WeightDecay::Coupled(lambda) => Some(format!("decay {lambda}")),
        WeightDecay::Decoupled(lambda) => Some(format!("decoupled decay {lambda}")),
    };
    let is_half = spec.params != Element::F32;
    let (params, grads) = (spec.params.name(), spec.grads.name());
    let stored = is_half || spec.grads != Element::F32;
    let words = [
        Some(spec.rule.name().to_owned()),
        Some(spec.regime.name().to_owned()),
        decay,
        spec.clip.is_finite().then(|| format!("clip {}", spec.clip)),
        spec.maximize.then(|| "maximize".to_owned()),
        (spec.schedule != Schedule::Constant).then(|| format!("schedule {}", spec.schedule.name())),
        spec.rate_factors.as_ref().map(|factors| match factors {
            RateFactors::Rows(_) => "factors of rows".to_owned(),
            _ => "factors of columns".to_owned(),
        }),
        spec.lazy_rows.then(|| "lazy rows".to_owned()),
        (spec.averaging != Averaging::Off).then(|| format!("average {}", spec.averaging.name())),
        spec.per_tensor.then(|| "a rate per tensor".to_owned()),
        spec.norm.is_some().then(|| "a shared norm".to_owned()),
        stored.then(|| format!("{params} parameters, {grads} gradients")),
        is_half.then(|| format!("rounding {}", spec.rounding.name())),
        (spec.state != State::F32).then(|| format!("{} state", spec.state.name())),
        match gradients {
            Gradients::Magnitudes(name, _) => Some(format!("gradients of {name}")),
            Gradients::SomeRows(_) => Some("rows without gradients".to_owned()),
            Gradients::Ordinary | Gradients::Dyadic => None,
        },
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Returns a group whose tensors have these lengths. The parameters are a function of its name.
pub fn group(name: impl Into<String>, rule: Rule, regime: Regime, lengths: &[usize]) -> Spec {
    let name = name.into();
    let values = |(tensor, &len)| {
        let key = key(&name, tensor);
        (0..len).map(|i| pseudo_random(key, i, 0)).collect()
    };
    let tensors = lengths.iter().enumerate().map(values).collect();
    Spec::new(rule, regime, tensors).named(name)
}

/// Returns the loss of a step. It falls with some noise, and every eighth loss is below the smallest possible one.
pub fn loss_of(step: usize) -> f32 {
    if step.is_multiple_of(8) { -0.5 } else { (3.0 + pseudo_random(0, 0, step)) / step as f32 }
}

/// Returns the FNV-1a hash of a group's name and the index of a tensor in it.
fn key(name: &str, tensor: usize) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ tensor as u64;
    name.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Returns a number in [-1, 1) from a hash of the tensor, the element and the step.
fn pseudo_random(key: u64, element: usize, step: usize) -> f32 {
    let mut x = key ^ ((element as u64) << 20 | step as u64);
    for _ in 0..2 {
        x = (x ^ (x >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    (x >> 40) as f32 / 8_388_608.0 - 1.0
}

/// Returns a device on the same adapter whose bindings are limited to this many bytes. Bindings must be able to hold
/// the partial sums of a block.
fn with_bindings(subject: &Subject, bytes: u64) -> Result<Gpu, CliError> {
    let (device, queue) = pollster::block_on(subject.adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("narrow bindings"),
        required_features: subject.adapter.features() & wgpu::Features::SUBGROUP,
        required_limits: wgpu::Limits { max_storage_buffer_binding_size: bytes, ..subject.adapter.limits() },
        ..Default::default()
    }))
    .map_err(|error| {
        CliError::Failed(format!("the driver refuses a device with bindings of {bytes} bytes: {error}"))
    })?;
    let mut tuning = subject.gpu.tuning();
    tuning.quads_per_invocation = tuning.quads_per_invocation.max(64);
    Ok(Gpu::from_parts(device, queue).with_tuning(tuning)?)
}
