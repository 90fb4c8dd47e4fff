//! Promises of `LossScaler`: with any scale the parameters, rates and records have the bits that they have without one; the norm is right
//! for scaled gradients of any size; a gradient that is not finite halves the scale, good steps double it, within its bounds, as
//! `torch.amp.GradScaler` would; what is divided out is the scale that the gradients were made with, also within one submit.
//!
//! Faults tried once by hand, each failed its test: the next scale divided out by pass 4, the norm's exponent left as it is, good steps that go on counting through a skip.

use wgpu_optim::layout::GroupState;
use wgpu_optim::{LossScaler, Regime, Rule, SecantForm, WeightDecay, wgpu};
use wgpu_optim_conformance as conformance;
use wgpu_optim_conformance::run::{Run, Setup, Spec, alone, bits, devices, every_path, every_path_with, gpu_run_with};
use wgpu_optim_conformance::{Numbers, upload};

/// Every rule with every other regime, of every kind of memory, each with one of three: nothing, decay, decay and a clip.
fn specs() -> Vec<Spec> {
    let regimes = [
        Regime::seesaw(),
        Regime::norm_ratio(),
        Regime::fixed(0.01),
        Regime::adagrad_norm(),
        Regime::barzilai_borwein(SecantForm::Geometric),
        Regime::dowg(),
        Regime::polyak(),
    ];
    let mut numbers = Numbers(1);
    let mut specs = Vec::new();
    for (i, rule) in Rule::all().into_iter().enumerate() {
        for (j, regime) in regimes.into_iter().enumerate() {
            if (i + j) % 2 == 1 {
                continue;
            }
            let mut spec = Spec::new(rule, regime, vec![numbers.vec(67)]);
            spec.name = format!("{rule:?} {regime:?}");
            if (i + j) % 3 > 0 {
                spec.decay = WeightDecay::Coupled(0.1);
            }
            if (i + j) % 3 > 1 {
                spec.clip = 3.0;
            }
            specs.push(spec);
        }
    }
    specs[1].maximize = true;
    specs
}

fn gradients(specs: &[Spec], numbers: &mut Numbers) -> Vec<Vec<f32>> {
    conformance::run::lengths(specs).map(|len| numbers.vec(len)).collect()
}

fn times(scale: f32, grads: &[Vec<f32>]) -> Vec<Vec<f32>> {
    grads.iter().map(|tensor| tensor.iter().map(|g| scale * g).collect()).collect()
}

fn without_scale(states: Vec<GroupState>) -> Vec<GroupState> {
    states.into_iter().map(|state| GroupState { loss_scale_exponent: 0, good_steps: 0, ..state }).collect()
}

#[test]
fn with_any_scale_the_bits_are_those_without() {
    let _alone = alone();
    let all = specs();
    // One that changes between the steps, one far beyond.
    let growing = LossScaler { initial_scale: 1.0, growth_interval: 2, ..LossScaler::default() };
    let far = LossScaler::fixed(2f32.powi(100));
    for (scaler, specs) in [(growing, &all[..]), (far, &all[..4])] {
        let setup = Setup { scaler: Some(scaler), ..Setup::default() };
        let plain = every_path(specs).into_iter();
        for (mut plain, mut scaled) in plain.zip(every_path_with(specs, setup)) {
            let mut numbers = Numbers(2);
            for t in 0..6 {
                let grads = gradients(specs, &mut numbers);
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

/// The f64 oracle, which knows nothing of scales.
#[test]
fn the_oracle_agrees() {
    let _alone = alone();
    let mut numbers = Numbers(7);
    for rule in Rule::all() {
        let mut spec = Spec::new(rule, Regime::seesaw(), vec![numbers.vec(300)]);
        spec.decay = WeightDecay::Coupled(0.01);
        let setup =
            Setup { scaler: Some(LossScaler { growth_interval: 3, ..LossScaler::default() }), ..Setup::default() };
        for mut run in every_path_with(std::slice::from_ref(&spec), setup) {
            let mut oracle = spec.oracle();
            let mut numbers = Numbers(8);
            for t in 0..8 {
                let grads = numbers.vec(300);
                let expected = oracle.step(&grads);
                run.step(&times(run.loss_scale(), &[grads]));
                let record = run.records().records[0];
                let what = format!("{}, {rule:?}, step {t}", run.path());
                let off = (f64::from(record.norm) / expected.norm - 1.0).abs();
                assert!(off <= 1e-6, "{what}: norm off by {off:e}");
                let off = (f64::from(record.learning_rate) - expected.rate).abs();
                assert!(off <= 1e-5 * expected.rate, "{what}: rate off by {off:e}");
                for (w, expected) in run.params()[0].iter().zip(&oracle.w) {
                    let off = (f64::from(*w) - expected).abs();
                    assert!(off <= 1e-5, "{what}: {w} instead of {expected}");
                }
            }
        }
    }
}

/// Scaled gradients from the smallest normal f32 to the largest; the true norm may be far below what f32 can hold.
#[test]
fn the_norm_is_right_for_scaled_gradients_of_any_size() {
    let _alone = alone();
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
                    let off = (norm_of(&states[0]) / true_norm - 1.0).abs();
                    assert!(off <= 2e-6, "{what}: off by {off:e}");
                }
                // With decay the true gradient is added to w: it must be a normal f32.
                if true_norm > 1e-36 {
                    let off = (norm_of(&states[1]) / true_norm - 1.0).abs();
                    assert!(off <= 2e-6, "{what}, decayed: off by {off:e}");
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

/// `torch.amp.GradScaler` on the host, with bounds.
struct Model {
    scaler: LossScaler,
    scale: f32,
    good: u32,
}

impl Model {
    /// The scale after a step.
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
    let _alone = alone();
    let specs = [
        Spec::new(Rule::sgd(), Regime::seesaw(), vec![vec![1.0; 33]]).named("first"),
        Spec::new(Rule::sgdm(0.5), Regime::fixed(0.1), vec![vec![1.0; 5]]).named("second"),
    ];
    let scaler = LossScaler { initial_scale: 16.0, growth_interval: 3, min_scale: 4.0, max_scale: 64.0 };
    let setup = Setup { scaler: Some(scaler), ..Setup::default() };
    for mut run in every_path_with(&specs, setup) {
        let mut model = Model { scaler, scale: 16.0, good: 0 };
        // Up to the largest, down to the smallest, and back, with single bad steps between.
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

/// The gradient of ½(w - 1)² times the loss scale, too large for 16 bits at first: as a half-precision backward pass would have it.
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

/// Forty steps in one submit, the scale falling and rising between them and nobody on the host to look: the same bits as without one.
#[test]
fn within_one_submit_gradients_meet_the_scale_they_were_made_with() {
    let _alone = alone();
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
            let device = gpu.device();
            let pipeline = wgpu_optim_conformance::pipeline(gpu, BACKWARD);
            let entries: Vec<_> = [&run.buffers[0], &scale, &run.buffers[1]]
                .into_iter()
                .enumerate()
                .map(|(binding, buffer)| wgpu::BindGroupEntry {
                    binding: binding as u32,
                    resource: buffer.as_entire_binding(),
                })
                .collect();
            let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.get_bind_group_layout(0),
                entries: &entries,
            });
            let mut encoder = device.create_command_encoder(&Default::default());
            // The scaled run skips two steps on its way down and more as it rises.
            let steps = if scaled { 40 } else { 30 };
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                for _ in 0..steps {
                    pass.set_pipeline(&pipeline);
                    pass.set_bind_group(0, &bind_group, &[]);
                    pass.dispatch_workgroups(1, 1, 1);
                    run.optimizer.encode_step_in(&mut pass).expect("alive");
                }
            }
            gpu.queue().submit([encoder.finish()]);
            let records = run.records().records;
            let norms: Vec<u32> =
                records.iter().filter(|record| !record.flags.skipped()).map(|record| record.norm.to_bits()).collect();
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
