//! Tests on problems that other libraries use to test their optimizers. The default regime solves them without a learning rate: those of optax's
//! contributed optimizers (20,000 steps, every coordinate within 3e-2), and PyTorch's Rosenbrock function along one coordinate at a time (1,800
//! steps, no farther from the minimum than at the start).
//!
//! The tail average of SGD at a constant rate has the excess risk of the theory of weight averaging, which falls with the number of steps, whereas
//! that of the last iterate does not (Meterez et al., arXiv:2506.15535; Zou et al., arXiv:2103.12692).

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use wgpu_optim::{Averaging, Group, NAdamW, OptimizerBuilder, Regime, Rule, Schedule};

/// A problem with its initial parameters, its solution, and its gradient in f64.
struct Problem {
    name: &'static str,
    start: Vec<f32>,
    end: Vec<f32>,
    gradient: fn(&[f64]) -> Vec<f64>,
}

fn parabola(w: &[f64]) -> Vec<f64> {
    w.iter().zip([1.0, -1.0, 1.0]).map(|(w, target)| 2.0 * (w - target)).collect()
}

fn rosenbrock(w: &[f64]) -> Vec<f64> {
    let valley = w[1] - w[0] * w[0];
    vec![-2.0 * (1.0 - w[0]) - 400.0 * w[0] * valley, 200.0 * valley]
}

/// Returns the gradient of ‖A w - t‖² for a 2x2 matrix A. The squares of its singular values differ by a factor of 15.
fn linear(w: &[f64]) -> Vec<f64> {
    const A: [[f64; 2]; 2] = [[2.0, 1.0], [0.5, 1.0]];
    let target = [A[0][0] - A[0][1], A[1][0] - A[1][1]];
    let errors = [0, 1].map(|row| A[row][0] * w[0] + A[row][1] * w[1] - target[row]);
    (0..2).map(|column| 2.0 * (A[0][column] * errors[0] + A[1][column] * errors[1])).collect()
}

fn problems() -> [Problem; 3] {
    [
        Problem { name: "parabola", start: vec![-1.0, 10.0, 1.0], end: vec![1.0, -1.0, 1.0], gradient: parabola },
        Problem { name: "Rosenbrock", start: vec![0.0, 0.0], end: vec![1.0, 1.0], gradient: rosenbrock },
        Problem { name: "linear", start: vec![0.0, 0.0], end: vec![1.0, -1.0], gradient: linear },
    ]
}

/// Takes steps along the gradient's unmasked elements and returns the parameters.
fn train(
    rule: Rule,
    schedule: Schedule,
    problem: &Problem,
    steps: usize,
    mask: impl Fn(usize, usize) -> bool,
) -> Vec<f32> {
    let mut w = problem.start.clone();
    let mut optimizer = OptimizerBuilder::new(rule)
        .group(Group::new("all").tensor("w", &w, &w))
        .schedule(schedule)
        .decoupled_weight_decay(0.0)
        .record_steps(2)
        .build_cpu()
        .expect("builds");
    for step in 0..steps {
        let wide: Vec<f64> = w.iter().map(|&w| w.into()).collect();
        let gradient = (problem.gradient)(&wide).into_iter().enumerate();
        let gradient: Vec<f32> = gradient.map(|(i, g)| if mask(step, i) { g as f32 } else { 0.0 }).collect();
        optimizer.step(&mut [&mut w], &[&gradient]).expect("steps");
    }
    w
}

/// Rules along the gradient solve the problems with a constant schedule. Sign rules, RMSprop, AMSGrad and Adafactor circle a minimum without noise at
/// a distance of one step, since Seesaw does not lower the rate while the norm has not risen. With a schedule that ends at 0 they arrive too.
#[test]
fn the_problems_of_optax_are_solved_without_a_rate() {
    const STEPS: usize = 20_000;
    for rule in Rule::all() {
        let schedule = match rule {
            Rule::SignSgd(_)
            | Rule::Signum(_)
            | Rule::Lion(_)
            | Rule::RmsProp(_)
            | Rule::AmsGrad(_)
            | Rule::Adafactor(_) => Schedule::WarmupCosine { warmup: 0, steps: STEPS as u32, last: 0.0 },
            _ => Schedule::Constant,
        };
        for problem in problems() {
            let end = train(rule, schedule.clone(), &problem, STEPS, |_, _| true);
            let off = end.iter().zip(&problem.end).map(|(w, target)| (w - target).abs()).fold(0.0, f32::max);
            assert!(off <= 3e-2, "{}, {}: {end:?}", rule.name(), problem.name);
        }
    }
}

/// The rules have a momentum along the gradient. Without one, the steps of the two coordinates do not affect each other, and Seesaw makes them too
/// long.
#[test]
fn one_coordinate_at_a_time_leads_no_farther_away() {
    let problem = Problem { name: "Rosenbrock", start: vec![1.5, 1.5], end: vec![1.0, 1.0], gradient: rosenbrock };
    let distance = |w: &[f32]| w.iter().zip(&problem.end).map(|(w, end)| (w - end).powi(2)).sum::<f32>().sqrt();
    for rule in [Rule::sgdm(0.9), Rule::adamw(), Rule::NAdamW(NAdamW::default())] {
        let end = train(rule, Schedule::Constant, &problem, 1_800, |step, i| step % 2 == i);
        assert!(distance(&end) <= distance(&problem.start), "{}: {end:?}", rule.name());
    }
}

/// Linear regression in one pass with rows `x ~ N(0, diag λ)`, `λ_i = i^-2`, and targets `⟨x, w*⟩ + σ ε`.
struct Regression {
    curvatures: Vec<f64>,
    optimum: Vec<f64>,
}

impl Regression {
    const NOISE: f64 = 0.5;
    const RATE: f64 = 0.3;

    fn new(random: &mut impl Rng) -> Self {
        let curvatures: Vec<f64> = (1..=200).map(|i| f64::from(i).powi(-2)).collect();
        Regression { optimum: curvatures.iter().map(|_| random.sample::<f64, _>(StandardNormal)).collect(), curvatures }
    }

    /// Returns the expected loss above that of the optimum.
    fn excess_risk(&self, w: &[f32]) -> f64 {
        let errors = w.iter().zip(&self.optimum).map(|(&w, optimum)| f64::from(w) - optimum);
        errors.zip(&self.curvatures).map(|(error, curvature)| 0.5 * curvature * error * error).sum()
    }

    /// Takes steps of one row each, and returns the excess risk of the last iterate and that of the mean of the second
    /// half of the iterates.
    fn train(&self, steps: u32, random: &mut impl Rng) -> [f64; 2] {
        let mut w = vec![0f32; self.curvatures.len()];
        let mut gradient = w.clone();
        let mut optimizer = OptimizerBuilder::new(Rule::sgd())
            .regime(Regime::fixed(Self::RATE as f32))
            .averaging(Averaging::Running { start: steps / 2 })
            .group(Group::new("all").tensor("w", &w, &w))
            .build_cpu()
            .expect("builds");
        for _ in 0..steps {
            let row: Vec<f64> = self
                .curvatures
                .iter()
                .map(|curvature| curvature.sqrt() * random.sample::<f64, _>(StandardNormal))
                .collect();
            let errors = w.iter().zip(&self.optimum).map(|(&w, optimum)| f64::from(w) - optimum);
            let residual: f64 = errors.zip(&row).map(|(error, x)| error * x).sum::<f64>()
                - Self::NOISE * random.sample::<f64, _>(StandardNormal);
            gradient.iter_mut().zip(&row).for_each(|(g, x)| *g = (residual * x) as f32);
            optimizer.step(&mut [&mut w], &[&gradient]).expect("steps");
        }
        let last = self.excess_risk(&w);
        optimizer.swap_averages(&mut [&mut w]).expect("has an average");
        [last, self.excess_risk(&w)]
    }

    /// Returns the bound of bias and variance of the tail average without its constant factor (arXiv:2103.12692): with
    /// `k*` curvatures of at least `1/(γ N)`, the variance is `σ² (k*/N + γ² N Σ_{i > k*} λ_i²)`, and the bias is
    /// `‖(I - γ H)^s (w₀ - w*)‖²` in `H^-1/(γ N)²` on the first `k*` coordinates and in `H` on the others.
    fn bound(&self, steps: u32) -> f64 {
        let tail = f64::from(steps / 2);
        let coordinates = self.curvatures.iter().zip(&self.optimum);
        let terms = coordinates.map(|(&curvature, optimum)| {
            let progress = Self::RATE * tail * curvature;
            let left = (1.0 - Self::RATE * curvature).powf(tail) * optimum;
            let share = progress.min(1.0);
            Self::NOISE.powi(2) * share * share / tail + curvature * left * left / progress.max(1.0).powi(2)
        });
        terms.sum()
    }
}

#[test]
fn the_tail_average_has_the_excess_risk_of_its_theory() {
    const SEEDS: u64 = 4;
    let mut before: Option<[f64; 2]> = None;
    for steps in [2_000, 8_000, 32_000] {
        let mut mean = [0.0; 3];
        for seed in 0..SEEDS {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let regression = Regression::new(&mut random);
            let [last, tail] = regression.train(steps, &mut random);
            let figures = [last, tail, regression.bound(steps)];
            mean.iter_mut().zip(figures).for_each(|(mean, figure)| *mean += figure / SEEDS as f64);
        }
        let [last, tail, bound] = mean;
        println!(
            "{steps} steps: excess risk of the last iterate {last:.1e}, of the tail average {tail:.1e}, bound {bound:.1e}"
        );
        // The bound holds up to a constant, which is near 1 here.
        assert!((0.3 * bound..2.0 * bound).contains(&tail), "{steps} steps: {tail:e}, bound {bound:e}");
        if let Some([last_before, tail_before]) = before {
            assert!(tail <= tail_before / 1.6, "{steps} steps: {tail:e} after {tail_before:e}");
            assert!(last >= last_before / 1.6, "{steps} steps: {last:e} after {last_before:e}");
        }
        before = Some([last, tail]);
    }
}
