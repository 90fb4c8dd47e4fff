//! Exchanging and copying averages on the host: `shaders/swap_averages.wgsl`, and for schedule-free training `swap_schedule_free.wgsl` and
//! `copy_schedule_free.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline, flag};
use crate::gpu::sweep::Elements;
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Kernel};

pub(crate) const STEM: &str = "swap_averages";

/// Operation of one of these passes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Exchange {
    /// Parameters and averages change places.
    Swap,
    /// Averages that have not started become copies of the parameters. This is the part of a swap that does not change the parameters.
    Settle,
    /// Replaces y by x, in schedule-free training.
    ToAverage,
    /// Replaces x by y again.
    Back,
    /// Copies x to the buffer that is bound when the copy is recorded.
    Copy,
}

/// Compiles the pass.
pub(crate) fn pipeline(gpu: &Gpu, tuning: &Tuning, kernel: Kernel, access: Access, exchange: Exchange) -> Pipeline {
    let (module, constant) = match exchange {
        Exchange::Swap | Exchange::Settle => {
            ("swap_averages", Some(flag("EXCHANGE", matches!(exchange, Exchange::Swap))))
        }
        Exchange::ToAverage | Exchange::Back => {
            ("swap_schedule_free", Some(flag("BACK", matches!(exchange, Exchange::Back))))
        }
        Exchange::Copy => ("copy_schedule_free", None),
    };
    let mut elements = Elements::parameters(kernel, access);
    elements.features.push("writes_parameters");
    let mut constants = vec![("WORKGROUP", f64::from(tuning.workgroup_size))];
    constants.extend(constant);
    constants.extend(elements.constants);
    let averages: &[Binding] = match exchange {
        Exchange::Copy => &[Binding::Write, Binding::Write],
        _ => &[Binding::Write],
    };
    Pipeline::new(
        gpu,
        &PassSource {
            module,
            stem: STEM,
            features: &elements.features,
            constants: &constants,
            groups: &[
                &[Binding::Read],
                &[
                    Binding::Read,
                    Binding::Write,
                    Binding::Absent,
                    Binding::Absent,
                    Binding::Absent,
                    Elements::remainders(kernel),
                ],
                averages,
            ],
        },
    )
}
