//! Pass 5 on the host: `shaders/finish_update.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline, shared};
use crate::gpu::tuning::Tuning;

pub(crate) const STEM: &str = "finish_update";

/// Compiles the pass for a ring of so many steps.
pub(crate) fn pipeline(gpu: &Gpu, tuning: &Tuning, ring_steps: u32) -> Pipeline {
    Pipeline::new(
        gpu,
        &PassSource {
            stem: STEM,
            files: &[
                shared::LAYOUT,
                shared::SCALED,
                shared::TOTALS,
                shared::STEP_SUMS,
                include_str!("../../shaders/finish_update.wgsl"),
            ],
            constants: &[("WORKGROUP", f64::from(tuning.finish_workgroup_size)), ("RING_STEPS", f64::from(ring_steps))],
            groups: &[&[Binding::Read, Binding::Read, Binding::Read, Binding::Write, Binding::Write]],
        },
    )
}
