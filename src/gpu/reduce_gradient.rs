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
    let emit = Emit::new(device, tuning);
    let mut constants = vec![
        ("WORKGROUP", f64::from(tuning.workgroup_size)),
        ("PARTIALS", f64::from(partials)),
        flag("COUPLED_DECAY", kernel.coupled_decay),
        flag("RAW_NORM", kernel.raw_norm),
        flag("INITIAL_NORM", kernel.initial_norm),
        flag("MOMENTUM", kernel.reads_momentum()),
        flag("COUNTERS", kernel.has_counters()),
    ];
    constants.extend(emit.constants);
    let mut files = emit.files;
    files.extend([
        shared::LAYOUT,
        shared::SCALED,
        shared::TOTALS,
        shared::COUNTERS,
        shared::ALIGNMENT,
        shared::SWEEP_AGAIN,
        shared::PARTIALS,
        load,
    ]);
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

/// What a sweep is compiled from to leave its totals as the tuning has it.
pub(crate) struct Emit {
    /// To come first in the module.
    pub(crate) files: Vec<&'static str>,
    pub(crate) constants: Vec<(&'static str, f64)>,
}

impl Emit {
    pub(crate) fn new(device: &wgpu::Device, tuning: &Tuning) -> Self {
        match tuning.partials {
            Partials::PerInvocation => Emit {
                files: vec![shared::EMIT_PER_INVOCATION],
                constants: Vec::new(),
            },
            Partials::PerWorkgroup => Emit {
                files: vec![shared::TREE, shared::EMIT_PER_WORKGROUP],
                constants: Vec::new(),
            },
            Partials::Subgroup => Emit {
                files: vec![shared::ENABLE_SUBGROUPS, shared::EMIT_PER_SUBGROUP],
                constants: vec![(
                    "SUBGROUPS",
                    f64::from(tuning.subgroups(&device.adapter_info())),
                )],
            },
        }
    }
}
