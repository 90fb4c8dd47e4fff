//! Promise: the default regime solves the problems that other libraries test their optimizers on, with no learning rate given: those of
//! optax's contributed optimizers (20,000 steps, every coordinate within 3e-2), and PyTorch's Rosenbrock function along one coordinate at a
//! time (1,800 steps, no farther from the minimum than at the start).

use wgpu_optim::{Group, NAdamW, OptimizerBuilder, Rule, Schedule};

/// Initial parameters, where they must end, and the gradient in f64.
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

/// Σ (A w - t)² for a 2x2 matrix A, whose squared singular values are 35 apart.
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

/// Takes steps along what is left of the gradient, and returns the parameters.
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

/// Rules along the gradient need nothing. Sign rules, RMSprop, AMSGrad and Adafactor circle a minimum without noise at the length of a step, since Seesaw holds a rate whose
/// norm has not risen: with a schedule that ends at 0 they arrive too.
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

/// With a momentum along the gradient. Without one the two coordinates' steps do not see each other, and Seesaw makes them too long.
#[test]
fn one_coordinate_at_a_time_leads_no_farther_away() {
    let problem = Problem { name: "Rosenbrock", start: vec![1.5, 1.5], end: vec![1.0, 1.0], gradient: rosenbrock };
    let distance = |w: &[f32]| w.iter().zip(&problem.end).map(|(w, end)| (w - end).powi(2)).sum::<f32>().sqrt();
    for rule in [Rule::sgdm(0.9), Rule::adamw(), Rule::NAdamW(NAdamW::default())] {
        let end = train(rule, Schedule::Constant, &problem, 1_800, |step, i| step % 2 == i);
        assert!(distance(&end) <= distance(&problem.start), "{}: {end:?}", rule.name());
    }
}
