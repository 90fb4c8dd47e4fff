//! A model and its optimizer, on the host or on the device.

use std::ops::Range;

use wgpu_optim::{
    Averaging, Checkpoint, CpuOptimizer, Gpu, Group, Notes, Optimizer, OptimizerBuilder, Parameters, Records, Regime,
    Rule, Schedule, Warning, WeightDecay, wgpu,
};

use crate::CliError;
use crate::data::{Dataset, Split};
use crate::model::cpu::CpuModel;
use crate::model::gpu::GpuModel;
use crate::model::{Evaluation, Model, Part, TensorShape};
use crate::target::Target;

/// Steps recorded into one submit.
const STEPS_PER_SUBMIT: usize = 16;

/// The optimizer's configuration.
#[derive(Debug, Clone, Copy)]
pub struct OptimizerSettings {
    pub rule: Rule,
    pub regime: Regime,
    pub schedule: Schedule,
    pub averaging: Averaging,
    pub weight_decay: WeightDecay,
    pub clip_norm: Option<f32>,
    /// Record every tensor's norm and step.
    pub telemetry: bool,
    /// Factor on every gradient before the optimizer sees it, on the CPU path: how a regime takes to the scale of the loss.
    pub gradient_scale: f32,
}

impl OptimizerSettings {
    /// Refuses numbers outside their ranges, before data and devices are looked for.
    pub fn check(&self) -> Result<(), CliError> {
        let empty: &[f32] = &[];
        self.builder().group(Group::new("model").tensor("check", empty, empty)).build_cpu()?;
        Ok(())
    }

    /// What is known to fail in it.
    pub fn warnings(&self) -> Vec<Warning> {
        let empty: &[f32] = &[];
        let builder: OptimizerBuilder<wgpu_optim::cpu::Tensor> = self.builder();
        builder.group(Group::new("model").tensor("check", empty, empty)).warnings()
    }

    fn builder<T>(&self) -> OptimizerBuilder<T> {
        let builder = OptimizerBuilder::new(self.rule)
            .regime(self.regime)
            .schedule(self.schedule)
            .averaging(self.averaging)
            .telemetry(self.telemetry);
        let builder = match self.weight_decay {
            WeightDecay::Coupled(decay) => builder.weight_decay(decay),
            WeightDecay::Decoupled(decay) => builder.decoupled_weight_decay(decay),
        };
        match self.clip_norm {
            Some(norm) => builder.clip_norm(norm),
            None => builder,
        }
    }
}

/// What is done to the gradients of single steps, to see what the optimizer makes of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Injection {
    /// The step whose gradients become NaN.
    pub nan: Option<u64>,
    /// The step whose gradients become a hundred times as large.
    pub spike: Option<u64>,
    /// The step before which the device is destroyed.
    pub loss_of_device: Option<u64>,
}

impl Injection {
    fn is_due(&self, step: u64) -> bool {
        [self.nan, self.spike, self.loss_of_device].contains(&Some(step))
    }

    fn apply(&self, step: u64, gradients: &mut [f32]) {
        let mut factor = 1.0;
        if self.spike == Some(step) {
            factor *= 100.0;
        }
        if self.nan == Some(step) {
            factor = f32::NAN;
        }
        for gradient in gradients {
            *gradient *= factor;
        }
    }
}

/// What trains.
pub enum Engine<'a> {
    Cpu(Box<CpuEngine<'a>>),
    Gpu(Box<GpuEngine>),
}

impl<'a> Engine<'a> {
    /// Sets everything up; all tensors are one group, with one learning rate.
    pub fn new(
        target: &Target,
        model: &Model,
        dataset: &'a Dataset,
        batch: usize,
        settings: &OptimizerSettings,
        injection: Injection,
        seed: u64,
    ) -> Result<Self, CliError> {
        let initial = model.initial_parameters(seed);
        let steps_per_epoch = dataset.train.rows().div_ceil(batch) as u32;
        let builder_steps = steps_per_epoch.max(1);
        match target {
            Target::Cpu { .. } => {
                let tensors = model.tensors();
                let mut group = Group::new("model");
                for tensor in &tensors {
                    let values = &initial[tensor.range()];
                    group = group.tensor(tensor.name, values, values);
                }
                Ok(Engine::Cpu(Box::new(CpuEngine {
                    optimizer: settings.builder().record_steps(builder_steps).group(group).build_cpu()?,
                    model: CpuModel::new(model, batch),
                    tensors,
                    gradients: vec![0.0; initial.len()],
                    gradient_scale: settings.gradient_scale,
                    parameters: initial,
                    dataset,
                    batch,
                    injection,
                    steps_done: 0,
                })))
            }
            Target::Gpu(gpu) => {
                let gpu_model =
                    gpu.scoped("the model's buffers and kernels", || GpuModel::new(gpu, model, dataset, batch))?;
                gpu_model.write_parameters(&initial);
                let mut group = Group::new("model");
                for tensor in model.tensors() {
                    let bytes = tensor.range_bytes();
                    group = group.tensor(
                        tensor.name,
                        gpu_model.parameters().slice(bytes.clone()),
                        gpu_model.gradients().slice(bytes),
                    );
                }
                Ok(Engine::Gpu(Box::new(GpuEngine {
                    optimizer: settings
                        .builder()
                        .record_steps(builder_steps)
                        .loss(gpu_model.loss())
                        .group(group)
                        .build(gpu)?,
                    model: gpu_model,
                    tensors: model.tensors(),
                    gpu: gpu.clone(),
                    injection,
                    steps_done: 0,
                })))
            }
        }
    }

    /// Starts a pass over the training rows in the given order, from some step of it on.
    pub fn begin_epoch(&mut self, order: &[u32], step: usize) {
        match self {
            // It is told the order with every stretch.
            Engine::Cpu(_) => {}
            Engine::Gpu(engine) => engine.model.begin_epoch(order, step),
        }
    }

    /// The next steps of the epoch, which has this order; the loss and the records of each. `on_steps` hears of progress.
    pub fn train(
        &mut self,
        order: &[u32],
        steps: Range<usize>,
        on_steps: impl FnMut(usize),
    ) -> Result<(Vec<f32>, Records), CliError> {
        match self {
            Engine::Cpu(engine) => engine.train(order, steps, on_steps),
            Engine::Gpu(engine) => engine.train(steps, on_steps),
        }
    }

    /// Everything that the steps to come follow from, but for the order of the rows.
    pub fn checkpoint(&self, notes: &Notes) -> Result<Checkpoint, CliError> {
        Ok(match self {
            Engine::Cpu(engine) => {
                let tensors = engine.tensors.iter();
                let params: Vec<&[f32]> = tensors.map(|tensor| &engine.parameters[tensor.range()]).collect();
                engine.optimizer.checkpoint(Some(&params), notes)?
            }
            Engine::Gpu(engine) => pollster::block_on(engine.optimizer.checkpoint(Parameters::Included, notes))?,
        })
    }

    /// Goes on from a checkpoint.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), CliError> {
        match self {
            Engine::Cpu(engine) => {
                let mut params = slices_of(&engine.tensors, &mut engine.parameters);
                engine.optimizer.restore(checkpoint, Some(&mut params))?;
                engine.steps_done = checkpoint.step();
            }
            Engine::Gpu(engine) => {
                engine.optimizer.restore(checkpoint, Parameters::Included)?;
                engine.steps_done = checkpoint.step();
            }
        }
        Ok(())
    }

    /// Mean loss and accuracy over a split.
    pub fn evaluate(&mut self, part: Part) -> Result<Evaluation, CliError> {
        match self {
            Engine::Cpu(engine) => {
                let split = match part {
                    Part::Train => &engine.dataset.train,
                    Part::Test => &engine.dataset.test,
                };
                Ok(engine.model.evaluate(&engine.parameters, &split.x, &split.y))
            }
            Engine::Gpu(engine) => Ok(engine.model.evaluate(part)?),
        }
    }

    /// Does something with the averaged parameters in the place of the parameters, which come back bit for bit.
    pub fn with_averages<R>(&mut self, work: impl FnOnce(&mut Self) -> Result<R, CliError>) -> Result<R, CliError> {
        let parameters = match self {
            Engine::Cpu(engine) => {
                engine.swap_averages()?;
                None
            }
            Engine::Gpu(engine) => Some(engine.copy_averages()?),
        };
        let result = work(self)?;
        match (self, parameters) {
            (Engine::Gpu(engine), Some(parameters)) => engine.put_back(&parameters),
            (Engine::Cpu(engine), _) => engine.swap_averages()?,
            (Engine::Gpu(_), None) => {}
        }
        Ok(result)
    }
}

/// Everything on the host.
pub struct CpuEngine<'a> {
    model: CpuModel,
    optimizer: CpuOptimizer,
    tensors: Vec<TensorShape>,
    parameters: Vec<f32>,
    gradients: Vec<f32>,
    gradient_scale: f32,
    dataset: &'a Dataset,
    batch: usize,
    injection: Injection,
    steps_done: u64,
}

/// The tensors' slices of all parameters.
fn slices_of<'a>(tensors: &[TensorShape], parameters: &'a mut [f32]) -> Vec<&'a mut [f32]> {
    let mut slices = Vec::with_capacity(tensors.len());
    let mut rest = parameters;
    let mut done = 0;
    for tensor in tensors {
        let range = tensor.range();
        let (slice, after) = rest[range.start - done..].split_at_mut(range.len());
        done = range.end;
        slices.push(slice);
        rest = after;
    }
    slices
}

impl CpuEngine<'_> {
    fn swap_averages(&mut self) -> Result<(), CliError> {
        let mut params = slices_of(&self.tensors, &mut self.parameters);
        Ok(self.optimizer.swap_averages(&mut params)?)
    }

    fn train(
        &mut self,
        order: &[u32],
        steps: Range<usize>,
        mut on_steps: impl FnMut(usize),
    ) -> Result<(Vec<f32>, Records), CliError> {
        let Split { x, y } = &self.dataset.train;
        let mut losses = Vec::with_capacity(steps.len());
        let batches = order.chunks(self.batch);
        for rows in batches.skip(steps.start).take(steps.len()) {
            let loss = self.model.loss_and_gradients(&self.parameters, x, y, rows, &mut self.gradients);
            losses.push(loss);
            if self.injection.is_due(self.steps_done) {
                self.injection.apply(self.steps_done, &mut self.gradients);
            }
            self.steps_done += 1;
            if self.gradient_scale != 1.0 {
                for gradient in &mut self.gradients {
                    *gradient *= self.gradient_scale;
                }
            }
            let mut params = slices_of(&self.tensors, &mut self.parameters);
            let tensors = self.tensors.iter();
            let grads: Vec<&[f32]> = tensors.map(|tensor| &self.gradients[tensor.range()]).collect();
            self.optimizer.step_with_loss(&mut params, &grads, loss)?;
            on_steps(1);
        }
        Ok((losses, self.optimizer.drain_records()))
    }
}

/// Everything on the device.
pub struct GpuEngine {
    model: GpuModel,
    tensors: Vec<TensorShape>,
    optimizer: Optimizer,
    gpu: Gpu,
    injection: Injection,
    steps_done: u64,
}

impl GpuEngine {
    /// Copies the averages over the parameters, and gives a copy of those. (A swap would bring back parameters of schedule-free training
    /// within one unit in the last place only.)
    fn copy_averages(&self) -> Result<wgpu::Buffer, CliError> {
        let device = self.gpu.device();
        let parameters = self.model.parameters();
        let copy = self.gpu.scoped("a copy of the parameters", || {
            Ok::<_, CliError>(device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("a copy of the parameters"),
                size: parameters.size(),
                usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }))
        })?;
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("averages") });
        encoder.copy_buffer_to_buffer(parameters, 0, &copy, 0, parameters.size());
        for (index, tensor) in self.tensors.iter().enumerate() {
            let destination = parameters.slice(tensor.range_bytes());
            self.optimizer.encode_copy_averages(&mut encoder, index, destination)?;
        }
        self.gpu.queue().submit([encoder.finish()]);
        Ok(copy)
    }

    fn put_back(&self, copy: &wgpu::Buffer) {
        let mut encoder =
            self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("parameters") });
        encoder.copy_buffer_to_buffer(copy, 0, self.model.parameters(), 0, copy.size());
        self.gpu.queue().submit([encoder.finish()]);
    }

    fn train(&mut self, all: Range<usize>, mut on_steps: impl FnMut(usize)) -> Result<(Vec<f32>, Records), CliError> {
        let (device, queue) = (self.gpu.device(), self.gpu.queue());
        let mut previous: Option<(wgpu::SubmissionIndex, usize)> = None;
        let mut first = all.start;
        while first < all.end {
            let mut steps = first..(first + STEPS_PER_SUBMIT).min(all.end);
            let of_run = |step: usize| self.steps_done + (step - all.start) as u64;
            let is_due = |step: &usize| self.injection.is_due(of_run(*step));
            match steps.clone().find(is_due) {
                Some(step) if step == first => {
                    self.step_injected(of_run(step))?;
                    on_steps(1);
                    first += 1;
                    continue;
                }
                Some(step) => steps.end = step,
                None => {}
            }
            first = steps.end;
            let count = steps.len();
            let mut encoder =
                device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("training") });
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                for _ in steps {
                    self.model.encode_batch(&mut pass);
                    self.optimizer.encode_step_in(&mut pass)?;
                }
            }
            let submission = queue.submit([encoder.finish()]);
            // One submit runs while the next is recorded, so that the progress shown is progress made.
            if let Some((submission, count)) = previous.replace((submission, count)) {
                self.wait_for(submission)?;
                on_steps(count);
            }
        }
        if let Some((submission, count)) = previous {
            self.wait_for(submission)?;
            on_steps(count);
        }
        self.steps_done += all.len() as u64;
        let losses = self.model.read_losses(all)?;
        let records = pollster::block_on(self.optimizer.drain_records())?;
        Ok((losses, records))
    }

    /// A step whose gradients are changed on their way to the optimizer. They come to the host and go back, which is slow, and good
    /// enough for one step.
    fn step_injected(&self, step: u64) -> Result<(), CliError> {
        let (device, queue) = (self.gpu.device(), self.gpu.queue());
        if self.injection.loss_of_device == Some(step) {
            device.destroy();
        }
        let encoder = || {
            device
                .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("training, gradients changed") })
        };
        let mut backward = encoder();
        self.model.encode_batch(&mut backward.begin_compute_pass(&wgpu::ComputePassDescriptor::default()));
        queue.submit([backward.finish()]);
        let buffer = self.model.gradients();
        let mut gradients = pollster::block_on(self.gpu.read_buffer::<f32>("gradients", buffer))?;
        self.injection.apply(step, &mut gradients);
        queue.write_buffer(buffer, 0, bytemuck::cast_slice(&gradients));
        let mut update = encoder();
        self.optimizer.encode_step(&mut update)?;
        queue.submit([update.finish()]);
        Ok(())
    }

    fn wait_for(&self, submission: wgpu::SubmissionIndex) -> Result<(), CliError> {
        Ok(self.gpu.finish("training steps", &submission)?)
    }
}
