//! Weight decay that is trained on validation data ([`CpuBiLevel`]), in the setting of docs/beyond.md: softmax regression on 100 rows of the
//! digits, validated on 300 others, from three initial decays. Prints the expected results and the measured ones.
//!
//! ```sh
//! cargo run --release -p wgpu-optim-cli --example bi_level
//! ```

use wgpu_optim::{BiLevelConfig, CpuBiLevel, Group, OptimizerBuilder, Regime, Rule};
use wgpu_optim_cli::data::{self, Dataset, Split};
use wgpu_optim_cli::model::cpu::CpuModel;
use wgpu_optim_cli::model::{Model, ModelKind};

const TRAINING: usize = 100;
const VALIDATION: usize = 300;
const EPOCHS: usize = 400;
const SEEDS: u64 = 3;
const RATE: f32 = 1.0;

/// Initial decay, and the results of a numpy program: the loss on test rows with a constant and with a trained decay, and, where known,
/// the accuracies and the last decay.
const CASES: [(f32, &str); 3] =
    [(1e-1, "1.463 -> 0.470, 68.4 -> 85.1 %, decay 4e-5"), (1e-3, "0.477 -> 0.452"), (1e-6, "0.454 -> 0.452")];

struct Reached {
    loss: f64,
    accuracy: f64,
    decay: f64,
}

/// Trains with all training rows in each step.
fn run(dataset: &Dataset, seed: u64, first: f32, is_trained: bool) -> Reached {
    let model = Model::new(ModelKind::Softmax, dataset.features, dataset.classes, 1);
    let mut cpu = CpuModel::new(&model, VALIDATION);
    let mut params = model.initial_parameters(seed);
    let mut grads = vec![0.0; params.len()];
    // The rows of a data set are already shuffled. Each seed uses different rows.
    let start = seed as usize * (TRAINING + VALIDATION);
    let rows = |first: usize, count: usize| (first as u32..(first + count) as u32).collect::<Vec<u32>>();
    let (training, validation) = (rows(start, TRAINING), rows(start + TRAINING, VALIDATION));
    let Split { x, y } = &dataset.train;
    let mut optimizer = OptimizerBuilder::new(Rule::sgd())
        .regime(Regime::fixed(RATE))
        .weight_decay(first)
        .group(Group::new("all").tensor("all", &params, &grads))
        .build_cpu()
        .expect("a valid configuration");
    let mut bi_level = CpuBiLevel::new(&optimizer, BiLevelConfig::weight_decay()).expect("it has a decay");
    for _ in 0..EPOCHS {
        let _ = cpu.loss_and_gradients(&params, x, y, &training, &mut grads);
        optimizer.step(&mut [&mut params], &[&grads]).expect("a step");
        if is_trained {
            let _ = cpu.loss_and_gradients(&params, x, y, &validation, &mut grads);
            bi_level.validation(&mut optimizer, &[&params], &[&grads]).expect("a validation");
        }
    }
    let evaluation = cpu.evaluate(&params, &dataset.test.x, &dataset.test.y);
    let decay = optimizer.controls("all").expect("the group").weight_decay.into();
    Reached { loss: evaluation.loss, accuracy: 100.0 * evaluation.accuracy, decay }
}

fn main() {
    let dataset = data::load("digits").expect("a built-in set");
    println!("| first decay | aimed at | reached: test loss | test accuracy | last decay |\n|---|---|---|---|---|");
    for (first, aimed) in CASES {
        let mean = |is_trained: bool| {
            let runs: Vec<Reached> = (0..SEEDS).map(|seed| run(&dataset, seed, first, is_trained)).collect();
            let mean = |of: fn(&Reached) -> f64| runs.iter().map(of).sum::<f64>() / SEEDS as f64;
            let decay = mean(|run| run.decay.ln()).exp();
            Reached { loss: mean(|run| run.loss), accuracy: mean(|run| run.accuracy), decay }
        };
        let (constant, trained) = (mean(false), mean(true));
        println!(
            "| {first:e} | {aimed} | {:.3} -> {:.3} | {:.1} -> {:.1} % | {:.1e} |",
            constant.loss, trained.loss, constant.accuracy, trained.accuracy, trained.decay
        );
    }
}
