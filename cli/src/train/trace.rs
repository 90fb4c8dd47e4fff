//! `--trace`: a row of a CSV file for every step.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom};
use std::path::Path;

use wgpu_optim::{Record, TensorRecord, Term};

use super::options::Args;
use crate::CliError;
use crate::files::{create, refuse_data};
use crate::model::Model;

pub struct Trace {
    path: String,
    writer: csv::Writer<BufWriter<File>>,
}

/// The columns before those of the terms, which the flags follow.
const HEADER: [&str; 5] = ["step", "loss", "norm", "smoothed_norm", "ln_lr"];

/// Of every tensor with --telemetry, after everything else, named `tensor.column`.
const TENSOR_COLUMNS: [&str; 4] = ["parameter_norm", "step_norm", "relative_step", "effective_lr"];

fn columns(args: &Args, model: &Model) -> Vec<String> {
    let terms = Term::ALL.iter().map(|term| format!("{}_term", term.name()));
    let recorded = args.telemetry.then(|| model.tensors()).into_iter().flatten();
    let tensors = recorded.flat_map(|tensor| TENSOR_COLUMNS.map(|column| format!("{}.{column}", tensor.name)));
    HEADER.map(str::to_owned).into_iter().chain(terms).chain(["flags".to_owned()]).chain(tensors).collect()
}

impl Trace {
    /// The trace of a run, or of the rest of one from this step on: after the rows that an earlier process left in the file, if there
    /// is one.
    pub fn from_step(path: &Path, args: &Args, model: &Model, step: u64) -> Result<Self, CliError> {
        refuse_data("--trace", path, &args.data)?;
        let columns = columns(args, model);
        let is_new = step == 0 || !path.exists();
        let file = if is_new { create("--trace", path)? } else { keep(path, &columns.join(","), step)? };
        let writer = csv::Writer::from_writer(BufWriter::new(file));
        let mut trace = Trace { path: path.display().to_string(), writer };
        if is_new {
            trace.row(columns)?;
        }
        Ok(trace)
    }

    /// Brings every row so far to the disk.
    pub fn sync(&mut self) -> Result<(), CliError> {
        let synced = self.writer.flush().and_then(|()| self.writer.get_ref().get_ref().sync_data());
        synced.map_err(|error| CliError::write(&self.path, error))
    }

    pub fn write(&mut self, loss: f32, record: &Record, tensors: &[TensorRecord]) -> Result<(), CliError> {
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
        self.row(fields.into_iter().chain(terms).chain([record.flags.to_string()]).chain(tensors))
    }

    fn row(&mut self, fields: impl IntoIterator<Item = String>) -> Result<(), CliError> {
        self.writer.write_record(fields).map_err(|error| CliError::write(&self.path, error))
    }

    /// Hands every row so far to the system.
    pub fn finish(mut self) -> Result<(), CliError> {
        self.writer.flush().map_err(|error| CliError::write(&self.path, error))
    }
}

/// The file of an earlier process, cut off after the rows of the steps before this one.
fn keep(path: &Path, header: &str, step: u64) -> Result<File, CliError> {
    let shown = path.display();
    let failed = |error: std::io::Error| CliError::write(&shown, error);
    let refused = |what: String| {
        CliError::usage(format!(
            "--resume: {what} in {shown}, so that the rows from step {step} on cannot follow: give --trace another file"
        ))
    };
    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
    let mut reader = BufReader::new(&file);
    let mut kept = 0;
    let mut line = String::new();
    for row in 0..=step {
        line.clear();
        kept += reader.read_line(&mut line).map_err(failed)? as u64;
        let first = line.split(',').next().unwrap_or_default();
        match row.checked_sub(1) {
            None if line.trim_end() != header => {
                return refused("the header is not that of this run's trace".to_owned());
            }
            Some(row) if !line.ends_with('\n') || first != row.to_string() => {
                return refused(format!("there is no row of step {row}"));
            }
            _ => {}
        }
    }
    file.set_len(kept).map_err(failed)?;
    file.seek(SeekFrom::End(0)).map_err(failed)?;
    Ok(file)
}
