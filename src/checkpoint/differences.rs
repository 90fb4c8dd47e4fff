//! Differences that a restore accepts, and its report on them.

use std::fmt;

/// Differences between a checkpoint and an optimizer that [`Optimizer::restore_with`](crate::Optimizer::restore_with)
/// accepts. The default accepts none.
///
/// Groups and tensors are matched by their names. Some differences are always refused: a tensor of another length or
/// element type, another rank, and a change to or from [`AutoSgd`](crate::AutoSgd), whose streams take turns in the
/// parameters.
///
/// ```
/// use wgpu_optim::{Differences, Group, Notes, OptimizerBuilder, Regime, Rule};
///
/// let mut w = vec![5.0f32; 100];
/// let g = vec![0.5f32; 100];
/// let build = |regime| {
///     OptimizerBuilder::new(Rule::sgdm(0.9))
///         .regime(regime)
///         .group(Group::new("all").tensor("w", &[5.0f32; 100][..], &[0.0f32; 100][..]))
///         .build_cpu()
/// };
/// let mut optimizer = build(Regime::fixed(0.1))?;
/// optimizer.step(&mut [&mut w], &[&g])?;
/// let checkpoint = optimizer.checkpoint(None, &Notes::new())?;
///
/// let mut slower = build(Regime::fixed(0.01))?;
/// assert!(slower.restore(&checkpoint, None).is_err());
/// for difference in slower.restore_with(&checkpoint, None, Differences::none().settings())? {
///     println!("{difference}"); // regime.learning_rate of group "all": 0.1 in the checkpoint, 0.01 here
/// }
/// assert_eq!(slower.learning_rates(), [0.01]);
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use = "differences are given to restore_with, load_with or rebuild"]
pub struct Differences {
    settings: bool,
    rules: bool,
    tensors: bool,
}

impl Differences {
    /// Accepts no difference, like [`Optimizer::restore`](crate::Optimizer::restore).
    pub fn none() -> Self {
        Differences::default()
    }

    /// Accepts every difference that can be accepted.
    pub fn all() -> Self {
        Differences::none().settings().rules().tensors()
    }

    /// Accepts other settings: numbers of the same rule and regime, schedule, decay, clip, average, trust ratio,
    /// telemetry, rounding, the storage of the rule's memory, `maximize`, shared norms, micro-batches, and the
    /// optimizer's loss scaler and policies. They apply from the next step on. All state is kept, with these
    /// exceptions:
    ///
    /// - The learning rate of a group starts anew if it is given and differs ([`Regime::fixed`](crate::Regime::fixed)),
    ///   if the group shares another norm, and if a trust ratio is added or removed.
    /// - A new average starts at its `start`. If that step has passed, an exponential or polynomial average starts from
    ///   the parameters, which the checkpoint must contain, and a running average is refused. The base iterates of
    ///   schedule-free training start from the parameters.
    /// - Decay, clip, `maximize` and micro-batches that differ in the builder replace the values set by
    ///   [`Controls`](crate::Controls).
    /// - A loss scale is clamped to the limits of the new scaler.
    /// - Momentum and second moment are converted between f32 and [`State::Bits8`](crate::State::Bits8), rounded to the
    ///   nearest code. Remainders of master weights are converted between 16 and 8 bits.
    pub fn settings(mut self) -> Self {
        self.settings = true;
        self
    }

    /// Accepts another rule or regime.
    ///
    /// Momentum and second moments are kept under another rule with the same memory: `Sgdm` and its Nesterov form,
    /// `Signum` and `Lion`, `AdamW` and `NAdamW`, `RmsProp` and `AdamW` without momentum. Otherwise (for example from
    /// `AdamW` to `AmsGrad`) they start anew, and so do the learning rate and the step counts of bias corrections and
    /// averages.
    ///
    /// Under another regime the learning rate and the regime's memory per parameter start anew, as at the first step.
    /// The schedule continues. Groups that share a norm start anew together.
    pub fn rules(mut self) -> Self {
        self.rules = true;
        self
    }

    /// Accepts groups and tensors that are added, removed, renamed, reordered or moved to another group.
    ///
    /// - The other groups continue. If they share a norm with groups that are added or removed, the norm changes, and
    ///   their learning rate continues from its present value.
    /// - A new group starts anew at the step of the others, which its schedule follows. If it shares the norm of groups
    ///   with the same rule and regime, it takes over their learning rate. With another rule or regime, the learning
    ///   rate of all groups under the norm starts anew. A group with exactly the tensors of a removed group continues
    ///   its state.
    /// - The memory of a tensor moves with it. The parameters of a new tensor are those in the caller's buffer.
    /// - Rules with bias corrections count the steps of a group. A tensor that has taken a different number of steps is
    ///   refused in such a group.
    /// - [`Rounding::Stochastic`](crate::Rounding::Stochastic) derives its random bits from the order of declaration.
    ///   Another order gives other bits.
    pub fn tensors(mut self) -> Self {
        self.tensors = true;
        self
    }

    pub(super) fn accept(self, kind: Kind) -> bool {
        match kind {
            Kind::Settings => self.settings,
            Kind::Rules => self.rules,
            Kind::Tensors => self.tensors,
            Kind::Never => false,
        }
    }
}

/// Setter of [`Differences`] that accepts a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Settings,
    Rules,
    Tensors,
    Never,
}

impl Kind {
    /// Returns advice on such a difference.
    pub(super) fn way_out(self) -> &'static str {
        match self {
            Kind::Settings => {
                "build the optimizer as it was when it was saved, or accept it with restore_with and Differences::settings()"
            }
            Kind::Rules => {
                "build the optimizer as it was when it was saved, or accept it with restore_with and Differences::rules()"
            }
            Kind::Tensors => {
                "build the optimizer as it was when it was saved, or accept it with restore_with and Differences::tensors()"
            }
            Kind::Never => "build the optimizer as it was when it was saved",
        }
    }
}

/// Difference between a checkpoint and an optimizer.
pub(super) struct Found {
    pub(super) kind: Kind,
    pub(super) what: String,
    pub(super) found: String,
    pub(super) expected: String,
}

/// Difference between a checkpoint and an optimizer that [`Optimizer::restore_with`](crate::Optimizer::restore_with)
/// has accepted, or a consequence of one. [`Display`](fmt::Display) writes it as a line of text.
///
/// ```text
/// regime of group "biases": Seesaw in the checkpoint, NormRatio here
/// group "biases": the learning rate starts anew
/// group "biases": direction counters are dropped
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference(pub(super) String);

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&Found> for Difference {
    fn from(found: &Found) -> Self {
        let Found { what, found, expected, .. } = found;
        Difference(format!("{what}: {found} in the checkpoint, {expected} here"))
    }
}
