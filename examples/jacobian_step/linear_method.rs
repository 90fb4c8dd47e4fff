//! The linear method of Frank and Kastoryano (arXiv:2104.11011), with the constants of its implementation for NetKet.
//!
//! Near the parameters the state is ψ + Σ Δᵢ ψᵢ, with the derivatives ψᵢ minus their part along ψ. The lowest energy of
//! such states is the smallest eigenvalue of A v = E B v, with A = [ψ ψ₁ …]ᵀ H [ψ ψ₁ …] and B = [ψ ψ₁ …]ᵀ [ψ ψ₁ …].
//! Its eigenvector gives the step Δᵢ = vᵢ/v₀. A shift `a` on A's diagonal, except its first element, keeps the step
//! short. The shift of each step is found from the energies after steps with a/10, a and 10 a.

use nalgebra::{Cholesky, DMatrix, DVector, Dyn};

use super::problems::{Ising, Problem};

/// Share of the normalization at the end of a step (ξ of J. Toulouse and C. Umrigar).
const XI: f64 = 0.5;

/// Shift that was found in the last step.
pub struct LinearMethod {
    shift: f64,
}

impl LinearMethod {
    pub fn new() -> Self {
        LinearMethod { shift: 1.0 }
    }

    /// Returns the step from these parameters.
    pub fn step(&mut self, problem: &Ising, parameters: &[f64]) -> Vec<f64> {
        let system = System::new(problem, parameters);
        let moved = |step: &[f64]| parameters.iter().zip(step).map(|(w, step)| w + step).collect::<Vec<f64>>();
        let energy = |shift: f64| problem.energy(&moved(&system.step(shift)));
        let shifts = [0.1, 1.0, 10.0].map(|factor| factor * self.shift);
        self.shift *= 10f64.powf(lowest(shifts.map(energy)));
        system.step(self.shift)
    }
}

/// Returns the minimum point between -1 and 1 of the parabola through these values at -1, 0 and 1. If it has none there,
/// returns the lowest of the three points.
fn lowest([left, middle, right]: [f64; 3]) -> f64 {
    let bend = left + right - 2.0 * middle;
    let at = 0.5 * (left - right) / bend;
    if bend > 0.0 && at.abs() <= 1.0 {
        at
    } else if left < middle.min(right) {
        -1.0
    } else if right < middle {
        1.0
    } else {
        0.0
    }
}

/// A and B.
struct System {
    energies: DMatrix<f64>,
    overlaps: DMatrix<f64>,
}

impl System {
    fn new(problem: &Ising, parameters: &[f64]) -> Self {
        let derivatives = DMatrix::from_row_slice(Ising::ROWS, Ising::PARAMETERS, &problem.system(parameters).0);
        let mut states = derivatives.insert_column(0, 0.0);
        states.set_column(0, &DVector::from(problem.amplitudes(parameters)));
        let products = states.column_iter().map(|state| DVector::from(problem.hamiltonian(state.as_slice())));
        let products = DMatrix::from_columns(&products.collect::<Vec<_>>());
        System { energies: states.transpose() * products, overlaps: states.transpose() * states }
    }

    /// Returns the step of a shift.
    fn step(&self, shift: f64) -> Vec<f64> {
        // With s below all eigenvalues A - s B = L Lᵀ, and 1/(E - s) is the largest eigenvalue of L⁻¹ B L⁻ᵀ.
        let mut shifted = &self.energies - Ising::lower_bound() * &self.overlaps;
        (1..shifted.nrows()).for_each(|i| shifted[(i, i)] += shift);
        let factor: DMatrix<f64> = Cholesky::<f64, Dyn>::new(shifted).expect("a positive definite matrix").l();
        let solve = |matrix: &DMatrix<f64>| factor.solve_lower_triangular(matrix).expect("a factor without zeros");
        let eigen = solve(&solve(&self.overlaps).transpose()).symmetric_eigen();
        let vector = eigen.eigenvectors.column(eigen.eigenvalues.imax());
        let vector = factor.tr_solve_lower_triangular(&vector).expect("a factor without zeros");
        let step = vector.rows_range(1..) / vector[0];
        // The normalization of the state changes with the step.
        let square = (step.transpose() * self.overlaps.view_range(1.., 1..) * &step)[0];
        let along = (1.0 - XI) * square / ((1.0 - XI) + XI * (1.0 + square).sqrt());
        (step / (1.0 + along)).data.into()
    }
}
