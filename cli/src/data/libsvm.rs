//! LIBSVM text: `label index:value index:value …`, indices ascending, from 0 or 1; `#` starts a comment.

use super::{DataError, File, Table, check_size, feature};

/// The largest index: a dense row of this many features is the most that is allowed.
const MOST_FEATURES: usize = 1_000_000;

/// Whether the first line with more than a label has a token like `3:0.5` after it.
pub fn is_libsvm(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(1 << 16)];
    String::from_utf8_lossy(start)
        .lines()
        .find_map(|line| content(line).split_whitespace().nth(1))
        .and_then(|token| token.split_once(':'))
        .is_some_and(|(index, _)| index.parse::<u64>().is_ok())
}

fn content(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim()
}

/// Reads a LIBSVM file.
///
/// Index 0 is allowed and then is a feature of its own, so that files counted from 0 and from 1 both work.
pub fn parse(file: &File) -> Result<Table, DataError> {
    let text = file.text()?;
    let mut sparse: Vec<(usize, usize, f32)> = Vec::new();
    let mut labels = Vec::new();
    let mut features = 0;
    for (number, line) in text.lines().enumerate() {
        let mut tokens = content(line).split_whitespace();
        let Some(label) = tokens.next() else { continue };
        let at = |problem: String| file.malformed(format!("line {}", number + 1), problem);
        if label.parse::<f64>().is_err() {
            let problem = "is not a number: a line is a label and then index:value pairs";
            return Err(at(format!("the label \"{label}\" {problem}")));
        }
        let mut last = None;
        for token in tokens {
            let (index, value) = token
                .split_once(':')
                .and_then(|(index, value)| Some((index.parse::<usize>().ok()?, value)))
                .ok_or_else(|| at(format!("\"{token}\" is not index:value, such as 3:0.5")))?;
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
            sparse.push((labels.len(), index, feature(file, place, value)?));
            features = features.max(index + 1);
        }
        labels.push(label.to_owned());
    }
    // Files that count from 1 have no feature 0.
    let base = usize::from(!sparse.iter().any(|&(_, index, _)| index == 0));
    let features = features.saturating_sub(base);
    check_size(file, labels.len(), features)?;
    let mut x = vec![0.0; labels.len() * features];
    for (row, index, value) in sparse {
        x[row * features + index - base] = value;
    }
    Ok(Table { features, x, labels })
}
