//! Distance over gradients on windows of steps, behind a gate that asks the norm.

use crate::rule::Rule;

/// Distance over gradients, measured anew on windows of doubling length, and a gate: **the rate rises only where the norm fell, and falls
/// only where it rose**, exactly, in f32.
///
/// This project's own method. It draws on: the property, and second-order reasoning by secants, of Z. Yang, arXiv:2508.13639 (of which we
/// had the abstract); distance over gradients of Ivgi, Hinder & Carmon, arXiv:2302.12022; the count-sketch of Charikar, Chen &
/// Farach-Colton 2002, by which no vector has to be kept.
///
/// With `g` the gradient, `n = ‖g‖`, `x = ln(n_t/n_{t-1})`, `u` the direction of the step, `P = Σ η u` the way and `A = Σ ‖u‖²`,
/// `V = Σ η² ‖u‖²` the sums since a window began, of K steps:
///
/// - **First step**: of length `r_0 (1 + ‖w_0‖)`, `r_0 = 1e-3`.
/// - **Ignition**. `ρ = (‖P‖²/V - 1)/(K-1)` is the mean cosine of the window's steps. Where `‖P‖²/V - 1 ≥ min((K-1)/2, 1)` they agree: the
///   rate becomes `√(V/A)` times the norm secant at equal norms, `1/√(2 (1-ρ))`, within `[2, 8]`, and a new window begins. The ignition
///   ends after 12 steps without a raise, or by an alarm that takes back the last raise: n has doubled since, or `‖P‖²/V - 1 ≤ -1/2`.
///   Momentum is off: with its lag the rate would rise too far.
/// - **Run**. `η̂ = min(r̄/√G, 4 level)`, `r̄ = max ‖P‖` and `G = c Σ ‖u‖²` as in distance over gradients; but after 16 steps, then 32, and
///   so on, a window is over: `level ← max ‖P‖/√(c A)`, at most 4 times the last, `G ← c A`, `r̄ ← level √G`, so that what the beginning was
///   like is forgotten. A window that still raised the level by more than 1.2 is followed by one of its length. `η̂ ≤ 2 η_{t-1}`.
/// - **Gate**, with `ν = η_{t-1} exp(-p x)`, `|x| ≤ ln 2`, the odd part of the norm secant for `p = 1/2`: `η = max(ν, η̂, η_{t-1})` where
///   the norm fell, `min(ν, η̂, η_{t-1})` where it rose, `η_{t-1}` where it stayed.
///
/// By rule:
/// - `Sgd`, `Sgdm`: `c = 1`. `‖u‖ = γ n`, `γ = (1-δ)/(1-μ)`: what a momentum comes to if all gradients are the same, so that η is a rate as
///   PyTorch has it, `1-μ` times that of the moving average. During the ignition `m = γ g`.
/// - `SignSgd`: `c = 1.5`, and the rate of the step is `η ‖g‖₁/d`: a step along signs does not shrink by itself as the gradient does, so
///   what the gate guards is η without that factor, and `‖u‖ = ‖g‖₁/√d`. The learning rate and its record have it, as the magnitude term;
///   a step changes the rate by at most a factor of ten.
/// - `AdamW`: as `SignSgd`. Over noise the moving average makes the direction shorter and its walk longer by the same factor.
/// - `Signum`: as `SignSgd`, but after the ignition `c = max(1.5, 1 + 2 Σ_k (2/π) asin β^k)` (13.3 for β = 0.9): the signs of a moving
///   average stay the same for a while even if gradients are pure noise, which must not look like a way (the arcsine law). `Lion`: so too,
///   with the autocorrelation of its own average (46.0 for 0.9 and 0.99).
///
/// `‖P‖` comes from a sketch of 256 sums, 1 KiB for each norm: a random sign times each element, `i mod 256`, which is exact for up to 256
/// parameters, and otherwise uncertain by 4 %. The update pass leaves it, block by block. It counts the steps without a schedule's
/// factor and without decoupled weight decay; a clip shortens `u`. Groups that share a norm share their way, and must have the same
/// rule, regime and clip.
///
/// It is for runs of hundreds of steps and more: the ignition alone takes some 20. There is no proof of convergence.
///
/// In the record: `norm_term` is `-p x`; `distance_term` and `history_term` what `r̄` and `G` did; `restart_term` what a new window did;
/// `clamp_term` the bound on growth; `gate_term` what the gate held back, or let go of what it had. During the ignition
/// `curvature_term` is all of it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct GatedDistance {
    /// `p = 1/2`.
    pub exponent: f32,
    /// `r_0 = 1e-3`.
    pub first_step: f32,
    /// `c`; `None` takes the rule's.
    pub energy_factor: Option<f32>,
}

impl Default for GatedDistance {
    fn default() -> Self {
        GatedDistance {
            exponent: 0.5,
            first_step: 1e-3,
            energy_factor: None,
        }
    }
}

impl GatedDistance {
    /// c when the ignition ends.
    pub(crate) fn energy_factor_at_first(&self, rule: Rule) -> f32 {
        self.energy_factor.unwrap_or(match rule {
            Rule::Sgd | Rule::Sgdm { .. } => 1.0,
            Rule::SignSgd | Rule::Signum { .. } | Rule::AdamW { .. } | Rule::Lion { .. } => 1.5,
        })
    }

    /// c after the ignition.
    pub(crate) fn energy_factor(&self, rule: Rule) -> f32 {
        let least = self.energy_factor_at_first(rule);
        match (self.energy_factor, rule) {
            (None, Rule::Signum { momentum }) => {
                inertia_of_signs(1.0, f64::from(momentum)).max(least)
            }
            (None, Rule::Lion { beta1, beta2 }) => {
                let (beta1, beta2) = (f64::from(beta1), f64::from(beta2));
                inertia_of_signs(first_correlation_of_lion(beta1, beta2), beta2).max(least)
            }
            _ => least,
        }
    }
}

/// How much longer than that of independent signs the random walk of the signs of an average over noise is, squared: with the average's
/// autocorrelation `a β^k`, `1 + 2 Σ_{k≥1} (2/π) asin (a β^k)`.
fn inertia_of_signs(a: f64, beta: f64) -> f32 {
    let decay = -beta.ln();
    // Of millions of terms, so many at a time, by the one in their middle.
    let stride = (1e-4 / decay).floor().max(1.0);
    let sum: f64 = (0..)
        .map(|j| (-decay * (stride * (f64::from(j) + 0.5) + 0.5)).exp())
        .take_while(|&power| power > 1e-9)
        .map(|power| stride * (a * power).asin())
        .sum();
    (1.0 + 4.0 / std::f64::consts::PI * sum) as f32
}

/// a of [`inertia_of_signs`] for Lion's average `β₁ m + (1-β₁) g`, whose weights of past gradients are `1-β₁`, then
/// `β₁ (1-β₂) β₂^{j-1}`: of independent gradients the autocorrelation falls by β₂ from the first on.
fn first_correlation_of_lion(beta1: f64, beta2: f64) -> f64 {
    let (now, then) = (1.0 - beta1, beta1 * (1.0 - beta2));
    let tail = then * then / (1.0 - beta2 * beta2);
    (now * then / beta2 + tail) / (now * now + tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inertia_of_signs_is_the_arcsine_laws() {
        assert_eq!(inertia_of_signs(1.0, 0.0), 1.0);
        for (beta, inertia) in [(0.9, 13.28), (0.95, 27.1), (0.99, 138.0)] {
            let got = inertia_of_signs(1.0, beta);
            assert!((got / inertia - 1.0).abs() <= 2e-3, "{beta}: {got}");
        }
        // Lion's signs, counted over noise in f64.
        let (lion, signum) = (first_correlation_of_lion(0.9, 0.99), 0.99);
        assert!((lion - 0.3536).abs() <= 1e-3, "{lion}");
        assert!(inertia_of_signs(lion, 0.99) < inertia_of_signs(1.0, signum));
        // With β₁ = β₂ it is Signum's average.
        assert!((first_correlation_of_lion(0.9, 0.9) - 1.0).abs() <= 1e-12);
        // The sum by ones and by strides meet.
        let (sum, integral) = (
            inertia_of_signs(1.0, 0.999_899),
            inertia_of_signs(1.0, 0.999_901),
        );
        assert!((0.97..1.0).contains(&(sum / integral)), "{sum} {integral}");
        assert!(inertia_of_signs(1.0, f64::from(1.0f32.next_down())).is_finite());
    }
}
