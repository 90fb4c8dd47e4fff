//! Pass 2 on the host: `shaders/finish_reduction.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline, flag};
use crate::gpu::tuning::Tuning;
use crate::plan::Kernel;

pub(crate) const STEM: &str = "finish_reduction";

/// Compiles the pass for everything that any of the kernels measures. `loss_at` is the loss's word in its binding, where it is needed.
pub(crate) fn pipeline(gpu: &Gpu, tuning: &Tuning, kernels: &[Kernel], loss_at: Option<u32>) -> Pipeline {
    let any = |what: fn(Kernel) -> bool| kernels.iter().any(|&kernel| what(kernel));
    Pipeline::new(
        gpu,
        &PassSource {
            module: STEM,
            stem: STEM,
            features: &[],
            constants: &[
                ("WORKGROUP", f64::from(tuning.finish_workgroup_size)),
                flag("RAW_NORM", any(|kernel| kernel.raw_norm)),
                flag("MOMENTUM", any(Kernel::reads_momentum)),
                flag("COUNTERS", any(Kernel::measures_memory)),
                flag("LOSS", loss_at.is_some()),
                ("LOSS_AT", f64::from(loss_at.unwrap_or(0))),
            ],
            groups: &[&[Binding::Read, Binding::Read, Binding::Write, Binding::Write, Binding::Read]],
        },
    )
}
