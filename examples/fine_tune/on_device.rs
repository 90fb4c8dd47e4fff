//! Training on the device, with buffers and a gradient kernel.

use std::error::Error;
use std::path::Path;

use wgpu_optim::{Controls, Differences, Gpu, GpuOptions, Optimizer, Parameters, Record, Schedule, wgpu};

use super::host::last_two;
use super::{HIDDEN, SAMPLES, Sample, Training, builder, weights};

pub struct Device {
    gpu: Gpu,
    kernel: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    /// Samples, backbone, head, their gradients, and the loss, in the order of the kernel's bindings.
    buffers: [wgpu::Buffer; 6],
    optimizer: Optimizer,
}

impl Device {
    pub fn new() -> Result<Self, Box<dyn Error>> {
        let options = GpuOptions { allow_software: true, ..Default::default() };
        let gpu = pollster::block_on(Gpu::request(&options))?;
        let device = gpu.device();
        let shader = device.create_shader_module(wgpu::include_wgsl!("gradient.wgsl"));
        let kernel = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("gradient"),
            layout: None,
            module: &shader,
            entry_point: None,
            compilation_options: Default::default(),
            cache: None,
        });
        let buffers = [4 * SAMPLES, 2 * HIDDEN, HIDDEN, 2 * HIDDEN, HIDDEN, 1].map(|floats| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 4 * floats as u64,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
        let entries: Vec<_> = (0..)
            .zip(&buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &kernel.get_bind_group_layout(0),
            entries: &entries,
        });
        gpu.queue().write_buffer(&buffers[1], 0, bytemuck::cast_slice(&weights(2 * HIDDEN)));
        gpu.queue().write_buffer(&buffers[2], 0, bytemuck::cast_slice(&weights(HIDDEN)));
        let optimizer = builder_of(&buffers, "first head", Schedule::Constant).build(&gpu)?;
        Ok(Device { kernel, bind_group, buffers, optimizer, gpu })
    }

    pub fn name(&self) -> String {
        self.gpu.describe()
    }

    fn read(&self, buffer: &wgpu::Buffer) -> Result<Vec<f32>, Box<dyn Error>> {
        Ok(pollster::block_on(self.gpu.read_buffer("values", buffer))?)
    }
}

fn builder_of(
    buffers: &[wgpu::Buffer; 6],
    head: &str,
    schedule: Schedule,
) -> wgpu_optim::OptimizerBuilder<wgpu_optim::gpu::Tensor> {
    let [_, backbone, of_head, backbone_gradients, head_gradients, _] =
        buffers.each_ref().map(|buffer| buffer.slice(..));
    builder([backbone, backbone_gradients], head, [of_head, head_gradients], schedule)
}

impl Training for Device {
    fn train(&mut self, samples: &[Sample], steps: usize) -> Result<f32, Box<dyn Error>> {
        self.gpu.queue().write_buffer(&self.buffers[0], 0, bytemuck::cast_slice(samples));
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        for _ in 0..steps {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&self.kernel);
            pass.set_bind_group(0, &self.bind_group, &[]);
            pass.dispatch_workgroups(1, 1, 1);
            self.optimizer.encode_step_in(&mut pass)?;
        }
        self.gpu.queue().submit([encoder.finish()]);
        Ok(self.read(&self.buffers[5])?[0])
    }

    fn control(&mut self, group: &str, change: &dyn Fn(&mut Controls)) -> Result<(), Box<dyn Error>> {
        Ok(self.optimizer.control(group, change)?)
    }

    fn rebuild(&mut self, head: &str, schedule: Schedule) -> Result<Vec<String>, Box<dyn Error>> {
        let builder = builder_of(&self.buffers, head, schedule);
        let (rebuilt, differences) = pollster::block_on(self.optimizer.rebuild(builder, Differences::all()))?;
        self.optimizer = rebuilt;
        Ok(differences.iter().map(ToString::to_string).collect())
    }

    fn save(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        Ok(pollster::block_on(self.optimizer.save(path, Parameters::Included))?)
    }

    fn load(&mut self, path: &Path) -> Result<Vec<String>, Box<dyn Error>> {
        let accepted = Differences::none().settings();
        let (_, differences) = self.optimizer.load_with(path, Parameters::Included, accepted)?;
        Ok(differences.iter().map(ToString::to_string).collect())
    }

    fn last_records(&mut self) -> Result<Vec<Record>, Box<dyn Error>> {
        Ok(last_two(pollster::block_on(self.optimizer.drain_records())?.records))
    }

    fn backbone(&self) -> Result<Vec<f32>, Box<dyn Error>> {
        self.read(&self.buffers[1])
    }
}
