//! Rebinding to other buffers, for parameters and gradients that a framework's allocator moves.

use super::build::Numbered;
use super::sweeps::{Passes, Sweeps, Tables, sweeps};
use super::{Optimizer, PassName};
use crate::error::{CallError, DeviceError, Error};
use crate::gpu::limits::binding_alignment;
use crate::gpu::tensor::Tensor;
use crate::group::TensorSlice;
use crate::plan::{Place, Window, check_overlaps};

/// Number of layouts whose bind groups are kept. Pooling allocators cycle through a small set of them, so that most steps create no bind groups.
const KEPT_LAYOUTS: usize = 8;

/// Data of an optimizer whose buffers may change.
#[derive(Debug)]
pub(super) struct Rebinding {
    pub(super) tables: Tables,
    /// The latest layouts. The first one is in use.
    pub(super) layouts: Vec<Layout>,
}

/// Locations of all tensors, and what depends on them.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) buffers: Vec<wgpu::Buffer>,
    pub(super) places: Vec<Place>,
    pub(super) windows: Vec<Window>,
    pub(super) sweeps: Sweeps,
}

impl Optimizer {
    /// Sets new locations of parameters and gradients: one pair of slices for every tensor, in the order of
    /// [`tensors`](Optimizer::tensors). It is for optimizers built with [`rebindable`](crate::OptimizerBuilder::rebindable), whose buffers
    /// belong to the allocator of a framework.
    ///
    /// Only bindings change. The optimizer's memory stays with the tensor, so that steps have the same bits as with buffers that do not move.
    /// The caller must move the parameters before a step runs. Steps that were recorded before use the old locations. Everything recorded
    /// later (steps, exchanges of averages, checkpoints) uses the new ones.
    ///
    /// Tensors whose parameters lie in one buffer, and whose gradients lie in one buffer, share their dispatches. The tensors of a framework that
    /// allocates from a few large buffers therefore take a few dispatches, and tensors in buffers of their own take a dispatch in each pass. The
    /// exceptions are those of [`rebindable`](crate::OptimizerBuilder::rebindable).
    ///
    /// The bind groups of the last 8 layouts (locations of all tensors) are kept, together with their buffers, so that returning to one costs a
    /// look-up. For a new layout two or four bind groups and one small buffer are created for each pair of buffers.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) without [`rebindable`](crate::OptimizerBuilder::rebindable), if the slices are not
    /// those of the declared tensors, if a slice starts at an offset at which no binding can start, and between two
    /// [`encode_swap_averages`](Optimizer::encode_swap_averages). Returns the errors of [`build`](crate::OptimizerBuilder::build) for a wrong
    /// slice, [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) or [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost). After
    /// an error the bindings are unchanged.
    pub fn rebind<P, G>(&mut self, tensors: &[(P, G)]) -> Result<(), Error>
    where
        P: TensorSlice<Tensor = Tensor> + Copy,
        G: TensorSlice<Tensor = Tensor> + Copy,
    {
        self.gpu.check_alive()?;
        let Some(rebinding) = &self.rebinding else {
            return Err(Error::from(CallError::NotRebindable));
        };
        self.check_averages_in_place("a place for the parameters")?;
        let (expected, actual) = (self.plan.tensors.len(), tensors.len());
        if actual != expected {
            return Err(Error::from(CallError::StepTensors { role: "parameter and gradient", expected, actual }));
        }
        let alignment = binding_alignment(&self.gpu.device().limits());
        let mut numbered = Numbered::default();
        let mut places = Vec::with_capacity(expected);
        let declared = self.plan.tensors.iter().zip(&self.plan.places);
        for ((tensor, declared), &(params, grads)) in declared.zip(tensors) {
            let place = numbered.place(&tensor.name, [params.tensor(), grads.tensor()], Some(alignment))?;
            if place.elements != tensor.elements {
                return Err(Error::from(CallError::StepLength {
                    tensor: tensor.name.clone(),
                    role: "parameter",
                    expected: tensor.elements as usize,
                    actual: place.elements as usize,
                }));
            }
            for (role, expected, actual) in
                [("parameter", declared.params, place.params), ("gradient", declared.grads, place.grads)]
            {
                if actual != expected {
                    return Err(Error::from(CallError::StepElement {
                        tensor: tensor.name.clone(),
                        role,
                        expected,
                        actual,
                    }));
                }
            }
            places.push(place);
        }
        let names = self.plan.tensors.iter().map(|tensor| tensor.name.as_str());
        check_overlaps(names.zip(&places))?;

        let buffers = numbered.buffers;
        let known = rebinding.layouts.iter().position(|layout| layout.places == places && layout.buffers == buffers);
        let layout = match known {
            Some(0) => None,
            Some(index) => self.rebinding.as_mut().map(|rebinding| rebinding.layouts.remove(index)),
            None => {
                let (layout, problem) = self.gpu.catching(|| {
                    let windows = self.plan.windows_at(&places)?;
                    let passes = Passes { gpu: &self.gpu, rebindable: true };
                    let sweeps = sweeps(passes, &windows, &buffers, &self.kept.memories, &rebinding.tables, None);
                    Some(Layout { buffers, places, windows, sweeps })
                });
                if let Some(message) = problem {
                    let what = "bind groups for other buffers".to_owned();
                    return Err(Error::from(DeviceError::Failed { what, message }));
                }
                layout
            }
        };
        // Nothing can fail from here on.
        if let Some(layout) = layout {
            self.move_to(layout);
        }
        Ok(())
    }

    /// Uses a layout from the next recorded step on.
    fn move_to(&mut self, layout: Layout) {
        let Sweeps { reduce, update, averages, blocks } = layout.sweeps.clone();
        let kept = |wanted: fn(PassName) -> bool| self.step.iter().filter(move |one| wanted(one.pass)).cloned();
        let scalar = kept(|pass| matches!(pass, PassName::FinishReduction | PassName::LearningRate));
        let last = kept(|pass| pass == PassName::FinishUpdate);
        self.step = reduce.into_iter().chain(scalar).chain(update).chain(last).collect();
        self.averages = averages;
        self.plan.windows.clone_from(&layout.windows);
        self.plan.places.clone_from(&layout.places);
        self.kept.buffers.clone_from(&layout.buffers);
        self.presence.move_to(&self.plan, blocks);
        self.looks.move_to(&self.gpu, &self.plan.windows);
        if let Some(rebinding) = &mut self.rebinding {
            rebinding.layouts.truncate(KEPT_LAYOUTS - 1);
            rebinding.layouts.insert(0, layout);
        }
    }
}
