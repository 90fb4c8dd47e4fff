//! Pass 4 on the host: `shaders/update_parameters.wgsl`.

use crate::gpu::pass::{Binding, PassSource, Pipeline, flag, shared};
use crate::gpu::sweep::{Elements, average, moving, read_beside_written};
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Alignment, Encoding, Kernel};

pub(crate) const STEM: &str = "update_parameters";

/// Compiles the pass for a kernel.
pub(crate) fn pipeline(
    device: &wgpu::Device,
    tuning: &Tuning,
    kernel: Kernel,
    access: Access,
    one_buffer: bool,
) -> Pipeline {
    let source = include_str!("../../shaders/update_parameters.wgsl");
    let (source, gradients) =
        read_beside_written(source, "gradients", one_buffer || kernel.clears_gradients);
    let keep = match kernel.alignment {
        Alignment::LastGradient => shared::KEEP_GRADIENT,
        Alignment::FirstParameters | Alignment::Streams => shared::KEEP_PARAMETERS,
        Alignment::None | Alignment::Momentum | Alignment::Counters | Alignment::Iterates => {
            shared::KEEP_COUNTERS
        }
    };
    let settle = if kernel.has_streams() {
        shared::STORE_EXCHANGED
    } else {
        shared::STORE_MOVED
    };
    let (average, averages) = average(kernel);
    let measure: &[&str] = if kernel.step_sums {
        &[
            shared::TOTALS,
            shared::SCALED_SQUARES,
            shared::STEP_SUMS,
            shared::MEASURE_STEP,
        ]
    } else {
        &[shared::MEASURE_NO_STEP]
    };
    let own = [
        Binding::Read,
        Binding::Write,
        gradients,
        Binding::Write,
        Binding::Write,
        Elements::remainders(kernel),
    ];
    let mut groups: Vec<&[Binding]> = vec![&[Binding::Read], &own];
    let (no_averages, step_partials) = (Binding::Absent, Binding::Write);
    let measured = [averages.map_or(no_averages, |own| own[0]), step_partials];
    if kernel.step_sums {
        groups.push(&measured);
    } else {
        groups.extend(averages);
    }
    let mut elements = Elements::default();
    elements.load_parameters(kernel, access);
    elements.load_gradients(kernel, access);
    elements.store_parameters(kernel, access);
    elements.clear_gradients(kernel, access);
    let mut files = vec![
        shared::LAYOUT,
        shared::COUNTERS,
        shared::RULE,
        keep,
        settle,
        average,
    ];
    files.extend(moving(kernel));
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
    Pipeline::new(
        device,
        &PassSource {
            stem: STEM,
            files: &files,
            constants: &constants,
            groups: &groups,
        },
    )
}
