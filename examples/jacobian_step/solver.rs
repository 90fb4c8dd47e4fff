//! The step of a least-squares problem on the device: `Δ = Jᵀ (J Jᵀ + λ I)⁻¹ r`, taken by an optimizer of the crate.

use std::error::Error;

use wgpu_optim::{Gpu, Group, Optimizer, OptimizerBuilder, Regime, Rule, wgpu};

const WORKGROUP: u32 = 64;

/// Parameters on the device, and the system that gives their steps.
pub struct Solver {
    gpu: Gpu,
    shape: [u32; 2],
    iterations: usize,
    jacobian: wgpu::Buffer,
    residuals: wgpu::Buffer,
    parameters: wgpu::Buffer,
    gradient: wgpu::Buffer,
    /// `start`, then `transposed`, `product` and `advance` of an iteration, then `transposed` of the solution.
    pipelines: [wgpu::ComputePipeline; 5],
    bind_groups: [wgpu::BindGroup; 5],
    optimizer: Optimizer,
}

impl Solver {
    /// Allocates the system of `rows` residuals. `rate` is the share of the step that is taken.
    pub fn new(gpu: &Gpu, rows: usize, initial: &[f32], lambda: f32, rate: f32) -> Result<Self, Box<dyn Error>> {
        let columns = initial.len();
        let device = gpu.device();
        let buffer = |floats: usize, usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("jacobian step"),
                size: 4 * floats as u64,
                usage: usage | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let storage = |floats| buffer(floats, wgpu::BufferUsages::STORAGE);
        let sizes = buffer(4, wgpu::BufferUsages::UNIFORM);
        gpu.queue().write_buffer(&sizes, 0, bytemuck::cast_slice(&[rows as u32, columns as u32, lambda.to_bits(), 0]));
        let (jacobian, residuals, parameters) = (storage(rows * columns), storage(rows), storage(columns));
        let (vectors, gradient, square) = (storage(4 * rows), storage(columns), storage(1));
        gpu.queue().write_buffer(&parameters, 0, bytemuck::cast_slice(initial));
        let module = device.create_shader_module(wgpu::include_wgsl!("solve.wgsl"));
        // x is vector 0, and the optimizer descends.
        let of_solution: &[(&str, f64)] = &[("SOURCE", 0.0), ("SIGN", -1.0)];
        let entry_points =
            [("start", &[][..]), ("transposed", &[]), ("product", &[]), ("advance", &[]), ("transposed", of_solution)];
        let pipelines = entry_points.map(|(entry_point, constants)| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(entry_point),
                layout: None,
                module: &module,
                entry_point: Some(entry_point),
                compilation_options: wgpu::PipelineCompilationOptions { constants, ..Default::default() },
                cache: None,
            })
        });
        // The layout of an entry point has only the bindings that it uses.
        let used: [&[u32]; 5] = [&[0, 2, 3, 5], &[0, 1, 3, 4], &[0, 1, 3, 4], &[0, 3, 5], &[0, 1, 3, 4]];
        let buffers = [&sizes, &jacobian, &residuals, &vectors, &gradient, &square];
        let mut used = used.iter();
        let bind_groups = pipelines.each_ref().map(|pipeline| {
            let bindings = used.next().into_iter().copied().flatten();
            let entries: Vec<_> = bindings
                .map(|&binding| wgpu::BindGroupEntry {
                    binding,
                    resource: buffers[binding as usize].as_entire_binding(),
                })
                .collect();
            let layout = pipeline.get_bind_group_layout(0);
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries })
        });
        let optimizer = OptimizerBuilder::new(Rule::sgd())
            .regime(Regime::fixed(rate))
            .group(Group::new("all").tensor("parameters", parameters.slice(..), gradient.slice(..)))
            .build(gpu)?;
        Ok(Solver {
            gpu: gpu.clone(),
            shape: [rows as u32, columns as u32],
            // This number of iterations is enough in exact arithmetic.
            iterations: rows.min(columns),
            jacobian,
            residuals,
            parameters,
            gradient,
            pipelines,
            bind_groups,
            optimizer,
        })
    }

    /// Takes the step for this Jacobian (in row-major order) and these residuals. The solution and the step are one
    /// submit without a readback.
    pub fn step(&self, jacobian: &[f32], residuals: &[f32]) -> Result<(), Box<dyn Error>> {
        self.gpu.queue().write_buffer(&self.jacobian, 0, bytemuck::cast_slice(jacobian));
        self.gpu.queue().write_buffer(&self.residuals, 0, bytemuck::cast_slice(residuals));
        let [rows, columns] = self.shape;
        let grid = [1, columns.div_ceil(WORKGROUP), rows, 1, columns.div_ceil(WORKGROUP)];
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            let mut dispatch = |kernel: usize| {
                pass.set_pipeline(&self.pipelines[kernel]);
                pass.set_bind_group(0, &self.bind_groups[kernel], &[]);
                pass.dispatch_workgroups(grid[kernel], 1, 1);
            };
            dispatch(0);
            for _ in 0..self.iterations {
                (1..4).for_each(&mut dispatch);
            }
            dispatch(4);
            self.optimizer.encode_step_in(&mut pass)?;
        }
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    /// Takes a step that was computed on the host.
    pub fn take(&self, step: &[f32]) -> Result<(), Box<dyn Error>> {
        // The optimizer descends.
        let gradient: Vec<f32> = step.iter().map(|step| -step).collect();
        self.gpu.queue().write_buffer(&self.gradient, 0, bytemuck::cast_slice(&gradient));
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        self.optimizer.encode_step(&mut encoder)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    /// Waits for the steps and returns the parameters.
    pub fn parameters(&self) -> Result<Vec<f32>, Box<dyn Error>> {
        Ok(pollster::block_on(self.gpu.read_buffer("parameters", &self.parameters))?)
    }
}
