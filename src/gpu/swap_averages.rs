//! Exchanging parameters and averages on the host: `shaders/swap_averages.wgsl`.

use crate::gpu::pass::{Binding, PassSource, Pipeline, flag, shared};
use crate::gpu::sweep::Elements;
use crate::gpu::tuning::Tuning;
use crate::plan::{Access, Kernel};

pub(crate) const STEM: &str = "swap_averages";

/// Compiles the exchange, or what of it comes before the average has started.
pub(crate) fn pipeline(
    device: &wgpu::Device,
    tuning: &Tuning,
    kernel: Kernel,
    access: Access,
    exchange: bool,
) -> Pipeline {
    let mut elements = Elements::default();
    elements.load_parameters(kernel, access);
    elements.store_parameters(kernel, access);
    let mut files = vec![shared::LAYOUT, shared::AVERAGE];
    files.extend(elements.files.iter().map(|file| &**file));
    files.push(include_str!("../../shaders/swap_averages.wgsl"));
    let mut constants = vec![
        ("WORKGROUP", f64::from(tuning.workgroup_size)),
        flag("EXCHANGE", exchange),
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
