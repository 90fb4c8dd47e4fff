//! Copying averages of schedule-free training on the host: `shaders/copy_schedule_free.wgsl`.

use crate::gpu::pass::{Binding, PassSource, Pipeline, shared};
use crate::gpu::swap_averages::STEM;
use crate::gpu::sweep::Elements;
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Kernel};

/// Compiles the copy. What it is copied to is bound when it is recorded.
pub(crate) fn pipeline(
    device: &wgpu::Device,
    tuning: &Tuning,
    kernel: Kernel,
    access: Access,
) -> Pipeline {
    let mut elements = Elements::default();
    elements.load_parameters(kernel, access);
    elements.store_parameters(kernel, access);
    let mut files = vec![shared::LAYOUT, shared::SCHEDULE_FREE];
    files.extend(elements.files.iter().map(|file| &**file));
    files.push(include_str!("../../shaders/copy_schedule_free.wgsl"));
    let mut constants = vec![("WORKGROUP", f64::from(tuning.workgroup_size))];
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
                &[Binding::Write, Binding::Write],
            ],
        },
    )
}
