//! CSV files with features and a label. The separator, a header and a column of row numbers are recognised by
//! comparison with the rest of the file.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::Read;

use csv::{ReaderBuilder, StringRecord};

use super::file::lines as lines_of;
use super::labels::{is_missing, number};
use super::{DataError, File, Labels, MOST_FEATURES, Table, feature, values_of};
use crate::words::{count, escaped, quoted};

/// Possible separators, the likeliest first, with their names in messages.
const SEPARATORS: [(char, &str); 5] =
    [(',', "commas"), (';', "semicolons"), ('\t', "tabs"), ('|', "bars"), (' ', "blanks")];
/// Number of lines from which the separator is determined.
const LOOKED_AT: usize = 50;
/// Largest number of bytes of a field. A longer field is neither a number nor a name.
const MOST_FIELD: usize = 1 << 16;
/// Largest number of bytes of a line. Numbers for [`MOST_FEATURES`] fit.
const MOST_LINE: usize = 1 << 26;
/// Usual names of label columns.
const LABEL_NAMES: [&str; 11] =
    ["label", "labels", "class", "classes", "target", "y", "species", "category", "type", "variety", "diagnosis"];
/// Number of rows from which on a feature that counts them is not a coincidence.
const FEWEST_NUMBERED: usize = 10;
/// Number of rows from which on a class with a single row is more likely to be the name of the column.
const MANY_ROWS: usize = 20;

/// Reads a CSV file, and returns the table with remarks on what was recognised. `label` names the column of the labels.
/// The default is the last one.
pub fn parse(file: &File, label: Option<&str>) -> Result<(Table, Vec<String>), DataError> {
    let text = file.text()?;
    check_lengths(file, text)?;
    refuse_others(file, text)?;
    let ((separator, name), text) = told_separator(text).unwrap_or_else(|| (separator_of(text), text));
    let text = match separator {
        ' ' => Cow::Owned(single_blanks(text)),
        // Comments extend to the next line feed, and lines are counted by line feeds.
        _ if text.split('\n').any(|line| line.strip_suffix('\r').unwrap_or(line).contains('\r')) => {
            Cow::Owned(lines_of(text).flat_map(|line| [line, "\n"]).collect())
        }
        _ => Cow::Borrowed(text),
    };
    let text = Text { file, text: &text, separator };
    let form = Form::of(&text, label)?;
    let left_out = text.rows_left_out(&form)?;

    let features = form.columns - 1 - form.index;
    let rows = form.labels.rows.len();
    let mut x = values_of(file, rows, features)?;
    let mut names = None;
    text.each_record(u64::MAX, |line, record| {
        if form.has_header {
            match &names {
                None => {
                    names = Some(record.clone());
                    return Ok(());
                }
                Some(names) if names == record => {
                    return Err(
                        file.malformed(format!("line {line}"), "this is the line of names once more: remove it")
                    );
                }
                Some(_) => {}
            }
        }
        let features = record.iter().enumerate().skip(form.index);
        for (column, text) in features.filter(|(column, _)| *column != form.label) {
            let place = || format!("line {line}, column {}", column + 1);
            x.push(feature(file, place, text.trim(), form.way_out(line))?);
        }
        Ok(())
    })?;
    let columns = (form.index..form.columns).filter(|column| *column != form.label);
    let numbering = columns.enumerate().find(|(feature, _)| numbers_rows(&x, features, *feature));
    let mut remarks = form.remarks;
    if let Some((_, column)) = numbering {
        remarks.push(format!("column {} numbers the rows: remove it unless it is a feature", column + 1));
    }
    if left_out > 0 {
        remarks.push(format!("{} commented out with #", count(left_out, "row")));
    }
    if separator != ',' {
        remarks.push(format!("separated by {name}"));
    }
    Ok((Table { features, x, labels: form.labels }, remarks))
}

/// Text with its separator.
struct Text<'a> {
    file: &'a File<'a>,
    text: &'a str,
    separator: char,
}

impl Text<'_> {
    /// Returns the number of rows that are commented out by `#` before their first number. Returns an error for a line
    /// that may be a row whose first value begins with `#`, such as a spreadsheet's `#N/A` or a label.
    fn rows_left_out(&self, form: &Form) -> Result<u64, DataError> {
        let mut left_out = 0;
        for (number, line) in lines_of(self.text).enumerate() {
            if line.trim_start().starts_with("//") {
                let problem = "// begins no comment here: begin the line with #, or put the value in quotes";
                return Err(self.file.malformed(format!("line {}", number + 1), problem));
            }
            let Some(rest) = line.strip_prefix('#') else { continue };
            let mut fields = line.split(self.separator).map(str::trim);
            if rest.starts_with([' ', '\t', '#']) || fields.clone().count() != form.columns {
                continue;
            }
            let first = fields.next().unwrap_or_default();
            if !is_missing(first) && !fields.any(|field| field.parse::<f64>().is_ok()) {
                continue;
            }
            if form.label == 0 || first[1..].parse::<f64>().is_err() {
                let problem = format!(
                    "{} may begin a comment or a row: put it in quotes, or remove the line if it is a comment",
                    quoted(first)
                );
                return Err(self.file.malformed(format!("line {}", number + 1), problem));
            }
            left_out += 1;
        }
        Ok(left_out)
    }

    /// Calls `work` with up to `most` records and the line where each begins. All records must have as many fields as
    /// the first one, and must not extend over several lines.
    fn each_record(
        &self,
        most: u64,
        mut work: impl FnMut(u64, &StringRecord) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        // A quote that is not closed extends to the end of the file, and then contains this line break.
        let bytes = self.text.as_bytes().chain(&b"\n"[..]);
        let mut reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .comment(Some(b'#'))
            .delimiter(self.separator as u8)
            .from_reader(bytes);
        let mut record = StringRecord::new();
        let mut columns = None;
        let mut records = 0;
        while records < most {
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
                let way_out = match records {
                    1 if record.len() == expected + 1 && expected > 1 => {
                        "give every column a name, the row numbers that R writes as well (col.names = NA)"
                    }
                    _ if expected == 1 => "remove the lines before the names or the rows, or begin them with #",
                    _ => "give every row the same number of fields, and remove lines that are no rows",
                };
                let problem = format!(
                    "{} where the lines before have {expected}: {way_out}",
                    count(record.len() as u64, "field")
                );
                return Err(self.file.malformed(format!("line {line}"), problem));
            }
            work(line, &record)?;
            records += 1;
        }
        Ok(())
    }

    /// Returns the labels of all records except the first, and the position of the first.
    fn labels(&self, column: usize) -> Result<Labels, DataError> {
        let mut labels = Labels::default();
        let mut is_first = true;
        self.each_record(u64::MAX, |line, record| {
            if std::mem::take(&mut is_first) {
                return Ok(());
            }
            match record[column].trim() {
                "" => Err(self.no_label(line, record, column)),
                word => labels.push(word).map_err(|problem| DataError::unusable(&self.file.name, problem)),
            }
        })?;
        Ok(labels)
    }

    fn no_label(&self, line: u64, record: &StringRecord, column: usize) -> DataError {
        let problem = if record.iter().all(|field| field.trim().is_empty()) {
            "every field of this line is empty: remove the line"
        } else if column + 1 == record.len() {
            "the label is missing: this column holds the class of every row (--label names another; if all lines end with a separator, remove it)"
        } else {
            "the label is missing: this column holds the class of every row (--label names another)"
        };
        self.file.malformed(format!("line {line}, column {}", column + 1), problem)
    }
}

/// Returns true if a feature is 0, 1, 2, … or 1, 2, 3, …
fn numbers_rows(x: &[f64], features: usize, feature: usize) -> bool {
    let counts_from =
        |start: u32| x[feature..].iter().step_by(features).zip(start..).all(|(&value, row)| value == f64::from(row));
    x.len() / features >= FEWEST_NUMBERED && (counts_from(0) || counts_from(1))
}

/// Interpretation of the columns.
struct Form {
    columns: usize,
    /// Index of the label column.
    label: usize,
    labels: Labels,
    has_header: bool,
    /// Number of first columns that number the rows and are left out.
    index: usize,
    /// Line of the first record.
    first_line: u64,
    remarks: Vec<String>,
}

impl Form {
    /// Reads all labels, and checks whether the first line fits the others.
    fn of(text: &Text, wanted: Option<&str>) -> Result<Self, DataError> {
        let mut first = None;
        text.each_record(1, |line, record| {
            first = Some((line, record.clone()));
            Ok(())
        })?;
        let Some((first_line, record)) = first else {
            return Ok(Form {
                columns: 1,
                label: 0,
                labels: Labels::default(),
                has_header: false,
                index: 0,
                first_line: 0,
                remarks: Vec::new(),
            });
        };
        if record.len() > MOST_FEATURES + 1 {
            let problem = format!(
                "{}, more than the {MOST_FEATURES} features that a row may have",
                count(record.len() as u64, "field")
            );
            return Err(text.file.malformed(format!("line {first_line}"), problem));
        }
        let fields: Vec<&str> = record.iter().map(str::trim).collect();
        let (label, by) = label_column(text, &fields, wanted)?;
        let mut labels = text.labels(label)?;
        let looks_like_header = is_header(&fields, label, &labels);
        // A word that other rows have too may be a name, if the line has other words.
        let mut features = fields.iter().enumerate().filter(|(column, _)| *column != label);
        let has_words = features.any(|(_, field)| field.parse::<f64>().is_err() && !is_missing(field));
        let is_named = by != By::Place && (has_words || !labels.contains(fields[label]));
        if by != By::Place && !is_named && !looks_like_header {
            let problem = format!(
                "--label {}: the first line has this in column {}, but it is a row and no line of names: give the column's number from 1 to {}, first or last",
                quoted(fields[label]),
                label + 1,
                fields.len()
            );
            return Err(DataError::unusable(&text.file.name, problem));
        }
        let has_header = is_named || looks_like_header;
        let named_index = fields.iter().take_while(|field| is_name_of_index(field)).count();
        let index = if has_header { named_index.min(label).min(fields.len().saturating_sub(2)) } else { 0 };
        let mut remarks = Vec::new();
        if has_header {
            remarks.push(format!("header seen, the label is {} (column {})", quoted(fields[label]), label + 1));
            if labels.contains(fields[label]) {
                remarks.push(format!("other rows have {} for a label", quoted(fields[label])));
            }
            if by == By::NameOrPlace {
                remarks
                    .push(format!("{} is taken for this name, and not for a column's number", quoted(fields[label])));
            }
            let other = (0..fields.len()).find(|&column| column != label && is_label_name(fields[column]));
            if let Some(other) = other.filter(|_| wanted.is_none() && !is_label_name(fields[label])) {
                let name = escaped(fields[other]);
                remarks.push(format!("a column is called \"{name}\": --label {name} takes it for the label"));
            }
        } else {
            if fields[label].is_empty() {
                return Err(text.no_label(first_line, &record, label));
            }
            let is_alone = labels.rows.len() >= MANY_ROWS && !labels.contains(fields[label]);
            labels.push_first(fields[label]).map_err(|problem| DataError::unusable(&text.file.name, problem))?;
            remarks.push(format!("no header, the label is in column {}", label + 1));
            if is_alone {
                let word = quoted(fields[label]);
                remarks.push(format!("only the first line has the label {word}: if it is a line of names, remove it"));
            }
        }
        match index {
            0 => {}
            1 => remarks.push("the first column numbers the rows and is left out".to_owned()),
            many => remarks.push(format!("the first {many} columns number the rows and are left out")),
        }
        Ok(Form { columns: fields.len(), label, labels, has_header, index, first_line, remarks })
    }

    fn way_out(&self, line: u64) -> &'static str {
        if line == self.first_line {
            "features are numbers, only the label may be a word; if this line has the names of the columns, give all of them names, or name the label's with --label"
        } else {
            "features are numbers, only the label may be a word (--label names its column)"
        }
    }
}

/// How a column was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Place,
    Name,
    /// A name that is also the number of another column.
    NameOrPlace,
}

/// Returns the label column and how it was chosen. A number is a position, unless the first line is a header with this
/// name.
fn label_column(text: &Text, first: &[&str], wanted: Option<&str>) -> Result<(usize, By), DataError> {
    let wanted = match wanted {
        None | Some("last") => return Ok((first.len() - 1, By::Place)),
        Some("first") => return Ok((0, By::Place)),
        Some(wanted) => wanted,
    };
    let refused = |problem| Err(DataError::unusable(&text.file.name, format!("--label {}: {problem}", quoted(wanted))));
    let place =
        wanted.parse::<usize>().ok().filter(|column| (1..=first.len()).contains(column)).map(|column| column - 1);
    let named: Vec<usize> =
        (0..first.len()).filter(|&column| first[column] == wanted && Some(column) != place).collect();
    match (place, &named[..]) {
        (Some(place), []) => Ok((place, By::Place)),
        (Some(place), [name, ..]) => {
            let is_name = text.labels(*name).is_ok_and(|labels| is_header(first, *name, &labels));
            Ok(if is_name && named.len() == 1 { (*name, By::NameOrPlace) } else { (place, By::Place) })
        }
        (None, [name]) => Ok((*name, By::Name)),
        (None, []) => refused(format!(
            "no column is called so in the first line; give the name of a column, a number from 1 to {}, first or last",
            first.len()
        )),
        (None, [one, other, ..]) => refused(format!(
            "{} are called so: give the number of one, as in --label {} or --label {}",
            count(named.len() as u64, "column"),
            one + 1,
            other + 1
        )),
    }
}

fn is_label_name(field: &str) -> bool {
    LABEL_NAMES.contains(&field.to_ascii_lowercase().as_str())
}

/// Returns true for names that pandas and R give to row numbers.
fn is_name_of_index(field: &str) -> bool {
    field.is_empty() || field.starts_with("Unnamed: 0")
}

/// Returns true if the first line is a header, judged by the labels of the other lines.
fn is_header(first: &[&str], label: usize, others: &Labels) -> bool {
    let features = || first.iter().enumerate().filter(|(column, _)| *column != label).map(|(_, field)| *field);
    let numbers = features().filter(|field| field.parse::<f64>().is_ok()).count();
    let names = features().filter(|field| field.parse::<f64>().is_err() && !is_missing(field)).count();
    let of_label = first[label];
    // No feature is a number. A row with a typo or a word for a missing value has a label that other rows have, too.
    if numbers == 0 && names > 0 {
        let mut seen = HashSet::new();
        let is_row = others.contains(of_label)
            && features().any(|field| {
                !seen.insert(field) || field.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
            });
        return !is_row;
    }
    if of_label.is_empty() || others.names.is_empty() || others.contains(of_label) {
        // The first line may still be a count of all columns.
        return others.contains(of_label) && first.len() > 4 && is_count(first.iter().copied());
    }
    // No other row has this label.
    let is_word = of_label.parse::<f64>().is_err() && !is_missing(of_label);
    let others_are_numbers = others.names.iter().all(|label| number(label).is_some());
    let is_alone = others.rows.len() >= MANY_ROWS && others.counts().iter().all(|&rows| rows > 1);
    is_word && (others_are_numbers || names > 0 || is_alone || is_label_name(of_label))
        || is_word && features().count() > 2 && is_scale(features())
        // pandas counts columns without names, with or without the label. A few rows with few features may look like
        // this by chance.
        || (features().count() > 3 || others.rows.len() >= MANY_ROWS)
            && (is_count(features().skip_while(|field| field.is_empty())) || is_scale(first.iter().copied()))
}

/// Returns true if the fields ascend in equal steps, such as years or wavelengths. Descending fields must have four
/// digits, because otherwise they may as well be a row.
fn is_scale<'a>(fields: impl Iterator<Item = &'a str>) -> bool {
    let Some(values) = fields.map(number).collect::<Option<Vec<f64>>>() else { return false };
    let [first, second, _, ..] = values[..] else { return false };
    let step = second - first;
    let is_of_years = || values.iter().all(|value| (1000.0..10_000.0).contains(value));
    (step > 0.0 || step < 0.0 && is_of_years())
        && values.windows(2).all(|pair| ((pair[1] - pair[0]) / step - 1.0).abs() < 1e-6)
}

/// Returns true if the fields are 0, 1, 2, … or 1, 2, 3, …
fn is_count<'a>(fields: impl Iterator<Item = &'a str> + Clone) -> bool {
    let counts_from = |start: usize| fields.clone().zip(start..).all(|(field, index)| field.parse() == Ok(index));
    fields.clone().count() > 1 && (counts_from(0) || counts_from(1))
}

/// Returns the separator that Excel's first line names (`sep=;`), and the text after that line.
fn told_separator(text: &str) -> Option<((char, &'static str), &str)> {
    let told = text.strip_prefix("sep=")?;
    let separator = SEPARATORS.into_iter().find(|(separator, _)| told.starts_with(*separator))?;
    let rest = &told[separator.0.len_utf8()..];
    rest.starts_with(['\n', '\r']).then_some((separator, rest))
}

/// Returns an error for texts of other formats, recognised by their beginning.
fn refuse_others(file: &File, text: &str) -> Result<(), DataError> {
    // The format ARFF has comments with `%`.
    let text = lines_of(text).find(|line| !line.trim().is_empty() && !line.starts_with('%')).unwrap_or_default();
    let start: String = text.trim_start().chars().chain(['\n']).take(16).flat_map(char::to_lowercase).collect();
    let others = [
        (&["<!", "<html", "<?xml", "<table"][..], "it is HTML or XML"),
        (&["{", "[{", "[[", "[\n"], "it is JSON"),
        (&["@relation"], "it is ARFF"),
    ];
    match others.into_iter().find(|(starts, _)| starts.iter().any(|other| start.starts_with(other))) {
        Some((_, what)) => Err(DataError::unusable(&file.name, format!("{what}: save it as CSV"))),
        None => Ok(()),
    }
}

/// Returns the separator, with its name, by which the most fields of the first lines are numbers. Ties are broken by
/// the number of lines with equally many fields, then by how many decimal commas stay whole.
fn separator_of(text: &str) -> (char, &'static str) {
    let lines =
        || lines_of(text).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).take(LOOKED_AT);
    // If semicolons separate fields, commas are often decimal.
    let is_decimal = |field: &str| field.contains(',') && field.replacen(',', ".", 1).parse::<f64>().is_ok();
    let rating = |separator: char| {
        let mut lengths: HashMap<usize, usize> = HashMap::new();
        let (mut numbers, mut decimals) = (0, 0);
        for line in lines() {
            let mut length = 0;
            let mut add = |field: &str| {
                length += 1;
                let field = field.trim().trim_matches('"');
                let has_comma = is_decimal(field);
                numbers += usize::from(has_comma || field.parse::<f64>().is_ok());
                decimals += usize::from(has_comma && separator != ' ');
            };
            match separator {
                ' ' => line.split_whitespace().for_each(&mut add),
                separator => line.split(separator).for_each(&mut add),
            }
            *lengths.entry(length).or_default() += 1;
        }
        let (length, alike) = lengths.into_iter().max_by_key(|&(length, lines)| (lines, length))?;
        // A separator that leaves most lines as one field separates nothing.
        (length > 1).then_some((numbers, alike, decimals))
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

/// Replaces runs of blanks and tabs by one blank, and removes those at the ends of lines, except in quotes.
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

/// Returns an error for a file that is not CSV before it is parsed, because parsing would take several times its length
/// in memory.
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
