//! Errors of calls with slices other than the declared ones, and of calls for something that does not exist.

use super::{W, on_device, on_host};
use wgpu_optim::{Averaging, ErrorKind, Group, OptimizerBuilder, Regime, Rule};
use wgpu_optim_conformance::run::devices;
use wgpu_optim_conformance::{assert_refused, assert_says, upload};

#[test]
fn cpu_steps_with_other_slices_than_declared() {
    let (a, b) = (vec![1.0f32; 4], vec![1.0f32; 9]);
    let mut optimizer = OptimizerBuilder::new(Rule::sgdm(0.9))
        .group(Group::new("all").tensor("a", &a, &a).tensor("b", &b, &b))
        .build_cpu()
        .expect("builds");
    let (mut w, mut v) = (a.clone(), b.clone());
    let states = optimizer.states().to_vec();
    for (told, words) in [
        (optimizer.step(&mut [&mut w], &[&a, &b]), &["2 tensors", "1 parameter slices"][..]),
        (optimizer.step(&mut [&mut w, &mut v], &[&a, &b, &b]), &["2 tensors", "3 gradient slices"]),
        (optimizer.step(&mut [&mut w, &mut v[..8]], &[&a, &b]), &["\"b\"", "9 elements", "8 parameters"]),
        (optimizer.step(&mut [&mut w, &mut v], &[&b, &a]), &["\"a\"", "4 elements", "9 gradients"]),
    ] {
        assert_eq!(assert_refused(told, words).kind(), ErrorKind::Call);
    }
    assert_eq!((&w, &v), (&a, &b), "parameters changed");
    assert_eq!(optimizer.states(), states);
    assert!(optimizer.drain_records().records.is_empty());
    optimizer.step(&mut [&mut w, &mut v], &[&a, &b]).expect("the right slices");
    assert_ne!(w, a);
}

/// Errors of averages where none is kept, and of slices that are not the optimizer's. tests/optimizer/averaging.rs tests the rest.
#[test]
fn averages_that_are_not_there() {
    let mut w = [1.0f32; 4];
    let mut optimizer = on_host(Rule::sgd()).build_cpu().expect("builds");
    let none = &["the optimizer has no average", "Averaging", "Off"];
    assert_refused(optimizer.swap_averages(&mut [&mut w]), none);
    assert!(!optimizer.averages_are_swapped());
    assert_eq!((optimizer.averages(0), optimizer.averages(7)), (None, None));
    let mut averaged = on_host(Rule::sgd()).averaging(Averaging::polynomial_decay()).build_cpu().expect("builds");
    averaged.step(&mut [&mut w], &[&[1.0; 4]]).expect("steps");
    let before = w;
    assert_refused(averaged.swap_averages(&mut [[0.0f32; 4]; 0]), &["1 tensors"]);
    assert_refused(averaged.swap_averages(&mut [&mut w[..3]]), &["\"w\""]);
    assert!(!averaged.averages_are_swapped());
    assert_eq!(w, before);
    assert!(averaged.averages(0).is_some() && averaged.averages(1).is_none());
    averaged.swap_averages(&mut [&mut w]).expect("swaps");
    assert_refused(averaged.step(&mut [&mut w], &[W]), &["a step", "swapped in", "swap_averages"]);
    for gpu in &devices() {
        let (w, g) = (upload(gpu, &[1.0; 4]), upload(gpu, &[1.0; 4]));
        let mut optimizer = on_device(w.slice(..), g.slice(..)).build(gpu).expect("builds");
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        assert_refused(optimizer.encode_swap_averages(&mut encoder), none);
        assert!(!optimizer.averages_are_swapped());
        optimizer.encode_step(&mut encoder).expect("alive");
    }
}

#[test]
fn a_loss_that_nobody_gave_is_asked_for() {
    let mut optimizer = on_host(Rule::sgd()).regime(Regime::polyak()).build_cpu().expect("builds");
    let mut params = [1.0; 4];
    let error = optimizer.step(&mut [&mut params], &[W]).expect_err("no loss");
    assert_says(error, &["regime polyak needs the loss", "step_with_loss"]);
    assert_eq!(params, [1.0; 4]);
    for gpu in &devices() {
        let (w, g) = (upload(gpu, W), upload(gpu, W));
        let error = on_device(w.slice(..), g.slice(..)).regime(Regime::ngn()).build(gpu).expect_err("no loss");
        assert_says(error, &["OptimizerBuilder::loss"]);
    }
}
