//! The one sweep of [`StepMode::Lagged`](crate::StepMode::Lagged) on the host: `shaders/lagged_step.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline, shared};
use crate::gpu::sweep::{Elements, Measuring, read_beside_written, with_subgroup_argument};
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Kernel};

pub(crate) const STEM: &str = "lagged_step";

/// Compiles the pass for a kernel.
pub(crate) fn pipeline(
    gpu: &Gpu,
    tuning: &Tuning,
    kernel: Kernel,
    access: Access,
    one_buffer: bool,
) -> Pipeline {
    let remember = if kernel.has_counters() {
        shared::REMEMBER_SIGNS
    } else {
        shared::REMEMBER_MOMENTUM
    };
    let elements = elements(kernel, access);
    let (source, bindings) =
        with_bindings(include_str!("../../shaders/lagged_step.wgsl"), one_buffer);
    let Measuring {
        files,
        mut constants,
    } = Measuring::new(gpu, tuning, kernel);
    // Its own files are not static.
    let mut files: Vec<&str> = files;
    files.extend([shared::RULE, remember]);
    files.extend(elements.files.iter().map(|file| &**file));
    let source = with_subgroup_argument(&source, tuning.partials);
    files.push(&source);
    constants.push(("RULE", f64::from(kernel.rule as u32)));
    Pipeline::new(
        gpu,
        &PassSource {
            stem: STEM,
            files: &files,
            constants: &constants,
            groups: &[&[Binding::Read, Binding::Write], &bindings],
        },
    )
}

/// What loads parameters and gradients, which are f32, and stores new parameters where the gradients were.
pub(crate) fn elements(kernel: Kernel, access: Access) -> Elements {
    let mut elements = Elements::default();
    elements.load_parameters(kernel, access);
    elements.load_gradients(kernel, access);
    elements.store_over_gradients(access);
    elements
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
