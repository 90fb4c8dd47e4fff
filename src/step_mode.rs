//! How often a step goes over the gradients.

/// Whether a step's learning rate comes from its own gradient or from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum StepMode {
    /// The gradient is swept for its norm, then again for the update: the rate of step t is computed from the gradient of step t.
    /// 16 bytes per parameter for SGD with a rate from the norm.
    #[default]
    TwoPass,
    /// One sweep: the update of step t takes the rate that came out of step t-1, while the sums of step t are added up. 12 bytes per
    /// parameter for SGD with a rate from the norm, 14 with Seesaw, 20 with momentum, 28 with AdamW.
    ///
    /// **A different algorithm**: a step meets a sudden gradient with the rate of the gradient before, so that the norm protects the
    /// next step, not this one. Everything else, regime, record and state, is the same; with [`Regime::Fixed`](crate::Regime::Fixed)
    /// so are the parameters.
    ///
    /// - The first step measures, fills the momentum and moves nothing, unless the regime was given a first rate.
    /// - The learning rates on the device and in the record of step t are those that step t+1 will take.
    /// - A clip would need the norm before the sweep, and is refused by `build`.
    /// - **Parameters and gradients change places with every step**: the new parameters are written where the gradients were, and the
    ///   next gradients belong where the parameters were. So nothing is lost while it is not yet known whether the gradient is finite:
    ///   if it is not, the old parameters are copied over the new ones, bit for bit, and the old momentum or direction memory, of which
    ///   there are two copies, holds on. On the device that costs an extra read and write in such a step only, and a dispatch that
    ///   returns at once in every other. The places change in a skipped step too, so that the host always knows where the parameters
    ///   are: [`Optimizer::roles_are_swapped`](crate::Optimizer::roles_are_swapped). Bind your kernels both ways round, as in any
    ///   ping-pong. [`CpuOptimizer::step_lagged`](crate::CpuOptimizer::step_lagged) exchanges the slices for you.
    ///
    /// Memory: that of the rule and regime twice; that of an [`Averaging`](crate::Averaging) once.
    Lagged,
}

impl StepMode {
    /// `two-pass` or `lagged`.
    pub fn name(self) -> &'static str {
        match self {
            StepMode::TwoPass => "two-pass",
            StepMode::Lagged => "lagged",
        }
    }
}
