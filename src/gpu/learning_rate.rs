//! Pass 3 on the host: `shaders/learning_rate.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline, flag, shared};
use crate::layout::{GroupConstants, average_kinds, regime_kinds, schedule_kinds};

pub(crate) const STEM: &str = "learning_rate";

/// Invocations per workgroup; a workgroup serves this many groups.
pub(crate) const WORKGROUP: u32 = 8;

/// Compiles the pass for what any of the groups needs.
pub(crate) fn pipeline(gpu: &Gpu, groups: &[GroupConstants]) -> Pipeline {
    let streams = |c: &GroupConstants| c.regime == regime_kinds::AUTO_SGD;
    let formulas = groups
        .iter()
        .any(|c| c.regime != regime_kinds::SEESAW && !streams(c));
    let schedules = groups
        .iter()
        .any(|c| c.schedule != schedule_kinds::CONSTANT);
    let trust = groups.iter().any(|c| c.trust_coefficient > 0.0);
    let second_moments = groups.iter().any(|c| c.epsilon > 0.0);
    let averages = groups.iter().any(|c| c.average != average_kinds::OFF);
    Pipeline::new(
        gpu,
        &PassSource {
            stem: STEM,
            files: &[
                shared::LAYOUT,
                shared::SCALED,
                shared::REGIMES,
                shared::COUNT_STEPS,
                shared::STREAMS,
                shared::RANDOM_BITS,
                include_str!("../../shaders/learning_rate.wgsl"),
            ],
            constants: &[
                ("WORKGROUP", f64::from(WORKGROUP)),
                flag("FORMULAS", formulas),
                flag("SCHEDULES", schedules),
                flag("AVERAGES", averages),
                flag("TRUST", trust),
                flag("SECOND_MOMENTS", second_moments),
                flag("STREAMS", groups.iter().any(streams)),
            ],
            groups: &[&[
                Binding::Read,
                Binding::Read,
                Binding::Write,
                Binding::Write,
                Binding::Write,
                Binding::Write,
                Binding::Write,
            ]],
        },
    )
}
