//! Tests of the settings that may change between steps, on every path: the factor of the learning rate, decay, clip, micro-batches, frozen groups,
//! tensors without gradients, and norm outliers. A group or tensor that is left out of a step is not changed by it.

use wgpu_optim::gpu::CONTROLS_WGSL;
use wgpu_optim::{Averaging, Controls, ErrorKind, NormOutliers, Record, Regime, Rule, Schedule, Term, WeightDecay};
use wgpu_optim_conformance::run::{
    CpuRun, GpuRun, Run, Setup, Spec, bits, devices, every_path, every_path_with, gpu_run_with, packed,
};
use wgpu_optim_conformance::{
    Kernel, Numbers, assert_close, assert_refused, assert_says, noise, submit_pass, tensors, ulps,
};

use crate::helpers::rules_and_regimes;

fn spec(name: &str, rule: Rule, regime: Regime, seed: u64, lengths: &[usize]) -> Spec {
    Spec::new(rule, regime, tensors(seed, lengths)).named(name)
}

fn records_of(records: &[Record], group: usize) -> Vec<Record> {
    records.iter().filter(|record| record.group == group).cloned().collect()
}

/// A group that is frozen or has no gradients in some steps has the bits of an optimizer that took only the other steps. Its gradients may have any
/// values, and the other group is not affected.
#[test]
fn what_takes_no_part_keeps_its_bits_and_leaves_no_trace() {
    for (rule, regime) in rules_and_regimes() {
        for frozen in [true, false] {
            let is_free = !rule.has_momentum() && regime.fits_averaging(&Averaging::ScheduleFree);
            let averaging = if is_free { Averaging::ScheduleFree } else { Averaging::Off };
            let still =
                Spec { averaging, decay: WeightDecay::Decoupled(0.01), ..spec("still", rule, regime, 1, &[301, 7]) };
            let moving = spec("moving", Rule::sgdm(0.9), Regime::seesaw(), 2, &[64]);
            let both = [still.clone(), moving.clone()];
            let alone = every_path(&[still]).into_iter().zip(every_path(&[moving]));
            for (mut run, (mut still, mut moving)) in every_path(&both).into_iter().zip(alone) {
                let what = format!("{}, {} with {}, frozen: {frozen}", run.path(), rule.name(), regime.name());
                for t in 0..6 {
                    let takes_part = ![0, 2, 3].contains(&t);
                    let mut grads = noise(&both, t);
                    moving.step(&grads[2..]);
                    if takes_part {
                        still.step(&grads[..2]);
                        run.control("still", &|group| group.frozen = false);
                        run.step(&grads);
                        continue;
                    }
                    grads[0].fill(f32::NAN);
                    grads[1].fill(f32::INFINITY);
                    if frozen {
                        run.control("still", &|group| group.frozen = true);
                        run.step(&grads);
                    } else {
                        run.step_without(&grads, &[0, 1]);
                    }
                }
                let params = bits(&run.params());
                assert!(params[..2] == bits(&still.params()), "{what}: the group that is left out");
                assert!(params[2..] == bits(&moving.params()), "{what}: the other group");
                assert!(bits(&run.averages())[..2] == bits(&still.averages()), "{what}: averages");
                let records = run.records().records;
                let told: Vec<bool> = records_of(&records, 0).iter().map(|r| r.flags.frozen()).collect();
                let expected = [0, 1, 2, 3, 4, 5].map(|t| frozen && [0, 2, 3].contains(&t));
                assert_eq!(told, expected, "{what}");
                let absent = records.iter().filter(|record| record.flags.absent()).count();
                assert_eq!(absent, if frozen { 0 } else { 3 }, "{what}");
                let rates = |records: &[Record]| records.iter().map(|r| r.learning_rate.to_bits()).collect::<Vec<_>>();
                assert_eq!(rates(&records_of(&records, 1)), rates(&moving.records().records), "{what}");
                let taken: Vec<Record> =
                    records_of(&records, 0).into_iter().filter(|r| !r.flags.frozen() && !r.flags.absent()).collect();
                assert_eq!(rates(&taken), rates(&still.records().records), "{what}");
            }
        }
    }
}

/// A shared norm is that of the groups in the step, and a group that was frozen has the rate of the others afterwards.
#[test]
fn a_shared_norm_is_of_those_that_take_part() {
    for regime in [Regime::seesaw(), Regime::norm_ratio(), Regime::adagrad_norm()] {
        let sharing = |name: &str, seed| spec(name, Rule::sgd(), regime, seed, &[40]).sharing("all");
        let both = [sharing("a", 1), sharing("b", 2)];
        for mut run in every_path(&both) {
            let path = run.path();
            for t in 0..8u64 {
                let frozen = t < 2 || t == 4;
                run.control("a", &|group| group.frozen = frozen);
                let mut grads = noise(&both, t);
                if frozen {
                    grads[0].fill(f32::NAN);
                }
                run.step(&grads);
                let records = run.records().records;
                let counted = if frozen { &grads[1..] } else { &grads[..] };
                let norm = counted.concat().iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
                for record in &records {
                    assert_close(&path, record.norm, norm, 1e-6 * norm);
                }
                let rates = run.rates();
                assert_eq!(rates[0].to_bits(), rates[1].to_bits(), "{path}, {}, step {t}", regime.name());
                assert!(rates[0] > 0.0, "{path}, step {t}");
            }
        }
    }
}

/// A step uses the rate, decay, clip and micro-batches that were set before it, with the bits of an optimizer that was built with them.
#[test]
fn a_step_has_what_was_set_before_it() {
    let base = Spec {
        decay: WeightDecay::Coupled(0.5),
        clip: 1e9,
        ..spec("group", Rule::sgd(), Regime::fixed(1.0), 3, &[5, 120])
    };
    let settings =
        [(1.0f32, 0.5f32, f32::INFINITY, 1), (0.25, 0.0, 2.0, 3), (0.125, 0.25, 0.5, 2), (1e-3, 4.0, 1e9, 1)];
    for (index, mut run) in every_path(std::slice::from_ref(&base)).into_iter().enumerate() {
        let mut tensors = base.tensors.clone();
        for (t, (factor, decay, clip, micro_batches)) in settings.into_iter().enumerate() {
            let grads = noise(std::slice::from_ref(&base), t as u64);
            run.control("group", &|group| {
                group.learning_rate_factor = factor;
                group.weight_decay = decay;
                group.clip_norm = clip;
                group.micro_batches = micro_batches;
            });
            run.step(&grads);
            let built = Spec {
                regime: Regime::fixed(factor),
                decay: WeightDecay::Coupled(decay.max(f32::MIN_POSITIVE)),
                clip: clip.min(1e30),
                tensors,
                ..base.clone()
            };
            let setup = Setup { micro_batches: Some(micro_batches), ..Setup::default() };
            let mut built = every_path_with(&[built], setup).remove(index);
            built.step(&grads);
            tensors = built.params();
            assert!(bits(&run.params()) == bits(&tensors), "{}, step {t}", run.path());
        }
        let records = run.records().records;
        let expected = [0.0, 0.25f64.ln(), 0.5f64.ln(), (1e-3 / 0.125f64).ln()];
        for (record, expected) in records.iter().zip(expected) {
            assert_close(run.path(), record.term(Term::Control), expected, 1e-6);
            assert_close(run.path(), record.ln_rate as f32, f64::from(record.learning_rate).ln(), 1e-6);
        }
        assert_says(&records[1], &["factor lowered by the caller (-75.0 %)"]);
    }
}

/// The host halves the rate when the loss has stopped falling (`torch.optim.lr_scheduler.ReduceLROnPlateau` with a patience of 2), over a schedule on
/// the device. The two factors multiply, and each has its own term in the record.
#[test]
fn the_host_reduces_the_rate_on_a_plateau_over_a_schedule() {
    let schedule = Schedule::Step { every: 4, factor: 0.5 };
    let group = [Spec { schedule, ..spec("group", Rule::sgd(), Regime::fixed(0.5), 9, &[20]) }];
    for mut run in every_path(&group) {
        let (mut best, mut stalled, mut factor) = (f64::INFINITY, 0, 1.0);
        let mut expected = Vec::new();
        for t in 0..16 {
            run.step(&run.params());
            expected.push(0.5 * 0.5f32.powi(t / 4) * factor);
            // The loss soon reaches a floor.
            let loss = run.params().concat().iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().max(1e-2);
            stalled = if loss < 0.9999 * best { 0 } else { stalled + 1 };
            best = best.min(loss);
            if stalled > 2 {
                (stalled, factor) = (0, 0.5 * factor);
                run.control("group", &|group| group.learning_rate_factor = factor);
            }
        }
        let records = run.records().records;
        let rates: Vec<f32> = records.iter().map(|record| record.learning_rate).collect();
        assert_eq!(rates, expected, "{}", run.path());
        assert!(factor < 0.5, "{}: {factor}", run.path());
        let sum = |term| records.iter().map(|record| f64::from(record.term(term))).sum::<f64>();
        assert_close(run.path(), sum(Term::Control), f64::from(expected[15] / 0.0625).ln(), 1e-5);
        assert_close(run.path(), sum(Term::Schedule), 0.125f64.ln(), 1e-5);
    }
}

/// With a factor of 0 the parameters stay, and the momentum is still updated.
#[test]
fn a_factor_of_zero_holds_the_parameters() {
    let group = [spec("group", Rule::sgdm(0.9), Regime::seesaw(), 4, &[33])];
    for (mut run, mut other) in every_path(&group).into_iter().zip(every_path(&group)) {
        for t in 0..4 {
            run.control("group", &|group| group.learning_rate_factor = if t == 2 { 0.0 } else { 1.0 });
            let before = bits(&run.params());
            run.step(&noise(&group, t));
            other.step(&noise(&group, t));
            assert_eq!(bits(&run.params()) == before, t == 2, "{}, step {t}", run.path());
        }
        // The factor does not change the regime's own rate.
        assert_eq!(run.rates()[0].to_bits(), other.rates()[0].to_bits(), "{}", run.path());
        assert_says(&run.records().records[2], &["η 0: the caller has set its factor to 0"]);
    }
}

/// A kernel of the caller sets the factor of each step within one submit. The host changes only the fields that it sets.
#[test]
fn a_kernel_of_the_caller_sets_controls() {
    let specs =
        [spec("a", Rule::sgd(), Regime::fixed(1.0), 5, &[64]), spec("b", Rule::sgd(), Regime::fixed(1.0), 6, &[64])];
    let source = format!(
        "{CONTROLS_WGSL}
        @group(0) @binding(0) var<storage, read_write> controls: array<GroupControls>;
        @compute @workgroup_size(1)
        fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
            controls[id.x].learning_rate_factor *= 0.5;
        }}"
    );
    let grads = noise(&specs, 1);
    for gpu in &devices() {
        let mut run = gpu_run_with(gpu, &specs, Setup::default());
        run.write_grads(&grads);
        let halve = Kernel::new(gpu, &source, &[run.optimizer.controls_buffer()]);
        submit_pass(gpu, |pass| {
            for _ in 0..3 {
                halve.dispatch_many(pass, 2);
                run.optimizer.encode_step_in(pass).expect("alive");
            }
        });
        run.control("b", &|group| group.weight_decay = 0.0);
        run.control("b", &|group| group.frozen = true);
        run.step(&grads);
        let records = run.records().records;
        let rates = |group| records_of(&records, group).iter().map(|r| r.learning_rate).collect::<Vec<f32>>();
        assert_eq!(rates(0), [0.5, 0.25, 0.125, 0.125], "{}", gpu.describe());
        assert_eq!(rates(1), rates(0), "{}", gpu.describe());
    }
}

/// With a fixed rate, tensors that have no gradients in some steps end where an optimizer for each tensor ends.
#[test]
fn tensors_come_and_go() {
    for rule in [Rule::sgd(), Rule::sgdm(0.9), Rule::nesterov(0.9), Rule::sign_sgd(), Rule::lion()] {
        let lengths = [70, 5, 0, 4099];
        let group = [Spec { telemetry: rule.has_momentum(), ..spec("group", rule, Regime::fixed(0.5), 7, &lengths) }];
        let setup = Setup { absent_gradients: true, ..Setup::default() };
        for mut run in every_path_with(&group, setup) {
            let path = run.path();
            let mut alone: Vec<CpuRun> = (0..lengths.len())
                .map(|i| CpuRun::new(&[Spec { tensors: vec![group[0].tensors[i].clone()], ..group[0].clone() }]))
                .collect();
            for t in 0..7u64 {
                let absent: &[usize] = match t {
                    2 => &[0],
                    3 => &[1, 3],
                    5 => &[3, 3, 0],
                    _ => &[],
                };
                let mut grads = noise(&group, t);
                for (tensor, run) in alone.iter_mut().enumerate() {
                    if absent.contains(&tensor) {
                        grads[tensor].fill(f32::NAN);
                    } else {
                        run.step(&grads[tensor..=tensor]);
                    }
                }
                run.step_without(&grads, absent);
                let counted = grads.iter().enumerate().filter(|(tensor, _)| !absent.contains(tensor));
                let squares = counted.flat_map(|(_, grads)| grads).map(|&g| f64::from(g).powi(2));
                let norm = squares.sum::<f64>().sqrt();
                let records = run.records();
                assert_close(&path, records.records[0].norm, norm, 1e-6 * norm);
                for record in &records.tensors {
                    let params = &run.params()[record.tensor];
                    let norm = params.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
                    if t > 0 {
                        assert_close(&path, record.parameter_norm, norm, 1e-5 * norm);
                    }
                    assert_eq!(record.step_norm == 0.0, absent.contains(&record.tensor) || norm == 0.0, "{path}");
                }
            }
            for (tensor, (got, alone)) in run.params().iter().zip(&alone).enumerate() {
                let expected = alone.params().concat();
                let worst = got.iter().zip(&expected).map(|(&a, &b)| ulps(a, f64::from(b))).fold(0.0, f64::max);
                assert!(worst <= 4.0, "{path}, {}, tensor {tensor}: {worst} ulps", rule.name());
            }
        }
    }
}

/// Tensors that are neighbours share blocks unless the builder asks for tensors that may lack gradients. A whole group can always be left out.
#[test]
fn a_tensor_that_cannot_be_left_out_is_named() {
    let groups = [
        spec("first", Rule::sgd(), Regime::seesaw(), 8, &[6, 6]),
        spec("second", Rule::sgd(), Regime::seesaw(), 9, &[6]),
    ];
    for mut run in every_path(&groups) {
        let on_host = run.path() == "CPU path";
        let before = bits(&run.params());
        let grads = noise(&groups, 1);
        let beside = run.try_step_without(&grads, &[1]);
        if !on_host {
            let words = ["\"first/1\"", "OptimizerBuilder::absent_gradients"];
            assert_eq!(assert_refused(beside, &words).kind(), ErrorKind::Call);
            assert!(bits(&run.params()) == before, "{}", run.path());
        }
        assert_refused(run.try_step_without(&grads, &[0, 3]), &["no tensor 3", "has 3"]);
        run.step_without(&grads, &[0, 1]);
        run.step_without(&grads, &[2]);
        let records = run.records().records;
        assert_eq!(records.iter().filter(|record| record.flags.absent()).count(), 2, "{}", run.path());
    }
    for gpu in &devices() {
        let mut run = GpuRun::new(gpu, &groups, packed(&groups, 0, 1));
        run.step_without(&noise(&groups, 1), &[1]);
    }
}

/// An invalid value is refused with its name, and no group has changed, not even those before the refused one.
#[test]
fn wrong_controls_are_refused_and_change_nothing() {
    let decayed = Spec { decay: WeightDecay::Coupled(0.1), ..spec("decayed", Rule::sgd(), Regime::seesaw(), 1, &[4]) };
    let groups = [
        spec("plain", Rule::sgd(), Regime::seesaw(), 1, &[4]),
        decayed,
        Spec { per_tensor: true, ..spec("parts", Rule::sgd(), Regime::seesaw(), 2, &[4, 4]) },
    ];
    type Change = fn(&mut Controls);
    let cases: &[(&str, Change, &[&str])] = &[
        ("nobody", |_| (), &["no group \"nobody\"", "\"plain\", \"decayed\", \"parts/parts/0\""]),
        ("plain", |group| group.learning_rate_factor = f32::NAN, &["\"plain\"", "learning_rate_factor is NaN"]),
        ("plain", |group| group.learning_rate_factor = -1.0, &["learning_rate_factor is -1"]),
        ("plain", |group| group.learning_rate_factor = 1e31, &["between 1e-30 and 1e30"]),
        ("plain", |group| group.weight_decay = f32::INFINITY, &["weight_decay is inf"]),
        ("plain", |group| group.clip_norm = 0.0, &["clip_norm is 0"]),
        ("plain", |group| group.micro_batches = 0, &["micro_batches is 0"]),
        ("decayed", |group| group.clip_norm = 1.0, &["\"decayed\"", "built without a clip"]),
    ];
    for mut run in every_path(&groups) {
        for (group, change, words) in cases {
            assert_refused(run.try_control(Some(group), change), words);
        }
        let of_all = |controls: &mut Controls| {
            controls.clip_norm = 2.0;
            controls.frozen = true;
        };
        assert_refused(run.try_control(None, &of_all), &["\"decayed\""]);
        for group in ["plain", "decayed", "parts"] {
            let controls = run.controls(group);
            assert!(!controls.frozen && controls.clip_norm == f32::INFINITY, "{}", run.path());
        }
        run.control("parts", &|group| group.frozen = true);
        run.step(&noise(&groups, 1));
        let records = run.records().records;
        assert_eq!(records.iter().map(|r| r.flags.frozen()).collect::<Vec<_>>(), [false, false, true, true]);
    }
}

/// A checkpoint contains the controls and can be restored on every path.
#[test]
fn checkpoints_have_the_controls() {
    let groups =
        [spec("a", Rule::sgdm(0.9), Regime::seesaw(), 1, &[40]), spec("b", Rule::sgd(), Regime::seesaw(), 2, &[9])];
    let saved: Vec<_> = every_path(&groups)
        .into_iter()
        .map(|mut run| {
            run.step(&noise(&groups, 0));
            run.control("a", &|group| group.frozen = true);
            run.control("b", &|group| {
                group.learning_rate_factor = 0.5;
                group.clip_norm = 0.25;
            });
            run.step(&noise(&groups, 1));
            let checkpoint = run.checkpoint();
            run.step(&noise(&groups, 2));
            (run.path(), checkpoint, bits(&run.params()))
        })
        .collect();
    for (index, mut run) in every_path(&groups).into_iter().enumerate() {
        for (from, (path, checkpoint, params)) in saved.iter().enumerate() {
            run.restore(checkpoint).expect("restores");
            assert!(run.controls("a").frozen, "{}, from {path}", run.path());
            assert_eq!((run.controls("b").learning_rate_factor, run.controls("b").clip_norm), (0.5, 0.25));
            run.step(&noise(&groups, 2));
            assert!(index != from || bits(&run.params()) == *params, "{}", run.path());
        }
    }
}

/// Returns gradients with norms around 1 and a spread of 10 %, multiplied by `factor`.
fn norms(specs: &[Spec], t: u64, factor: f32) -> Vec<Vec<f32>> {
    let spread = 1.0 + 0.1 * (Numbers(1000 + t).next() - 0.5);
    let mut grads = noise(specs, t);
    let norm = grads.concat().iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt() as f32;
    grads.iter_mut().flatten().for_each(|g| *g *= factor * spread / norm);
    grads
}

/// A norm far above those before is skipped without a trace, or clipped to the limit for outliers. Other norms are neither skipped nor clipped.
#[test]
fn outliers_are_skipped_or_clipped() {
    let specs = [spec("group", Rule::adamw(), Regime::seesaw(), 1, &[50])];
    let setup = |outliers| Setup { outliers: Some(outliers), ..Setup::default() };
    let skip = setup(NormOutliers::Skip { deviations: 6.0, window: 16 });
    let clip = setup(NormOutliers::Clip { deviations: 6.0, window: 16 });
    let factor = |t: u64| if [30, 31, 40].contains(&t) { 20.0 } else { 1.0 };
    let runs = every_path_with(&specs, skip).into_iter().zip(every_path_with(&specs, clip));
    for ((mut skips, mut clips), mut without) in runs.zip(every_path(&specs)) {
        let path = skips.path();
        for t in 0..50 {
            let grads = norms(&specs, t, factor(t));
            skips.step(&grads);
            clips.step(&grads);
            if factor(t) == 1.0 {
                without.step(&grads);
            }
        }
        let outliers = |records: &[Record]| -> Vec<u64> {
            records.iter().filter(|record| record.flags.outlier()).map(|record| record.step).collect()
        };
        let of_skips = skips.records().records;
        assert_eq!(outliers(&of_skips), [30, 31, 40], "{path}");
        assert!(bits(&skips.params()) == bits(&without.params()), "{path}: a skipped step left a trace");
        assert_says(&of_skips[30], &["nothing changed", "is an outlier"]);
        assert!(of_skips.iter().all(|record| record.skipped == 0), "{path}");
        let of_clips = clips.records().records;
        assert_eq!(outliers(&of_clips), [30, 31, 40], "{path}");
        for record in &of_clips {
            assert_eq!(record.flags.clipped(), record.flags.outlier(), "{path}");
            let left = record.norm * record.clip_factor;
            assert!((0.5..4.0).contains(&left), "{path}, step {}: a norm of {left} was left", record.step);
        }
    }
}

/// The scale of the loss does not matter, and a lasting change of the norm is accepted after some steps.
#[test]
fn outliers_do_not_depend_on_scale_and_a_lasting_change_is_followed() {
    let specs = [spec("group", Rule::sgd(), Regime::seesaw(), 1, &[50])];
    let setup = Setup { outliers: Some(NormOutliers::Skip { deviations: 6.0, window: 32 }), ..Setup::default() };
    let runs = every_path_with(&specs, setup).into_iter().zip(every_path_with(&specs, setup));
    for (mut run, mut scaled) in runs {
        for t in 0..200 {
            let grads = norms(&specs, t, if t < 100 { 1.0 } else { 10.0 });
            let large: Vec<Vec<f32>> = grads.iter().map(|g| g.iter().map(|g| g * 1e25).collect()).collect();
            run.step(&grads);
            scaled.step(&large);
        }
        let skipped = |run: &mut dyn Run| -> Vec<u64> {
            let records = run.records().records;
            records.iter().filter(|record| record.flags.outlier()).map(|record| record.step).collect()
        };
        let (told, of_scaled) = (skipped(run.as_mut()), skipped(scaled.as_mut()));
        assert_eq!(told, of_scaled, "{}", run.path());
        assert!(told.first() == Some(&100) && told.len() < 40, "{}: {told:?}", run.path());
    }
}

#[test]
fn outliers_have_their_limits() {
    for (outliers, words) in [
        (NormOutliers::Skip { deviations: 0.0, window: 9 }, ["deviations is 0", "above 0"]),
        (NormOutliers::Clip { deviations: f32::NAN, window: 9 }, ["deviations is NaN", "above 0"]),
        (NormOutliers::Skip { deviations: 1.0, window: 1 }, ["window is 1", "between 2"]),
    ] {
        let specs = [spec("group", Rule::sgd(), Regime::seesaw(), 1, &[5])];
        let setup = Setup { outliers: Some(outliers), ..Setup::default() };
        assert_refused(CpuRun::try_with(&specs, setup).map(|_| ()), &words);
    }
}
