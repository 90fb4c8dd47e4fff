//! What the passes over a window's elements are compiled from, in so far as they share it.

use crate::gpu::pass::{Binding, flag, shared};
use crate::gpu::tuning::{Partials, Tuning};
use crate::plan::{Access, Kernel};

/// The file that loads parameters and gradients.
pub(crate) fn load(access: Access) -> &'static str {
    match access {
        Access::Quads => shared::LOAD_QUADS,
        Access::Scalars => shared::LOAD_SCALARS,
    }
}

/// The file that stores new parameters.
pub(crate) fn store(access: Access) -> &'static str {
    match access {
        Access::Quads => shared::STORE_QUADS,
        Access::Scalars => shared::STORE_SCALARS,
    }
}

/// The file that averages new parameters, and the bind group for the averages, if there is one.
pub(crate) fn average(kernel: Kernel) -> (&'static str, Option<&'static [Binding]>) {
    if kernel.averages {
        (shared::AVERAGE, Some(&[Binding::Write]))
    } else {
        (shared::NO_AVERAGE, None)
    }
}

/// The shader's source and the access to its buffer `name`, which it only reads. Where parameters and gradients lie in `one_buffer`,
/// one of them is written, and wgpu wants both bindings to have the same access.
pub(crate) fn read_beside_written(source: &str, name: &str, one_buffer: bool) -> (String, Binding) {
    if one_buffer {
        let read = format!("var<storage, read> {name}:");
        let written = format!("var<storage, read_write> {name}:");
        (source.replace(&read, &written), Binding::Write)
    } else {
        (source.to_owned(), Binding::Read)
    }
}

/// Files and constants of a pass that measures.
pub(crate) struct Measuring {
    /// To come first in the module.
    pub(crate) files: Vec<&'static str>,
    pub(crate) constants: Vec<(&'static str, f64)>,
}

impl Measuring {
    /// `partials` is the number of partials of all scopes.
    pub(crate) fn new(
        device: &wgpu::Device,
        tuning: &Tuning,
        kernel: Kernel,
        partials: u32,
    ) -> Self {
        let mut constants = vec![
            ("WORKGROUP", f64::from(tuning.workgroup_size)),
            ("PARTIALS", f64::from(partials)),
            flag("COUPLED_DECAY", kernel.coupled_decay),
            flag("LOSS_SCALE", kernel.loss_scale),
            flag("INITIAL_NORM", kernel.initial_norm),
            flag("MOMENTUM", kernel.reads_momentum()),
            // Secant and distance need no more sums than the counters.
            flag("COUNTERS", kernel.measures_memory()),
        ];
        let mut files = match tuning.partials {
            Partials::PerInvocation => vec![shared::EMIT_PER_INVOCATION],
            Partials::PerWorkgroup => vec![shared::TREE, shared::EMIT_PER_WORKGROUP],
            Partials::Subgroup => {
                let subgroups = tuning.subgroups(&device.adapter_info());
                constants.push(("SUBGROUPS", f64::from(subgroups)));
                vec![shared::ENABLE_SUBGROUPS, shared::EMIT_PER_SUBGROUP]
            }
        };
        files.extend([
            shared::LAYOUT,
            shared::SCALED,
            shared::TOTALS,
            shared::COUNTERS,
            shared::ALIGNMENT,
            shared::SCALED_SQUARES,
            shared::SWEEP_AGAIN,
            shared::PARTIALS,
        ]);
        Measuring { files, constants }
    }
}
