//! CSV: features and a label. The separator, a first line of names and a column of row numbers are recognised, by whether they fit the rest
//! of the file.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;

use csv::{ReaderBuilder, StringRecord};

use super::file::lines as lines_of;
use super::labels::number;
use super::{DataError, File, Labels, MOST_FEATURES, Table, feature, values_of};
use crate::words::{count, escaped, quoted};

/// Characters that may stand between fields, the likeliest first, and how messages call them.
const SEPARATORS: [(char, &str); 5] =
    [(',', "commas"), (';', "semicolons"), ('\t', "tabs"), ('|', "bars"), (' ', "blanks")];
/// Lines that the separator is told from.
const LOOKED_AT: usize = 50;
/// Bytes that a field may have: more is no number, and no name.
const MOST_FIELD: usize = 1 << 16;
/// Bytes that a line may have: numbers of [`MOST_FEATURES`] fit.
const MOST_LINE: usize = 1 << 26;
/// What columns of labels are often called.
const LABEL_NAMES: [&str; 11] =
    ["label", "labels", "class", "classes", "target", "y", "species", "category", "type", "variety", "diagnosis"];
/// Rows from which on a class of one row is more likely to be the name of the column.
const MANY_ROWS: usize = 20;

/// Reads a CSV file; what was recognised comes with it. `label` names the column of the labels, which is the last one without it.
pub fn parse(file: &File, label: Option<&str>) -> Result<(Table, Vec<String>), DataError> {
    let text = file.text()?;
    check_lengths(file, text)?;
    let (separator, name) = separator_of(text);
    let text = match separator {
        ' ' => Cow::Owned(single_blanks(text)),
        // Comments go to the next line feed.
        _ if !text.contains('\n') => Cow::Owned(text.replace('\r', "\n")),
        _ => Cow::Borrowed(text),
    };
    let text = Text { file, text: &text, separator };
    let form = Form::of(&text, label)?;

    let features = form.columns - 1 - usize::from(form.has_index);
    let rows = form.labels.rows.len();
    let mut x = values_of(file, rows, features)?;
    let mut is_first = true;
    text.each_record(|line, record| {
        if std::mem::take(&mut is_first) && form.has_header {
            return Ok(());
        }
        let features = record.iter().enumerate().skip(usize::from(form.has_index));
        for (column, text) in features.filter(|(column, _)| *column != form.label) {
            let place = || format!("line {line}, column {}", column + 1);
            x.push(feature(file, place, text.trim(), form.way_out(line))?);
        }
        Ok(())
    })?;
    let mut remarks = form.remarks;
    if separator != ',' {
        remarks.push(format!("separated by {name}"));
    }
    Ok((Table { features, x, labels: form.labels }, remarks))
}

/// A text and what stands between its fields.
struct Text<'a> {
    file: &'a File<'a>,
    text: &'a str,
    separator: char,
}

impl Text<'_> {
    /// Calls `work` with every record and the line it begins in. Records have as many fields as the first one, all of them within a line.
    fn each_record(&self, mut work: impl FnMut(u64, &StringRecord) -> Result<(), DataError>) -> Result<(), DataError> {
        // A quote that is not closed ends with the file, and then has this line break in it.
        let bytes = self.text.as_bytes().chain(&b"\n"[..]);
        let mut reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .comment(Some(b'#'))
            .delimiter(self.separator as u8)
            .from_reader(bytes);
        let mut record = StringRecord::new();
        let mut columns = None;
        loop {
            match reader.read_record(&mut record) {
                Ok(false) => return Ok(()),
                Ok(true) => {}
                Err(error) => {
                    let problem = format!("{error}: give comma-separated values, one row per line");
                    return Err(self.file.malformed("CSV", problem));
                }
            }
            let line = record.position().map_or(0, csv::Position::line);
            if record.len() == 1 && record[0].trim().is_empty() {
                continue;
            }
            if record.iter().any(|field| field.contains(['\n', '\r'])) {
                let problem = "a quote opens here that is not closed in this line: close it, or leave it out";
                return Err(self.file.malformed(format!("line {line}"), problem));
            }
            let expected = *columns.get_or_insert(record.len());
            if record.len() != expected {
                let problem = format!(
                    "{} where the lines before have {expected}: give every row the same number of fields",
                    count(record.len() as u64, "field")
                );
                return Err(self.file.malformed(format!("line {line}"), problem));
            }
            work(line, &record)?;
        }
    }
}

/// What the columns are.
struct Form {
    columns: usize,
    /// The column of the labels.
    label: usize,
    labels: Labels,
    has_header: bool,
    /// Whether the first column numbers the rows, and is left out.
    has_index: bool,
    /// The line of the first record.
    first_line: u64,
    remarks: Vec<String>,
}

impl Form {
    /// Reads all labels, and looks at whether the first line fits the others.
    fn of(text: &Text, wanted: Option<&str>) -> Result<Self, DataError> {
        let mut first: Option<(u64, StringRecord, usize, bool)> = None;
        let mut labels = Labels::default();
        let missing = |line: u64, column: usize| {
            let problem = "the label is missing: this column holds the class of every row (--label names another)";
            text.file.malformed(format!("line {line}, column {}", column + 1), problem)
        };
        text.each_record(|line, record| {
            let Some((_, _, label, _)) = &first else {
                if record.len() > MOST_FEATURES + 1 {
                    let problem = format!(
                        "{}, more than the {MOST_FEATURES} features that a row may have",
                        count(record.len() as u64, "field")
                    );
                    return Err(text.file.malformed(format!("line {line}"), problem));
                }
                let (label, is_named) = label_column(text.file, record, wanted)?;
                first = Some((line, record.clone(), label, is_named));
                return Ok(());
            };
            match record[*label].trim() {
                "" => Err(missing(line, *label)),
                word => {
                    labels.push(word);
                    Ok(())
                }
            }
        })?;
        let Some((first_line, record, label, is_named)) = first else {
            return Ok(Form {
                columns: 1,
                label: 0,
                labels,
                has_header: false,
                has_index: false,
                first_line: 0,
                remarks: Vec::new(),
            });
        };
        let fields: Vec<&str> = record.iter().map(str::trim).collect();
        let has_header = is_named || is_header(&fields, label, &labels);
        let has_index = has_header && label > 0 && fields.len() > 2 && is_name_of_index(fields[0]);
        let mut remarks = Vec::new();
        if has_header {
            remarks.push(format!("header seen, the label is {} (column {})", quoted(fields[label]), label + 1));
            let other = (0..fields.len()).find(|&column| column != label && is_label_name(fields[column]));
            if let Some(other) = other.filter(|_| wanted.is_none() && !is_label_name(fields[label])) {
                let name = escaped(fields[other]);
                remarks.push(format!("a column is called \"{name}\": --label {name} takes it for the label"));
            }
        } else {
            if fields[label].is_empty() {
                return Err(missing(first_line, label));
            }
            labels.push_first(fields[label]);
            remarks.push(format!("no header, the label is in column {}", label + 1));
        }
        if has_index {
            remarks.push("the first column numbers the rows and is left out".to_owned());
        }
        Ok(Form { columns: fields.len(), label, labels, has_header, has_index, first_line, remarks })
    }

    fn way_out(&self, line: u64) -> &'static str {
        if line == self.first_line {
            "features are numbers, only the label may be a word; if this line has the names of the columns, give all of them names, or name the label's with --label"
        } else {
            "features are numbers, only the label may be a word (--label names its column)"
        }
    }
}

/// The column of the labels, and whether the first line names it.
fn label_column(file: &File, first: &StringRecord, wanted: Option<&str>) -> Result<(usize, bool), DataError> {
    let last = first.len() - 1;
    let wanted = match wanted {
        None | Some("last") => return Ok((last, false)),
        Some("first") => return Ok((0, false)),
        Some(wanted) => wanted,
    };
    if let Some(column) = first.iter().position(|name| name.trim() == wanted) {
        return Ok((column, true));
    }
    match wanted.parse::<usize>() {
        Ok(column) if (1..=first.len()).contains(&column) => Ok((column - 1, false)),
        _ => Err(DataError::unusable(
            &file.name,
            format!(
                "--label {}: no column is called so in the first line; give the name of a column, a number from 1 to {}, first or last",
                quoted(wanted),
                first.len()
            ),
        )),
    }
}

fn is_label_name(field: &str) -> bool {
    LABEL_NAMES.contains(&field.to_ascii_lowercase().as_str())
}

/// What pandas and R write over the numbers of the rows.
fn is_name_of_index(field: &str) -> bool {
    field.is_empty() || field.starts_with("Unnamed: 0")
}

/// Whether the first line has names, judged by the labels of the others.
fn is_header(first: &[&str], label: usize, others: &Labels) -> bool {
    let features = || first.iter().enumerate().filter(|(column, _)| *column != label).map(|(_, field)| *field);
    let missing =
        |field: &str| ["", "?", "-", "na", "n/a", "null", "none"].contains(&field.to_ascii_lowercase().as_str());
    let numbers = features().filter(|field| field.parse::<f64>().is_ok()).count();
    let names = features().filter(|field| field.parse::<f64>().is_err() && !missing(field)).count();
    // No feature is a number.
    if numbers == 0 && names > 0 {
        return true;
    }
    let of_label = first[label];
    if of_label.is_empty() || others.names.is_empty() || others.contains(of_label) {
        // Or the first line counts all the columns.
        return others.contains(of_label) && first.len() > 4 && is_count(first.iter().copied());
    }
    // From here on no other row has this label.
    let is_word = of_label.parse::<f64>().is_err() && !missing(of_label);
    let others_are_numbers = others.names.iter().all(|label| number(label).is_some());
    let is_alone = others.rows.len() >= MANY_ROWS && others.counts().iter().all(|&rows| rows > 1);
    is_word && (others_are_numbers || names > 0 || is_alone || is_label_name(of_label))
        // Columns without names are counted, as pandas does, the label's or not. Few rows of few features may look like it by chance.
        || (features().count() > 3 || others.rows.len() >= MANY_ROWS)
            && is_count(features().skip_while(|field| field.is_empty()))
}

/// Whether these are 0, 1, 2, … or 1, 2, 3, …
fn is_count<'a>(fields: impl Iterator<Item = &'a str> + Clone) -> bool {
    let counts_from = |start: usize| fields.clone().zip(start..).all(|(field, index)| field.parse() == Ok(index));
    fields.clone().count() > 1 && (counts_from(0) || counts_from(1))
}

/// The separator that makes the most numbers of the first lines, and what it is called; of several the one by which more of them have the
/// same number of fields.
fn separator_of(text: &str) -> (char, &'static str) {
    let lines =
        || lines_of(text).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).take(LOOKED_AT);
    let is_number = |field: &str| {
        let field = field.trim().trim_matches('"');
        // Where fields are separated by semicolons, commas are often decimal.
        field.parse::<f64>().is_ok() || field.replacen(',', ".", 1).parse::<f64>().is_ok()
    };
    let rating = |separator: char| {
        let mut lengths: HashMap<usize, usize> = HashMap::new();
        let mut numbers = 0;
        for line in lines() {
            let mut length = 0;
            let mut add = |field: &str| {
                length += 1;
                numbers += usize::from(is_number(field));
            };
            match separator {
                ' ' => line.split_whitespace().for_each(&mut add),
                separator => line.split(separator).for_each(&mut add),
            }
            *lengths.entry(length).or_default() += 1;
        }
        let (length, alike) = lengths.into_iter().max_by_key(|&(length, lines)| (lines, length))?;
        // Where most lines are one field, it separates nothing.
        (length > 1).then_some((numbers, alike))
    };
    let mut best = (SEPARATORS[0], None);
    for separator in SEPARATORS {
        let rating = rating(separator.0);
        if rating > best.1 {
            best = (separator, rating);
        }
    }
    best.0
}

/// Makes one of several blanks and tabs in a row, and none at the ends of lines, outside of quotes.
fn single_blanks(text: &str) -> String {
    let mut single = String::with_capacity(text.len());
    for line in lines_of(text) {
        let mut in_quotes = false;
        for c in line.trim().chars() {
            in_quotes ^= c == '"';
            match c {
                ' ' | '\t' if !in_quotes => {
                    if !single.ends_with(' ') {
                        single.push(' ');
                    }
                }
                c => single.push(c),
            }
        }
        single.push('\n');
    }
    single
}

/// Refuses what is no CSV before it is taken apart: that would take several times its length in memory.
fn check_lengths(file: &File, text: &str) -> Result<(), DataError> {
    let separators = SEPARATORS.map(|(separator, _)| separator as u8);
    for (number, line) in text.as_bytes().split(|byte| matches!(byte, b'\n' | b'\r')).enumerate() {
        let at = |problem| Err(file.malformed(format!("line {}", number + 1), problem));
        if line.len() > MOST_LINE {
            return at(format!(
                "{} are more than a line may have: give one row per line",
                count(line.len() as u64, "byte")
            ));
        }
        if line.split(|byte| separators.contains(byte)).any(|field| field.len() > MOST_FIELD) {
            return at(format!("a field has more than {MOST_FIELD} bytes: give numbers, separated by commas"));
        }
    }
    Ok(())
}
