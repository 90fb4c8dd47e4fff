//! Pass 4 on the host: `shaders/update_parameters.wgsl`.

use crate::gpu::pass::{Binding, PassSource, Pipeline, flag, shared};
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Kernel};

pub(crate) const STEM: &str = "update_parameters";

const SOURCE: &str = include_str!("../../shaders/update_parameters.wgsl");
const GRADIENTS_READ: &str = "var<storage, read> gradients";
const GRADIENTS_WRITE: &str = "var<storage, read_write> gradients";

/// Compiles the pass for a kernel.
///
/// With `one_buffer` parameters and gradients lie in one buffer: wgpu then wants both bindings to have the same access, though
/// gradients are never written.
pub(crate) fn pipeline(
    device: &wgpu::Device,
    tuning: &Tuning,
    kernel: Kernel,
    access: Access,
    one_buffer: bool,
) -> Pipeline {
    let (load, store) = match access {
        Access::Quads => (shared::LOAD_QUADS, shared::STORE_QUADS),
        Access::Scalars => (shared::LOAD_SCALARS, shared::STORE_SCALARS),
    };
    let source = if one_buffer {
        SOURCE.replace(GRADIENTS_READ, GRADIENTS_WRITE)
    } else {
        SOURCE.to_owned()
    };
    let gradients = if one_buffer {
        Binding::Write
    } else {
        Binding::Read
    };
    Pipeline::new(
        device,
        &PassSource {
            stem: STEM,
            files: &[
                shared::LAYOUT,
                shared::COUNTERS,
                shared::RULE,
                load,
                store,
                &source,
            ],
            constants: &[
                ("WORKGROUP", f64::from(tuning.workgroup_size)),
                ("RULE", f64::from(kernel.rule as u32)),
                flag("COUPLED_DECAY", kernel.coupled_decay),
                flag("COUNTERS", kernel.has_counters()),
            ],
            groups: &[
                &[Binding::Read],
                &[
                    Binding::Read,
                    Binding::Write,
                    gradients,
                    Binding::Write,
                    Binding::Write,
                ],
            ],
        },
    )
}
