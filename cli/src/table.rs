//! Output of every command on the terminal: lines, tables and progress. Lints forbid other printing, because `println!`
//! and `eprintln!` panic if a stream cannot be written, and a run would be lost.

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

/// Writes a line on standard error. Errors are ignored, because they must not end the program. Text from elsewhere,
/// such as the name of a file, can neither break the line nor control the terminal.
pub fn tell(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{}", escaped(&line.to_string()));
}

/// Writes help on standard error.
pub fn tell_text(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Empty table. Columns from `first_number` on contain numbers, aligned to the right. Add rows, then print it.
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

    /// Prints the table, and breaks long cells so that it fits a terminal of 80 columns.
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

/// Returns a progress bar on standard error, if that is a terminal.
pub fn progress_bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}
