//! Test accuracy of models with bf16 parameters and gradients: with master weights of 32 and of 24 bits, and with stochastic rounding without
//! master weights, with state in f32 and in 8 bits. Prints a table for docs/results.md.
//!
//! ```sh
//! cargo run --release -p wgpu-optim-cli --example masters              # all rules
//! cargo run --release -p wgpu-optim-cli --example masters adamw lion
//! ```

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use wgpu_optim::half::bf16;
use wgpu_optim::{Group, OptimizerBuilder, Regime, Rounding, Rule, Schedule, State};
use wgpu_optim_cli::data::{self, Dataset};
use wgpu_optim_cli::model::cpu::CpuModel;
use wgpu_optim_cli::model::{Model, ModelKind};

const SETS: [&str; 6] = ["digits", "mushrooms", "spirals", "parity", "sine", "board"];
const SEEDS: u64 = 3;
const BATCH: usize = 64;
const HIDDEN: usize = 128;

/// Storage of the parameters and the state.
#[derive(Clone, Copy)]
struct Kept {
    name: &'static str,
    bf16: bool,
    rounding: Rounding,
    state: State,
}

const F32: Kept = Kept { name: "f32", bf16: false, rounding: Rounding::Masters, state: State::F32 };
const KEPT: [Kept; 5] = [
    F32,
    Kept { name: "bf16, masters of 32 bits", bf16: true, ..F32 },
    Kept { name: "f32, 8-bit state", state: State::Bits8, ..F32 },
    Kept { name: "bf16, masters of 24 bits, 8-bit state", bf16: true, state: State::Bits8, ..F32 },
    Kept {
        name: "bf16 rounded at random, 8-bit state",
        bf16: true,
        rounding: Rounding::Stochastic { seed: 1 },
        state: State::Bits8,
    },
];

/// Rule with a grid of rates. Each data set uses the best one.
struct Case {
    rule: Rule,
    rates: [f32; 3],
}

/// Trains a model and returns its test accuracy in percent.
fn run(dataset: &Dataset, epochs: u32, seed: u64, kept: Kept, rule: Rule, regime: Regime, schedule: Schedule) -> f64 {
    let model = Model::new(ModelKind::Mlp, dataset.features, dataset.classes, HIDDEN);
    let mut cpu = CpuModel::new(&model, BATCH);
    let mut floats = model.initial_parameters(seed);
    let mut gradients = vec![0.0; floats.len()];
    let halves = |floats: &[f32]| floats.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
    let mut params = halves(&floats);
    let group = Group::new("model");
    let group = if kept.bf16 { group.tensor("all", &params, &params) } else { group.tensor("all", &floats, &floats) };
    let builder = OptimizerBuilder::new(rule).regime(regime).schedule(schedule).rounding(kept.rounding);
    let mut optimizer = builder.state(kept.state).group(group).build_cpu().expect("a valid configuration");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<u32> = (0..dataset.train.rows() as u32).collect();
    for _ in 0..epochs {
        order.shuffle(&mut rng);
        for rows in order.chunks(BATCH) {
            if kept.bf16 {
                floats.iter_mut().zip(&params).for_each(|(float, half)| *float = half.to_f32());
            }
            let (x, y) = (&dataset.train.x, &dataset.train.y);
            let loss = cpu.loss_and_gradients(&floats, x, y, rows, &mut gradients);
            let step = if kept.bf16 {
                optimizer.step_with_loss(&mut [&mut params], &[halves(&gradients)], loss)
            } else {
                optimizer.step_with_loss(&mut [&mut floats], &[&gradients], loss)
            };
            step.expect("a step");
        }
    }
    if kept.bf16 {
        floats = params.iter().map(|half| half.to_f32()).collect();
    }
    100.0 * cpu.evaluate(&floats, &dataset.test.x, &dataset.test.y).accuracy
}

fn main() {
    let sets = SETS.map(|name| (data::load(name).expect("a built-in set"), data::default_epochs(name)));
    let cases = [
        Case { rule: Rule::sgdm(0.9), rates: [1e-2, 3e-2, 1e-1] },
        Case { rule: Rule::adamw(), rates: [1e-3, 3e-3, 1e-2] },
        Case { rule: Rule::lion(), rates: [3e-4, 1e-3, 3e-3] },
    ];
    // Returns the mean over the seeds for each data set.
    let means = |kept: Kept, rule: Rule, regime: Regime, is_cosine: bool| -> Vec<f64> {
        let jobs: Vec<(usize, u64)> = (0..sets.len()).flat_map(|set| (0..SEEDS).map(move |seed| (set, seed))).collect();
        let results: Vec<f64> = jobs
            .par_iter()
            .map(|&(set, seed)| {
                let (dataset, epochs) = &sets[set];
                let steps = *epochs as usize * dataset.train.rows().div_ceil(BATCH);
                let steps = steps as u32;
                let cosine = Schedule::WarmupCosine { warmup: steps / 20, steps, last: 0.0 };
                let schedule = if is_cosine { cosine } else { Schedule::Constant };
                run(dataset, *epochs, seed, kept, rule, regime, schedule)
            })
            .collect();
        results.chunks(SEEDS as usize).map(|seeds| seeds.iter().sum::<f64>() / SEEDS as f64).collect()
    };
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let names = cases.each_ref().map(|case| case.rule.name());
    if let Some(unknown) = wanted.iter().find(|wanted| !names.contains(&wanted.as_str())) {
        eprintln!("there is no case of \"{unknown}\": name {}, or none for all", names.join(", "));
        std::process::exit(2);
    }
    let is_wanted = |case: &Case| wanted.is_empty() || wanted.iter().any(|wanted| *wanted == case.rule.name());
    println!("| rule | kept | best fixed | best cosine | Seesaw | NormRatio |\n|---|---|---|---|---|---|");
    for Case { rule, rates } in cases.into_iter().filter(is_wanted) {
        let mut base: Vec<Vec<f64>> = Vec::new();
        for kept in KEPT {
            let best = |is_cosine: bool| {
                let of_rates = rates.map(|rate| means(kept, rule, Regime::fixed(rate), is_cosine));
                (0..sets.len()).map(|set| of_rates.iter().map(|means| means[set]).fold(0.0, f64::max)).collect()
            };
            let found: Vec<Vec<f64>> = vec![
                best(false),
                best(true),
                means(kept, rule, Regime::seesaw(), false),
                means(kept, rule, Regime::norm_ratio(), false),
            ];
            let cells = found.iter().enumerate().map(|(column, means)| {
                let count = means.len() as f64;
                match base.get(column) {
                    None => format!("{:.1} %", means.iter().sum::<f64>() / count),
                    Some(base) => {
                        let off: Vec<f64> = means.iter().zip(base).map(|(x, base)| x - base).collect();
                        let [least, most] = [f64::min, f64::max].map(|pick| off.iter().copied().reduce(pick));
                        let (least, most) = (least.unwrap_or(0.0), most.unwrap_or(0.0));
                        format!("{:+.1} ({least:+.1} to {most:+.1})", off.iter().sum::<f64>() / count)
                    }
                }
            });
            println!("| `{}` | {} | {} |", rule.name(), kept.name, cells.collect::<Vec<_>>().join(" | "));
            if base.is_empty() {
                base = found;
            }
        }
    }
}
