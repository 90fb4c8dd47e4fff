//! Model with its optimizer, on the host or on the device.

use std::ops::{ControlFlow, Range};

use wgpu_optim::cpu::{Values, ValuesMut};
use wgpu_optim::{
    Averaging, Checkpoint, CpuLearnedSchedule, CpuOptimizer, CpuWatchdog, Difference, Differences, EpochVerdict, Gpu,
    Group, LearnedSchedule, Notes, Optimizer, OptimizerBuilder, Parameters, Records, Regime, Rule, Schedule,
    SchedulePolicy, State, TensorInfo, Warning, Watchdog, WatchdogConfig, WeightDecay, cpu, wgpu,
};

use super::options::Args;
use crate::CliError;
use crate::data::{Dataset, Split};
use crate::model::cpu::CpuModel;
use crate::model::gpu::GpuModel;
use crate::model::{Evaluation, Model, Part, TensorShape};
use crate::target::Target;

/// Number of steps recorded into one submit.
const STEPS_PER_SUBMIT: usize = 16;

/// Configuration of the optimizer.
#[derive(Debug, Clone)]
pub struct OptimizerSettings {
    pub rule: Rule,
    pub regime: Regime,
    pub schedule: Schedule,
    pub averaging: Averaging,
    pub weight_decay: WeightDecay,
    pub clip_norm: Option<f32>,
    /// True for one learning rate per tensor.
    pub per_tensor: bool,
    /// True to record every tensor's norm and step.
    pub telemetry: bool,
    /// Storage of the rule's memory.
    pub state: State,
    pub watchdog: Option<WatchdogConfig>,
    /// Policy of a learned schedule that multiplies the rate.
    pub policy: Option<SchedulePolicy>,
    /// Factor of every gradient before the optimizer sees it, on the CPU path. It shows how a regime depends on the
    /// scale of the loss.
    pub gradient_scale: f32,
}

impl OptimizerSettings {
    /// Returns the builder of an optimizer without elements.
    fn empty(&self) -> OptimizerBuilder<cpu::Tensor> {
        let empty: &[f32] = &[];
        self.builder().group(Group::new("model").shaped_tensor("check", &[0, 0], empty, empty))
    }

    /// Returns an error if a number is outside its range. It is called before data and devices are searched.
    pub fn check(&self) -> Result<(), CliError> {
        let optimizer = self.empty().build_cpu()?;
        Ok(self.watchdog.map_or(Ok(()), |config| CpuWatchdog::new(&optimizer, config).map(drop))?)
    }

    /// Returns warnings of settings that are known to fail.
    pub fn warnings(&self) -> Vec<Warning> {
        self.empty().warnings()
    }

    fn group<T>(&self) -> Group<T> {
        let group = Group::new("model");
        if self.per_tensor { group.per_tensor() } else { group }
    }

    fn builder<T>(&self) -> OptimizerBuilder<T> {
        let builder = OptimizerBuilder::new(self.rule)
            // Rule of the biases, if the main rule takes only matrices.
            .other_tensors(Rule::adamw())
            .regime(self.regime)
            .schedule(self.schedule.clone())
            .averaging(self.averaging)
            .telemetry(self.telemetry)
            .state(self.state);
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

/// Changes of the gradients in single steps, which show how the optimizer reacts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Injection {
    pub nan: Option<u64>,
    /// Step whose gradients are multiplied by 100.
    pub spike: Option<u64>,
    /// Step before which the device is destroyed.
    pub loss_of_device: Option<u64>,
}

impl Injection {
    fn is_due(&self, step: u64) -> bool {
        [self.nan, self.spike, self.loss_of_device].contains(&Some(step))
    }

    fn apply(&self, step: u64, gradients: &mut [f32]) {
        let spike = if self.spike == Some(step) { 100.0 } else { 1.0 };
        let factor = if self.nan == Some(step) { f32::NAN } else { spike };
        gradients.iter_mut().for_each(|gradient| *gradient *= factor);
    }
}

/// Callback that receives the number of finished steps and decides whether to continue.
pub type OnSteps<'a> = &'a mut dyn FnMut(usize) -> ControlFlow<()>;

/// Model with its optimizer, on the host or on the device.
pub trait Engine {
    /// Starts a pass over the training rows in the given order, from a step of the epoch on.
    fn begin_epoch(&mut self, order: &[u32], step: usize);

    /// Trains the next steps of the epoch. Returns the loss and the records of each. `on_steps` receives the progress
    /// and may break off. Steps in flight are then the last ones, and only their losses are returned.
    fn train(&mut self, steps: Range<usize>, on_steps: OnSteps) -> Result<(Vec<f32>, Records), CliError>;

    /// Returns a checkpoint with all state that later steps depend on, except the order of the rows.
    fn checkpoint(&self, notes: &Notes) -> Result<Checkpoint, CliError>;

    /// Restores a checkpoint, and accepts the given differences. Returns the differences.
    fn restore(&mut self, checkpoint: &Checkpoint, accepted: Differences) -> Result<Vec<Difference>, CliError>;

    /// Computes mean loss and accuracy over a split.
    fn evaluate(&mut self, part: Part) -> Result<Evaluation, CliError>;

    /// Exchanges parameters and averages. A second call restores the parameters bit for bit.
    fn exchange_averages(&mut self) -> Result<(), CliError>;

    /// Shows the training loss before the first step to the watchdog, if there is one.
    fn start_watch(&mut self) -> Result<(), CliError>;

    /// Lets the watchdog, if there is one, judge the epoch that has ended.
    fn end_epoch(&mut self) -> Result<Option<EpochVerdict>, CliError>;
}

/// Keeps the records of the first group, which stand for the run. There is only one unless every tensor is a group.
fn of_first_group(mut records: Records) -> Records {
    records.records.retain(|record| record.group == 0);
    records
}

/// Creates an engine. All tensors are one group with one learning rate, or each has its own.
pub fn new<'a>(
    target: &Target,
    model: &Model,
    dataset: &'a Dataset,
    args: &Args,
    settings: &OptimizerSettings,
    injection: Injection,
) -> Result<Box<dyn Engine + 'a>, CliError> {
    let in_host_memory = match target {
        Target::Cpu { .. } => true,
        Target::Gpu(gpu) => gpu.device().adapter_info().device_type == wgpu::DeviceType::Cpu,
    };
    let batch = args.batch(dataset);
    if in_host_memory {
        model.check_memory(batch)?;
    }
    let initial = model.initial_parameters(args.seed);
    let record_steps = args.steps_per_epoch(dataset).max(1) as u32;
    let (tensors, steps_done) = (model.tensors(), 0);
    match target {
        Target::Cpu { .. } => {
            let mut group = settings.group();
            for tensor in &tensors {
                let values = &initial[tensor.range()];
                group = group.shaped_tensor(tensor.name, &[tensor.rows, tensor.cols], values, values);
            }
            let optimizer = settings.builder().record_steps(record_steps).group(group).build_cpu()?;
            let watchdog = settings.watchdog.map(|config| CpuWatchdog::new(&optimizer, config)).transpose()?;
            Ok(Box::new(CpuEngine {
                watchdog,
                model: CpuModel::new(model, batch),
                tensors: in_order_of(optimizer.tensors(), &tensors),
                optimizer,
                gradients: vec![0.0; initial.len()],
                gradient_scale: settings.gradient_scale,
                parameters: initial,
                dataset,
                order: Vec::new(),
                batch,
                schedule: settings.policy.clone().map(CpuLearnedSchedule::new),
                injection,
                steps_done,
                looks: settings.regime.needs_looks(),
            }))
        }
        Target::Gpu(gpu) => {
            let model = gpu.scoped("the model's buffers and kernels", || {
                GpuModel::new(gpu, model, dataset, batch, args.order_rows(dataset))
            })?;
            model.write_parameters(&initial);
            let mut group = settings.group();
            for tensor in &tensors {
                let [params, grads] =
                    [model.parameters(), model.gradients()].map(|buffer| buffer.slice(tensor.range_bytes()));
                group = group.shaped_tensor(tensor.name, &[tensor.rows, tensor.cols], params, grads);
            }
            let builder = settings.builder().record_steps(record_steps).loss(model.loss()).group(group);
            let optimizer = builder.build(gpu)?;
            let policy = settings.policy.as_ref();
            let schedule = policy.map(|policy| LearnedSchedule::new(&optimizer, policy, model.loss())).transpose()?;
            let tensors = in_order_of(optimizer.tensors(), &tensors);
            let (looks, gpu) = (settings.regime.needs_looks(), gpu.clone());
            let watchdog =
                settings.watchdog.map(|config| Watchdog::new(&optimizer, model.loss(), config)).transpose()?;
            let rows = dataset.train.rows();
            Ok(Box::new(GpuEngine {
                model,
                tensors,
                optimizer,
                gpu,
                schedule,
                injection,
                steps_done,
                looks,
                kept: None,
                watchdog,
                batch,
                rows,
            }))
        }
    }
}

/// Runs `work` with the averaged parameters in place of the parameters.
pub fn with_averages<R>(
    engine: &mut dyn Engine,
    work: impl FnOnce(&mut dyn Engine) -> Result<R, CliError>,
) -> Result<R, CliError> {
    engine.exchange_averages()?;
    let result = work(engine)?;
    engine.exchange_averages()?;
    Ok(result)
}

struct CpuEngine<'a> {
    model: CpuModel,
    optimizer: CpuOptimizer,
    tensors: Vec<TensorShape>,
    parameters: Vec<f32>,
    gradients: Vec<f32>,
    gradient_scale: f32,
    dataset: &'a Dataset,
    /// Order of the rows in the epoch.
    order: Vec<u32>,
    batch: usize,
    schedule: Option<CpuLearnedSchedule>,
    injection: Injection,
    steps_done: u64,
    /// True if the gradient of each batch is computed again after the step.
    looks: bool,
    watchdog: Option<CpuWatchdog>,
}

impl CpuEngine<'_> {
    /// Multiplies the gradients by the requested factor.
    fn scale_gradients(&mut self) {
        if self.gradient_scale != 1.0 {
            self.gradients.iter_mut().for_each(|gradient| *gradient *= self.gradient_scale);
        }
    }

    /// Computes the gradients of the last batch at the parameters after its step, and takes the look.
    fn look(&mut self, rows: &[u32]) -> Result<(), CliError> {
        let Split { x, y } = &self.dataset.train;
        let _ = self.model.loss_and_gradients(&self.parameters, x, y, rows, &mut self.gradients);
        self.scale_gradients();
        let params: Vec<&[f32]> = self.tensors.iter().map(|tensor| &self.parameters[tensor.range()]).collect();
        let grads: Vec<&[f32]> = self.tensors.iter().map(|tensor| &self.gradients[tensor.range()]).collect();
        Ok(self.optimizer.look(&params, &grads)?)
    }
}

/// Returns the model's tensors in the order of the optimizer.
fn in_order_of(infos: &[TensorInfo], tensors: &[TensorShape]) -> Vec<TensorShape> {
    let place = |tensor: &TensorShape| infos.iter().position(|info| info.name == tensor.name);
    let mut tensors = tensors.to_vec();
    tensors.sort_by_key(place);
    tensors
}

fn slices_of<'a>(tensors: &[TensorShape], parameters: &'a mut [f32]) -> Vec<&'a mut [f32]> {
    let mut by_offset: Vec<usize> = (0..tensors.len()).collect();
    by_offset.sort_by_key(|&tensor| tensors[tensor].range().start);
    let mut slices = Vec::with_capacity(tensors.len());
    let mut rest = parameters;
    let mut done = 0;
    for tensor in by_offset {
        let range = tensors[tensor].range();
        let (slice, after) = rest[range.start - done..].split_at_mut(range.len());
        done = range.end;
        slices.push((tensor, slice));
        rest = after;
    }
    slices.sort_by_key(|(tensor, _)| *tensor);
    slices.into_iter().map(|(_, slice)| slice).collect()
}

impl Engine for CpuEngine<'_> {
    fn begin_epoch(&mut self, order: &[u32], _step: usize) {
        order.clone_into(&mut self.order);
    }

    fn train(&mut self, steps: Range<usize>, on_steps: OnSteps) -> Result<(Vec<f32>, Records), CliError> {
        let dataset = self.dataset;
        let Split { x, y } = &dataset.train;
        let mut losses = Vec::with_capacity(steps.len());
        let order = std::mem::take(&mut self.order);
        for rows in order.chunks(self.batch).skip(steps.start).take(steps.len()) {
            let loss = self.model.loss_and_gradients(&self.parameters, x, y, rows, &mut self.gradients);
            losses.push(loss);
            if self.injection.is_due(self.steps_done) {
                self.injection.apply(self.steps_done, &mut self.gradients);
            }
            self.steps_done += 1;
            if let Some(schedule) = &mut self.schedule {
                schedule.set_rate(&mut self.optimizer, loss)?;
            }
            self.scale_gradients();
            let mut params = slices_of(&self.tensors, &mut self.parameters);
            let grads: Vec<&[f32]> = self.tensors.iter().map(|tensor| &self.gradients[tensor.range()]).collect();
            self.optimizer.step_with_loss(&mut params, &grads, loss)?;
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.add_batch(rows.len() as f32, loss)?;
            }
            if self.looks {
                self.look(rows)?;
            }
            if on_steps(1).is_break() {
                break;
            }
        }
        self.order = order;
        Ok((losses, of_first_group(self.optimizer.drain_records())))
    }

    fn checkpoint(&self, notes: &Notes) -> Result<Checkpoint, CliError> {
        let params: Vec<&[f32]> = self.tensors.iter().map(|tensor| &self.parameters[tensor.range()]).collect();
        let params: Vec<&dyn Values> = params.iter().map(|values| values as _).collect();
        Ok(self.optimizer.checkpoint(Some(&params), notes)?)
    }

    fn restore(&mut self, checkpoint: &Checkpoint, accepted: Differences) -> Result<Vec<Difference>, CliError> {
        let mut params = slices_of(&self.tensors, &mut self.parameters);
        let mut params: Vec<&mut dyn ValuesMut> = params.iter_mut().map(|values| values as _).collect();
        let differences = self.optimizer.restore_with(checkpoint, Some(&mut params), accepted)?;
        self.steps_done = checkpoint.step();
        Ok(differences)
    }

    fn evaluate(&mut self, part: Part) -> Result<Evaluation, CliError> {
        let split = match part {
            Part::Train => &self.dataset.train,
            Part::Test => &self.dataset.test,
        };
        Ok(self.model.evaluate(&self.parameters, &split.x, &split.y))
    }

    fn exchange_averages(&mut self) -> Result<(), CliError> {
        Ok(self.optimizer.swap_averages(&mut slices_of(&self.tensors, &mut self.parameters))?)
    }

    fn start_watch(&mut self) -> Result<(), CliError> {
        if self.watchdog.is_some() {
            let loss = self.evaluate(Part::Train)?.loss as f32;
            let params = slices_of(&self.tensors, &mut self.parameters);
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.add_batch(1.0, loss)?;
                watchdog.start(&self.optimizer, &params)?;
            }
        }
        Ok(())
    }

    fn end_epoch(&mut self) -> Result<Option<EpochVerdict>, CliError> {
        let mut params = slices_of(&self.tensors, &mut self.parameters);
        let Some(watchdog) = &mut self.watchdog else {
            return Ok(None);
        };
        Ok(Some(watchdog.end_epoch(&mut self.optimizer, &mut params)?))
    }
}

/// Submission with its number of steps.
type Submitted = (wgpu::SubmissionIndex, usize);

struct GpuEngine {
    model: GpuModel,
    tensors: Vec<TensorShape>,
    optimizer: Optimizer,
    gpu: Gpu,
    schedule: Option<LearnedSchedule>,
    injection: Injection,
    steps_done: u64,
    /// True if the gradient of each batch is computed again after the step.
    looks: bool,
    /// Copy of the parameters while the averages are in their place.
    kept: Option<wgpu::Buffer>,
    watchdog: Option<Watchdog>,
    /// Rows of a batch, of which the last one of an epoch may have fewer.
    batch: usize,
    /// Rows of an epoch.
    rows: usize,
}

impl GpuEngine {
    fn encoder(&self, label: &str) -> wgpu::CommandEncoder {
        self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(label) })
    }

    /// Takes a step whose gradients are changed before the optimizer reads them. They are copied to the host and back,
    /// which is slow but good enough for one step.
    fn step_injected(&mut self, step: u64, of_epoch: usize) -> Result<(), CliError> {
        const LABEL: &str = "training, gradients changed";
        let queue = self.gpu.queue();
        if self.injection.loss_of_device == Some(step) {
            self.gpu.device().destroy();
        }
        let mut backward = self.encoder(LABEL);
        self.model.encode_batch(&mut backward.begin_compute_pass(&Default::default()));
        queue.submit([backward.finish()]);
        let buffer = self.model.gradients();
        let mut gradients = pollster::block_on(self.gpu.read_buffer::<f32>("gradients", buffer))?;
        self.injection.apply(step, &mut gradients);
        queue.write_buffer(buffer, 0, bytemuck::cast_slice(&gradients));
        let mut update = self.encoder(LABEL);
        {
            let mut pass = update.begin_compute_pass(&Default::default());
            self.encode_step_in(&mut pass, of_epoch)?;
        }
        self.gpu.queue().submit([update.finish()]);
        Ok(())
    }

    /// Records a step, behind the learned schedule if there is one, with what follows it. The step's number is that in the
    /// epoch.
    fn encode_step_in(&mut self, pass: &mut wgpu::ComputePass, of_epoch: usize) -> Result<(), CliError> {
        if let Some(schedule) = &self.schedule {
            schedule.encode_rate_in(pass)?;
        }
        self.optimizer.encode_step_in(pass)?;
        if let Some(watchdog) = &mut self.watchdog {
            let rows = self.batch.min(self.rows - of_epoch * self.batch);
            watchdog.encode_batch_in(pass, rows as f32)?;
        }
        self.encode_look_in(pass)
    }

    /// Records the look at the last step, if the regime needs looks.
    fn encode_look_in(&self, pass: &mut wgpu::ComputePass) -> Result<(), CliError> {
        if self.looks {
            self.model.encode_batch_again(pass);
            self.optimizer.encode_look_in(pass)?;
        }
        Ok(())
    }

    /// Waits for the steps of a submit, and reports them to `on_steps`.
    fn finish(&self, submitted: Option<Submitted>, on_steps: OnSteps) -> Result<ControlFlow<()>, CliError> {
        let Some((submission, count)) = submitted else {
            return Ok(ControlFlow::Continue(()));
        };
        self.gpu.finish("training steps", &submission)?;
        Ok(on_steps(count))
    }
}

impl Engine for GpuEngine {
    fn begin_epoch(&mut self, order: &[u32], step: usize) {
        self.model.begin_epoch(order, step);
    }

    fn train(&mut self, all: Range<usize>, on_steps: OnSteps) -> Result<(Vec<f32>, Records), CliError> {
        let mut previous = None;
        let mut first = all.start;
        while first < all.end {
            let mut steps = first..(first + STEPS_PER_SUBMIT).min(all.end);
            let of_run = |step: usize| self.steps_done + (step - all.start) as u64;
            let is_due = |step: &usize| self.injection.is_due(of_run(*step));
            if let Some(step) = steps.clone().find(is_due) {
                if step == first {
                    let of_run = of_run(step);
                    self.step_injected(of_run, step)?;
                    first += 1;
                    if on_steps(1).is_break() {
                        break;
                    }
                    continue;
                }
                steps.end = step;
            }
            first = steps.end;
            let count = steps.len();
            let mut encoder = self.encoder("training");
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                for step in steps {
                    self.model.encode_batch(&mut pass);
                    self.encode_step_in(&mut pass, step)?;
                }
            }
            let submission = self.gpu.queue().submit([encoder.finish()]);
            // One submit runs while the next is recorded. The progress shown is that of finished steps.
            if self.finish(previous.replace((submission, count)), on_steps)?.is_break() {
                break;
            }
        }
        let _ = self.finish(previous, on_steps)?;
        let done = all.start..first;
        self.steps_done += done.len() as u64;
        let losses = self.model.read_losses(done)?;
        let records = pollster::block_on(self.optimizer.drain_records())?;
        Ok((losses, of_first_group(records)))
    }

    fn checkpoint(&self, notes: &Notes) -> Result<Checkpoint, CliError> {
        Ok(pollster::block_on(self.optimizer.checkpoint(Parameters::Included, notes))?)
    }

    fn restore(&mut self, checkpoint: &Checkpoint, accepted: Differences) -> Result<Vec<Difference>, CliError> {
        let differences = self.optimizer.restore_with(checkpoint, Parameters::Included, accepted)?;
        self.steps_done = checkpoint.step();
        Ok(differences)
    }

    fn evaluate(&mut self, part: Part) -> Result<Evaluation, CliError> {
        Ok(self.model.evaluate(part)?)
    }

    /// Copies the averages over the parameters and keeps a copy of the parameters. (A swap would restore parameters of
    /// schedule-free training only to within one unit in the last place.)
    fn exchange_averages(&mut self) -> Result<(), CliError> {
        let parameters = self.model.parameters();
        let mut encoder = self.encoder("averages");
        if let Some(copy) = self.kept.take() {
            encoder.copy_buffer_to_buffer(&copy, 0, parameters, 0, copy.size());
        } else {
            let copy = self.gpu.scoped("a copy of the parameters", || {
                Ok::<_, CliError>(self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
                    label: Some("a copy of the parameters"),
                    size: parameters.size(),
                    usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                }))
            })?;
            encoder.copy_buffer_to_buffer(parameters, 0, &copy, 0, parameters.size());
            for (index, tensor) in self.tensors.iter().enumerate() {
                let destination = parameters.slice(tensor.range_bytes());
                self.optimizer.encode_copy_averages(&mut encoder, index, destination)?;
            }
            self.kept = Some(copy);
        }
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    fn start_watch(&mut self) -> Result<(), CliError> {
        if self.watchdog.is_none() {
            return Ok(());
        }
        let start = self.model.evaluate(Part::Train)?.loss as f32;
        let mut encoder = self.encoder("watchdog");
        if let Some(watchdog) = &mut self.watchdog {
            let loss = self.model.loss();
            self.gpu.queue().write_buffer(loss.buffer(), loss.offset(), bytemuck::bytes_of(&start));
            watchdog.encode_batch(&mut encoder, 1.0)?;
            watchdog.encode_start(&self.optimizer, &mut encoder)?;
        }
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    fn end_epoch(&mut self) -> Result<Option<EpochVerdict>, CliError> {
        let mut encoder = self.encoder("watchdog");
        let Some(watchdog) = &mut self.watchdog else {
            return Ok(None);
        };
        watchdog.encode_epoch_end(&self.optimizer, &mut encoder)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(pollster::block_on(watchdog.read_verdicts())?.pop())
    }
}
