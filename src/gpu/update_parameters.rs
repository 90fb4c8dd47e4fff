//! Pass 4 on the host: `shaders/update_parameters.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline, flag};
use crate::gpu::sweep::Elements;
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Kernel};

pub(crate) const STEM: &str = "update_parameters";

/// Compiles the pass for a kernel.
pub(crate) fn pipeline(gpu: &Gpu, tuning: &Tuning, kernel: Kernel, access: Access, one_buffer: bool) -> Pipeline {
    let traits = kernel.rule.traits();
    let vector = kernel.has_first_parameters() || kernel.has_streams();
    let mut elements = Elements::parameters(kernel, access).and_gradients(kernel);
    elements.features.extend(traits.features);
    // Where parameters and gradients lie in one buffer, which is written, wgpu demands that both bindings have the same access.
    let writes_gradients = one_buffer || kernel.clears_gradients;
    for (condition, feature) in [
        (true, "writes_parameters"),
        (writes_gradients, "writes_gradients"),
        (kernel.clears_gradients, "clears_gradients"),
        (traits.momentum, "momentum"),
        (traits.squares, "squares"),
        (kernel.has_counters() || kernel.has_last_gradient() || vector, "keeps_memory"),
        (kernel.has_counters(), "keeps_counters"),
        (kernel.has_last_gradient(), "keeps_gradient"),
        (vector, "keeps_parameters"),
        (kernel.has_streams(), "streams"),
        (kernel.averages && !kernel.schedule_free, "averages"),
        (kernel.schedule_free, "schedule_free"),
        (kernel.step_sums, "measures_step"),
    ] {
        elements.when(condition, feature);
    }
    let mut constants = vec![
        ("WORKGROUP", f64::from(tuning.workgroup_size)),
        flag("COUPLED_DECAY", kernel.coupled_decay),
        flag("LOSS_SCALE", kernel.loss_scale),
    ];
    constants.extend(elements.constants);
    let own = [
        Binding::Read,
        Binding::Write,
        if writes_gradients { Binding::Write } else { Binding::Read },
        Binding::Write,
        Binding::Write,
        Elements::remainders(kernel),
    ];
    // In schedule-free training z lies where the averages do.
    let averages = if kernel.averages { Binding::Write } else { Binding::Absent };
    let measured = [averages, if kernel.step_sums { Binding::Write } else { Binding::Absent }];
    let mut groups: Vec<&[Binding]> = vec![&[Binding::Read], &own];
    if kernel.averages || kernel.step_sums {
        groups.push(&measured);
    }
    Pipeline::new(
        gpu,
        &PassSource { module: STEM, stem: STEM, features: &elements.features, constants: &constants, groups: &groups },
    )
}
