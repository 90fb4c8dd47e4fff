//! Exchanging parameters and averages on the host: `shaders/swap_averages.wgsl`.

use crate::gpu::pass::{Binding, PassSource, Pipeline, flag, shared};
use crate::gpu::sweep::{load, store};
use crate::gpu::tuning::Tuning;
use crate::plan::Access;

pub(crate) const STEM: &str = "swap_averages";

/// Compiles the exchange, or what of it comes before the average has started.
pub(crate) fn pipeline(
    device: &wgpu::Device,
    tuning: &Tuning,
    access: Access,
    exchange: bool,
) -> Pipeline {
    Pipeline::new(
        device,
        &PassSource {
            stem: STEM,
            files: &[
                shared::LAYOUT,
                shared::AVERAGE,
                load(access),
                store(access),
                include_str!("../../shaders/swap_averages.wgsl"),
            ],
            constants: &[
                ("WORKGROUP", f64::from(tuning.workgroup_size)),
                flag("EXCHANGE", exchange),
            ],
            groups: &[
                &[Binding::Read],
                &[Binding::Read, Binding::Write],
                &[Binding::Write],
            ],
        },
    )
}
