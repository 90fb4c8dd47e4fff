//! Completes a matrix of low rank from a part of its elements, with *nuclear decay*: weight decay whose gradient is that
//! of the nuclear norm, the sum of the singular values. It shrinks the singular values, so that only few of them remain
//! large. The usual weight decay shrinks the elements and does not fill in missing ones.
//!
//! The gradient of the nuclear norm of W = U Σ Vᵀ is U Vᵀ, the orthogonal matrix nearest to W. `Muon` computes that
//! matrix without an SVD. A second optimizer therefore uses the parameters themselves as its gradients. Without momentum
//! and with the cubic Newton–Schulz iteration `X ← 1.5 X - 0.5 X Xᵀ X`, which converges to U Vᵀ, its step is
//! `W ← W - η λ U Vᵀ`. Li et al. 2025 (arXiv:2505.15407) also regularize with functions of the singular values without
//! an SVD, with random vectors and a series. The form of the decay in this example is this project's own.
//!
//! ```sh
//! cargo run --release --example low_rank
//! ```

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use wgpu_optim::{CpuOptimizer, Error, Group, Muon, MuonScale, OptimizerBuilder, Regime, Rule};

/// Rows and columns of the matrix.
const SIDE: usize = 64;
const RANK: usize = 3;
const SEEN: f64 = 0.4;
const NOISE: f64 = 0.1;
const STEPS: usize = 600;
/// Learning rate for the squared errors of the observed elements.
const RATE: f32 = 1.0;

/// Matrix of low rank, and its observed elements, with noise.
struct Problem {
    truth: Vec<f32>,
    seen: Vec<Option<f32>>,
}

impl Problem {
    fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut factor = || -> Vec<f64> { (0..SIDE * RANK).map(|_| random.sample::<f64, _>(StandardNormal)).collect() };
        let (left, right) = (factor(), factor());
        let rows = left.chunks(RANK);
        let product = rows.flat_map(|a| right.chunks(RANK).map(move |b| a.iter().zip(b).map(|(a, b)| a * b).sum()));
        let truth: Vec<f64> = product.collect();
        let see = |value: &f64| {
            let noisy = value + NOISE * random.sample::<f64, _>(StandardNormal);
            (random.random::<f64>() < SEEN).then_some(noisy as f32)
        };
        Problem { seen: truth.iter().map(see).collect(), truth: truth.iter().map(|&value| value as f32).collect() }
    }

    /// Returns the distance from the true matrix over the elements that were not observed, relative to their norm.
    fn error(&self, w: &[f32]) -> f64 {
        let unseen = self.seen.iter().zip(w.iter().zip(&self.truth)).filter(|(seen, _)| seen.is_none());
        let square = |x: f32| f64::from(x).powi(2);
        let sums = unseen.map(|(_, (w, truth))| (square(w - truth), square(*truth)));
        let (distance, norm) = sums.fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
        (distance / norm).sqrt()
    }

    /// Minimizes the squared errors of the observed elements, and calls `decay` with the matrix after each step.
    fn complete(&self, mut decay: impl FnMut(&mut Vec<f32>) -> Result<(), Error>) -> Result<Vec<f32>, Error> {
        let mut w = vec![0f32; SIDE * SIDE];
        let mut gradient = w.clone();
        let mut optimizer = OptimizerBuilder::new(Rule::sgd())
            .regime(Regime::fixed(RATE))
            .group(Group::new("matrix").shaped_tensor("w", &[SIDE, SIDE], &w, &gradient))
            .build_cpu()?;
        for _ in 0..STEPS {
            for (g, (w, seen)) in gradient.iter_mut().zip(w.iter().zip(&self.seen)) {
                *g = seen.map_or(0.0, |seen| w - seen);
            }
            optimizer.step(&mut [&mut w], &[&gradient])?;
            decay(&mut w)?;
        }
        Ok(w)
    }
}

/// Returns an optimizer whose step is nuclear decay if its gradients are the parameters.
fn nuclear_decay(lambda: f32) -> Result<CpuOptimizer, Error> {
    let polar = Muon {
        momentum: 0.0,
        nesterov: false,
        coefficients: [1.5, -0.5, 0.0],
        iterations: 12,
        // The factor is 1 for a square matrix.
        scale: MuonScale::Original,
        ..Muon::default()
    };
    let w = vec![0f32; SIDE * SIDE];
    OptimizerBuilder::new(Rule::Muon(polar))
        .regime(Regime::fixed(RATE * lambda))
        .decoupled_weight_decay(0.0)
        .group(Group::new("matrix").shaped_tensor("w", &[SIDE, SIDE], &w, &w))
        .build_cpu()
}

/// Returns the singular values, the largest first. They are the norms of the rows after Jacobi rotations have made the
/// rows orthogonal.
fn singular_values(w: &[f32]) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut rows: Vec<Vec<f64>> = w.chunks(SIDE).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
    for _ in 0..12 {
        for q in 1..SIDE {
            let (before, after) = rows.split_at_mut(q);
            let row = &mut after[0];
            for other in before {
                let (a, b, c) = (dot(other, other), dot(row, row), dot(other, row));
                if c.abs() <= 1e-14 * (a * b).sqrt() {
                    continue;
                }
                let theta = (b - a) / (2.0 * c);
                let tangent = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let cosine = tangent.hypot(1.0).recip();
                let sine = tangent * cosine;
                for (x, y) in other.iter_mut().zip(row.iter_mut()) {
                    (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
                }
            }
        }
    }
    let mut values: Vec<f64> = rows.iter().map(|row| dot(row, row).sqrt()).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

/// Returns the number of singular values above a tenth of the largest.
fn rank(w: &[f32]) -> usize {
    let values = singular_values(w);
    values.iter().filter(|&&value| value > 0.1 * values[0]).count()
}

/// Returns the relative error on the elements that were not observed, and the rank: with nuclear decay, with weight
/// decay, without decay.
fn results(problem: &Problem) -> Result<[(&'static str, f64, usize); 3], Error> {
    let mut nuclear = nuclear_decay(0.3)?;
    let with_nuclear = problem.complete(|w| {
        let gradient = w.clone();
        nuclear.step(&mut [w], &[&gradient])
    })?;
    let usual = problem.complete(|w| {
        w.iter_mut().for_each(|w| *w -= RATE * 0.01 * *w);
        Ok(())
    })?;
    let without = problem.complete(|_| Ok(()))?;
    let of = |name, w: Vec<f32>| (name, problem.error(&w), rank(&w));
    Ok([of("nuclear decay, 0.3", with_nuclear), of("weight decay, 0.01", usual), of("no decay", without)])
}

fn main() -> Result<(), Error> {
    println!("{SIDE} x {SIDE} of rank {RANK}, {:.0} % seen, noise {NOISE}, {STEPS} steps", 100.0 * SEEN);
    for (name, error, rank) in results(&Problem::new(1))? {
        println!("{name:20} error where nothing was seen {error:.3}, rank {rank}");
    }
    Ok(())
}

#[test]
fn nuclear_decay_finds_the_rank() {
    for seed in [1, 2] {
        let [nuclear, usual, without] = results(&Problem::new(seed)).expect("steps");
        assert!(nuclear.1 < 0.12 && nuclear.2 == RANK, "{nuclear:?}");
        assert!(usual.1 > 0.9 && usual.2 > 20, "{usual:?}");
        assert!(without.1 > 0.9 && without.2 > 20, "{without:?}");
    }
}

#[test]
fn singular_values_of_a_product() {
    // The singular values of a diagonal matrix between two reflections are its diagonal.
    let mut w = vec![0f64; SIDE * SIDE];
    (0..SIDE).for_each(|i| w[i * SIDE + i] = 1.0 + i as f64);
    let reflect = |w: &mut [f64], stride: [usize; 2]| {
        let v: Vec<f64> = (0..SIDE).map(|i| (i as f64).sin()).collect();
        let square: f64 = v.iter().map(|x| x * x).sum();
        for line in 0..SIDE {
            let at = |i: usize| line * stride[0] + i * stride[1];
            let along: f64 = (0..SIDE).map(|i| v[i] * w[at(i)]).sum();
            (0..SIDE).for_each(|i| w[at(i)] -= 2.0 * v[i] * along / square);
        }
    };
    reflect(&mut w, [1, SIDE]);
    reflect(&mut w, [SIDE, 1]);
    let w: Vec<f32> = w.iter().map(|&x| x as f32).collect();
    for (got, expected) in singular_values(&w).iter().zip((1..=SIDE).rev()) {
        assert!((got - expected as f64).abs() <= 1e-4, "{got} {expected}");
    }
}
