//! Pass 4 on the host: `shaders/update_parameters.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, Pipeline, flag};
use crate::gpu::sweep::{Elements, row_features};
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Kernel};

pub(crate) const STEM: &str = "update_parameters";

/// Compiles the pass for a kernel.
pub(crate) fn pipeline(gpu: &Gpu, tuning: &Tuning, kernel: Kernel, access: Access, one_buffer: bool) -> Pipeline {
    let elements = elements(tuning, kernel, access, one_buffer);
    // The averages, or z in schedule-free training.
    // Beside them the sums of the step, or the records.
    let told = [written(kernel.averages), Binding::Write];
    elements.pipeline(gpu, STEM, STEM, &[&[Binding::Read], &own(kernel, one_buffer), &told])
}

/// Returns true if the gradients are bound for writing. That is so if they are cleared. It is also so if parameters and gradients share a
/// buffer, because wgpu requires the same access for both bindings and the parameters are written.
fn writes_gradients(kernel: Kernel, one_buffer: bool) -> bool {
    one_buffer || kernel.clears_gradients
}

pub(crate) fn written(is_there: bool) -> Binding {
    if is_there { Binding::Write } else { Binding::Absent }
}

/// Bindings of the window's own buffers.
pub(crate) fn own(kernel: Kernel, one_buffer: bool) -> [Binding; 8] {
    let traits = kernel.rule.traits();
    [
        Binding::Read,
        Binding::Write,
        if writes_gradients(kernel, one_buffer) { Binding::Write } else { Binding::Read },
        // Passes of the rule have written the moments of rows and columns.
        if traits.factored { Binding::Read } else { written(traits.momentum || traits.squares) },
        written(kernel.has_memory()),
        Elements::remainders(kernel),
        if traits.owns_passes() { Binding::Read } else { Binding::Absent },
        if kernel.has_rows() { Binding::Read } else { Binding::Absent },
    ]
}

/// Features and constants of the pass for a kernel.
pub(crate) fn elements(tuning: &Tuning, kernel: Kernel, access: Access, one_buffer: bool) -> Elements {
    let traits = kernel.rule.traits();
    let mut elements = Elements::parameters(kernel, access).and_gradients(kernel);
    elements.features.extend(traits.features);
    for (condition, feature) in [
        (true, "writes_parameters"),
        (writes_gradients(kernel, one_buffer), "writes_gradients"),
        (kernel.clears_gradients, "clears_gradients"),
        (traits.momentum, "momentum"),
        (traits.squares, "squares"),
        (traits.matrices, "matrices"),
        (traits.factored, "factored"),
        (traits.limited, "limited"),
        (traits.largest_squares, "largest_squares"),
        (kernel.bits8, "bits8"),
        (kernel.has_memory(), "keeps_memory"),
        (kernel.has_counters(), "counters"),
        (kernel.has_counters(), "keeps_counters"),
        (kernel.has_last_gradient(), "keeps_gradient"),
        (kernel.has_first_parameters() || kernel.has_streams(), "keeps_parameters"),
        (kernel.has_estimate(), "keeps_estimate"),
        (kernel.has_displacement(), "displaces"),
        (kernel.has_streams(), "streams"),
        (kernel.averages && !kernel.schedule_free, "averages"),
        (kernel.schedule_free, "schedule_free"),
        (kernel.step_sums, "measures_step"),
    ] {
        elements.when(condition, feature);
    }
    elements.features.extend(row_features(kernel));
    let constants = [("WORKGROUP", f64::from(tuning.workgroup_size)), flag("COUPLED_DECAY", kernel.coupled_decay)];
    elements.constants.extend(constants);
    elements
}
