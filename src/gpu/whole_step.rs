//! All passes of a step in one dispatch, for small models: `shaders/whole_step.wgsl`.

use crate::gpu::context::Gpu;
use crate::gpu::finish_reduction::of_loss;
use crate::gpu::pass::{Binding, PassSource, Pipeline};
use crate::gpu::sweep::Elements;
use crate::gpu::tuning::{Partials, Tuning};
use crate::gpu::update_parameters::{self, written};
use crate::gpu::{learning_rate, reduce_gradient};
use crate::layout::{GroupConstants, ScopeSums, WHOLE_STEP_SCOPES};
use crate::plan::{Plan, Window};
use crate::regime;

pub(crate) const STEM: &str = "whole_step";

/// Largest number of elements with which an optimizer may take its steps in one dispatch. Up to this number one dispatch takes 0.3 to 0.7 times
/// as long as four on lavapipe and SwiftShader with two cores. With four times as many elements it still takes half the time on lavapipe, and
/// 1.5 times as long on SwiftShader (`cargo bench --bench small_models`, docs/performance.md). GPUs have not been measured.
pub const MOST_ELEMENTS: u64 = 1 << 12;

/// Largest number of blocks for one dispatch. On a GPU the one workgroup waits for memory twice at each block.
pub const MOST_BLOCKS: usize = 12;

/// Returns true if FXC compiles the device's shaders. FXC takes 6 to 8 seconds for the kernel of a step in one dispatch,
/// and about 2 seconds for those of the four passes. On Direct3D 12, wgpu has subgroups only with the other compiler, DXC.
pub fn uses_fxc(gpu: &Gpu) -> bool {
    gpu.device().adapter_info().backend == wgpu::Backend::Dx12
        && !gpu.device().features().contains(wgpu::Features::SUBGROUP)
}

/// The kernel of an optimizer that can take its steps in one dispatch on a device.
pub(crate) struct WholeStep {
    features: Vec<&'static str>,
    constants: Vec<(&'static str, f64)>,
    groups: Vec<Vec<Binding>>,
}

impl WholeStep {
    /// Returns the kernel if one workgroup can take the step. `loss_at` is the word of the loss in its binding, if a regime needs it.
    pub(crate) fn of(gpu: &Gpu, plan: &Plan, loss_at: Option<u32>) -> Option<Self> {
        let tuning = gpu.tuning();
        let [window] = &plan.windows[..] else {
            return None;
        };
        let first = &plan.groups[0];
        let regime = regime::Kernel::all()[first.regime as usize];
        let fits = !uses_fxc(gpu)
            && is_small(window)
            && has_known_parts(window)
            && plan.units.is_empty()
            && plan.shard.is_none()
            && plan.groups.iter().all(|group| group.regime == first.regime)
            // Features of passes 3 and 4 share names, so they must agree. They may differ for a group without elements, which is not in the window.
            && plan.configs.iter().all(|config| {
                config.rule.kind() == window.kernel.rule && config.averaging.is_on() == window.kernel.averages
            })
            && plan.scopes.len() <= WHOLE_STEP_SCOPES as usize
            // The blocks of a scope follow one another.
            && (0..).zip(&window.blocks).all(|(row, block)| block.row == row)
            && tuning.finish_workgroup_size.is_multiple_of(tuning.partials_per_block());
        if !fits {
            return None;
        }
        let (kernel, access) = (window.kernel, window.access);
        let one_buffer = window.params.buffer == window.grads.buffer;
        let served: Vec<&GroupConstants> = plan.groups.iter().collect();
        let mut all = reduce_gradient::elements(gpu, &tuning, kernel, access);
        let Elements { features, constants } = update_parameters::elements(&tuning, kernel, access, one_buffer);
        all.features.extend(features);
        all.constants.extend(constants);
        let of_rates = learning_rate::features(regime, &served);
        let tables = learning_rate::of_tables(&of_rates);
        all.features.extend(of_rates);
        all.when(true, STEM);
        all.when(kernel.loss_scale, "tells_scale");
        all.when(loss_at.is_some(), "loss");
        all.constants.extend(loss_at.map(|at| ("LOSS_AT", f64::from(at))));
        all.constants.push(("REGIME", f64::from(first.regime)));
        all.constants.push(("FINISH_WORKGROUP", f64::from(tuning.finish_workgroup_size)));
        // Two passes may declare the same constant.
        all.constants.sort_by_key(|(name, _)| *name);
        all.constants.dedup_by_key(|(name, _)| *name);
        let (absent, read, write) = (Binding::Absent, Binding::Read, Binding::Write);
        let scale = written(kernel.loss_scale);
        let mut groups = vec![
            // The bindings of pass 3, and the loss. Sums and partials are in workgroup memory.
            vec![read, absent, write, write, write, write, scale, tables, of_loss(loss_at)],
            update_parameters::own(kernel, one_buffer).to_vec(),
        ];
        if kernel.averages {
            groups.push(vec![write]);
        }
        let whole = WholeStep { features: all.features, constants: all.constants, groups };
        whole.fits_device(&tuning, gpu.device()).then_some(whole)
    }

    /// Returns true if the device has enough storage buffers and workgroup memory.
    fn fits_device(&self, tuning: &Tuning, device: &wgpu::Device) -> bool {
        let limits = device.limits();
        let is_storage = |binding: &&Binding| matches!(binding, Binding::Read | Binding::Write);
        let buffers = self.groups.iter().flatten().filter(is_storage).count();
        let totals = match tuning.partials {
            Partials::PerInvocation => 0,
            Partials::PerWorkgroup => tuning.workgroup_size,
            Partials::Subgroup => tuning.subgroups(&device.adapter_info()),
        };
        let totals = totals + tuning.finish_workgroup_size + WHOLE_STEP_SCOPES;
        // The last word holds the overflow key.
        let bytes = totals as usize * size_of::<ScopeSums>() + size_of::<u32>();
        buffers <= limits.max_storage_buffers_per_shader_stage as usize
            && bytes <= limits.max_compute_workgroup_storage_size as usize
    }

    /// Compiles the kernel.
    pub(crate) fn pipeline(&self, gpu: &Gpu) -> Pipeline {
        let groups: Vec<&[Binding]> = self.groups.iter().map(Vec::as_slice).collect();
        Pipeline::new(
            gpu,
            &PassSource {
                module: STEM,
                stem: STEM,
                features: &self.features,
                constants: &self.constants,
                groups: &groups,
            },
        )
    }
}

/// Returns true if one workgroup is faster than four launches with many workgroups.
fn is_small(window: &Window) -> bool {
    let elements: u64 = window.blocks.iter().map(|block| u64::from(block.elements)).sum();
    elements <= MOST_ELEMENTS && window.blocks.len() <= MOST_BLOCKS
}

/// Returns true if a window has only passes 1 and 4, in variants without their own barriers that bind no buffer twice.
fn has_known_parts(window: &Window) -> bool {
    let kernel = window.kernel;
    let others = kernel.rule.traits().owns_passes() || kernel.has_rows() || kernel.has_looks();
    !(others || kernel.bits8 || kernel.step_sums || kernel.schedule_free)
}
