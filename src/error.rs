//! Everything that can go wrong, in words that name the culprit and the way out.

use crate::element::Element;

/// What a call of this crate can refuse, and why.
///
/// Every message is one line that names the group or tensor, the number that is wrong, the limit it breaks and what to do
/// instead. Whatever returns an `Err` has changed nothing, but for what [`Error::Halted`] and [`Error::DeviceLost`] say of themselves.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A number of a rule, a regime or a group is outside its range.
    #[error("{owner}: {field} is {value}, but it must be {expected}")]
    InvalidValue {
        /// Whose number it is: `rule sgdm`, `group "weights"`, …
        owner: String,
        /// The number's name.
        field: &'static str,
        /// The number, in words.
        value: String,
        /// The range, in words.
        expected: &'static str,
    },

    /// `build` was called before any group was given.
    #[error(
        "the optimizer has no group: add at least one with OptimizerBuilder::group before build"
    )]
    NoGroups,

    /// Two groups, or two tensors of one optimizer, have the same name.
    #[error("two {what}s are named \"{name}\": give each its own name, messages go by it")]
    DuplicateName {
        /// `group` or `tensor`.
        what: &'static str,
        /// The name.
        name: String,
    },

    /// A call that does not come next in a step: that of several ranks is measured, combined and applied, in this order, and others are not.
    #[error("{call} was called out of turn: {way_out}")]
    ShardedStep {
        /// The call.
        call: &'static str,
        /// What to do.
        way_out: &'static str,
    },

    /// What ranks have measured does not belong together, or not to this step.
    #[error("the sums of the ranks cannot be used: {problem}")]
    ShardSums {
        /// Which rank differs, in what, and the way out.
        problem: String,
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
        /// What its elements are stored as.
        element: Element,
    },

    /// The word that a 16-bit tensor of odd length ends in is not all in its buffer.
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

    /// A slice handed to a CPU step, or to [`Optimizer::rebind`](crate::Optimizer::rebind), has other elements than were declared.
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
        /// What they were at build time.
        expected: Element,
        /// What they are now.
        actual: Element,
    },

    /// A buffer lacks a usage flag that is needed.
    #[error(
        "tensor \"{tensor}\": the {role} buffer was created without {missing}: add it to the buffer's usage"
    )]
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

    /// A slice handed to a CPU step, or to [`Optimizer::rebind`](crate::Optimizer::rebind), differs in length from what was declared.
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

    /// A CPU step, or [`Optimizer::rebind`](crate::Optimizer::rebind), was given another number of tensors than was declared.
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

    /// `rebind` of an optimizer that was not built for it.
    #[error(
        "the optimizer was built for buffers that stay where they are: call OptimizerBuilder::rebindable(true) before build"
    )]
    NotRebindable,

    /// A slice of an optimizer that can be rebound starts where no binding can start.
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
        /// What it must be a multiple of.
        alignment_bytes: u64,
    },

    /// Something was asked of an average that nobody keeps.
    #[error("{owner} has no average: give its group an Averaging other than Off before build")]
    NoAverages {
        /// `the optimizer`, or a tensor by its name.
        owner: String,
    },

    /// A step, or a copy of averages, while the averages lie where the parameters belong.
    #[error(
        "{what} was asked for while the averages are swapped in: swap them back first with Optimizer::encode_swap_averages (CpuOptimizer::swap_averages on the host)"
    )]
    AveragesSwapped {
        /// What was asked for.
        what: &'static str,
    },

    /// There is no tensor of this index.
    #[error(
        "there is no tensor {index}: the optimizer has {tensors}, counted from 0 in the order of the builder"
    )]
    UnknownTensor {
        /// The index.
        index: usize,
        /// Tensors of the optimizer.
        tensors: usize,
    },

    /// The place for a tensor's averages is not as long as the tensor.
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

    /// Groups that share one norm do not keep the same kind of direction memory.
    #[error(
        "groups \"{first}\" and \"{second}\" share the norm \"{scope}\", but one remembers directions by momentum and the other by sign counters: give both a momentum rule, or neither, or let each have its own norm"
    )]
    MixedScope {
        /// A group with a momentum rule.
        first: String,
        /// A group without one.
        second: String,
        /// The shared norm's name.
        scope: String,
    },

    /// Groups share one norm, but not what their regimes remember.
    #[error(
        "groups \"{first}\" and \"{second}\" share the norm \"{scope}\", but their regimes do not remember the same: give both the same rule and regime, or let each have its own norm"
    )]
    MixedMemory {
        /// One of them.
        first: String,
        /// The other.
        second: String,
        /// The shared norm's name.
        scope: String,
    },

    /// A regime goes by the loss, which nobody gave.
    #[error(
        "group \"{group}\": regime {regime} needs the loss of every step: give it with OptimizerBuilder::loss on the device, with CpuOptimizer::step_with_loss on the host"
    )]
    MissingLoss {
        /// The group.
        group: String,
        /// Its regime.
        regime: &'static str,
    },

    /// The problem does not fit the crate's 32-bit block tables or the device's limits.
    #[error("{what} is {value}, above {limit}: {way_out}")]
    Limit {
        /// What is too large.
        what: String,
        /// How large it is.
        value: u64,
        /// The largest possible value.
        limit: u64,
        /// What to do.
        way_out: &'static str,
    },

    /// No adapter fits what was asked for.
    #[error("no usable adapter: {0}")]
    NoAdapter(String),

    /// No adapter has the name that was asked for.
    #[error("no adapter's name contains \"{wanted}\"; there is {seen}")]
    UnknownAdapter {
        /// What was asked for.
        wanted: String,
        /// The adapters there are.
        seen: String,
    },

    /// The device refused an allocation or a pipeline while building.
    #[error("the device refused {what}: {message}")]
    Device {
        /// What was being created.
        what: String,
        /// The driver's or wgpu's message, on one line.
        message: String,
    },

    /// The device is lost: nothing recorded from now on has any effect. Parameters, gradients and everything that the optimizer
    /// remembered of them lie on it and cannot be read any more; a step that was under way may have been cut off in the middle.
    #[error(
        "the device is lost ({0}): its parameters are gone with it, steps not yet completed may have been half done; build a new optimizer on a new device, from the last parameters that were read or saved"
    )]
    DeviceLost(String),

    /// So many steps in a row were skipped that, by [`NonFinitePolicy::Error`](crate::NonFinitePolicy::Error), training has halted. The
    /// steps since are counted and recorded, and changed neither parameters nor anything that the rule or the regime remembers.
    #[error(
        "training has halted: {after} steps in a row were skipped, from step {first_step} on, the last of them for {cause}; parameters are as they were before step {first_step} and stay so: find the cause, then call resume"
    )]
    Halted {
        /// The first of the steps in a row.
        first_step: u64,
        /// How many the policy allows for.
        after: u32,
        /// What was not finite, in words: how many elements, the tensor and the element of the first.
        cause: String,
        /// The same in numbers; `None` where it was the loss.
        nonfinite: Option<crate::NonFinite>,
    },

    /// The file that keeps tunings could not be written.
    #[error(
        "cannot write the tuning cache {path}: {message}; name another file in WGPU_OPTIM_TUNING_CACHE"
    )]
    TuningCache {
        /// The file.
        path: String,
        /// Why not.
        message: String,
    },

    /// The file of a checkpoint could not be read or written.
    #[error(
        "the checkpoint {path} cannot be {action}: {message}; name a file that is there to be read, in a folder that can be written"
    )]
    CheckpointFile {
        /// The file, or `in memory`.
        path: String,
        /// `read`, `written` or `made`.
        action: &'static str,
        /// Why not, and the way out.
        message: String,
    },

    /// Bytes are no checkpoint, or not a whole one.
    #[error("{checkpoint} is damaged, or none of wgpu-optim: {problem}; take another")]
    CheckpointDamaged {
        /// Which checkpoint.
        checkpoint: String,
        /// What is wrong with it.
        problem: String,
    },

    /// A checkpoint has a form that this version of the crate does not know.
    #[error(
        "{checkpoint} has version {version}, but this wgpu-optim reads versions 2 to {newest}: use a version that reads that"
    )]
    CheckpointVersion {
        /// Which checkpoint.
        checkpoint: String,
        /// Its version.
        version: u32,
        /// The newest that is known here.
        newest: u32,
    },

    /// A checkpoint belongs to an optimizer that was built otherwise.
    #[error(
        "{checkpoint} is of another optimizer: {what} is {found} there, {expected} here; build the optimizer as it was when it was saved"
    )]
    CheckpointDiffers {
        /// Which checkpoint.
        checkpoint: String,
        /// What differs.
        what: String,
        /// What it is in the checkpoint.
        found: String,
        /// What it is in the optimizer.
        expected: String,
    },

    /// Parameters are asked of a checkpoint that was saved without.
    #[error(
        "{checkpoint} was saved without the parameters: save it with them, or restore the rest alone"
    )]
    CheckpointWithoutParameters {
        /// Which checkpoint.
        checkpoint: String,
    },

    /// A readback failed or did not come in time.
    #[error("reading {what} back from the device failed: {message}")]
    Readback {
        /// What was being read.
        what: &'static str,
        /// Why it failed.
        message: String,
    },
}

/// Checks one number of a configuration.
///
/// `owner` is only called for the message, so a valid number costs no allocation.
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
        Err(Error::InvalidValue {
            owner: owner(),
            field,
            value: value.to_string(),
            expected,
        })
    }
}
