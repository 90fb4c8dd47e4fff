//! Pass 1 on the host: `shaders/reduce_gradient.wgsl`.

use crate::gpu::pass::{Binding, PassSource, Pipeline, flag, shared};
use crate::gpu::sweep::{Elements, Measuring, with_subgroup_argument};
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
        files,
        mut constants,
    } = Measuring::new(device, tuning, kernel, partials);
    let source = with_subgroup_argument(
        include_str!("../../shaders/reduce_gradient.wgsl"),
        tuning.partials,
    );
    let mut elements = Elements::default();
    elements.load_parameters(kernel, access);
    elements.load_gradients(kernel, access);
    // Its own files are not static.
    let mut files: Vec<&str> = files;
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
        device,
        &PassSource {
            stem: STEM,
            files: &files,
            constants: &constants,
            groups: &[
                &[Binding::Read, Binding::Read, Binding::Write],
                &[
                    read,
                    read,
                    read,
                    momentum,
                    memory,
                    Elements::remainders(kernel),
                ],
            ],
        },
    )
}
