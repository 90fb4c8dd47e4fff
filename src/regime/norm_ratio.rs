//! NormRatio, which uses only the gradient norm. Its device code is `shaders/regime/seesaw.wgsl`, with some constants
//! of 0.

use super::seesaw::{self, Seesaw};
use super::{Kernel, LearningRateRegime, Needs, Regime, require_factor, require_first_step, require_slow};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::RegimeConstants;
use crate::reference::RegimeReference;
use crate::rule::Rule;

/// Learning rate from the gradient norm alone: `ln η_t = ln η_0 + p ln(n̂_1/n̂_t)`. It keeps no memory per parameter.
///
/// The smoothed norm is the larger of the average and the present norm. The rate therefore drops at once when the norm
/// jumps, and recovers slowly.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct NormRatio {
    /// η of the first step. `None` derives it from the first step's length.
    pub initial_rate: Option<f32>,
    /// p, the exponent of the norm ratio. The default is 1.
    pub exponent: f32,
    /// β of the smoothed norm. The default is 0.9.
    pub smoothing: f32,
    /// φ, as in [`Seesaw`](crate::Seesaw). The default is 1e-4.
    pub norm_floor: f32,
    /// ε of the first step, as in [`Seesaw`](crate::Seesaw). It is used if `initial_rate` is `None`.
    pub first_step: Option<f32>,
}

impl Default for NormRatio {
    fn default() -> Self {
        NormRatio { initial_rate: None, exponent: 1.0, smoothing: 0.9, norm_floor: 1e-4, first_step: None }
    }
}

impl Regime {
    /// Returns [`NormRatio`] with exponent 1, smoothing 0.9 and the automatic first step.
    pub fn norm_ratio() -> Self {
        Regime::NormRatio(NormRatio::default())
    }
}

pub(super) fn examples() -> [NormRatio; 1] {
    [NormRatio::default()]
}

impl NormRatio {
    /// Returns the Seesaw that this regime is a special case of.
    fn as_seesaw(&self) -> Seesaw {
        Seesaw { 
            exponent: self.exponent,
            exponent_above: self.exponent,
            gain: 0.0,
            smoothing: self.smoothing,
            norm_floor: self.norm_floor,
            ..Seesaw::default()
         }
    }
}

impl LearningRateRegime for NormRatio {
    fn name(&self) -> &'static str {
        "norm-ratio"
    }

    fn summary(&self) -> &'static str {
        "The norm alone"
    }

    fn kernel(&self) -> &'static Kernel {
        &seesaw::KERNEL
    }

    fn needs(&self) -> Needs {
        Needs { initial_norm: self.initial_rate.is_none(), ..Needs::NOTHING }
    }

    fn first_step(&self, rule: &Rule, averaging: &Averaging) -> f32 {
        self.first_step.unwrap_or_else(|| rule.first_step(averaging))
    }

    fn initial_rate(&self) -> Option<f32> {
        self.initial_rate
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
        require_factor(self, "exponent", self.exponent)?;
        require_slow(self, self.smoothing, self.norm_floor)?;
        require_first_step(self, self.first_step, self.initial_rate)
    }

    fn reference(&self, rule: &Rule) -> Box<dyn RegimeReference> {
        self.as_seesaw().reference(rule)
    }
}
