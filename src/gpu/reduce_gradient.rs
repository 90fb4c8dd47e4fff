//! Pass 1 on the host: `shaders/reduce_gradient.wgsl`.

use std::borrow::Cow;

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline, flag, shared};
use crate::gpu::sweep::Elements;
use crate::gpu::tuning::{Partials, Tuning};
use crate::plan::{Access, Alignment, Kernel};

pub(crate) const STEM: &str = "reduce_gradient";

/// Compiles the pass for a kernel.
pub(crate) fn pipeline(gpu: &Gpu, tuning: &Tuning, kernel: Kernel, access: Access) -> Pipeline {
    let mut constants = vec![
        ("WORKGROUP", f64::from(tuning.workgroup_size)),
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
            let subgroups = tuning.subgroups(&gpu.device().adapter_info());
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
    let source = source(tuning.partials);
    let mut elements = Elements::default();
    elements.load_parameters(kernel, access);
    elements.load_gradients(kernel, access);
    let (absent, read) = (Binding::Absent, Binding::Read);
    let (momentum, memory) = match kernel.alignment {
        Alignment::None | Alignment::Momentum | Alignment::Streams => {
            files.push(shared::MEASURE_MOMENTUM);
            (read, absent)
        }
        Alignment::Counters => {
            files.push(shared::MEASURE_COUNTERS);
            (absent, read)
        }
        Alignment::Iterates => {
            files.push(shared::MEASURE_ITERATES);
            (absent, read)
        }
        Alignment::FirstParameters => {
            files.push(shared::MEASURE_DISTANCE);
            (absent, read)
        }
        Alignment::LastGradient => {
            files.extend([shared::RULE, shared::MEASURE_SECANT]);
            constants.push(("RULE", f64::from(kernel.rule as u32)));
            (read, read)
        }
    };
    files.extend(elements.files.iter().map(|file| &**file));
    files.push(&source);
    constants.push(flag("RAW_NORM", kernel.raw_norm));
    constants.extend(elements.constants);
    Pipeline::new(
        gpu,
        &PassSource {
            stem: STEM,
            files: &files,
            constants: &constants,
            groups: &[
                &[Binding::Read, Binding::Read, Binding::Write],
                &[read, read, read, momentum, memory, Elements::remainders(kernel)],
            ],
        },
    )
}

/// The shader, with an argument more where its invocations work in subgroups. naga's writer of HLSL makes up for the subgroup built-ins
/// that Direct3D lacks, but only where an argument of the entry point is one, and not a member of its struct alone: without this DXC stops
/// with "Semantic must be defined for all parameters of an entry function" (docs/upstream-naga.md).
fn source(partials: Partials) -> Cow<'static, str> {
    let source = include_str!("../../shaders/reduce_gradient.wgsl");
    match partials {
        Partials::Subgroup => source
            .replace("(invocation: Invocation)", "(invocation: Invocation, @builtin(subgroup_size) subgroup_size: u32)")
            .into(),
        _ => source.into(),
    }
}
