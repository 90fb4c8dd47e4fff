//! Tests of `LossScaler`: with any scale the parameters, rates and records have the bits that they have without a scaler. The norm is right for
//! scaled gradients of any size. As in `torch.amp.GradScaler`, gradients that are not finite halve the scale and good steps double it, within its
//! bounds. The gradients of a step are divided by the scale that they were computed with, also within one submit.
//!
//! Each of these faults was introduced by hand once and made a test fail: pass 4 that divides by the next scale, a norm whose exponent is not
//! adjusted, and a count of good steps that is not reset by a skipped step.

use wgpu_optim::internals::layout::GroupState;
use wgpu_optim::{LossScaler, Regime, Rule, WeightDecay};
use wgpu_optim_conformance::run::{Run, Setup, Spec, bits, devices, every_path_with, gpu_run_with};
use wgpu_optim_conformance::{Kernel, Numbers, assert_close, noise, submit_pass, tensors, times, upload};

use crate::helpers::{pairs_with, rules_and_regimes};

/// Returns groups with every rule and kind of state, in turn without decay, with decay, and with decay and a clip.
fn specs() -> Vec<Spec> {
    let mut specs = Vec::new();
    for (i, (rule, regime)) in rules_and_regimes().into_iter().enumerate() {
        let spec = Spec::new(rule, regime, tensors(1 + i as u64, &[67]));
        specs.push(Spec {
            decay: WeightDecay::Coupled(if i % 3 > 0 { 0.1 } else { 0.0 }),
            clip: if i % 3 > 1 { 3.0 } else { f32::INFINITY },
            ..spec.named(format!("{rule:?} {regime:?}"))
        });
    }
    specs[1].maximize = true;
    specs
}

fn without_scale(states: Vec<GroupState>) -> Vec<GroupState> {
    states.into_iter().map(|state| GroupState { loss_scale_exponent: 0, good_steps: 0, ..state }).collect()
}

#[test]
fn with_any_scale_the_bits_are_those_without() {
    let all = specs();
    // One scale changes between the steps, the other one is very large.
    let growing = LossScaler { initial_scale: 1.0, growth_interval: 2, ..LossScaler::default() };
    let far = LossScaler::fixed(2f32.powi(100));
    for (scaler, specs) in [(growing, &all[..]), (far, &all[..4])] {
        let setup = Setup { scaler: Some(scaler), ..Setup::default() };
        for (mut plain, mut scaled) in pairs_with((specs, Setup::default()), (specs, setup)) {
            for t in 0..6 {
                let grads = noise(specs, 2 + t);
                let scale = scaled.loss_scale();
                plain.step(&grads);
                scaled.step(&times(scale, &grads));
                let what = format!("{}, step {t}, scale {scale}", plain.path());
                let (mut without, mut with) = (plain.records(), scaled.records());
                for record in &mut with.records {
                    assert_eq!(record.loss_scale, scale, "{what}");
                    assert_eq!(record.flags.scale_changed(), scaler == growing && t % 2 == 1, "{what}");
                    record.loss_scale = 1.0;
                    record.flags = without.records[record.group].flags;
                }
                for (a, b) in without.records.iter_mut().zip(&mut with.records) {
                    let name = &specs[a.group].name;
                    assert_eq!(a, b, "{what}: {name}");
                }
                for ((spec, a), b) in specs.iter().zip(plain.params()).zip(scaled.params()) {
                    assert!(bits(&[a]) == bits(&[b]), "{what}: {}", spec.name);
                }
                assert_eq!(without_scale(plain.states()), without_scale(scaled.states()), "{what}");
            }
        }
    }
}

/// The norm is right for scaled gradients from the smallest normal f32 to the largest, also where the true norm underflows f32.
#[test]
fn the_norm_is_right_for_scaled_gradients_of_any_size() {
    let decayed = Spec {
        decay: WeightDecay::Coupled(0.5),
        ..Spec::new(Rule::sgdm(0.9), Regime::fixed(0.1), vec![vec![0.0; 200]]).named("decayed")
    };
    let clipped = Spec { clip: 1e-3, ..decayed.clone().named("clipped") };
    let plain = Spec::new(Rule::sgd(), Regime::norm_ratio(), vec![vec![1.0; 200]]);
    let specs = [plain, decayed, clipped];
    for exponent in [0, 16, 60, 126] {
        let scale = 2f32.powi(exponent);
        let setup = Setup { scaler: Some(LossScaler::fixed(scale)), ..Setup::default() };
        for size in [f32::MIN_POSITIVE, 1e-30, 1e-9, 1.0, 1e9, 1e30, 3e38] {
            let mut numbers = Numbers(3);
            let grads: Vec<f32> = (0..200).map(|_| size * (0.75 + 0.25 * numbers.next().abs())).collect();
            let true_norm = grads.iter().map(|&g| (f64::from(g) / f64::from(scale)).powi(2)).sum::<f64>().sqrt();
            for mut run in every_path_with(&specs, setup) {
                run.step(&[grads.clone(), grads.clone(), grads.clone()]);
                let what = format!("{}, 2^{exponent}, {size:e}", run.path());
                let states = run.states();
                let norm_of = |state: &GroupState| {
                    f64::from(state.last_norm.mantissa) * f64::from(state.last_norm.exponent).exp2()
                };
                let flushed = size == f32::MIN_POSITIVE;
                if !flushed || norm_of(&states[0]) > 0.0 {
                    assert_close(&what, norm_of(&states[0]) / true_norm, 1.0, 2e-6);
                }
                // With decay the true gradient is added to w, so that it must be a normal f32.
                if true_norm > 1e-36 {
                    assert_close(format_args!("{what}, decayed"), norm_of(&states[1]) / true_norm, 1.0, 2e-6);
                }
                for record in run.records().records {
                    let expected = (1e-3 / true_norm).min(1.0);
                    if record.group == 2 {
                        let factor = f64::from(record.clip_factor);
                        let off = (factor / expected - 1.0).abs();
                        let tiny = expected < f64::from(f32::MIN_POSITIVE);
                        assert!(off <= 4e-6 || tiny, "{what}: clipped to {factor:e}");
                    }
                    assert!(!record.flags.skipped(), "{what}");
                }
            }
        }
    }
}

/// A model of `torch.amp.GradScaler` with bounds.
struct Model {
    scaler: LossScaler,
    scale: f32,
    good: u32,
}

impl Model {
    /// Updates the scale after a step and returns it.
    fn update(&mut self, good: bool) -> f32 {
        if !good {
            self.scale = (0.5 * self.scale).max(self.scaler.min_scale);
            self.good = 0;
        } else {
            self.good += 1;
            if self.good == self.scaler.growth_interval {
                self.scale = (2.0 * self.scale).min(self.scaler.max_scale);
                self.good = 0;
            }
        }
        self.scale
    }
}

#[test]
fn it_grows_and_falls_as_a_grad_scaler() {
    let specs = [
        Spec::new(Rule::sgd(), Regime::seesaw(), vec![vec![1.0; 33]]).named("first"),
        Spec::new(Rule::sgdm(0.5), Regime::fixed(0.1), vec![vec![1.0; 5]]).named("second"),
    ];
    let scaler = LossScaler { initial_scale: 16.0, growth_interval: 3, min_scale: 4.0, max_scale: 64.0 };
    let setup = Setup { scaler: Some(scaler), ..Setup::default() };
    for mut run in every_path_with(&specs, setup) {
        let mut model = Model { scaler, scale: 16.0, good: 0 };
        // The scale rises to the largest, falls to the smallest and rises again, with single bad steps in between.
        let good = [1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1];
        let (mut lowest, mut highest) = (f32::MAX, 0f32);
        for (t, &good) in good.iter().enumerate() {
            let mut grads = vec![vec![1.0; 33], vec![1.0; 5]];
            if good == 0 {
                grads[t % 2][t % 5] = f32::NAN;
            }
            let scale = run.loss_scale();
            let before = bits(&run.params());
            run.step(&times(scale, &grads));
            let what = format!("{}, step {t}", run.path());
            let next = model.update(good == 1);
            for record in run.records().records {
                assert_eq!(record.loss_scale, scale, "{what}");
                assert_eq!(record.flags.scale_changed(), next != scale, "{what}");
                assert_eq!(record.flags.skipped(), good == 0, "{what}");
                let word = if good == 0 { "halved" } else { "doubled" };
                let says = record.to_string().contains(word);
                assert!(!says || next != scale, "{what}: {record}");
            }
            assert_eq!(run.loss_scale(), next, "{what}");
            assert!(good == 1 || bits(&run.params()) == before, "{what}");
            (lowest, highest) = (lowest.min(next), highest.max(next));
        }
        assert_eq!((lowest, highest), (4.0, 64.0));
    }
}

/// Computes the gradient of ½(w - 1)² times the loss scale. As in a half-precision backward pass, it overflows 16 bits at first.
const BACKWARD: &str = "
@group(0) @binding(0) var<storage, read> w: array<f32>;
@group(0) @binding(1) var<storage, read> scale: array<f32>;
@group(0) @binding(2) var<storage, read_write> g: array<f32>;
@compute @workgroup_size(64) fn backward(@builtin(local_invocation_index) i: u32) {
    let scaled = scale[0] * (w[i] - 1.0);
    // The bits of +inf where a half would overflow.
    g[i] = bitcast<f32>(select(bitcast<u32>(scaled), 0x7f800000u, abs(scaled) > 65504.0));
}
";

/// In a submit of forty steps, between which the scale falls and rises without the host, the norms have the bits that they have without a scaler.
#[test]
fn within_one_submit_gradients_meet_the_scale_they_were_made_with() {
    for gpu in &devices() {
        let w = vec![5.0; 64];
        let specs = [Spec::new(Rule::sgdm(0.5), Regime::seesaw(), vec![w.clone()])];
        let scaler = LossScaler { growth_interval: 7, ..LossScaler::default() };
        let setup = Setup { scaler: Some(scaler), ..Setup::default() };
        let one = upload(gpu, &[1.0]);
        let mut finals = Vec::new();
        for scaled in [true, false] {
            let mut run = gpu_run_with(gpu, &specs, if scaled { setup } else { Setup::default() });
            let scale = if scaled { run.optimizer.loss_scale().clone() } else { one.clone() };
            let backward = Kernel::new(gpu, BACKWARD, &[&run.buffers[0], &scale, &run.buffers[1]]);
            // The scaled run skips two steps while the scale falls, and more when it rises.
            submit_pass(gpu, |pass| {
                for _ in 0..if scaled { 40 } else { 30 } {
                    backward.dispatch(pass);
                    run.optimizer.encode_step_in(pass).expect("alive");
                }
            });
            let records = run.records().records;
            let taken = records.iter().filter(|record| !record.flags.skipped());
            let norms: Vec<u32> = taken.map(|record| record.norm.to_bits()).collect();
            if scaled {
                let changes = records.iter().filter(|record| record.flags.scale_changed());
                let skips = records.iter().filter(|record| record.flags.skipped());
                assert!(changes.count() > skips.clone().count(), "it rose too");
                assert!(skips.count() >= 3, "{}: {records:?}", gpu.describe());
            }
            assert!(norms.len() >= 25, "{}", gpu.describe());
            finals.push(norms);
        }
        let common = finals[0].len().min(finals[1].len());
        assert!(finals[0][..common] == finals[1][..common], "{}", gpu.describe());
    }
}
