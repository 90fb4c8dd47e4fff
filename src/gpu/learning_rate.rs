//! Pass 3 on the host: `shaders/learning_rate.wgsl`.

use crate::gpu::pass::{Binding, PassSource, Pipeline, shared};

pub(crate) const STEM: &str = "learning_rate";

/// Invocations per workgroup; a workgroup serves this many groups.
pub(crate) const WORKGROUP: u32 = 8;

/// Compiles the pass.
pub(crate) fn pipeline(device: &wgpu::Device) -> Pipeline {
    Pipeline::new(
        device,
        &PassSource {
            stem: STEM,
            files: &[
                shared::LAYOUT,
                shared::SCALED,
                shared::REGIMES,
                include_str!("../../shaders/learning_rate.wgsl"),
            ],
            constants: &[("WORKGROUP", f64::from(WORKGROUP))],
            groups: &[&[
                Binding::Read,
                Binding::Read,
                Binding::Write,
                Binding::Write,
                Binding::Write,
                Binding::Write,
            ]],
        },
    )
}
