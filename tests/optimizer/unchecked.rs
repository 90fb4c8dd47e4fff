//! Tests of `NonFinitePolicy::Unchecked`. Where nothing needs the norm of the gradients, pass 1 does not run, and finite gradients move the
//! parameters to the same bits as with it. Where something needs the norm, gradients are still measured and checked.
//!
//! Each of these faults was introduced by hand once and made a test fail: sums that start with a first element, a window without pass 1 that takes
//! the bind group of the next one, and a group with a trust ratio that is not measured.

use wgpu_optim::internals::PassName;
use wgpu_optim::{
    Averaging, Controls, Curvature, CurvatureForm, Differences, ErrorKind, LossScaler, NonFinitePolicy, NormOutliers,
    Regime, Rule, Schedule, ShardSums, WeightDecay,
};
use wgpu_optim_conformance::run::{GpuRun, Run, Setup, Spec, bits, devices, every_path_with, gpu_run_with, separate};
use wgpu_optim_conformance::{assert_refused, assert_says, noise, submit, tensors};

use crate::helpers::{assert_alike, assert_same_bits, pairs_with};

const UNCHECKED: Setup = Setup {
    policy: NonFinitePolicy::Unchecked,
    scaler: None,
    record_steps: None,
    shard: None,
    micro_batches: None,
    outliers: None,
    global_clip: None,
    absent_gradients: false,
    separate_passes: false,
};

fn fixed(rule: Rule) -> Spec {
    Spec::new(rule, Regime::fixed(0.01), tensors(7, &[301, 7, 64])).named(rule.name())
}

fn follows_the_norm() -> Spec {
    Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(8, &[64])).named("seesaw")
}

fn gradients(specs: &[Spec], step: u64) -> Vec<Vec<f32>> {
    noise(specs, 100 + step)
}

/// Returns the number of dispatches of passes 1 and 2.
fn measuring(run: &GpuRun) -> [usize; 2] {
    [PassName::ReduceGradient, PassName::FinishReduction]
        .map(|pass| run.optimizer.dispatches().iter().filter(|dispatch| dispatch.pass == pass).count())
}

#[test]
fn finite_gradients_move_the_parameters_to_the_same_bits() {
    let rules = [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd(), Rule::adamw(), Rule::adafactor(), Rule::muon()];
    let mut specs = rules.map(fixed);
    specs[0].schedule = Schedule::all(20)[2].clone();
    specs[1].averaging = Averaging::polynomial_decay();
    for (spec, decay) in specs.iter_mut().zip([0.0, 0.1, 0.0].into_iter().cycle()) {
        spec.decay = WeightDecay::Coupled(decay);
    }
    for specs in specs.chunks(4) {
        let pairs = pairs_with((specs, Setup::default()), (specs, UNCHECKED));
        let pairs = assert_alike("fixed", pairs, 8, |step, _| [gradients(specs, step), gradients(specs, step)]);
        for (mut measured, mut unchecked) in pairs {
            let path = unchecked.path();
            let (measured, unchecked) = (measured.records().records, unchecked.records().records);
            assert_eq!(unchecked.len(), 8 * specs.len());
            for (with, without) in measured.iter().zip(&unchecked) {
                assert_eq!(with.learning_rate.to_bits(), without.learning_rate.to_bits(), "{path}, {without}");
                assert!(with.terms().eq(without.terms()), "{path}, {with}, {without}");
                assert!(without.norm.is_nan() && without.smoothed_norm.is_nan(), "{path}");
                assert!(without.flags.unmeasured() && !with.flags.unmeasured(), "{path}");
                assert_eq!(without.flags.first(), without.step == 0, "{path}");
                assert!(!without.flags.zero_gradient() && without.nonfinite.is_none(), "{path}");
                // The two sentences are equal, since neither states a norm at a fixed rate.
                assert_eq!(with.to_string(), without.to_string(), "{path}");
            }
        }
    }
}

#[test]
fn what_needs_a_norm_is_measured_and_nothing_else_is() {
    let plain = || fixed(Rule::sgdm(0.9));
    for gpu in &devices() {
        let count = |specs: &[Spec], setup: Setup| {
            measuring(&gpu_run_with(gpu, specs, Setup { separate_passes: true, ..setup }))
        };
        let windows = count(&[plain()], Setup::default())[0];
        assert!(windows > 0);
        for (what, specs, setup, expected) in [
            ("the default", vec![plain()], Setup::default(), [windows, 1]),
            ("unchecked", vec![plain()], UNCHECKED, [0, 0]),
            ("schedule", vec![Spec { schedule: Schedule::all(20)[2].clone(), ..plain() }], UNCHECKED, [0, 0]),
            ("telemetry", vec![Spec { telemetry: true, ..plain() }], UNCHECKED, [0, 0]),
            ("clip", vec![Spec { clip: 1.0, ..plain() }], UNCHECKED, [windows, 1]),
            ("trust ratio", vec![Spec { trust: Some(0.1), ..plain() }], UNCHECKED, [windows, 1]),
            ("norm ratio", vec![Spec { regime: Regime::norm_ratio(), ..plain() }], UNCHECKED, [windows, 1]),
            ("global clip", vec![plain()], Setup { global_clip: Some(1.0), ..UNCHECKED }, [windows, 1]),
            ("scaler", vec![plain()], Setup { scaler: Some(LossScaler::default()), ..UNCHECKED }, [windows, 1]),
            (
                "outliers",
                vec![plain()],
                Setup { outliers: Some(NormOutliers::Skip { deviations: 3.0, window: 8 }), ..UNCHECKED },
                [windows, 1],
            ),
            ("another group", vec![plain(), follows_the_norm()], UNCHECKED, [1, 1]),
            (
                "a shared norm",
                vec![plain().sharing("all"), follows_the_norm().sharing("all")],
                UNCHECKED,
                // The groups have the same kernel and share one window.
                [windows, 1],
            ),
        ] {
            assert_eq!(count(&specs, setup), expected, "{}: {what}", gpu.describe());
        }
    }
}

/// A bad element in a measured group skips the step of all groups. In an unmeasured group it only leaves its own parameter unchanged.
#[test]
fn bad_elements_skip_the_step_only_where_they_are_looked_for() {
    let specs = [fixed(Rule::sgd()), follows_the_norm()];
    for mut run in every_path_with(&specs, UNCHECKED) {
        let path = run.path();
        run.step(&gradients(&specs, 0));
        let before = run.params();
        let mut grads = gradients(&specs, 1);
        grads[3][5] = f32::NAN;
        run.step(&grads);
        assert!(bits(&run.params()) == bits(&before), "{path}: a step that was to be skipped");
        let mut grads = gradients(&specs, 2);
        grads[1][4] = f32::INFINITY;
        run.step(&grads);
        let after = run.params();
        let records = run.records().records;
        assert!(records[2].flags.skipped() && records[3].flags.skipped(), "{path}");
        assert_says(&records[2], &["1 non-finite element, the first in tensor \"seesaw/0\" at index 5"]);
        assert!(!records[4].flags.skipped() && records[4].flags.unmeasured(), "{path}");
        // These drivers support infinities.
        assert_eq!(records[4].overflow, Some((1, 4)), "{path}");
        for (tensor, (before, after)) in before.iter().zip(&after).enumerate() {
            for (element, (before, after)) in before.iter().zip(after).enumerate() {
                let is_bad = (tensor, element) == (1, 4);
                assert!((before == after) == is_bad && after.is_finite(), "{path}: {tensor}, {element}");
            }
        }
    }
}

#[test]
fn a_clip_cannot_be_set_later_and_other_controls_can() {
    let specs = [fixed(Rule::sgdm(0.9)), follows_the_norm()];
    for (mut measured, mut unchecked) in pairs_with((&specs, Setup::default()), (&specs, UNCHECKED)) {
        let refused = unchecked.try_control(Some("sgdm"), &|controls| controls.clip_norm = 1.0);
        let words = ["clip_norm", "NonFinitePolicy::Unchecked", "build it with a clip"];
        assert_eq!(assert_refused(refused, &words).kind(), ErrorKind::Build);
        unchecked.control("seesaw", &|controls| controls.clip_norm = 1.0);
        measured.control("seesaw", &|controls| controls.clip_norm = 1.0);
        for (step, factor, frozen) in [(0, 2.0, false), (1, 0.0, false), (2, 1.0, true), (3, 0.5, false)] {
            let change = |controls: &mut Controls| {
                (controls.learning_rate_factor, controls.frozen) = (factor, frozen);
            };
            for run in [&mut measured, &mut unchecked] {
                run.control("sgdm", &change);
                run.step(&gradients(&specs, step));
            }
            assert_same_bits(&*unchecked, &*measured, format_args!("step {step}"));
        }
        let records = unchecked.records().records;
        assert_says(&records[2], &["η 0: the caller has set its factor to 0"]);
        assert_says(&records[4], &["the group is frozen"]);
    }
}

/// Windows without pass 1 lie between windows with it. Looks and rebinds use the bind groups of the right windows.
#[test]
fn looks_and_buffers_that_move_find_the_windows_that_are_measured() {
    let looks = Spec::new(Rule::sgd(), Regime::Curvature(Curvature::new(CurvatureForm::Long)), tensors(9, &[40]));
    let specs = [fixed(Rule::sgd()), looks.named("looks"), fixed(Rule::adamw()), follows_the_norm()];
    for (mut measured, mut unchecked) in pairs_with((&specs, Setup::default()), (&specs, UNCHECKED)) {
        for step in 0..4 {
            for run in [&mut measured, &mut unchecked] {
                run.step(&gradients(&specs, step));
                run.look(&gradients(&specs, 10 + step));
            }
            assert_same_bits(&*unchecked, &*measured, format_args!("step {step}"));
        }
    }
    for gpu in &devices() {
        let alignment = gpu.device().limits().min_storage_buffer_offset_alignment.max(16) as usize / 4;
        let moved = |by: usize| {
            let mut places = separate(&specs);
            for place in &mut places {
                place.params.1 += by * alignment;
                place.grads.1 += by * alignment;
            }
            places
        };
        let room = [1 << 12; 2 * 8];
        let run = |policy| {
            GpuRun::with_room(gpu, &specs, moved(0), &room, move |builder| {
                builder.rebindable().nonfinite_policy(policy)
            })
        };
        let [mut measured, mut unchecked] = [NonFinitePolicy::Skip, NonFinitePolicy::Unchecked].map(run);
        for step in 0..4 {
            for run in [&mut measured, &mut unchecked] {
                run.move_to(moved(step as usize % 3)).expect("rebinds");
                run.step(&gradients(&specs, step));
            }
            assert_same_bits(&unchecked, &measured, format_args!("step {step}"));
        }
    }
}

/// A small model, whose step is one dispatch on the device, does not check its gradients either.
#[test]
fn an_element_that_is_not_finite_stays_alone_in_a_small_model() {
    for separate_passes in [false, true] {
        let specs = [Spec { tensors: tensors(1, &[64, 8]), ..fixed(Rule::sgd()) }];
        for mut run in every_path_with(&specs, Setup { separate_passes, ..UNCHECKED }) {
            let before = run.params();
            let mut grads = gradients(&specs, 0);
            grads[0][9] = f32::INFINITY;
            run.step(&grads);
            let after = run.params();
            let moved = |tensor: usize| before[tensor].iter().zip(&after[tensor]).filter(|(a, b)| a != b).count();
            assert_eq!((moved(0), moved(1)), (63, 8), "{}, separate passes {separate_passes}", run.path());
            let record = run.records().records.remove(0);
            assert_eq!(record.overflow, Some((0, 9)), "{}, separate passes {separate_passes}", run.path());
            assert!(record.flags.unmeasured() && !record.flags.skipped(), "{}", run.path());
        }
    }
}

/// Each rank has some of the tensors, and none needs the measurements of the others.
#[test]
fn ranks_take_the_steps_of_one_optimizer() {
    let specs = [fixed(Rule::adamw())];
    let parts = [0..2, 2..3];
    let of_rank = |rank: usize| {
        let part = [Spec { tensors: specs[0].tensors[parts[rank].clone()].to_vec(), ..specs[0].clone() }];
        every_path_with(&part, Setup { shard: Some((rank as u32, 2)), ..UNCHECKED })
    };
    for ((mut first, mut second), mut alone) in
        of_rank(0).into_iter().zip(of_rank(1)).zip(every_path_with(&specs, UNCHECKED))
    {
        for step in 0..4 {
            let grads = gradients(&specs, step);
            let [of_first, of_second] = parts.clone().map(|part| grads[part].to_vec());
            let combined = ShardSums::combine(&[first.measure(&of_first), second.measure(&of_second)]);
            let combined = combined.expect("sums of two ranks");
            first.try_apply(&of_first, &combined).expect("applies");
            second.try_apply(&of_second, &combined).expect("applies");
            alone.step(&grads);
            let ranks = [first.params(), second.params()].concat();
            assert!(bits(&ranks) == bits(&alone.params()), "{}, step {step}", alone.path());
        }
    }
}

#[test]
fn a_checkpoint_goes_on_with_and_without() {
    let specs = [fixed(Rule::adamw()), follows_the_norm()];
    for ((mut first, mut second), mut undisturbed) in
        pairs_with((&specs, UNCHECKED), (&specs, Setup::default())).zip(every_path_with(&specs, Setup::default()))
    {
        for step in 0..3 {
            first.step(&gradients(&specs, step));
            undisturbed.step(&gradients(&specs, step));
        }
        let checkpoint = first.checkpoint();
        second.restore_with(&checkpoint, Differences::none().settings()).expect("restores");
        first.restore(&checkpoint).expect("restores");
        for step in 3..6 {
            for run in [&mut first, &mut second, &mut undisturbed] {
                run.step(&gradients(&specs, step));
            }
            assert_same_bits(&*first, &*undisturbed, "unchecked");
            assert_same_bits(&*second, &*undisturbed, "measured from then on");
        }
    }
}

/// On the device, a step without a norm takes two dispatches for a tensor.
#[test]
fn a_step_without_a_norm_is_two_dispatches() {
    for gpu in &devices() {
        let specs = [Spec { tensors: tensors(1, &[64]), ..fixed(Rule::sgd()) }];
        let mut run = gpu_run_with(gpu, &specs, Setup { separate_passes: true, ..UNCHECKED });
        let passes: Vec<PassName> = run.optimizer.dispatches().iter().map(|dispatch| dispatch.pass).collect();
        assert_eq!(passes, [PassName::LearningRate, PassName::UpdateParameters], "{}", gpu.describe());
        let before = run.params();
        submit(gpu, |encoder| run.optimizer.encode_step(encoder).expect("alive"));
        assert!(bits(&run.params()) == bits(&before), "gradients of zero");
        assert_eq!(run.records().records.len(), 1);
    }
}
