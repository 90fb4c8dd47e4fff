//! Taking back a lagged step on the host: `shaders/undo_step.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::lagged_step::{elements, with_bindings};
use crate::gpu::pass::{Binding, PassSource, Pipeline, flag, shared};
use crate::gpu::sweep::average;
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Kernel};

pub(crate) const STEM: &str = "undo_step";

/// Compiles the pass for a kernel.
pub(crate) fn pipeline(
    gpu: &Gpu,
    tuning: &Tuning,
    kernel: Kernel,
    access: Access,
    one_buffer: bool,
) -> Pipeline {
    let elements = elements(kernel, access);
    let (source, bindings) =
        with_bindings(include_str!("../../shaders/undo_step.wgsl"), one_buffer);
    let (average, averages) = average(kernel);
    let mut groups: Vec<&[Binding]> = vec![&[Binding::Read], &bindings];
    groups.extend(averages);
    let mut files = vec![shared::LAYOUT, average];
    files.extend(elements.files.iter().map(|file| &**file));
    files.push(&source);
    Pipeline::new(
        gpu,
        &PassSource {
            stem: STEM,
            files: &files,
            constants: &[
                ("WORKGROUP", f64::from(tuning.workgroup_size)),
                ("MEMORY_WORDS", f64::from(kernel.memory_words())),
                ("MEMORY_PLACES", f64::from(kernel.momentum_vectors().max(1))),
                flag("AVERAGES", kernel.averages),
            ],
            groups: &groups,
        },
    )
}
