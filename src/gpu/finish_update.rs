//! Pass 5 on the host: `shaders/finish_update.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline};
use crate::gpu::tuning::Tuning;

pub(crate) const STEM: &str = "finish_update";

/// Compiles the pass for a ring of the given number of steps.
pub(crate) fn pipeline(gpu: &Gpu, tuning: &Tuning, ring_steps: u32) -> Pipeline {
    Pipeline::new(
        gpu,
        &PassSource {
            module: STEM,
            stem: STEM,
            features: &[],
            constants: &[("WORKGROUP", f64::from(tuning.finish_workgroup_size)), ("RING_STEPS", f64::from(ring_steps))],
            groups: &[&[Binding::Read, Binding::Read, Binding::Read, Binding::Write, Binding::Write, Binding::Write]],
        },
    )
}
