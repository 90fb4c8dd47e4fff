//! Pass 5 on the host: `shaders/finish_update.wgsl`.

use crate::gpu::pass::{Binding, PassSource, Pipeline, shared};
use crate::gpu::tuning::Tuning;

pub(crate) const STEM: &str = "finish_update";

/// Compiles the pass; `tensors` are those that are recorded.
pub(crate) fn pipeline(device: &wgpu::Device, tuning: &Tuning, tensors: u32) -> Pipeline {
    Pipeline::new(
        device,
        &PassSource {
            stem: STEM,
            files: &[
                shared::LAYOUT,
                shared::SCALED,
                shared::TOTALS,
                shared::STEP_SUMS,
                include_str!("../../shaders/finish_update.wgsl"),
            ],
            constants: &[
                ("WORKGROUP", f64::from(tuning.finish_workgroup_size)),
                ("TENSORS", f64::from(tensors.max(1))),
            ],
            groups: &[&[
                Binding::Read,
                Binding::Read,
                Binding::Read,
                Binding::Write,
                Binding::Write,
            ]],
        },
    )
}
