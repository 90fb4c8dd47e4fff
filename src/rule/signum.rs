//! Signum, which is signSGD with momentum. Its device code is `shaders/rule/signum.wgsl`.

use super::{HostRule, LastStep, Rule, RuleKind, Traits, UpdateRule, require_share, sign};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::{RuleNumbers, Update};
use crate::reference::{self, RuleStep};

/// Signum: `m ← β m + (1-β) g`, `u = sign(m)` (Bernstein et al. 2018, arXiv:1802.04434, algorithm 2). It keeps m, 4
/// bytes per parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Signum {
    /// β in `[0, 1)`.
    pub momentum: f32,
}

impl Rule {
    /// Returns Signum with momentum `β`.
    pub fn signum(momentum: f32) -> Self {
        Rule::Signum(Signum { momentum })
    }
}

pub(super) fn examples() -> [Signum; 1] {
    [Signum { momentum: 0.9 }]
}

impl UpdateRule for Signum {
    fn name(&self) -> &'static str {
        "signum"
    }

    fn summary(&self) -> &'static str {
        "The sign of the momentum"
    }

    fn with_momentum(&self, momentum: f32) -> Rule {
        Rule::Signum(Self { momentum })
    }

    fn kind(&self) -> RuleKind {
        RuleKind::Signum
    }

    fn first_step(&self, _: &Averaging) -> f32 {
        0.03
    }

    fn numbers(&self) -> RuleNumbers {
        RuleNumbers {
            momentum: self.momentum,
            gradient_share: 1.0 - self.momentum,
            direction_momentum: self.momentum,
            ..RuleNumbers::default()
        }
    }

    fn validate(&self) -> Result<(), Error> {
        require_share(self, "momentum", self.momentum)
    }

    fn reference(&self, step: &mut RuleStep) -> Vec<f64> {
        let beta = f64::from(self.momentum);
        let (_, m) = step.next_momentum(beta, 1.0 - beta);
        m.iter().map(|&m| reference::sign(m)).collect()
    }
}

/// Direction from the signs of the momentum.
pub(crate) struct MomentumSigns;

impl HostRule for MomentumSigns {
    const TRAITS: Traits = Traits { features: &["signum"], momentum: true, sign: true, ..Traits::PLAIN };

    #[inline(always)]
    fn direction(_: &Update, _: f32, _: f32, m: f32, _: f32) -> f32 {
        sign(m)
    }

    #[inline(always)]
    fn last_direction(step: &LastStep) -> f32 {
        sign(step.m)
    }
}
