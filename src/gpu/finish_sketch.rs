//! The last pass, where a regime goes by a sketch, on the host: `shaders/finish_sketch.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline, shared};
use crate::gpu::tuning::Tuning;

pub(crate) const STEM: &str = "finish_sketch";

/// Compiles the pass for rows that were folded by so many.
pub(crate) fn pipeline(gpu: &Gpu, tuning: &Tuning, stride: u32) -> Pipeline {
    Pipeline::new(
        gpu,
        &PassSource {
            stem: STEM,
            files: &[
                shared::LAYOUT,
                shared::SCALED,
                include_str!("../../shaders/finish_sketch.wgsl"),
            ],
            constants: &[
                ("WORKGROUP", f64::from(tuning.finish_workgroup_size)),
                ("STRIDE", f64::from(stride)),
            ],
            groups: &[&[
                Binding::Read,
                Binding::Read,
                Binding::Read,
                Binding::Read,
                Binding::Write,
                Binding::Write,
            ]],
        },
    )
}
