//! The files that options name. All of them are looked at before one is touched: none may be a file that was read, two options may not name
//! one file, and what is there already must be an output of this program, unless `--force` is given.

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
    /// A command that the user can mend.
    pub fn usage<T>(message: impl Into<String>) -> Result<T, CliError> {
        Err(CliError::Usage(message.into()))
    }

    pub fn write(path: impl Display, message: impl Display) -> Self {
        CliError::Write { path: path.to_string(), message: message.to_string() }
    }
}

/// What a file that could not be written asks for.
pub fn cannot_write(path: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}; {}", in_words(path), atomic_file::way_out(error))
}

/// Says that something is not written while the work goes on.
pub fn warn_of_failure(message: &str) {
    tell(format!("warning: {message}; the run goes on"));
}

/// The file that a path stands for, if there is one: links are followed, also those that point to nothing yet.
fn resolved(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    // As many links as systems follow.
    for _ in 0..40 {
        if let Ok(found) = path.canonicalize() {
            return found;
        }
        let Ok(target) = path.read_link() else {
            break;
        };
        // What `/dev/stdout` points to has no path where it is a pipe.
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

/// What a path is of, if anything is there.
fn about(path: &Path) -> io::Result<Option<Metadata>> {
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        about => about.map(Some),
    }
}

/// What tells an open file from all others, whatever their names.
#[cfg(unix)]
fn identity(about: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (about.dev(), about.ino())
}

/// Whether both paths are of one file, hard links included. Both are resolved. Nothing is opened: a pipe would wait for its other end.
#[cfg(unix)]
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().ok().map(|about| identity(&about));
    one == other || identity(one).is_some_and(|one| identity(other) == Some(one))
}

#[cfg(not(unix))]
fn is_same(one: &Path, other: &Path) -> bool {
    one == other || same_file::is_same_file(one, other).unwrap_or(false)
}

/// Whether this is the file that a path stands for: it may have been removed or replaced since it was opened.
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

/// Locks an output for as long as it is open, since it may have other names than the one that is locked beside it; false where another
/// process has it.
pub fn is_locked_now(file: &File) -> bool {
    // Elsewhere a lock would keep readers from it.
    !cfg!(unix) || !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// The standard stream that goes to a file, or comes from it.
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

/// Whether a path can only be that of a folder, there or not.
fn names_a_folder(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let text = text.strip_suffix('.').unwrap_or(&text);
    text.ends_with(std::path::is_separator)
}

/// What tells an output of this program from other files.
pub type IsOurs = fn(&Path) -> bool;

/// Whether a file begins with a page or a plot of ours.
pub fn is_page(path: &Path) -> bool {
    let start = start_of(path);
    [crate::page::MARK, crate::page::PLOT_MARK].iter().any(|mark| start.contains(mark))
}

/// The first kilobyte of a file, as far as it is text.
pub fn start_of(path: &Path) -> String {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(1024).read_to_end(&mut start));
    if read.is_ok() { String::from_utf8_lossy(&start).into_owned() } else { String::new() }
}

/// Looks at the outputs of a command, one after the other, and changes nothing.
pub struct Check {
    /// What was read, by resolved path.
    read: Vec<(PathBuf, &'static str)>,
    /// Those that were looked at: option, resolved path, and path as it was given.
    outputs: Vec<(&'static str, PathBuf, String)>,
    force: bool,
}

impl Check {
    /// Of a command that reads these files, and perhaps the tuning cache.
    pub fn new(read: &[PathBuf], force: bool) -> Self {
        let cache = TuningCache::from_env().map(|cache| (resolved(cache.path()), "the tuning cache"));
        let read = read.iter().map(|path| (resolved(path), "the data")).chain(cache).collect();
        Check { read, outputs: Vec::new(), force }
    }

    /// An output that may be written.
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
        // Two may go to /dev/null.
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

/// Whether it is a terminal, `/dev/null` or the like.
#[cfg(unix)]
fn is_device(about: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_char_device(&about.file_type())
}

#[cfg(not(unix))]
fn is_device(about: &std::fs::Metadata) -> bool {
    !about.is_file()
}

/// A file to be written.
#[derive(Debug)]
pub struct Output {
    /// Resolved, so that a link stays one.
    pub path: PathBuf,
    /// As it was given.
    pub given: PathBuf,
    /// The same in messages.
    pub shown: String,
    /// Not a device.
    pub is_file: bool,
    lock: Option<Lock>,
    /// The file itself, locked, if it was there.
    held: Option<File>,
}

impl Output {
    /// What is there now, if anything is. Where the system cannot tell, nothing may be taken for missing.
    pub fn about(&self) -> Result<Option<Metadata>, CliError> {
        about(&self.path)
            .map_err(|error| CliError::write(&self.shown, format!("{error}; {}", atomic_file::way_out(&error))))
    }

    /// Refuses a file that another process is about to write, and keeps others from it.
    pub fn claimed(mut self) -> Result<Self, CliError> {
        if self.is_file {
            self.lock = Lock::beside(&self.path).map_err(|error| {
                let way_out = atomic_file::way_out(&error);
                CliError::write(&self.shown, format!("it cannot be locked: {error}; {way_out}"))
            })?;
            // Elsewhere a file that is open could not be replaced.
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

    /// Opens the file to write it in place, or makes it. No other process of ours writes it as long as it is open.
    pub fn open(&mut self) -> io::Result<File> {
        // A lock of this process would stand in its own way.
        if let Some(held) = self.held.take().filter(|held| is_file_at(held, &self.path)) {
            return Ok(held);
        }
        let file = in_place().create(true).open(&self.path)?;
        if self.is_file && !is_locked_now(&file) {
            return Err(io::Error::other("another process is writing it"));
        }
        Ok(file)
    }

    /// Writes the file as a whole: a file that is there stays until the new one is complete.
    pub fn write(&self, text: &str) -> Result<(), String> {
        let written = if self.is_file {
            atomic_file::replace(&self.path, |file| file.write_all(text.as_bytes()))
        } else {
            OpenOptions::new().write(true).open(&self.path).and_then(|mut file| file.write_all(text.as_bytes()))
        };
        written.map_err(|error| cannot_write(&self.given, &error))
    }
}

/// For a file that is written in place. Where the system has that, at its end, whoever else moves that: no gap comes into it.
fn in_place() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).append(cfg!(unix));
    options
}

/// A lock for as long as it lives: on a file `.NAME.lock`, since the output itself is replaced. What a killed process leaves of it is
/// not locked, and is used again.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    // Locked until it is closed.
    _file: File,
}

impl Lock {
    /// The lock beside this file; none where another process has it.
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
            // The process that had it removes it at its end, perhaps between these two calls.
            if is_file_at(&file, &path) {
                return Ok(Some(Lock { path, _file: file }));
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Ours are empty: somebody may have a file of this name, or give it to an output.
        if self.path.metadata().is_ok_and(|about| about.len() == 0) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The file of `--report`.
#[derive(Debug)]
pub struct ReportFile(Output);

impl ReportFile {
    /// The file of a command that reads nothing else.
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
