//! Steps from a Jacobian on the device: `Δ = Jᵀ (J Jᵀ + λ I)⁻¹ r` by conjugate gradients, which needs two products with J
//! per iteration, no other matrix and no readback. An optimizer of the crate takes the step. The method suits problems of
//! nonlinear least squares (Levenberg and Marquardt) that have few parameters and whose Jacobian fits in memory.
//!
//! - **Probabilities of a quantum circuit**: corrections by the inverse of the probabilities' Jacobian, without a learning
//!   rate (Seo, arXiv:2601.16665).
//! - **Ground state of a spin chain**: stochastic reconfiguration, and the linear method of Frank and Kastoryano
//!   (arXiv:2104.11011), which is compared with it. That method solves a generalized eigenvalue problem of the same
//!   Jacobian. The host does so, in f64.
//!
//! ```sh
//! cargo run --release --example jacobian_step
//! ```

mod linear_method;
mod problems;
mod solver;

use std::error::Error;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use wgpu_optim::{Gpu, GpuOptions};

use linear_method::LinearMethod;
use problems::{Circuit, Ising, Problem};
use solver::Solver;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Takes a step and returns the parameters.
fn step(solver: &Solver, problem: &impl Problem, parameters: &[f64]) -> Result<Vec<f64>> {
    let (jacobian, residuals) = problem.system(parameters);
    solver.step(&to_f32(&jacobian), &to_f32(&residuals))?;
    Ok(to_f64(&solver.parameters()?))
}

/// Returns the losses of a circuit after 0, 1, … steps.
fn train_circuit(gpu: &Gpu, seed: u64, lambda: f32, steps: usize) -> Result<Vec<f64>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let circuit = Circuit::new(&Circuit::random_angles(&mut random));
    let mut angles = Circuit::random_angles(&mut random);
    let solver = Solver::new(gpu, Circuit::ROWS, &to_f32(&angles), lambda, 1.0)?;
    let mut losses = vec![circuit.loss(&angles)];
    for _ in 0..steps {
        angles = step(&solver, &circuit, &angles)?;
        losses.push(circuit.loss(&angles));
    }
    Ok(losses)
}

/// Returns the losses of the same circuit under gradient descent on the host.
fn descend_circuit(seed: u64, rate: f64, steps: usize) -> Vec<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let circuit = Circuit::new(&Circuit::random_angles(&mut random));
    let mut angles = Circuit::random_angles(&mut random);
    let mut losses = vec![circuit.loss(&angles)];
    for _ in 0..steps {
        let (jacobian, residuals) = circuit.system(&angles);
        for (row, residual) in jacobian.chunks(Circuit::ANGLES).zip(residuals) {
            angles.iter_mut().zip(row).for_each(|(angle, slope)| *angle += rate * slope * residual);
        }
        losses.push(circuit.loss(&angles));
    }
    losses
}

/// Method for finding the ground state.
#[derive(Clone, Copy)]
enum Method {
    /// Stochastic reconfiguration at a rate.
    Reconfiguration(f32),
    Linear,
}

/// Returns the steps until the energy is within 1e-4 of that of the ground state.
fn steps_to_ground_state(gpu: &Gpu, seed: u64, method: Method, most: usize) -> Result<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let problem = Ising::new();
    let first = || 0.01 * random.sample::<f64, _>(StandardNormal);
    let mut parameters: Vec<f64> = std::iter::repeat_with(first).take(Ising::PARAMETERS).collect();
    let rate = if let Method::Reconfiguration(rate) = method { rate } else { 1.0 };
    let solver = Solver::new(gpu, Ising::ROWS, &to_f32(&parameters), 1e-3, rate)?;
    let mut linear = LinearMethod::new();
    for steps in 0..most {
        if problem.error(&parameters) < 1e-4 {
            return Ok(steps);
        }
        parameters = match method {
            Method::Reconfiguration(_) => step(&solver, &problem, &parameters)?,
            Method::Linear => {
                solver.take(&to_f32(&linear.step(&problem, &parameters)))?;
                to_f64(&solver.parameters()?)
            }
        };
    }
    Ok(most)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { 0.5 * (values[middle - 1] + values[middle]) } else { values[middle] }
}

fn main() -> Result<()> {
    let options = GpuOptions { allow_software: true, ..Default::default() };
    let gpu = pollster::block_on(Gpu::request(&options))?;
    println!("{}", gpu.describe());
    println!("\ncircuit of 3 qubits, median loss of 20 seeds after 1, 5, 10 and 30 steps");
    let at = [1, 5, 10, 30];
    let show = |name: &str, runs: &[Vec<f64>]| {
        let medians = at.map(|step| format!("{:.1e}", median(runs.iter().map(|losses| losses[step]).collect())));
        let solved = runs.iter().filter(|losses| losses.iter().any(|loss| *loss < 1e-6)).count();
        println!("  {name:28} {}   below 1e-6: {solved} of {}", medians.join("  "), runs.len());
    };
    for lambda in [1e-2, 1e-3] {
        let runs: Vec<Vec<f64>> = (0..20).map(|seed| train_circuit(&gpu, seed, lambda, 60)).collect::<Result<_>>()?;
        show(&format!("Jacobian step, lambda {lambda}"), &runs);
    }
    let runs: Vec<Vec<f64>> = (0..20).map(|seed| descend_circuit(seed, 0.5, 60)).collect();
    show("gradient descent, rate 0.5", &runs);
    println!("\nIsing chain of 8 spins, steps to a relative error of 1e-4 of the energy, five seeds");
    for (name, method) in [
        ("stochastic reconfiguration, rate 0.05", Method::Reconfiguration(0.05)),
        ("stochastic reconfiguration, rate 0.2", Method::Reconfiguration(0.2)),
        ("linear method", Method::Linear),
    ] {
        let steps: Vec<String> = (0..5)
            .map(|seed| Ok(steps_to_ground_state(&gpu, seed, method, 200)?.to_string()))
            .collect::<Result<_>>()?;
        println!("  {name:38} {}", steps.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use wgpu_optim_conformance::run::devices;

    use super::*;

    /// Solves a symmetric system by elimination.
    fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
        let n = b.len();
        for i in 0..n {
            for j in i + 1..n {
                let factor = a[j][i] / a[i][i];
                let (above, below) = a.split_at_mut(j);
                below[0].iter_mut().zip(&above[i]).for_each(|(x, y)| *x -= factor * y);
                b[j] -= factor * b[i];
            }
        }
        for i in (0..n).rev() {
            let known: f64 = (i + 1..n).map(|j| a[i][j] * b[j]).sum();
            b[i] = (b[i] - known) / a[i][i];
        }
        b
    }

    /// The step on every adapter is that of a direct solution in f64.
    #[test]
    fn steps_are_those_of_a_direct_solution() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let ising: Vec<f64> = (0..Ising::PARAMETERS).map(|_| 0.1 * random.sample::<f64, _>(StandardNormal)).collect();
        let teacher = Circuit::random_angles(&mut random);
        let angles = Circuit::random_angles(&mut random);
        let systems = [
            (Ising::new().system(&ising), Ising::ROWS, ising),
            (Circuit::new(&teacher).system(&angles), Circuit::ROWS, angles),
        ];
        for ((jacobian, residuals), rows, parameters) in systems {
            let columns = parameters.len();
            let row = |i: usize| &jacobian[i * columns..(i + 1) * columns];
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let damped = |i, j| dot(row(i), row(j)) + if i == j { 1e-2 } else { 0.0 };
            let x = solve((0..rows).map(|i| (0..rows).map(|j| damped(i, j)).collect()).collect(), residuals.clone());
            let mut expected = parameters.clone();
            for (i, x) in x.iter().enumerate() {
                expected.iter_mut().zip(row(i)).for_each(|(parameter, slope)| *parameter += 0.5 * slope * x);
            }
            let length = dot(&expected, &expected).sqrt();
            for gpu in &devices() {
                let solver = Solver::new(gpu, rows, &to_f32(&parameters), 1e-2, 0.5).expect("allocates");
                solver.step(&to_f32(&jacobian), &to_f32(&residuals)).expect("steps");
                let got = solver.parameters().expect("reads");
                for (got, expected) in to_f64(&got).iter().zip(&expected) {
                    assert!((got - expected).abs() <= 2e-5 * length, "{}: {got} {expected}", gpu.describe());
                }
            }
        }
    }

    #[test]
    fn the_ground_state_is_found() {
        let of = |method| steps_to_ground_state(&devices()[0], 0, method, 100).expect("steps");
        let [reconfiguration, linear] = [Method::Reconfiguration(0.05), Method::Linear].map(of);
        assert!((25..75).contains(&reconfiguration), "{reconfiguration} steps");
        assert!((2..20).contains(&linear), "{linear} steps");
    }

    #[test]
    fn a_circuit_is_learnt_faster_than_by_descent() {
        let devices = devices();
        let gpu = &devices[0];
        let after = |losses: &[f64]| losses[10];
        let steps: Vec<f64> = (0..5).map(|seed| after(&train_circuit(gpu, seed, 1e-2, 10).expect("steps"))).collect();
        let descent: Vec<f64> = (0..5).map(|seed| after(&descend_circuit(seed, 0.5, 10))).collect();
        let better = steps.iter().zip(&descent).filter(|(step, descent)| step < descent).count();
        assert!(better >= 4, "{steps:?} {descent:?}");
    }
}
