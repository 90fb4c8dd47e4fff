//! Cache of tunings on disk, so that the next run need not measure again. Invalid files are ignored.

use std::hash::Hasher;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Problem};
use crate::gpu::context::Gpu;
use crate::gpu::shader::sources;
use crate::gpu::tuning::{Partials, Tuning};

/// Environment variable that names the file of [`TuningCache::from_env`]. An empty value disables the cache.
pub const CACHE_VARIABLE: &str = "WGPU_OPTIM_TUNING_CACHE";

/// File of tunings, keyed by adapter, driver, version of the kernels and size.
///
/// ```no_run
/// # fn main() -> Result<(), wgpu_optim::Error> {
/// use wgpu_optim::gpu::{TuneOptions, TuningCache};
/// use wgpu_optim::{Gpu, GpuOptions};
///
/// let gpu = pollster::block_on(Gpu::request(&GpuOptions::default()))?;
/// let cache = TuningCache::at("tuning.json");
/// let tuning = match cache.get(&gpu, 1 << 22) {
///     Some(tuning) => tuning,
///     None => {
///         let best = gpu.tune(&TuneOptions { elements: 1 << 22, ..Default::default() })?.best;
///         cache.put(&gpu, 1 << 22, best)?;
///         best
///     }
/// };
/// let gpu = gpu.with_tuning(tuning)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TuningCache {
    path: PathBuf,
}

/// Version of the file format.
const VERSION: u32 = 1;
/// Size in bytes above which a file is not read, because it cannot be a tuning cache.
const MOST_BYTES: u64 = 1 << 20;
/// Number of entries above which the oldest are removed.
const MOST_ENTRIES: usize = 512;
/// Largest distance of an entry's size from the requested size, in powers of two. Blocks for 2^26 parameters would
/// leave most of a GPU idle at 2^16.
const MOST_OCTAVES: f64 = 3.0;

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    entries: Vec<Value>,
}

/// Key of a tuning.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Key {
    backend: String,
    adapter: String,
    vendor: u32,
    device: u32,
    driver: String,
    driver_info: String,
    kernels: String,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    key: Key,
    elements: u64,
    workgroup_size: u32,
    quads_per_invocation: u32,
    partials: String,
    finish_workgroup_size: u32,
}

impl TuningCache {
    /// Uses the file at this path, which need not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        TuningCache { path: path.into() }
    }

    /// Uses the file that the environment variable `WGPU_OPTIM_TUNING_CACHE` names, or else `wgpu-optim/tuning.json` in
    /// the system's cache directory. Returns `None` if the variable is empty or there is no such directory.
    pub fn from_env() -> Option<Self> {
        match std::env::var_os(CACHE_VARIABLE) {
            Some(path) if path.is_empty() => None,
            Some(path) => Some(Self::at(path)),
            None => {
                use etcetera::BaseStrategy;
                let system = etcetera::base_strategy::choose_native_strategy().ok()?;
                Some(Self::at(system.cache_dir().join("wgpu-optim").join("tuning.json")))
            }
        }
    }

    /// Returns the path of the file.
    #[doc(hidden)]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the tuning for this adapter, driver and version of the kernels whose size is nearest to `elements`,
    /// within a factor of eight. Returns `None` if there is none, or if the file or its entry is invalid. One warning
    /// is logged in that case.
    pub fn get(&self, gpu: &Gpu, elements: u64) -> Option<Tuning> {
        let limits = gpu.device().limits();
        let preset = Tuning::for_device(gpu.device());
        let octaves = |size: u64| (size.max(1) as f64 / elements.max(1) as f64).log2().abs();
        let (entries, mut problems) = self.right_entries(gpu);
        let best = entries
            .into_iter()
            .filter(|&(size, _)| octaves(size) <= MOST_OCTAVES)
            .filter(|&(_, tuning)| {
                let suits = tuning == preset || tuning.suits(elements, &limits);
                if !suits {
                    problems.push(format!("its blocks are too small for {elements} parameters"));
                }
                suits
            })
            .min_by(|&(a, _), &(b, _)| octaves(a).total_cmp(&octaves(b)))
            .map(|(_, tuning)| tuning);
        self.warn(&problems);
        best
    }

    /// Returns all tunings for this adapter, driver and version of the kernels, with their sizes, smallest first.
    #[doc(hidden)]
    pub fn entries(&self, gpu: &Gpu) -> Vec<(u64, Tuning)> {
        let (entries, problems) = self.right_entries(gpu);
        self.warn(&problems);
        entries
    }

    /// Returns the entries for this device, and the problems of the file or of its other entries.
    fn right_entries(&self, gpu: &Gpu) -> (Vec<(u64, Tuning)>, Vec<String>) {
        let key = Key::of(gpu);
        let mut found = Vec::new();
        let values = match self.read() {
            Ok(values) => values,
            Err(problem) => return (found, vec![problem]),
        };
        let mut problems = Vec::new();
        for value in values {
            match Entry::deserialize(&value) {
                Ok(entry) if entry.key == key => match entry.tuning(gpu) {
                    Ok(tuning) => found.push((entry.elements, tuning)),
                    Err(problem) => problems.push(problem),
                },
                Ok(_) => {}
                Err(problem) => problems.push(problem.to_string()),
            }
        }
        found.sort_by_key(|&(elements, _)| elements);
        (found, problems)
    }

    /// Adds a tuning, or replaces the one for the same adapter, driver, kernels and size. Other entries are kept. An
    /// invalid file is replaced. The write is atomic: readers see the old file or the new one. If two processes write
    /// at the same time, the later one wins.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) if the device does not support the tuning, or
    /// [`ErrorKind::TuningCache`](crate::ErrorKind::TuningCache) if the file cannot be written.
    pub fn put(&self, gpu: &Gpu, elements: u64, tuning: Tuning) -> Result<(), Error> {
        tuning.validate(gpu.device())?;
        // Threads of one process take turns, so that no entry is lost.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry::new(gpu, elements, tuning);
        let mut entries = self.read().unwrap_or_else(|problem| {
            self.warn(&[problem]);
            Vec::new()
        });
        entries.retain(|value| {
            Entry::deserialize(value).is_ok_and(|other| other.elements != elements || other.key != entry.key)
        });
        self.write(entries, &entry).map_err(|error| {
            Error::from(Problem::TuningCache { path: self.path.display().to_string(), message: error.to_string() })
        })
    }

    fn write(&self, mut entries: Vec<Value>, entry: &Entry) -> std::io::Result<()> {
        entries.push(serde_json::to_value(entry)?);
        let surplus = entries.len().saturating_sub(MOST_ENTRIES);
        entries.drain(..surplus);
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(folder)?;
        let mut text = serde_json::to_vec_pretty(&File { version: VERSION, entries })?;
        text.push(b'\n');
        crate::atomic_file::replace(&self.path, |file| file.write_all(&text))
    }

    /// Returns the entries of the file, or none if there is no file.
    fn read(&self) -> Result<Vec<Value>, String> {
        let words = |error: std::io::Error| error.to_string();
        let about = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            about => about.map_err(words)?,
        };
        // Reading from a pipe would block.
        if !about.is_file() {
            return Err("it is not a file".to_owned());
        }
        if about.len() > MOST_BYTES {
            return Err(format!("{} bytes are too many", about.len()));
        }
        let text = std::fs::read_to_string(&self.path).map_err(words)?;
        let file: File = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        if file.version != VERSION {
            return Err(format!("it is of version {}, not {VERSION}", file.version));
        }
        Ok(file.entries)
    }

    /// Logs one warning for all problems.
    fn warn(&self, problems: &[String]) {
        let Some(first) = problems.first() else {
            return;
        };
        let more = match problems.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        log::warn!(
            "ignoring invalid parts of the tuning cache {}: {first}{more}; `wgpu-optim tune` replaces it",
            self.path.display()
        );
    }
}

impl Gpu {
    /// Returns the same device with the geometry that an earlier [`Gpu::tune`] stored for about this size in the cache
    /// of [`TuningCache::from_env`]. Without such an entry the geometry stays unchanged.
    pub fn with_cached_tuning(self, elements: u64) -> Self {
        let cached = TuningCache::from_env().and_then(|cache| cache.get(&self, elements));
        match cached {
            // `get` returns only valid tunings.
            Some(tuning) => self.clone().with_tuning(tuning).unwrap_or(self),
            None => self,
        }
    }
}

impl Key {
    fn of(gpu: &Gpu) -> Self {
        let info = gpu.device().adapter_info();
        Key {
            backend: info.backend.to_str().to_owned(),
            adapter: info.name,
            vendor: info.vendor,
            device: info.device,
            driver: info.driver,
            driver_info: info.driver_info,
            kernels: kernels(),
        }
    }
}

impl Entry {
    fn new(gpu: &Gpu, elements: u64, tuning: Tuning) -> Self {
        Entry {
            key: Key::of(gpu),
            elements,
            workgroup_size: tuning.workgroup_size,
            quads_per_invocation: tuning.quads_per_invocation,
            partials: tuning.partials.name().to_owned(),
            finish_workgroup_size: tuning.finish_workgroup_size,
        }
    }

    fn tuning(&self, gpu: &Gpu) -> Result<Tuning, String> {
        let kind = Partials::ALL
            .into_iter()
            .find(|kind| kind.name() == self.partials)
            .ok_or_else(|| format!("there are no partials \"{}\"", self.partials))?;
        let tuning = Tuning {
            workgroup_size: self.workgroup_size,
            quads_per_invocation: self.quads_per_invocation,
            partials: kind,
            finish_workgroup_size: self.finish_workgroup_size,
        };
        tuning.validate(gpu.device()).map_err(|error| error.to_string())?;
        Ok(tuning)
    }
}

/// Returns the version of the kernels: the crate's version and a hash of the shaders.
fn kernels() -> String {
    static KERNELS: OnceLock<String> = OnceLock::new();
    KERNELS
        .get_or_init(|| {
            let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
            for shader in sources() {
                hash.write(shader.as_bytes());
            }
            format!("{}-{:016x}", env!("CARGO_PKG_VERSION"), hash.finish())
        })
        .clone()
}

/// FNV-1a hasher. Unlike the standard library's hasher, it returns the same number in every version of Rust.
struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        hash.write(b"foobar");
        assert_eq!(hash.finish(), 0x8594_4171_f739_67e8);
    }
}
