//! Tests of Adafactor: the directions of gradients for which they are known, the entries of checkpoints, and the settings that are refused.

use wgpu_optim::internals::PassName;
use wgpu_optim::{
    Adafactor, Averaging, Differences, ErrorKind, Group, OptimizerBuilder, Regime, Rule, SecantForm, TrustRatio,
};
use wgpu_optim_conformance::run::{GpuRun, Run, Spec, bits, devices, every_path, packed};
use wgpu_optim_conformance::{Numbers, assert_all_close, assert_refused, noise, small_bindings, tensors};

type Change = fn(&mut Adafactor);

fn adafactor(rule: Adafactor, shapes: &[&[usize]]) -> Spec {
    let lengths: Vec<usize> = shapes.iter().map(|shape| shape.iter().product()).collect();
    let spec = Spec::new(Rule::Adafactor(rule), Regime::fixed(0.125), tensors(7, &lengths));
    Spec { shapes: shapes.iter().map(|&shape| shape.into()).collect(), ..spec }
}

/// Takes a step and returns the decrease of each element in units of the rate.
fn moves(run: &mut dyn Run, grads: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let before = run.params();
    run.step(grads);
    let pairs = before.into_iter().zip(run.params());
    let of_tensor = |(before, after): (Vec<f32>, Vec<f32>)| {
        before.iter().zip(after).map(|(&w, next)| (f64::from(w) - f64::from(next)) / 0.125).collect()
    };
    pairs.map(of_tensor).collect()
}

/// The squares of an outer product are the product of their row and column means, so that the elements of the first direction are signs. The cases
/// are a matrix of many tiles, each matrix of a stack, and a flat tensor, whose second moments are not factored.
#[test]
fn an_outer_product_has_signs_for_its_first_direction() {
    let shapes: [&[usize]; 4] = [&[70, 130], &[3, 5, 7], &[1, 9], &[33]];
    for mut run in every_path(&[adafactor(Adafactor::default(), &shapes)]) {
        let grads: Vec<Vec<f32>> = shapes
            .iter()
            .map(|shape| {
                let elements: usize = shape.iter().product();
                let columns = *shape.last().expect("a dimension");
                let sign = |i: usize| if (i * i + i / 3) % 5 < 2 { -1.0 } else { 1.0 };
                (0..elements).map(|i| sign(i) * (1 + i / columns) as f32 * (2 + i % columns) as f32).collect()
            })
            .collect();
        for (moved, grads) in moves(run.as_mut(), &grads).iter().zip(&grads) {
            for (moved, g) in moved.iter().zip(grads) {
                // The parameters, of up to 1 in magnitude, are rounded.
                assert!((moved - f64::from(g.signum())).abs() <= 4e-6, "{}: {moved} for {g}", run.path());
            }
        }
    }
}

/// The RMS of a direction is at most the limit. Without one, the second step would have a direction of RMS 2^0.4, since its gradient is a thousand
/// times that of the first.
#[test]
fn no_direction_is_longer_than_its_limit() {
    for limit in [1.0, 0.25] {
        let rule = Adafactor { limit, ..Adafactor::default() };
        let shapes: [&[usize]; 2] = [&[10, 40], &[400]];
        for mut run in every_path(&[adafactor(rule, &shapes)]) {
            run.step(&[vec![1e-3; 400], vec![1e-3; 400]]);
            for moved in moves(run.as_mut(), &[vec![1.0; 400], vec![1.0; 400]]) {
                let rms = (moved.iter().map(|u| u * u).sum::<f64>() / 400.0).sqrt();
                let difference = (rms - f64::from(limit)).abs();
                assert!(difference <= 4e-6, "{}, limit {limit}: {rms}", run.path());
            }
        }
    }
}

/// The directions do not depend on the scale of the gradients, as long as the mean squares are above ε.
#[test]
fn directions_do_not_depend_on_the_size_of_gradients() {
    let spec = adafactor(Adafactor { epsilon: 1e-18, ..Adafactor::default() }, &[&[20, 33], &[65, 3], &[7]]);
    let after_steps = |run: &mut dyn Run, scale: f32| {
        for t in 0..3 {
            let grads = noise(std::slice::from_ref(&spec), t);
            run.step(&grads.iter().map(|g| g.iter().map(|g| scale * g).collect()).collect::<Vec<Vec<f32>>>());
        }
        run.params()
    };
    for (at, mut run) in every_path(std::slice::from_ref(&spec)).into_iter().enumerate() {
        let expected = after_steps(run.as_mut(), 1.0);
        for exponent in [-20i32, 30] {
            let mut other = every_path(std::slice::from_ref(&spec)).remove(at);
            let got = after_steps(other.as_mut(), 2f32.powi(exponent));
            for (got, expected) in got.iter().zip(&expected) {
                assert_all_close(format_args!("{}, 2^{exponent}", run.path()), got, expected, 1e-6);
            }
        }
    }
}

/// Huge gradients and gradients of zeros leave the parameters finite.
#[test]
fn every_finite_gradient_makes_a_finite_step() {
    let shapes: [&[usize]; 2] = [&[5, 9], &[9]];
    for mut run in every_path(&[adafactor(Adafactor::default(), &shapes)]) {
        for value in [0.0, f32::MAX, f32::MIN_POSITIVE, 0.0, -f32::MAX] {
            run.step(&[vec![value; 45], vec![value; 9]]);
            assert!(run.params().concat().iter().all(|w| w.is_finite()), "{}, {value}", run.path());
        }
    }
}

/// Fifty tensors of several shapes take as many dispatches as two.
#[test]
fn the_number_of_dispatches_does_not_depend_on_that_of_the_tensors() {
    for gpu in &devices() {
        let dispatches = |count: usize| {
            let shapes: Vec<Vec<usize>> = (1..=count).map(|i| vec![4 * (1 + i % 7), 8][i % 2..].to_vec()).collect();
            let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            let specs = [adafactor(Adafactor::default(), &shapes)];
            let run = GpuRun::new(gpu, &specs, packed(&specs, 0, 0));
            let own = [PassName::Prepare, PassName::Factor];
            run.optimizer.dispatches().iter().filter(|dispatch| own.contains(&dispatch.pass)).count()
        };
        // Matrices take five dispatches, flat tensors two.
        assert_eq!(dispatches(2), 7, "{}", gpu.describe());
        assert_eq!(dispatches(50), 7, "{}", gpu.describe());
    }
}

/// A checkpoint has the second moments of rows and columns, and a resumed run has the bits of an uninterrupted one.
#[test]
fn rows_and_columns_are_kept() {
    let specs = [adafactor(Adafactor::default(), &[&[6, 10], &[2, 4, 8], &[12]])];
    for (at, mut run) in every_path(&specs).into_iter().enumerate() {
        (0..3).for_each(|t| run.step(&noise(&specs, t)));
        let checkpoint = run.checkpoint();
        let names = checkpoint.names();
        let kept = |kind: &str| names.iter().filter(|name| name.starts_with(kind)).count();
        assert_eq!([kept("row_second_moment/"), kept("column_second_moment/"), kept("second_moment/")], [2, 2, 1]);
        let mut resumed = every_path(&specs).remove(at);
        resumed.restore(&checkpoint).expect("goes on");
        for t in 3..6 {
            run.step(&noise(&specs, t));
            resumed.step(&noise(&specs, t));
        }
        assert_eq!(bits(&run.params()), bits(&resumed.params()), "{}", run.path());
    }
}

/// A checkpoint is refused where the same number of elements has another shape.
#[test]
fn a_checkpoint_of_other_shapes_is_refused() {
    let g = Numbers(3).vec(12);
    let build = |shape: &[usize]| {
        let w = vec![0.5f32; 12];
        OptimizerBuilder::new(Rule::adafactor())
            .group(Group::new("all").shaped_tensor("w", shape, &w, &w))
            .build_cpu()
            .expect("builds")
    };
    let mut optimizer = build(&[3, 4]);
    optimizer.step(&mut [&mut vec![0.5f32; 12]], &[&g]).expect("steps");
    let checkpoint = optimizer.checkpoint(None, &Default::default()).expect("a checkpoint");
    for shape in [&[4usize, 3][..], &[2, 6], &[12]] {
        let mut other = build(shape);
        let words = ["of another optimizer", "the shape of \"row_second_moment/w\" is [1, 3] there"];
        for accepted in [Differences::none(), Differences::all()] {
            let error = assert_refused(other.restore_with(&checkpoint, None, accepted), &words);
            assert_eq!(error.kind(), ErrorKind::CheckpointDiffers);
        }
        other.step(&mut [&mut vec![0.5f32; 12]], &[&g]).expect("steps");
    }
    let flat = build(&[12]).checkpoint(None, &Default::default()).expect("a checkpoint");
    assert_refused(build(&[3, 4]).restore(&flat, None), &["of another optimizer", "is none there, [1, 3] here"]);
    build(&[3, 4]).restore(&checkpoint, None).expect("the same shape");
}

#[test]
fn what_it_cannot_do_is_refused() {
    let w = vec![0.5f32; 12];
    let build = |builder: OptimizerBuilder<wgpu_optim::cpu::Tensor>| {
        builder.group(Group::new("all").shaped_tensor("w", &[3, 4], &w, &w)).build_cpu()
    };
    let of = || OptimizerBuilder::new(Rule::adafactor());
    for regime in [Regime::barzilai_borwein(SecantForm::Long), Regime::adgd(), Regime::auto_sgd()] {
        assert_refused(build(of().regime(regime)), &["group \"all\"", "adafactor", "regime"]);
    }
    assert_refused(build(of().sharded(0, 2)), &["adafactor", "sharded"]);
    build(of().averaging(Averaging::ScheduleFree)).expect("works schedule-free");
    let numbers: [(&str, Change); 7] = [
        ("fall", |rule| rule.fall = 0.0),
        ("fall", |rule| rule.fall = -0.8),
        ("fall", |rule| rule.fall = f32::NAN),
        ("epsilon", |rule| rule.epsilon = 0.0),
        ("epsilon", |rule| rule.epsilon = 2.0),
        ("limit", |rule| rule.limit = 0.0),
        ("limit", |rule| rule.limit = f32::INFINITY),
    ];
    for (field, change) in numbers {
        let mut rule = Adafactor::default();
        change(&mut rule);
        assert_refused(build(OptimizerBuilder::new(Rule::Adafactor(rule))), &["rule adafactor", field]);
    }
    for least in [0.0, 1e9, f32::NAN] {
        let trust = TrustRatio { coefficient: 1.0, least: Some(least), ..Default::default() };
        assert_refused(build(of().trust_ratio(trust)), &["trust ratio", "least"]);
    }
    // A tensor must fit one binding.
    for gpu in &small_bindings(1 << 20) {
        let specs = [adafactor(Adafactor::default(), &[&[513, 512]])];
        let refused = GpuRun::try_with_room(gpu, &specs, packed(&specs, 0, 0), &[], |builder| builder).map(drop);
        let error = assert_refused(refused, &["tensor", "262656", "max_storage_buffer_binding_size"]);
        assert_eq!(error.kind(), ErrorKind::Limit);
    }
}
