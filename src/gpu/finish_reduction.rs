//! Pass 2 on the host: `shaders/finish_reduction.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline, flag};
use crate::gpu::tuning::Tuning;
use crate::plan::Kernel;

pub(crate) const STEM: &str = "finish_reduction";

/// Compiles the pass for all sums that any of the kernels measures. `loss_at` is the word of the loss in its binding, if a regime needs it.
pub(crate) fn pipeline(gpu: &Gpu, tuning: &Tuning, kernels: &[Kernel], loss_at: Option<u32>) -> Pipeline {
    let any = |what: fn(Kernel) -> bool| kernels.iter().any(|&kernel| what(kernel));
    let mut constants = vec![
        ("WORKGROUP", f64::from(tuning.finish_workgroup_size)),
        flag("RAW_NORM", any(|kernel| kernel.raw_norm)),
        flag("MOMENTUM", any(Kernel::reads_momentum)),
        flag("COUNTERS", any(Kernel::measures_memory)),
    ];
    constants.extend(loss_at.map(|at| ("LOSS_AT", f64::from(at))));
    Pipeline::new(
        gpu,
        &PassSource {
            module: STEM,
            stem: STEM,
            features: if loss_at.is_some() { &["loss"] } else { &[] },
            constants: &constants,
            groups: &[&[Binding::Read, Binding::Read, Binding::Write, Binding::Write, of_loss(loss_at)]],
        },
    )
}

/// Returns the binding of the loss, which is absent if no regime needs it.
pub(crate) fn of_loss(loss_at: Option<u32>) -> Binding {
    if loss_at.is_some() { Binding::Read } else { Binding::Absent }
}
