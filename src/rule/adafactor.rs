//! Adafactor. Its device code is `shaders/rule/adafactor.wgsl`, with the passes in `shaders/factored/`.

use super::{HostRule, LARGEST_FACTORED, LastStep, Rule, RuleKind, Traits, UpdateRule, decay_of, owner};
use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::{RuleNumbers, Update};
use crate::plan::{Stack, TensorWork};
use crate::reference::RuleStep;

/// Adafactor (Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 and 5; `torch.optim.Adafactor`). It is RMSprop with
/// factored second moments: a matrix keeps 4 bytes for each row and each column. Other tensors keep 4 bytes per
/// parameter.
///
/// For a tensor with a [`shape`](crate::Group::shaped_tensor) of two dimensions or more, each R × C matrix of its last
/// two dimensions has means of squares for rows and columns. With `s_k = k^-c` and c = `fall`, at the k-th step that
/// was not skipped:
///
/// ```text
/// r_i ← (1 - s_k) r_i + s_k mean_j g_ij²        c_j ← (1 - s_k) c_j + s_k mean_i g_ij²
/// v_ij = r_i c_j / max(mean_i r_i, ε)
/// x = g / √max(v, ε²)        u = x / max(1, RMS(x) / d)
/// ```
///
/// RMS(x) is the root mean square over the tensor, so that no direction is longer than `d √elements`. Tensors of one
/// dimension or without a shape have a v for each element: `v ← (1 - s_k) v + s_k g²`.
///
/// - There is no momentum. Seesaw and Hypergradient therefore keep 1 byte per parameter to measure their alignment.
///   Other regimes keep nothing.
/// - The paper's step is relative to the parameters: `max(ε₂, RMS(w))` times the rate. In this crate the regime sets
///   the rate. For relative steps give the group a [`TrustRatio`](crate::TrustRatio) with a coefficient of 1 and ε₂ as
///   its least value, and [`Group::per_tensor`](crate::Group::per_tensor).
/// - A gradient element above 1.1e12 counts as 1.1e12, so that sums of squares stay within f32.
/// - The rule needs whole tensors. It is refused with [`sharded`](crate::OptimizerBuilder::sharded) optimizers, with
///   regimes that use the last direction, and for tensors that do not fit into one binding of the device.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Adafactor {
    /// c, from 0.1 to 1. The paper and PyTorch use 0.8. PyTorch's `beta2_decay` is -c.
    pub fall: f32,
    /// ε, from 1e-18 to 1. PyTorch uses 2⁻²³.
    pub epsilon: f32,
    /// d, the largest root mean square of a direction. It is finite, above 0 and not denormal. The paper and PyTorch
    /// use 1.
    pub limit: f32,
}

const DEFAULT: Adafactor = Adafactor { fall: 0.8, epsilon: f32::EPSILON, limit: 1.0 };

impl Default for Adafactor {
    fn default() -> Self {
        DEFAULT
    }
}

impl Rule {
    /// Returns Adafactor with PyTorch's c = 0.8, ε = 2⁻²³, d = 1.
    pub fn adafactor() -> Self {
        Rule::Adafactor(DEFAULT)
    }
}

pub(super) fn examples() -> [Adafactor; 1] {
    [DEFAULT]
}

impl UpdateRule for Adafactor {
    fn name(&self) -> &'static str {
        "adafactor"
    }

    fn summary(&self) -> &'static str {
        "The gradient over the root of second moments of rows and columns, with PyTorch's defaults"
    }

    fn with_momentum(&self, _: f32) -> Rule {
        Rule::Adafactor(*self)
    }

    fn kind(&self) -> RuleKind {
        RuleKind::Adafactor
    }

    fn kind_for(&self, dimensions: &[usize]) -> RuleKind {
        match Stack::of(dimensions) {
            Some(_) => RuleKind::AdafactorFactored,
            None => RuleKind::Adafactor,
        }
    }

    fn work(&self, dimensions: &[usize]) -> Option<TensorWork> {
        Some(TensorWork::Limited { limit: self.limit, stack: Stack::of(dimensions) })
    }

    fn first_step(&self, _: &Averaging) -> f32 {
        0.05
    }

    fn numbers(&self) -> RuleNumbers {
        RuleNumbers {
            // Bias corrections of 1.
            first_decay: decay_of(0.0),
            second_decay: decay_of(0.0),
            epsilon: self.epsilon,
            square_fall: self.fall,
            ..RuleNumbers::default()
        }
    }

    fn validate(&self) -> Result<(), Error> {
        let in_range = (0.1..=1.0).contains(&self.fall);
        require(in_range, || owner(self), "fall", self.fall, "from 0.1 to 1 (0.8 in PyTorch, where it is negative)")?;
        // ε² must not be denormal.
        let in_range = (1e-18..=1.0).contains(&self.epsilon);
        require(in_range, || owner(self), "epsilon", self.epsilon, "from 1e-18 to 1 (1.19e-7 in PyTorch)")?;
        let in_range = self.limit.is_finite() && self.limit >= f32::MIN_POSITIVE;
        require(in_range, || owner(self), "limit", self.limit, "finite, above 0 and not denormal (1 in PyTorch)")
    }

    fn reference(&self, step: &mut RuleStep) -> Vec<f64> {
        let g: Vec<f64> = step.g.iter().map(|g| g.clamp(-1.099_511_6e12, 1.099_511_6e12)).collect();
        let share = step.k.powf(-f64::from(self.fall));
        let epsilon = f64::from(self.epsilon);
        let last = step.moments.v.take().unwrap_or_default();
        let mut last = last.into_iter();
        let mut moments = Vec::new();
        let mut directions = Vec::with_capacity(g.len());
        for shape in step.shapes {
            let elements = shape.iter().product();
            let g = &g[directions.len()..][..elements];
            let mut next = |new: f64| {
                let next = step.mix(1.0 - share, last.next().unwrap_or(0.0), share, new);
                moments.push(next);
                next
            };
            let mut v = Vec::with_capacity(elements);
            if let [.., rows, columns] = shape[..] {
                let mean = |squares: Vec<f64>| squares.iter().sum::<f64>() / squares.len() as f64;
                let matrices: Vec<&[f64]> = if elements > 0 { g.chunks(rows * columns).collect() } else { vec![] };
                let square_of = |g: &[f64], row, column| -> f64 { g[row * columns + column] * g[row * columns + column] };
                let of_rows = matrices.iter().flat_map(|g| {
                    (0..rows).map(move |row| (0..columns).map(|column| square_of(g, row, column)).collect())
                });
                let of_rows: Vec<f64> = of_rows.map(|squares| next(mean(squares))).collect();
                let of_columns = matrices.iter().flat_map(|g| {
                    (0..columns).map(move |column| (0..rows).map(|row| square_of(g, row, column)).collect())
                });
                let of_columns: Vec<f64> = of_columns.map(|squares| next(mean(squares))).collect();
                if elements > 0 {
                    for (r, c) in of_rows.chunks(rows).zip(of_columns.chunks(columns)) {
                        let mean = mean(r.to_vec()).max(epsilon);
                        v.extend(r.iter().flat_map(|r| c.iter().map(move |c| r * c / mean)));
                    }
                }
            } else {
                v.extend(g.iter().map(|g| next(g * g)));
            }
            let x: Vec<f64> = g.iter().zip(&v).map(|(g, v)| g / v.max(epsilon * epsilon).sqrt()).collect();
            let rms = crate::reference::norm(&x) / (elements.max(1) as f64).sqrt();
            directions.extend(x.iter().map(|x| x / (rms / f64::from(self.limit)).max(1.0)));
        }
        step.moments.v = Some(moments);
        directions
    }
}

/// Returns g / √v. The limit is applied later, as a factor of the rate.
#[inline(always)]
fn normalized(update: &Update, g: f32, v: f32) -> f32 {
    let smallest = update.epsilon * update.epsilon;
    g.clamp(-LARGEST_FACTORED, LARGEST_FACTORED) / (if v > smallest { v } else { smallest }).sqrt()
}

/// Direction of tensors with a second moment for each element.
pub(crate) struct Limited;

impl HostRule for Limited {
    const TRAITS: Traits = Traits { features: &["adafactor"], squares: true, limited: true, ..Traits::PLAIN };

    #[inline(always)]
    fn direction(update: &Update, g: f32, _: f32, _: f32, v: f32) -> f32 {
        normalized(update, g, v)
    }

    /// Returns NaN, because the limit of the last step is not kept. Regimes that need the last direction refuse the
    /// rule.
    fn last_direction(_: &LastStep) -> f32 {
        f32::NAN
    }
}

/// Direction of matrices with second moments of rows and columns.
pub(crate) struct Factored;

impl HostRule for Factored {
    const TRAITS: Traits = Traits { features: &["adafactor"], factored: true, limited: true, ..Traits::PLAIN };

    #[inline(always)]
    fn direction(update: &Update, g: f32, _: f32, _: f32, v: f32) -> f32 {
        normalized(update, g, v)
    }

    /// Returns NaN, as [`Limited`] does.
    fn last_direction(_: &LastStep) -> f32 {
        f32::NAN
    }
}
