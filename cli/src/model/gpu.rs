//! Forward and backward pass on the device, with the kernels of `cli/shaders/train/`.

use std::ops::Range;

use wgpu_optim::{Gpu, wgpu};

use crate::data::{Dataset, Split};
use crate::model::{Evaluation, Layer, Model, ModelError, ModelKind, Part, TensorShape};

/// Largest safe number of loop iterations of an invocation. Some drivers silently stop it after 65,535, summed over its
/// loops.
const MOST_TRIPS: usize = 65_000;

/// Largest number of rows evaluated at a time.
const EVALUATION_ROWS: usize = 256;

/// Model on the device, with both splits of the data.
///
/// The device counts its own batches, so that recording a batch twice trains on two successive batches.
pub struct GpuModel {
    gpu: Gpu,
    parameters: wgpu::Buffer,
    gradients: wgpu::Buffer,
    training: DeviceSplit,
    train_evaluation: DeviceSplit,
    test_evaluation: DeviceSplit,
}

/// Order and results of a split, and the passes of one of its batches.
struct DeviceSplit {
    cursor: wgpu::Buffer,
    order: wgpu::Buffer,
    /// Number of rows of an order. An epoch that shows batches several times has more than there are.
    order_rows: usize,
    data: Uploaded,
    results: wgpu::Buffer,
    batch: usize,
    /// Passes of a batch. The last one advances to the next batch.
    passes: Vec<Pass>,
    /// Number of passes of the forward pass, which come first.
    forward: usize,
    /// Passes that move to the previous and to the next batch without a loss. Only the training split has them.
    moves: Vec<Pass>,
}

/// Rows of a split, which training and evaluation share.
#[derive(Clone)]
struct Uploaded {
    x: Vec<Chunk>,
    y: wgpu::Buffer,
    rows: usize,
}

/// Consecutive rows of a split, as many as one binding holds.
#[derive(Clone)]
struct Chunk {
    rows: Range<usize>,
    values: wgpu::Buffer,
}

struct Pass {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: [u32; 2],
}

impl Pass {
    fn encode(&self, pass: &mut wgpu::ComputePass) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.workgroups[0], self.workgroups[1], 1);
    }
}

/// Number of words of `Cursor` in the shaders: batch, rows of a batch, number of rows, loss.
const CURSOR_WORDS: usize = 4;
/// Byte offset of the loss in `Cursor`.
const LOSS_BYTE: u64 = 12;
/// Number of words of a row's results, and of a batch's, in the shaders: loss, right, not finite, unused.
const RESULT_WORDS: usize = 4;

impl DeviceSplit {
    fn batches(&self) -> usize {
        self.order_rows.div_ceil(self.batch)
    }

    /// Moves to a batch, counted from 0.
    fn go_to(&self, gpu: &Gpu, batch: usize) {
        let cursor = [batch as u32, self.batch as u32, self.order_rows as u32];
        gpu.queue().write_buffer(&self.cursor, 0, bytemuck::cast_slice(&cursor));
    }

    /// Reads the mean loss, the number of right rows and the number of non-finite rows for every batch of the order.
    /// Batches that have not run yet have the results of an earlier order.
    fn read_results(&self, gpu: &Gpu) -> Result<Vec<[f32; RESULT_WORDS]>, ModelError> {
        let mut results = pollster::block_on(gpu.read_buffer::<[f32; RESULT_WORDS]>("batch results", &self.results))?;
        results.truncate(self.batches());
        Ok(results)
    }
}

impl GpuModel {
    /// Uploads the data and compiles the kernels. The orders given to [`begin_epoch`](Self::begin_epoch) will have
    /// `epoch_rows` rows.
    pub fn new(
        gpu: &Gpu,
        model: &Model,
        dataset: &Dataset,
        batch: usize,
        epoch_rows: usize,
    ) -> Result<Self, ModelError> {
        check_loops(model, batch)?;
        let limits = gpu.device().limits();
        let is_software = gpu.device().adapter_info().device_type == wgpu::DeviceType::Cpu;
        let build = Build {
            gpu,
            model,
            workgroup: if is_software { 8 } else { 64 },
            largest: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
            grid: u64::from(limits.max_compute_workgroups_per_dimension),
        };
        let evaluated = |split: &Split| split.rows().clamp(1, EVALUATION_ROWS);
        let (train_rows, test_rows) = (evaluated(&dataset.train), evaluated(&dataset.test));
        let most_rows = batch.max(train_rows).max(test_rows);
        let outputs = model
            .layers()
            .into_iter()
            .map(|layer| build.buffer("the outputs of a layer", most_rows * layer.weights.cols.next_multiple_of(4)));
        let scratch = Scratch {
            parameters: build.buffer("the model", model.padded_len())?,
            gradients: build.buffer("the gradients", model.padded_len())?,
            input: build.buffer("a batch of rows", most_rows * model.features.next_multiple_of(4))?,
            labels: build.buffer("a batch of labels", most_rows)?,
            outputs: outputs.collect::<Result<_, _>>()?,
            row_results: build.buffer("the results of a batch", RESULT_WORDS * most_rows)?,
        };
        let (train, test) = (build.upload(&dataset.train)?, build.upload(&dataset.test)?);
        Ok(GpuModel {
            training: build.split(train.clone(), batch, epoch_rows, &scratch, true)?,
            train_evaluation: build.split(train, train_rows, dataset.train.rows(), &scratch, false)?,
            test_evaluation: build.split(test, test_rows, dataset.test.rows(), &scratch, false)?,
            gpu: gpu.clone(),
            parameters: scratch.parameters,
            gradients: scratch.gradients,
        })
    }

    pub fn parameters(&self) -> &wgpu::Buffer {
        &self.parameters
    }

    pub fn gradients(&self) -> &wgpu::Buffer {
        &self.gradients
    }

    /// Returns the mean loss of the batch that was recorded last.
    pub fn loss(&self) -> wgpu::BufferSlice<'_> {
        self.training.cursor.slice(LOSS_BYTE..LOSS_BYTE + 4)
    }

    pub fn write_parameters(&self, values: &[f32]) {
        self.gpu.queue().write_buffer(&self.parameters, 0, bytemuck::cast_slice(values));
    }

    /// Starts a pass over the training rows in this order, from a batch on.
    pub fn begin_epoch(&self, order: &[u32], batch: usize) {
        self.gpu.queue().write_buffer(&self.training.order, 0, bytemuck::cast_slice(order));
        self.training.go_to(&self.gpu, batch);
    }

    /// Records the next batch: its mean loss and its gradients.
    pub fn encode_batch(&self, pass: &mut wgpu::ComputePass) {
        self.training.passes.iter().for_each(|step| step.encode(pass));
    }

    /// Records the mean loss of the next batch, without gradients. `again` returns to the last batch first.
    pub fn encode_loss(&self, pass: &mut wgpu::ComputePass, again: bool) {
        let DeviceSplit { passes, forward, moves, .. } = &self.training;
        let back = moves.first().filter(|_| again);
        back.into_iter().chain(&passes[..*forward]).chain(passes.last()).for_each(|step| step.encode(pass));
    }

    /// Records the gradients of the last batch again, at the parameters of the time when the commands run. The batch's
    /// loss is not changed.
    pub fn encode_batch_again(&self, pass: &mut wgpu::ComputePass) {
        if let ([back, on], Some((_, gradients))) = (&self.training.moves[..], self.training.passes.split_last()) {
            [back].into_iter().chain(gradients).chain([on]).for_each(|step| step.encode(pass));
        }
    }

    /// Reads the mean losses of these batches of the epoch, which must have run. Waits for the device.
    pub fn read_losses(&self, batches: Range<usize>) -> Result<Vec<f32>, ModelError> {
        let results = self.training.read_results(&self.gpu)?;
        Ok(results[batches].iter().map(|[loss, ..]| *loss).collect())
    }

    /// Computes mean loss and accuracy over a split on the device.
    pub fn evaluate(&self, part: Part) -> Result<Evaluation, ModelError> {
        let split = match part {
            Part::Train => &self.train_evaluation,
            Part::Test => &self.test_evaluation,
        };
        split.go_to(&self.gpu, 0);
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for _ in 0..split.batches() {
                split.passes.iter().for_each(|step| step.encode(&mut pass));
            }
        }
        self.gpu.queue().submit([encoder.finish()]);
        let rows = split.data.rows;
        let (mut loss, mut correct, mut nonfinite_rows) = (0.0, 0.0, 0.0);
        for (batch, [mean, right, nonfinite, _]) in split.read_results(&self.gpu)?.into_iter().enumerate() {
            loss += f64::from(mean) * split.batch.min(rows - batch * split.batch) as f64;
            correct += f64::from(right);
            nonfinite_rows += f64::from(nonfinite);
        }
        let (loss, accuracy) = (loss / rows as f64, correct / rows as f64);
        Ok(Evaluation { loss, accuracy, nonfinite_rows: nonfinite_rows as usize })
    }
}

/// Returns an error for a model or batch whose loops some drivers would stop early.
fn check_loops(model: &Model, batch: usize) -> Result<(), ModelError> {
    // Loop iterations of one invocation for a number of terms: `dense_forward` takes four inputs at a time, `loss` goes
    // over the classes three times, and the others take one row or one output at a time.
    let loops = [
        (model.features, model.features / 4 + 3),
        (model.hidden, model.hidden / 4 + 3),
        (model.classes, 3 * model.classes),
        (batch, batch),
    ];
    match loops.into_iter().find(|&(_, trips)| trips > MOST_TRIPS) {
        Some((terms, trips)) => Err(ModelError::TooLong { terms, most: MOST_TRIPS * terms / trips }),
        None => Ok(()),
    }
}

/// Buffers that the kernels of a batch share.
struct Scratch {
    parameters: wgpu::Buffer,
    gradients: wgpu::Buffer,
    input: wgpu::Buffer,
    labels: wgpu::Buffer,
    outputs: Vec<wgpu::Buffer>,
    row_results: wgpu::Buffer,
}

const BATCH: &str = include_str!("../../shaders/train/batch.wgsl");

struct Build<'a> {
    gpu: &'a Gpu,
    model: &'a Model,
    workgroup: u32,
    largest: u64,
    grid: u64,
}

impl Build<'_> {
    /// Creates a zeroed buffer of 4-byte elements.
    fn buffer(&self, what: &'static str, elements: usize) -> Result<wgpu::Buffer, ModelError> {
        let bytes = (elements.max(1) as u64 * 4).next_multiple_of(16);
        if bytes > self.largest {
            return Err(ModelError::TooLarge { what, bytes, limit: self.largest });
        }
        Ok(self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        }))
    }

    fn split(
        &self,
        data: Uploaded,
        batch: usize,
        order_rows: usize,
        scratch: &Scratch,
        trains: bool,
    ) -> Result<DeviceSplit, ModelError> {
        let order: Vec<u32> = (0..data.rows as u32).take(order_rows).collect();
        let cursor = self.buffer("the cursor", CURSOR_WORDS)?;
        let move_by = |batches: f64| {
            let source = include_str!("../../shaders/train/move_cursor.wgsl");
            self.pass("move_cursor", source, &[("BATCHES", batches)], &[&cursor], [1, 1])
        };
        let moves = if trains { vec![move_by(-1.0)?, move_by(1.0)?] } else { Vec::new() };
        let mut split = DeviceSplit {
            moves,
            cursor,
            order: self.buffer("the order of the rows", order_rows)?,
            results: self.buffer("results", RESULT_WORDS * order_rows.div_ceil(batch))?,
            order_rows,
            data,
            batch,
            passes: Vec::new(),
            forward: 0,
        };
        self.gpu.queue().write_buffer(&split.order, 0, bytemuck::cast_slice(&order));
        let mut passes = self.forward(&split, scratch)?;
        split.forward = passes.len();
        if trains {
            passes.extend(self.backward(&split, scratch)?);
        }
        let finish = include_str!("../../shaders/train/finish_batch.wgsl");
        let buffers = [&split.cursor, &scratch.row_results, &split.results];
        passes.push(self.pass("finish_batch", finish, &[], &buffers, [1, 1])?);
        split.passes = passes;
        Ok(split)
    }

    /// Uploads a split, with each row padded with zeros to a multiple of four values.
    fn upload(&self, split: &Split) -> Result<Uploaded, ModelError> {
        let (queue, features) = (self.gpu.queue(), self.model.features);
        let padded = features.next_multiple_of(4);
        let rows_at_once = (self.largest as usize / 4 / padded).max(1);
        let mut x = Vec::new();
        let mut start = 0;
        for values in split.x.chunks(rows_at_once * features) {
            let rows = start..start + values.len() / features;
            start = rows.end;
            let buffer = self.buffer("a row of the data", rows.len() * padded)?;
            let mut with_padding = vec![0f32; rows.len() * padded];
            for (row, values) in with_padding.chunks_mut(padded).zip(values.chunks(features)) {
                row[..features].copy_from_slice(values);
            }
            queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&with_padding));
            x.push(Chunk { rows, values: buffer });
        }
        let y = self.buffer("the labels", split.rows())?;
        queue.write_buffer(&y, 0, bytemuck::cast_slice(&split.y));
        Ok(Uploaded { x, y, rows: split.rows() })
    }

    /// Compiles a kernel and binds its buffers.
    fn pass(
        &self,
        stem: &'static str,
        source: &str,
        constants: &[(&str, f64)],
        buffers: &[&wgpu::Buffer],
        workgroups: [u64; 2],
    ) -> Result<Pass, ModelError> {
        if let Some(&value) = workgroups.iter().find(|&&count| count > self.grid) {
            return Err(ModelError::Grid { what: stem, value, limit: self.grid });
        }
        let device = self.gpu.device();
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(stem),
            source: wgpu::ShaderSource::Wgsl([BATCH, source].join("\n").into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(stem),
            layout: None,
            module: &module,
            entry_point: Some(stem),
            compilation_options: wgpu::PipelineCompilationOptions { constants, ..Default::default() },
            cache: None,
        });
        let resources = (0..).zip(buffers.iter().map(|buffer| buffer.as_entire_binding()));
        let entries: Vec<_> = resources.map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource }).collect();
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(stem),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Ok(Pass { pipeline, bind_group, workgroups: workgroups.map(|count| count as u32) })
    }

    fn groups(&self, invocations: usize) -> u64 {
        (invocations as u64).div_ceil(u64::from(self.workgroup))
    }

    /// Returns a grid for this many tiles, folded if it exceeds one dimension (see `tile_of` in `batch.wgsl`).
    fn tiles(&self, tiles: usize) -> [u64; 2] {
        let groups = self.groups(tiles);
        [groups.min(self.grid), groups.div_ceil(self.grid)]
    }

    /// Returns the constants that the kernels of a layer have in common.
    fn layer_constants(&self, layer: &Layer) -> [(&'static str, f64); 4] {
        let TensorShape { rows, cols, offset, .. } = layer.weights;
        let (inputs, outputs) = (("INPUTS", rows as f64), ("OUTPUTS", cols as f64));
        [("WORKGROUP", f64::from(self.workgroup)), inputs, outputs, ("WEIGHTS", offset as f64)]
    }

    /// Gathers a batch, and computes outputs and loss.
    fn forward(&self, split: &DeviceSplit, scratch: &Scratch) -> Result<Vec<Pass>, ModelError> {
        let features = self.model.features;
        let workgroup = ("WORKGROUP", f64::from(self.workgroup));
        let mut passes = Vec::new();
        for Chunk { rows, values } in &split.data.x {
            let source = include_str!("../../shaders/train/gather.wgsl");
            let (start, end) = (("CHUNK_START", rows.start as f64), ("CHUNK_END", rows.end as f64));
            let constants = [workgroup, ("QUADS", features.div_ceil(4) as f64), start, end];
            let buffers = [&split.cursor, &split.order, values, &split.data.y, &scratch.input, &scratch.labels];
            let grid = [self.groups(features.div_ceil(16)), split.batch as u64];
            passes.push(self.pass("gather", source, &constants, &buffers, grid)?);
        }
        let layers = self.model.layers();
        for (index, layer) in layers.iter().enumerate() {
            let source = include_str!("../../shaders/train/dense_forward.wgsl");
            let relu = f64::from(u8::from(index + 1 < layers.len()));
            let own = [("BIAS", layer.bias.offset as f64), ("RELU", relu)];
            let constants = [&self.layer_constants(layer)[..], &own].concat();
            let (input, parameters) = (scratch.layer_input(index), &scratch.parameters);
            let buffers = [&split.cursor, input, parameters, parameters, &scratch.outputs[index]];
            let grid = self.tiles(split.batch.div_ceil(8) * layer.weights.cols.div_ceil(4));
            passes.push(self.pass("dense_forward", source, &constants, &buffers, grid)?);
        }
        let source = include_str!("../../shaders/train/loss.wgsl");
        let hinge = f64::from(u8::from(self.model.kind == ModelKind::Svm));
        let constants = [workgroup, ("CLASSES", self.model.classes as f64), ("SQUARED_HINGE", hinge)];
        let buffers = [&split.cursor, &scratch.labels, &scratch.outputs[layers.len() - 1], &scratch.row_results];
        passes.push(self.pass("loss", source, &constants, &buffers, [self.groups(split.batch), 1])?);
        Ok(passes)
    }

    /// Computes the gradient of every parameter from the gradient of the last outputs.
    fn backward(&self, split: &DeviceSplit, scratch: &Scratch) -> Result<Vec<Pass>, ModelError> {
        let (cursor, gradients) = (&split.cursor, &scratch.gradients);
        let mut passes = Vec::new();
        for (index, layer) in self.model.layers().iter().enumerate().rev() {
            let Layer { weights, bias } = layer;
            let (input, output_gradient) = (scratch.layer_input(index), &scratch.outputs[index]);
            let constants = self.layer_constants(layer);
            let [workgroup, _, outputs, _] = constants;
            let source = include_str!("../../shaders/train/bias_gradient.wgsl");
            let of_bias = [workgroup, outputs, ("BIAS", bias.offset as f64)];
            let buffers = [cursor, output_gradient, gradients];
            passes.push(self.pass("bias_gradient", source, &of_bias, &buffers, [self.groups(weights.cols), 1])?);
            let source = include_str!("../../shaders/train/weight_gradient.wgsl");
            let buffers = [cursor, input, output_gradient, gradients];
            let grid = self.tiles(weights.rows.div_ceil(8) * weights.cols.div_ceil(4));
            passes.push(self.pass("weight_gradient", source, &constants, &buffers, grid)?);
            if index > 0 {
                let source = include_str!("../../shaders/train/input_gradient.wgsl");
                let buffers = [cursor, output_gradient, &scratch.parameters, input];
                let grid = self.tiles(split.batch.div_ceil(4) * weights.rows.div_ceil(4));
                passes.push(self.pass("input_gradient", source, &constants, &buffers, grid)?);
            }
        }
        Ok(passes)
    }
}

impl Scratch {
    fn layer_input(&self, index: usize) -> &wgpu::Buffer {
        if index == 0 { &self.input } else { &self.outputs[index - 1] }
    }
}
