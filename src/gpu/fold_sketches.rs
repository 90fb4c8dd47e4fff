//! The pass that adds up blocks' sketches on the host: `shaders/fold_sketches.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline, shared};
use crate::gpu::tuning::Tuning;

pub(crate) const STEM: &str = "fold_sketches";

/// Compiles the pass.
pub(crate) fn pipeline(gpu: &Gpu, tuning: &Tuning) -> Pipeline {
    Pipeline::new(
        gpu,
        &PassSource {
            stem: STEM,
            files: &[
                shared::LAYOUT,
                include_str!("../../shaders/fold_sketches.wgsl"),
            ],
            constants: &[("WORKGROUP", f64::from(tuning.finish_workgroup_size))],
            groups: &[&[Binding::Read, Binding::Read, Binding::Write]],
        },
    )
}
