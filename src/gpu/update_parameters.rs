//! Pass 4 on the host: `shaders/update_parameters.wgsl`.

use std::borrow::Cow;

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline, flag, shared};
use crate::gpu::sweep::Elements;
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Alignment, Encoding, Kernel};

pub(crate) const STEM: &str = "update_parameters";

/// Compiles the pass for a kernel.
pub(crate) fn pipeline(gpu: &Gpu, tuning: &Tuning, kernel: Kernel, access: Access, one_buffer: bool) -> Pipeline {
    let source = include_str!("../../shaders/update_parameters.wgsl");
    // Where parameters and gradients lie in one buffer, which is written, wgpu wants both bindings to have the same access.
    let (source, gradients) = if one_buffer || kernel.clears_gradients {
        let (read, written) = ("var<storage, read>", "var<storage, read_write>");
        let source = source.replace(&format!("{read} gradients:"), &format!("{written} gradients:"));
        (Cow::Owned(source), Binding::Write)
    } else {
        (Cow::Borrowed(source), Binding::Read)
    };
    let keep = match kernel.alignment {
        Alignment::LastGradient => shared::KEEP_GRADIENT,
        Alignment::FirstParameters | Alignment::Streams => shared::KEEP_PARAMETERS,
        Alignment::None | Alignment::Momentum | Alignment::Counters | Alignment::Iterates => shared::KEEP_COUNTERS,
    };
    let settle = if kernel.has_streams() { shared::STORE_EXCHANGED } else { shared::STORE_MOVED };
    let average = if kernel.averages && !kernel.schedule_free { shared::AVERAGE } else { shared::NO_AVERAGE };
    let moving: &[&str] = if kernel.schedule_free {
        &[shared::SCHEDULE_FREE, shared::MOVE_SCHEDULE_FREE]
    } else {
        &[shared::MOVE_PARAMETERS]
    };
    let measure: &[&str] = if kernel.step_sums {
        &[shared::TOTALS, shared::SCALED_SQUARES, shared::STEP_SUMS, shared::MEASURE_STEP]
    } else {
        &[shared::MEASURE_NO_STEP]
    };
    let own = [Binding::Read, Binding::Write, gradients, Binding::Write, Binding::Write, Elements::remainders(kernel)];
    let mut groups: Vec<&[Binding]> = vec![&[Binding::Read], &own];
    // In schedule-free training z lies where the averages do.
    let averages = if kernel.averages { Binding::Write } else { Binding::Absent };
    let step_partials = Binding::Write;
    let measured = [averages, step_partials];
    if kernel.step_sums {
        groups.push(&measured);
    } else if kernel.averages {
        groups.push(&measured[..1]);
    }
    let mut elements = Elements::default();
    elements.load_parameters(kernel, access);
    elements.load_gradients(kernel, access);
    elements.store_parameters(kernel, access);
    elements.clear_gradients(kernel, access);
    let mut files = vec![shared::LAYOUT, shared::COUNTERS, shared::RULE, keep, settle, average];
    files.extend(moving);
    files.extend(elements.files.iter().map(|file| &**file));
    if kernel.encoding == Encoding::Stochastic {
        files.push(shared::RANDOM_BITS);
    }
    files.extend(measure);
    files.push(&source);
    let mut constants = vec![
        ("WORKGROUP", f64::from(tuning.workgroup_size)),
        ("RULE", f64::from(kernel.rule as u32)),
        flag("COUPLED_DECAY", kernel.coupled_decay),
        flag("LOSS_SCALE", kernel.loss_scale),
        flag("COUNTERS", kernel.has_counters()),
        flag("CLEAR", kernel.clears_gradients),
    ];
    constants.extend(elements.constants);
    Pipeline::new(gpu, &PassSource { stem: STEM, files: &files, constants: &constants, groups: &groups })
}
