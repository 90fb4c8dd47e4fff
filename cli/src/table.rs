//! What every command writes on the terminal: lines, tables and progress. Nothing else prints, which lints see to: `println!` and
//! `eprintln!` panic where a stream cannot be written, and a run would be lost.

use std::io::Write;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};

use crate::CliError;
use crate::words::escaped;

/// Writes a line on standard output. A reader that has gone away is not an error.
pub fn say(line: impl std::fmt::Display) -> Result<(), CliError> {
    match writeln!(std::io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::Failed(format!("cannot write standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a line on standard error, if that can be done: nothing ends because nobody can be told about it. What comes from elsewhere, such
/// as the name of a file, cannot break the line or command the terminal.
pub fn tell(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{}", escaped(&line.to_string()));
}

/// Writes help on standard error.
pub fn tell_text(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// An empty table whose columns from `first_number` on hold numbers, aligned to the right. Add rows, then print.
pub struct Columns {
    table: Table,
    first_number: usize,
}

impl Columns {
    pub fn new(header: &[impl AsRef<str>], first_number: usize) -> Self {
        let mut columns = Self::without_header(first_number);
        columns.table.set_header(header.iter().map(AsRef::as_ref));
        columns
    }

    pub fn without_header(first_number: usize) -> Self {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED);
        Columns { table, first_number }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.table.add_row(cells);
    }

    /// Breaks long cells where the table would not fit a terminal of 80 columns.
    pub fn print_narrow(mut self) -> Result<(), CliError> {
        self.table.set_content_arrangement(ContentArrangement::Dynamic).set_width(80);
        self.print()
    }

    pub fn print(mut self) -> Result<(), CliError> {
        for column in self.table.column_iter_mut().skip(self.first_number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        say(self.table)
    }
}

/// A bar on standard error, where that is a terminal.
pub fn progress_bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}
