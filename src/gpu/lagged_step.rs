//! The one sweep of [`StepMode::Lagged`](crate::StepMode::Lagged) on the host: `shaders/lagged_step.wgsl`.

use crate::gpu::pass::{Binding, PassSource, Pipeline, flag, shared};
use crate::gpu::reduce_gradient::Emit;
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Kernel};

pub(crate) const STEM: &str = "lagged_step";

const PARAMETERS_READ: &str = "var<storage, read> parameters";
const PARAMETERS_WRITE: &str = "var<storage, read_write> parameters";

/// Compiles the pass for a kernel; `partials` is the number of partials of all scopes.
pub(crate) fn pipeline(
    device: &wgpu::Device,
    tuning: &Tuning,
    kernel: Kernel,
    access: Access,
    one_buffer: bool,
    partials: u32,
) -> Pipeline {
    let remember = if kernel.has_counters() {
        shared::REMEMBER_SIGNS
    } else {
        shared::REMEMBER_MOMENTUM
    };
    let (load, store) = access_files(access);
    let source = source(include_str!("../../shaders/lagged_step.wgsl"), one_buffer);
    let emit = Emit::new(device, tuning);
    let mut files: Vec<&str> = emit.files;
    files.extend([
        shared::LAYOUT,
        shared::SCALED,
        shared::TOTALS,
        shared::COUNTERS,
        shared::ALIGNMENT,
        shared::SWEEP_AGAIN,
        shared::PARTIALS,
        shared::RULE,
        remember,
        load,
        &store,
        &source,
    ]);
    let mut constants = vec![
        ("WORKGROUP", f64::from(tuning.workgroup_size)),
        ("PARTIALS", f64::from(partials)),
        ("RULE", f64::from(kernel.rule as u32)),
        flag("COUPLED_DECAY", kernel.coupled_decay),
        flag("INITIAL_NORM", kernel.initial_norm),
        flag("MOMENTUM", kernel.reads_momentum()),
        flag("COUNTERS", kernel.has_counters()),
    ];
    constants.extend(emit.constants);
    Pipeline::new(
        device,
        &PassSource {
            stem: STEM,
            files: &files,
            constants: &constants,
            groups: &[
                &[Binding::Read, Binding::Write],
                &window_bindings(one_buffer),
            ],
        },
    )
}

/// Files that load parameters and gradients, and that store new parameters where the gradients were.
pub(crate) fn access_files(access: Access) -> (&'static str, String) {
    let (load, store) = match access {
        Access::Quads => (shared::LOAD_QUADS, shared::STORE_QUADS),
        Access::Scalars => (shared::LOAD_SCALARS, shared::STORE_SCALARS),
    };
    let store = store
        .replace("parameters[", "gradients[")
        .replace("params_start", "grads_start");
    (load, store)
}

/// With `one_buffer` parameters and gradients lie in one buffer: wgpu then wants both bindings to have the same access.
pub(crate) fn source(source: &str, one_buffer: bool) -> String {
    if one_buffer {
        source.replace(PARAMETERS_READ, PARAMETERS_WRITE)
    } else {
        source.to_owned()
    }
}

/// Blocks, parameters, gradients, memory, next memory.
pub(crate) fn window_bindings(one_buffer: bool) -> [Binding; 5] {
    let parameters = if one_buffer {
        Binding::Write
    } else {
        Binding::Read
    };
    [
        Binding::Read,
        parameters,
        Binding::Write,
        Binding::Read,
        Binding::Write,
    ]
}
