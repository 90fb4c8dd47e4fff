//! Errors of the integration.

/// Error of this crate. Each message is one line that names the cause and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Error of the optimizer.
    #[error(transparent)]
    Optimizer(#[from] wgpu_optim::Error),

    /// burn could not create its device, or use the caller's.
    #[error("burn cannot use this device: {0}")]
    Device(#[from] burn::tensor::wgpu::WgpuInitError),

    /// The device lacks features that burn's kernels would use, because the adapter has them.
    #[error(
        "the device was opened without {missing:?}, which burn uses where an adapter has it: open it with the features that wgpu_optim_burn::features gives for the adapter"
    )]
    MissingFeatures {
        /// Features of the adapter that the device lacks.
        missing: burn::tensor::wgpu::wgpu::Features,
    },

    /// The module has no parameter that can be trained.
    #[error(
        "the module has no parameter that requires a gradient: build it on an autodiff device (Device::autodiff), and do not freeze all of it"
    )]
    NoParameters,

    /// Two parameters of the module have the same id.
    #[error(
        "parameters \"{first}\" and \"{second}\" are the same one (they share a ParamId), so that a step would move it twice: give one of them a Param of its own, or freeze it"
    )]
    Tied {
        /// Path of the first one.
        first: String,
        /// Path of the second one.
        second: String,
    },

    /// A group has no parameters.
    #[error(
        "group \"{group}\" matches no parameter of the module, whose parameters are {parameters}: check its ParamGroup; where several groups match, the last one has the parameter"
    )]
    EmptyGroup {
        /// The group's name.
        group: String,
        /// Names of all parameters.
        parameters: String,
    },

    /// The optimizer does not support a parameter.
    #[error("parameter \"{parameter}\": {reason}")]
    Unusable {
        /// Its name.
        parameter: String,
        /// Reason and way out.
        reason: String,
    },

    /// The module lacks a parameter that the optimizer was made for, or it has another shape.
    #[error(
        "parameter \"{parameter}\" had {expected} elements when the optimizer was made, now it has {actual}: hand each step the module that the optimizer was made for, or make a new optimizer"
    )]
    ModuleDiffers {
        /// Its name.
        parameter: String,
        /// Number of elements when the optimizer was made.
        expected: usize,
        /// Number of elements now, or 0 if the module lacks the parameter.
        actual: usize,
    },

    /// The module has a parameter that the optimizer was not made for.
    #[error(
        "parameter \"{parameter}\" requires a gradient, but it did not when the optimizer was made: make a new optimizer for this module"
    )]
    UnknownParameter {
        /// Its path.
        parameter: String,
    },

    /// A parameter had no gradient in a step of burn's `ModuleOptimizer`.
    #[error(
        "parameter \"{parameter}\" had no gradient in the last step, which was therefore never taken: burn's ModuleOptimizer does not tell its optimizers where a step ends. Freeze the parameter before the optimizer is made (Module::freeze, Param::set_require_grad), or call WgpuOptim::step, which leaves it out"
    )]
    MissingGradient {
        /// Its name.
        parameter: String,
    },

    /// The parameters of a group had different learning rates in one step.
    #[error(
        "group \"{group}\" was given the learning rates {first} and {second} in one step: give the parameters of each rate a group of their own (WgpuOptimConfig::with_group)"
    )]
    SeveralRates {
        /// Its name.
        group: String,
        /// One of the rates.
        first: f64,
        /// Another one.
        second: f64,
    },

    /// The regime uses the loss, which was not passed to the step.
    #[error("group \"{group}\": regime {regime} uses the loss: call WgpuOptim::step_with_loss")]
    MissingLoss {
        /// The group's name.
        group: String,
        /// Its regime's name.
        regime: &'static str,
    },

    /// burn could not compute a parameter, a gradient or the loss.
    #[error("burn could not compute {what} or its gradient: read either of them (Tensor::try_into_data) to see why")]
    Failed {
        /// A parameter's path, "one of the parameters" if all are in one operation of burn's `fusion`, or the loss.
        what: String,
    },

    /// burn's runtime returned an error.
    #[error("burn's runtime: {0}")]
    Runtime(String),
}

impl Error {
    pub(crate) fn runtime(error: impl std::fmt::Display) -> Self {
        Error::Runtime(error.to_string())
    }
}
