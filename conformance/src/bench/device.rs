//! Work on a device: steps of the optimizer, copies and the triad. They are timed by the wall clock and, if available,
//! by the device's timestamps.

use std::time::{Duration, Instant};

use wgpu_optim::internals::Timestamps;
use wgpu_optim::{Element, Error, Gpu, Optimizer, wgpu};

use super::measure::{Bench, RecordingTimes, Times};
use super::workload::{Spec, room, values};
use crate::spec::shape_for;
use crate::stored::Stored;

/// Kernel that copies. Its constants, like those of [`TRIAD`], are `WORKGROUP` and `QUADS`.
pub const COPY: &str = include_str!("../../shaders/copy.wgsl");
/// Kernel of the triad a = b + s c.
pub const TRIAD: &str = include_str!("../../shaders/triad.wgsl");

/// Number of steps recorded into one compute pass and one submit.
const CALLS_PER_SUBMIT: usize = 64;
/// Number of steps whose passes are timed one by one.
const STEPS_BY_PASS: usize = 8;

/// Buffers of one length, for steps, copies and the triad.
#[derive(Debug)]
pub struct Device {
    gpu: Gpu,
    timestamps: Option<Timestamps>,
    elements: usize,
    params: wgpu::Buffer,
    grads: wgpu::Buffer,
    /// Destination of copy and triad.
    target: wgpu::Buffer,
    /// Loss of every step.
    loss: wgpu::Buffer,
    /// 16-bit parameters and gradients that a step has requested.
    halves: Vec<(Element, [wgpu::Buffer; 2])>,
}

/// Job to be timed.
#[derive(Debug)]
pub enum DeviceJob {
    /// Step of an optimizer.
    Step(Box<Optimizer>),
    /// Step in a submit of its own, with a wait for it.
    LoneStep(Box<Optimizer>),
    /// Kernel of the benchmark, with its dispatches.
    Kernel(Vec<Launch>),
    /// `copy_buffer_to_buffer`.
    BufferCopy,
}

/// Dispatch of a kernel.
#[derive(Debug)]
pub struct Launch {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: u32,
}

impl Device {
    /// Creates buffers of this length.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceRefused`](wgpu_optim::ErrorKind::DeviceRefused) if the device cannot allocate them.
    pub fn new(gpu: &Gpu, elements: usize) -> Result<Self, Error> {
        let size = (elements as u64 * 4).next_multiple_of(16);
        gpu.scoped("the benchmark's buffers", || {
            let [params, grads] = arrays(gpu, Element::F32, size);
            Ok(Device {
                timestamps: Timestamps::new(gpu),
                gpu: gpu.clone(),
                elements,
                params,
                grads,
                target: array(gpu, "target", size),
                loss: {
                    let loss = array(gpu, "loss", 4);
                    gpu.queue().write_buffer(&loss, 0, &1f32.to_le_bytes());
                    loss
                },
                halves: Vec::new(),
            })
        })
    }

    /// Returns parameters and gradients of an element type, and creates them if necessary.
    fn arrays(&mut self, element: Element) -> Result<[&wgpu::Buffer; 2], Error> {
        if element == Element::F32 {
            return Ok([&self.params, &self.grads]);
        }
        let mut known = self.halves.iter();
        let at = match known.position(|&(other, _)| other == element) {
            Some(at) => at,
            None => {
                let size = room(element, self.elements) as u64 * element.bytes();
                let made = self.gpu.scoped("the benchmark's buffers", || {
                    Ok::<_, Error>(arrays(&self.gpu, element, size.next_multiple_of(16)))
                })?;
                self.halves.push((element, made));
                self.halves.len() - 1
            }
        };
        Ok(self.halves[at].1.each_ref())
    }

    /// Builds an optimizer over the buffers.
    ///
    /// # Errors
    /// Returns the error of the builder or the device.
    fn optimizer(&mut self, spec: &Spec) -> Result<Optimizer, Error> {
        let element = spec.mode.element;
        let [params, grads] = self.arrays(element)?;
        let builder = spec.builder(|group, name, range| {
            let bytes = element.bytes() * range.start as u64..element.bytes() * range.end as u64;
            let params = element.of(params.slice(bytes.clone()));
            group.shaped_tensor(name, &shape_for(&spec.rule, range.len()), params, element.of(grads.slice(bytes)))
        });
        let mut optimizer = builder.loss(self.loss.slice(..)).build(&self.gpu)?;
        optimizer.control_all(|group| group.learning_rate_factor = spec.rate_factor())?;
        Ok(optimizer)
    }

    /// Creates a kernel over all elements in the optimizer's geometry, with as many dispatches as bindings and grids
    /// require.
    fn kernel(&self, stem: &str, source: &str, buffers: &[&wgpu::Buffer]) -> Result<DeviceJob, Error> {
        let (device, tuning, limits) = (self.gpu.device(), self.gpu.tuning(), self.gpu.device().limits());
        let block_bytes = 4 * u64::from(tuning.block_elements());
        // Bindings start on multiples of this.
        let unit = block_bytes.max(limits.min_storage_buffer_offset_alignment.into());
        let window_bytes = limits
            .max_storage_buffer_binding_size
            .min(block_bytes * u64::from(limits.max_compute_workgroups_per_dimension))
            / unit
            * unit;
        let launches = self.gpu.scoped(stem, || {
            let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(stem),
                source: wgpu::ShaderSource::Wgsl(source.into()),
            });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(stem),
                layout: None,
                module: &module,
                entry_point: Some(stem),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &[
                        ("WORKGROUP", tuning.workgroup_size.into()),
                        ("QUADS", tuning.quads_per_invocation.into()),
                    ],
                    zero_initialize_workgroup_memory: false,
                },
                cache: None,
            });
            let mut launches = Vec::new();
            let mut offset = 0;
            while offset < self.target.size() {
                let size = window_bytes.min(self.target.size() - offset);
                let entries: Vec<_> = buffers
                    .iter()
                    .enumerate()
                    .map(|(binding, buffer)| wgpu::BindGroupEntry {
                        binding: binding as u32,
                        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                            buffer,
                            offset,
                            size: wgpu::BufferSize::new(size),
                        }),
                    })
                    .collect();
                launches.push(Launch {
                    bind_group: device.create_bind_group(&wgpu::BindGroupDescriptor {
                        label: Some(stem),
                        layout: &pipeline.get_bind_group_layout(0),
                        entries: &entries,
                    }),
                    pipeline: pipeline.clone(),
                    workgroups: size.div_ceil(block_bytes) as u32,
                });
                offset += size;
            }
            Ok::<_, Error>(launches)
        })?;
        Ok(DeviceJob::Kernel(launches))
    }

    /// Records calls between two timestamps. Returns true if the timestamps were written.
    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        job: &DeviceJob,
        calls: usize,
        clock: Option<&Timestamps>,
        span: usize,
    ) -> Result<bool, Error> {
        if matches!(job, DeviceJob::BufferCopy) {
            let clock = clock.filter(|clock| clock.in_encoders());
            if let Some(clock) = clock {
                clock.begin(encoder, span);
            }
            for _ in 0..calls {
                encoder.copy_buffer_to_buffer(&self.grads, 0, &self.target, 0, self.grads.size());
            }
            if let Some(clock) = clock {
                clock.end(encoder, span);
            }
            return Ok(clock.is_some());
        }
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("bench"),
            timestamp_writes: clock.map(|clock| clock.around_pass(span)),
        });
        for _ in 0..calls {
            match job {
                DeviceJob::Step(optimizer) | DeviceJob::LoneStep(optimizer) => {
                    optimizer.encode_step_in(&mut pass)?;
                }
                DeviceJob::Kernel(launches) => {
                    for launch in launches {
                        pass.set_pipeline(&launch.pipeline);
                        pass.set_bind_group(0, &launch.bind_group, &[]);
                        pass.dispatch_workgroups(launch.workgroups, 1, 1);
                    }
                }
                DeviceJob::BufferCopy => {}
            }
        }
        Ok(clock.is_some())
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Sets 16-bit parameters to their initial values, which are those of the gradients. Many steps along one gradient
    /// would exceed 65504, the largest f16, and steps would be skipped.
    fn refresh_halves(&self) -> Result<(), Error> {
        let mut encoder = self.encoder();
        for (_, [params, grads]) in &self.halves {
            encoder.copy_buffer_to_buffer(grads, 0, params, 0, grads.size());
        }
        self.wait(&self.gpu.queue().submit([encoder.finish()]))
    }

    /// Waits for the device, and returns an error if it was lost.
    fn wait(&self, submission: &wgpu::SubmissionIndex) -> Result<(), Error> {
        self.gpu.finish("the benchmark", submission)
    }
}

impl Bench for Device {
    type Job = DeviceJob;

    fn step(&mut self, spec: &Spec) -> Result<DeviceJob, Error> {
        Ok(DeviceJob::Step(Box::new(self.optimizer(spec)?)))
    }

    fn lone_step(&mut self, spec: &Spec) -> Result<Option<DeviceJob>, Error> {
        Ok(Some(DeviceJob::LoneStep(Box::new(self.optimizer(spec)?))))
    }

    fn copies(&self) -> Result<Vec<(&'static str, DeviceJob)>, Error> {
        let kernel = self.kernel("copy", COPY, &[&self.target, &self.grads])?;
        Ok(vec![("kernel", kernel), ("buffer to buffer", DeviceJob::BufferCopy)])
    }

    fn triad(&self) -> Result<DeviceJob, Error> {
        let buffers = [&self.target, &self.params, &self.grads];
        self.kernel("triad", TRIAD, &buffers)
    }

    fn time(&mut self, job: &mut DeviceJob, calls: usize) -> Result<Times, Error> {
        let per_submit = match job {
            DeviceJob::LoneStep(_) => 1,
            _ => CALLS_PER_SUBMIT,
        };
        let clock = match job {
            // This job measures the host's time.
            DeviceJob::LoneStep(_) => None,
            _ => self.timestamps.as_ref().filter(|clock| calls.div_ceil(per_submit) <= clock.spans()),
        };
        if matches!(job, DeviceJob::Step(_) | DeviceJob::LoneStep(_)) {
            self.refresh_halves()?;
        }
        let mut spans = 0;
        let mut timed = true;
        let start = Instant::now();
        let mut left = calls;
        let mut last = None;
        while left > 0 {
            let batch = left.min(per_submit);
            let mut encoder = self.encoder();
            timed &= self.record(&mut encoder, job, batch, clock, spans)?;
            let submission = self.gpu.queue().submit([encoder.finish()]);
            spans += 1;
            left -= batch;
            if per_submit == 1 {
                self.wait(&submission)?;
            }
            last = Some(submission);
        }
        if let Some(last) = last {
            self.wait(&last)?;
        }
        let wall = start.elapsed();
        let device = match clock {
            Some(clock) if timed => {
                clock.read(&self.gpu, spans)?.and_then(|spans| Timestamps::plausible(spans.iter().sum(), wall))
            }
            _ => None,
        };
        Ok(Times { wall, device })
    }

    fn time_passes(&self, job: &DeviceJob) -> Result<Vec<(&'static str, Duration)>, Error> {
        let (DeviceJob::Step(optimizer), Some(clock)) = (job, &self.timestamps) else {
            return Ok(Vec::new());
        };
        let stretches: Vec<_> = optimizer.dispatches().chunk_by(|one, next| one.pass == next.pass).collect();
        let steps = STEPS_BY_PASS.min(clock.spans() / stretches.len().max(1));
        let start = Instant::now();
        let mut encoder = self.encoder();
        let mut spans = 0;
        for _ in 0..steps {
            for dispatches in &stretches {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: Some("bench"),
                    timestamp_writes: Some(clock.around_pass(spans)),
                });
                for dispatch in *dispatches {
                    dispatch.encode(&mut pass);
                }
                spans += 1;
            }
        }
        let submission = self.gpu.queue().submit([encoder.finish()]);
        self.wait(&submission)?;
        let wall = start.elapsed();
        let Some(spans) = clock.read(&self.gpu, spans)? else {
            return Ok(Vec::new());
        };
        if Timestamps::plausible(spans.iter().sum(), wall).is_none() {
            return Ok(Vec::new());
        }
        Ok(stretches
            .iter()
            .enumerate()
            .map(|(index, dispatches)| {
                let times = spans.iter().skip(index).step_by(stretches.len());
                (dispatches[0].pass.name(), times.sum::<Duration>() / steps as u32)
            })
            .collect())
    }

    fn time_recording(&self, job: &DeviceJob, steps: usize) -> Result<Option<RecordingTimes>, Error> {
        let DeviceJob::Step(optimizer) = job else {
            return Ok(None);
        };
        let mut encoder = self.encoder();
        let start = Instant::now();
        for _ in 0..steps {
            optimizer.encode_step(&mut encoder)?;
        }
        let encode = start.elapsed();
        let start = Instant::now();
        drop(encoder.finish());
        Ok(Some(RecordingTimes { encode, finish: start.elapsed() }))
    }
}

fn array(gpu: &Gpu, label: &str, size: u64) -> wgpu::Buffer {
    gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

/// Creates buffers of parameters and gradients.
fn arrays(gpu: &Gpu, element: Element, size: u64) -> [wgpu::Buffer; 2] {
    ["parameters", "gradients"].map(|label| {
        let array = array(gpu, label, size);
        fill(gpu, &array, element);
        array
    })
}

/// Fills a buffer with the workload's values, by copies of one small piece.
fn fill(gpu: &Gpu, buffer: &wgpu::Buffer, element: Element) {
    const PIECE_BYTES: u64 = 1 << 20;
    let piece = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("values"),
        size: PIECE_BYTES.min(buffer.size()),
        usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let piece_values = values((piece.size() / element.bytes()) as usize);
    let piece_values = Stored::new(element, &piece_values);
    gpu.queue().write_buffer(&piece, 0, piece_values.bytes());
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    for offset in (0..buffer.size()).step_by(PIECE_BYTES as usize) {
        let size = PIECE_BYTES.min(buffer.size() - offset);
        encoder.copy_buffer_to_buffer(&piece, 0, buffer, offset, size);
    }
    gpu.queue().submit([encoder.finish()]);
}
