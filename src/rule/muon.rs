//! Muon. Its device code is `shaders/rule/muon.wgsl`, with the passes in `shaders/orthogonalize/`.

use super::{HostRule, LastStep, Rule, RuleKind, Traits, UpdateRule, WeightDecay, owner, require_epsilon, require_share};
use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::{RuleNumbers, Update};
use crate::plan::{MatrixNumbers, Shape, TensorWork};
use crate::reference::RuleStep;

/// Muon (Keller Jordan 2024, <https://kellerjordan.github.io/posts/muon/>; `torch.optim.Muon`): `m ← μ m + (1-μ) g`,
/// and the direction is the orthogonal matrix nearest to the momentum. It keeps m, 4 bytes per parameter.
///
/// With `x = μ m + (1-μ) g` (Nesterov) or `x = m`, and `X = x / max(‖x‖, ε)`, transposed if it has more rows than
/// columns, the Newton–Schulz iteration `X ← a X + (b A + c A²) X`, `A = X Xᵀ`, is repeated `iterations` times. It
/// brings the singular values near 1: between 0.7 and 1.2 with the usual coefficients. The direction is X times a
/// factor that depends on the shape ([`scale`](Muon::scale)).
///
/// PyTorch iterates in bf16. This crate iterates in f32 or, if asked to and the device supports it, in f16
/// ([`precision`](Muon::precision)). The matrices between two iterations take 8 bytes per parameter and two squares of
/// the short side, beside the momentum. They are not part of a checkpoint.
///
/// The rule trains only matrices: tensors whose [`shape`](crate::Group::shaped_tensor) has two dimensions or more. Name
/// a rule for the other tensors with [`Group::other_tensors`](crate::Group::other_tensors). Embeddings and the last
/// layer usually get another rule too.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Muon {
    /// μ in `[0, 1)`. PyTorch uses 0.95.
    pub momentum: f32,
    /// True for Nesterov momentum, which is PyTorch's default.
    pub nesterov: bool,
    /// Coefficients a, b, c of the iteration. The default is (3.4445, -4.775, 2.0315).
    pub coefficients: [f32; 3],
    /// Number of iterations, from 1 to 99. The default is 5.
    pub iterations: u32,
    /// ε, the smallest norm that x is divided by. The default is 1e-7.
    pub epsilon: f32,
    /// Factor of the direction.
    pub scale: MuonScale,
    /// Number format of the iteration on a device.
    pub precision: MuonPrecision,
}

/// Number format in which Muon's iteration stores its matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum MuonPrecision {
    /// f32 on every device.
    F32,
    /// f16 on devices with [`Features::SHADER_F16`](crate::wgpu::Features::SHADER_F16), with sums in f32. Other devices
    /// and the CPU path use f32. Matrices in f16 take half the memory traffic and half the workgroup memory of f32.
    /// With 5 iterations the direction differs from that in f32 by about 0.2 % of its length, as measured on lavapipe.
    /// Rounding errors of PyTorch's bf16 are 8 times as large.
    F16,
}

/// Factor of Muon's direction for a matrix of `rows × columns`, which PyTorch calls `adjust_lr_fn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum MuonScale {
    /// `√max(1, rows / columns)`, PyTorch's default `"original"`.
    Original,
    /// `0.2 √max(rows, columns)`, PyTorch's `"match_rms_adamw"`: the direction is about as long as AdamW's (Liu et al.
    /// 2025, arXiv:2502.16982, equation 4). This is the default here, because regimes set one rate for all layers.
    MatchRmsAdamW,
    /// `√(rows / columns)`, PyTorch's `"spectral_unclamped"`.
    Spectral,
}

const DEFAULT: Muon = Muon {
    momentum: 0.95,
    nesterov: true,
    coefficients: [3.4445, -4.775, 2.0315],
    iterations: 5,
    epsilon: 1e-7,
    scale: MuonScale::MatchRmsAdamW,
    precision: MuonPrecision::F32,
};

impl Rule {
    /// Returns Muon with PyTorch's constants and [`MuonScale::MatchRmsAdamW`].
    pub fn muon() -> Self {
        Rule::Muon(DEFAULT)
    }
}

impl Default for Muon {
    fn default() -> Self {
        DEFAULT
    }
}

pub(super) fn examples() -> [Muon; 1] {
    [DEFAULT]
}

impl UpdateRule for Muon {
    fn name(&self) -> &'static str {
        "muon"
    }

    fn summary(&self) -> &'static str {
        "The orthogonal matrix nearest to the momentum"
    }

    fn with_momentum(&self, momentum: f32) -> Rule {
        Rule::Muon(Self { momentum, ..*self })
    }

    fn usual_weight_decay(&self) -> WeightDecay {
        WeightDecay::Decoupled(0.1)
    }

    fn kind(&self) -> RuleKind {
        RuleKind::Muon
    }

    /// Returns ε. With momentum, a gradient moves the parameters 1/(1 - μ) times as far as its first step does.
    fn first_step(&self, _: &Averaging) -> f32 {
        (0.105 * (1.0 - self.momentum)).min(0.05)
    }

    fn numbers(&self) -> RuleNumbers {
        RuleNumbers {
            momentum: self.momentum,
            gradient_share: 1.0 - self.momentum,
            direction_momentum: if self.nesterov { self.momentum } else { 1.0 },
            ..RuleNumbers::default()
        }
    }

    fn work(&self, dimensions: &[usize]) -> Option<TensorWork> {
        let shape = Shape::of(dimensions)?;
        let (rows, columns) = (shape.rows as f64, shape.columns as f64);
        let scale = match self.scale {
            MuonScale::Original => (rows / columns).max(1.0).sqrt(),
            MuonScale::MatchRmsAdamW => 0.2 * rows.max(columns).sqrt(),
            MuonScale::Spectral => (rows / columns).sqrt(),
        };
        // A matrix without elements has no direction.
        let scale = if shape.short() == 0 { 0.0 } else { scale as f32 };
        Some(TensorWork::Matrix(MatrixNumbers { shape, coefficients: self.coefficients, epsilon: self.epsilon, scale }))
    }

    fn iterations(&self) -> u32 {
        self.iterations
    }

    fn half_iterates(&self) -> bool {
        self.precision == MuonPrecision::F16
    }

    fn validate(&self) -> Result<(), Error> {
        require_share(self, "momentum", self.momentum)?;
        let in_range = (1..100).contains(&self.iterations);
        require(in_range, || owner(self), "iterations", self.iterations, "between 1 and 99")?;
        for coefficient in self.coefficients {
            // With larger coefficients the iterates overflow f32.
            let in_range = coefficient.abs() <= 10.0;
            require(in_range, || owner(self), "coefficients", coefficient, "between -10 and 10")?;
        }
        require_epsilon(self, self.epsilon, "finite, above 0 and not denormal")
    }

    fn reference(&self, step: &mut RuleStep) -> Vec<f64> {
        let mu = f64::from(self.momentum);
        let (_, m) = step.next_momentum(mu, 1.0 - mu);
        let x: Vec<f64> = match self.nesterov {
            true => m.iter().zip(step.g).map(|(m, g)| mu * m + (1.0 - mu) * g).collect(),
            false => m,
        };
        let mut direction = Vec::with_capacity(x.len());
        for shape in step.shapes {
            let (rows, columns) = (shape[0], shape[1..].iter().product());
            let x = &x[direction.len()..][..rows * columns];
            let transposed = |x: &[f64], rows: usize, columns: usize| -> Vec<f64> {
                (0..columns * rows).map(|i| x[i % rows * columns + i / rows]).collect()
            };
            // Multiplies a (n × k) by b (k × m).
            let product = |a: &[f64], b: &[f64], k: usize, m: usize| -> Vec<f64> {
                let rows = a.chunks_exact(k);
                let of_row = |row: &[f64]| -> Vec<f64> {
                    let mut sums = vec![0.0; m];
                    for (a, b) in row.iter().zip(b.chunks_exact(m)) {
                        sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
                    }
                    sums
                };
                rows.flat_map(of_row).collect()
            };
            let swaps = rows > columns;
            let (short, long) = if swaps { (columns, rows) } else { (rows, columns) };
            let mut x = if swaps { transposed(x, rows, columns) } else { x.to_vec() };
            let norm = crate::reference::norm(&x).max(f64::from(self.epsilon));
            x.iter_mut().for_each(|x| *x /= norm);
            let [a, b, c] = self.coefficients.map(f64::from);
            for _ in 0..self.iterations {
                if x.is_empty() {
                    break;
                }
                let gram = product(&x, &transposed(&x, short, long), long, short);
                let square = product(&gram, &gram, short, short);
                let update: Vec<f64> = gram.iter().zip(square).map(|(gram, square)| b * gram + c * square).collect();
                x = x.iter().zip(product(&update, &x, short, long)).map(|(x, moved)| a * x + moved).collect();
            }
            let scale = match self.scale {
                MuonScale::Original => (rows as f64 / columns as f64).max(1.0).sqrt(),
                MuonScale::MatchRmsAdamW => 0.2 * (long as f64).sqrt(),
                MuonScale::Spectral => (rows as f64 / columns as f64).sqrt(),
            };
            let x = if swaps { transposed(&x, short, long) } else { x };
            direction.extend(x.iter().map(|x| scale * x));
        }
        direction
    }
}

/// Direction computed by the passes over matrices.
pub(crate) struct Orthogonal;

impl HostRule for Orthogonal {
    const TRAITS: Traits = Traits { features: &["muon"], momentum: true, matrices: true, ..Traits::PLAIN };

    #[inline(always)]
    fn direction(_: &Update, _: f32, _: f32, _: f32, v: f32) -> f32 {
        v
    }

    /// Returns NaN, because the last direction cannot be computed from the momentum. Regimes that need it refuse the
    /// rule.
    fn last_direction(_: &LastStep) -> f32 {
        f32::NAN
    }
}
