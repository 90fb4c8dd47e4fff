//! Errors of names, lengths and places of tensors.

use super::{Device, W, build_error, host_error, on_device, on_host};
use wgpu_optim::{Element, ErrorKind, Gpu, Group, OptimizerBuilder, Regime, Rule, wgpu};
use wgpu_optim_conformance::run::devices;
use wgpu_optim_conformance::{download, storage, upload};

#[test]
fn what_is_missing_given_twice_or_too_long() {
    let none = || OptimizerBuilder::new(Rule::sgd());
    let sgd = || on_host(Rule::sgd());
    let five = ["\"w\"", "4 parameters", "5 gradients"];
    for (builder, words) in [
        (none(), &["has no group", "OptimizerBuilder::group"][..]),
        (sgd().group(Group::new("all")), &["two groups", "\"all\""]),
        (sgd().group(Group::new("other").tensor("w", W, W)), &["two tensors", "\"w\""]),
        (none().group(Group::new("all").tensor("w", W, &[0.0f32; 5])), &five),
    ] {
        assert_eq!(host_error(builder, words).kind(), ErrorKind::Build);
    }
    // Different names are no error.
    sgd().group(Group::new("other").tensor("v", W, W)).build_cpu().expect("builds");
    let gpu = &devices()[0];
    let (w, g) = (upload(gpu, &[0.0; 4]), upload(gpu, &[0.0; 5]));
    build_error(OptimizerBuilder::new(Rule::sgd()), gpu, &["has no group"]);
    build_error(on_device(w.slice(..16), g.slice(..20)), gpu, &five);
}

/// The loss must be a single f32. The losses of a batch, an empty slice and a slice beyond its buffer are refused.
#[test]
fn a_loss_that_is_not_one_number() {
    for gpu in &devices() {
        let (w, g) = (upload(gpu, &[1.0; 4]), upload(gpu, &[1.0; 4]));
        let losses = upload(gpu, &[4.0; 8]);
        for (range, bytes) in [(0..32, 32), (0..0, 0), (28..28, 0), (32..32, 0), (0..8, 8)] {
            let builder = on_device(w.slice(..), g.slice(..)).regime(Regime::polyak()).loss(losses.slice(range));
            let words = ["slice \"loss\"", &format!("is {bytes}, "), "exactly one f32"];
            build_error(builder, gpu, &words);
        }
        let builder = on_device(w.slice(..), g.slice(..)).regime(Regime::polyak()).loss(losses.slice(28..));
        builder.build(gpu).expect("builds");
    }
}

/// Names are the caller's. A message stays on one line whatever characters they contain, and cannot control a terminal.
#[test]
fn control_characters_in_names_are_escaped() {
    let named = |name: &str| OptimizerBuilder::new(Rule::sgd()).group(Group::new("all").tensor(name, W, &[0.0f32; 5]));
    let error = host_error(named("a\n\u{1b}[31m\0"), &["a\\n\\u{1b}[31m\\u{0}", "5 gradients"]);
    assert!(!error.to_string().contains(char::is_control));
}

const COPIES: wgpu::BufferUsages = wgpu::BufferUsages::COPY_DST.union(wgpu::BufferUsages::COPY_SRC);

/// Returns a builder with one tensor of these elements on the device, in byte ranges of two buffers.
fn of_elements(element: Element, params: wgpu::BufferSlice, grads: wgpu::BufferSlice) -> Device {
    let group = Group::new("all").tensor("w", element.of(params), element.of(grads));
    OptimizerBuilder::new(Rule::sgd()).group(group)
}

#[test]
fn slices_that_do_not_lie_on_elements_and_words() {
    for gpu in &devices() {
        let (w, g) = (upload(gpu, &[1.0; 16]), upload(gpu, &[1.0; 16]));
        let (f32, halves) = (&[Element::F32][..], &[Element::F16, Element::Bf16][..]);
        for (elements, params, grads, role, offset_bytes, size_bytes) in [
            (f32, 2..18, 0..16, "parameter", 2, 16),
            (f32, 0..16, 6..22, "gradient", 6, 16),
            (f32, 4..11, 0..8, "parameter", 4, 7),
            (f32, 4..12, 8..17, "gradient", 8, 9),
            (halves, 2..10, 0..8, "parameter", 2, 8),
            (halves, 4..9, 0..5, "parameter", 4, 5),
            (halves, 0..4, 6..10, "gradient", 6, 4),
        ] {
            for &element in elements {
                let builder = of_elements(element, w.slice(params.clone()), g.slice(grads.clone()));
                let place =
                    format!("tensor \"w\": the {role} slice starts at byte {offset_bytes} and is {size_bytes} bytes");
                let each = format!("{} bytes each", element.bytes());
                let error = build_error(builder, gpu, &[&place, "multiple of 4", &each]);
                assert_eq!(error.kind(), ErrorKind::Build);
            }
        }
        assert_eq!(download(gpu, &w, 16), [1.0; 16]);
        // The slice of three elements ends where its buffer ends.
        let (short, whole) = (storage(gpu, 6, COPIES), storage(gpu, 8, COPIES));
        for &element in halves {
            let builder = |buffer: &wgpu::Buffer| of_elements(element, buffer.slice(0..6), g.slice(..6));
            let words = ["\"w\": the parameter slice ends at byte 6 of a buffer of 6", "2 bytes longer"];
            build_error(builder(&short), gpu, &words);
            builder(&whole).build(gpu).expect("builds");
        }
    }
}

#[test]
fn buffers_without_storage_usage() {
    let gpu = &devices()[0];
    let right = upload(gpu, &[1.0; 4]);
    let wrong = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 16,
        usage: COPIES | wgpu::BufferUsages::VERTEX,
        mapped_at_creation: false,
    });
    for (params, grads, role) in [(&wrong, &right, "parameter"), (&right, &wrong, "gradient")] {
        let words = [&format!("\"w\": the {role} buffer"), "without BufferUsages::STORAGE"];
        build_error(on_device(params.slice(..), grads.slice(..)), gpu, &words);
    }
}

#[test]
fn slices_that_overlap() {
    let gpu = &devices()[0];
    let buffers = [(); 2].map(|()| upload(gpu, &[1.0; 64]));
    let slice = |(buffer, from, to): (usize, u64, u64)| buffers[buffer].slice(4 * from..4 * to);
    let builder = |places: [(usize, u64, u64); 4]| {
        let [v, v_grads, w, w_grads] = places.map(slice);
        OptimizerBuilder::new(Rule::sgd())
            .group(Group::new("first").tensor("v", v, v_grads))
            .group(Group::new("second").tensor("w", w, w_grads))
    };
    // The buffer and the elements of the parameters and the gradients of v, then of w, and the two slices that overlap and where.
    for (places, first, second, at) in [
        ([(0, 0, 16), (0, 0, 16), (1, 0, 1), (1, 1, 2)], ("gradients", "v"), ("parameters", "v"), 0..16),
        ([(0, 0, 16), (0, 15, 31), (1, 0, 1), (1, 1, 2)], ("parameters", "v"), ("gradients", "v"), 15..16),
        ([(0, 0, 16), (1, 0, 16), (0, 8, 12), (1, 16, 20)], ("parameters", "v"), ("parameters", "w"), 8..12),
        ([(0, 0, 16), (1, 0, 16), (0, 16, 20), (1, 15, 19)], ("gradients", "v"), ("gradients", "w"), 15..16),
        ([(0, 0, 16), (1, 0, 16), (1, 10, 20), (0, 20, 30)], ("gradients", "v"), ("parameters", "w"), 10..16),
        ([(0, 40, 50), (1, 0, 10), (1, 20, 30), (0, 31, 41)], ("gradients", "w"), ("parameters", "v"), 40..41),
    ] {
        let [first, second] = [first, second].map(|(what, of)| format!("{what} of tensor \"{of}\""));
        let (from, to) = (4 * at.start, 4 * at.end);
        build_error(builder(places), gpu, &[&first, &second, &format!("overlap in bytes {from}..{to} ")]);
    }
    // Slices that touch, or that are empty within another, do not overlap.
    for places in [[(0, 0, 16), (0, 16, 32), (0, 32, 40), (1, 0, 8)], [(0, 0, 16), (1, 0, 16), (0, 8, 8), (1, 8, 8)]] {
        builder(places).build(gpu).expect("builds");
    }
    assert_eq!(download(gpu, &buffers[0], 64), [1.0; 64]);
}

/// Overlaps are determined by bytes, not by elements.
#[test]
fn slices_of_different_elements_that_overlap() {
    let builder = |gpu: &Gpu, halves: std::ops::Range<u64>, floats: std::ops::Range<u64>| {
        let [one, g, h] = [(); 3].map(|()| storage(gpu, 256, COPIES));
        let ends = [&halves, &floats].map(|range| range.end - range.start);
        let group = Group::new("all")
            .tensor("halves", Element::F16.of(one.slice(halves)), Element::F16.of(g.slice(..ends[0])))
            .tensor("floats", one.slice(floats), h.slice(..ends[1]));
        OptimizerBuilder::new(Rule::sgd()).group(group)
    };
    for gpu in &devices() {
        // The elements 0..40 and 12..20.
        let both =
            "the parameters of tensor \"halves\" and the parameters of tensor \"floats\" overlap in bytes 48..80 ";
        build_error(builder(gpu, 0..80, 48..80), gpu, &[both]);
        // The elements 0..40 and 20..30, but the bytes 0..80 and 80..120.
        builder(gpu, 0..80, 80..120).build(gpu).expect("builds");
        builder(gpu, 80..160, 0..80).build(gpu).expect("builds");
    }
}
