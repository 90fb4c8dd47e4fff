//! Plan of an optimizer, which `build` makes once: scopes, windows, blocks, offsets. Both paths follow the same plan.
//!
//! - A **scope** is a set of groups over which one norm is computed: one group, or several that share their norm.
//! - A **block** is a contiguous range of elements that one workgroup processes. The list of blocks is the segment table,
//!   with which many tensors cost as much as one.
//! - A **window** is one dispatch of passes 1 and 4. It consists of blocks of one kernel whose parameters lie within one
//!   binding, and whose gradients do too.

use std::sync::Arc;

use crate::element::{self, Element};
use crate::error::{BuildError, Error};
use crate::group::{GroupConfig, NamedTensor, ResolvedGroup};
use crate::layout::{GroupConstants, GroupState, ScopeTable, StepUnit};
use crate::safeguards::Safeguards;
use crate::schedule::Tables;
use crate::shard::Shard;

mod kernel;
mod matrices;
mod scopes;
mod windows;

pub(crate) use kernel::{Access, Alignment, Encoding, Kernel, MemoryKind, RateAxis};
pub(crate) use matrices::{MatrixNumbers, RowTensor, Shape, Stack, TensorWork};
use scopes::{Extent, constants_of, kernel_of, number_rows, scopes_of, units_of};
pub(crate) use windows::{Region, Stretch, Unplaced, Window};
use windows::{Span, Windows};

/// Number of elements that one lane operation of a kernel handles.
pub(crate) const QUAD: u32 = 4;

/// Location of a tensor. Buffers are numbered by the caller of [`Plan::new`]. Offsets and lengths are in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) params: Element,
    pub(crate) params_buffer: usize,
    pub(crate) params_start: u64,
    pub(crate) grads: Element,
    pub(crate) grads_buffer: usize,
    pub(crate) grads_start: u64,
    pub(crate) elements: u64,
}

/// Sizes that determine how blocks are cut, from the tuning and the device's limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    /// Number of elements of a full block, a multiple of 4.
    pub(crate) block_elements: u32,
    /// Number of partials that each block writes.
    pub(crate) partials_per_block: u32,
    /// Largest number of elements of one binding.
    pub(crate) binding_elements: u64,
    /// Alignment of a binding's start in elements, a multiple of 4.
    pub(crate) binding_alignment: u64,
    /// Largest number of workgroups of one dispatch.
    pub(crate) dispatch_blocks: u32,
    /// Largest number of partials that pass 2 can add up for one scope.
    pub(crate) scope_partials: u64,
    /// True if parameters and gradients can be loaded four at a time only if both start at a multiple of four.
    pub(crate) quads_need_alignment: bool,
    /// True if tensors may move to other buffers. Memory, blocks and kernels then do not depend on where they are.
    pub(crate) movable: bool,
    /// True if tensors of a group that lie next to each other may share blocks.
    pub(crate) joins: bool,
    /// True if all elements are loaded one by one, and in the same window, as soon as some of them must be.
    pub(crate) one_access: bool,
}

/// Name, group, position and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Name of the tensor.
    pub name: String,
    /// Index of the tensor's group.
    pub group: usize,
    /// Index of the tensor's first element among all elements of the optimizer, in the order of declaration.
    pub first_element: u64,
    /// Number of elements.
    pub elements: u64,
    /// Lengths of the dimensions, outermost first. It is empty for a tensor without a shape.
    pub shape: Vec<usize>,
}

/// Names of an optimizer's groups and tensors, for the sentences of its records.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) groups: Vec<String>,
    pub(crate) tensors: Vec<String>,
}

/// The whole plan.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) safeguards: Safeguards,
    pub(crate) accumulation: Accumulation,
    pub(crate) configs: Vec<GroupConfig>,
    /// Names for the sentences of records.
    pub(crate) names: Arc<Names>,
    pub(crate) groups: Vec<GroupConstants>,
    /// Factors of the tables of all schedules.
    pub(crate) factors: Vec<f32>,
    /// Specialisation of each group's passes.
    #[cfg(feature = "checkpoint")]
    pub(crate) kernels: Vec<Kernel>,
    pub(crate) scopes: Vec<ScopeTable>,
    pub(crate) windows: Vec<Window>,
    /// Windows without places, from which `windows` are cut. `None` if tensors cannot move to other buffers.
    pub(crate) unplaced: Option<Box<Unplaced>>,
    pub(crate) tensors: Vec<TensorInfo>,
    /// Location of each tensor.
    pub(crate) places: Vec<Place>,
    /// Partials of all scopes.
    pub(crate) partials: u32,
    /// Units that pass 5 adds up: tensors with telemetry, then groups with a trust ratio.
    pub(crate) units: Vec<StepUnit>,
    /// Shard that this rank has, if other ranks have the remaining parameters.
    pub(crate) shard: Option<Shard>,
}

/// Location of an element that pass 3 has reported.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Location {
    /// Tensor of the element, and the element's index in it. `None` if another rank has the element.
    pub(crate) tensor: Option<(usize, u64)>,
    /// Rank that has the element, and the element's index on that rank. `None` without ranks.
    pub(crate) rank: Option<(u32, u64)>,
}

/// Gradient accumulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accumulation {
    /// Number of gradients that the caller adds up for one step.
    pub(crate) micro_batches: u32,
    /// True if pass 4 sets the gradients to zero.
    pub(crate) clears: bool,
}

impl Plan {
    /// Returns the groups' states before the first step.
    pub(crate) fn first_states(&self) -> Vec<GroupState> {
        let groups = self.groups.iter().zip(&self.configs);
        groups.map(|(group, config)| GroupState::initial(group, config.regime.regime().first_state())).collect()
    }

    /// Makes the plan. The lengths and overlaps of tensors are checked elsewhere ([`check_overlaps`]).
    pub(crate) fn new(
        groups: Vec<ResolvedGroup<Place>>,
        safeguards: Safeguards,
        accumulation: Accumulation,
        geometry: &Geometry,
    ) -> Result<Self, Error> {
        for group in &groups {
            for NamedTensor { name, shape, tensor: place } in &group.tensors {
                element::check(name, place.params, group.config.averaging.is_on(), group.config.rounding)?;
                matrices::check_shape(name, shape, place.elements)?;
                if let Some(factors) = &group.config.rate_factors {
                    factors.check(name, shape)?;
                }
                if group.config.lazy_rows && Shape::of(shape).is_none() {
                    return Err(Error::from(BuildError::NoRows { tensor: name.clone(), shape: shape.clone() }));
                }
            }
        }
        let total: u64 = groups.iter().flat_map(|group| group.tensors.iter().map(|one| one.tensor.elements)).sum();
        if total >= u64::from(u32::MAX) {
            return Err(Error::from(BuildError::Limit {
                what: "the number of parameters of one optimizer".to_owned(),
                value: total,
                limit: u64::from(u32::MAX) - 1,
                way_out: "split them over several optimizers",
            }));
        }

        let configs: Vec<GroupConfig> = groups.iter().map(|group| group.config.clone()).collect();
        let extents: Vec<Extent> = groups.iter().map(Extent::of).collect();
        let scopes = scopes_of(&configs, &extents, &safeguards);
        let mut constants = Vec::with_capacity(configs.len());
        let mut kernels = Vec::with_capacity(configs.len());
        let mut scope_of_group = vec![0; configs.len()];
        for (index, scope) in scopes.iter().enumerate() {
            for &group in &scope.groups {
                scope_of_group[group] = index;
            }
        }
        let mut tables = Tables::default();
        for (index, config) in configs.iter().enumerate() {
            let scope = &scopes[scope_of_group[index]];
            let mut kernel = kernel_of(config, scope)?;
            kernel.loss_scale = safeguards.loss_scaler.is_some();
            kernel.clears_gradients = accumulation.clears;
            let mut group = constants_of(config, kernel, scope_of_group[index], scope);
            safeguards.write_to(&mut group);
            config.schedule.write_to(&mut group);
            group.schedule_rise = tables.place(&config.schedule)?.unwrap_or(group.schedule_rise);
            group.controls.gradient_factor = group.sign / accumulation.micro_batches as f32;
            constants.push(group);
            kernels.push(kernel);
        }

        let mut tensors = Vec::new();
        let mut places = Vec::new();
        let mut spans_of_groups = Vec::with_capacity(groups.len());
        let mut first_element = 0;
        for (index, group) in groups.into_iter().enumerate() {
            let mut spans: Vec<Span> = Vec::new();
            for NamedTensor { name, shape, tensor: place } in group.tensors {
                let rule = &group.config.rule;
                let (kind, work) = (rule.kind_for(&shape), rule.work(&shape));
                let rows = Shape::of(&shape).filter(|_| kernels[index].has_rows());
                tensors.push(TensorInfo { name, group: index, first_element, elements: place.elements, shape });
                places.push(place);
                // Blocks are cut at the boundaries of tensors that are recorded one by one, or that passes process as a
                // whole.
                let joins = !group.config.telemetry && geometry.joins && work.is_none() && rows.is_none();
                match spans.last_mut() {
                    Some(span) if joins && span.continues_with(&place, kernels[index].block_multiple()) => {
                        span.place.elements += place.elements;
                    }
                    _ if place.elements > 0 => spans.push(Span { place, first_element, kind, work, rows }),
                    _ => {}
                }
                first_element += place.elements;
            }
            spans_of_groups.push((group.config, spans));
        }
        let mut windows = Windows::new(geometry);
        if geometry.one_access {
            let spans = || {
                spans_of_groups.iter().zip(&kernels).flat_map(|((_, spans), kernel)| {
                    spans.iter().flat_map(|span| span.pieces(geometry, kernel.block_multiple()))
                })
            };
            windows.one_by_one = spans().any(|(access, start, end)| access == Access::Scalars && start < end);
        }
        for (index, (config, spans)) in spans_of_groups.iter().enumerate() {
            for span in spans {
                let kernel = kernels[index].at(&span.place, span.kind, config);
                let windows_refuse = |elements, limit| {
                    Error::from(BuildError::Limit {
                        what: format!("the number of elements of a tensor in group \"{}\"", config.name),
                        value: elements,
                        limit,
                        way_out: "use a device with a larger max_storage_buffer_binding_size, or another rule for this tensor",
                    })
                };
                windows.add_span(index, kernel, span).map_err(|(elements, limit)| windows_refuse(elements, limit))?;
            }
        }
        let mut windows = windows.finish();

        let (table, partials) = number_rows(&scopes, &scope_of_group, &mut windows, geometry)?;
        let units = units_of(&configs, &tensors, &windows);
        let (windows, unplaced) = if geometry.movable {
            let unplaced = Box::new(Unplaced { windows, geometry: *geometry });
            (unplaced.place(&tensors, &places), Some(unplaced))
        } else {
            (windows, None)
        };
        Ok(Plan {
            safeguards,
            accumulation,
            names: Arc::new(Names {
                groups: configs.iter().map(|config| config.name.clone()).collect(),
                tensors: tensors.iter().map(|tensor| tensor.name.clone()).collect(),
            }),
            configs,
            groups: constants,
            factors: tables.factors,
            #[cfg(feature = "checkpoint")]
            kernels,
            scopes: table,
            windows,
            unplaced,
            tensors,
            places,
            partials,
            units,
            shard: None,
        })
    }

    /// Returns this plan for one rank of a sharded optimizer, with the shard's settings and a rounding seed for each rank.
    pub(crate) fn sharded(mut self, rank_of_ranks: Option<(u32, u32)>) -> Self {
        self.shard = rank_of_ranks.map(|(rank, ranks)| Shard::new(rank, ranks, &self));
        if let Some((rank, _)) = rank_of_ranks {
            for group in &mut self.groups {
                // Other ranks do not know about this rank's overflows, and all ranks must halt together.
                group.halt_after_overflows = 0;
                group.rounding_seed = element::seed_of_rank(group.rounding_seed, rank);
            }
        }
        self
    }

    /// Returns the windows as they would be with the tensors in these places, or `None` if tensors cannot move.
    pub(crate) fn windows_at(&self, places: &[Place]) -> Option<Vec<Window>> {
        self.unplaced.as_ref().map(|unplaced| unplaced.place(&self.tensors, places))
    }

    /// Returns the windows that own memory. [`Window::memory`] is an index into them.
    pub(crate) fn memory_windows(&self) -> &[Window] {
        self.unplaced.as_ref().map_or(&self.windows, |unplaced| &unplaced.windows)
    }

    /// Returns the key for which the passes over a tensor are compiled.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn kernel_of(&self, tensor: usize) -> Kernel {
        let TensorInfo { group, shape, .. } = &self.tensors[tensor];
        let config = &self.configs[*group];
        self.kernels[*group].at(&self.places[tensor], config.rule.kind_for(shape), config)
    }

    /// Returns the location of an element, which is counted among those of all ranks if there are several.
    pub(crate) fn locate(&self, element: u32) -> Location {
        let element = u64::from(element);
        let Some(shard) = &self.shard else {
            return Location { tensor: self.locate_here(element), rank: None };
        };
        let rank = shard.locate(element);
        let here = rank.filter(|&(rank, _)| rank == shard.rank);
        Location { tensor: here.and_then(|(_, element)| self.locate_here(element)), rank }
    }

    /// Returns the tensor that an element belongs to, and the element's index in it.
    pub(crate) fn locate_here(&self, element: u64) -> Option<(usize, u64)> {
        let after = self.tensors.partition_point(|tensor| tensor.first_element <= element);
        // Empty tensors share their first element with the one that follows them.
        let index = after.checked_sub(1)?;
        let offset = element - self.tensors[index].first_element;
        (offset < self.tensors[index].elements).then_some((index, offset))
    }
}

/// Refuses parameters that overlap other parameters, and gradients that overlap parameters or other gradients.
pub(crate) fn check_overlaps<'a>(tensors: impl Iterator<Item = (&'a str, &'a Place)>) -> Result<(), Error> {
    let mut ranges: Vec<(usize, u64, u64, &str, &str)> = tensors
        .filter(|(_, place)| place.elements > 0)
        .flat_map(|(name, place)| {
            let range = |buffer, element: Element, start, role| {
                let bytes = |elements: u64| elements * element.bytes();
                (buffer, bytes(start), bytes(start + place.elements), role, name)
            };
            [
                range(place.params_buffer, place.params, place.params_start, "parameters"),
                range(place.grads_buffer, place.grads, place.grads_start, "gradients"),
            ]
        })
        .collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let (buffer, _, end, role, name) = pair[0];
        let (next_buffer, next_start, next_end, next_role, next_name) = pair[1];
        if buffer == next_buffer && next_start < end {
            return Err(Error::from(BuildError::Overlap {
                first: format!("the {role} of tensor \"{name}\""),
                second: format!("the {next_role} of tensor \"{next_name}\""),
                start: next_start,
                end: end.min(next_end),
            }));
        }
    }
    Ok(())
}
