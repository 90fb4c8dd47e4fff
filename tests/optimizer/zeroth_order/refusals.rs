//! Errors and their messages.

use wgpu_optim::half::bf16;
use wgpu_optim::{Element, Error, ErrorKind, NormRatio, Regime, ZerothOrderBuilder, ZerothOrderMethod, cpu, wgpu};
use wgpu_optim_conformance::run::devices;
use wgpu_optim_conformance::{assert_refused, upload};

use super::{Run, Spec};

type Host = ZerothOrderBuilder<cpu::Tensor>;

fn host(method: ZerothOrderMethod) -> Host {
    ZerothOrderBuilder::new(method, Regime::fixed(0.1)).shaped_tensor("w", &[2, 2], &[0.0f32; 4])
}

#[track_caller]
fn refused(builder: Host, words: &[&str]) -> Error {
    let error = assert_refused(builder.build_cpu(), words);
    assert_eq!(error.kind(), ErrorKind::Build);
    error
}

#[test]
fn settings_out_of_range_are_refused() {
    let mezo = || host(ZerothOrderMethod::mezo());
    for epsilon in [0.0, -1e-3, f32::NAN, f32::INFINITY, 1e-30] {
        refused(mezo().epsilon(epsilon), &["zeroth-order optimizer (mezo)", "epsilon", "between 1e-20 and 1e6"]);
    }
    for decay in [-0.1, f32::NAN, f32::INFINITY] {
        refused(mezo().weight_decay(decay), &["zeroth-order optimizer", "weight_decay"]);
    }
    for rank in [0, 33] {
        let words = ["zeroth-order method lozo", "rank", "between 1 and 32"];
        refused(host(ZerothOrderMethod::Lozo { rank, interval: 1 }), &words);
        let words = ["zeroth-order method lozo-m", "rank", "between 1 and 32"];
        refused(host(ZerothOrderMethod::LozoM { rank, interval: 1, momentum: 0.5 }), &words);
    }
    refused(host(ZerothOrderMethod::Lozo { rank: 1, interval: 0 }), &["interval is 0", "at least 1"]);
    for momentum in [1.0, -0.1, f32::NAN] {
        let method = ZerothOrderMethod::LozoM { rank: 1, interval: 1, momentum };
        refused(host(method), &["zeroth-order method lozo-m", "momentum", "at least 0 and below 1"]);
    }
}

#[test]
fn other_regimes_are_refused() {
    for regime in Regime::all() {
        let builder = ZerothOrderBuilder::new(ZerothOrderMethod::mezo(), regime).tensor("w", &[0.0f32; 4]);
        let built = builder.build_cpu();
        match regime {
            Regime::Fixed(_) | Regime::NormRatio(_) => drop(built.expect("builds")),
            _ => drop(assert_refused(built, &["regime", regime.name(), "Regime::fixed(rate)"])),
        }
    }
    let regime = Regime::NormRatio(NormRatio { smoothing: 1.0, ..NormRatio::default() });
    let builder = ZerothOrderBuilder::new(ZerothOrderMethod::mezo(), regime).tensor("w", &[0.0f32; 4]);
    refused(builder, &["regime norm-ratio", "smoothing"]);
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let mezo = || ZerothOrderBuilder::new(ZerothOrderMethod::mezo(), Regime::fixed(0.1));
    refused(mezo().tensor("w", &[bf16::ONE; 4]), &["tensor \"w\"", "element is bf16", "f32"]);
    refused(mezo().shaped_tensor("w", &[2, 3], &[0.0f32; 4]), &["tensor \"w\"", "[2, 3]", "4 elements"]);
    refused(mezo().tensor("w", &[0.0f32; 4]).tensor("w", &[0.0f32; 4]), &["two tensors are named \"w\""]);
    // Without a matrix, LOZO would silently be MeZO.
    for method in [ZerothOrderMethod::lozo(), ZerothOrderMethod::lozo_m()] {
        let builder = ZerothOrderBuilder::new(method, Regime::fixed(0.1));
        let builder = builder.tensor("w", &[0.0f32; 4]).shaped_tensor("b", &[4], &[0.0f32; 4]);
        refused(builder, &["without a matrix", "shaped_tensor", "ZerothOrderMethod::mezo()"]);
    }
    // An optimizer without tensors is allowed.
    let mut none = mezo().build_cpu().expect("builds");
    let params: &mut [Vec<f32>] = &mut [];
    none.perturb(params).expect("perturbs");
    none.reverse(params, 2.0).expect("reverses");
    none.step(params, 1.0).expect("steps");
}

#[test]
fn slices_that_were_not_declared_are_refused() {
    let mut optimizer = host(ZerothOrderMethod::lozo()).build_cpu().expect("builds");
    let is_call = |error: Error| assert_eq!(error.kind(), ErrorKind::Call);
    is_call(assert_refused(optimizer.perturb(&mut [[0.0f32; 5]]), &["tensor \"w\"", "4 elements", "5 parameters"]));
    is_call(assert_refused(optimizer.perturb(&mut [[bf16::ONE; 4]]), &["tensor \"w\"", "f32", "bf16"]));
    is_call(assert_refused(optimizer.perturb(&mut [[0.0f32; 4]; 2]), &["1 tensors", "2 parameter slices"]));
    // None of these calls counted.
    let mut w = [[1.0f32; 4]];
    optimizer.perturb(&mut w).expect("the first call");
    assert_ne!(w, [[1.0; 4]]);
}

/// On every path a call out of turn is refused, and the right call is accepted afterwards. On the CPU path the parameters are compared too.
#[test]
fn calls_out_of_turn_are_refused() {
    let spec = Spec::filled(ZerothOrderMethod::mezo(), &[&[6]], 1.0);
    let mut run = spec.on_host();
    let words = [
        ["out of turn", "a step begins with perturb"],
        ["out of turn", "reverse comes next"],
        ["out of turn", "step comes next"],
    ];
    for (stage, words) in words.iter().enumerate() {
        let before = run.params.clone();
        for call in (0..3).filter(|&call| call != stage) {
            let result = match call {
                0 => run.optimizer.perturb(&mut run.params),
                1 => run.optimizer.reverse(&mut run.params, 1.0),
                _ => run.optimizer.step(&mut run.params, 1.0),
            };
            assert_eq!(assert_refused(result, words).kind(), ErrorKind::Call);
        }
        assert_eq!(run.params, before);
        match stage {
            0 => run.perturb(),
            1 => run.reverse(1.0),
            _ => run.step(1.0),
        }
    }
    for gpu in &devices() {
        let mut run = spec.on_device(gpu);
        for (stage, words) in words.iter().enumerate() {
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            for call in (0..3).filter(|&call| call != stage) {
                let result = match call {
                    0 => run.optimizer.encode_perturb(&mut encoder),
                    1 => run.optimizer.encode_reverse(&mut encoder),
                    _ => run.optimizer.encode_step(&mut encoder),
                };
                assert_eq!(assert_refused(result, words).kind(), ErrorKind::Call);
            }
            match stage {
                0 => run.perturb(),
                1 => run.reverse(1.0),
                _ => run.step(1.0),
            }
        }
        assert_eq!(run.records().records.len(), 1);
    }
}

#[test]
fn buffers_that_do_not_fit_are_refused() {
    for gpu in &devices() {
        let (buffer, loss) = (upload(gpu, &[1.0; 64]), upload(gpu, &[0.0; 4]));
        let mezo = || ZerothOrderBuilder::new(ZerothOrderMethod::mezo(), Regime::fixed(0.1));
        let of = |range: std::ops::Range<u64>| mezo().tensor("w", buffer.slice(range));
        let slot = || loss.slice(..4);
        assert_refused(of(0..6).build(gpu, slot()), &["tensor \"w\"", "multiple of 4"]);
        assert_refused(of(2..6).build(gpu, slot()), &["tensor \"w\"", "byte 2"]);
        let half = mezo().tensor("w", Element::Bf16.of(buffer.slice(..8)));
        assert_refused(half.build(gpu, slot()), &["tensor \"w\"", "element is bf16", "f32"]);
        let both = of(0..16).tensor("v", buffer.slice(12..32));
        assert_refused(both.build(gpu, slot()), &["tensor \"w\"", "tensor \"v\"", "overlap in bytes 12..16"]);
        assert_refused(of(0..16).build(gpu, buffer.slice(8..12)), &["tensor \"w\"", "\"loss\"", "overlap"]);
        assert_refused(of(0..16).build(gpu, loss.slice(..8)), &["\"loss\"", "exactly one f32"]);
        let no_storage = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 16,
            usage: wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        assert_refused(of(0..16).build(gpu, no_storage.slice(..4)), &["\"loss\"", "BufferUsages::STORAGE"]);
        let tensor = mezo().tensor("w", no_storage.slice(..));
        assert_refused(tensor.build(gpu, slot()), &["tensor \"w\"", "BufferUsages::STORAGE"]);
        // The loss may be next to the parameters.
        of(0..16).build(gpu, buffer.slice(16..20)).expect("builds");
    }
}
