//! Trains a policy of a learned schedule on the digits (MLR-SNet, arXiv:2007.14546), writes it as safetensors, and
//! compares it with other learning rates. Figures are in docs/beyond.md.
//!
//! ```sh
//! cargo run --release -p wgpu-optim-cli --example meta_train -- policy.safetensors
//! # The authors' three policies too, as tests/golden/mlr_snet.py writes them:
//! cargo run --release -p wgpu-optim-cli --example meta_train -- policy.safetensors 1.safetensors 100.safetensors 200.safetensors
//! ```
//!
//! Every few batches the policy takes one step against the gradient of the loss of meta rows after the model's step,
//! `w' = w - γ out g`: ∂L_meta(w')/∂θ = -γ (g_meta · g) ∂out/∂θ. The previous h and c of the cell are constants, so
//! that only one cell is differentiated, on the host.

use std::ops::Range;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Uniform};
use rayon::prelude::*;
use wgpu_optim::{
    CpuLearnedSchedule, CpuOptimizer, Group, OptimizerBuilder, PolicyScale, Regime, Rule, Schedule, SchedulePolicy,
};
use wgpu_optim_cli::data::{self, Dataset, Split};
use wgpu_optim_cli::model::cpu::CpuModel;
use wgpu_optim_cli::model::{Model, ModelKind};

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Sizes of the authors' policies.
const CELL: usize = 50;
const HIDDEN: usize = 25;
const EPOCHS: u32 = 60;
const SEEDS: u64 = 3;

/// Weights of a policy in f32, which an optimizer trains, and the state of its cell.
struct Cell {
    /// W₁, b₁, W₂, b₂, W₃, b₃, W₄, b₄, w and b.
    weights: Vec<Vec<f32>>,
    h: Vec<f64>,
    c: Vec<f64>,
}

const NAMES: [&str; 5] = ["layer1.fc_i2h.0", "layer1.fc_i2h.2", "layer1.fc_h2h.0", "layer1.fc_h2h.2", "layer3"];
/// Outputs and inputs of the layers.
const LAYERS: [[usize; 2]; 5] = [[HIDDEN, 1], [4 * CELL, HIDDEN], [HIDDEN, CELL], [4 * CELL, HIDDEN], [1, CELL]];

/// Values of a step of the cell that its gradient needs.
struct Trace {
    loss: f64,
    from_loss: Vec<f64>,
    from_state: Vec<f64>,
    /// Gates after their functions: input, forget, candidate, output.
    gates: Vec<f64>,
    h_before: Vec<f64>,
    c_before: Vec<f64>,
    output: f64,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl Cell {
    /// Returns PyTorch's initial weights: uniform within one over the root of the number of inputs.
    fn new(seed: u64) -> Fallible<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut weights = Vec::new();
        for [outputs, inputs] in LAYERS {
            let spread = 1.0 / (inputs as f32).sqrt();
            let uniform = Uniform::new_inclusive(-spread, spread)?;
            for count in [outputs * inputs, outputs] {
                weights.push((0..count).map(|_| uniform.sample(&mut rng)).collect());
            }
        }
        Ok(Cell { weights, h: vec![0.0; CELL], c: vec![0.0; CELL] })
    }

    fn reset(&mut self) {
        self.h.fill(0.0);
        self.c.fill(0.0);
    }

    fn linear(&self, layer: usize, inputs: &[f64]) -> Vec<f64> {
        let (weight, bias) = (&self.weights[2 * layer], &self.weights[2 * layer + 1]);
        let dot = |row: &[f32]| row.iter().zip(inputs).map(|(&w, x)| f64::from(w) * x).sum::<f64>();
        weight.chunks(inputs.len()).zip(bias).map(|(row, &bias)| dot(row) + f64::from(bias)).collect()
    }

    /// Advances the cell by one loss.
    fn step(&mut self, loss: f64) -> Trace {
        let relu = |values: Vec<f64>| -> Vec<f64> { values.iter().map(|x| x.max(0.0)).collect() };
        let from_loss = relu(self.linear(0, &[loss]));
        let from_state = relu(self.linear(2, &self.h));
        let both = self.linear(1, &from_loss).into_iter().zip(self.linear(3, &from_state));
        let function = |(row, gate): (usize, f64)| if row / CELL == 2 { gate.tanh() } else { sigmoid(gate) };
        let gates: Vec<f64> = both.map(|(a, b)| a + b).enumerate().map(function).collect();
        let (h_before, c_before) = (self.h.clone(), self.c.clone());
        for unit in 0..CELL {
            self.c[unit] = gates[CELL + unit] * c_before[unit] + gates[unit] * gates[2 * CELL + unit];
            self.h[unit] = gates[3 * CELL + unit] * self.c[unit].tanh();
        }
        let output = sigmoid(self.linear(4, &self.h)[0]);
        Trace { loss, from_loss, from_state, gates, h_before, c_before, output }
    }

    /// Returns ∂out/∂θ times a factor, for the step that was traced last.
    fn gradient(&self, trace: &Trace, factor: f64) -> Vec<Vec<f32>> {
        let end = factor * trace.output * (1.0 - trace.output);
        let mut of_gates = vec![0.0; 4 * CELL];
        for unit in 0..CELL {
            let [input, forget, candidate, output] = std::array::from_fn(|gate| trace.gates[gate * CELL + unit]);
            let tanh = self.c[unit].tanh();
            let of_h = end * f64::from(self.weights[8][unit]);
            let of_c = of_h * output * (1.0 - tanh * tanh);
            of_gates[unit] = of_c * candidate * input * (1.0 - input);
            of_gates[CELL + unit] = of_c * trace.c_before[unit] * forget * (1.0 - forget);
            of_gates[2 * CELL + unit] = of_c * input * (1.0 - candidate * candidate);
            of_gates[3 * CELL + unit] = of_h * tanh * output * (1.0 - output);
        }
        let of_hidden = |layer: usize, hidden: &[f64]| -> Vec<f64> {
            let weight = &self.weights[2 * layer];
            let of_unit = |unit: usize| {
                let column = weight.iter().skip(unit).step_by(HIDDEN);
                column.zip(&of_gates).map(|(&w, gate)| f64::from(w) * gate).sum::<f64>()
            };
            hidden.iter().enumerate().map(|(unit, &x)| if x > 0.0 { of_unit(unit) } else { 0.0 }).collect()
        };
        let from_loss = of_hidden(1, &trace.from_loss);
        let from_state = of_hidden(3, &trace.from_state);
        let layers: [(&[f64], &[f64]); 5] = [
            (&from_loss, &[trace.loss]),
            (&of_gates, &trace.from_loss),
            (&from_state, &trace.h_before),
            (&of_gates, &trace.from_state),
            (&[end], &self.h),
        ];
        let mut gradients = Vec::new();
        for (outputs, inputs) in layers {
            let products = outputs.iter().flat_map(|output| inputs.iter().map(move |input| (output * input) as f32));
            gradients.push(products.collect());
            gradients.push(outputs.iter().map(|&output| output as f32).collect());
        }
        gradients
    }

    fn policy(&self, scale: PolicyScale) -> Fallible<SchedulePolicy> {
        let shapes = LAYERS.iter().flat_map(|&[outputs, inputs]| [vec![outputs, inputs], vec![outputs]]);
        let names = NAMES.iter().flat_map(|name| [format!("{name}.weight"), format!("{name}.bias")]);
        let tensors: Vec<(String, Vec<usize>)> = names.zip(shapes).collect();
        let tensors = tensors.iter().zip(&self.weights);
        Ok(SchedulePolicy::new(scale, tensors.map(|((name, shape), values)| (&name[..], &shape[..], &values[..])))?)
    }
}

/// Returns γ of the paper for the first loss.
fn scale_at(loss: f64, classes: usize) -> f64 {
    let classes = classes as f64;
    (loss.sqrt() * (loss * classes).ln() / classes.powf(0.25) / 4.0).abs()
}

/// A model with its parameters, gradients and optimizer.
struct Training<'a> {
    dataset: &'a Dataset,
    model: CpuModel,
    parameters: Vec<f32>,
    gradients: Vec<f32>,
    optimizer: CpuOptimizer,
    order: Vec<u32>,
    rng: ChaCha8Rng,
}

impl<'a> Training<'a> {
    fn new(
        dataset: &'a Dataset,
        model: &Model,
        rows: Range<usize>,
        batch: usize,
        seed: u64,
        configure: impl FnOnce(OptimizerBuilder<wgpu_optim::cpu::Tensor>) -> OptimizerBuilder<wgpu_optim::cpu::Tensor>,
    ) -> Fallible<Self> {
        let parameters = model.initial_parameters(seed);
        let group = Group::new("model").tensor("all", &parameters, &parameters);
        Ok(Training {
            dataset,
            model: CpuModel::new(model, batch),
            gradients: vec![0.0; parameters.len()],
            optimizer: configure(OptimizerBuilder::new(Rule::sgd()).group(group)).build_cpu()?,
            parameters,
            order: rows.map(|row| row as u32).collect(),
            rng: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    fn shuffled(&mut self) -> Vec<u32> {
        self.order.shuffle(&mut self.rng);
        self.order.clone()
    }

    /// Computes the loss and the gradients of rows.
    fn backward(&mut self, rows: &[u32]) -> f32 {
        let Split { x, y } = &self.dataset.train;
        self.model.loss_and_gradients(&self.parameters, x, y, rows, &mut self.gradients)
    }

    fn step(&mut self) -> Fallible<()> {
        Ok(self.optimizer.step(&mut [&mut self.parameters], &[&self.gradients])?)
    }

    fn accuracy(&mut self) -> f64 {
        let Split { x, y } = &self.dataset.test;
        100.0 * self.model.evaluate(&self.parameters, x, y).accuracy
    }
}

/// Trains a policy over several runs of an MLP, each from new weights of the model and with the cell's state at 0.
fn meta_train(dataset: &Dataset) -> Fallible<Cell> {
    const RUNS: u64 = 12;
    const BATCH: usize = 64;
    const META_ROWS: usize = 238;
    const EVERY: usize = 5;
    let rows = dataset.train.rows();
    let model = Model::new(ModelKind::Mlp, dataset.features, dataset.classes, 32);
    let mut meta: Vec<u32> = ((rows - META_ROWS) as u32..rows as u32).collect();
    let mut cell = Cell::new(0)?;
    let mut group = Group::new("policy");
    let names: Vec<String> = (0..10).map(|tensor| format!("tensor {tensor}")).collect();
    for (name, weights) in names.iter().zip(&cell.weights) {
        group = group.tensor(name, weights, weights);
    }
    // Adam with the decay added to the gradient, as in PyTorch's Adam.
    let adam = OptimizerBuilder::new(Rule::adamw()).regime(Regime::fixed(1e-3)).weight_decay(1e-4);
    let mut adam = adam.group(group).build_cpu()?;
    for run in 0..RUNS {
        cell.reset();
        let seed = 1000 + run;
        let fixed = |builder: OptimizerBuilder<_>| builder.regime(Regime::fixed(1.0));
        let mut training = Training::new(dataset, &model, 0..rows - META_ROWS, BATCH, seed, fixed)?;
        let (mut scale, mut batches, mut outputs) = (None, 0, Vec::new());
        for _ in 0..EPOCHS {
            let order = training.shuffled();
            for batch in order.chunks(BATCH) {
                let loss = f64::from(training.backward(batch));
                let scale = *scale.get_or_insert_with(|| scale_at(loss, dataset.classes));
                let trace = cell.step(loss);
                outputs.push(trace.output);
                training.optimizer.control_all(|group| group.learning_rate_factor = (scale * trace.output) as f32)?;
                let gradient = training.gradients.clone();
                training.step()?;
                batches += 1;
                if batches % EVERY != 0 {
                    continue;
                }
                // The policy learns from the gradient at meta rows after the model's step.
                let of_batch = meta.partial_shuffle(&mut training.rng, BATCH).0.to_vec();
                let _ = training.backward(&of_batch);
                let products =
                    gradient.iter().zip(&training.gradients).map(|(&g, &meta)| f64::from(g) * f64::from(meta));
                let gradients = cell.gradient(&trace, -scale * products.sum::<f64>());
                adam.step(&mut cell.weights, &gradients)?;
            }
        }
        let [first, last] = [outputs.first(), outputs.last()].map(|output| output.copied().unwrap_or(f64::NAN));
        let mean = outputs.iter().sum::<f64>() / outputs.len() as f64;
        let (accuracy, scale) = (training.accuracy(), scale.unwrap_or(f64::NAN));
        println!(
            "run {run}: γ {scale:.3}, output {first:.3} to {last:.3}, mean {mean:.3}, test accuracy {accuracy:.1} %"
        );
    }
    Ok(cell)
}

/// One learning rate of the comparison.
enum Rate<'a> {
    Fixed(f32),
    Cosine(f32),
    Seesaw,
    /// Policies for consecutive parts of the run, all of the same length.
    Learned(&'a [SchedulePolicy]),
}

/// Trains a model and returns its test accuracy in percent.
fn run(dataset: &Dataset, model: &Model, batch: usize, seed: u64, rate: &Rate) -> Fallible<f64> {
    let rows = dataset.train.rows();
    let steps = EPOCHS * rows.div_ceil(batch) as u32;
    let mut training = Training::new(dataset, model, 0..rows, batch, seed, |builder| match *rate {
        Rate::Fixed(rate) => builder.regime(Regime::fixed(rate)),
        Rate::Cosine(rate) => {
            let cosine = Schedule::WarmupCosine { warmup: steps / 20, steps, last: 0.0 };
            builder.regime(Regime::fixed(rate)).schedule(cosine)
        }
        Rate::Seesaw => builder.schedule_free(),
        Rate::Learned(_) => builder.regime(Regime::fixed(1.0)),
    })?;
    let policies: &[SchedulePolicy] = if let Rate::Learned(policies) = rate { policies } else { &[] };
    let mut schedule = policies.first().cloned().map(CpuLearnedSchedule::new);
    for epoch in 0..EPOCHS as usize {
        let part = EPOCHS as usize / policies.len().max(1);
        if let (Some(schedule), Some(policy)) = (&mut schedule, policies.get(epoch / part))
            && epoch > 0
            && epoch % part == 0
        {
            schedule.switch_policy(policy.clone())?;
        }
        let order = training.shuffled();
        for rows in order.chunks(batch) {
            let loss = training.backward(rows);
            if let Some(schedule) = &mut schedule {
                schedule.set_rate(&mut training.optimizer, loss)?;
            }
            training.step()?;
        }
    }
    if matches!(rate, Rate::Seesaw) {
        training.optimizer.swap_averages(&mut [&mut training.parameters])?;
    }
    Ok(training.accuracy())
}

/// Prints a table with a row for each rate: the best of a grid for fixed and cosine, chosen on the test rows.
fn compare(dataset: &Dataset, learned: &[(&str, &[SchedulePolicy])]) -> Fallible<()> {
    const GRID: [f32; 5] = [0.01, 0.03, 0.1, 0.3, 1.0];
    let tasks = [(ModelKind::Softmax, 32), (ModelKind::Softmax, 128), (ModelKind::Mlp, 32), (ModelKind::Mlp, 128)];
    let mean = |(kind, batch): (ModelKind, usize), rate: &Rate| -> Fallible<f64> {
        let model = Model::new(kind, dataset.features, dataset.classes, 32);
        let runs = (0..SEEDS).into_par_iter().map(|seed| run(dataset, &model, batch, seed, rate));
        Ok(runs.collect::<Fallible<Vec<f64>>>()?.iter().sum::<f64>() / SEEDS as f64)
    };
    println!(
        "| rate | softmax, batch 32 | softmax, batch 128 | MLP, batch 32 | MLP, batch 128 |\n|---|---|---|---|---|"
    );
    let row = |name: &str, rates: &[Rate]| -> Fallible<()> {
        let mut cells = Vec::new();
        for task in tasks {
            let of_rates = rates.iter().map(|rate| mean(task, rate)).collect::<Fallible<Vec<f64>>>()?;
            cells.push(format!("{:.1} %", of_rates.into_iter().fold(0.0, f64::max)));
        }
        println!("| {name} | {} |", cells.join(" | "));
        Ok(())
    };
    for (name, policies) in learned {
        row(name, &[Rate::Learned(policies)])?;
    }
    row("best fixed of 5", &GRID.map(Rate::Fixed))?;
    row("best cosine of 5", &GRID.map(Rate::Cosine))?;
    row("Seesaw, schedule-free", &[Rate::Seesaw])
}

fn main() -> Fallible<()> {
    let files: Vec<String> = std::env::args().skip(1).collect();
    let Some((output, published)) = files.split_first() else {
        return Err("name the file that the policy is written to, and after it any published policies".into());
    };
    let dataset = data::load("digits")?;
    let scale = PolicyScale::FirstLoss { classes: dataset.classes as u32 };
    let published = published.iter().map(|path| {
        let bytes = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
        Ok(SchedulePolicy::from_safetensors(scale, &bytes).map_err(|error| format!("{path}: {error}"))?)
    });
    let published = published.collect::<Fallible<Vec<_>>>()?;
    let trained = [meta_train(&dataset)?.policy(scale)?];
    std::fs::write(output, trained[0].to_safetensors()?).map_err(|error| format!("{output}: {error}"))?;
    println!("wrote {output}\n");
    let mut learned: Vec<(&str, &[SchedulePolicy])> = vec![("policy trained here", &trained)];
    if !published.is_empty() {
        learned.push(("published policies", &published));
    }
    compare(&dataset, &learned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the gradient of one cell with finite differences for every tensor, and its output with that of the library.
    #[test]
    fn the_gradient_is_that_of_differences() {
        let mut cell = Cell::new(3).expect("weights");
        let policy = cell.policy(PolicyScale::Given(1.0)).expect("a policy");
        let mut schedule = CpuLearnedSchedule::new(policy);
        let w = [0.0f32];
        let builder = OptimizerBuilder::new(Rule::sgd()).regime(Regime::fixed(1.0));
        let mut optimizer = builder.group(Group::new("all").tensor("w", &w, &w)).build_cpu().expect("builds");
        let mut last = None;
        for loss in [2.3f32, 1.5, 0.7] {
            let state = (cell.h.clone(), cell.c.clone());
            let trace = cell.step(f64::from(loss));
            schedule.set_rate(&mut optimizer, loss).expect("a rate");
            let rate = optimizer.controls("all").expect("a group").learning_rate_factor;
            assert!((f64::from(rate) - trace.output).abs() <= 1e-6, "{rate} and {}", trace.output);
            last = Some((state, trace));
        }
        let ((h, c), trace) = last.expect("three steps");
        let gradients = cell.gradient(&trace, 1.0);
        for (tensor, gradient) in gradients.iter().enumerate() {
            let count = gradient.len();
            for at in [0, count / 3, count - 1] {
                let mut output = |by: f32| {
                    let before = cell.weights[tensor][at];
                    cell.weights[tensor][at] += by;
                    let moved = f64::from(cell.weights[tensor][at]);
                    (cell.h, cell.c) = (h.clone(), c.clone());
                    let output = cell.step(trace.loss).output;
                    cell.weights[tensor][at] = before;
                    (moved, output)
                };
                let ((above, more), (below, less)) = (output(1e-3), output(-1e-3));
                let (expected, found) = ((more - less) / (above - below), f64::from(gradient[at]));
                assert!((found - expected).abs() <= 1e-6, "tensor {tensor}, {at}: {found} instead of {expected}");
            }
        }
    }
}
