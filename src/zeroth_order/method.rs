//! How the directions of a zeroth-order optimizer are drawn and followed.

use super::tables::MOST_RANK;
use crate::error::{Error, require};

/// How a zeroth-order optimizer draws its directions `z`, and how it follows them.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum ZerothOrderMethod {
    /// MeZO (Malladi et al., arXiv:2305.17333, algorithm 1): `z` is standard normal in every element.
    Mezo,
    /// LOZO (Chen et al., arXiv:2410.07698): for a matrix of m rows and n columns `Z = U Vᵀ`, where U is m x r and V is
    /// n x r, both standard normal. U is drawn anew in each step and V in each `interval` steps, so that all steps of
    /// an interval lie in one subspace. Vectors are perturbed as by MeZO.
    ///
    /// **The paper divides by r, the authors' code does not.** This crate follows the code, `W ← W - η c U Vᵀ`. The
    /// mean of `c U Vᵀ` is then r times the gradient, and the rate that is meant by a rate η of the paper is η/r here.
    Lozo {
        /// r, the rank, from 1 to 32.
        rank: u32,
        /// ν, the number of steps with the same V, at least 1.
        interval: u32,
    },
    /// LOZO with momentum (LOZO-M, the same paper): `M ← β M + (1 - β) c U` and `W ← W - η M Vᵀ`, which takes m x r
    /// numbers for a matrix of m rows instead of m x n. At a new V the momentum is projected, `M ← M (V_oldᵀ V_new)/n`,
    /// so that M Vᵀ remains about what it was. The first step that is taken has `M = c U`. Vectors have an ordinary
    /// momentum.
    LozoM {
        /// r, the rank, from 1 to 32.
        rank: u32,
        /// ν, the number of steps with the same V, at least 1.
        interval: u32,
        /// β, at least 0 and below 1.
        momentum: f32,
    },
}

impl ZerothOrderMethod {
    /// Returns [`ZerothOrderMethod::Mezo`].
    pub fn mezo() -> Self {
        ZerothOrderMethod::Mezo
    }

    /// Returns [`ZerothOrderMethod::Lozo`] with rank 2 and a new V in each 50 steps, the values of the authors'
    /// scripts.
    pub fn lozo() -> Self {
        ZerothOrderMethod::Lozo { rank: 2, interval: 50 }
    }

    /// Returns [`ZerothOrderMethod::LozoM`] with rank 2, a new V in each 50 steps and β = 0.9, the values of the
    /// authors' scripts.
    pub fn lozo_m() -> Self {
        ZerothOrderMethod::LozoM { rank: 2, interval: 50, momentum: 0.9 }
    }

    /// Returns `mezo`, `lozo` or `lozo-m`.
    pub fn name(&self) -> &'static str {
        match self {
            ZerothOrderMethod::Mezo => "mezo",
            ZerothOrderMethod::Lozo { .. } => "lozo",
            ZerothOrderMethod::LozoM { .. } => "lozo-m",
        }
    }

    /// Returns rank and interval.
    pub(crate) fn low_rank(&self) -> Option<(u32, u32)> {
        match *self {
            ZerothOrderMethod::Mezo => None,
            ZerothOrderMethod::Lozo { rank, interval } | ZerothOrderMethod::LozoM { rank, interval, .. } => {
                Some((rank, interval))
            }
        }
    }

    /// Returns β.
    pub(crate) fn momentum(&self) -> Option<f32> {
        match *self {
            ZerothOrderMethod::LozoM { momentum, .. } => Some(momentum),
            _ => None,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let owner = || format!("zeroth-order method {}", self.name());
        if let Some((rank, interval)) = self.low_rank() {
            require((1..=MOST_RANK).contains(&rank), owner, "rank", rank, "between 1 and 32")?;
            require(interval >= 1, owner, "interval", interval, "at least 1")?;
        }
        let momentum = self.momentum().unwrap_or(0.0);
        require((0.0..1.0).contains(&momentum), owner, "momentum", momentum, "at least 0 and below 1")
    }
}
