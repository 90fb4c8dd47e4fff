//! Pass 3 on the host: `shaders/learning_rate.wgsl`.

use std::ops::RangeInclusive;

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline, shared};
use crate::layout::{GroupConstants, average_kinds, regime_kinds, schedule_kinds};

pub(crate) const STEM: &str = "learning_rate";

/// Invocations per workgroup; a workgroup serves this many groups.
pub(crate) const WORKGROUP: u32 = 8;

macro_rules! shader {
    ($file:literal) => {
        include_str!(concat!("../../shaders/", $file))
    };
}

const FIRST_RATE: &str = shader!("regimes/first_rate.wgsl");
const FORMULA: &str = shader!("regimes/formula.wgsl");
const ONE_STREAM: &str = shader!("regimes/one_stream.wgsl");

/// Regimes that share a file in `shaders/regimes/`, which have neighbouring numbers, and the files that they are compiled from.
struct Family {
    regimes: RangeInclusive<u32>,
    files: &'static [&'static str],
}

const FAMILIES: [Family; 6] = [
    Family {
        regimes: regime_kinds::SEESAW..=regime_kinds::SEESAW,
        files: &[shader!("regimes/alignment.wgsl"), FIRST_RATE, ONE_STREAM],
    },
    Family {
        regimes: regime_kinds::ADAGRAD_NORM..=regime_kinds::ADAGRAD_NORM,
        files: &[shader!("regimes/norm.wgsl"), FORMULA, ONE_STREAM],
    },
    Family {
        regimes: regime_kinds::SECANT_LONG..=regime_kinds::ADGD,
        files: &[shader!("regimes/secant.wgsl"), FORMULA, FIRST_RATE, ONE_STREAM],
    },
    Family {
        regimes: regime_kinds::DOG..=regime_kinds::DOWG,
        files: &[shader!("regimes/distance.wgsl"), FORMULA, ONE_STREAM],
    },
    Family {
        regimes: regime_kinds::POLYAK..=regime_kinds::NGN,
        files: &[shader!("regimes/loss.wgsl"), FORMULA, ONE_STREAM],
    },
    Family {
        regimes: regime_kinds::AUTO_SGD..=regime_kinds::AUTO_SGD,
        files: &[shader!("regimes/streams.wgsl"), FIRST_RATE],
    },
];

/// Compiles the pass: a kernel for each family that the groups have regimes of, with the files that its groups need. A kernel skips the
/// groups of other families.
pub(crate) fn pipelines(gpu: &Gpu, groups: &[GroupConstants]) -> Vec<Pipeline> {
    let served = FAMILIES.iter().filter_map(|family| {
        let served: Vec<&GroupConstants> =
            groups.iter().filter(|group| family.regimes.contains(&group.regime)).collect();
        (!served.is_empty()).then(|| pipeline(gpu, family, &served))
    });
    served.collect()
}

fn pipeline(gpu: &Gpu, family: &Family, groups: &[&GroupConstants]) -> Pipeline {
    let either = |needed: fn(&GroupConstants) -> bool, with, without| {
        if groups.iter().any(|group| needed(group)) { with } else { without }
    };
    let mut files = vec![shared::LAYOUT, shared::SCALED, shared::RANDOM_BITS];
    files.extend(family.files);
    files.extend([
        either(
            |group| group.schedule != schedule_kinds::CONSTANT,
            shader!("learning_rate/schedule.wgsl"),
            shader!("learning_rate/no_schedule.wgsl"),
        ),
        either(
            |group| group.trust_coefficient > 0.0,
            shader!("learning_rate/trust_ratio.wgsl"),
            shader!("learning_rate/no_trust_ratio.wgsl"),
        ),
        either(
            |group| group.average != average_kinds::OFF,
            shader!("learning_rate/average_share.wgsl"),
            shader!("learning_rate/no_average_share.wgsl"),
        ),
        either(
            |group| group.epsilon > 0.0,
            shader!("learning_rate/second_moment.wgsl"),
            shader!("learning_rate/no_second_moment.wgsl"),
        ),
        shader!("learning_rate/steps_taken.wgsl"),
        shader!("learning_rate.wgsl"),
    ]);
    Pipeline::new(
        gpu,
        &PassSource {
            stem: STEM,
            files: &files,
            constants: &[
                ("WORKGROUP", f64::from(WORKGROUP)),
                ("FIRST_REGIME", f64::from(*family.regimes.start())),
                ("LAST_REGIME", f64::from(*family.regimes.end())),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A group whose regime is in no family would have no kernel, and one whose regime is in two would take two steps at once.
    #[test]
    fn every_regime_is_in_one_family() {
        let regimes = FAMILIES.iter().flat_map(|family| family.regimes.clone());
        assert!(regimes.eq(regime_kinds::SEESAW..=regime_kinds::AUTO_SGD));
    }
}
