//! Fixed rate. Its device code is `shaders/regime/seesaw.wgsl`, with some constants of 0.

use super::seesaw::{self, Seesaw};
use super::{Kernel, LearningRateRegime, Regime, require_first_step};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::RegimeConstants;
use crate::reference::RegimeReference;
use crate::rule::Rule;

/// Fixed learning rate that the caller gives. With a [`Schedule`](crate::Schedule) it is the usual scheduled rate.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct FixedRate {
    /// η, between 1e-30 and 1e30.
    pub learning_rate: f32,
}

impl Regime {
    /// Returns a fixed learning rate η.
    pub fn fixed(learning_rate: f32) -> Self {
        Regime::Fixed(FixedRate { learning_rate })
    }
}

pub(super) fn examples() -> [FixedRate; 1] {
    [FixedRate { learning_rate: 0.01 }]
}

impl FixedRate {
    /// Returns the Seesaw that this regime is a special case of.
    fn as_seesaw(&self) -> Seesaw {
        Seesaw {  exponent: 0.0, exponent_above: 0.0, gain: 0.0, ..Seesaw::default()  }
    }
}

impl LearningRateRegime for FixedRate {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn summary(&self) -> &'static str {
        "The same rate in every step"
    }

    fn kernel(&self) -> &'static Kernel {
        &seesaw::KERNEL
    }

    fn first_step(&self, _: &Rule, _: &Averaging) -> f32 {
        0.0
    }

    fn goes_by_gradients(&self) -> bool {
        false
    }

    fn initial_rate(&self) -> Option<f32> {
        Some(self.learning_rate)
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
        require_first_step(self, None, Some(self.learning_rate))
    }

    fn reference(&self, rule: &Rule) -> Box<dyn RegimeReference> {
        self.as_seesaw().reference(rule)
    }
}
