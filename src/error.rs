//! Errors. Each message names the culprit and the way out.

use std::fmt;
use std::sync::Arc;

use crate::element::Element;

/// Error of a call of this crate.
///
/// Every message is one line that names the group or tensor, the value, the limit that it breaks, and what to do instead. A call that
/// returns an `Err` has changed nothing. [`Error::Halted`] and [`DeviceError::Lost`] are the exceptions, and describe what they leave behind.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `build` refuses the configuration.
    #[error(transparent)]
    Build(#[from] BuildError),

    /// A call does not fit the optimizer, or comes out of order.
    #[error(transparent)]
    Call(#[from] CallError),

    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),

    /// A checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),

    /// Training has halted because [`NonFinitePolicy::Error`](crate::NonFinitePolicy::Error) allows no more skipped steps in a row. Later
    /// steps are counted and recorded, and change neither parameters nor the state of rule and regime.
    #[error(
        "training has halted: {after} steps in a row were skipped, from step {first_step} on, the last of them for {cause}; parameters are as they were before step {first_step} and stay so: find the cause, then call resume"
    )]
    Halted {
        /// First of the skipped steps in a row.
        first_step: u64,
        /// Number of skipped steps in a row after which training halts.
        after: u32,
        /// Cause in words: number of elements that were not finite, tensor and index of the first.
        cause: String,
        /// Cause in numbers; `None` if the loss was not finite.
        nonfinite: Option<crate::NonFinite>,
    },

    /// The tuning cache could not be written.
    #[error("cannot write the tuning cache {path}: {message}; name another file in WGPU_OPTIM_TUNING_CACHE")]
    TuningCache {
        /// The file.
        path: String,
        /// Reason.
        message: String,
    },
}

/// A configuration that [`OptimizerBuilder::build`](crate::OptimizerBuilder::build) refuses.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A number of a rule, a regime or a group is outside its range.
    #[error("{owner}: {field} is {value}, but it must be {expected}")]
    InvalidValue {
        /// Owner of the number: `rule sgdm`, `group "weights"`, …
        owner: String,
        /// The number's name.
        field: &'static str,
        /// The number, in words.
        value: String,
        /// The range, in words.
        expected: &'static str,
    },

    /// `build` was called before any group was given.
    #[error("the optimizer has no group: add at least one with OptimizerBuilder::group before build")]
    NoGroups,

    /// Two groups, or two tensors of one optimizer, have the same name.
    #[error("two {what}s are named \"{name}\": give each its own name, so that messages can refer to it")]
    DuplicateName {
        /// `group` or `tensor`.
        what: &'static str,
        /// The name.
        name: String,
    },

    /// A parameter tensor and its gradient differ in length.
    #[error(
        "tensor \"{tensor}\": {params} parameters but {grads} gradients: give both slices the same number of elements"
    )]
    LengthMismatch {
        /// The tensor's name.
        tensor: String,
        /// Elements of the parameter slice.
        params: u64,
        /// Elements of the gradient slice.
        grads: u64,
    },

    /// A buffer slice does not start or end on an element.
    #[error(
        "tensor \"{tensor}\": the {role} slice starts at byte {offset_bytes} and is {size_bytes} bytes long, but it must start at a multiple of 4 and be a whole number of elements, {} bytes each",
        element.bytes()
    )]
    Misaligned {
        /// The tensor's name.
        tensor: String,
        /// `parameter`, `gradient` or `average`.
        role: &'static str,
        /// The slice's first byte in its buffer.
        offset_bytes: u64,
        /// The slice's length in bytes.
        size_bytes: u64,
        /// Element type of the slice.
        element: Element,
    },

    /// A 16-bit tensor of odd length ends in a 32-bit word that is not entirely inside its buffer.
    #[error(
        "tensor \"{tensor}\": the {role} slice ends at byte {end_bytes} of a buffer of {buffer_bytes}, in the middle of a word: make the buffer 2 bytes longer"
    )]
    HalfWord {
        /// The tensor's name.
        tensor: String,
        /// `parameter` or `gradient`.
        role: &'static str,
        /// One past the slice's last byte in its buffer.
        end_bytes: u64,
        /// The buffer's length in bytes.
        buffer_bytes: u64,
    },

    /// A buffer lacks a usage flag that is needed.
    #[error("tensor \"{tensor}\": the {role} buffer was created without {missing}: add it to the buffer's usage")]
    MissingUsage {
        /// The tensor's name.
        tensor: String,
        /// `parameter`, `gradient` or `average`.
        role: &'static str,
        /// The usage flag.
        missing: &'static str,
    },

    /// Two slices that must be apart share elements.
    #[error(
        "{first} and {second} overlap in bytes {start}..{end} of one buffer: move one of them, a step reads gradients while it writes parameters"
    )]
    Overlap {
        /// One slice, by role and tensor name.
        first: String,
        /// The other.
        second: String,
        /// First shared byte of the buffer.
        start: u64,
        /// One past the last shared byte.
        end: u64,
    },

    /// Groups that share one norm keep different kinds of direction memory (momentum and sign counters).
    #[error(
        "groups \"{first}\" and \"{second}\" share the norm \"{scope}\", but one keeps a momentum and the other sign counters to measure its alignment: give both a momentum rule, or neither, or let each have its own norm"
    )]
    MixedScope {
        /// A group with a momentum rule.
        first: String,
        /// A group without one.
        second: String,
        /// The shared norm's name.
        scope: String,
    },

    /// Groups share one norm, but their regimes keep different memory.
    #[error(
        "groups \"{first}\" and \"{second}\" share the norm \"{scope}\", but their regimes keep different memory: give both the same rule and regime, or let each have its own norm"
    )]
    MixedMemory {
        /// Name of one group.
        first: String,
        /// Name of the other group.
        second: String,
        /// The shared norm's name.
        scope: String,
    },

    /// A regime needs the loss of the step, which was not given.
    #[error(
        "group \"{group}\": regime {regime} needs the loss of every step: give it with OptimizerBuilder::loss on the device, with CpuOptimizer::step_with_loss on the host"
    )]
    MissingLoss {
        /// Name of the group.
        group: String,
        /// Name of the group's regime.
        regime: &'static str,
    },

    /// The problem does not fit the crate's 32-bit block tables or the device's limits.
    #[error("{what} is {value}, above {limit}: {way_out}")]
    Limit {
        /// Quantity that is too large.
        what: String,
        /// Its value.
        value: u64,
        /// Largest allowed value.
        limit: u64,
        /// Way out.
        way_out: &'static str,
    },
}

/// A call that does not fit the optimizer, or comes out of order.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// A call came out of order. A step over several ranks is measured, combined and applied, in this order; other optimizers have no such
    /// calls.
    #[error("{call} was called out of turn: {way_out}")]
    ShardedStep {
        /// Name of the call.
        call: &'static str,
        /// Way out.
        way_out: &'static str,
    },

    /// The sums of the ranks do not belong to each other, or not to this step.
    #[error("the sums of the ranks cannot be used: {problem}")]
    ShardSums {
        /// Which rank differs, in what, and the way out.
        problem: String,
    },

    /// A slice passed to a CPU step or to [`Optimizer::rebind`](crate::Optimizer::rebind) does not have the declared element type.
    #[error(
        "tensor \"{tensor}\" was built with {role}s of {}, but this call was given {}: pass slices of the builder's elements",
        expected.name(),
        actual.name()
    )]
    StepElement {
        /// The tensor's name.
        tensor: String,
        /// `parameter` or `gradient`.
        role: &'static str,
        /// Element type at build time.
        expected: Element,
        /// Element type in this call.
        actual: Element,
    },

    /// A slice passed to a CPU step or to [`Optimizer::rebind`](crate::Optimizer::rebind) does not have the declared length.
    #[error(
        "tensor \"{tensor}\" was built with {expected} elements, but this call was given {actual} {role}s: pass the slices in the order and length of the builder"
    )]
    StepLength {
        /// The tensor's name.
        tensor: String,
        /// `parameter` or `gradient`.
        role: &'static str,
        /// Elements at build time.
        expected: usize,
        /// Elements now.
        actual: usize,
    },

    /// A CPU step or [`Optimizer::rebind`](crate::Optimizer::rebind) was given a number of tensors that differs from the declared one.
    #[error(
        "the optimizer was built with {expected} tensors, but this call was given {actual} {role} slices: pass one slice per tensor, in the order of the builder"
    )]
    StepTensors {
        /// `parameter` or `gradient`.
        role: &'static str,
        /// Tensors at build time.
        expected: usize,
        /// Slices now.
        actual: usize,
    },

    /// `rebind` was called on an optimizer that was built without `rebindable`.
    #[error(
        "the optimizer was built for buffers that stay where they are: call OptimizerBuilder::rebindable(true) before build"
    )]
    NotRebindable,

    /// A slice of a rebindable optimizer starts at an offset at which no binding can start.
    #[error(
        "tensor \"{tensor}\": the {role} slice starts at byte {offset_bytes}, but with OptimizerBuilder::rebindable it must start at a multiple of {alignment_bytes}, the device's min_storage_buffer_offset_alignment"
    )]
    BindingAlignment {
        /// The tensor's name.
        tensor: String,
        /// `parameter` or `gradient`.
        role: &'static str,
        /// The slice's first byte in its buffer.
        offset_bytes: u64,
        /// Required alignment in bytes.
        alignment_bytes: u64,
    },

    /// A call needs an average that is not kept.
    #[error("{owner} has no average: give its group an Averaging other than Off before build")]
    NoAverages {
        /// `the optimizer`, or a tensor by its name.
        owner: String,
    },

    /// A step, a copy of averages or a checkpoint was requested while the averages are swapped in.
    #[error(
        "{what} was asked for while the averages are swapped in: swap them back first with Optimizer::encode_swap_averages (CpuOptimizer::swap_averages on the host)"
    )]
    AveragesSwapped {
        /// Requested operation.
        what: &'static str,
    },

    /// There is no tensor of this index.
    #[error("there is no tensor {index}: the optimizer has {tensors}, counted from 0 in the order of the builder")]
    UnknownTensor {
        /// The index.
        index: usize,
        /// Tensors of the optimizer.
        tensors: usize,
    },

    /// The destination slice for a tensor's averages does not have the tensor's length.
    #[error(
        "tensor \"{tensor}\" has {expected} elements, but the place for its averages has {actual}: give a slice of the tensor's length"
    )]
    AveragesLength {
        /// The tensor's name.
        tensor: String,
        /// Elements of the tensor.
        expected: u64,
        /// Elements of the slice.
        actual: u64,
    },
}

/// A device that cannot be found, fails, or is lost.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No adapter meets the request.
    #[error("no usable adapter: {0}")]
    NoAdapter(String),

    /// No adapter's name contains the requested one.
    #[error("no adapter's name contains \"{wanted}\"; there is {seen}")]
    UnknownAdapter {
        /// Requested name.
        wanted: String,
        /// Available adapters.
        seen: String,
    },

    /// The device refused an allocation or a pipeline while building.
    #[error("the device refused {what}: {message}")]
    Failed {
        /// Object that was being created.
        what: String,
        /// The driver's or wgpu's message, on one line.
        message: String,
    },

    /// The device is lost: commands recorded from now on have no effect. Parameters, gradients and the optimizer's state were on the device
    /// and cannot be read any more. A step that was running may have been interrupted.
    #[error(
        "the device is lost ({0}): its parameters are gone with it, steps not yet completed may have been half done; build a new optimizer on a new device, from the last parameters that were read or saved"
    )]
    Lost(String),

    /// A readback failed or did not come in time.
    #[error("reading {what} back from the device failed: {message}")]
    Readback {
        /// Data that was being read.
        what: &'static str,
        /// Reason of the failure.
        message: String,
    },
}

/// A checkpoint that cannot be read, written or restored.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A checkpoint file could not be read or written.
    #[error("the checkpoint {path} cannot be {action}: {message}")]
    File {
        /// The file, or `in memory`.
        path: String,
        /// `read`, `written` or `made`.
        action: &'static str,
        /// Reason and way out.
        message: String,
        /// Error of the file system, if it is one.
        #[source]
        source: Option<Cause>,
    },

    /// The bytes are not a complete checkpoint.
    #[error("{checkpoint} is damaged, or none of wgpu-optim: {problem}; take another")]
    Damaged {
        /// Which checkpoint.
        checkpoint: String,
        /// Description of the damage.
        problem: String,
    },

    /// A checkpoint has a format version that this version of the crate does not read.
    #[error(
        "{checkpoint} has version {version}, but this wgpu-optim reads versions 2 to {newest}: use a version of the crate that reads it"
    )]
    Version {
        /// Which checkpoint.
        checkpoint: String,
        /// Format version of the checkpoint.
        version: u32,
        /// Format version that this crate reads.
        newest: u32,
    },

    /// A checkpoint belongs to an optimizer with a different configuration.
    #[error(
        "{checkpoint} is of another optimizer: {what} is {found} there, {expected} here; build the optimizer as it was when it was saved"
    )]
    Differs {
        /// Which checkpoint.
        checkpoint: String,
        /// Setting that differs.
        what: String,
        /// Value in the checkpoint.
        found: String,
        /// Value in the optimizer.
        expected: String,
    },

    /// Parameters were requested from a checkpoint that was saved without them.
    #[error("{checkpoint} was saved without the parameters: save it with them, or restore the rest alone")]
    WithoutParameters {
        /// Which checkpoint.
        checkpoint: String,
    },
}

/// Error of the standard library or of another crate, as [`std::error::Error::source`] returns it. Two are equal if they read the same.
#[derive(Debug, Clone)]
pub struct Cause(Arc<dyn std::error::Error + Send + Sync>);

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
        // 1e38 is 39 digits otherwise, and 1e-45 a row of zeros.
        let value = match value.parse::<f64>() {
            Ok(number) if value.len() > 16 => format!("{number:e}"),
            _ => value,
        };
        Err(BuildError::InvalidValue { owner: owner(), field, value, expected }.into())
    }
}
