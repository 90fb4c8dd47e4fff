//! Files that options name. All of them are checked before one is changed. An output must not be a file that was read,
//! two options must not name the same file, and an existing file must be an output of this program unless `--force` is
//! given.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

#[cfg(not(unix))]
use same_file::Handle;
use wgpu_optim::atomic_file;
use wgpu_optim::gpu::TuningCache;

use crate::CliError;
use crate::table::tell;
use crate::words::path as in_words;

impl CliError {
    /// Returns an error that the user can correct in the command.
    pub fn usage<T>(message: impl Into<String>) -> Result<T, CliError> {
        Err(CliError::Usage(message.into()))
    }

    pub fn write(path: impl Display, message: impl Display) -> Self {
        CliError::Write { path: path.to_string(), message: message.to_string() }
    }
}

/// Returns the message for a file that could not be written, with advice.
pub fn cannot_write(path: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}; {}", in_words(path), atomic_file::way_out(error))
}

/// Warns of an output that is not written while the run goes on.
pub fn warn_of_failure(message: &str) {
    tell(format!("warning: {message}; the run goes on"));
}

/// Returns the path of the file that a path stands for. Links are followed, including dangling ones.
fn resolved(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    // This is about the number of links that systems follow.
    for _ in 0..40 {
        if let Ok(found) = path.canonicalize() {
            return found;
        }
        let Ok(target) = path.read_link() else {
            break;
        };
        // `/dev/stdout` may point to a pipe, which has no path.
        if path.metadata().is_ok() {
            return path;
        }
        path = folder_of(&path).join(target);
    }
    match (folder_of(&path).canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path,
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the metadata of a path, or `None` if nothing is there.
fn about(path: &Path) -> io::Result<Option<Metadata>> {
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        about => about.map(Some),
    }
}

/// Returns numbers that identify an open file, whatever its names.
#[cfg(unix)]
fn identity(about: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (about.dev(), about.ino())
}

/// Returns true if both resolved paths are the same file, including hard links. Nothing is opened, because opening a
/// pipe would wait for its other end.
#[cfg(unix)]
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().ok().map(|about| identity(&about));
    one == other || identity(one).is_some_and(|one| identity(other) == Some(one))
}

#[cfg(not(unix))]
fn is_same(one: &Path, other: &Path) -> bool {
    one == other || same_file::is_same_file(one, other).unwrap_or(false)
}

/// Returns true if the open file is still the file at a path. It may have been removed or replaced since it was opened.
pub fn is_file_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    let is_there = match (file.metadata(), path.metadata()) {
        (Ok(file), Ok(there)) => identity(&file) == identity(&there),
        _ => false,
    };
    #[cfg(not(unix))]
    let is_there = match (file.try_clone().and_then(Handle::from_file), Handle::from_path(path)) {
        (Ok(file), Ok(there)) => file == there,
        _ => false,
    };
    is_there
}

/// Locks an output while it is open, because it may have other names than the one whose lock file is beside it. Returns
/// false if another process holds the lock.
pub fn is_locked_now(file: &File) -> bool {
    // On other systems a lock would block readers.
    !cfg!(unix) || !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Returns the standard stream that is connected to a file.
#[cfg(unix)]
fn stream_of(about: &Metadata) -> Option<&'static str> {
    use std::os::fd::AsFd;
    let streams = [
        ("standard output goes to", io::stdout().as_fd().try_clone_to_owned()),
        ("standard error goes to", io::stderr().as_fd().try_clone_to_owned()),
        ("standard input comes from", io::stdin().as_fd().try_clone_to_owned()),
    ];
    let is_it = |stream: &File| stream.metadata().is_ok_and(|stream| identity(&stream) == identity(about));
    streams.into_iter().find_map(|(name, stream)| is_it(&File::from(stream.ok()?)).then_some(name))
}

#[cfg(not(unix))]
fn stream_of(_: &Metadata) -> Option<&'static str> {
    None
}

/// Returns true if a path can only name a folder, whether it exists or not.
fn names_a_folder(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let text = text.strip_suffix('.').unwrap_or(&text);
    text.ends_with(std::path::is_separator)
}

/// Function that recognises an output of this program.
pub type IsOurs = fn(&Path) -> bool;

/// Returns true if a file begins like a page or a plot of this program.
pub fn is_page(path: &Path) -> bool {
    let start = start_of(path);
    [crate::page::MARK, crate::page::PLOT_MARK].iter().any(|mark| start.contains(mark))
}

/// Returns the first kilobyte of a file as text.
pub fn start_of(path: &Path) -> String {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(1024).read_to_end(&mut start));
    if read.is_ok() { String::from_utf8_lossy(&start).into_owned() } else { String::new() }
}

/// Checks the outputs of a command one after the other, and changes nothing.
pub struct Check {
    /// Files that were read, by resolved path.
    read: Vec<(PathBuf, &'static str)>,
    /// Outputs that were checked: option, resolved path, and path as given.
    outputs: Vec<(&'static str, PathBuf, String)>,
    force: bool,
}

impl Check {
    /// Creates the check for a command that reads these files, and perhaps the tuning cache.
    pub fn new(read: &[PathBuf], force: bool) -> Self {
        let cache = TuningCache::from_env().map(|cache| (resolved(cache.path()), "the tuning cache"));
        let read = read.iter().map(|path| (resolved(path), "the data")).chain(cache).collect();
        Check { read, outputs: Vec::new(), force }
    }

    /// Returns an output that may be written.
    pub fn output(&mut self, option: &'static str, path: &Path, is_ours: IsOurs) -> Result<Output, CliError> {
        let (given, shown, path) = (path.to_owned(), in_words(path), resolved(path));
        let refused = |message: String| Err(CliError::write(&shown, message));
        if let Some((read, what)) = self.read.iter().find(|(read, _)| is_same(read, &path)) {
            return CliError::usage(format!(
                "{option} {shown} would overwrite {what} ({}): give it another name",
                in_words(read)
            ));
        }
        let about = match about(&path) {
            Ok(about) => about,
            Err(error) => return refused(format!("{error}; {}", atomic_file::way_out(&error))),
        };
        if about.is_none() && names_a_folder(&given) {
            return refused(format!("it is the name of a folder; give {option} a file"));
        }
        let is_file = about.as_ref().is_none_or(Metadata::is_file);
        if let Some(stream) = about.as_ref().filter(|_| is_file).and_then(stream_of) {
            return CliError::usage(format!("{stream} {shown}, which {option} names: give each its own file"));
        }
        // Several options may name /dev/null.
        let twin = self.outputs.iter().find(|(_, other, _)| is_file && is_same(other, &path));
        if let Some((other, _, name)) = twin {
            let also = if *name == shown { String::new() } else { format!(", the same file as {shown}") };
            return CliError::usage(format!("{other} and {option} both name {name}{also}: give each its own file"));
        }
        if let Some(about) = &about {
            if about.is_dir() {
                return refused(format!("it is a folder, not a file; give {option} a file"));
            }
            if !is_file && !is_device(about) {
                return refused(format!("it is a pipe; give {option} a file"));
            }
            if let Err(error) = OpenOptions::new().write(true).open(&path) {
                return refused(format!("{error}; give {option} a file that may be written"));
            }
            if is_file && about.len() > 0 && !self.force && !is_ours(&path) {
                return CliError::usage(format!(
                    "{option} {shown}: this file is there, and is no such output of wgpu-optim: give another name, or --force to replace it"
                ));
            }
        }
        if is_file && let Err(error) = atomic_file::try_out(&path) {
            let way_out = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    format!("give {option} a file in a folder that exists and may be written")
                }
                _ => atomic_file::way_out(&error).to_owned(),
            };
            return refused(format!("{error}; {way_out}"));
        }
        self.outputs.push((option, path.clone(), shown.clone()));
        Ok(Output { path, given, shown, is_file, lock: None, held: None })
    }
}

/// Returns true for a terminal, `/dev/null` or a similar device.
#[cfg(unix)]
fn is_device(about: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_char_device(&about.file_type())
}

#[cfg(not(unix))]
fn is_device(about: &std::fs::Metadata) -> bool {
    !about.is_file()
}

/// Output file of a command.
#[derive(Debug)]
pub struct Output {
    /// Resolved path, so that a link stays a link.
    pub path: PathBuf,
    /// Path as given.
    pub given: PathBuf,
    /// Path as shown in messages.
    pub shown: String,
    /// True unless the output is a device.
    pub is_file: bool,
    lock: Option<Lock>,
    /// The file itself, locked, if it existed.
    held: Option<File>,
}

impl Output {
    /// Returns the metadata of the file, or `None` if nothing is there. An error is not treated as a missing file.
    pub fn about(&self) -> Result<Option<Metadata>, CliError> {
        about(&self.path)
            .map_err(|error| CliError::write(&self.shown, format!("{error}; {}", atomic_file::way_out(&error))))
    }

    /// Returns an error if another process is writing the file, and locks other processes out.
    pub fn claimed(mut self) -> Result<Self, CliError> {
        if self.is_file {
            self.lock = Lock::beside(&self.path).map_err(|error| {
                let way_out = atomic_file::way_out(&error);
                CliError::write(&self.shown, format!("it cannot be locked: {error}; {way_out}"))
            })?;
            // On other systems an open file could not be replaced.
            self.held = if cfg!(unix) { in_place().open(&self.path).ok() } else { None };
            if self.lock.is_none() || !self.held.as_ref().is_none_or(is_locked_now) {
                return CliError::usage(format!(
                    "another process is writing {}: give another name, or wait for the end of that process",
                    self.shown
                ));
            }
        }
        Ok(self)
    }

    /// Opens the file to write it in place, or creates it. No other process of this program writes it while it is open.
    pub fn open(&mut self) -> io::Result<File> {
        // A second lock of this process would conflict with the first.
        if let Some(held) = self.held.take().filter(|held| is_file_at(held, &self.path)) {
            return Ok(held);
        }
        let file = in_place().create(true).open(&self.path)?;
        if self.is_file && !is_locked_now(&file) {
            return Err(io::Error::other("another process is writing it"));
        }
        Ok(file)
    }

    /// Writes the whole file. An existing file stays until the new one is complete.
    pub fn write(&self, text: &str) -> Result<(), String> {
        let written = if self.is_file {
            atomic_file::replace(&self.path, |file| file.write_all(text.as_bytes()))
        } else {
            OpenOptions::new().write(true).open(&self.path).and_then(|mut file| file.write_all(text.as_bytes()))
        };
        written.map_err(|error| cannot_write(&self.given, &error))
    }
}

/// Returns options for a file that is written in place. If the system supports it, data are always appended at the end,
/// so that other writers cause no gap.
fn in_place() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).append(cfg!(unix));
    options
}

/// Lock that is held while the value lives. It is on a file `.NAME.lock`, because the output itself is replaced. A lock
/// file left by a killed process is not locked, and is reused.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    // The lock is held until this file is closed.
    _file: File,
}

impl Lock {
    /// Returns the lock beside this file, or `None` if another process holds it.
    fn beside(path: &Path) -> io::Result<Option<Self>> {
        let name = path.file_name().unwrap_or_default();
        let mut lock = OsString::from(".");
        lock.push(name);
        lock.push(".lock");
        let path = path.with_file_name(lock);
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                // Some file systems have no locks.
                Ok(()) | Err(TryLockError::Error(_)) => {}
            }
            // The process that held the lock removes the file when it ends, perhaps between these two calls.
            if is_file_at(&file, &path) {
                return Ok(Some(Lock { path, _file: file }));
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Lock files of this program are empty. Another file with this name must not be removed.
        if self.path.metadata().is_ok_and(|about| about.len() == 0) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Output file of `--report`.
#[derive(Debug)]
pub struct ReportFile(Output);

impl ReportFile {
    /// Returns the file for a command that reads no other files.
    pub fn create(path: &Path, force: bool) -> Result<Self, CliError> {
        Self::of(Check::new(&[], force).output("--report", path, is_page)?)
    }

    pub fn of(output: Output) -> Result<Self, CliError> {
        Ok(ReportFile(output.claimed()?))
    }

    /// Writes the report, if it could be made.
    pub fn write(self, report: Result<String, String>) -> Result<(), CliError> {
        let written = report.and_then(|text| self.0.write(&text));
        written.map_err(CliError::Failed)
    }
}
