//! The learning-rate pass on the host: `shaders/learning_rate.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline};
use crate::layout::{GroupConstants, average_kinds, schedule_kinds};
use crate::regime::Kernel;

pub(crate) const STEM: &str = "learning_rate";

/// Number of invocations per workgroup, each of which serves one group.
pub(crate) const WORKGROUP: u32 = 8;

/// Compiles the pass: a kernel for each regime of the groups, with the features that its groups need. A kernel skips the groups of other
/// regimes.
pub(crate) fn pipelines(gpu: &Gpu, groups: &[GroupConstants]) -> Vec<Pipeline> {
    let served = (0u32..).zip(Kernel::all()).filter_map(|(number, kernel)| {
        let served: Vec<&GroupConstants> = groups.iter().filter(|group| group.regime == number).collect();
        (!served.is_empty()).then(|| pipeline(gpu, kernel, number, &served))
    });
    served.collect()
}

fn pipeline(gpu: &Gpu, kernel: &'static Kernel, number: u32, groups: &[&GroupConstants]) -> Pipeline {
    let mut features = features(kernel, groups);
    features.push("tells_scale");
    let (read, write) = (Binding::Read, Binding::Write);
    Pipeline::new(
        gpu,
        &PassSource {
            module: STEM,
            stem: STEM,
            features: &features,
            constants: &[("WORKGROUP", f64::from(WORKGROUP)), ("REGIME", f64::from(number))],
            groups: &[&[read, read, write, write, write, write, write, of_tables(&features)]],
        },
    )
}

/// Returns the binding of the schedule tables.
pub(crate) fn of_tables(features: &[&str]) -> Binding {
    if features.contains(&"table") { Binding::Uniform } else { Binding::Absent }
}

/// Features of the pass for the groups of a regime.
pub(crate) fn features(kernel: &'static Kernel, groups: &[&GroupConstants]) -> Vec<&'static str> {
    let mut features = vec!["regime", "writes_states", kernel.name];
    let mut when = |feature, needed: fn(&GroupConstants) -> bool| {
        if groups.iter().any(|group| needed(group)) {
            features.push(feature);
        }
    };
    when("schedule", |group| group.schedule != schedule_kinds::CONSTANT);
    when("table", |group| group.schedule == schedule_kinds::TABLE);
    when("trust_ratio", |group| group.trust_coefficient > 0.0);
    when("average_shares", |group| group.average != average_kinds::OFF);
    when("global_clip", |group| group.global_clip < f32::MAX);
    when("outliers", |group| group.outlier_deviations > 0.0);
    when("squares", |group| group.rule.epsilon > 0.0);
    when("square_fall", |group| group.rule.square_fall > 0.0);
    features
}
