//! Tests of looks: a look measures the curvature of the last step by a second gradient of the same batch, on every path, and changes nothing else. A
//! look that does not fit the optimizer is an error, and one that cannot be used is left out and recorded.
//!
//! Each of these faults was introduced by hand once into the kernels and made some of these tests fail: a direction of the sign rules in units of
//! another scale, a look that is not finite and not recorded, a look that stays due after it has been taken, a look at a skipped step that counts,
//! and a rate per tensor from the sums of the first tensor.

use wgpu_optim::{
    Averaging, Curvature, CurvatureForm, Differences, ErrorKind, Group, Look, OptimizerBuilder, Record, Regime, Rule,
    WeightDecay,
};
use wgpu_optim_conformance::run::{
    GpuRun, Place, Run, Setup, Spec, bits, devices, every_path, every_path_with, gpu_run_with,
};
use wgpu_optim_conformance::{assert_close, assert_refused, noise, submit, tensors};

const LEN: usize = 61;
const FORMS: [CurvatureForm; 4] =
    [CurvatureForm::Short, CurvatureForm::Long, CurvatureForm::Geometric, CurvatureForm::Newton];

fn spec(rule: Rule, form: CurvatureForm) -> Spec {
    let name = format!("{}, {form:?}", rule.name());
    // The steps are long enough that differences of gradients are significant, and the limit is too wide to act.
    let regime = Curvature { first_step: 0.3, max_change: 10.0, ..Curvature::new(form) };
    Spec::new(rule, Regime::Curvature(regime), tensors(3, &[LEN])).named(name)
}

/// Returns the gradients of `½ h ‖w - c‖²`, with one h for each tensor and a c that depends on the batch.
fn gradients(run: &dyn Run, curvatures: &[f32], batch: u64) -> Vec<Vec<f32>> {
    let params = run.params();
    let lengths: Vec<usize> = params.iter().map(Vec::len).collect();
    let centres = tensors(100 + batch, &lengths);
    let tensors = params.iter().zip(&centres).zip(curvatures);
    tensors.map(|((w, c), h)| w.iter().zip(c).map(|(w, c)| h * (w - c)).collect()).collect()
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

fn looks(records: &[Record]) -> Vec<Option<Look>> {
    records.iter().map(|record| record.look).collect()
}

/// A look measures the curvature although the gradients of two batches differ much more than those of one batch at two points.
#[test]
fn one_look_finds_the_curvature_whatever_the_noise_of_batches() {
    let fitting: Vec<Rule> = Rule::all().into_iter().filter(|rule| !rule.owns_passes()).collect();
    for rules in fitting.chunks(6) {
        let pairs = rules.iter().flat_map(|&rule| FORMS.map(|form| (rule, form)));
        let pairs: Vec<_> = pairs.collect();
        let specs: Vec<Spec> = pairs.iter().map(|&(rule, form)| spec(rule, form)).collect();
        let curvatures: Vec<f32> = (0..specs.len()).map(|i| [0.02, 3.0, 500.0][i % 3]).collect();
        for mut run in every_path(&specs) {
            let first = gradients(&*run, &curvatures, 0);
            run.step(&first);
            let again = gradients(&*run, &curvatures, 0);
            run.look(&again);
            let rates = run.rates();
            let second = gradients(&*run, &curvatures, 1);
            run.step(&second);
            let records = run.records().records;
            let (before, after) = records.split_at(specs.len());
            assert_eq!(looks(before), vec![None; specs.len()], "{}", run.path());
            assert_eq!(looks(after), vec![Some(Look::Measured); specs.len()], "{}", run.path());
            for (i, &(rule, form)) in pairs.iter().enumerate() {
                let (h, sqrt_d) = (f64::from(curvatures[i]), (LEN as f64).sqrt());
                let expected = match form {
                    CurvatureForm::Newton => {
                        // In a first step all directions without a momentum are the gradient or its signs.
                        let absolute: f64 = first[i].iter().map(|&g| f64::from(g).abs()).sum();
                        match rule {
                            Rule::Sgd(_) => 1.0 / h,
                            Rule::SignSgd(_) => absolute / (h * LEN as f64),
                            _ => continue,
                        }
                    }
                    _ if rule.is_scale_free() => norm(&second[i]) / (h * sqrt_d),
                    _ => (1.0 - f64::from(rule.momentum())) / h,
                };
                let what = format!("{}, {}, rate after {}", run.path(), specs[i].name, rates[i]);
                assert_close(what, after[i].learning_rate, expected, 1e-4 * expected);
            }
        }
    }
}

/// With layer-wise rates, each tensor has the rate of its own curvature.
#[test]
fn tensors_with_rates_of_their_own_find_their_own_curvatures() {
    for form in FORMS {
        let layers = Spec { per_tensor: true, tensors: tensors(5, &[16, 7, 33]), ..spec(Rule::sgd(), form) };
        for mut run in every_path(&[layers]) {
            let curvatures = [0.5, 4.0, 30.0];
            for batch in 0..2 {
                let (path, step) = (run.path(), gradients(&*run, &curvatures, batch));
                run.step(&step);
                let again = gradients(&*run, &curvatures, batch);
                run.look(&again);
                if batch == 1 {
                    for (rate, h) in run.rates().into_iter().zip(curvatures) {
                        assert_close(format_args!("{path}, {form:?}"), rate, 1.0 / h, 1e-4 / f64::from(h));
                    }
                }
            }
        }
    }
}

/// The rate changes by at most the allowed factor, and stays where no curvature is above 0 or no look was taken.
#[test]
fn rates_are_limited_and_carried_over() {
    let limited = Curvature { max_change: 1.5, initial_rate: Some(0.01), ..Curvature::new(CurvatureForm::Short) };
    let spec = Spec::new(Rule::sgd(), Regime::Curvature(limited), tensors(3, &[LEN]));
    for mut run in every_path(&[spec]) {
        let mut step = |curvature: f32, look: Option<f32>| {
            let grads = gradients(&*run, &[curvature], 0);
            run.step(&grads);
            if let Some(curvature) = look {
                // The previous gradient plus `curvature` times the step.
                let rate = run.rates()[0];
                let again: Vec<f32> = grads[0].iter().map(|g| g - curvature * rate * g).collect();
                run.look(&[again]);
            }
            let record = run.records().records.remove(0);
            (record.learning_rate, record.look, record.flags.clamped_change(), record.to_string())
        };
        let (first, ..) = step(1.0, Some(4.0));
        let (second, _, clamped, _) = step(1.0, Some(-4.0));
        assert_close("a rise", second, 1.5 * first, 1e-6);
        assert!(clamped);
        // The average of a look at 4, with a weight of nine tenths, and one at -4 is negative.
        let (third, look, ..) = step(1.0, None);
        assert_eq!((third, look), (second, Some(Look::Measured)));
        let (fourth, look, _, words) = step(1.0, Some(4.0));
        assert_eq!((fourth, look), (third, Some(Look::Missing)));
        assert!(words.contains("no look at the step before"), "{words}");
        let (fifth, look, ..) = step(1.0, Some(f32::NAN));
        assert_eq!(look, Some(Look::Measured));
        let (sixth, look, _, words) = step(1.0, None);
        assert_eq!((sixth, look), (fifth, Some(Look::NotFinite)));
        assert!(words.contains("look at the step before was not finite"), "{words}");
        // A skipped step leaves nothing to look at, and the look at the step before it is still missing.
        let (_, look, ..) = step(f32::NAN, Some(0.1));
        assert_eq!(look, None);
        let (eighth, look, ..) = step(1.0, None);
        assert_eq!((eighth, look), (sixth, Some(Look::Missing)));
        let (ninth, look, ..) = step(1.0, None);
        assert_eq!((ninth, look), (eighth, Some(Look::Missing)));
    }
}

/// Groups without looks keep every bit, and a look does not measure a frozen group.
#[test]
fn other_groups_are_not_touched() {
    let specs = [
        spec(Rule::sgd(), CurvatureForm::Short).named("looks"),
        Spec::new(Rule::sgd(), Regime::seesaw(), tensors(4, &[70])).named("counters"),
        Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(5, &[70])).named("momentum"),
        spec(Rule::sgdm(0.9), CurvatureForm::Long).named("frozen"),
    ];
    for (mut run, mut other) in every_path(&specs).into_iter().zip(every_path(&specs)) {
        for step in 0..6 {
            for run in [&mut run, &mut other] {
                run.control("frozen", &|group| group.frozen = step % 2 == 1);
                run.step(&noise(&specs, step));
            }
            run.look(&noise(&specs, 50 + step));
        }
        let path = run.path();
        let (records, others) = (run.records().records, other.records().records);
        let of = |records: &[Record], group: usize| -> Vec<Record> {
            records.iter().filter(|record| record.group == group).cloned().collect()
        };
        for group in [1, 2] {
            assert_eq!(of(&records, group), of(&others, group), "{path}, group {group}");
            assert_eq!(bits(&run.params())[group], bits(&other.params())[group], "{path}, group {group}");
        }
        assert_ne!(bits(&run.params())[0], bits(&other.params())[0], "{path}");
        assert!(looks(&of(&others, 0))[1..].iter().all(|look| *look == Some(Look::Missing)), "{path}");
        let measured = looks(&of(&records, 3)).iter().filter(|look| **look == Some(Look::Measured)).count();
        assert_eq!(measured, 2, "{path}: those at steps 0 and 2, in the next one that moves");
    }
}

/// The buffers of tensors without gradients are not read, and their group's measurement is that of the other tensors.
#[test]
fn a_look_leaves_out_what_the_step_has_left_out() {
    let setup = Setup { absent_gradients: true, ..Setup::default() };
    let half = Spec { tensors: tensors(3, &[LEN, 40]), ..spec(Rule::sgd(), CurvatureForm::Short) };
    let absent = spec(Rule::sgd(), CurvatureForm::Short).named("absent");
    for mut run in every_path_with(&[half, absent], setup) {
        let lost = |mut grads: Vec<Vec<f32>>| {
            grads[1..].iter_mut().flatten().for_each(|g| *g = f32::NAN);
            grads
        };
        let (h, step) = ([8.0; 3], lost(gradients(&*run, &[8.0; 3], 0)));
        run.step_without(&step, &[1, 2]);
        let again = lost(gradients(&*run, &h, 0));
        run.try_look_without(&again, &[1, 2]).expect("looks");
        let second = gradients(&*run, &h, 1);
        run.step(&second);
        let records = run.records().records;
        assert_eq!(looks(&records[2..]), [Some(Look::Measured), None], "{}", run.path());
        assert_close(run.path(), records[2].learning_rate, 0.125, 1e-5);
        assert_refused(run.try_look_without(&second, &[3]), &["tensor 3", "3, counted from 0"]);
    }
}

/// Steps and looks in one submit have the results of separate submits. With coupled decay the gradient changes with the step although its buffer does
/// not.
#[test]
fn looks_in_one_submit_are_looks() {
    let specs = [Rule::sgd(), Rule::sgdm(0.9), Rule::adamw()].map(|rule| {
        let decay = WeightDecay::Coupled(0.5);
        Spec { decay, telemetry: true, ..spec(rule, CurvatureForm::Short) }
    });
    let grads = noise(&specs, 3);
    for gpu in &devices() {
        let finish = |mut run: GpuRun| (bits(&run.params()), run.states(), run.records());
        let (mut apart, mut one_encoder) =
            (gpu_run_with(gpu, &specs, Setup::default()), gpu_run_with(gpu, &specs, Setup::default()));
        for _ in 0..4 {
            apart.step(&grads);
            apart.look(&grads);
        }
        one_encoder.write_grads(&grads);
        submit(gpu, |encoder| {
            for _ in 0..4 {
                one_encoder.optimizer.encode_step(encoder).expect("alive");
                one_encoder.optimizer.encode_look(encoder).expect("alive");
            }
        });
        one_encoder.assert_surroundings_untouched();
        let (expected, found) = (finish(apart), finish(one_encoder));
        assert!(expected == found, "{}", gpu.describe());
        assert!(expected.2.records.iter().any(|record| record.look == Some(Look::Measured)));
    }
}

/// A look reads its gradients from the buffers of the last rebind.
#[test]
fn a_look_follows_a_rebind() {
    let specs = [spec(Rule::sgdm(0.9), CurvatureForm::Short)];
    for gpu in &devices() {
        let places = |start: usize| vec![Place { params: (0, start), grads: (1, start) }];
        let mut run =
            GpuRun::try_with_room(gpu, &specs, places(0), &[512, 512], |builder| builder.rebindable()).expect("builds");
        let mut still = gpu_run_with(gpu, &specs, Setup::default());
        for step in 0..3 {
            for run in [&mut run, &mut still] {
                run.step(&noise(&specs, step));
            }
            run.move_to(places(256 * ((step as usize + 1) % 2))).expect("moves");
            for run in [&mut run, &mut still] {
                run.look(&noise(&specs, 50 + step));
            }
        }
        assert_eq!(bits(&run.params()), bits(&still.params()), "{}", gpu.describe());
        assert_eq!(run.states(), still.states(), "{}", gpu.describe());
    }
}

/// A checkpoint records whether a look is still due.
#[test]
fn a_look_follows_a_checkpoint() {
    let specs = [spec(Rule::sgd(), CurvatureForm::Newton)];
    for (mut run, mut other) in every_path(&specs).into_iter().zip(every_path(&specs)) {
        run.step(&noise(&specs, 1));
        let due = run.checkpoint();
        run.look(&noise(&specs, 2));
        let done = run.checkpoint();
        other.restore_with(&due, Differences::none()).expect("restores");
        other.look(&noise(&specs, 2));
        assert_eq!(run.states(), other.states(), "{}", run.path());
        other.restore_with(&done, Differences::none()).expect("restores");
        assert_refused(other.try_look(&noise(&specs, 2)), &["without a step since the last look"]);
        for run in [&mut run, &mut other] {
            run.step(&noise(&specs, 3));
        }
        assert_eq!(bits(&run.params()), bits(&other.params()), "{}", run.path());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let grads = vec![vec![0.5; LEN]];
    let error = |run: &mut dyn Run, words: &[&str]| {
        let error = assert_refused(run.try_look(&grads), words);
        assert_eq!(error.kind(), ErrorKind::Call, "{error}");
    };
    let spec = spec(Rule::sgd(), CurvatureForm::Short);
    for mut run in every_path(&[Spec::new(Rule::sgd(), Regime::seesaw(), tensors(3, &[LEN]))]) {
        run.step(&grads);
        error(&mut *run, &["look", "Regime::Curvature", "leave out"]);
    }
    for mut run in every_path(&[Spec { averaging: Averaging::polynomial_decay(), ..spec.clone() }]) {
        error(&mut *run, &["look", "without a step since the last look", "same batch"]);
        run.step(&grads);
        run.swap_averages();
        error(&mut *run, &["a look", "averages are swapped in"]);
        run.swap_averages();
        run.look(&grads);
        error(&mut *run, &["look", "without a step since the last look"]);
    }
    for mut run in every_path_with(&[spec], Setup { shard: Some((0, 2)), ..Setup::default() }) {
        error(&mut *run, &["look", "other ranks"]);
    }
    let w: &[f32] = &[0.0; 4];
    let free = OptimizerBuilder::new(Rule::sgd()).schedule_free().regime(Regime::curvature(CurvatureForm::Short));
    let free = free.group(Group::new("all").tensor("w", w, w));
    assert_refused(free.build_cpu(), &["\"all\"", "averaging", "schedule-free", "polynomial"]);
}
