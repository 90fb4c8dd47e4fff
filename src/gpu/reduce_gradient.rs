//! The reduction's first pass on the host: `shaders/reduce_gradient.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, Pipeline, flag};
use crate::gpu::sweep::Elements;
use crate::gpu::tuning::{Partials, Tuning};
use crate::plan::{Access, Alignment, Kernel};

pub(crate) const STEM: &str = "reduce_gradient";

/// Compiles the pass for a kernel.
pub(crate) fn pipeline(gpu: &Gpu, tuning: &Tuning, kernel: Kernel, access: Access) -> Pipeline {
    let elements = elements(gpu, tuning, kernel, access);
    let (absent, read) = (Binding::Absent, Binding::Read);
    let (_, momentum, memory) = measured(kernel);
    let own = [
        read,
        read,
        read,
        if momentum { read } else { absent },
        if memory { read } else { absent },
        Elements::remainders(kernel),
    ];
    elements.pipeline(gpu, STEM, STEM, &[&[read, read, Binding::Write], &own])
}

/// Returns the feature for the comparison of the gradient, and whether the rule's and the regime's memories are read.
fn measured(kernel: Kernel) -> (&'static str, bool, bool) {
    match kernel.alignment {
        Alignment::None | Alignment::Streams => ("measures_nothing", false, false),
        Alignment::Momentum => ("measures_momentum", true, false),
        Alignment::Counters => ("measures_counters", false, true),
        Alignment::Iterates => ("measures_iterates", false, true),
        Alignment::Magnitudes => ("measures_magnitudes", false, true),
        Alignment::FirstParameters => ("measures_distance", false, true),
        Alignment::Estimate => ("measures_estimate", false, true),
        Alignment::Displacement => ("measures_displacement", false, true),
        // A look uses the bind groups of the previous step, so both memories are bound.
        Alignment::NextLook => ("measures_momentum", true, true),
        Alignment::LastGradient | Alignment::Look => ("measures_secant", true, true),
    }
}

/// Features and constants of the pass for a kernel.
pub(crate) fn elements(gpu: &Gpu, tuning: &Tuning, kernel: Kernel, access: Access) -> Elements {
    let constants = [
        ("WORKGROUP", f64::from(tuning.workgroup_size)),
        flag("COUPLED_DECAY", kernel.coupled_decay),
        flag("LOSS_SCALE", kernel.loss_scale),
        flag("INITIAL_NORM", kernel.initial_norm),
        flag("MOMENTUM", kernel.reads_momentum()),
        // All memories use the sums of the counters.
        flag("COUNTERS", kernel.measures_memory()),
        flag("RAW_NORM", kernel.raw_norm),
    ];
    let mut elements = Elements::parameters(kernel, access).and_gradients(kernel);
    elements.constants.extend(constants);
    elements.features.push(measured(kernel).0);
    elements.when(kernel.has_counters(), "counters");
    let traits = kernel.rule.traits();
    // Decoding an 8-bit memory requires the moments that it holds, also for the alignment. A memory that is not read needs no features.
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
    let partials = match tuning.partials {
        Partials::PerInvocation => "per_invocation",
        Partials::PerWorkgroup => "per_workgroup",
        Partials::Subgroup => {
            elements.constants.push(("SUBGROUPS", f64::from(tuning.subgroups(&gpu.device().adapter_info()))));
            "per_subgroup"
        }
    };
    elements.features.push(partials);
    elements
}
