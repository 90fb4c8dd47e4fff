//! Trains a perceptron 64-32-10 on the digits without a backward pass, by MeZO, LOZO and LOZO-M, and prints a table for
//! docs/beyond.md.
//!
//! ```sh
//! cargo run --release -p wgpu-optim-cli --example zeroth_order             # on the CPU path
//! cargo run --release -p wgpu-optim-cli --example zeroth_order -- --gpu    # on the first adapter
//! cargo run --release -p wgpu-optim-cli --example zeroth_order -- --steps 2000 --seeds 1
//! ```

use clap::Parser;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use wgpu_optim::{
    CpuZerothOrder, Gpu, GpuOptions, NormRatio, Regime, ZerothOrderBuilder, ZerothOrderMethod, ZerothOrderRecord,
};
use wgpu_optim_cli::data::{self, Dataset};
use wgpu_optim_cli::model::cpu::CpuModel;
use wgpu_optim_cli::model::gpu::GpuModel;
use wgpu_optim_cli::model::{Model, ModelKind, Part};

const BATCH: usize = 64;

#[derive(Parser)]
struct Options {
    /// Train on the device instead of the CPU path. Software drivers are accepted.
    #[arg(long)]
    gpu: bool,
    /// Steps of a run.
    #[arg(long, default_value_t = 20_000)]
    steps: usize,
    /// Runs of each setting, with the seeds 1, 2, …
    #[arg(long, default_value_t = 3)]
    seeds: u32,
}

/// Setting, with the accuracy of a numpy program with the same methods, one seed and other random numbers.
struct Case {
    method: ZerothOrderMethod,
    regime: Regime,
    aimed: Option<f64>,
}

fn cases() -> Vec<Case> {
    let lozo = |rank| ZerothOrderMethod::Lozo { rank, interval: 50 };
    let fixed = |method, rate, aimed| Case { method, regime: Regime::fixed(rate), aimed };
    let by_norm = |method, exponent| {
        let regime = NormRatio { exponent, ..NormRatio::default() };
        Case { method, regime: Regime::NormRatio(regime), aimed: None }
    };
    let mezo = ZerothOrderMethod::mezo();
    vec![
        fixed(mezo, 1e-3, Some(91.1)),
        fixed(mezo, 3e-3, Some(94.7)),
        fixed(mezo, 1e-2, Some(80.5)),
        fixed(lozo(2), 3e-4, Some(88.6)),
        fixed(lozo(2), 1e-3, Some(93.9)),
        fixed(lozo(2), 3e-3, Some(94.7)),
        fixed(lozo(4), 3e-4, Some(93.0)),
        fixed(ZerothOrderMethod::lozo_m(), 1e-3, None),
        fixed(ZerothOrderMethod::lozo_m(), 3e-3, None),
        by_norm(mezo, 0.5),
        by_norm(mezo, 1.0),
        by_norm(lozo(2), 0.5),
        by_norm(lozo(2), 1.0),
    ]
}

/// Returns the rows of consecutive batches, drawn with replacement.
fn batches(dataset: &Dataset, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let rows = dataset.train.rows();
    (0..rows / BATCH * BATCH).map(|_| rng.random_range(0..rows as u32)).collect()
}

fn builder<T>(case: &Case, seed: u32) -> ZerothOrderBuilder<T> {
    ZerothOrderBuilder::new(case.method, case.regime).seed(seed)
}

/// Returns the shape of a tensor. Biases are vectors.
fn shape(rows: usize, columns: usize) -> Vec<usize> {
    if rows == 1 { vec![columns] } else { vec![rows, columns] }
}

/// Splits the flat parameters into tensors.
fn tensors<'a>(model: &Model, mut flat: &'a mut [f32]) -> Vec<&'a mut [f32]> {
    let mut start = 0;
    let mut tensors = Vec::new();
    for tensor in model.tensors() {
        let range = tensor.range();
        let (_, rest) = flat.split_at_mut(range.start - start);
        let (own, rest) = rest.split_at_mut(range.len());
        tensors.push(own);
        (flat, start) = (rest, range.end);
    }
    tensors
}

/// Trains on the CPU path and returns the test accuracy in percent and the last record.
fn on_host(model: &Model, dataset: &Dataset, case: &Case, seed: u32, steps: usize) -> (f64, Option<ZerothOrderRecord>) {
    let mut forward = CpuModel::new(model, BATCH);
    let mut flat = model.initial_parameters(seed.into());
    let mut builder = builder(case, seed);
    for (tensor, values) in model.tensors().iter().zip(tensors(model, &mut flat)) {
        builder = builder.shaped_tensor(tensor.name, &shape(tensor.rows, tensor.cols), &*values);
    }
    let mut optimizer: CpuZerothOrder = builder.build_cpu().expect("a valid configuration");
    let mut rng = ChaCha8Rng::seed_from_u64(seed.into());
    let mut last = None;
    let mut left = steps;
    while left > 0 {
        let order = batches(dataset, &mut rng);
        for rows in order.chunks(BATCH).take(left) {
            let mut loss = |flat: &[f32]| forward.loss(flat, &dataset.train.x, &dataset.train.y, rows);
            optimizer.perturb(&mut tensors(model, &mut flat)).expect("a perturbation");
            let above = loss(&flat);
            optimizer.reverse(&mut tensors(model, &mut flat), above).expect("its reverse");
            let below = loss(&flat);
            optimizer.step(&mut tensors(model, &mut flat), below).expect("a step");
        }
        left -= left.min(order.len() / BATCH);
        last = optimizer.drain_records().records.pop();
    }
    (100.0 * forward.evaluate(&flat, &dataset.test.x, &dataset.test.y).accuracy, last)
}

/// Does the same on a device, without reading anything back until the end.
fn on_device(
    gpu: &Gpu,
    model: &Model,
    dataset: &Dataset,
    case: &Case,
    seed: u32,
    steps: usize,
) -> (f64, Option<ZerothOrderRecord>) {
    let epoch_rows = dataset.train.rows() / BATCH * BATCH;
    let forward = GpuModel::new(gpu, model, dataset, BATCH, epoch_rows).expect("the model fits");
    forward.write_parameters(&model.initial_parameters(seed.into()));
    let mut builder = builder(case, seed);
    for tensor in model.tensors() {
        let slice = forward.parameters().slice(tensor.range_bytes());
        builder = builder.shaped_tensor(tensor.name, &shape(tensor.rows, tensor.cols), slice);
    }
    let mut optimizer = builder.build(gpu, forward.loss()).expect("a valid configuration");
    let mut rng = ChaCha8Rng::seed_from_u64(seed.into());
    let mut left = steps;
    while left > 0 {
        let order = batches(dataset, &mut rng);
        let count = (order.len() / BATCH).min(left);
        forward.begin_epoch(&order, 0);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        for _ in 0..count {
            optimizer.encode_perturb(&mut encoder).expect("a perturbation");
            forward.encode_loss(&mut encoder.begin_compute_pass(&Default::default()), false);
            optimizer.encode_reverse(&mut encoder).expect("its reverse");
            forward.encode_loss(&mut encoder.begin_compute_pass(&Default::default()), true);
            optimizer.encode_step(&mut encoder).expect("a step");
        }
        gpu.queue().submit([encoder.finish()]);
        left -= count;
    }
    let last = pollster::block_on(optimizer.drain_records()).expect("arrives").records.pop();
    (100.0 * forward.evaluate(Part::Test).expect("evaluates").accuracy, last)
}

fn main() {
    let options = Options::parse();
    let dataset = data::load("digits").expect("a built-in set");
    let model = Model::new(ModelKind::Mlp, dataset.features, dataset.classes, 32);
    let gpu = options.gpu.then(|| {
        let wanted = GpuOptions { allow_software: true, ..GpuOptions::default() };
        pollster::block_on(Gpu::request(&wanted)).expect("an adapter")
    });
    let path = gpu.as_ref().map_or("the CPU path".to_owned(), Gpu::describe);
    println!("{model}, batches of {BATCH}, {} steps of two forward passes, on {path}\n", options.steps);
    println!("| method | rate | aimed | reached, mean of {} seeds | each |\n|---|---|---|---|---|", options.seeds);
    let run = |case: &Case, seed: u32| match &gpu {
        Some(gpu) => on_device(gpu, &model, &dataset, case, seed, options.steps),
        None => on_host(&model, &dataset, case, seed, options.steps),
    };
    let mut sentences = Vec::new();
    for case in cases() {
        let seeds: Vec<u32> = (1..=options.seeds).collect();
        // Only one run at a time uses the device.
        let results: Vec<_> = match &gpu {
            Some(_) => seeds.iter().map(|&seed| run(&case, seed)).collect(),
            None => seeds.par_iter().map(|&seed| run(&case, seed)).collect(),
        };
        let mean = results.iter().map(|(accuracy, _)| accuracy).sum::<f64>() / results.len().max(1) as f64;
        let each: Vec<String> = results.iter().map(|(accuracy, _)| format!("{accuracy:.1}")).collect();
        let method = match case.method {
            ZerothOrderMethod::Lozo { rank, .. } => format!("`lozo`, r = {rank}"),
            method => format!("`{}`", method.name()),
        };
        let rate = match case.regime {
            Regime::Fixed(fixed) => format!("{:e}", fixed.learning_rate),
            Regime::NormRatio(ratio) => format!("norm-ratio, exponent {}", ratio.exponent),
            other => other.name().to_owned(),
        };
        let aimed = case.aimed.map_or("–".to_owned(), |aimed| format!("{aimed:.1} %"));
        println!("| {method} | {rate} | {aimed} | {mean:.1} % | {} |", each.join(", "));
        sentences.extend(results.into_iter().filter_map(|(_, last)| last).take(1));
    }
    println!("\nThe last record of the first seed of each:\n");
    sentences.iter().for_each(|record| println!("{record}"));
}
