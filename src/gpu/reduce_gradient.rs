//! Pass 1 on the host: `shaders/reduce_gradient.wgsl`.

use crate::gpu::pass::{Binding, PassSource, Pipeline, flag, shared};
use crate::gpu::tuning::{Partials, Tuning};
use crate::plan::{Access, Kernel};

pub(crate) const STEM: &str = "reduce_gradient";

/// Compiles the pass for a kernel; `partials` is the number of partials of all scopes.
pub(crate) fn pipeline(
    device: &wgpu::Device,
    tuning: &Tuning,
    kernel: Kernel,
    access: Access,
    partials: u32,
) -> Pipeline {
    let load = match access {
        Access::Quads => shared::LOAD_QUADS,
        Access::Scalars => shared::LOAD_SCALARS,
    };
    let emit: &[&str] = match tuning.partials {
        Partials::PerInvocation => &[shared::EMIT_PER_INVOCATION],
        Partials::PerWorkgroup => &[shared::TREE, shared::EMIT_PER_WORKGROUP],
        Partials::Subgroup => &[shared::EMIT_PER_SUBGROUP],
    };
    let mut constants = vec![
        ("WORKGROUP", f64::from(tuning.workgroup_size)),
        ("PARTIALS", f64::from(partials)),
        flag("COUPLED_DECAY", kernel.coupled_decay),
        flag("RAW_NORM", kernel.raw_norm),
        flag("INITIAL_NORM", kernel.initial_norm),
        flag("MOMENTUM", kernel.reads_momentum()),
        flag("COUNTERS", kernel.has_counters()),
    ];
    let mut files = Vec::new();
    if tuning.partials == Partials::Subgroup {
        files.push(shared::ENABLE_SUBGROUPS);
        let subgroups = tuning.subgroups(&device.adapter_info());
        constants.push(("SUBGROUPS", f64::from(subgroups)));
    }
    files.extend([
        shared::LAYOUT,
        shared::SCALED,
        shared::TOTALS,
        shared::COUNTERS,
        load,
    ]);
    files.extend(emit);
    files.push(include_str!("../../shaders/reduce_gradient.wgsl"));
    Pipeline::new(
        device,
        &PassSource {
            stem: STEM,
            files: &files,
            constants: &constants,
            groups: &[
                &[Binding::Read, Binding::Read, Binding::Write],
                &[
                    Binding::Read,
                    Binding::Read,
                    Binding::Read,
                    Binding::Read,
                    Binding::Read,
                ],
            ],
        },
    )
}
