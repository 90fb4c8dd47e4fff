//! The reduction's first pass on the host: `shaders/reduce_gradient.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline, flag};
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
        flag("RAW_NORM", kernel.raw_norm),
    ];
    let (absent, read) = (Binding::Absent, Binding::Read);
    let (feature, momentum, memory) = match kernel.alignment {
        Alignment::None | Alignment::Momentum | Alignment::Streams => ("measures_momentum", read, absent),
        Alignment::Counters => ("measures_counters", absent, read),
        Alignment::Iterates => ("measures_iterates", absent, read),
        Alignment::Magnitudes => ("measures_magnitudes", absent, read),
        Alignment::FirstParameters => ("measures_distance", absent, read),
        Alignment::Estimate => ("measures_estimate", absent, read),
        Alignment::Displacement => ("measures_displacement", absent, read),
        // A look has the bind groups of the step before.
        Alignment::NextLook => ("measures_momentum", read, read),
        Alignment::LastGradient | Alignment::Look => ("measures_secant", read, read),
    };
    let mut elements = Elements::parameters(kernel, access).and_gradients(kernel);
    elements.features.push(feature);
    let traits = kernel.rule.traits();
    // Of a memory in 8 bits also the alignment must know what there is; one that is not read may be bound as anything.
    let bits8 = kernel.bits8 && (kernel.reads_momentum() || kernel.measures_secant());
    elements.when(bits8, "bits8");
    if bits8 || kernel.measures_secant() {
        elements.when(traits.momentum, "momentum");
        elements.when(traits.squares, "squares");
    }
    if kernel.measures_secant() {
        elements.when(kernel.alignment == Alignment::Look, "look");
        elements.features.extend(traits.features);
        elements.when(traits.largest_squares, "largest_squares");
    }
    elements.features.push(match tuning.partials {
        Partials::PerInvocation => "per_invocation",
        Partials::PerWorkgroup => "per_workgroup",
        Partials::Subgroup => {
            constants.push(("SUBGROUPS", f64::from(tuning.subgroups(&gpu.device().adapter_info()))));
            "per_subgroup"
        }
    });
    constants.extend(elements.constants);
    Pipeline::new(
        gpu,
        &PassSource {
            module: STEM,
            stem: STEM,
            features: &elements.features,
            constants: &constants,
            groups: &[
                &[read, read, Binding::Write],
                &[read, read, read, momentum, memory, Elements::remainders(kernel)],
            ],
        },
    )
}
