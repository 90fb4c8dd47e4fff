//! Tests of `Averaging`: for every rule, and wherever tensors lie, an average is that of the iterates by its paper's definition. Skipped steps do not
//! change it. Swapping twice restores everything. A group without an average has no buffer and no dispatch for one.
//!
//! Each of these faults was introduced by hand once and made a test fail: the weight of the step before; a step count that includes skipped steps; an
//! average taken before the update, or of the old parameters; a weight of 1 that is computed instead of copied; only the start of a stretch averaged
//! on the host; copies that swap; copies that start at the block instead of at the tensor.

use wgpu_optim::gpu::Tuning;
use wgpu_optim::internals::layout::{GroupConstants, GroupState, average_kinds};
use wgpu_optim::internals::{Dispatch, PassName};
use wgpu_optim::{Averaging, Error, ErrorKind, Regime, Rule, wgpu};
use wgpu_optim_conformance::run::{
    CpuRun, GpuRun, Place, Run, Setup, Spec, bits, devices, gpu_run_with, lengths, packed, separate,
};
use wgpu_optim_conformance::{
    Kernel, Numbers, assert_all_close, assert_close, assert_refused, download, filled, noise, small_bindings, storage,
    submit, submit_pass, tensors, upload,
};

use crate::helpers::{assert_same_bits, at_odd_places};

fn averagings() -> [Averaging; 4] {
    [
        Averaging::Running { start: 0 },
        Averaging::Exponential { decay: 0.75, start: 1 },
        Averaging::PolynomialDecay { eta: 3.0, start: 2 },
        Averaging::Off,
    ]
}

/// Returns the average of these iterates as a weighted sum in f64, where the optimizer updates it step by step. Returns `None` before the start.
fn definition(averaging: Averaging, iterates: &[Vec<f32>]) -> Option<Vec<f64>> {
    let (start, weight): (u32, &dyn Fn(usize, usize) -> f64) = match averaging {
        Averaging::Running { start } => (start, &|_, k| 1.0 / k as f64),
        Averaging::Exponential { decay, start } => (start, &move |j, k| {
            let decay = f64::from(decay);
            let share = if j == 1 { 1.0 } else { 1.0 - decay };
            share * decay.powi((k - j) as i32)
        }),
        Averaging::PolynomialDecay { eta, start } => (start, &move |j, k| {
            let eta = f64::from(eta);
            let a = |t: usize| (1.0 + eta) / (t as f64 + eta);
            (j + 1..=k).map(|t| 1.0 - a(t)).product::<f64>() * a(j)
        }),
        _ => return None,
    };
    let counted = iterates.get(start as usize..)?;
    let mut average = vec![0.0; counted.first()?.len()];
    for (j, iterate) in counted.iter().enumerate() {
        let weight = weight(j + 1, counted.len());
        for (sum, &w) in average.iter_mut().zip(iterate) {
            *sum += weight * f64::from(w);
        }
    }
    Some(average)
}

/// Asserts that an average is that of the iterates. Each step rounds a weight, a difference, a product and a sum, and the weight of these errors
/// decays with that of the iterate.
#[track_caller]
fn assert_near(path: &str, averaging: Averaging, got: &[f32], iterates: &[Vec<f32>]) {
    let Some(expected) = definition(averaging, iterates) else {
        let now = iterates.last().expect("an iterate");
        assert_eq!(bits(&[got.to_vec()]), bits(std::slice::from_ref(now)), "{path}");
        return;
    };
    let largest = iterates.iter().flatten().fold(0f32, |a, b| a.max(b.abs()));
    let tolerance = 4.0 * f64::from(f32::EPSILON) * f64::from(largest);
    assert_all_close(format_args!("{path}, {averaging:?}"), got, &expected, tolerance);
}

fn group_of(specs: &[Spec]) -> Vec<usize> {
    let groups = specs.iter().enumerate();
    groups.flat_map(|(group, spec)| spec.tensors.iter().map(move |_| group)).collect()
}

fn gradients(specs: &[Spec], step: u64) -> Vec<Vec<f32>> {
    noise(specs, 100 + step)
}

const STEPS: u64 = 8;
const SKIPPED: [u64; 2] = [0, 4];

/// Takes steps, two of which are skipped, and compares the averages with those of the iterates after each of them.
fn check(run: &mut dyn Run, specs: &[Spec]) {
    let mut iterates: Vec<Vec<Vec<f32>>> = lengths(specs).map(|_| Vec::new()).collect();
    for step in 0..STEPS {
        let mut grads = gradients(specs, step);
        let before = bits(&run.averages());
        if SKIPPED.contains(&step) {
            *grads.last_mut().and_then(|g| g.last_mut()).expect("some") = f32::NAN;
        }
        run.step(&grads);
        let averages = run.averages();
        if SKIPPED.contains(&step) {
            assert_eq!(bits(&averages), before, "{}: skipped", run.path());
            continue;
        }
        for (tensor, params) in run.params().into_iter().enumerate() {
            iterates[tensor].push(params);
        }
        for (tensor, &group) in group_of(specs).iter().enumerate() {
            let averaging = specs[group].averaging;
            assert_near(&run.path(), averaging, &averages[tensor], &iterates[tensor]);
        }
    }
    let (averages, params) = (bits(&run.averages()), bits(&run.params()));
    let is_averaged = |group: usize| specs[group].averaging != Averaging::Off;
    let mut tensors = group_of(specs).into_iter().enumerate();
    let is_different = tensors.any(|(tensor, group)| is_averaged(group) && averages[tensor] != params[tensor]);
    assert!(is_different, "{}: averages are parameters", run.path());
}

/// Returns a group for each pair of a rule and an average.
fn every_rule_and_average(lengths: &[usize]) -> Vec<Spec> {
    let mut specs = Vec::new();
    for (rule, averaging) in Rule::all().into_iter().flat_map(|rule| averagings().map(|averaging| (rule, averaging))) {
        let spec = Spec::new(rule, Regime::fixed(0.07), tensors(specs.len() as u64, lengths));
        specs.push(Spec { averaging, ..spec.named(format!("{}", specs.len())) });
    }
    specs
}

#[test]
fn averages_are_those_of_the_iterates_for_every_rule() {
    let specs = every_rule_and_average(&[1, 37, 4]);
    check(&mut CpuRun::new(&specs), &specs);
    for gpu in &devices() {
        for places in [packed(&specs, 3, 0), separate(&specs)] {
            let mut run = GpuRun::new(gpu, &specs, places);
            check(&mut run, &specs);
            run.assert_surroundings_untouched();
        }
    }
}

/// The lengths are those of a block and its neighbours, the starts have every remainder modulo four, and parameters and gradients share a buffer.
#[test]
fn averages_around_the_boundaries_of_blocks() {
    let block = 32;
    let spec_of = |averaging: Averaging, lengths: &[usize]| {
        let spec = Spec::new(Rule::sgdm(0.5), Regime::fixed(0.07), tensors(2, lengths));
        Spec { averaging, ..spec.named(averaging.name()) }
    };
    let [running, exponential, polynomial, off] = averagings();
    let specs = [
        spec_of(running, &[block - 1, block, block + 1, 0, 3]),
        spec_of(off, &[5]),
        spec_of(exponential, &[3 * block + 2, 1]),
        spec_of(polynomial, &[2, 5 * block]),
    ];
    // The gradients follow their parameters, for every second tensor at another remainder.
    let mut at = 1;
    let places: Vec<Place> = lengths(&specs)
        .enumerate()
        .map(|(i, len)| {
            let grads = at + (len + i % 2).next_multiple_of(4) + i % 2;
            let place = Place { params: (0, at), grads: (0, grads) };
            at = grads + len + i % 3;
            place
        })
        .collect();
    for gpu in &devices() {
        let tuning = Tuning { workgroup_size: 4, quads_per_invocation: 2, ..gpu.tuning() };
        let gpu = gpu.clone().with_tuning(tuning).expect("a small geometry");
        assert_eq!(gpu.tuning().block_elements(), block as u32);
        for places in [places.clone(), packed(&specs, 0, 0)] {
            let mut run = GpuRun::new(&gpu, &specs, places);
            check(&mut run, &specs);
            run.assert_surroundings_untouched();
        }
    }
}

/// One tensor needs several windows on the device and several threads on the host.
#[test]
fn averages_of_large_tensors() {
    let averaging = Averaging::PolynomialDecay { eta: 1.0, start: 1 };
    let specs = [Spec { averaging, ..Spec::new(Rule::sgd(), Regime::fixed(0.07), tensors(3, &[140_001, 3])) }];
    check(&mut CpuRun::new(&specs), &specs);
    for gpu in small_bindings(128 << 10) {
        let mut run = GpuRun::with(&gpu, &specs, packed(&specs, 5, 2), |builder| builder.record_steps(4));
        let updates = run.optimizer.dispatches().iter().filter(|dispatch| dispatch.pass == PassName::UpdateParameters);
        assert!(updates.count() > 4);
        check(&mut run, &specs);
    }
}

/// After one swap the parameters are the averages, bit for bit. After two, parameters and averages are those of a run that never swapped.
#[test]
fn exchanged_twice_is_not_exchanged() {
    let specs = every_rule_and_average(&[9, 70]);
    for (mut run, mut alone) in at_odd_places(&specs).into_iter().zip(at_odd_places(&specs)) {
        for step in 0..6 {
            run.step(&gradients(&specs, step));
            alone.step(&gradients(&specs, step));
            let (params, averages) = (bits(&run.params()), bits(&run.averages()));
            run.swap_averages();
            assert_eq!(bits(&run.params()), averages, "{}", run.path());
            if step > 2 {
                assert_ne!(averages, params, "{}", run.path());
            }
            run.swap_averages();
            assert_eq!(bits(&run.params()), params, "{}", run.path());
            assert_eq!(bits(&run.averages()), averages, "{}", run.path());
        }
        assert_same_bits(&*run, &*alone, "exchanged");
    }
}

/// Before an average starts, including before the first step, reading it returns the parameters. It starts as its first iterate, bit for bit, also
/// for signed zeros and the largest numbers.
#[test]
fn an_average_starts_from_its_first_iterate() {
    let values = vec![-0.0, 0.0, f32::MAX, -f32::MAX, 1e-45, 0.1, -3e-39, 7.5, 1.0];
    for averaging in [
        Averaging::Running { start: 3 },
        Averaging::Exponential { decay: 0.999, start: 3 },
        Averaging::PolynomialDecay { eta: 8.0, start: 3 },
    ] {
        let specs = [Spec { averaging, ..Spec::new(Rule::sgd(), Regime::fixed(0.5), vec![values.clone()]) }];
        for mut run in at_odd_places(&specs) {
            for step in 0..=4 {
                let params = bits(&run.params());
                assert_eq!(bits(&run.averages()), params, "{}, {step}", run.path());
                run.swap_averages();
                assert_eq!(bits(&run.params()), params, "{}, {step}", run.path());
                run.swap_averages();
                assert_eq!(bits(&run.params()), params, "{}, {step}", run.path());
                run.step(&[vec![0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 2.0, 3.0]]);
            }
            assert_ne!(bits(&run.averages()), bits(&run.params()), "{}", run.path());
        }
    }
}

/// A group without an average has no buffer and no dispatch for it. Averages do not change the parameters.
#[test]
fn averages_cost_nothing_where_they_are_off_and_change_no_parameter() {
    let specs = every_rule_and_average(&[33]);
    let without: Vec<Spec> = specs.iter().cloned().map(|spec| Spec { averaging: Averaging::Off, ..spec }).collect();
    for (mut with, mut without) in at_odd_places(&specs).into_iter().zip(at_odd_places(&without)) {
        for step in 0..5 {
            let grads: Vec<Vec<f32>> = noise(&specs, step);
            with.step(&grads);
            without.step(&grads);
        }
        assert_eq!(bits(&with.params()), bits(&without.params()));
    }
    for gpu in &devices() {
        // Averages are the first buffer of the third bind group.
        let averages = |specs: &[Spec]| -> Vec<(PassName, bool)> {
            let run = gpu_run_with(gpu, specs, Setup::default());
            let has_averages = |dispatch: &Dispatch| {
                let third = dispatch.bind_groups.get(2);
                let has_first = third.is_some_and(|group| group.buffers().iter().any(|buffer| buffer.binding == 0));
                // Passes of the rules have other buffers at this binding.
                has_first && dispatch.pass != PassName::Prepare
            };
            let dispatches = run.optimizer.dispatches().iter();
            dispatches.map(|dispatch| (dispatch.pass, has_averages(dispatch))).collect()
        };
        assert!(averages(&without).iter().all(|(_, has)| !has));
        let with = averages(&specs);
        let averaging = with.iter().filter(|(_, has)| *has).count();
        assert!(averaging >= 5 && averaging < with.len(), "{with:?}");
        assert!(with.iter().all(|(pass, _)| *pass != PassName::SwapAverages), "{with:?}");
    }
}

/// While the averages are swapped in, only the swap back can be recorded.
#[test]
fn steps_and_copies_are_refused_while_averages_are_swapped_in() {
    let swapped = |told: Result<(), Error>, what: &str| {
        assert_eq!(assert_refused(told, &[what, "swapped in"]).kind(), ErrorKind::Call);
    };
    let spec = Spec::new(Rule::sgd(), Regime::fixed(0.5), vec![vec![1.0; 5], vec![2.0; 2]]);
    // The parameters of both tensors after two steps, their averages, and the tolerance.
    for (averaging, params, averages, allowed) in [
        (Averaging::Running { start: 0 }, [0.0, 1.0], [0.25, 1.25], 0.0),
        // z is 1/2 and 0, with the weights 1/4 and 1.
        (Averaging::ScheduleFree, [0.085, 1.085], [0.1, 1.1], 1e-6),
    ] {
        let specs = [Spec { averaging, ..spec.clone() }];
        for gpu in &devices() {
            let mut run = gpu_run_with(gpu, &specs, Setup::default());
            run.step(&filled(&specs, 1.0));
            let place = upload(gpu, &[0.0; 5]);
            let optimizer = &mut run.optimizer;
            submit(gpu, |encoder| {
                assert!(!optimizer.averages_are_swapped());
                optimizer.encode_swap_averages(encoder).expect("alive");
                assert!(optimizer.averages_are_swapped());
                swapped(optimizer.encode_step(encoder), "a step");
                swapped(optimizer.encode_copy_averages(encoder, 0, place.slice(..20)), "a copy of the averages");
                optimizer.encode_swap_averages(encoder).expect("alive");
                assert!(!optimizer.averages_are_swapped());
                optimizer.encode_step(encoder).expect("alive");
            });
            for (got, expected) in [(run.params(), params), (run.averages(), averages)] {
                let expected = [vec![expected[0]; 5], vec![expected[1]; 2]].concat();
                assert_all_close(format_args!("{}, {averaging:?}", run.path()), &got.concat(), &expected, allowed);
            }
            // Swap there and back in the caller's own pass.
            for expected in [bits(&run.averages()), bits(&run.params())] {
                submit_pass(gpu, |pass| {
                    run.optimizer.encode_swap_averages_in(pass).expect("alive");
                });
                assert_eq!(bits(&run.params()), expected, "{}, {averaging:?}", run.path());
            }
            assert!(!run.optimizer.averages_are_swapped());
        }
        let optimizer = &mut CpuRun::new(&specs).optimizer;
        let (mut a, mut b) = (vec![1.0; 5], vec![2.0; 2]);
        let (c, d) = ([1.0; 5], [1.0; 2]);
        assert_eq!(optimizer.averages(0), None);
        optimizer.step(&mut [&mut a, &mut b], &[&c[..], &d]).expect("steps");
        optimizer.drain_records();
        optimizer.swap_averages(&mut [&mut a, &mut b]).expect("swaps");
        assert!(optimizer.averages_are_swapped());
        swapped(optimizer.step(&mut [&mut a, &mut b], &[&c[..], &d]), "a step");
        let place = &mut [0.0; 5];
        swapped(optimizer.copy_averages(0, &a, place), "a copy of the averages");
        assert!(optimizer.drain_records().records.is_empty());
        optimizer.swap_averages(&mut [&mut a, &mut b]).expect("swaps");
        assert!(!optimizer.averages_are_swapped());
        // Schedule-free averages are computed from the parameters and are not stored.
        assert_eq!(optimizer.averages(0).is_none(), averaging == Averaging::ScheduleFree);
        assert_refused(optimizer.copy_averages(2, &a, place), &["no tensor 2", "the optimizer has 2"]);
        assert_refused(optimizer.copy_averages(0, &a[..4], place), &["5 elements", "given 4 parameters"]);
        let short = optimizer.copy_averages(0, &a, &mut place[..4]);
        assert_refused(short, &["5 elements", "place for its averages has 4"]);
        optimizer.copy_averages(0, &a, place).expect("copies");
    }
}

/// A copy of the averages writes its own range of any buffer, and nothing else.
#[test]
fn copies_of_averages_touch_nothing_but_their_place() {
    let mut specs = [
        Spec::new(Rule::sgd(), Regime::fixed(0.5), vec![Numbers(1).vec(7), vec![], Numbers(2).vec(66)]),
        Spec::new(Rule::sgd(), Regime::fixed(0.5), vec![vec![1.0; 3]]).named("off"),
    ];
    specs[0].averaging = Averaging::Running { start: 0 };
    for gpu in &devices() {
        let mut run = GpuRun::new(gpu, &specs, packed(&specs, 2, 0));
        for step in 0..3 {
            run.step(&gradients(&specs, step));
        }
        let averages = run.averages();
        let place = upload(gpu, &[9.0; 80]);
        let optimizer = &run.optimizer;
        submit(gpu, |encoder| {
            optimizer.encode_copy_averages(encoder, 2, place.slice(12..12 + 4 * 66)).expect("alive");
            optimizer.encode_copy_averages(encoder, 0, place.slice(4 * 71..4 * 78)).expect("alive");
        });
        let mut expected = vec![9.0; 80];
        expected[3..69].copy_from_slice(&averages[2]);
        expected[71..78].copy_from_slice(&averages[0]);
        assert_eq!(download(gpu, &place, 80), expected, "{}", gpu.describe());
        assert_ne!(averages[2], run.params()[2]);
        for (tensor, expected) in averages.iter().take(3).enumerate() {
            let read = pollster::block_on(optimizer.read_averages(tensor));
            assert_eq!(read.as_ref(), Ok(expected), "{}", gpu.describe());
        }
        run.assert_surroundings_untouched();

        let copy_only = storage(gpu, 28, wgpu::BufferUsages::empty());
        let optimizer = &run.optimizer;
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut refused = |tensor, slice, kind, words: &[&str]| {
            let error = assert_refused(optimizer.encode_copy_averages(&mut encoder, tensor, slice), words);
            assert_eq!(error.kind(), kind, "{error}");
        };
        refused(4, place.slice(..12), ErrorKind::Call, &["no tensor 4", "the optimizer has 4"]);
        refused(3, place.slice(..12), ErrorKind::Call, &["tensor \"off/0\" has no average"]);
        refused(0, place.slice(..24), ErrorKind::Call, &["\"group/0\" has 7 elements", "averages has 6"]);
        refused(0, place.slice(2..30), ErrorKind::Build, &["the average slice starts at byte 2"]);
        refused(0, copy_only.slice(..), ErrorKind::Build, &["without BufferUsages::COPY_DST"]);
    }
}

const WEIGHTS: &str = "
@group(0) @binding(0) var<storage, read> groups: array<GroupConstants>;
@group(0) @binding(1) var<storage, read> states: array<GroupState>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;
@compute @workgroup_size(64) fn weigh(@builtin(local_invocation_index) i: u32) {
    if i < arrayLength(&groups) {
        weights[i] = average_weight(groups[i], steps_taken(states[i]));
    }
}
";

/// The weight follows from the exact number of steps taken, also past 2^24, where f32 can no longer count, past 2^32, and with skipped steps.
#[test]
fn weights_are_right_after_any_number_of_steps() {
    let (mut groups, mut states, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for (taken, skipped) in [
        (0u64, 0u32),
        (4, 0),
        (5, 0),
        (5, 7),
        (6, 0),
        (7, u32::MAX),
        ((1 << 24) + 4, 0),
        ((1 << 24) + 5, 1),
        ((1 << 24) + 6, 3),
        ((1 << 32) - 2, 100),
        ((1 << 32) - 1, 0),
        (1 << 32, 0),
        (1 << 40, 5),
    ] {
        for start in [0, 5, (1 << 24) + 5] {
            for (average, gain) in [
                (average_kinds::OFF, 0.0),
                (average_kinds::POLYNOMIAL, 1.0f32),
                (average_kinds::POLYNOMIAL, 9.0),
                (average_kinds::EXPONENTIAL, 0.001),
            ] {
                let steps = taken + u64::from(skipped);
                groups.push(GroupConstants {
                    average,
                    average_start: start,
                    average_gain: gain,
                    ..bytemuck::Zeroable::zeroed()
                });
                states.push(GroupState {
                    steps_low: steps as u32,
                    steps_high: (steps >> 32) as u32,
                    skipped,
                    ..GroupState::default()
                });
                let k = taken.min(u64::from(u32::MAX)) as f64 - f64::from(start) + 1.0;
                let eta = f64::from(gain) - 1.0;
                expected.push(match average {
                    _ if k < 1.0 => 0.0,
                    average_kinds::OFF => 0.0,
                    average_kinds::EXPONENTIAL if k > 1.0 => f64::from(gain),
                    _ => (1.0 + eta) / (k + eta),
                });
            }
        }
    }
    let source = wgpu_optim::internals::link("learning_rate/average_share", &[]) + WEIGHTS;
    for gpu in &devices() {
        let mut weights = Vec::new();
        for (groups, states) in groups.chunks(64).zip(states.chunks(64)) {
            let out = upload(gpu, &[f32::NAN; 64]);
            let groups_there = upload(gpu, bytemuck::cast_slice(groups));
            let states = upload(gpu, bytemuck::cast_slice(states));
            let kernel = Kernel::new(gpu, &source, &[&groups_there, &states, &out]);
            submit_pass(gpu, |pass| kernel.dispatch(pass));
            weights.extend(download(gpu, &out, groups.len()));
        }
        for (case, (&weight, &expected)) in weights.iter().zip(&expected).enumerate() {
            // The errors are those of a conversion, a sum, and a division, for which WGSL allows 2.5 ulps.
            let tolerance = 4.0 * f64::from(f32::EPSILON) * expected;
            let what = format_args!("{}: {:?} {:?}", gpu.describe(), groups[case], states[case]);
            assert_close(what, weight, expected, tolerance);
            assert!(expected != 1.0 || weight == 1.0);
        }
        assert_eq!(weights.len(), expected.len());
    }
}
