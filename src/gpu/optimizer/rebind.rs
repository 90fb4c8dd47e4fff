//! Binding other buffers than before: for parameters and gradients that somebody else's allocator moves.

use super::build::Numbered;
use super::sweeps::{OWN_BUFFERS, OwnBuffers, Sweep};
use super::{Dispatch, Optimizer, PassName};
use crate::error::{CallError, DeviceError, Error};
use crate::gpu::buffers::part;
use crate::gpu::limits::binding_alignment;
use crate::gpu::pass::{BoundGroup, Pipeline};
use crate::gpu::tensor::Tensor;
use crate::group::TensorSlice;
use crate::plan::{Place, Plan, Region, Window, check_overlaps};

/// Capacity of the bind-group cache for each tensor. Pooling allocators cycle through a small set of buffers, so that eight entries avoid
/// creating bind groups in every step.
const KEPT_PLACES: usize = 8;

/// Data for binding a window's parameters and gradients to another location.
#[derive(Debug)]
pub(super) struct Movable {
    /// The tensor that the window belongs to.
    tensor: usize,
    /// Offset in the tensor at which the window's bindings begin.
    start: u64,
    own: OwnBuffers,
    /// Those between passes 3 and 4, in the order of [`Sweeps::before_update`].
    own_sweeps: Vec<Sweep>,
    pipelines: Sweeps<Pipeline>,
    /// The latest places, the last one first, and what binds them.
    bound: Vec<(Site, Sweeps<BoundGroup>)>,
}

/// One thing for each sweep that finds parameters.
#[derive(Debug, Clone)]
pub(super) struct Sweeps<T> {
    /// Where gradients are measured.
    pub(super) reduce: Option<T>,
    /// Those between passes 3 and 4.
    pub(super) before_update: Vec<T>,
    pub(super) update: T,
    /// Exchange and settle, where the window keeps averages.
    pub(super) averages: Option<[T; 2]>,
}

/// Location of a tensor's parameters and gradients: buffer and first element.
type Site = [(wgpu::Buffer, u64); 2];

impl Movable {
    /// Of a window that has just been bound.
    pub(super) fn new(
        plan: &Plan,
        window: &Window,
        buffers: &[wgpu::Buffer],
        own: OwnBuffers,
        own_sweeps: Vec<Sweep>,
        pipelines: Sweeps<Pipeline>,
        bound: Sweeps<BoundGroup>,
    ) -> Self {
        // A window of its own has blocks, all of one tensor.
        let first = &window.blocks[0];
        let elements = plan.locate_here(u64::from(first.first_element));
        let (tensor, at) = elements.expect("a block lies in a tensor");
        let start = at - u64::from(first.params_start);
        let site = [window.params, window.grads].map(|region| (buffers[region.buffer].clone(), region.start - start));
        Movable { tensor, start, own, own_sweeps, pipelines, bound: vec![(site, bound)] }
    }

    /// The window's parameters and gradients where its tensor lies here.
    fn regions(&self, window: &Window, place: &Place) -> [Region; 2] {
        [
            (place.params_buffer, place.params_start, window.params),
            (place.grads_buffer, place.grads_start, window.grads),
        ]
        .map(|(buffer, start, region)| Region {
            buffer,
            element: region.element,
            start: start + self.start,
            end: start + self.start + region.elements(),
        })
    }

    /// What binds them; what was made before is looked up.
    fn bind(
        &self,
        device: &wgpu::Device,
        site: &Site,
        buffers: &[wgpu::Buffer],
        [params, grads]: [Region; 2],
    ) -> Sweeps<BoundGroup> {
        if let Some((_, bound)) = self.bound.iter().find(|(known, _)| known == site) {
            return bound.clone();
        }
        let own_of = |sweep| {
            self.own.bindings(sweep, part(&buffers[params.buffer], params), part(&buffers[grads.buffer], grads))
        };
        let own = own_of(Sweep::Update);
        let bind = |pipeline: &Pipeline, own: &[_]| pipeline.bind(device, OWN_BUFFERS, own);
        Sweeps {
            reduce: self.pipelines.reduce.as_ref().map(|pipeline| bind(pipeline, &own_of(Sweep::Reduce))),
            before_update: self
                .pipelines
                .before_update
                .iter()
                .zip(&self.own_sweeps)
                .map(|(pipeline, &sweep)| bind(pipeline, &own_of(sweep)))
                .collect(),
            update: bind(&self.pipelines.update, &own),
            averages: self
                .pipelines
                .averages
                .as_ref()
                .map(|pipelines| [0, 1].map(|sweep| bind(&pipelines[sweep], &own))),
        }
    }

    /// Keeps a place as the latest.
    fn keep(&mut self, site: Site, bound: Sweeps<BoundGroup>) {
        self.bound.retain(|(known, _)| *known != site);
        self.bound.truncate(KEPT_PLACES - 1);
        self.bound.insert(0, (site, bound));
    }
}

impl Optimizer {
    /// Sets new locations of parameters and gradients: one pair of slices for every tensor, in the order of
    /// [`tensors`](Optimizer::tensors). For optimizers built with [`rebindable`](crate::OptimizerBuilder::rebindable), whose buffers belong to
    /// the allocator of a framework.
    ///
    /// Only bindings change. The optimizer's memory stays with the tensor, so that steps have the same bits as with buffers that do not move.
    /// The caller must have moved the parameters by the time a step runs. Steps that were recorded before use the old locations; everything
    /// recorded later (steps, exchanges of averages, checkpoints) uses the new ones.
    ///
    /// Bind groups of the last 8 locations of each tensor are kept, together with their buffers, so that returning to one costs a look-up. For
    /// a new location two or four bind groups are created for each of the tensor's dispatches.
    ///
    /// # Errors
    /// [`ErrorKind::Call`](crate::ErrorKind::Call) without [`rebindable`](crate::OptimizerBuilder::rebindable), where these are not the tensors
    /// that were declared, where a slice starts at an offset at which no binding can start, and between two
    /// [`encode_swap_averages`](Optimizer::encode_swap_averages); whatever else [`build`](crate::OptimizerBuilder::build) says of a slice;
    /// [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) or [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost). The bindings are
    /// those of before then.
    pub fn rebind<P, G>(&mut self, tensors: &[(P, G)]) -> Result<(), Error>
    where
        P: TensorSlice<Tensor = Tensor> + Copy,
        G: TensorSlice<Tensor = Tensor> + Copy,
    {
        self.gpu.check_alive()?;
        if !self.rebindable {
            return Err(Error::from(CallError::NotRebindable));
        }
        self.check_averages_in_place("a place for the parameters")?;
        let (expected, actual) = (self.plan.tensors.len(), tensors.len());
        if actual != expected {
            return Err(Error::from(CallError::StepTensors { role: "parameter and gradient", expected, actual }));
        }
        let device = self.gpu.device();
        let alignment = binding_alignment(&device.limits());
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
        let site = |place: &Place| {
            [
                (buffers[place.params_buffer].clone(), place.params_start),
                (buffers[place.grads_buffer].clone(), place.grads_start),
            ]
        };
        let (made, problem) = self.gpu.catching(|| {
            let windows = self.movables.iter().zip(&self.plan.windows);
            let bound = windows.map(|(movable, window)| {
                let place = &places[movable.tensor];
                let regions = movable.regions(window, place);
                let site = site(place);
                let bound = movable.bind(device, &site, &buffers, regions);
                (regions, site, bound)
            });
            bound.collect::<Vec<_>>()
        });
        if let Some(message) = problem {
            return Err(Error::from(DeviceError::Failed { what: "bind groups for other buffers".to_owned(), message }));
        }

        // Nothing is refused from here on. Dispatches and averages come in the order of their windows.
        let rebind = |dispatch: &mut Dispatch, group: &BoundGroup| {
            dispatch.bind_groups[OWN_BUFFERS] = group.clone();
        };
        let mut of_pass = |name: PassName, groups: fn(&Sweeps<BoundGroup>) -> &[BoundGroup]| {
            let dispatches = self.step.iter_mut().filter(|one| one.pass == name);
            for (dispatch, group) in dispatches.zip(made.iter().flat_map(|(.., bound)| groups(bound))) {
                rebind(dispatch, group);
            }
        };
        of_pass(PassName::ReduceGradient, |bound| bound.reduce.as_slice());
        of_pass(PassName::Prepare, |bound| &bound.before_update);
        of_pass(PassName::UpdateParameters, |bound| std::slice::from_ref(&bound.update));
        let averaged = made.iter().filter_map(|(.., bound)| bound.averages.as_ref());
        for (averages, [exchange, settle]) in self.averages.iter_mut().zip(averaged) {
            rebind(&mut averages.exchange, exchange);
            rebind(&mut averages.settle, settle);
            if let Some(schedule_free) = &mut averages.schedule_free {
                rebind(&mut schedule_free.back, exchange);
            }
        }
        let windows = self.movables.iter_mut().zip(&mut self.plan.windows);
        for ((movable, window), (regions, site, bound)) in windows.zip(made) {
            [window.params, window.grads] = regions;
            movable.keep(site, bound);
        }
        self.plan.places = places;
        self.kept.buffers = buffers;
        Ok(())
    }
}
