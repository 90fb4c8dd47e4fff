//! The files that options name.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::CliError;

impl CliError {
    /// A command that the user can mend.
    pub fn usage<T>(message: impl Into<String>) -> Result<T, CliError> {
        Err(CliError::Usage(message.into()))
    }

    pub fn write(path: impl Display, message: impl Display) -> Self {
        CliError::Write { path: path.to_string(), message: message.to_string() }
    }
}

/// Whether both paths are of one file that is there.
pub fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Refuses an option that would overwrite the data.
pub fn refuse_data(option: &str, path: &Path, data: &str) -> Result<(), CliError> {
    if is_same(path, Path::new(data)) {
        return CliError::usage(format!("{option} {} would overwrite the data: give it another name", path.display()));
    }
    Ok(())
}

/// Creates the file that an option names.
pub fn create(option: &str, path: &Path) -> Result<File, CliError> {
    File::create(path).map_err(|error| {
        let message = format!("{error}; give {option} a file in a folder that exists");
        CliError::write(path.display(), message)
    })
}

/// The file of `--report`, opened before the work that a path that cannot be written should not cost.
#[derive(Debug)]
pub struct ReportFile {
    path: String,
    file: File,
}

impl ReportFile {
    pub fn create(path: &Path) -> Result<Self, CliError> {
        Ok(ReportFile { path: path.display().to_string(), file: create("--report", path)? })
    }

    /// Writes the report, if it could be made.
    pub fn write(mut self, report: Result<String, String>) -> Result<(), CliError> {
        let written = report.and_then(|text| self.file.write_all(text.as_bytes()).map_err(|error| error.to_string()));
        written.map_err(|message| CliError::write(self.path, message))
    }
}
