//! Tests for drivers that this machine does not have: the kernels of the models are translated to HLSL and MSL, as tests/kernels/translate.rs does
//! for those of the library, and have none of the constructs that compilers there are known to refuse.

use wgpu_optim_conformance::translate::{Kernel, faulty, folder, write_out};

/// Values of override constants.
type Constants = Vec<(&'static str, f64)>;

/// Returns the kernels that the program compiles besides those of an optimizer.
fn kernels() -> Vec<Kernel> {
    let batch = include_str!("../shaders/train/batch.wgsl");
    let layer = |outputs: f64| [("WORKGROUP", 64.0), ("INPUTS", 30.0), ("OUTPUTS", outputs), ("WEIGHTS", 16.0)];
    let with = |constants: &[(&'static str, f64)], more: &[(&'static str, f64)]| [constants, more].concat();
    let workgroup = ("WORKGROUP", 64.0);
    let mut listed: Vec<(&str, &str, Constants)> = vec![
        (
            "gather",
            include_str!("../shaders/train/gather.wgsl"),
            vec![workgroup, ("QUADS", 8.0), ("CHUNK_START", 0.0), ("CHUNK_END", 100.0)],
        ),
        (
            "bias_gradient",
            include_str!("../shaders/train/bias_gradient.wgsl"),
            vec![workgroup, ("OUTPUTS", 10.0), ("BIAS", 4.0)],
        ),
        ("move_cursor", include_str!("../shaders/train/move_cursor.wgsl"), vec![("BATCHES", -1.0)]),
        ("finish_batch", include_str!("../shaders/train/finish_batch.wgsl"), vec![]),
    ];
    for flag in [0.0, 1.0] {
        listed.push((
            "loss",
            include_str!("../shaders/train/loss.wgsl"),
            vec![workgroup, ("CLASSES", 10.0), ("SQUARED_HINGE", flag)],
        ));
        // The rows have whole multiples of four elements, or not.
        for outputs in [10.0, 16.0] {
            listed.push((
                "dense_forward",
                include_str!("../shaders/train/dense_forward.wgsl"),
                with(&layer(outputs), &[("BIAS", 4.0), ("RELU", flag)]),
            ));
        }
    }
    for (entry, source) in [
        ("weight_gradient", include_str!("../shaders/train/weight_gradient.wgsl")),
        ("input_gradient", include_str!("../shaders/train/input_gradient.wgsl")),
    ] {
        listed.push((entry, source, layer(10.0).to_vec()));
    }
    let mut kernels = Vec::new();
    for (number, (entry, source, constants)) in listed.into_iter().enumerate() {
        let text = [batch, source].join("\n");
        let name = format!("train-{number:02}-{entry}");
        kernels.push(Kernel::new(name, &text, entry, &constants));
    }
    kernels
}

#[test]
fn translate_every_kernel_for_direct3d_and_metal() {
    let kernels = kernels();
    assert_eq!(faulty(&kernels), Vec::<String>::new());
    if let Some(folder) = folder() {
        write_out(&folder, &kernels).expect("the folder can be written to");
    }
}
