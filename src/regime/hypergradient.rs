//! Hypergradient, which uses only the alignment. Its device code is `shaders/regime/seesaw.wgsl`, with some constants
//! of 0.

use super::seesaw::{self, Seesaw};
use super::{Kernel, LearningRateRegime, Needs, Regime, require_first_step};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::RegimeConstants;
use crate::reference::RegimeReference;
use crate::rule::Rule;

/// Learning rate from the alignment alone. It is [`Seesaw`] with `p = 0`, similar to hypergradient descent (Baydin et
/// al. 2018, arXiv:1703.04782) but multiplicative and with the cosine weighted by `n/n̂`.
///
/// With SGD and momentum it diverges if a group begins at zero (a low-rank adapter). The first rate of the adapter's
/// other factor is set from a gradient far smaller than the later ones, and no norm lowers it again.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Hypergradient {
    /// κ, the gain of the alignment. The default is 0.1.
    pub gain: f32,
    /// h, as in [`Seesaw`]. The default is 5.
    pub early_steps: f32,
    /// β of the smoothed norm in the weight `n/n̂`. The default is 0.9.
    pub smoothing: f32,
    /// φ, as in [`Seesaw`]. The default is 1e-4.
    pub norm_floor: f32,
    /// ε, as in [`Seesaw`].
    pub first_step: Option<f32>,
}

impl Default for Hypergradient {
    fn default() -> Self {
        Hypergradient { gain: 0.1, early_steps: 5.0, smoothing: 0.9, norm_floor: 1e-4, first_step: None }
    }
}

impl Regime {
    /// Returns [`Hypergradient`] with gain 0.1.
    pub fn hypergradient() -> Self {
        Regime::Hypergradient(Hypergradient::default())
    }
}

pub(super) fn examples() -> [Hypergradient; 1] {
    [Hypergradient::default()]
}

impl Hypergradient {
    /// Returns the Seesaw that this regime is a special case of.
    fn as_seesaw(&self) -> Seesaw {
        Seesaw { 
            exponent: 0.0,
            exponent_above: 0.0,
            gain: self.gain,
            early_steps: self.early_steps,
            smoothing: self.smoothing,
            norm_floor: self.norm_floor,
            ..Seesaw::default()
         }
    }
}

impl LearningRateRegime for Hypergradient {
    fn name(&self) -> &'static str {
        "hypergradient"
    }

    fn summary(&self) -> &'static str {
        "The alignment alone"
    }

    fn kernel(&self) -> &'static Kernel {
        &seesaw::KERNEL
    }

    fn needs(&self) -> Needs {
        self.as_seesaw().needs()
    }

    fn first_step(&self, rule: &Rule, averaging: &Averaging) -> f32 {
        self.first_step.unwrap_or_else(|| rule.first_step(averaging))
    }

    fn smoothing(&self) -> f32 {
        self.as_seesaw().smoothing
    }

    fn norm_floor(&self) -> f32 {
        self.as_seesaw().norm_floor
    }

    fn constants(&self, rule: &Rule) -> RegimeConstants {
        self.as_seesaw().constants(rule)
    }

    fn validate(&self) -> Result<(), Error> {
        self.as_seesaw().validate_as(self)?;
        require_first_step(self, self.first_step, None)
    }

    fn reference(&self, rule: &Rule) -> Box<dyn RegimeReference> {
        self.as_seesaw().reference(rule)
    }
}
