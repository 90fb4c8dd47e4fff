//! `--trace`: a CSV file with one row per step.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;

use wgpu_optim::{Record, TensorRecord, Term};

use super::options::Args;
use crate::CliError;
use crate::files::{self, Output, cannot_write, is_file_at, start_of};
use crate::model::Model;
use crate::table::tell;

/// Trace of a run. Rows are appended as whole lines, some kilobytes at a time, so that the trace of a killed process is
/// readable. The file is not changed before the first rows are written.
pub struct Trace {
    output: Output,
    /// Rows that are not in the file yet.
    rows: csv::Writer<Vec<u8>>,
    /// Open file, or `None` before the first rows are written.
    file: Option<File>,
    /// Number of bytes of the file that are whole rows.
    written: u64,
    /// True if there was a step.
    has_rows: bool,
    /// Reason why no more rows are written.
    failure: Option<String>,
}

/// Number of bytes that are written at a time.
const AT_ONCE: usize = 1 << 13;

/// Columns before those of the terms. The flags follow the terms.
const HEADER: [&str; 5] = ["step", "loss", "norm", "smoothed_norm", "ln_lr"];

/// Columns of every tensor with --telemetry, after all others, named `tensor.column`.
const TENSOR_COLUMNS: [&str; 4] = ["parameter_norm", "step_norm", "relative_step", "effective_lr"];

fn columns(args: &Args, model: &Model) -> Vec<String> {
    let terms = Term::ALL.iter().map(|term| format!("{}_term", term.name()));
    let recorded = args.telemetry.then(|| model.tensors()).into_iter().flatten();
    let tensors = recorded.flat_map(|tensor| TENSOR_COLUMNS.map(|column| format!("{}.{column}", tensor.name)));
    HEADER.map(str::to_owned).into_iter().chain(terms).chain(["flags".to_owned()]).chain(tensors).collect()
}

/// Returns true if a file is a trace.
pub fn is_trace(path: &Path) -> bool {
    start_of(path).starts_with(&HEADER.join(","))
}

impl Trace {
    /// Returns the trace of a run, or of the rest of a run from this step on. Rows of an earlier process in the file
    /// are kept.
    pub fn from_step(output: Output, args: &Args, model: &Model, step: u64) -> Result<Self, CliError> {
        let columns = columns(args, model);
        let kept = match step {
            0 => None,
            step if output.about()?.is_none() => {
                tell(format!(
                    "warning: {} is not there: the rows before step {step}, which an earlier process ran, are not in the trace",
                    output.shown
                ));
                None
            }
            step => Some(kept(&output, &columns.join(","), step)?),
        };
        let rows = csv::Writer::from_writer(Vec::new());
        let mut trace = Trace { output, rows, file: None, written: kept.unwrap_or(0), has_rows: false, failure: None };
        if kept.is_none() {
            trace.row(columns);
        }
        Ok(trace)
    }

    /// Returns the same trace from another step on. Rows that are not in the file yet belong to steps that are
    /// repeated.
    pub fn again_from(self, args: &Args, model: &Model, step: u64) -> Result<Self, CliError> {
        if self.failure.is_some() {
            return Ok(self);
        }
        Self::from_step(self.output, args, model, step)
    }

    /// Writes every row so far to the disk.
    pub fn sync(&mut self) {
        self.flush();
        self.look_for_it();
        if let Some(Err(error)) = self.file.as_ref().filter(|_| self.output.is_file).map(File::sync_data) {
            self.fail(&error);
        }
    }

    pub fn write(&mut self, loss: f32, record: &Record, tensors: &[TensorRecord]) {
        self.has_rows = true;
        let fields = [
            record.step.to_string(),
            loss.to_string(),
            record.norm.to_string(),
            record.smoothed_norm.to_string(),
            record.ln_rate.to_string(),
        ];
        let terms = record.terms().map(|(_, value)| value.to_string());
        let tensors = tensors.iter().flat_map(|tensor| {
            [
                tensor.parameter_norm.to_string(),
                tensor.step_norm.to_string(),
                tensor.relative_step().to_string(),
                tensor.effective_rate().to_string(),
            ]
        });
        self.row(fields.into_iter().chain(terms).chain([record.flags.to_string()]).chain(tensors));
    }

    fn row(&mut self, fields: impl IntoIterator<Item = String>) {
        // Writing rows of equal length to memory cannot fail.
        let _ = self.rows.write_record(fields);
        if self.rows.get_ref().len() >= AT_ONCE {
            self.flush();
        }
    }

    /// Passes every row so far to the system.
    fn flush(&mut self) {
        let rows =
            std::mem::replace(&mut self.rows, csv::Writer::from_writer(Vec::new())).into_inner().unwrap_or_default();
        self.look_for_it();
        if rows.is_empty() || self.failure.is_some() {
            return;
        }
        if let Err(error) = self.append(&rows) {
            self.fail(&error);
            // This removes an incomplete row at the end.
            let _ = self.file.as_ref().map(|file| file.set_len(self.written));
        }
    }

    fn append(&mut self, rows: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let mut file = self.output.open()?;
                if self.output.is_file {
                    file.set_len(self.written)?;
                    file.seek(SeekFrom::End(0))?;
                }
                self.file.insert(file)
            }
        };
        file.write_all(rows)?;
        self.written += rows.len() as u64;
        Ok(())
    }

    /// Checks that the written rows are still in the file. Other programs may have removed, replaced or truncated it.
    fn look_for_it(&mut self) {
        let Some(file) = self.file.as_ref().filter(|_| self.output.is_file && self.failure.is_none()) else { return };
        let what = if !is_file_at(file, &self.output.path) {
            "it was removed or replaced while it was written"
        } else if file.metadata().is_ok_and(|about| about.len() < self.written) {
            "it was cut short by another program while it was written"
        } else {
            return;
        };
        self.fail(&io::Error::other(what));
    }

    /// Stops writing the trace and warns. The run goes on and reports the failure at its end.
    fn fail(&mut self, error: &io::Error) {
        let message = cannot_write(&self.output.given, error);
        files::warn_of_failure(&message);
        self.failure = Some(message);
    }

    /// Returns true if there are rows. A run that could not begin must not overwrite a file.
    pub fn is_worth_writing(&self) -> bool {
        self.has_rows
    }

    /// Writes the remaining rows. Returns the reason if the trace is not complete.
    pub fn finish(mut self) -> Option<String> {
        self.flush();
        self.look_for_it();
        self.failure
    }
}

/// Returns the number of bytes of the header and the rows before this step in the file of an earlier process. The file
/// may itself begin at a step after 0.
fn kept(output: &Output, header: &str, step: u64) -> Result<u64, CliError> {
    let shown = &output.shown;
    let failed = |error: io::Error| CliError::write(shown, error);
    let refused = |what: String| {
        CliError::usage(format!(
            "--resume: {what} in {shown}, so that the rows from step {step} on cannot follow: give --trace another file"
        ))
    };
    let mut reader = BufReader::new(File::open(&output.path).map_err(failed)?);
    let mut line = Vec::new();
    let mut next_line = || -> io::Result<(u64, Vec<u8>)> {
        line.clear();
        // A line longer than any row of this program is not part of a trace.
        let most = header.len() as u64 * 30 + 1000;
        let bytes = io::Read::take(&mut reader, most).read_until(b'\n', &mut line)?;
        Ok((bytes as u64, line.clone()))
    };
    let (mut kept, first) = next_line().map_err(failed)?;
    if first.trim_ascii_end() != header.as_bytes() {
        return refused("the header is not that of this run's trace".to_owned());
    }
    let mut row = None;
    while row.is_none_or(|row| row < step) {
        let (bytes, line) = next_line().map_err(failed)?;
        let number = line.split(|&byte| byte == b',').next().and_then(|number| std::str::from_utf8(number).ok());
        let number = number.and_then(|number| number.parse::<u64>().ok());
        // The first row in the file may have any step up to the one where this run continues.
        let due = row.or(number.filter(|&number| number <= step)).unwrap_or(0);
        if row.is_none() && number == Some(step) {
            return Ok(kept);
        }
        if !line.ends_with(b"\n") || number != Some(due) {
            return refused(format!("there is no row of step {due}"));
        }
        kept += bytes;
        row = Some(due + 1);
    }
    Ok(kept)
}
