//! The pass of a look on the host: `shaders/look.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::learning_rate::WORKGROUP;
use crate::gpu::pass::{Binding, PassSource, Pipeline};
use crate::regime::Kernel;

pub(crate) const STEM: &str = "look";

/// Compiles the pass for the groups of a regime.
pub(crate) fn pipeline(gpu: &Gpu, kernel: &Kernel) -> Pipeline {
    Pipeline::new(
        gpu,
        &PassSource {
            module: STEM,
            stem: STEM,
            features: &["regime", kernel.name],
            constants: &[("WORKGROUP", f64::from(WORKGROUP)), ("REGIME", f64::from(kernel.number()))],
            groups: &[&[Binding::Read, Binding::Read, Binding::Write]],
        },
    )
}
