//! Checkpoints: the complete state of an optimizer in a portable safetensors file.
//!
//! The memory of every tensor is stored in the tensor's own order of elements, independent of the device's geometry, so that a file saved on
//! one adapter can be loaded on another or on the CPU path. Both paths fill a [`Draft`] and read a checked [`Checkpoint`].

mod about;
mod adapted;
mod differences;
mod draft;
mod header;
mod tables;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};

use crate::error::{Cause, CheckpointError, Error};
use crate::layout::{Field, GroupControls, GroupState, NO_TENSOR};
use crate::plan::{MemoryKind, Plan};
use about::About;
pub(crate) use adapted::Fitted;
pub use differences::{Difference, Differences};
use differences::{Found, Kind};
pub(crate) use draft::{Draft, Slot};
use draft::{average_name, items, memory_name, parameters_name};
pub(crate) use tables::Table;
use tables::impossible;

const _: () = assert!(cfg!(target_endian = "little"), "safetensors are little-endian, and so is everything here");

/// Notes that the caller adds to a checkpoint, by name, such as the epoch, the seed or the path of the data.
pub type Notes = BTreeMap<String, String>;

/// Selects whether a checkpoint stores and restores the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Parameters {
    /// Stores or restores the parameters too.
    Included,
    /// Stores or restores the optimizer's state alone. The caller keeps the parameters.
    Excluded,
}

/// The complete state of an optimizer, and the parameters if requested: momentum, direction memory, the regimes' state, the number of steps
/// and of skipped steps, and the configuration that it belongs to.
///
/// [`Optimizer::save`](crate::Optimizer::save) and [`Optimizer::load`](crate::Optimizer::load) write and read it as a file, and so do
/// [`CpuOptimizer::save`](crate::CpuOptimizer::save) and [`CpuOptimizer::load`](crate::CpuOptimizer::load). Use this type to store it
/// elsewhere, to add notes, or to inspect it. Records are not part of it: drain them before.
///
/// A file is [safetensors](https://github.com/huggingface/safetensors). For each tensor it has the following entries, as far as the configuration
/// needs them: `parameters/NAME`, `momentum/NAME`, `second_moment/NAME` (v of AdamW), `largest_second_moment/NAME` (AMSGrad), with
/// [`State::Bits8`](crate::State::Bits8) instead `momentum_codes/NAME` (i8), `second_moment_codes/NAME` (u8) and `state_scales/NAME` (a u32 for every
/// 32 parameters), `row_second_moment/NAME` and `column_second_moment/NAME` (Adafactor), `direction_counters/NAME`, `last_gradient/NAME`,
/// `first_parameters/NAME`, `estimate/NAME` (w₀ and s of [`Prodigy`](crate::Prodigy)), `displacement/NAME` (of [`Mechanic`](crate::Mechanic)),
/// `streams/NAME`, `averages/NAME`, `base_iterates/NAME` (z of [schedule-free](crate::Averaging::ScheduleFree) training) and `remainders/NAME` (the
/// remainders of master weights, as i16) or, with [`State::Bits8`](crate::State::Bits8) and without an average, `remainder_codes/NAME` (i8).
/// `groups/state`, `groups/update` and, if needed, `tensors/record` have a row for each group or tensor.
///
/// In a schedule-free group `parameters/NAME` is y, where gradients are taken. A checkpoint with parameters also has `averages/NAME`, the
/// average x: **use that tensor for inference**. Resuming does not need it. The header's metadata has the format version, the step, the
/// configuration, the notes, and a checksum (CRC-32) of the configuration and the data. A file with a flipped bit is refused.
///
/// # Versions
/// A file names its settings and the fields of its tables. Files of older versions of this crate that lack a setting or a field can be loaded. A
/// missing field gets its value from before the first step, and a missing setting is that of the optimizer. A setting or a field that this version
/// does not know is an error that names it.
///
/// # Bits
/// Numbers are stored exactly. A run that resumes from a checkpoint has the same bits as one that was never interrupted, on the same path,
/// adapter, driver and tuning, and on the CPU path with any number of threads. On another path or adapter the results agree within rounding.
///
/// # Example
/// ```
/// use wgpu_optim::{Checkpoint, Group, Notes, OptimizerBuilder, Rule};
///
/// let mut w = vec![5.0f32; 100];
/// let g = vec![0.5f32; 100];
/// let build = || {
///     OptimizerBuilder::new(Rule::sgdm(0.9))
///         .group(Group::new("all").tensor("w", &[5.0f32; 100][..], &[0.0f32; 100][..]))
///         .build_cpu()
/// };
/// let mut optimizer = build()?;
/// optimizer.step(&mut [&mut w], &[&g])?;
/// let notes = Notes::from([("epoch".to_owned(), "1".to_owned())]);
/// let bytes = optimizer.checkpoint(Some(&[&w]), &notes)?.to_bytes();
///
/// // Later, elsewhere.
/// let checkpoint = Checkpoint::from_bytes(bytes)?;
/// assert_eq!((checkpoint.step(), checkpoint.notes()["epoch"].as_str()), (1, "1"));
/// let mut resumed = build()?;
/// let mut resumed_w = vec![0.0f32; 100];
/// resumed.restore(&checkpoint, Some(&mut [&mut resumed_w]))?;
/// assert_eq!(resumed_w, w);
/// assert_eq!(resumed.learning_rates(), optimizer.learning_rates());
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Clone)]
pub struct Checkpoint {
    /// Name of the checkpoint in messages.
    origin: String,
    about: About,
    metadata: Metadata,
    data: Vec<u8>,
}

/// Format version. It is raised by every change that older versions of this crate cannot read.
const VERSION: u32 = 5;
/// Oldest format version that is read. It has no checksum.
const OLDEST_VERSION: u32 = 2;

/// Key of [`About`] in the header's metadata.
const ABOUT: &str = "wgpu-optim checkpoint";
/// Key of the checksum, which is the CRC-32 of [`About`] as it is in the metadata and of the data after the header, in hexadecimal digits.
const CHECKSUM: &str = "wgpu-optim crc32";

/// Name in messages of a checkpoint that is not in a file.
const NO_FILE: &str = "the checkpoint";

impl Checkpoint {
    /// Reads a checkpoint from a file.
    ///
    /// # Errors
    /// Returns [`ErrorKind::CheckpointFile`](crate::ErrorKind::CheckpointFile) if the file cannot be read, and the errors of
    /// [`Checkpoint::from_bytes`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let refused = |message: String, source| {
            let path = path.display().to_string();
            Error::from(CheckpointError::File { path, action: "read", message, source })
        };
        let unreadable = |message: String| refused(message, None);
        let words = |error: std::io::Error| {
            refused(format!("{error}; name a file that is there and may be read"), Some(Cause::new(error)))
        };
        // Opening a pipe would block.
        if !path.metadata().map_err(words)?.is_file() {
            return Err(unreadable("it is not a file; name one".to_owned()));
        }
        let mut file = File::open(path).map_err(words)?;
        let size = file.metadata().map_err(words)?.len();
        let origin = format!("the checkpoint {}", path.display());

        // The data is read only after the header has turned out to be that of a checkpoint.
        let damaged = |problem| damaged(&origin, problem);
        let mut length = [0; header::LENGTH_BYTES];
        header::check_size(size).map_err(damaged)?;
        file.read_exact(&mut length).map_err(words)?;
        let header_bytes = header::checked_length(length, size).map_err(damaged)?;
        let mut text = sized(header_bytes).map_err(&unreadable)?;
        file.read_exact(&mut text).map_err(words)?;
        let data_bytes = size - (header::LENGTH_BYTES + header_bytes) as u64;
        let Opened { about, metadata, checksum } = open(&origin, &text, data_bytes)?;
        let mut data = sized(metadata.data_len()).map_err(&unreadable)?;
        file.read_exact(&mut data).map_err(words)?;
        checksum.check(&data).map_err(damaged)?;
        Ok(Checkpoint { origin, about, metadata, data })
    }

    /// Reads a checkpoint from bytes, which need not be trusted. They are validated before they are used, and the memory needed is proportional to
    /// their number.
    ///
    /// # Errors
    /// Returns [`ErrorKind::CheckpointDamaged`](crate::ErrorKind::CheckpointDamaged) if the bytes are not a complete checkpoint, or have a format
    /// version that this crate does not read. `restore` checks whether the checkpoint belongs to an optimizer.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Self, Error> {
        let mut bytes = bytes.into();
        let size = bytes.len() as u64;
        let damaged = |problem| damaged(NO_FILE, problem);
        header::check_size(size).map_err(damaged)?;
        let (length, rest) = bytes.split_at(header::LENGTH_BYTES);
        let length = length.try_into().unwrap_or_default();
        let header_bytes = header::checked_length(length, size).map_err(damaged)?;
        let (text, data) = rest.split_at(header_bytes);
        let Opened { about, metadata, checksum } = open(NO_FILE, text, data.len() as u64)?;
        checksum.check(data).map_err(damaged)?;
        bytes.drain(..header::LENGTH_BYTES + header_bytes);
        Ok(Checkpoint { origin: NO_FILE.to_owned(), about, metadata, data: bytes })
    }

    /// Writes the checkpoint to a file atomically: it is written beside the old file, synchronised to the disk, then renamed. A process that is
    /// killed at any time leaves the old file or the new one.
    ///
    /// # Errors
    /// Returns [`ErrorKind::CheckpointFile`](crate::ErrorKind::CheckpointFile) if the file cannot be written. An old file is then unchanged.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let header = self.header();
        header::check_written(&header).map_err(|message| {
            let path = path.display().to_string();
            Error::from(CheckpointError::File { path, action: "written", message, source: None })
        })?;
        crate::atomic_file::replace(path, |file| {
            file.write_all(&header)?;
            file.write_all(&self.data)
        })
        .map_err(|error| {
            Error::from(CheckpointError::File {
                path: path.display().to_string(),
                action: "written",
                message: format!("{error}; {}", crate::atomic_file::way_out(&error)),
                source: Some(Cause::new(error)),
            })
        })
    }

    /// Returns the checkpoint as the bytes of a safetensors file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        bytes.extend_from_slice(&self.data);
        bytes
    }

    fn header(&self) -> Vec<u8> {
        let about = self.about.to_json();
        let checksum = format!("{:08x}", checksum(&about, &self.data));
        let texts = BTreeMap::from([(ABOUT, about), (CHECKSUM, checksum)]);
        header::write(&texts, &self.metadata)
    }

    /// Returns the number of steps attempted before the checkpoint was made, skipped ones included. It is the number of the next step.
    pub fn step(&self) -> u64 {
        self.about.step
    }

    /// Returns the notes that the caller added.
    pub fn notes(&self) -> &Notes {
        &self.about.notes
    }

    /// Returns the names of the groups, in the order of declaration.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.about.groups.iter().map(|group| group.name.as_str())
    }

    /// Returns the names and lengths (in elements) of the tensors, in the order of declaration.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, u64)> {
        let tensors = self.about.tensors.iter();
        tensors.map(|tensor| (tensor.name.as_str(), tensor.elements))
    }

    /// Returns the names of the stored safetensors entries, in the order of the file.
    #[doc(hidden)]
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Returns the bytes of a stored safetensors entry.
    #[doc(hidden)]
    pub fn entry(&self, name: &str) -> Option<&[u8]> {
        let info = self.metadata.info(name)?;
        Some(&self.data[info.data_offsets.0..info.data_offsets.1])
    }

    /// Returns true if the checkpoint contains the parameters.
    pub fn has_parameters(&self) -> bool {
        self.about.parameters
    }

    /// Returns a tensor's parameters, if the checkpoint contains them. 16-bit parameters are converted to f32, which is exact.
    pub fn parameters(&self, tensor: &str) -> Option<Vec<f32>> {
        let info = self.metadata.info(&parameters_name(tensor))?;
        let bytes = &self.data[info.data_offsets.0..info.data_offsets.1];
        match info.dtype {
            Dtype::F32 => Some(bytemuck::pod_collect_to_vec(bytes)),
            Dtype::F16 => {
                let halves: Vec<f16> = bytemuck::pod_collect_to_vec(bytes);
                Some(halves.iter().map(|half| half.to_f32()).collect())
            }
            Dtype::BF16 => {
                let halves: Vec<bf16> = bytemuck::pod_collect_to_vec(bytes);
                Some(halves.iter().map(|half| half.to_f32()).collect())
            }
            _ => None,
        }
    }

    /// Returns the checkpoint for an optimizer with this plan, with the tables of this version. A difference that is not accepted is an error, which
    /// is returned before anything is changed.
    pub(crate) fn fit(&self, plan: &Plan, parameters: Parameters, accepted: Differences) -> Result<Fitted<'_>, Error> {
        let here = About::of(plan, self.about.parameters);
        let found = self.about.differences(&here);
        if let Some(refused) = found.iter().find(|found| !accepted.accept(found.kind)) {
            return Err(self.differs(refused));
        }
        let fitted = if found.is_empty() {
            let checkpoint = self.fit_as_it_is(plan, here)?;
            Fitted { checkpoint, new_tensors: HashSet::new(), differences: Vec::new() }
        } else {
            self.adapted(plan, &here, parameters, &found)?
        };
        fitted.checkpoint.check_states(plan).map_err(|problem| damaged(&self.origin, problem))?;
        self.check_parameters(parameters)?;
        Ok(fitted)
    }

    fn check_parameters(&self, parameters: Parameters) -> Result<(), Error> {
        if parameters == Parameters::Included && !self.about.parameters {
            return Err(Error::from(CheckpointError::WithoutParameters { checkpoint: self.origin.clone() }));
        }
        Ok(())
    }

    /// Returns the checkpoint for an optimizer that was built in the same way.
    fn fit_as_it_is(&self, plan: &Plan, here: About) -> Result<Cow<'_, Self>, Error> {
        if let Some(found) = self.other_shape(plan) {
            return Err(self.differs(&found));
        }
        self.check_contents(plan).map_err(|problem| damaged(&self.origin, problem))?;
        if self.about.tables == here.tables {
            return Ok(Cow::Borrowed(self));
        }
        for table in Table::all(plan) {
            let kernels = plan.configs.iter().map(|config| config.regime.regime().kernel());
            self.about.check_fields(table, kernels).map_err(|found| self.differs(&found))?;
        }
        let tables = Table::all(plan).map(|table| (table, self.table_of_this_version(plan, table)));
        Ok(Cow::Owned(self.with_tables(plan, here, tables.collect())?))
    }

    /// Finds second moments of rows or columns of a tensor that has another shape here. No setting records the shape.
    fn other_shape(&self, plan: &Plan) -> Option<Found> {
        let items = items(plan, self.about.parameters);
        let here: HashMap<&str, &Vec<usize>> = items.iter().map(|item| (item.name.as_str(), &item.shape)).collect();
        let in_words = |shape: Option<&Vec<usize>>| shape.map_or("none".to_owned(), |shape| format!("{shape:?}"));
        plan.tensors.iter().find_map(|tensor| {
            let has_flat = self.metadata.info(&memory_name(MemoryKind::SecondMoment, &tensor.name)).is_some();
            [MemoryKind::RowSecondMoment, MemoryKind::ColumnSecondMoment].into_iter().find_map(|kind| {
                let name = memory_name(kind, &tensor.name);
                let found = self.metadata.info(&name).map(|info| &info.shape);
                let expected = here.get(name.as_str()).copied();
                // A missing entry is a difference only if the file has a second moment of another kind. Otherwise the file is damaged.
                let differs = found != expected && (found.is_some() || has_flat);
                differs.then(|| Found {
                    kind: Kind::Never,
                    what: format!("the shape of \"{name}\""),
                    found: in_words(found),
                    expected: in_words(expected),
                })
            })
        })
    }

    fn differs(&self, difference: &Found) -> Error {
        Error::from(CheckpointError::Differs {
            checkpoint: self.origin.clone(),
            what: difference.what.clone(),
            found: difference.found.clone(),
            expected: difference.expected.clone(),
            way_out: difference.kind.way_out(),
        })
    }

    /// Returns a table with the fields of this version. Fields that the file lacks have their values from before the first step.
    fn table_of_this_version(&self, plan: &Plan, table: Table) -> Vec<u32> {
        let old: Vec<u32> = bytemuck::pod_collect_to_vec(self.bytes(Slot::Table(table)));
        let old_words = self.about.fields_of(table).len().max(1);
        let mut new = table.first_rows(plan);
        let rows = new.chunks_exact_mut(table.words()).zip(old.chunks_exact(old_words));
        for (row, (new, old)) in rows.enumerate() {
            let kernel = table.kernel_of_row(plan, row);
            let fields = self.about.fields_of_row(table, kernel);
            for (word, field) in new.iter_mut().zip(table.fields_of_row(plan, row)) {
                if let Some(at) = fields.iter().position(|old| *old == field) {
                    *word = old[at];
                }
            }
        }
        new
    }

    /// Returns the checkpoint with other tables, which are those of the optimizer that `here` describes.
    fn with_tables(&self, plan: &Plan, here: About, tables: HashMap<Table, Vec<u32>>) -> Result<Self, Error> {
        let parameters = if self.about.parameters { Parameters::Included } else { Parameters::Excluded };
        let mut draft = Draft::new(plan, parameters, self.notes())?;
        for (slot, range) in &draft.slots {
            let bytes = match slot {
                Slot::Table(table) => bytemuck::cast_slice(&tables[table]),
                slot => self.bytes(*slot),
            };
            draft.data[range.clone()].copy_from_slice(bytes);
        }
        let mut about = self.about.clone();
        about.take_fields_of(here);
        Ok(Checkpoint { origin: self.origin.clone(), about, metadata: draft.metadata, data: draft.data })
    }

    /// Checks that the file has every entry that the configuration needs, in its type and shape, and no other entries.
    fn check_contents(&self, plan: &Plan) -> Result<(), String> {
        let mut items = items(plan, self.about.parameters);
        items.retain(|item| match item.slot {
            Slot::Table(table) => self.about.has(table),
            _ => true,
        });
        // Another version's rows may be shorter or longer.
        for item in &mut items {
            if let Slot::Table(table) = item.slot {
                item.shape[1] = self.about.fields_of(table).len();
            }
        }
        for item in &items {
            let info = self.metadata.info(&item.name).ok_or_else(|| format!("\"{}\" is missing in it", item.name))?;
            if info.dtype != item.dtype || info.shape != item.shape {
                return Err(format!(
                    "\"{}\" is {} of shape {:?}, not {} of shape {:?}",
                    item.name, info.dtype, info.shape, item.dtype, item.shape
                ));
            }
        }
        let names = self.names();
        if names.len() != items.len() {
            let known = |name: &String| items.iter().any(|item| item.name == *name);
            let foreign = names.into_iter().find(|name| !known(name));
            return Err(format!("\"{}\" does not belong in it", foreign.unwrap_or_default()));
        }
        Ok(())
    }

    /// Checks that a step could have left the groups' states as they are. Any other values would lead to meaningless steps.
    fn check_states(&self, plan: &Plan) -> Result<(), String> {
        for table in [Table::States, Table::Updates, Table::Controls] {
            let rows: Vec<u32> = bytemuck::pod_collect_to_vec(self.bytes(Slot::Table(table)));
            for (group, row) in rows.chunks_exact(table.words()).enumerate() {
                for (field, &word) in table.fields_of_row(plan, group).iter().zip(row) {
                    if let Some(problem) = impossible(field, word) {
                        let name = &plan.configs[group].name;
                        return Err(format!("{} of group \"{name}\" is {problem}", field.name));
                    }
                }
            }
        }
        for (group, state) in self.states().iter().enumerate() {
            if u64::from(state.skips_in_row) > self.about.step {
                return Err(format!(
                    "group \"{}\" has skipped {} steps in a row of {}",
                    plan.configs[group].name, state.skips_in_row, self.about.step
                ));
            }
            if steps_of(state) != self.about.step {
                return Err(format!(
                    "it is of step {}, but group \"{}\" is at step {}",
                    self.about.step,
                    plan.configs[group].name,
                    steps_of(state)
                ));
            }
        }
        Ok(())
    }

    /// Returns the groups' states. The checkpoint must have been checked, as for [`Checkpoint::bytes`].
    pub(crate) fn states(&self) -> Vec<GroupState> {
        bytemuck::pod_collect_to_vec(self.bytes(Slot::Table(Table::States)))
    }

    /// Returns the groups' controls. The checkpoint must have been checked, as for [`Checkpoint::bytes`].
    pub(crate) fn controls(&self) -> Vec<GroupControls> {
        bytemuck::pod_collect_to_vec(self.bytes(Slot::Table(Table::Controls)))
    }

    /// Returns the bytes of a slot, or an empty slice if there is no such slot.
    pub(crate) fn bytes(&self, slot: Slot) -> &[u8] {
        let name = match slot {
            Slot::Table(table) => table.name().to_owned(),
            Slot::Memory(tensor, kind) => memory_name(kind, &self.about.tensors[tensor].name),
            Slot::Parameters(tensor) => parameters_name(&self.about.tensors[tensor].name),
            Slot::Average(tensor) => average_name(&self.about.tensors[tensor].name),
        };
        match self.metadata.info(&name) {
            Some(info) => &self.data[info.data_offsets.0..info.data_offsets.1],
            None => &[],
        }
    }
}

/// Contents of a header.
struct Opened {
    about: About,
    metadata: Metadata,
    checksum: Checksum,
}

/// Checksum of a file: the hash of its description, to which `check` adds the data, and the expected value. A file of the oldest version has none.
struct Checksum {
    so_far: crc32fast::Hasher,
    expected: Option<u32>,
}

impl Checksum {
    /// Returns an error if the data is not as it was written.
    fn check(mut self, data: &[u8]) -> Result<(), String> {
        self.so_far.update(data);
        let found = self.so_far.finalize();
        match self.expected {
            Some(expected) if expected != found => {
                Err(format!("its checksum is {found:08x} instead of {expected:08x}: some of its bytes have changed"))
            }
            _ => Ok(()),
        }
    }
}

fn checksum(about: &str, data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(about.as_bytes());
    hasher.update(data);
    hasher.finalize()
}

/// Reads a header. Returns an error unless it describes `data_bytes` bytes of data.
fn open(origin: &str, text: &[u8], data_bytes: u64) -> Result<Opened, Error> {
    let damaged = |problem| damaged(origin, problem);
    let header = header::parse(text).map_err(damaged)?;
    let about = header
        .texts
        .get(ABOUT)
        .ok_or_else(|| damaged(format!("it is in the safetensors format, but has no \"{ABOUT}\" in its metadata")))?;
    // The version is checked first, because a newer one may have changed everything else.
    let version = about::version(about).map_err(damaged)?;
    if !(OLDEST_VERSION..=VERSION).contains(&version) {
        return Err(Error::from(CheckpointError::Version { checkpoint: origin.to_owned(), version, newest: VERSION }));
    }
    let expected = match header.texts.get(CHECKSUM) {
        Some(text) => {
            let value = u32::from_str_radix(text, 16);
            Some(value.map_err(|_| damaged(format!("its checksum is \"{text}\", not 8 hexadecimal digits")))?)
        }
        None if version == OLDEST_VERSION => None,
        None => return Err(damaged(format!("it has no \"{CHECKSUM}\" in its metadata"))),
    };
    let mut so_far = crc32fast::Hasher::new();
    so_far.update(about.as_bytes());
    let about = About::from_json(about).map_err(damaged)?;
    let described = header.metadata.data_len() as u64;
    if described != data_bytes {
        let what = if data_bytes < described { "cut off" } else { "longer than it should be" };
        return Err(damaged(format!("it is {what}: its header describes {described} bytes, {data_bytes} follow it")));
    }
    Ok(Opened { about, metadata: header.metadata, checksum: Checksum { so_far, expected } })
}

fn damaged(origin: &str, problem: String) -> Error {
    Error::from(CheckpointError::Damaged { checkpoint: origin.to_owned(), problem })
}

/// Returns `bytes` zeros, or a message if there is no memory for them.
fn sized(bytes: usize) -> Result<Vec<u8>, String> {
    let mut sized = Vec::new();
    sized
        .try_reserve_exact(bytes)
        .map_err(|_| format!("there is no memory for {bytes} bytes; leave the parameters out, or split the groups"))?;
    sized.resize(bytes, 0);
    Ok(sized)
}

/// Formats as `checkpoint of step 230: groups "model"; 4 tensors of 9610 elements, with parameters`.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<String> = self.groups().map(|name| format!("\"{name}\"")).collect();
        let elements = self.tensors().fold(0u64, |all, (_, elements)| all.saturating_add(elements));
        write!(
            f,
            "checkpoint of step {}: groups {}; {} tensors of {elements} elements, {} parameters",
            self.step(),
            groups.join(", "),
            self.about.tensors.len(),
            if self.has_parameters() { "with" } else { "without" }
        )
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("origin", &self.origin)
            .field("about", &self.about)
            .field("names", &self.names())
            .finish_non_exhaustive()
    }
}

/// Returns the number of tensors with telemetry.
fn recorded_tensors(plan: &Plan) -> usize {
    let units = plan.units.iter();
    units.filter(|unit| unit.tensor != NO_TENSOR).count()
}

/// Returns the slot of the last record in a ring of `ring_steps` steps.
pub(crate) fn last_slot(state: &GroupState, ring_steps: usize) -> usize {
    let steps = ring_steps as u64;
    ((u64::from(state.record_slot) + steps - 1) % steps) as usize
}

/// Returns the number of steps attempted.
pub(crate) fn steps_of(state: &GroupState) -> u64 {
    u64::from(state.steps_high) << 32 | u64::from(state.steps_low)
}
