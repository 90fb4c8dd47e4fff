//! Errors. Each message names the cause and what to do.

use std::fmt;
use std::sync::Arc;

use crate::element::Element;

/// Error of a call of this crate.
///
/// Every message is one line that names the group or tensor, the value, the limit that it breaks, and what to do
/// instead. Programs match on [`Error::kind`]. A call that returns an `Err` has changed nothing. The exceptions are
/// [`ErrorKind::Halted`] and [`ErrorKind::DeviceLost`], whose documentation describes the state afterwards.
///
/// ```
/// use wgpu_optim::{ErrorKind, Group, OptimizerBuilder, Rule};
///
/// let (w, g) = ([0.0f32; 4], [0.0f32; 5]);
/// let built = OptimizerBuilder::new(Rule::sgd()).group(Group::new("all").tensor("w", &w, &g)).build_cpu();
/// let error = built.expect_err("five gradients for four parameters");
/// assert_eq!(error.kind(), ErrorKind::Build);
/// println!("{error}"); // tensor "w": 4 parameters but 5 gradients: give both slices the same number of elements
/// ```
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(transparent)]
pub struct Error(OneLine);

/// Problem as one line of text. Control characters in names and paths from the caller are escaped, so that they cannot
/// control a terminal.
#[derive(Debug, Clone, PartialEq)]
struct OneLine(Problem);

impl fmt::Display for OneLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.to_string().chars() {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                fmt::Write::write_char(f, character)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for OneLine {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// Kind of an [`Error`], for programs that handle errors differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The configuration is not valid. A number is out of range, a name occurs twice, slices differ in length, are
    /// misaligned, overlap or lack a buffer usage, or a loss is missing.
    Build,
    /// The optimizer exceeds the device's limits or the crate's 32-bit tables. A smaller one may fit.
    Limit,
    /// A call does not match the optimizer, or is out of order.
    Call,
    /// No adapter meets the request. The CPU path needs none.
    NoAdapter,
    /// No adapter has the requested name.
    UnknownAdapter,
    /// The device refused an allocation or a pipeline, most often because its memory is full. The device can still be
    /// used.
    DeviceRefused,
    /// The device is lost: commands recorded from now on have no effect. Parameters, gradients and the optimizer's state were on the device
    /// and cannot be read any more. A step that was running may have been interrupted.
    DeviceLost,
    /// A readback failed or timed out. Nothing is lost, and another call may succeed.
    Readback,
    /// A checkpoint file cannot be read or written. [`source`](std::error::Error::source) returns the file system's
    /// error, if there is one.
    CheckpointFile,
    /// The bytes are not a complete checkpoint, or have a version that this crate does not read.
    CheckpointDamaged,
    /// The checkpoint belongs to an optimizer with a different configuration, or does not contain the requested
    /// parameters.
    CheckpointDiffers,
    /// Training has halted, because [`NonFinitePolicy::Error`](crate::NonFinitePolicy::Error) allows no more steps in a
    /// row that are skipped or in which an element kept its value. Until `resume` is called, steps are counted and
    /// recorded but change neither the parameters nor the state of rule and regime.
    Halted,
    /// The tuning cache cannot be written.
    TuningCache,
}

impl Error {
    /// Returns true if a checkpoint with parameters could be restored.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn needs_parameters(&self) -> bool {
        matches!(&self.0.0, Problem::Checkpoint(CheckpointError::AverageBegun { may_have_parameters: true, .. }))
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> ErrorKind {
        match &self.0.0 {
            Problem::Build(BuildError::Limit { .. }) => ErrorKind::Limit,
            Problem::Build(_) => ErrorKind::Build,
            Problem::Call(_) => ErrorKind::Call,
            Problem::Device(DeviceError::NoAdapter(_)) => ErrorKind::NoAdapter,
            Problem::Device(DeviceError::UnknownAdapter { .. }) => ErrorKind::UnknownAdapter,
            Problem::Device(DeviceError::Failed { .. }) => ErrorKind::DeviceRefused,
            Problem::Device(DeviceError::Lost(_)) => ErrorKind::DeviceLost,
            Problem::Device(DeviceError::Readback { .. }) => ErrorKind::Readback,
            Problem::Checkpoint(CheckpointError::File { .. }) => ErrorKind::CheckpointFile,
            Problem::Checkpoint(CheckpointError::Damaged { .. } | CheckpointError::Version { .. }) => {
                ErrorKind::CheckpointDamaged
            }
            Problem::Checkpoint(
                CheckpointError::Differs { .. }
                | CheckpointError::OtherAge { .. }
                | CheckpointError::AverageBegun { .. }
                | CheckpointError::WithoutParameters { .. },
            ) => ErrorKind::CheckpointDiffers,
            Problem::Halted { .. } => ErrorKind::Halted,
            Problem::TuningCache { .. } => ErrorKind::TuningCache,
        }
    }
}

macro_rules! from {
    ($($problem:ident)*) => {$(
        impl From<$problem> for Error {
            fn from(problem: $problem) -> Self {
                Error(OneLine(problem.into()))
            }
        }
    )*};
}

from! { Problem BuildError CallError DeviceError CheckpointError }

/// Problem that an [`Error`] describes. All messages are written here.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Problem {
    #[error(transparent)]
    Build(#[from] BuildError),

    #[error(transparent)]
    Call(#[from] CallError),

    #[error(transparent)]
    Device(#[from] DeviceError),

    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),

    #[error(
        "training has halted: {cause}; the parameters are those before step {first_step} and do not change any more: find the cause, then call resume"
    )]
    Halted { first_step: u64, cause: String },

    #[cfg_attr(not(feature = "tuning-cache"), allow(dead_code, reason = "only the cache is written"))]
    #[error("cannot write the tuning cache {path}: {message}; name another file in WGPU_OPTIM_TUNING_CACHE")]
    TuningCache { path: String, message: String },
}

/// Configuration that [`OptimizerBuilder::build`](crate::OptimizerBuilder::build) refuses.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum BuildError {
    /// A number of a rule, a regime or a group is outside its range.
    #[error("{owner}: {field} is {value}, but it must be {expected}")]
    InvalidValue { owner: String, field: &'static str, value: String, expected: &'static str },

    /// `build` was called before any group was given.
    #[error("the optimizer has no group: add at least one with OptimizerBuilder::group before build")]
    NoGroups,

    /// Two groups, or two tensors of one optimizer, have the same name.
    #[error("two {what}s are named \"{name}\": give each its own name, so that messages can refer to it")]
    DuplicateName { what: &'static str, name: String },

    /// A parameter tensor and its gradient differ in length.
    #[error(
        "tensor \"{tensor}\": {params} parameters but {grads} gradients: give both slices the same number of elements"
    )]
    LengthMismatch { tensor: String, params: u64, grads: u64 },

    /// A shape does not have as many elements as the tensor.
    #[error(
        "tensor \"{tensor}\" has the shape {shape:?}, but {elements} elements: give dimensions whose product is the number of elements"
    )]
    Shape { tensor: String, shape: Vec<usize>, elements: u64 },

    /// The number of rate factors differs from the number of rows or columns.
    #[error(
        "tensor \"{tensor}\" has the shape {shape:?}, but there are {factors} factors: Group::rate_factors takes one for each {what} of a tensor that is added with Group::shaped_tensor, in two dimensions or more"
    )]
    RateFactors { tensor: String, what: &'static str, shape: Vec<usize>, factors: usize },

    /// Lazy rows are requested for a tensor without rows.
    #[error(
        "tensor \"{tensor}\" of shape {shape:?} has no rows, but Group::lazy_rows needs them: add it with Group::shaped_tensor in two dimensions or more, or to another group"
    )]
    NoRows { tensor: String, shape: Vec<usize> },

    /// A rule needs matrices, and the tensor is not one.
    #[error(
        "tensor \"{tensor}\" of shape {shape:?} is not a matrix, but rule {rule} needs one: give its shape with Group::shaped_tensor, or name a rule for such tensors with other_tensors (Rule::adamw() is usual)"
    )]
    NoMatrix { tensor: String, shape: Vec<usize>, rule: &'static str },

    /// A buffer slice does not start or end on an element.
    #[error(
        "tensor \"{tensor}\": the {role} slice starts at byte {offset_bytes} and is {size_bytes} bytes long, but it must start at a multiple of 4 and be a whole number of elements, {} bytes each",
        element.bytes()
    )]
    Misaligned { tensor: String, role: &'static str, offset_bytes: u64, size_bytes: u64, element: Element },

    /// A 16-bit tensor of odd length ends in a 32-bit word that is not entirely inside its buffer.
    #[error(
        "tensor \"{tensor}\": the {role} slice ends at byte {end_bytes} of a buffer of {buffer_bytes}, in the middle of a word: make the buffer 2 bytes longer"
    )]
    HalfWord { tensor: String, role: &'static str, end_bytes: u64, buffer_bytes: u64 },

    /// A buffer lacks a required usage flag.
    #[error("tensor \"{tensor}\": the {role} buffer was created without {missing}: add it to the buffer's usage")]
    MissingUsage { tensor: String, role: &'static str, missing: &'static str },

    /// Two slices that must not overlap share elements.
    #[error(
        "{first} and {second} overlap in bytes {start}..{end} of one buffer: move one of them, or give weights that are shared by several layers once, with the sum of their gradients"
    )]
    Overlap { first: String, second: String, start: u64, end: u64 },

    /// Groups that share one norm keep different kinds of direction memory (momentum and sign counters).
    #[error(
        "groups \"{first}\" and \"{second}\" share the norm \"{scope}\", but one keeps a momentum and the other sign counters to measure its alignment: give both a momentum rule, or neither, or let each have its own norm"
    )]
    MixedScope { first: String, second: String, scope: String },

    /// Groups share one norm, but their regimes keep different kinds of memory.
    #[error(
        "groups \"{first}\" and \"{second}\" share the norm \"{scope}\", but their regimes keep different memory: give both the same rule and regime, or let each have its own norm"
    )]
    MixedMemory { first: String, second: String, scope: String },

    /// A regime needs the loss of every step, and none was given.
    #[error(
        "group \"{group}\": regime {regime} needs the loss of every step: give it with OptimizerBuilder::loss on the device, with CpuOptimizer::step_with_loss on the host"
    )]
    MissingLoss { group: String, regime: &'static str },

    /// The weights or the state of a learned schedule do not fit.
    #[error("policy of a learned schedule: {what} {problem}")]
    Policy { what: String, problem: String },

    /// A number exceeds the crate's 32-bit block tables or the device's limits.
    #[error("{what} is {value}, above {limit}: {way_out}")]
    Limit { what: String, value: u64, limit: u64, way_out: &'static str },
}

/// Call that does not match the optimizer, or is out of order.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum CallError {
    /// A call is out of order. A step over several ranks is measured, combined and applied, in this order. Other
    /// optimizers have no such calls.
    #[error("{call} was called out of turn: {way_out}")]
    OutOfTurn { call: &'static str, way_out: &'static str },

    /// The sums of the ranks do not belong together, or not to this step.
    #[error("the sums of the ranks cannot be used: {problem}")]
    ShardSums { problem: String },

    /// A slice passed to a CPU step or to [`Optimizer::rebind`](crate::Optimizer::rebind) does not have the declared
    /// element type.
    #[error(
        "tensor \"{tensor}\" was built with {role}s of {}, but this call was given {}: pass slices of the builder's elements",
        expected.name(),
        actual.name()
    )]
    StepElement { tensor: String, role: &'static str, expected: Element, actual: Element },

    /// A slice passed to a CPU step or to [`Optimizer::rebind`](crate::Optimizer::rebind) does not have the declared length.
    #[error(
        "tensor \"{tensor}\" was built with {expected} elements, but this call was given {actual} {role}s: pass the slices in the order and length of the builder"
    )]
    StepLength { tensor: String, role: &'static str, expected: usize, actual: usize },

    /// A CPU step or [`Optimizer::rebind`](crate::Optimizer::rebind) was given a number of tensors that differs from the declared one.
    #[error(
        "the optimizer was built with {expected} tensors, but this call was given {actual} {role} slices: pass one slice per tensor, in the order of the builder"
    )]
    StepTensors { role: &'static str, expected: usize, actual: usize },

    /// `rebind` was called on an optimizer that was built without `rebindable`.
    #[error("the optimizer was built for fixed buffers: call OptimizerBuilder::rebindable() before build")]
    NotRebindable,

    /// A slice of a rebindable optimizer starts at an offset where no binding can start.
    #[error(
        "tensor \"{tensor}\": the {role} slice starts at byte {offset_bytes}, but with OptimizerBuilder::rebindable it must start at a multiple of {alignment_bytes}, the device's min_storage_buffer_offset_alignment"
    )]
    BindingAlignment { tensor: String, role: &'static str, offset_bytes: u64, alignment_bytes: u64 },

    /// A call needs an average that the optimizer does not keep.
    #[error("{owner} has no average: give its group an Averaging other than Off before build")]
    NoAverages { owner: String },

    /// A step, a copy of averages or a checkpoint was requested while the averages are swapped in.
    #[error(
        "{what} was requested while the averages are swapped in: swap them back first with Optimizer::encode_swap_averages (CpuOptimizer::swap_averages on the host)"
    )]
    AveragesSwapped { what: &'static str },

    /// A look was requested from an optimizer whose regimes need none.
    #[error(
        "no group has a regime that looks at a batch twice: give a group Regime::Curvature before build, or leave out {call}"
    )]
    NoLooks { call: &'static str },

    /// A look was requested without a step to look at.
    #[error(
        "{call} was called without a step since the last look: take a step, compute the gradient of the same batch at the new parameters, then look"
    )]
    LookOutOfTurn { call: &'static str },

    /// A controller cannot work with an optimizer, or its calls are out of order.
    #[error("{call} {problem}: {way_out}")]
    Controller { call: &'static str, problem: String, way_out: String },

    /// No group has this name.
    #[error("there is no group \"{name}\": the optimizer has {groups}")]
    UnknownGroup { name: String, groups: String },

    /// A tensor cannot be left out of a step.
    #[error("tensor \"{tensor}\" cannot be left out of a step: {way_out}")]
    NotAlone { tensor: String, way_out: &'static str },

    /// No tensor has this index.
    #[error("there is no tensor {index}: the optimizer has {tensors}, counted from 0 in the order of the builder")]
    UnknownTensor { index: usize, tensors: usize },

    /// The destination slice for a tensor's averages does not have the tensor's length.
    #[error(
        "tensor \"{tensor}\" has {expected} elements, but the place for its averages has {actual}: give a slice of the tensor's length"
    )]
    AveragesLength { tensor: String, expected: u64, actual: u64 },
}

/// Device that cannot be found, fails, or is lost.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum DeviceError {
    /// No adapter meets the request.
    #[error("no usable adapter: {0}")]
    NoAdapter(String),

    /// No adapter's name contains the requested one.
    #[error("no adapter's name contains \"{wanted}\"; there is {seen}")]
    UnknownAdapter { wanted: String, seen: String },

    /// The device refused an allocation or a pipeline while building.
    #[error("the device refused {what}: {message}")]
    Failed { what: String, message: String },

    /// The device is lost: commands recorded from now on have no effect. Parameters, gradients and the optimizer's state were on the device
    /// and cannot be read any more. A step that was running may have been interrupted.
    #[error(
        "the device is lost ({0}): its parameters are gone with it, steps not yet completed may have been half done; build a new optimizer on a new device, from the last parameters that were read or saved"
    )]
    Lost(String),

    /// A readback failed or timed out.
    #[error("reading {what} back from the device failed: {message}")]
    Readback { what: &'static str, message: String },
}

/// Checkpoint that cannot be read, written or restored.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[cfg_attr(not(feature = "checkpoint"), allow(dead_code, reason = "only checkpoints are read and written"))]
pub(crate) enum CheckpointError {
    /// A checkpoint file could not be read or written.
    #[error("the checkpoint {path} cannot be {action}: {message}")]
    File {
        path: String,
        action: &'static str,
        message: String,
        #[source]
        source: Option<Cause>,
    },

    /// The bytes are not a complete checkpoint.
    #[error("{checkpoint} is damaged, or none of wgpu-optim: {problem}; take another")]
    Damaged { checkpoint: String, problem: String },

    /// A checkpoint has a format version that this version of the crate does not read.
    #[error(
        "{checkpoint} has version {version}, but this wgpu-optim reads versions 2 to {newest}: use a version of the crate that reads it"
    )]
    Version { checkpoint: String, version: u32, newest: u32 },

    /// A checkpoint belongs to an optimizer with a different configuration.
    #[error("{checkpoint} is of another optimizer: {what} is {found} there, {expected} here; {way_out}")]
    Differs { checkpoint: String, what: String, found: String, expected: String, way_out: &'static str },

    /// Tensors of a group have taken different numbers of steps, but the rule's bias correction uses one number per
    /// group.
    #[error(
        "{checkpoint}: tensor \"{tensor}\" was moved by {steps} steps, its group \"{group}\" by {group_steps}, but the bias correction of rule {rule} needs one number of steps per group: put the tensor into a group of its own, which may share the norm"
    )]
    OtherAge { checkpoint: String, tensor: String, steps: u32, group: String, group_steps: u32, rule: &'static str },

    /// An average should have begun before the step of the checkpoint.
    #[error(
        "{checkpoint} has no average of group \"{group}\", and averaging {averaging} was to start at step {start}, but the group has taken {steps} steps: build it to start at step {steps} or later{}",
        if *.may_have_parameters { ", or save the checkpoint with the parameters of the group's tensors, to start from them" } else { "" }
    )]
    AverageBegun {
        checkpoint: String,
        group: String,
        averaging: &'static str,
        start: u32,
        steps: u32,
        may_have_parameters: bool,
    },

    /// Parameters were requested from a checkpoint that was saved without them.
    #[error("{checkpoint} was saved without the parameters: save it with them, or restore it without them")]
    WithoutParameters { checkpoint: String },
}

/// Error of the standard library or of another crate, which [`std::error::Error::source`] returns. Two are equal if
/// their messages are.
#[derive(Debug, Clone)]
pub(crate) struct Cause(Arc<dyn std::error::Error + Send + Sync>);

#[cfg(feature = "checkpoint")]
impl Cause {
    pub(crate) fn new(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Cause(Arc::new(error))
    }
}

impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// Checks one number of a configuration.
///
/// Calls `owner` only to make the message, so that a valid number costs no allocation.
pub(crate) fn require(
    ok: bool,
    owner: impl FnOnce() -> String,
    field: &'static str,
    value: impl std::fmt::Display,
    expected: &'static str,
) -> Result<(), Error> {
    if ok {
        Ok(())
    } else {
        let value = value.to_string();
        // `Display` would write 1e38 as 39 digits, and 1e-45 as a row of zeros.
        let value = match value.parse::<f64>() {
            Ok(number) if value.len() > 16 => format!("{number:e}"),
            _ => value,
        };
        Err(BuildError::InvalidValue { owner: owner(), field, value, expected }.into())
    }
}
