//! The one sweep of [`StepMode::Lagged`](crate::StepMode::Lagged) on the host: `shaders/lagged_step.wgsl`.

use crate::gpu::pass::{Binding, PassSource, Pipeline, shared};
use crate::gpu::sweep::{Measuring, load, read_beside_written, store};
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Kernel};

pub(crate) const STEM: &str = "lagged_step";

/// Compiles the pass for a kernel; `partials` is the number of partials of all scopes.
pub(crate) fn pipeline(
    device: &wgpu::Device,
    tuning: &Tuning,
    kernel: Kernel,
    access: Access,
    one_buffer: bool,
    partials: u32,
) -> Pipeline {
    let remember = if kernel.has_counters() {
        shared::REMEMBER_SIGNS
    } else {
        shared::REMEMBER_MOMENTUM
    };
    let store = store_over_gradients(access);
    let (source, bindings) =
        with_bindings(include_str!("../../shaders/lagged_step.wgsl"), one_buffer);
    let Measuring {
        files,
        mut constants,
    } = Measuring::new(device, tuning, kernel, partials);
    // Its own files are not static.
    let mut files: Vec<&str> = files;
    files.extend([shared::RULE, remember, load(access), &store, &source]);
    constants.push(("RULE", f64::from(kernel.rule as u32)));
    Pipeline::new(
        device,
        &PassSource {
            stem: STEM,
            files: &files,
            constants: &constants,
            groups: &[&[Binding::Read, Binding::Write], &bindings],
        },
    )
}

/// The file that stores new parameters, made to store them where the gradients were.
pub(crate) fn store_over_gradients(access: Access) -> String {
    store(access)
        .replace("parameters[", "gradients[")
        .replace("params_start", "grads_start")
}

/// A lagged step's shader with its bindings: blocks, parameters, gradients, memory, next memory.
pub(crate) fn with_bindings(source: &str, one_buffer: bool) -> (String, [Binding; 5]) {
    let (source, parameters) = read_beside_written(source, "parameters", one_buffer);
    let bindings = [
        Binding::Read,
        parameters,
        Binding::Write,
        Binding::Read,
        Binding::Write,
    ];
    (source, bindings)
}
