//! Building a zeroth-order optimizer on the device: checks, buffers and dispatches.

use super::ZerothOrder;
use crate::error::{BuildError, Error};
use crate::gpu::buffers::{filled, part, table_factors, whole, zeroed};
use crate::gpu::context::Gpu;
use crate::gpu::learning_rate;
use crate::gpu::limits::{self, MOST_TRIPS, largest_binding};
use crate::gpu::optimizer::build::{Numbered, geometry};
use crate::gpu::optimizer::{Dispatch, PassName};
use crate::gpu::pass::{Binding, PassSource, Pipeline};
use crate::gpu::readback::Readback;
use crate::gpu::tensor::Tensor;
use crate::group::TensorSlice;
use crate::layout::{RawRecord, ScopeSums, Update, no_totals};
use crate::plan::{Access, Geometry, Place, Plan, QUAD, Region};
use crate::record::RecordCursor;
use crate::zeroth_order::record::ZerothOrderRecords;
use crate::zeroth_order::tables::{Motion, PerturbedBlock, Probe, RawProbeRecord, Tables};
use crate::zeroth_order::{Planned, Stage, ZerothOrderBuilder};

impl ZerothOrderBuilder<Tensor> {
    /// Builds the optimizer: checks all settings, allocates all memory and compiles the kernels. Both forward passes write
    /// their loss to `loss`, a slice of one f32 of a buffer with
    /// [`BufferUsages::STORAGE`](wgpu::BufferUsages::STORAGE).
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for a wrong number, name, shape, element type, offset, usage
    /// or overlap, [`ErrorKind::Limit`](crate::ErrorKind::Limit), or
    /// [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) if the device refuses memory or a kernel. The
    /// caller's buffers are never written.
    pub fn build(self, gpu: &Gpu, loss: wgpu::BufferSlice) -> Result<ZerothOrder, Error> {
        gpu.check_alive()?;
        let limits = gpu.device().limits();
        limits::check(&limits)?;
        gpu.tuning().validate(gpu.device())?;
        let loss = loss.tensor();
        loss.check("loss", "loss")?;
        loss.check_scalar("loss")?;
        let mut numbered = Numbered::default();
        let geometry = Geometry { quads_need_alignment: false, joins: false, ..geometry(gpu, &limits) };
        let planned = self.plan(&geometry, |name, tensor| {
            tensor.check(name, "parameter")?;
            let (element, start, elements) = (tensor.element, tensor.start(), tensor.elements());
            let buffer = numbered.number(tensor.buffer);
            Ok(Place {
                params: element,
                params_buffer: buffer,
                params_start: start,
                grads: element,
                grads_buffer: buffer,
                grads_start: start,
                elements,
            })
        })?;
        let of_loss = Place {
            params: loss.element,
            params_buffer: numbered.number(loss.buffer.clone()),
            params_start: loss.start(),
            grads: loss.element,
            grads_buffer: 0,
            grads_start: 0,
            elements: 1,
        };
        // There are no gradients to overlap with.
        let apart = |(index, place): (usize, &Place)| Place { grads_buffer: usize::MAX - index, ..*place };
        let places: Vec<Place> = planned.plan.places.iter().chain([&of_loss]).enumerate().map(apart).collect();
        let names = planned.plan.tensors.iter().map(|tensor| tensor.name.as_str()).chain(["loss"]);
        crate::plan::check_overlaps(names.zip(&places))?;
        check_sizes(&planned.tables, &limits, gpu.tuning().workgroup_size)?;
        gpu.scoped("the zeroth-order optimizer's buffers and kernels", || {
            Ok(allocate(gpu, planned, &numbered.buffers, &loss, &limits))
        })
    }
}

/// Returns an error for factors that do not fit into a binding, and for tensors that are too large for a workgroup.
fn check_sizes(tables: &Tables, limits: &wgpu::Limits, workgroup: u32) -> Result<(), Error> {
    let limit = |what: &str, value: u64, limit: u64, way_out: &'static str| {
        if value <= limit {
            return Ok(());
        }
        Err(Error::from(BuildError::Limit { what: what.to_owned(), value, limit, way_out }))
    };
    let binding = largest_binding(limits) / size_of::<f32>() as u64;
    if tables.is_low_rank {
        let way_out = "use a smaller rank, or a device with a larger max_storage_buffer_binding_size";
        limit("the number of elements of all U", tables.left, binding, way_out)?;
        limit("the number of elements of all V", tables.right, binding, way_out)?;
    }
    if tables.has_momentum {
        let longest = tables.tensors.iter().map(|tensor| tensor.rows.max(tensor.columns)).max().unwrap_or(0);
        let trips = MOST_TRIPS * u64::from(workgroup);
        let way_out = "give the tensor a shape with fewer rows, or use ZerothOrderMethod::lozo()";
        limit("the number of rows of a tensor with a momentum", longest.into(), trips, way_out)?;
        let grid = limits.max_compute_workgroups_per_dimension;
        limit("the number of tensors", tables.tensors.len() as u64, grid.into(), "use several optimizers")?;
    }
    Ok(())
}

const READ: Binding = Binding::Read;
const WRITE: Binding = Binding::Write;

/// Compiles a kernel of `shaders/zeroth_order/`.
struct Compiler<'a> {
    gpu: &'a Gpu,
}

impl Compiler<'_> {
    /// Returns a kernel with the workgroup size of the tuning.
    fn wide(&self, module: &'static str, stem: &'static str, features: &[&str], groups: &[&[Binding]]) -> Pipeline {
        let constants = [("WORKGROUP", f64::from(self.gpu.tuning().workgroup_size))];
        Pipeline::new(self.gpu, &PassSource { module, stem, features, constants: &constants, groups })
    }

    /// Returns a dispatch of a kernel with one bind group.
    fn dispatch(&self, pipeline: &Pipeline, workgroups: u32, buffers: &[wgpu::BufferBinding]) -> Dispatch {
        Dispatch {
            pass: PassName::ZerothOrder,
            bind_groups: vec![pipeline.bind(self.gpu.device(), 0, buffers)],
            pipeline: pipeline.pipeline.clone(),
            workgroups,
        }
    }
}

/// The table of a window's blocks, and its part of the parameters.
struct BoundWindow<'a> {
    access: Access,
    blocks: wgpu::Buffer,
    count: u32,
    parameters: &'a wgpu::Buffer,
    region: Region,
}

impl BoundWindow<'_> {
    fn bindings(&self) -> [wgpu::BufferBinding<'_>; 2] {
        [whole(&self.blocks), part(self.parameters, self.region)]
    }
}

/// Divides the blocks of each window into those that can be loaded in quads and the others.
fn bind_windows<'a>(gpu: &Gpu, plan: &Plan, buffers: &'a [wgpu::Buffer]) -> Vec<BoundWindow<'a>> {
    let mut number = 0;
    let mut bound = Vec::new();
    for window in &plan.windows {
        let [mut quads, mut scalars] = [Vec::new(), Vec::new()];
        for block in &window.blocks {
            let Some((tensor, first)) = plan.locate_here(block.first_element.into()) else { continue };
            let whole = PerturbedBlock {
                params_start: block.params_start,
                elements: block.elements,
                first: first as u32,
                tensor: tensor as u32,
                number: 0,
            };
            let is_aligned = block.params_start.is_multiple_of(QUAD);
            let body = if is_aligned { block.elements / QUAD * QUAD } else { 0 };
            let (start, first) = (whole.params_start + body, whole.first + body);
            let tail = PerturbedBlock { params_start: start, elements: whole.elements - body, first, ..whole };
            quads.extend((body > 0).then_some(PerturbedBlock { elements: body, ..whole }));
            scalars.extend((tail.elements > 0).then_some(tail));
        }
        for (access, mut blocks) in [(Access::Quads, quads), (Access::Scalars, scalars)] {
            if blocks.is_empty() {
                continue;
            }
            for block in &mut blocks {
                block.number = number;
                number += 1;
            }
            bound.push(BoundWindow {
                access,
                count: blocks.len() as u32,
                blocks: filled(gpu, "blocks", &blocks),
                parameters: &buffers[window.params.buffer],
                region: window.params,
            });
        }
    }
    bound
}

fn allocate(
    gpu: &Gpu,
    planned: Planned,
    buffers: &[wgpu::Buffer],
    loss: &Tensor,
    limits: &wgpu::Limits,
) -> ZerothOrder {
    let Planned { plan, tables, record_steps, needs_initial_norm } = planned;
    let device = gpu.device();
    let compiler = Compiler { gpu };
    let initial = plan.first_states();
    // Buffers of pass 3.
    let groups = filled(gpu, "groups", &plan.groups);
    let states = filled(gpu, "states", &initial);
    let learning_rates = filled(gpu, "learning rates", &[initial[0].learning_rate]);
    let loss_scale = filled(gpu, "loss scale", &[1.0f32]);
    let sums = filled::<ScopeSums>(gpu, "sums", &[no_totals()]);
    let updates = zeroed::<Update>(gpu, "updates", 1);
    let records = zeroed::<RawRecord>(gpu, "records", record_steps.into());
    let factors = table_factors(gpu, &[]);
    // Buffers of the zeroth-order kernels.
    let probe = filled::<Probe>(gpu, "probe", &[tables.probe]);
    let tensors = filled(gpu, "tensors", &tables.tensors);
    let probe_records = zeroed::<RawProbeRecord>(gpu, "probe records", record_steps.into());
    let motions = tables.motions().map(|motion| filled(gpu, "motion", &[motion]));
    let last_motion = zeroed::<Motion>(gpu, "motion", 1);
    let (left_elements, right_elements) = if tables.is_low_rank { (tables.left, tables.right) } else { (0, 0) };
    let left = zeroed::<f32>(gpu, "U", left_elements);
    let right = zeroed::<f32>(gpu, "V", right_elements);
    gpu.queue().write_buffer(&right, 0, bytemuck::bytes_of(&[1.0f32; QUAD as usize]));
    let momentum = zeroed::<f32>(gpu, "M", if tables.has_momentum { left_elements } else { 0 });
    let turned = zeroed::<f32>(gpu, "products of V", if tables.has_momentum { tables.turned } else { 0 });

    let windows = bind_windows(gpu, &plan, buffers);
    let number: u32 = windows.iter().map(|window| window.count).sum();
    let squares = zeroed::<f32>(gpu, "squares of blocks", if needs_initial_norm { number.into() } else { 0 });

    let mut perturb = Vec::new();
    if needs_initial_norm {
        let kernel = compiler.wide("zeroth_order/length", "measure_length", &[], &[&[READ, WRITE], &[READ, READ]]);
        for window in &windows {
            let mut dispatch = compiler.dispatch(&kernel, window.count, &[whole(&states), whole(&squares)]);
            dispatch.bind_groups.push(kernel.bind(device, 1, &window.bindings()));
            perturb.push(dispatch);
        }
    }
    let scalar =
        |module, stem, features: &[&str], constants: &[(&str, f64)], bindings: &[(Binding, wgpu::BufferBinding)]| {
            let (access, bound): (Vec<Binding>, Vec<wgpu::BufferBinding>) = bindings.iter().cloned().unzip();
            let source = PassSource { module, stem, features, constants, groups: &[&access] };
            compiler.dispatch(&Pipeline::new(gpu, &source), 1, &bound)
        };
    perturb.push(scalar(
        "zeroth_order/begin",
        "begin_step",
        &[],
        &[],
        &[(READ, whole(&states)), (WRITE, whole(&probe))],
    ));
    let of_tensors = tables.tensors.len() as u32;
    if tables.has_momentum && of_tensors > 0 {
        let kernel = compiler.wide("zeroth_order/turn", "turn_columns", &[], &[&[READ, READ, READ, WRITE]]);
        let bound = [whole(&probe), whole(&tensors), whole(&right), whole(&turned)];
        perturb.push(compiler.dispatch(&kernel, of_tensors, &bound));
    }
    if tables.is_low_rank {
        let kernel = compiler.wide("zeroth_order/draw", "draw_factors", &[], &[&[READ, WRITE, WRITE]]);
        let per_workgroup = u64::from(QUAD * gpu.tuning().workgroup_size);
        let most = u64::from(limits.max_compute_workgroups_per_dimension);
        let workgroups = left_elements.max(right_elements).div_ceil(per_workgroup).clamp(1, most) as u32;
        perturb.push(compiler.dispatch(&kernel, workgroups, &[whole(&probe), whole(&left), whole(&right)]));
    }
    let factor = if tables.is_low_rank { READ } else { Binding::Absent };
    let own = [READ, READ, factor, factor];
    let displace = |motion: &wgpu::Buffer| {
        let dispatches = windows.iter().map(|window| {
            let features = [(tables.is_low_rank, "low_rank"), (window.access == Access::Scalars, "scalars")];
            let features: Vec<&str> = features.iter().filter(|(is_on, _)| *is_on).map(|(_, name)| *name).collect();
            let groups: &[&[Binding]] = &[&own, &[READ, WRITE], &[READ]];
            let kernel = compiler.wide("zeroth_order/displace", "displace", &features, groups);
            let bound = [whole(&probe), whole(&tensors), whole(&left), whole(&right)];
            let mut dispatch = compiler.dispatch(&kernel, window.count, &bound);
            dispatch.bind_groups.push(kernel.bind(device, 1, &window.bindings()));
            dispatch.bind_groups.push(kernel.bind(device, 2, &[whole(motion)]));
            dispatch
        });
        dispatches.collect::<Vec<_>>()
    };
    perturb.extend(displace(&motions[0]));

    let (region, at) = loss.scalar_region(limits);
    let of_loss = || (READ, part(&loss.buffer, region));
    let loss_at = [("LOSS_AT", f64::from(at))];
    let keep = &[of_loss(), (WRITE, whole(&probe))];
    let mut reverse = vec![scalar("zeroth_order/losses", "take_loss", &["keeps_loss"], &loss_at, keep)];
    reverse.extend(displace(&motions[1]));

    let mut bound = vec![of_loss(), (WRITE, whole(&probe)), (WRITE, whole(&sums))];
    let mut features: &[&str] = &[];
    if needs_initial_norm {
        features = &["initial_norm"];
        bound.extend([(READ, whole(&states)), (READ, whole(&squares))]);
    }
    let mut step = vec![scalar("zeroth_order/losses", "take_loss", features, &loss_at, &bound)];
    for rate in learning_rate::pipelines(gpu, &plan.groups) {
        let bound = [&groups, &sums, &states, &updates, &learning_rates, &records, &loss_scale, &factors].map(whole);
        step.push(Dispatch { pass: PassName::LearningRate, ..compiler.dispatch(&rate, 1, &bound) });
    }
    let features: &[&str] = if tables.has_momentum { &["has_momentum"] } else { &[] };
    let bound = [
        (READ, whole(&updates)),
        (READ, whole(&states)),
        (WRITE, whole(&probe)),
        (WRITE, whole(&last_motion)),
        (WRITE, whole(&probe_records)),
    ];
    step.push(scalar("zeroth_order/settle", "settle_step", features, &[], &bound));
    if tables.has_momentum && of_tensors > 0 {
        let groups: &[&[Binding]] = &[&[READ, READ, READ, WRITE, WRITE]];
        let kernel = compiler.wide("zeroth_order/momentum", "follow_momentum", &[], groups);
        let bound = [&probe, &tensors, &turned, &left, &momentum].map(whole);
        step.push(compiler.dispatch(&kernel, of_tensors, &bound));
    }
    step.extend(displace(&last_motion));

    ZerothOrder {
        gpu: gpu.clone(),
        calls: [perturb, reverse, step],
        readback: Readback::new(device, "records", records.size() + probe_records.size()),
        records,
        probe_records,
        cursor: RecordCursor::default(),
        undelivered: ZerothOrderRecords::default(),
        stage: Stage::Ready,
        plan,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::ZerothOrderMethod;
    use crate::plan::TensorInfo;

    /// Factors larger than a binding, more tensors than workgroups, and too many rows for a workgroup are refused.
    #[test]
    fn what_no_kernel_can_take_is_refused() {
        let tensors = |rows: u64, count: usize| -> Vec<TensorInfo> {
            let tensor = |index: usize| TensorInfo {
                name: index.to_string(),
                group: 0,
                first_element: 0,
                elements: 2 * rows,
                shape: vec![rows as usize, 2],
            };
            (0..count).map(tensor).collect()
        };
        let check = |method: ZerothOrderMethod, rows, count, limits: &wgpu::Limits| {
            let tables = Tables::new(&method, &tensors(rows, count), 1e-3, 0).expect("few enough");
            check_sizes(&tables, limits, 1).map_err(|error| {
                assert_eq!(error.kind(), ErrorKind::Limit);
                error.to_string()
            })
        };
        let limits = wgpu::Limits { max_compute_workgroups_per_dimension: 8, ..wgpu::Limits::default() };
        let narrow = wgpu::Limits { max_storage_buffer_binding_size: 64, ..limits.clone() };
        let (lozo, lozo_m) = (ZerothOrderMethod::lozo(), ZerothOrderMethod::lozo_m());
        assert_eq!(check(lozo, 8, 1, &narrow), Ok(()));
        let error = check(lozo, 9, 1, &narrow).expect_err("18 elements");
        assert!(error.starts_with("the number of elements of all U is 20, above 16: use a smaller rank"), "{error}");
        let error = check(lozo, 1, 5, &narrow).expect_err("24 elements");
        assert!(error.starts_with("the number of elements of all V is 24, above 16"), "{error}");
        assert_eq!((check(lozo, 4, 9, &limits), check(lozo_m, 4, 8, &limits)), (Ok(()), Ok(())));
        let error = check(lozo_m, 4, 9, &limits).expect_err("nine tensors");
        assert!(error.starts_with("the number of tensors is 9, above 8"), "{error}");
        assert_eq!(check(lozo_m, MOST_TRIPS, 1, &limits), Ok(()));
        let error = check(lozo_m, MOST_TRIPS + 1, 1, &limits).expect_err("many rows");
        assert!(error.contains("is 60001, above 60000: give the tensor a shape with fewer rows"), "{error}");
    }
}
