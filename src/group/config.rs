//! Complete and checked settings of a group.

use crate::averaging::Averaging;
use crate::element::Rounding;
use crate::error::{Error, require};
use crate::group::NamedTensor;
use crate::rates::RateFactors;
use crate::regime::{AutoSgd, Regime};
use crate::rule::{Rule, WeightDecay};
use crate::schedule::Schedule;
use crate::state::State;
use crate::trust::TrustRatio;

/// A group with every default filled in.
#[derive(Debug, Clone)]
pub(crate) struct ResolvedGroup<T> {
    pub(crate) config: GroupConfig,
    pub(crate) tensors: Vec<NamedTensor<T>>,
}

/// One group's settings, complete and checked.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
#[non_exhaustive]
pub struct GroupConfig {
    /// Name of the group.
    pub name: String,
    /// Update rule.
    pub rule: Rule,
    /// Learning-rate regime.
    pub regime: Regime,
    /// Weight decay. `Coupled(0.0)` means no decay.
    pub weight_decay: WeightDecay,
    /// Largest gradient norm. It is infinite without a clip.
    pub clip_norm: f32,
    /// True if the group maximizes.
    pub maximize: bool,
    /// Schedule: a factor of the learning rate over the steps.
    pub schedule: Schedule,
    /// Average of the parameters.
    pub averaging: Averaging,
    /// Trust ratio: keeps steps in proportion to the parameters.
    pub trust_ratio: Option<TrustRatio>,
    /// Factors of the learning rate for rows or columns.
    pub rate_factors: Option<RateFactors>,
    /// True if rows without a gradient are skipped.
    pub lazy_rows: bool,
    /// True if the norms of every tensor and of its steps are recorded.
    pub telemetry: bool,
    /// Rounding of 16-bit parameters.
    pub rounding: Rounding,
    /// Storage of the rule's memory.
    pub state: State,
    /// Name of the norm that is shared with other groups. `None` if the group does not share its norm.
    pub scope: Option<String>,
}

impl GroupConfig {
    /// Returns true if the alignment can be measured against y - z of schedule-free training. AdamW uses the direction memory instead,
    /// because its step is not along the gradient.
    pub(crate) fn can_compare_iterates(&self) -> bool {
        self.averaging == Averaging::ScheduleFree && !self.rule.has_momentum() && !self.rule.has_second_moment()
    }

    /// Returns true if the rule has a memory and keeps it in 8 bits.
    pub(crate) fn keeps_codes(&self) -> bool {
        self.state == State::Bits8 && self.rule.vectors() > 0
    }

    /// Returns true if the update pass measures the norms of parameters and steps.
    pub(crate) fn measures_step(&self) -> bool {
        self.telemetry || self.trust_ratio.is_some()
    }

    /// Returns an error if this group cannot be in one optimizer with the first group. Streams of parameters take turns in the whole optimizer.
    pub(super) fn check_beside(&self, first: &GroupConfig) -> Result<(), Error> {
        let decisions = |config: &GroupConfig| match config.regime {
            Regime::AutoSgd(AutoSgd { factor, certainty, rounds, .. }) => {
                Some((factor, certainty, rounds, config.maximize))
            }
            _ => None,
        };
        require(
            decisions(self) == decisions(first),
            || format!("group \"{}\"", self.name),
            "regime",
            self.regime.name(),
            "auto-sgd in every group or in none, with the same factor, certainty, rounds and maximize: one loss decides for all of them (or use several optimizers)",
        )
    }

    /// Returns an error for a norm to which no gradient can be clipped.
    pub(crate) fn check_clip(clip_norm: f32, owner: impl FnOnce() -> String) -> Result<(), Error> {
        require(
            clip_norm >= f32::MIN_POSITIVE,
            owner,
            "clip_norm",
            clip_norm,
            "above 0 and not denormal (f32::INFINITY for none)",
        )
    }

    pub(super) fn validate(&self) -> Result<(), Error> {
        let owner = || format!("group \"{}\"", self.name);
        WeightDecay::check(self.weight_decay.lambda(), owner)?;
        GroupConfig::check_clip(self.clip_norm, owner)?;
        self.rule.validate()?;
        require(
            self.state == State::F32 || self.rule.fits_8_bits(),
            || format!("group \"{}\" with rule {}", self.name, self.rule.name()),
            "state",
            self.state.name(),
            "f32 with rules amsgrad, adagrad, adafactor and muon, whose memory 8 bits cannot hold: use state(State::F32) in this group, or another rule (Rule::adamw())",
        )?;
        let is_free = self.averaging == Averaging::ScheduleFree;
        require(
            is_free || !self.regime.needs_schedule_free(),
            owner,
            "averaging",
            self.averaging.name(),
            "schedule-free with regime schedule-free-plus, whose rate is for the steps of schedule-free training: use averaging(Averaging::ScheduleFree), or another regime (Regime::polyak() takes the loss too)",
        )?;
        require(
            self.averaging.fits(&self.rule),
            || format!("group \"{}\" with rule {}", self.name, self.rule.name()),
            "averaging",
            self.averaging.name(),
            "another with a rule that keeps a momentum, in whose place schedule-free training keeps its base sequence: use averaging(Averaging::polynomial_decay()), or a rule without momentum (Rule::sgd(), Rule::sign_sgd(), or Rule::adamw_without_momentum() for AdamW)",
        )?;
        require(
            self.regime.fits(&self.rule),
            owner,
            "rule",
            self.rule.name(),
            if self.regime.needs_streams() {
                "sgd or signsgd with regime auto-sgd, whose three streams would need a momentum each"
            } else if self.regime.needs_estimate() {
                "adamw, nadamw, rmsprop, adagrad, signsgd, signum or lion with regime prodigy, whose estimate is for steps that are about as long in every element (Regime::mechanic() works with every rule, Regime::dog() with sgd)"
            } else {
                "a rule whose last direction follows from what it remembers with regimes bb, adgd and look, which those of muon and adafactor do not (Regime::seesaw() works with it)"
            },
        )?;
        // Both use the parameters of the previous step, which belong to another stream.
        for (field, used) in [("averaging", self.averaging.is_on()), ("trust_ratio", self.trust_ratio.is_some())] {
            require(
                !(used && self.regime.needs_streams()),
                owner,
                field,
                "on",
                "off with regime auto-sgd, whose streams take turns in the parameters",
            )?;
        }
        require(
            self.regime.fits_averaging(&self.averaging),
            owner,
            "averaging",
            self.averaging.name(),
            if self.regime.needs_looks() {
                "another with a regime that looks at a step, which in schedule-free training is not along the direction: use averaging(Averaging::polynomial_decay())"
            } else {
                "another with regimes prodigy and mechanic, whose steps lead to where the gradient is taken: use averaging(Averaging::polynomial_decay()), or Regime::schedule_free_plus() or Regime::seesaw() for schedule-free training"
            },
        )?;
        let needs = self.regime.regime().needs();
        for (field, used) in [("rate_factors", self.rate_factors.is_some()), ("lazy_rows", self.lazy_rows)] {
            require(
                !(used && (needs.last_gradient || needs.streams || needs.estimate || needs.displacement)),
                owner,
                field,
                "on",
                "off with regimes bb, adgd, look, auto-sgd, prodigy and mechanic, which use all elements of earlier steps (Regime::seesaw() works with it)",
            )?;
        }
        require(
            !(self.lazy_rows && self.rule.owns_passes()),
            owner,
            "lazy_rows",
            "on",
            "off with rules muon and adafactor, whose directions are of all rows together",
        )?;
        require(
            !(self.lazy_rows && self.keeps_codes()),
            owner,
            "lazy_rows",
            "on",
            "off with 8-bit state, whose scales several rows share (state(State::F32) works with it)",
        )?;
        if let Some(factors) = &self.rate_factors {
            factors.validate(&self.name)?;
        }
        self.schedule.validate()?;
        self.averaging.validate()?;
        self.trust_ratio.map_or(Ok(()), |trust| trust.validate())?;
        self.regime.validate()
    }
}
