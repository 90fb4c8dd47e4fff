//! Exchanging parameters and averages of schedule-free training on the host: `shaders/swap_schedule_free.wgsl`.

use crate::gpu::pass::{Binding, PassSource, Pipeline, flag, shared};
use crate::gpu::swap_averages::STEM;
use crate::gpu::sweep::Elements;
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Kernel};

/// Compiles the exchange, or what takes it `back`.
pub(crate) fn pipeline(
    device: &wgpu::Device,
    tuning: &Tuning,
    kernel: Kernel,
    access: Access,
    back: bool,
) -> Pipeline {
    let mut elements = Elements::default();
    elements.load_parameters(kernel, access);
    elements.store_parameters(kernel, access);
    let mut files = vec![shared::LAYOUT, shared::SCHEDULE_FREE];
    files.extend(elements.files.iter().map(|file| &**file));
    files.push(include_str!("../../shaders/swap_schedule_free.wgsl"));
    let mut constants = vec![
        ("WORKGROUP", f64::from(tuning.workgroup_size)),
        flag("BACK", back),
    ];
    constants.extend(elements.constants);
    Pipeline::new(
        device,
        &PassSource {
            stem: STEM,
            files: &files,
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
                &[Binding::Write],
            ],
        },
    )
}
