//! Tests of tensors with shapes and of rules for matrices: directions are about orthogonal, other tensors have another rule, the number of dispatches
//! does not depend on the number of matrices, and a tensor that is no matrix is refused by its name.

use wgpu_optim::internals::PassName;
use wgpu_optim::{Averaging, ErrorKind, Group, Muon, MuonPrecision, OptimizerBuilder, Regime, Rule, SecantForm, wgpu};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Spec, bits, devices, every_path, packed};
use wgpu_optim_conformance::{Numbers, assert_refused, assert_says, noise, small_bindings, tensors};

type Change = fn(&mut Muon);

fn muon(shapes: &[[usize; 2]]) -> Spec {
    let lengths: Vec<usize> = shapes.iter().map(|[rows, columns]| rows * columns).collect();
    let spec = Spec::new(Rule::muon(), Regime::fixed(1.0), tensors(7, &lengths));
    Spec { shapes: shapes.iter().map(|&shape| shape.into()).collect(), ..spec }
}

/// The iteration maps singular values of at least a hundredth of the norm to values between 0.6 and 1.3. The direction times its transpose then has
/// eigenvalues between 0.36 and 1.7, and so are its diagonal elements.
#[test]
fn rows_of_a_direction_are_about_orthogonal() {
    for [rows, columns] in [[8, 40], [40, 8], [70, 130]] {
        for mut run in every_path(&[muon(&[[rows, columns]])]) {
            let before = run.params().remove(0);
            run.step(&[Numbers(3).vec(rows * columns)]);
            let (long, short) = (rows.max(columns), rows.min(columns));
            let scale = 0.2 * (long as f64).sqrt();
            let after = run.params().remove(0);
            let moved: Vec<f64> = before.iter().zip(&after).map(|(&w, &next)| f64::from(w - next) / scale).collect();
            let of_short =
                |i: usize, j: usize| if rows > columns { moved[j * columns + i] } else { moved[i * columns + j] };
            let product = |a: usize, b: usize| (0..long).map(|j| of_short(a, j) * of_short(b, j)).sum::<f64>();
            for i in 0..short {
                let square = product(i, i);
                assert!((0.36..1.7).contains(&square), "{}, {rows} x {columns}, row {i}: {square}", run.path());
                let other = product(i, (i + 1) % short);
                assert!(other.abs() <= 0.5, "{}, {rows} x {columns}, rows {i} and the next: {other}", run.path());
            }
        }
    }
}

/// Scaling the gradients does not change the directions.
#[test]
fn directions_do_not_depend_on_the_size_of_gradients() {
    let spec = muon(&[[20, 33], [65, 3]]);
    let after_steps = |run: &mut dyn Run, scale: f32| {
        for t in 0..3 {
            let grads = noise(&[muon(&[[20, 33], [65, 3]])], t);
            run.step(&grads.iter().map(|g| g.iter().map(|g| scale * g).collect()).collect::<Vec<Vec<f32>>>());
        }
        run.params()
    };
    for (at, mut run) in every_path(std::slice::from_ref(&spec)).into_iter().enumerate() {
        let expected = after_steps(run.as_mut(), 1.0);
        // The gradients stay above ε, which is 1e-7.
        for exponent in [-20i32, 40, 100] {
            let scale = 2f32.powi(exponent);
            let mut other = every_path(std::slice::from_ref(&spec)).remove(at);
            let got = after_steps(other.as_mut(), scale);
            for (got, expected) in got.concat().iter().zip(expected.concat()) {
                assert!((got - expected).abs() <= 2e-4, "{}, 2^{exponent}: {got} {expected}", run.path());
            }
        }
    }
}

/// Directions in f16 are those in f32 up to rounding, and exactly those where the device has no f16.
#[test]
fn an_iteration_in_f16_is_near_one_in_f32() {
    let in_f16 = Rule::Muon(Muon { precision: MuonPrecision::F16, ..Muon::default() });
    for iterations in [1, 4, 5] {
        let precise = |rule: Rule| match rule {
            Rule::Muon(muon) => Rule::Muon(Muon { iterations, ..muon }),
            rule => rule,
        };
        let wide = muon(&[[20, 33], [65, 3], [130, 70]]);
        let wide = Spec { rule: precise(wide.rule), ..wide };
        let halves = Spec { rule: precise(in_f16), ..wide.clone() };
        for (at, mut run) in every_path(std::slice::from_ref(&halves)).into_iter().enumerate() {
            let mut other = every_path(std::slice::from_ref(&wide)).remove(at);
            let before = run.params().concat();
            run.step(&noise(std::slice::from_ref(&wide), 1));
            other.step(&noise(std::slice::from_ref(&wide), 1));
            let (got, expected) = (run.params().concat(), other.params().concat());
            let length =
                |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
            let share = length(&got, &expected) / length(&expected, &before);
            println!("{}, {iterations} iterations: {share:.1e}", run.path());
            assert!(share <= 3e-3, "{}, {iterations} iterations: {share}", run.path());
            let has_halves = at > 0 && devices()[at - 1].device().features().contains(wgpu::Features::SHADER_F16);
            assert_eq!(got != expected, has_halves, "{}", run.path());
        }
    }
}

/// A group with matrices and other tensors becomes two groups, with the other tensors after the matrices.
#[test]
fn other_tensors_are_a_group_of_their_own() {
    let (w, b) = (vec![0.5f32; 12], vec![0.25f32; 4]);
    let g = [Numbers(1).vec(12), Numbers(2).vec(4)];
    let matrices = || Group::new("layer").shaped_tensor("weight", &[3, 4], &w, &w);
    let both = Group::new("layer").tensor("bias", &b, &b).shaped_tensor("weight", &[3, 4], &w, &w);
    let others = Group::new("layer/others").rule(Rule::adamw()).tensor("bias", &b, &b);
    let builder = || OptimizerBuilder::new(Rule::muon()).other_tensors(Rule::adamw());
    let mut divided = builder().group(both).build_cpu().expect("builds");
    let mut explicit = builder().group(matrices()).group(others).build_cpu().expect("builds");
    assert_eq!(divided.groups(), explicit.groups());
    assert_eq!(divided.tensors(), explicit.tensors());
    assert_eq!(divided.tensors()[0].shape, [3, 4]);
    let run = |optimizer: &mut wgpu_optim::CpuOptimizer| {
        let (mut w, mut b) = (w.clone(), b.clone());
        for _ in 0..3 {
            optimizer.step(&mut [&mut w, &mut b], &[&g[0], &g[1]]).expect("steps");
        }
        bits(&[w, b])
    };
    assert_eq!(run(&mut divided), run(&mut explicit));
    // A group's rule for the other tensors has precedence over the builder's. Rules for all tensors do not split a group.
    let own = matrices().tensor("bias", &b, &b).other_tensors(Rule::sgd());
    let optimizer = builder().group(own).build_cpu().expect("builds");
    assert_eq!(optimizer.groups()[1].rule, Rule::sgd());
    let flat = OptimizerBuilder::new(Rule::sgd()).other_tensors(Rule::adamw());
    let optimizer = flat.group(matrices().tensor("bias", &b, &b)).build_cpu().expect("builds");
    assert_eq!(optimizer.groups().len(), 1);
    // A group without matrices becomes one group of other tensors. Each tensor of a split group can have its own rate.
    let optimizer = builder().group(Group::new("biases").tensor("bias", &b, &b)).build_cpu().expect("builds");
    assert_eq!(optimizer.groups()[0].name, "biases/others");
    let each = matrices().tensor("bias", &b, &b).shaped_tensor("square", &[2, 2], &b, &b).per_tensor();
    let optimizer = builder().group(each).build_cpu().expect("builds");
    let names: Vec<&str> = optimizer.groups().iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["layer/weight", "layer/square", "layer/others/bias"]);
}

/// A regime's warnings also cover the group of the other tensors and its rule.
#[test]
fn warnings_are_of_the_other_tensors_too() {
    let w = vec![0.5f32; 12];
    let group = || Group::new("all").shaped_tensor("w", &[3, 4], &w, &w);
    let builder = || OptimizerBuilder::new(Rule::muon()).regime(Regime::dog()).other_tensors(Rule::sgdm(0.9));
    let of = |group: Group<_>| builder().group(group).warnings().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(of(group()).len(), 1);
    let warnings = of(group().tensor("b", &w[..3], &w[..3]));
    assert_eq!(warnings.len(), 2);
    assert_says(&warnings[1], &["group \"all/others\"", "dog", "sgdm"]);
}

/// A matrix whose gradient is zero does not move, and the matrix beside it moves.
#[test]
fn a_gradient_of_zeros_has_no_direction() {
    let spec = muon(&[[5, 9], [9, 5]]);
    for mut run in every_path(std::slice::from_ref(&spec)) {
        let before = run.params();
        run.step(&[vec![0.0; 45], Numbers(2).vec(45)]);
        let after = run.params();
        assert_eq!(before[0], after[0], "{}", run.path());
        assert!(before[1] != after[1] && after[1].iter().all(|w| w.is_finite()), "{}", run.path());
    }
}

/// Fifty matrices of several shapes take as many dispatches as one.
#[test]
fn the_number_of_dispatches_does_not_depend_on_that_of_the_matrices() {
    for gpu in &devices() {
        let dispatches = |count: usize| {
            let shapes: Vec<[usize; 2]> = (0..count).map(|i| [4 * (1 + i % 7), 8 * (1 + i % 3)]).collect();
            let specs = [muon(&shapes)];
            let run = GpuRun::new(gpu, &specs, packed(&specs, 0, 0));
            let own = [PassName::Prepare, PassName::Orthogonalize];
            run.optimizer.dispatches().iter().filter(|dispatch| own.contains(&dispatch.pass)).count()
        };
        assert_eq!(dispatches(1), 2 + 3 * 5, "{}", gpu.describe());
        assert_eq!(dispatches(50), dispatches(1), "{}", gpu.describe());
    }
}

#[test]
fn what_is_no_matrix_is_refused() {
    let w = vec![0.5f32; 12];
    let of = |rule: Rule| OptimizerBuilder::new(rule);
    let build = |builder: OptimizerBuilder<wgpu_optim::cpu::Tensor>, group: Group<_>| builder.group(group).build_cpu();
    let flat = || Group::new("all").tensor("w", &w, &w);
    let words = ["tensor \"w\"", "muon", "shaped_tensor", "other_tensors"];
    let error = assert_refused(build(of(Rule::muon()), flat()), &words);
    assert_eq!(error.kind(), ErrorKind::Build);
    // The rule for the other tensors cannot be one for matrices.
    assert_refused(build(of(Rule::muon()).other_tensors(Rule::muon()), flat()), &words);
    assert_refused(build(of(Rule::muon()), Group::new("all").shaped_tensor("w", &[12], &w, &w)), &words);
    for rule in [Rule::sgd(), Rule::muon()] {
        for shape in [&[3, 5][..], &[0, 12], &[13], &[usize::MAX, usize::MAX]] {
            let group = Group::new("all").shaped_tensor("w", shape, &w, &w);
            assert_refused(build(of(rule).other_tensors(Rule::sgd()), group), &["\"w\"", "12 elements"]);
        }
    }
    // A shape without elements may have any lengths.
    let (empty, sizes): (&[f32], _) = (&[], [0, usize::MAX, 2]);
    let group = Group::new("all").shaped_tensor("w", &sizes, empty, empty);
    build(of(Rule::muon()), group).expect("a matrix without elements");
    let matrix = || Group::new("all").shaped_tensor("w", &[3, 4], &w, &w);
    for regime in [Regime::barzilai_borwein(SecantForm::Long), Regime::adgd(), Regime::auto_sgd()] {
        assert_refused(build(of(Rule::muon()).regime(regime), matrix()), &["group \"all\"", "muon", "regime"]);
    }
    assert_refused(build(of(Rule::muon()).averaging(Averaging::ScheduleFree), matrix()), &["muon", "schedule-free"]);
    assert_refused(build(of(Rule::muon()).sharded(0, 2), matrix()), &["muon", "sharded"]);
    let numbers: [(&str, Change); 6] = [
        ("momentum", |muon| muon.momentum = 1.0),
        ("iterations", |muon| muon.iterations = 0),
        ("iterations", |muon| muon.iterations = 100),
        ("coefficients", |muon| muon.coefficients[1] = f32::NAN),
        ("coefficients", |muon| muon.coefficients[2] = 11.0),
        ("epsilon", |muon| muon.epsilon = 0.0),
    ];
    for (field, change) in numbers {
        let mut muon = Muon::default();
        change(&mut muon);
        assert_refused(build(of(Rule::Muon(muon)), matrix()), &["rule muon", field]);
    }
}

/// A matrix must fit one binding, and is not split.
#[test]
fn a_matrix_beyond_a_binding_is_refused() {
    for gpu in &small_bindings(1 << 20) {
        let build = |rows| {
            let specs = [muon(&[[rows, 512]])];
            GpuRun::try_with_room(gpu, &specs, packed(&specs, 0, 0), &[], |builder| builder).map(drop)
        };
        build(256).expect("fits");
        let error = assert_refused(build(513), &["tensor", "262656", "max_storage_buffer_binding_size"]);
        assert_eq!(error.kind(), ErrorKind::Limit);
    }
    // The CPU path has no bindings.
    CpuRun::new(&[muon(&[[512, 512]])]);
}
