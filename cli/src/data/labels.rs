//! Labels of files, and their classes.

use std::collections::{BTreeMap, HashMap};

use super::DataError;
use crate::words::{count, escaped, grouped, quoted};

/// Largest number of classes of a data set.
const MOST_CLASSES: usize = 1024;
/// Number of different labels after which they cannot be classes.
const MOST_NAMES: usize = 1 << 16;
const WAY_OUT: &str = "if the label is in another column of a CSV file, name that with --label";
/// Largest number of classes that are listed by name.
const LISTED: usize = 6;
/// Magnitude above which different texts may be the same f64.
const MOST_NUMBER: f64 = 1e15;

/// Label of every row. Each text is stored once.
#[derive(Debug, Default)]
pub struct Labels {
    pub names: Vec<String>,
    numbers: HashMap<String, u32>,
    /// Index of the name of every row's label.
    pub rows: Vec<u32>,
}

impl Labels {
    fn number_of(&mut self, label: &str) -> Result<u32, String> {
        if let Some(&number) = self.numbers.get(label) {
            return Ok(number);
        }
        if self.names.len() >= MOST_NAMES {
            return Err(format!(
                "there are more than {} different labels, such as {}: {MOST_CLASSES} classes are supported, and no regression targets ({WAY_OUT})",
                grouped(MOST_NAMES as u64),
                quoted(label)
            ));
        }
        let number = self.names.len() as u32;
        self.names.push(label.to_owned());
        self.numbers.insert(label.to_owned(), number);
        Ok(number)
    }

    /// Adds a row. Returns the reason if that is not possible.
    pub fn push(&mut self, label: &str) -> Result<(), String> {
        let number = self.number_of(label)?;
        self.make_room()?;
        self.rows.push(number);
        Ok(())
    }

    fn make_room(&mut self) -> Result<(), String> {
        self.rows.try_reserve(1).map_err(|_| "there is no memory for its labels: use fewer rows".to_owned())
    }

    /// Adds a row before all others.
    pub fn push_first(&mut self, label: &str) -> Result<(), String> {
        let number = self.number_of(label)?;
        self.make_room()?;
        self.rows.insert(0, number);
        Ok(())
    }

    pub fn contains(&self, label: &str) -> bool {
        self.numbers.contains_key(label)
    }

    /// Returns the number of rows of every name.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.names.len()];
        self.rows.iter().for_each(|&name| counts[name as usize] += 1);
        counts
    }
}

/// Returns true for words that programs write for a missing value.
pub fn is_missing(word: &str) -> bool {
    const WORDS: [&str; 20] = [
        "", "?", "-", "--", ".", "*", "na", "n/a", "nan", "null", "nil", "none", "missing", "<na>", "#n/a", "#value!",
        "#ref!", "#div/0!", "#num!", "\\n",
    ];
    WORDS.contains(&word.to_ascii_lowercase().as_str())
}

/// Parses a label as a finite number.
pub fn number(label: &str) -> Option<f64> {
    label.parse::<f64>().ok().filter(|value| value.is_finite())
}

/// Sort key of the classes: numbers by value, words alphabetically.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Number(i64),
    Word(String),
}

/// Class numbers by label.
#[derive(Debug)]
pub struct Classes {
    /// True if every label of the set is a number. Labels with the same value are then the same class.
    are_numbers: bool,
    classes: BTreeMap<Key, u32>,
}

impl Classes {
    /// Returns the classes of the training rows, or an error for labels that cannot be classified.
    pub fn new(train: &Labels, test: Option<(&Labels, &str)>, file: &str) -> Result<Self, DataError> {
        let unusable = |problem: String| Err(DataError::unusable(file, problem));
        let names = || train.names.iter().chain(test.iter().flat_map(|(test, _)| &test.names));
        let is_number = |label: &&String| label.parse::<f64>().is_ok();
        let all_numbers = names().all(|label| is_number(&label));
        if all_numbers && let Some(label) = names().find(|label| number(label).is_none_or(|x| x.fract() != 0.0)) {
            let file = test.filter(|_| !train.contains(label)).map_or(file, |(_, file)| file);
            let problem = format!(
                "the label {} is not a class: labels are whole numbers or words, regression targets are not supported ({WAY_OUT})",
                quoted(label)
            );
            return Err(DataError::unusable(file, problem));
        }
        let are_numbers = all_numbers && names().all(|label| number(label).is_some_and(|x| x.abs() < MOST_NUMBER));
        let mut classes = Classes { are_numbers, classes: BTreeMap::new() };
        for label in &train.names {
            classes.classes.insert(classes.key(label), 0);
        }
        classes.classes.values_mut().zip(0..).for_each(|(class, index)| *class = index);
        match classes.count() {
            1 => unusable(format!(
                "every row has the label {}: classification needs at least two classes ({WAY_OUT})",
                quoted(&train.names[0])
            )),
            many if many > MOST_CLASSES => unusable(format!(
                "{many} different labels are more than the {MOST_CLASSES} classes that are supported ({WAY_OUT})"
            )),
            _ => Ok(classes),
        }
    }

    pub fn count(&self) -> usize {
        self.classes.len()
    }

    /// Returns the class of every name among the training rows' labels.
    pub fn of_names(&self, labels: &Labels) -> Vec<u32> {
        labels.names.iter().map(|label| self.classes.get(&self.key(label)).copied().unwrap_or_default()).collect()
    }

    fn key(&self, label: &str) -> Key {
        match number(label) {
            Some(value) if self.are_numbers => Key::Number(value as i64),
            _ => Key::Word(label.to_owned()),
        }
    }

    /// Returns the class of a row.
    pub fn class_of(&self, labels: &Labels, row: usize, file: &str) -> Result<u32, DataError> {
        let label = &labels.names[labels.rows[row] as usize];
        self.classes.get(&self.key(label)).copied().ok_or_else(|| {
            let problem = format!(
                "the label {} of the test rows is out of range: no training row has it; give training rows of every class",
                quoted(label)
            );
            DataError::unusable(file, problem)
        })
    }

    /// Returns a remark on labels that may be meant as one class, or as a missing value.
    fn remark_on_words(&self, labels: &Labels) -> Option<String> {
        if self.are_numbers {
            return None;
        }
        let mut seen = HashMap::new();
        for label in &labels.names {
            if let Some(other) = seen.insert(plain(label), label) {
                let [one, other] = [other, label].map(|label| quoted(label));
                return Some(format!("{one} and {other} are two classes: write them alike if they are one"));
            }
        }
        let has_quotes = |label: &&String| label.len() > 1 && label.starts_with('"') && label.ends_with('"');
        if let Some(label) = labels.names.iter().find(has_quotes) {
            return Some(format!("{} has quotes of its own: remove the blank before them", quoted(label)));
        }
        let missing = labels
            .names
            .iter()
            .find(|label| is_missing(label) && label.contains(|c: char| c.is_alphabetic() || c == '?'))?;
        Some(format!("{} is a class: remove its rows if their label is missing", quoted(missing)))
    }

    /// Returns a remark with the classes and their numbers of rows, if there are few classes, and on labels that are
    /// written in several ways.
    pub fn remark(&self, labels: &Labels) -> Option<String> {
        let mut by_class: BTreeMap<u32, (Vec<&str>, usize)> = BTreeMap::new();
        for ((label, rows), class) in labels.names.iter().zip(labels.counts()).zip(self.of_names(labels)) {
            let (names, count) = by_class.entry(class).or_default();
            names.push(label);
            names.sort_by_key(|name| name.len());
            *count += rows;
        }
        let spellings: Vec<String> = by_class
            .values()
            .filter(|(names, _)| names.len() > 1)
            .map(|(names, _)| names.iter().take(3).map(|name| quoted(name)).collect::<Vec<_>>().join(" and "))
            .collect();
        let spelled = match &spellings[..] {
            [] => None,
            [first, ..] => Some(format!("labels that are the same number are one class: {first}")),
        };
        let listed = (by_class.len() <= LISTED).then(|| {
            let class =
                |(names, rows): &(Vec<&str>, usize)| format!("{} {}", short(names[0]), count(*rows as u64, "row"));
            format!("classes: {}", by_class.values().map(class).collect::<Vec<_>>().join(", "))
        });
        let remarks: Vec<String> = [listed, spelled, self.remark_on_words(labels)].into_iter().flatten().collect();
        (!remarks.is_empty()).then(|| remarks.join("; "))
    }
}

/// Returns a label without possible typing errors: case, quotes, blanks, a comment, invisible characters, or another
/// notation of a number.
fn plain(label: &str) -> String {
    let label = label.split(" #").next().unwrap_or(label);
    let label =
        label.replace(|c: char| c.is_control() || ('\u{200b}'..='\u{200f}').contains(&c) || c == '\u{feff}', "");
    let label = label.trim_matches(|c: char| c.is_whitespace() || "\"'".contains(c)).to_lowercase();
    number(&label).map_or(label, |number| number.to_string())
}

/// Returns the beginning of a name.
fn short(name: &str) -> String {
    match name.char_indices().nth(20) {
        None => escaped(name),
        Some((end, _)) => escaped(&name[..end]) + "…",
    }
}
