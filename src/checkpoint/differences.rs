//! What a load may differ in, and what it tells of it.

use std::fmt;

/// Differences between a checkpoint and an optimizer that [`Optimizer::restore_with`](crate::Optimizer::restore_with) accepts. By default none.
///
/// Groups and tensors are matched by their names. A tensor of another length or element type, another rank, and a change to or from
/// [`AutoSgd`](crate::AutoSgd), whose streams take turns in the parameters, are refused in any case.
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
    /// Accepts no difference, as [`Optimizer::restore`](crate::Optimizer::restore).
    pub fn none() -> Self {
        Differences::default()
    }

    /// Accepts every difference that can be accepted.
    pub fn all() -> Self {
        Differences::none().settings().rules().tensors()
    }

    /// Accepts other settings: numbers of the same rule and regime, schedule, decay, clip, average, trust ratio, telemetry, rounding, the storage
    /// of the rule's memory, `maximize`, shared norms, micro-batches, and the optimizer's loss scaler and policies. They hold from the next step on, and all state
    /// goes on, with these exceptions:
    ///
    /// - The learning rate of a group starts anew where it is given and is another ([`Regime::fixed`](crate::Regime::fixed)), where the group
    ///   shares another norm, and where a trust ratio is added or removed.
    /// - A new average starts at its `start`. Where that is past, an exponential or polynomial one starts from the parameters, which the
    ///   checkpoint must contain, and a running one is refused. The base iterates of schedule-free training start from the parameters.
    /// - Decay, clip, `maximize` and micro-batches that are built otherwise replace what [`Controls`](crate::Controls) have set.
    /// - A loss scale is brought within the limits of the new scaler.
    /// - Momentum and second moment are converted between f32 and [`State::Bits8`](crate::State::Bits8), to the nearest code, and
    ///   remainders of master weights between 16 and 8 bits.
    pub fn settings(mut self) -> Self {
        self.settings = true;
        self
    }

    /// Accepts another rule or regime.
    ///
    /// Momentum and second moments go on under another rule that keeps the same ones: `Sgdm` and its Nesterov form, `Signum` and `Lion`,
    /// `AdamW` and `NAdamW`, `RmsProp` and `AdamW` without momentum. Otherwise (also from
    /// `AdamW` to `AmsGrad`) they start anew, and with them the learning rate and the counts that bias corrections and averages go
    /// by. Under another regime the learning rate starts anew, as at the first step, and what regimes remember of each parameter too; the
    /// schedule goes on. Groups under one norm start anew together.
    pub fn rules(mut self) -> Self {
        self.rules = true;
        self
    }

    /// Accepts groups and tensors that are added, removed, renamed, reordered or moved to another group.
    ///
    /// - The other groups go on as they are. Where they share a norm with what is added or removed, the norm changes with it, and their
    ///   learning rate goes on from what it is.
    /// - A new group starts anew, at the step of the others, and schedules follow that step. If it shares the norm of groups with the same rule
    ///   and regime, it takes over their learning rate; with another, all groups under the norm find theirs anew. A group with exactly the
    ///   tensors of one that is gone goes on from it.
    /// - What is remembered of a tensor moves with it. The parameters of a new tensor are those in the caller's buffer.
    /// - Rules with bias corrections count the steps of a group: a tensor that has taken more or fewer is refused in it.
    /// - [`Rounding::Stochastic`](crate::Rounding::Stochastic) draws its bits by the order of declaration, and draws others in another order.
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
    /// What a caller can do about such a difference.
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

/// What is one thing in a checkpoint and another here.
pub(super) struct Found {
    pub(super) kind: Kind,
    pub(super) what: String,
    pub(super) found: String,
    pub(super) expected: String,
}

/// Difference between a checkpoint and an optimizer that [`Optimizer::restore_with`](crate::Optimizer::restore_with) has accepted, or what
/// follows from one: a line of text, which [`Display`](fmt::Display) writes.
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
