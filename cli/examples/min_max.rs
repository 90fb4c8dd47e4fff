//! Extragradient and variance reduction on the CPU path, for docs/beyond.md:
//!
//! - Logistic regression that is robust against a Wasserstein ball of distributions, as a game (arXiv:2104.13326), with extragradient and
//!   with simultaneous steps.
//! - Softmax regression of the digits with SGD, SVRG and SARAH at the same fixed rate.
//!
//! ```sh
//! cargo run --release -p wgpu-optim-cli --example min_max
//! ```

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use wgpu_optim::{CpuExtragradient, CpuOptimizer, CpuVarianceReduction, Group, OptimizerBuilder, Regime, Rule};
use wgpu_optim_cli::data::{self, Dataset};
use wgpu_optim_cli::model::cpu::CpuModel;
use wgpu_optim_cli::model::{Model, ModelKind};

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Constants of the authors' notebook.
const KAPPA: f32 = 10.0;
const EPSILON: f32 = 0.1;
const BATCH: usize = 64;
const FEATURES: usize = 51;
const ROWS: usize = 1000;

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Data of the notebook: normally distributed features, a constant feature, and the sign of a noisy linear function as label.
struct Rows {
    x: Vec<[f32; FEATURES]>,
    y: Vec<f32>,
}

impl Rows {
    fn new(truth: &[f32; FEATURES], rng: &mut ChaCha8Rng) -> Self {
        let mut normal = || -> f32 { StandardNormal.sample(rng) };
        let mut rows = Rows { x: Vec::new(), y: Vec::new() };
        for _ in 0..ROWS {
            let mut x: [f32; FEATURES] = std::array::from_fn(|_| normal());
            rows.y.push((dot(&x[..FEATURES - 1], truth) + 0.1 * normal()).signum());
            x[FEATURES - 1] = 1.0;
            rows.x.push(x);
        }
        rows
    }

    fn accuracy(&self, beta: &[f64]) -> f64 {
        let right = self.x.iter().zip(&self.y).filter(|(x, y)| {
            let score: f64 = x.iter().zip(beta).map(|(&x, beta)| f64::from(x) * beta).sum();
            score * f64::from(**y) > 0.0
        });
        right.count() as f64 / self.y.len() as f64
    }

    /// Returns the robust loss with the best γ for these λ and β.
    fn robust_loss(&self, lambda: f64, beta: &[f64]) -> f64 {
        let of_row = |(x, y): (&[f32; FEATURES], &f32)| {
            let margin: f64 = x.iter().zip(beta).map(|(&x, beta)| f64::from(x) * beta).sum::<f64>() * f64::from(*y);
            (-margin).exp().ln_1p() + (margin - lambda * f64::from(KAPPA)).max(0.0)
        };
        let losses = self.x.iter().zip(&self.y).map(of_row);
        lambda * f64::from(EPSILON) + losses.sum::<f64>() / self.y.len() as f64
    }
}

/// λ, β and γ of the game, which minimizes over λ and β and maximizes over γ.
#[derive(Clone)]
struct Point {
    lambda: [f32; 1],
    beta: [f32; FEATURES],
    gamma: [f32; ROWS],
}

impl Point {
    /// Returns the gradients of the game on a batch. Those of γ outside the batch are 0.
    fn gradient(&self, rows: &Rows, batch: &[usize]) -> Point {
        let mut gradient = Point { lambda: [0.0], beta: [0.0; FEATURES], gamma: [0.0; ROWS] };
        let share = 1.0 / batch.len() as f32;
        gradient.lambda[0] = EPSILON - 0.5 * KAPPA;
        for &row in batch {
            let (x, y, gamma) = (&rows.x[row], rows.y[row], self.gamma[row]);
            let margin = y * dot(x, &self.beta);
            gradient.lambda[0] -= 0.5 * KAPPA * share * gamma;
            let factor = share * y * (0.5 + 0.5 * gamma - 1.0 / (1.0 + margin.exp()));
            gradient.beta.iter_mut().zip(x).for_each(|(g, x)| *g += factor * x);
            gradient.gamma[row] = 0.5 * share * (margin - self.lambda[0] * KAPPA);
        }
        gradient
    }

    /// Projects onto ‖β‖ ≤ λ and γ within ±1.
    fn project(&mut self) {
        let (length, lambda) = (norm(&self.beta) as f32, self.lambda[0]);
        if length > lambda {
            let both = 0.5 * (length + lambda);
            self.beta.iter_mut().for_each(|beta| *beta *= both / length);
            self.lambda[0] = both;
        }
        self.gamma.iter_mut().for_each(|gamma| *gamma = gamma.clamp(-1.0, 1.0));
    }
}

/// Returns the robust loss, and the test accuracy in percent, of the mean of the parameters in the second half of the epochs.
fn robust(seed: u64, looks_ahead: bool) -> Fallible<[f64; 2]> {
    const EPOCHS: usize = 400;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let truth: [f32; FEATURES] = std::array::from_fn(|_| StandardNormal.sample(&mut rng));
    let (train, test) = (Rows::new(&truth, &mut rng), Rows::new(&truth, &mut rng));
    let mut point = Point { lambda: [1.0], beta: [0.0; FEATURES], gamma: [-1.0; ROWS] };
    let descent = Group::new("descent").tensor("lambda", &point.lambda, &point.lambda);
    let descent = descent.tensor("beta", &point.beta, &point.beta);
    let ascent = Group::new("ascent").maximize(true).tensor("gamma", &point.gamma, &point.gamma);
    let builder = OptimizerBuilder::new(Rule::sgd()).regime(Regime::fixed(0.01));
    let mut optimizer = builder.group(descent).group(ascent).build_cpu()?;
    let mut extragradient = CpuExtragradient::new(&optimizer)?;
    let (mut mean, mut counted) = ([0.0; FEATURES + 1], 0.0);
    let mut order: Vec<usize> = (0..ROWS).collect();
    for epoch in 0..EPOCHS {
        order.shuffle(&mut rng);
        for batch in order.chunks_exact(BATCH) {
            let mut g = point.gradient(&train, batch);
            if looks_ahead {
                let params = &mut [&mut point.lambda[..], &mut point.beta, &mut point.gamma];
                extragradient.look_ahead(&optimizer, params, &[&g.lambda[..], &g.beta, &g.gamma])?;
                point.project();
                g = point.gradient(&train, batch);
                extragradient.go_back(&mut [&mut point.lambda[..], &mut point.beta, &mut point.gamma])?;
            }
            let params = &mut [&mut point.lambda[..], &mut point.beta, &mut point.gamma];
            optimizer.step(params, &[&g.lambda[..], &g.beta, &g.gamma])?;
            point.project();
            if 2 * epoch >= EPOCHS {
                counted += 1.0;
                let now = point.lambda.iter().chain(&point.beta);
                mean.iter_mut().zip(now).for_each(|(mean, &x)| *mean += (f64::from(x) - *mean) / counted);
            }
        }
    }
    let [lambda, beta @ ..] = &mean;
    Ok([train.robust_loss(*lambda, beta), 100.0 * test.accuracy(beta)])
}

/// Returns the norm of the full gradient and the test accuracy in percent after 40 epochs.
fn digits(dataset: &Dataset, seed: u64, method: &str) -> Fallible<[f64; 2]> {
    const DECAY: f32 = 1e-3;
    let rows = dataset.train.rows();
    let model = Model::new(ModelKind::Softmax, dataset.features, dataset.classes, 0);
    let mut cpu = CpuModel::new(&model, rows);
    let all: Vec<u32> = (0..rows as u32).collect();
    let mut params = model.initial_parameters(seed);
    let [mut g, mut at_snapshot] = [params.clone(), params.clone()];
    let group = Group::new("model").tensor("all", &params, &g);
    // The decay is the gradient of the penalty. It is the same in all three terms, so that the optimizer adds it once.
    let builder = OptimizerBuilder::new(Rule::sgd()).regime(Regime::fixed(2.0)).weight_decay(DECAY);
    let mut optimizer: CpuOptimizer = builder.group(group).build_cpu()?;
    let mut reduction = CpuVarianceReduction::new(&optimizer)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order = all.clone();
    let (x, y) = (&dataset.train.x, &dataset.train.y);
    for _ in 0..40 {
        let mut snapshot = params.clone();
        if method != "SGD" {
            let _ = cpu.loss_and_gradients(&params, x, y, &all, &mut g);
            reduction.keep(&[&g])?;
        }
        if method == "SARAH" {
            optimizer.step(&mut [&mut params], &[&g])?;
        }
        order.shuffle(&mut rng);
        for batch in order.chunks(BATCH) {
            let _ = cpu.loss_and_gradients(&params, x, y, batch, &mut g);
            if method != "SGD" {
                let _ = cpu.loss_and_gradients(&snapshot, x, y, batch, &mut at_snapshot);
                reduction.combine(&mut [&mut g], &[&at_snapshot])?;
            }
            if method == "SARAH" {
                reduction.keep(&[&g])?;
                snapshot.clone_from(&params);
            }
            optimizer.step(&mut [&mut params], &[&g])?;
        }
    }
    let _ = cpu.loss_and_gradients(&params, x, y, &all, &mut g);
    g.iter_mut().zip(&params).for_each(|(g, w)| *g += DECAY * w);
    Ok([norm(&g), 100.0 * cpu.evaluate(&params, &dataset.test.x, &dataset.test.y).accuracy])
}

/// Prints mean, minimum and maximum of both results over the seeds.
fn print(name: &str, seeds: u64, run: impl Fn(u64) -> Fallible<[f64; 2]> + Send + Sync) -> Fallible<()> {
    let found = (0..seeds).into_par_iter().map(run).collect::<Fallible<Vec<_>>>()?;
    let of = |which: usize, format: &dyn Fn(f64) -> String| {
        let values = || found.iter().map(|figures| figures[which]);
        let mean = values().sum::<f64>() / seeds as f64;
        let [least, most] = [f64::min, f64::max].map(|pick| values().reduce(pick).unwrap_or(f64::NAN));
        format!("{} ({} to {})", format(mean), format(least), format(most))
    };
    let first = |x: f64| if x < 0.2 { format!("{x:.1e}") } else { format!("{x:.4}") };
    println!("| {name} | {} | {} |", of(0, &first), of(1, &|x| format!("{x:.1} %")));
    Ok(())
}

fn main() -> Fallible<()> {
    println!("| robust logistic regression | robust loss | test accuracy |\n|---|---|---|");
    print("extragradient", 5, |seed| robust(seed, true))?;
    print("simultaneous steps", 5, |seed| robust(seed, false))?;
    let dataset = data::load("digits")?;
    println!("\n| digits, softmax regression | norm of the full gradient | test accuracy |\n|---|---|---|");
    for method in ["SGD", "SVRG", "SARAH"] {
        print(method, 3, |seed| digits(&dataset, seed, method))?;
    }
    Ok(())
}
