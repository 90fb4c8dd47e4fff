//! Tests of pass 1: one sweep computes ‖g‖², ‖w₀‖², ⟨g, q⟩, ⟨g, sign u⟩, ‖g‖₁ and ⟨g, m⟩ for every finite gradient, of any length, at any offset, on
//! every path, compared with f64.
//!
//! Besides the seeded faults below, each of these faults was introduced by hand into the shaders once and made a test fail: the fourth element of a
//! scalar load dropped, the last level of the tree dropped, plain sums at any magnitude, and a scalar store past the end. In the sums by subgroup: a
//! subgroup dropped, sums added at different exponents, an exponent taken from a sum of zero, and a sum left unadded.

use wgpu_optim::gpu::{Partials, Tuning};
use wgpu_optim::internals::layout::{ScopeSums, Squares};
use wgpu_optim::{Gpu, OptimizerBuilder, Regime, Rule, WeightDecay};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Place, Run, Spec, devices, every_path_and_kind, packed};
use wgpu_optim_conformance::{Numbers, assert_close, times, ulps};

/// Returns Σ x² in f64. The squares are exact, and the relative error is at most n · 2^-53.
fn exact_square(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x) * f64::from(x)).sum()
}

/// Returns a bound on the relative error of a sum of squares, in units of 2^-24. Each addend is rounded in at most `trips` additions within an
/// invocation, 2 across its four lanes, `strides` in pass 2 and 8 + 6 in trees, once for its square, and up to three times by scaling. All addends
/// are positive, so that relative errors do not grow by adding.
fn roundings(trips: usize, strides: usize) -> f64 {
    (trips + strides + 2 + 14 + 4) as f64
}

/// Returns the bound for the CPU path, which adds rows of 32 in blocks of 8192, and 64 lanes in pass 2.
fn cpu_roundings(len: usize) -> f64 {
    roundings(len.min(8192).div_ceil(32), len.div_ceil(8192 * 64)) + 7.0
}

fn gpu_roundings(tuning: Tuning, len: usize) -> f64 {
    let block = tuning.block_elements() as usize;
    let trips = len.min(block).div_ceil(4 * tuning.workgroup_size as usize);
    // A head and a tail are additional blocks.
    let partials = (len.div_ceil(block) + 2) * tuning.partials_per_block() as usize;
    // The elements of a subgroup may be added one after another, and so are the sums of the subgroups.
    let in_a_row = match tuning.partials {
        Partials::Subgroup => tuning.workgroup_size,
        Partials::PerInvocation | Partials::PerWorkgroup => 0,
    };
    let strides = partials.div_ceil(tuning.finish_workgroup_size as usize);
    roundings(trips, strides) + f64::from(in_a_row)
}

fn assert_square(what: &str, squares: Squares, x: &[f32], roundings: f64) {
    let exact = exact_square(x);
    assert_close(format_args!("{what}: Σx²"), squares.value(), exact, roundings * 2f64.powi(-24) * exact);
}

fn spec(values: &[f32]) -> Spec {
    Spec::new(Rule::sgd(), Regime::norm_ratio(), vec![values.to_vec()])
}

fn small_tunings(gpu: &Gpu) -> Vec<Tuning> {
    let tuning = |workgroup_size, quads_per_invocation, partials, finish_workgroup_size| Tuning {
        workgroup_size,
        quads_per_invocation,
        partials,
        finish_workgroup_size,
    };
    let mut tunings = vec![
        tuning(1, 1, Partials::PerInvocation, 1),
        tuning(2, 3, Partials::PerWorkgroup, 4),
        tuning(8, 2, Partials::PerInvocation, 2),
        tuning(64, 1, Partials::PerWorkgroup, 64),
        tuning(256, 1, Partials::PerWorkgroup, 256),
    ];
    // Workgroups smaller than a subgroup, as large as one, and of several subgroups.
    tunings.extend(tunings.clone().into_iter().map(|tuning| Tuning { partials: Partials::Subgroup, ..tuning }));
    tunings.retain(|tuning| tuning.partials.is_supported(gpu.device().features()));
    tunings
}

fn lengths(block: usize) -> Vec<usize> {
    let mut lengths = vec![0, 1, 2, 3, 4, 5, 7, 8, 31, 32, 33];
    lengths.extend([block - 1, block, block + 1, 3 * block, 4 * block + 6]);
    lengths.retain(|&len| len < 1 << 17);
    lengths
}

/// Compares the sums of a first step. All lengths are groups of one optimizer, so that its kernels are compiled once.
fn check_lengths(gpu: Option<&Gpu>, lengths: &[usize], start: usize, gap: usize, dyadic: bool) {
    let mut numbers = Numbers(7 + start as u64);
    let mut values = |len: usize| -> Vec<f32> {
        if dyadic {
            // Multiples of 1/4 up to 2: up to 2^17 squares of them add up without rounding.
            (0..len).map(|_| (numbers.next() * 8.0).round() / 4.0).collect()
        } else {
            numbers.vec(len)
        }
    };
    let specs: Vec<Spec> =
        lengths.iter().enumerate().map(|(i, &len)| spec(&values(len)).named(format!("{i}"))).collect();
    let grads: Vec<Vec<f32>> = lengths.iter().map(|&len| values(len)).collect();
    let (what, sums): (String, Vec<ScopeSums>) = match gpu {
        None => {
            let mut run = CpuRun::new(&specs);
            run.step(&grads);
            (run.path(), run.sums())
        }
        Some(gpu) => {
            let mut places = packed(&specs, start, gap);
            // From group to group the shift of the gradients against the parameters grows by up to two elements, so that every phase modulo 4 occurs.
            let mut shift = 0;
            for (i, place) in places.iter_mut().enumerate() {
                if gap > 0 {
                    shift += i % 3;
                    place.grads.1 += shift;
                }
            }
            let mut run = GpuRun::with(gpu, &specs, places, OptimizerBuilder::separate_passes);
            run.step(&grads);
            run.assert_surroundings_untouched();
            (format!("{}, {:?}", run.path(), gpu.tuning()), run.sums())
        }
    };
    assert_eq!(sums.len(), lengths.len());
    for (i, &len) in lengths.iter().enumerate() {
        let what = format!("{what}, {len} elements, start {start}, gap {gap}");
        let roundings = match (gpu, dyadic) {
            (_, true) => 0.0,
            (None, _) => cpu_roundings(len),
            (Some(gpu), _) => gpu_roundings(gpu.tuning(), len),
        };
        assert_square(&format!("{what}, gradients"), sums[i].square, &grads[i], roundings);
        assert_square(&format!("{what}, parameters"), sums[i].initial_square, &specs[i].tensors[0], roundings);
        assert_eq!(sums[i].nonfinite, 0);
    }
}

#[test]
fn every_length_on_the_cpu_path() {
    for dyadic in [true, false] {
        check_lengths(None, &lengths(8192), 0, 0, dyadic);
    }
}

#[test]
fn every_length_offset_and_phase_with_the_adapters_geometry() {
    for gpu in &devices() {
        let lengths = lengths(gpu.tuning().block_elements() as usize);
        for (start, gap, dyadic) in [(0, 0, true), (0, 0, false), (3, 1, true), (5, 2, false)] {
            check_lengths(Some(gpu), &lengths, start, gap, dyadic);
        }
    }
}

#[test]
fn every_length_with_small_geometries_and_every_kind_of_partials() {
    for gpu in &devices() {
        for tuning in small_tunings(gpu) {
            let gpu = gpu.clone().with_tuning(tuning).expect("the adapter can have it");
            let lengths = lengths(tuning.block_elements() as usize);
            check_lengths(Some(&gpu), &lengths, 1, 3, true);
        }
    }
}

/// The tensor has a million and three elements. A wrong tail, head or block changes the last bit of a sum of ones.
#[test]
fn many_blocks_lose_no_element() {
    let len = (1 << 20) + 3;
    let ones: Vec<f32> = (0..len).map(|i| if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
    let mut random = Numbers(3).vec(len);
    // The first and the last element are large, so that losing either of them shows up in the sum.
    random[0] = 100.0;
    random[len - 1] = 1000.0;
    for grads in [ones, random] {
        let spec = spec(&vec![0.5; len]);
        let mut runs: Vec<(f64, Box<dyn Run>)> =
            vec![(cpu_roundings(len), Box::new(CpuRun::new(std::slice::from_ref(&spec))))];
        for gpu in &devices() {
            let place = Place { params: (0, 1), grads: (1, 5) };
            let run = GpuRun::with(gpu, std::slice::from_ref(&spec), vec![place], OptimizerBuilder::separate_passes);
            runs.push((gpu_roundings(gpu.tuning(), len), Box::new(run)));
        }
        for (roundings, run) in &mut runs {
            run.step(std::slice::from_ref(&grads));
            let sums = run.sums()[0];
            // Sums of ones and of quarters are exact below 2^24.
            let roundings = if grads[1] == 1.0 { 0.0 } else { *roundings };
            assert_square(&run.path(), sums.square, &grads, roundings);
            assert_square(&run.path(), sums.initial_square, &vec![0.5; len], 0.0);
        }
    }
}

/// The norm is right for magnitudes whose plain sum of squares overflows or underflows. Each case fills a tensor of several blocks, densely and
/// sparsely.
#[test]
fn any_magnitude_has_its_norm() {
    let least_normal = f32::MIN_POSITIVE;
    let cases: Vec<(&str, Vec<f32>)> = vec![
        ("1e30", vec![1e30]),
        ("1e-30", vec![1e-30]),
        ("1e38", vec![1e38]),
        ("1e-37", vec![1e-37]),
        ("the largest f32", vec![f32::MAX]),
        ("the least normal f32", vec![least_normal]),
        ("2^-40 from both sides", vec![f32::from_bits(0x2b7f_ffff), f32::from_bits(0x2b80_0000)]),
        ("2^40 from both sides", vec![f32::from_bits(0x5380_0000), f32::from_bits(0x5380_0001)]),
        ("1e-38 and 1e30", vec![least_normal, 1e30]),
        ("1, 1e30, 1e-30", vec![1.0, 1e30, 1e-30]),
        ("1e-30, 1", vec![1e-30, -1.0]),
        ("1e-13, 1e-12, 1e-11", vec![1e-13, -1e-12, 1e-11]),
        // Zeros have exponent 0, and f32 cannot represent the factor 4^64 between the two exponents.
        ("down to 2^-64", vec![f32::from_bits((127 - 63) << 23)]),
        ("1e11, 1e12, 1e13", vec![1e11, -1e12, 1e13]),
    ];
    let len = 19_001;
    let mut specs = Vec::new();
    let mut grads = Vec::new();
    let mut numbers = Numbers(11);
    for (name, values) in &cases {
        for sparse in [false, true] {
            // A factor between one half and one that never leaves the normal range.
            let least = if values[0] == least_normal { 1.0 } else { 0.0 };
            let mut share = || (0.75 + 0.25 * numbers.next()).max(least);
            let is_zero = |i: usize| sparse && i % 1777 != 3;
            let g: Vec<f32> =
                (0..len).map(|i| if is_zero(i) { 0.0 } else { values[i % values.len()] * share() }).collect();
            assert!(g.iter().all(|g| *g == 0.0 || g.is_normal()), "{name}");
            specs.push(spec(&g).named(format!("{name}, sparse {sparse}")));
            grads.push(g);
        }
    }
    for mut run in every_path_and_kind(&specs) {
        run.step(&grads);
        let sums = run.sums();
        let records = run.records().records;
        for (i, g) in grads.iter().enumerate() {
            let what = format!("{}, {}", run.path(), specs[i].name);
            // On all of these paths blocks have at most 8192 elements.
            let roundings = cpu_roundings(len) + 32.0;
            assert_square(&what, sums[i].square, g, roundings);
            assert_square(&what, sums[i].initial_square, g, roundings);
            // The record's norm saturates at the largest f32, while the state's does not.
            let norm = exact_square(g).sqrt().min(f64::from(f32::MAX));
            let off = ulps(records[i].norm, norm);
            assert!(off <= roundings, "{what}: norm {:e} is {off} ulps off {norm:e}", records[i].norm);
        }
    }
}

/// The comparison detects seeded faults: the results of a plain sum, a lost tail and a lost block.
#[test]
fn the_comparison_sees_overflow_underflow_and_lost_elements() {
    let refused = |squares: Squares, x: &[f32]| {
        let cpu = cpu_roundings(x.len());
        std::panic::catch_unwind(|| assert_square("a fault", squares, x, cpu)).is_err()
    };
    let of = |sum: f32| Squares { sum, exponent: 0 };
    let plain = |x: &[f32]| of(x.iter().map(|x| x * x).sum::<f32>());
    assert!(refused(plain(&[1e30; 8]), &[1e30; 8]), "overflow");
    assert!(refused(plain(&[1e-30; 8]), &[1e-30; 8]), "underflow");
    assert!(refused(of(f32::NAN), &[1.0]), "NaN");
    let x = Numbers(5).vec(20_000);
    assert!(!refused(plain(&x[..8192]), &x[..8192]), "a right sum passes");
    assert!(refused(plain(&x[..8191]), &x[..8192]), "a lost tail");
    assert!(refused(plain(&x[8192..]), &x), "a lost block");
}

/// A device may flush denormals. The norm is then 0 and the step waits. Where denormals are kept, the norm is right.
#[test]
fn denormals_are_right_or_flushed_but_never_garbage() {
    for value in [f32::from_bits(1), f32::from_bits(0x0040_0000), f32::from_bits(0x007f_ffff)] {
        let g = vec![value; 1000];
        let exact = exact_square(&g);
        let specs = [Spec::new(Rule::sgd(), Regime::seesaw(), vec![vec![1.0; 1000]])];
        for mut run in every_path_and_kind(&specs) {
            run.step(std::slice::from_ref(&g));
            let got = run.sums()[0].square.value();
            let right = (got - exact).abs() <= exact * cpu_roundings(1000) * 2f64.powi(-24);
            let flushed = got == 0.0;
            if run.path() == "CPU path" {
                assert!(right, "Rust keeps denormals: {got:e} instead of {exact:e}");
            }
            assert!(right || flushed, "{}: {got:e} instead of {exact:e} or 0", run.path());
            let record = run.records().records.remove(0);
            assert_eq!(record.flags.zero_gradient(), flushed);
            assert!(run.params()[0].iter().all(|w| w.is_finite()));
        }
    }
}

/// The sums of the alignment are right after two steps, for counters and for a momentum, at three scales of the gradient.
#[test]
fn inner_products_with_the_direction_memory() {
    let len = 10_007;
    let mut numbers = Numbers(23);
    let (first, second) = (numbers.vec(len), numbers.vec(len));
    let rules = [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd(), Rule::signum(0.9), Rule::lion()];
    let (mut specs, mut grads) = (Vec::new(), [Vec::new(), Vec::new()]);
    for (scale, rule) in [1.0f32, 1e-20, 1e20].into_iter().flat_map(|scale| rules.map(|rule| (scale, rule))) {
        let name = format!("{}, {scale}", rule.name());
        specs.push(Spec::new(rule, Regime::seesaw(), vec![vec![0.0; len]]).named(name));
        grads[0].extend(times(scale, std::slice::from_ref(&first)));
        grads[1].extend(times(scale, std::slice::from_ref(&second)));
    }
    let [first, second] = grads;
    for mut run in every_path_and_kind(&specs) {
        run.step(&first);
        let states = run.states();
        run.step(&second);
        let sums = run.sums();
        for (i, spec) in specs.iter().enumerate() {
            let what = format!("{}, {}", run.path(), spec.name);
            let gradient_scale = f64::from(-states[i].gradient_exponent).exp2();
            let momentum_scale = f64::from(-states[i].direction_exponent).exp2();
            let wide = |x: &[f32], scale: f64| -> Vec<f64> { x.iter().map(|&x| f64::from(x) * scale).collect() };
            let g = wide(&second[i], gradient_scale);
            let sign = |x: &f64| x.signum() * f64::from(u8::from(*x != 0.0));
            let before = wide(&first[i], 1.0);
            let memory: Vec<f64> = match spec.rule {
                Rule::Sgd(_) | Rule::SignSgd(_) => before.iter().map(sign).collect(),
                // The first momentum is the gradient, or (1 - β) times it.
                Rule::Sgdm(_) => wide(&first[i], momentum_scale),
                Rule::Lion(_) => wide(&first[i], momentum_scale * f64::from(1.0 - 0.99f32)),
                _ => wide(&first[i], momentum_scale * f64::from(1.0 - 0.9f32)),
            };
            // The addends have signs, so that the error is relative to the sum of their magnitudes. Scaling and the product add two roundings.
            let close = |name: &str, got: f32, a: &[f64], b: &[f64]| {
                let exact: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                let magnitude: f64 = a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum();
                let bound = magnitude * (cpu_roundings(len) + 34.0) * 2f64.powi(-24);
                assert_close(format_args!("{what}: {name}"), got, exact, bound);
            };
            close("⟨g, memory⟩", sums[i].slow_dot, &g, &memory);
            close("‖memory‖²", sums[i].direction_square, &memory, &memory);
            if !spec.rule.has_momentum() {
                let signs: Vec<f64> = g.iter().map(sign).collect();
                close("⟨g, sign u⟩", sums[i].fast_dot, &g, &memory);
                close("‖g‖₁", sums[i].absolute, &g, &signs);
                assert!(sums[i].fast_dot != 0.0 && sums[i].absolute > 0.0);
            }
        }
    }
}

/// A clip uses the raw norm and the regime uses the regularised one. Each has its own sum.
#[test]
fn weight_decay_and_clip_have_a_sum_each() {
    let len = 4099;
    let mut numbers = Numbers(29);
    let (w, g) = (numbers.vec(len), numbers.vec(len));
    let decay = WeightDecay::Coupled(0.5);
    let spec = Spec::new(Rule::sgd(), Regime::seesaw(), vec![w.clone()]);
    let spec = Spec { decay, clip: 1.0, maximize: true, ..spec };
    let seen: Vec<f32> = w.iter().zip(&g).map(|(w, g)| 0.5 * w - g).collect();
    for mut run in every_path_and_kind(&[spec]) {
        run.step(std::slice::from_ref(&g));
        let sums = run.sums()[0];
        let path = run.path();
        assert_square(&format!("{path}, raw"), sums.raw_square, &g, cpu_roundings(len) + 32.0);
        // The expression for `seen` rounds g + λw once per element. The device may fuse it or not.
        assert_square(&format!("{path}, seen"), sums.square, &seen, cpu_roundings(len) + 34.0);
    }
}
