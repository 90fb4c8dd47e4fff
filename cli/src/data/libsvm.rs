//! LIBSVM text: `label index:value index:value …` with ascending indices from 0 or 1. `#` starts a comment. `qid:N`
//! after the label, which ranking files have, is skipped.

use super::file::lines;
use super::{DataError, File, Labels, MOST_FEATURES, Table, feature, values_of};
use crate::words::quoted;

/// Returns true if the first line with more than a label has a token like `3:0.5` after it. A time or a quoted text of
/// a CSV file does not count.
pub fn is_libsvm(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(1 << 16)];
    let text = String::from_utf8_lossy(start);
    let mut lines = lines(text.trim_start_matches('\u{feff}')).map(content).filter(|line| !line.is_empty()).peekable();
    lines.next_if(|line| counts_rows(line));
    let first = lines.map(str::split_whitespace).find_map(|mut tokens| tokens.next().zip(tokens.next()));
    let pair = first.and_then(|(label, token)| Some((label, token.split_once(':')?)));
    pair.is_some_and(|(label, (index, value))| {
        let is_csv = value.contains(['"', ';']) || value.contains(',') && label.parse::<f64>().is_err();
        index.parse::<u64>().is_ok() && !is_csv || index == "qid" && value.parse::<u64>().is_ok()
    })
}

/// Returns true for the first line of files of extreme classification: the numbers of rows, features and labels.
fn counts_rows(line: &str) -> bool {
    line.split_whitespace().count() == 3 && line.split_whitespace().all(|token| token.parse::<u64>().is_ok())
}

fn content(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim()
}

/// Rows as a file has them. Index 0 is a feature if any file of the set has it.
pub struct Sparse {
    /// Row, index and value.
    values: Vec<(u32, u32, f64)>,
    labels: Labels,
    /// The largest index plus one.
    pub indices: usize,
    pub has_index_0: bool,
    pub has_queries: bool,
}

/// Reads a LIBSVM file.
pub fn parse(file: &File) -> Result<Sparse, DataError> {
    let text = file.text()?;
    let mut sparse =
        Sparse { values: Vec::new(), labels: Labels::default(), indices: 0, has_index_0: false, has_queries: false };
    for (number, line) in lines(text).enumerate() {
        let line = content(line);
        let mut tokens = line.split_whitespace().peekable();
        let Some(label) = tokens.next() else { continue };
        let at = |problem: String| file.malformed(format!("line {}", number + 1), problem);
        if sparse.labels.rows.is_empty() && counts_rows(line) {
            let problem = "counts rows, features and labels, as in files of extreme classification: remove this line, and give every row one class";
            return Err(at(format!("{} {problem}", quoted(line))));
        }
        if label.parse::<f64>().is_err() {
            let problem = if label.contains(',') && label.split(',').all(|label| label.parse::<f64>().is_ok()) {
                "is several labels: give every row one class"
            } else {
                "is not a number: a line is a label and then index:value pairs"
            };
            return Err(at(format!("the label {} {problem}", quoted(label))));
        }
        if tokens.next_if(|token| token.starts_with("qid:")).is_some() {
            sparse.has_queries = true;
        }
        let row = sparse.labels.rows.len() as u32;
        let mut last = None;
        for token in tokens {
            let (index, value) = token
                .split_once(':')
                .and_then(|(index, value)| Some((index.parse::<usize>().ok()?, value)))
                .ok_or_else(|| at(format!("{} is not index:value, such as 3:0.5", quoted(token))))?;
            if index > MOST_FEATURES {
                return Err(at(format!(
                    "feature {index} is above the largest index {MOST_FEATURES}: renumber the features"
                )));
            }
            if last.is_some_and(|last| index <= last) {
                return Err(at(format!(
                    "feature {index} comes after a larger or equal one: sort the features of each line and give each once"
                )));
            }
            last = Some(index);
            let place = || format!("line {}, feature {index}", number + 1);
            let value = feature(file, place, value, "a line is a label and then index:value pairs of numbers")?;
            if sparse.values.len() == sparse.values.capacity() && sparse.values.try_reserve(1).is_err() {
                return Err(DataError::unusable(&file.name, "there is no memory for its values: use fewer rows"));
            }
            sparse.values.push((row, index as u32, value));
            sparse.indices = sparse.indices.max(index + 1);
            sparse.has_index_0 |= index == 0;
        }
        sparse.labels.push(label).map_err(|problem| DataError::unusable(&file.name, problem))?;
    }
    Ok(sparse)
}

impl Sparse {
    /// Returns the rows as a table with this number of features. The first feature has index `base`.
    pub fn dense(self, file: &File, base: usize, features: usize) -> Result<Table, DataError> {
        let rows = self.labels.rows.len();
        let mut x = values_of(file, rows, features)?;
        x.resize(rows * features, 0.0);
        for (row, index, value) in self.values {
            x[row as usize * features + index as usize - base] = value;
        }
        Ok(Table { features, x, labels: self.labels })
    }
}
