//! CSV: features, then the label in the last column; a first line of names is recognised.

use csv::{ReaderBuilder, StringRecord, Trim};

use super::{DataError, File, Table, check_size, feature};

/// Reads a CSV file.
pub fn parse(file: &File) -> Result<Table, DataError> {
    let text = file.text()?;
    let mut reader =
        ReaderBuilder::new().has_headers(false).flexible(true).trim(Trim::All).from_reader(text.as_bytes());
    let mut table = Table::default();
    let mut columns = None;
    let mut record = StringRecord::new();
    loop {
        match reader.read_record(&mut record) {
            Ok(false) => return Ok(table),
            Ok(true) => {}
            Err(error) => {
                return Err(file.malformed("CSV", format!("{error}: give comma-separated values, one row per line")));
            }
        }
        let line = record.position().map_or(0, csv::Position::line);
        let first = columns.is_none();
        let expected = *columns.get_or_insert(record.len());
        if record.len() != expected {
            let problem = format!(
                "{} fields where the lines before have {expected}: give every row the same number of fields",
                record.len()
            );
            return Err(file.malformed(format!("line {line}"), problem));
        }
        if first {
            table.features = expected - 1;
            if is_header(&record) {
                continue;
            }
        }
        check_size(file, table.labels.len() + 1, table.features)?;
        for (column, text) in record.iter().take(expected - 1).enumerate() {
            let place = || format!("line {line}, column {}", column + 1);
            table.x.push(feature(file, place, text)?);
        }
        match record.get(expected - 1) {
            Some(label) if !label.is_empty() => table.labels.push(label.to_owned()),
            _ => {
                let problem = "the label is missing: the last column holds the class of every row";
                return Err(file.malformed(format!("line {line}, column {expected}"), problem));
            }
        }
    }
}

/// A first line of names: none of its features is a number, or stands for a missing one.
fn is_header(record: &StringRecord) -> bool {
    record.len() > 1
        && record.iter().take(record.len() - 1).all(|field| {
            let missing = ["", "?", "-", "na", "n/a", "null", "none"];
            field.parse::<f32>().is_err() && !missing.contains(&field.to_ascii_lowercase().as_str())
        })
}
