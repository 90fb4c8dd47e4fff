//! Buffers and kernels of this program, with the optimizer's step between them.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use wgpu_optim::{Error, Gpu, Group, Optimizer, OptimizerBuilder, Regime, Rule};

use crate::picture::Picture;

/// Tensors with name and parameters per Gaussian, in their order in the buffer.
pub const TENSORS: [(&str, usize); 4] = [("position", 2), ("shape", 3), ("colour", 3), ("opacity", 1)];

/// Parameters per Gaussian.
pub const PER_SPLAT: usize = 9;

/// Size of `Splat` in `splat.wgsl` in bytes.
const SPLAT_BYTES: u64 = 64;

/// Pixels along a tile's side, as in `splat.wgsl`.
const TILE: u32 = 8;

/// Returns round, half opaque Gaussians at random places with random colours, large enough to overlap.
pub fn random_start(target: &Picture, splats: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let side = target.width.max(target.height) as f32;
    let (width, height) = (target.width as f32 / side, target.height as f32 / side);
    let sigma = 0.6 * (width * height / splats as f32).sqrt();
    let mut parameters = Vec::with_capacity(PER_SPLAT * splats);
    for _ in 0..splats {
        parameters.extend([random.random_range(0.0..width), random.random_range(0.0..height)]);
    }
    for _ in 0..splats {
        parameters.extend([sigma.ln(), sigma.ln(), random.random_range(0.0..std::f32::consts::PI)]);
    }
    for _ in 0..3 * splats {
        parameters.push(random.random_range(0.0..1.0));
    }
    parameters.extend(std::iter::repeat_n(0.0, splats));
    parameters
}

/// Target, Gaussians, and the kernels that compute loss and gradients.
pub struct Fit {
    gpu: Gpu,
    target: Picture,
    splats: usize,
    parameters: wgpu::Buffer,
    gradients: wgpu::Buffer,
    residual: wgpu::Buffer,
    history: wgpu::Buffer,
    forward: [Kernel; 3],
    backward: [Kernel; 2],
}

/// Norm from which a group's learning rate is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Norms {
    /// The norm of its own gradients.
    ByGroup,
    /// The norm of all gradients. Groups with the same regime then have the same rate.
    Shared,
}

/// Dispatch of a kernel of this program.
struct Kernel {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: [u32; 2],
}

impl Fit {
    /// Uploads the target and the initial parameters, and compiles the kernels. The losses of `steps` steps are kept.
    pub fn new(gpu: &Gpu, target: &Picture, start: &[f32], steps: usize) -> Self {
        let device = gpu.device();
        let buffer = |label, bytes| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let splats = start.len() / PER_SPLAT;
        let pixels: Vec<[f32; 4]> = target.pixels.iter().map(|&[r, g, b]| [r, g, b, 0.0]).collect();
        let bytes = 4 * start.len() as u64;
        let (parameters, gradients) = (buffer("parameters", bytes), buffer("gradients", bytes));
        let ready = buffer("splats", SPLAT_BYTES * splats as u64);
        let (columns, rows) = (target.width as u32, target.height as u32);
        let (columns, rows) = (columns.div_ceil(TILE), rows.div_ceil(TILE));
        let words = (splats as u32).div_ceil(32);
        let cover = buffer("cover", 4 * u64::from(columns * rows * words));
        let goal = buffer("target", 16 * pixels.len() as u64);
        let residual = buffer("residual", goal.size());
        let history = buffer("history", 4 * (1 + steps.max(1)) as u64);
        gpu.queue().write_buffer(&parameters, 0, bytemuck::cast_slice(start));
        gpu.queue().write_buffer(&goal, 0, bytemuck::cast_slice(&pixels));

        let kernel = |source: &str, buffers: &[&wgpu::Buffer], workgroups| {
            let constants =
                [("WIDTH", target.width as f64), ("HEIGHT", target.height as f64), ("SPLATS", splats as f64)];
            Kernel::new(device, source, &constants, buffers, workgroups)
        };
        let prepare = kernel(include_str!("prepare.wgsl"), &[&parameters, &ready], [(splats as u32).div_ceil(64), 1]);
        let cover_tiles =
            kernel(include_str!("cover.wgsl"), &[&ready, &cover], [words.div_ceil(8), (columns * rows).div_ceil(8)]);
        let render = kernel(include_str!("render.wgsl"), &[&ready, &cover, &goal, &residual], [columns, rows]);
        let loss = kernel(include_str!("loss.wgsl"), &[&residual, &history], [1, 1]);
        let gradient = kernel(include_str!("gradient.wgsl"), &[&ready, &residual, &gradients], [splats as u32, 1]);
        Fit {
            gpu: gpu.clone(),
            target: target.clone(),
            splats,
            parameters,
            gradients,
            residual,
            history,
            forward: [prepare, cover_tiles, render],
            backward: [loss, gradient],
        }
    }

    /// Builds an optimizer over the buffers, with a group, and therefore a learning rate, for each of the four tensors.
    pub fn optimizer(&self, rule: Rule, regimes: [Regime; 4], norms: Norms, steps: u32) -> Result<Optimizer, Error> {
        let mut builder = OptimizerBuilder::new(rule).record_steps(steps);
        if norms == Norms::Shared {
            builder = builder.global_norm();
        }
        let mut start = 0;
        for ((name, per_splat), regime) in TENSORS.into_iter().zip(regimes) {
            let end = start + 4 * (per_splat * self.splats) as u64;
            let (weights, gradients) = (&self.parameters, &self.gradients);
            builder = builder.group(Group::new(name).regime(regime).tensor(
                name,
                weights.slice(start..end),
                gradients.slice(start..end),
            ));
            start = end;
        }
        builder.build(&self.gpu)
    }

    /// Runs one iteration in one compute pass and one submit: the picture, its loss, the gradients and the step.
    pub fn iterate(&self, optimizer: &Optimizer) -> Result<wgpu::SubmissionIndex, Error> {
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for kernel in self.forward.iter().chain(&self.backward) {
                kernel.encode(&mut pass);
            }
            optimizer.encode_step_in(&mut pass)?;
        }
        Ok(self.gpu.queue().submit([encoder.finish()]))
    }

    /// Returns the gradients at the current parameters, and appends the loss to the others. Waits for the device.
    #[cfg(test)]
    pub fn gradients(&self) -> Result<Vec<f32>, Error> {
        self.dispatch(self.forward.iter().chain(&self.backward));
        pollster::block_on(self.gpu.read_buffer("gradients", &self.gradients))
    }

    /// Returns the picture of the current parameters. Waits for the device.
    pub fn picture(&self) -> Result<Picture, Error> {
        self.dispatch(&self.forward);
        let residual: Vec<[f32; 4]> = pollster::block_on(self.gpu.read_buffer("residual", &self.residual))?;
        let mut picture = self.target.clone();
        for (pixel, residual) in picture.pixels.iter_mut().zip(&residual) {
            for (channel, residual) in pixel.iter_mut().zip(residual) {
                *channel += residual;
            }
        }
        Ok(picture)
    }

    /// Runs kernels without a step.
    fn dispatch<'a>(&self, kernels: impl IntoIterator<Item = &'a Kernel>) {
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for kernel in kernels {
                kernel.encode(&mut pass);
            }
        }
        self.gpu.queue().submit([encoder.finish()]);
    }

    /// Returns the loss before each step so far. Waits for the device.
    pub fn losses(&self) -> Result<Vec<f32>, Error> {
        let words: Vec<u32> = pollster::block_on(self.gpu.read_buffer("losses", &self.history))?;
        let steps = words[0] as usize;
        Ok(words[1..=steps].iter().map(|&word| f32::from_bits(word)).collect())
    }
}

impl Kernel {
    /// Compiles a module of the shared source and the kernel's own, and binds the buffers in the given order.
    fn new(
        device: &wgpu::Device,
        source: &str,
        constants: &[(&str, f64)],
        buffers: &[&wgpu::Buffer],
        workgroups: [u32; 2],
    ) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl([include_str!("splat.wgsl"), source].concat().into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions { constants, ..Default::default() },
            cache: None,
        });
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Kernel { pipeline, bind_group, workgroups }
    }

    fn encode(&self, pass: &mut wgpu::ComputePass) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.workgroups[0], self.workgroups[1], 1);
    }
}
