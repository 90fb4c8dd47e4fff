//! Pass 1 on the host: `shaders/reduce_gradient.wgsl`.

use crate::gpu::pass::{Binding, PassSource, Pipeline, flag, shared};
use crate::gpu::sweep::{Measuring, load};
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Alignment, Kernel};

pub(crate) const STEM: &str = "reduce_gradient";

/// Compiles the pass for a kernel; `partials` is the number of partials of all scopes.
pub(crate) fn pipeline(
    device: &wgpu::Device,
    tuning: &Tuning,
    kernel: Kernel,
    access: Access,
    partials: u32,
) -> Pipeline {
    let Measuring {
        mut files,
        mut constants,
    } = Measuring::new(device, tuning, kernel, partials);
    match kernel.alignment {
        Alignment::None | Alignment::Momentum | Alignment::Streams => {
            files.push(shared::MEASURE_MOMENTUM)
        }
        // Whatever is measured: without the magnitude nothing is.
        Alignment::Sketch => files.push(shared::MEASURE_MAGNITUDE),
        Alignment::Counters => files.push(shared::MEASURE_COUNTERS),
        Alignment::FirstParameters => files.push(shared::MEASURE_DISTANCE),
        Alignment::LastGradient => {
            files.extend([shared::RULE, shared::MEASURE_SECANT]);
            constants.push(("RULE", f64::from(kernel.rule as u32)));
        }
    }
    files.extend([
        load(access),
        include_str!("../../shaders/reduce_gradient.wgsl"),
    ]);
    constants.push(flag("RAW_NORM", kernel.raw_norm));
    Pipeline::new(
        device,
        &PassSource {
            stem: STEM,
            files: &files,
            constants: &constants,
            groups: &[
                &[Binding::Read, Binding::Read, Binding::Write],
                &[Binding::Read; 5],
            ],
        },
    )
}
