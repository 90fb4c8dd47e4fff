//! Two problems whose Jacobians are computed exactly on the host.

use std::f64::consts::{FRAC_PI_2, PI};

use rand::{Rng, RngExt};

/// Least-squares problem. A step changes the parameters by `rate · Jᵀ (J Jᵀ + λ I)⁻¹ r`.
pub trait Problem {
    /// Returns J, row by row, and r.
    fn system(&self, parameters: &[f64]) -> (Vec<f64>, Vec<f64>);
}

/// Circuit of three qubits: four layers, each a rotation RY of every qubit and a ring of CNOTs. Its outputs are the
/// probabilities of the eight outcomes for each of the eight basis states as input, and the target is those of a circuit
/// with other angles.
pub struct Circuit {
    target: Vec<f64>,
}

impl Circuit {
    const QUBITS: usize = 3;
    const LAYERS: usize = 4;
    pub const ANGLES: usize = Self::QUBITS * Self::LAYERS;
    pub const ROWS: usize = 64;

    pub fn random_angles(random: &mut impl Rng) -> Vec<f64> {
        (0..Self::ANGLES).map(|_| random.random_range(-PI..PI)).collect()
    }

    pub fn new(teacher: &[f64]) -> Self {
        Circuit { target: Self::probabilities(teacher) }
    }

    fn probabilities(angles: &[f64]) -> Vec<f64> {
        let states = 1 << Self::QUBITS;
        let outputs = (0..states).flat_map(|input| {
            let mut state = vec![0.0; states];
            state[input] = 1.0;
            for layer in angles.chunks(Self::QUBITS) {
                for (qubit, angle) in layer.iter().enumerate() {
                    let (sine, cosine) = (angle / 2.0).sin_cos();
                    for low in (0..states).filter(|index| index >> qubit & 1 == 0) {
                        let high = low | 1 << qubit;
                        let (a, b) = (state[low], state[high]);
                        (state[low], state[high]) = (cosine * a - sine * b, sine * a + cosine * b);
                    }
                }
                for control in 0..Self::QUBITS {
                    let target = 1 << ((control + 1) % Self::QUBITS);
                    let of_control = (0..states).filter(|index| index >> control & 1 == 1);
                    of_control.filter(|index| index & target == 0).for_each(|index| state.swap(index, index | target));
                }
            }
            state.into_iter().map(|amplitude| amplitude * amplitude)
        });
        outputs.collect()
    }

    /// Returns the mean over the inputs of the squared distance of the probabilities.
    pub fn loss(&self, angles: &[f64]) -> f64 {
        let differences = self.target.iter().zip(Self::probabilities(angles)).map(|(target, p)| target - p);
        differences.map(|difference| difference * difference).sum::<f64>() / 8.0
    }
}

impl Problem for Circuit {
    /// The derivatives come from the parameter-shift rule.
    fn system(&self, angles: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let shifted = |index: usize, by: f64| {
            let mut angles = angles.to_vec();
            angles[index] += by;
            Self::probabilities(&angles)
        };
        let columns: Vec<[Vec<f64>; 2]> =
            (0..angles.len()).map(|index| [FRAC_PI_2, -FRAC_PI_2].map(|by| shifted(index, by))).collect();
        let rows = 0..Self::ROWS;
        let jacobian = rows.flat_map(|row| columns.iter().map(move |[up, down]| 0.5 * (up[row] - down[row]))).collect();
        let residuals = self.target.iter().zip(Self::probabilities(angles)).map(|(target, p)| target - p).collect();
        (jacobian, residuals)
    }
}

/// Ground state of the transverse-field Ising chain of eight spins with periodic ends at its critical field, as a
/// restricted Boltzmann machine with eight hidden units. Sums are over all 256 configurations. The step is stochastic
/// reconfiguration: with `J = √p (∂ ln ψ - mean)` and `r = √p (local energy - mean)`, `Δ = -(S + λ I)⁻¹ F`.
pub struct Ising {
    pub ground_energy: f64,
}

impl Ising {
    const SPINS: usize = 8;
    pub const ROWS: usize = 1 << Self::SPINS;
    pub const PARAMETERS: usize = 2 * Self::SPINS + Self::SPINS * Self::SPINS;

    pub fn new() -> Self {
        // Free fermions: the energy is minus the sum of the single-particle energies with antiperiodic momenta.
        let momenta = (0..Self::SPINS).map(|k| PI * (2 * k + 1) as f64 / Self::SPINS as f64);
        Ising { ground_energy: -momenta.map(|k| (2.0 + 2.0 * k.cos()).sqrt()).sum::<f64>() }
    }

    fn spin(configuration: usize, site: usize) -> f64 {
        if configuration >> (site % Self::SPINS) & 1 == 1 { 1.0 } else { -1.0 }
    }

    /// Returns the inputs of the hidden units.
    fn inputs(parameters: &[f64], configuration: usize) -> Vec<f64> {
        let (biases, weights) = parameters[Self::SPINS..].split_at(Self::SPINS);
        let rows = weights.chunks(Self::SPINS);
        let dot = |row: &[f64]| (0..).zip(row).map(|(site, w)| w * Self::spin(configuration, site)).sum::<f64>();
        biases.iter().zip(rows).map(|(bias, row)| bias + dot(row)).collect()
    }

    /// Returns probabilities, local energies and the energy.
    fn energies(&self, parameters: &[f64]) -> (Vec<f64>, Vec<f64>, f64) {
        let ln_psi = |configuration: usize| {
            let visible = (0..Self::SPINS).map(|site| parameters[site] * Self::spin(configuration, site)).sum::<f64>();
            visible + Self::inputs(parameters, configuration).iter().map(|x| x.cosh().ln()).sum::<f64>()
        };
        let ln_psi: Vec<f64> = (0..Self::ROWS).map(ln_psi).collect();
        let largest = ln_psi.iter().fold(f64::MIN, |a, &b| a.max(b));
        let state: Vec<f64> = ln_psi.iter().map(|ln| (ln - largest).exp()).collect();
        let weights: Vec<f64> = state.iter().map(|psi| psi * psi).collect();
        let total: f64 = weights.iter().sum();
        let p: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        let local: Vec<f64> = self.hamiltonian(&state).iter().zip(&state).map(|(product, psi)| product / psi).collect();
        let energy = p.iter().zip(&local).map(|(p, local)| p * local).sum();
        (p, local, energy)
    }

    /// Returns the energy.
    pub fn energy(&self, parameters: &[f64]) -> f64 {
        self.energies(parameters).2
    }

    /// Returns the amplitudes of the normalized state, in the order of the configurations.
    pub fn amplitudes(&self, parameters: &[f64]) -> Vec<f64> {
        self.energies(parameters).0.into_iter().map(f64::sqrt).collect()
    }

    /// Returns the product of the Hamiltonian and a state.
    pub fn hamiltonian(&self, state: &[f64]) -> Vec<f64> {
        let product = |configuration: usize| {
            let bonds = (0..Self::SPINS).map(|s| Self::spin(configuration, s) * Self::spin(configuration, s + 1));
            let flips = (0..Self::SPINS).map(|s| state[configuration ^ 1 << s]);
            -bonds.sum::<f64>() * state[configuration] - flips.sum::<f64>()
        };
        (0..Self::ROWS).map(product).collect()
    }

    /// Returns a lower bound of all energies: each bond and each field contributes at least -1.
    pub fn lower_bound() -> f64 {
        -2.0 * Self::SPINS as f64 - 1.0
    }

    /// Returns the distance of the energy from that of the ground state, relative to it.
    pub fn error(&self, parameters: &[f64]) -> f64 {
        ((self.energy(parameters) - self.ground_energy) / self.ground_energy).abs()
    }
}

impl Problem for Ising {
    fn system(&self, parameters: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (p, local, energy) = self.energies(parameters);
        let derivatives = |configuration: usize| -> Vec<f64> {
            let spins: Vec<f64> = (0..Self::SPINS).map(|site| Self::spin(configuration, site)).collect();
            let units: Vec<f64> = Self::inputs(parameters, configuration).iter().map(|x| x.tanh()).collect();
            let products = units.iter().flat_map(|unit| spins.iter().map(move |spin| unit * spin));
            spins.iter().chain(&units).copied().chain(products).collect()
        };
        let rows: Vec<Vec<f64>> = (0..Self::ROWS).map(derivatives).collect();
        let mean = |column: usize| rows.iter().zip(&p).map(|(row, p)| p * row[column]).sum::<f64>();
        let means: Vec<f64> = (0..Self::PARAMETERS).map(mean).collect();
        let centred = |(row, p): (&Vec<f64>, &f64)| -> Vec<f64> {
            row.iter().zip(&means).map(|(x, mean)| p.sqrt() * (x - mean)).collect()
        };
        let jacobian = rows.iter().zip(&p).flat_map(centred).collect();
        // The parameters descend.
        let residuals = p.iter().zip(&local).map(|(p, local)| -p.sqrt() * (local - energy)).collect();
        (jacobian, residuals)
    }
}
