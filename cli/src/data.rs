//! Data sets: two built in, four made from a seed, and CSV, LIBSVM and IDX files, gzipped or not, told apart by their content.

mod csv;
mod idx;
mod libsvm;
mod made;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Split {
    /// Features, rows x features, row-major.
    pub x: Vec<f32>,
    /// Classes, from 0.
    pub y: Vec<u32>,
}

impl Split {
    pub fn rows(&self) -> usize {
        self.y.len()
    }
}

impl Dataset {
    /// The share of the test rows that are right when every row is called what most training rows are: what an answer is worth that has
    /// not looked at the features.
    pub fn chance(&self) -> f64 {
        let mut counts = vec![0usize; self.classes];
        self.train.y.iter().for_each(|&class| counts[class as usize] += 1);
        // The first of several that are equally frequent.
        let most = (0..self.classes).rev().max_by_key(|&class| counts[class]).unwrap_or(0);
        let right = self.test.y.iter().filter(|&&y| y as usize == most);
        right.count() as f64 / self.test.rows().max(1) as f64
    }
}

/// A data set for classification, in two parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    pub name: String,
    pub features: usize,
    pub classes: usize,
    pub train: Split,
    pub test: Split,
}

/// Why data cannot be used, and what to do about it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DataError {
    #[error("{0}: no such file or folder; the sets without a file are {names}", names = NAMES)]
    Missing(String),
    #[error(
        "{folder}: neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz is in this folder; give a folder of IDX files, or one CSV or LIBSVM file"
    )]
    NoIdxFiles { folder: String },
    #[error("{file}: cannot be read: {message}")]
    Unreadable { file: String, message: String },
    /// A place in a file is wrong: `line 12, column 3`, `header`, …
    #[error("{file}, {place}: {problem}")]
    Malformed { file: String, place: String, problem: String },
    #[error("{file}: {problem}")]
    Unusable { file: String, problem: String },
}

impl DataError {
    fn unusable(file: &str, problem: impl Into<String>) -> Self {
        DataError::Unusable { file: file.to_owned(), problem: problem.into() }
    }
}

/// Rows as a file holds them: labels are not classes yet.
#[derive(Debug, Clone, PartialEq, Default)]
struct Table {
    features: usize,
    x: Vec<f32>,
    labels: Vec<String>,
}

/// Floats that a data set may have: 8 GiB.
const MOST_VALUES: usize = 1 << 31;
/// Classes that a data set may have.
const MOST_CLASSES: usize = 1024;
/// Share of the rows held out where a set has no test part: one in five.
const HELD_OUT: usize = 5;
/// Seed of the hold-out. It is not the run's seed, so that every run has the same test rows.
const HOLD_OUT_SEED: u64 = 20_250_813;

/// What [`load`] knows without a file.
pub const NAMES: &str = "digits, mushrooms, spirals, parity, sine and board";

/// Passes over a set that solve it, where no other number is given. Those that are made have few rows, and are not nearly linear.
pub fn default_epochs(spec: &str) -> u32 {
    if made::Made::named(spec).is_some() { 40 } else { 10 }
}

/// A data set and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub dataset: Dataset,
    /// Every file that was read.
    pub files: Vec<PathBuf>,
}

/// Loads a data set: one of [`NAMES`], or a path.
///
/// Where a set has no test part, one row in five is held out, the same ones in every run. Digits are divided by 16 and IDX bytes by
/// 255; CSV columns are standardised by the training part's mean and deviation; LIBSVM values are taken as they are.
///
/// # Errors
/// [`DataError`] names the file, the place, what is wrong and what to do.
pub fn load(spec: &str) -> Result<Dataset, DataError> {
    if let Some(made) = made::Made::named(spec) {
        return Ok(made.dataset());
    }
    match spec {
        "digits" => {
            let file = File::built_in("digits.csv", include_bytes!("../../data/digits.csv.gz"))?;
            let mut dataset = hold_out(&file.name, spec, csv::parse(&file)?)?;
            for split in [&mut dataset.train, &mut dataset.test] {
                split.x.iter_mut().for_each(|x| *x /= 16.0);
            }
            Ok(dataset)
        }
        "mushrooms" => {
            let train = File::built_in("agaricus.txt.train", include_bytes!("../../data/agaricus.txt.train.gz"))?;
            let test = File::built_in("agaricus.txt.test", include_bytes!("../../data/agaricus.txt.test.gz"))?;
            with_test(spec, (&train, libsvm::parse(&train)?), (&test, libsvm::parse(&test)?))
        }
        path => load_path(Path::new(path)),
    }
}

fn load_path(path: &Path) -> Result<Dataset, DataError> {
    let shown = path.display().to_string();
    if path.is_dir() {
        let images =
            with_optional_gz(&path.join("train-images-idx3-ubyte")).ok_or(DataError::NoIdxFiles { folder: shown })?;
        let mut dataset = load_path(&images)?;
        if let Some(name) = path.file_name() {
            dataset.name = name.to_string_lossy().into_owned();
        }
        return Ok(dataset);
    }
    let file = File::open(path)?;
    let name = file.stem();
    if idx::is_idx(&file.bytes) {
        return load_idx(path, &file, &name);
    }
    if libsvm::is_libsvm(&file.bytes) {
        let table = libsvm::parse(&file)?;
        let Some(test) = sibling(path, "train", "test") else {
            return hold_out(&file.name, &name, table);
        };
        let test = File::open(&test)?;
        return with_test(&name, (&file, table), (&test, libsvm::parse(&test)?));
    }
    let mut dataset = hold_out(&file.name, &name, csv::parse(&file)?)?;
    standardise(&mut dataset);
    Ok(dataset)
}

fn load_idx(path: &Path, images: &File, name: &str) -> Result<Dataset, DataError> {
    let read = |images: &File, path: &Path| -> Result<Table, DataError> {
        let labels = sibling(path, "images-idx3", "labels-idx1").ok_or_else(|| {
            let problem = "the file of labels is missing: put it beside this one, with images-idx3 replaced by labels-idx1 in its name";
            DataError::unusable(&images.name, problem)
        })?;
        idx::parse(images, &File::open(&labels)?)
    };
    let table = read(images, path)?;
    let Some(test) = sibling(path, "train-images", "t10k-images") else {
        return hold_out(&images.name, name, table);
    };
    let test_images = File::open(&test)?;
    with_test(name, (images, table), (&test_images, read(&test_images, &test)?))
}

/// A file's content, unpacked, and what to call it in messages.
struct File<'a> {
    name: String,
    bytes: Cow<'a, [u8]>,
}

impl<'a> File<'a> {
    fn open(path: &Path) -> Result<File<'static>, DataError> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing(name.clone()),
            _ => DataError::Unreadable { file: name.clone(), message: error.to_string() },
        })?;
        File::unpacked(name, Cow::Owned(bytes))
    }

    fn built_in(name: &str, bytes: &'a [u8]) -> Result<File<'a>, DataError> {
        File::unpacked(name.to_owned(), Cow::Borrowed(bytes))
    }

    /// Unpacks gzip, which its first two bytes give away.
    fn unpacked(name: String, bytes: Cow<'a, [u8]>) -> Result<File<'a>, DataError> {
        if !bytes.starts_with(&[0x1f, 0x8b]) {
            return Ok(File { name, bytes });
        }
        let mut plain = Vec::new();
        // A hostile file can unpack to a thousand times its size.
        let most = 4 * MOST_VALUES as u64;
        let message = match MultiGzDecoder::new(bytes.as_ref()).take(most + 1).read_to_end(&mut plain) {
            Ok(length) if length as u64 <= most => return Ok(File { name, bytes: Cow::Owned(plain) }),
            Ok(_) => "it unpacks to more than 8 GiB".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(DataError::Unreadable { file: name, message: format!("{message}; the gzip file is damaged or too large") })
    }

    fn text(&self) -> Result<&str, DataError> {
        std::str::from_utf8(&self.bytes).map_err(|error| {
            let problem = "this is not text: give a CSV, LIBSVM or IDX file, gzipped or not";
            self.malformed(format!("byte {}", error.valid_up_to()), problem)
        })
    }

    fn malformed(&self, place: impl Into<String>, problem: impl Into<String>) -> DataError {
        DataError::Malformed { file: self.name.clone(), place: place.into(), problem: problem.into() }
    }

    /// The file's name without its folder and endings.
    fn stem(&self) -> String {
        let name = Path::new(&self.name).file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        name.strip_suffix(".csv").unwrap_or(name).to_owned()
    }
}

/// The path itself or with `.gz` added, whichever exists.
fn with_optional_gz(path: &Path) -> Option<PathBuf> {
    let mut packed = path.as_os_str().to_owned();
    packed.push(".gz");
    [path.to_owned(), PathBuf::from(packed)].into_iter().find(|path| path.is_file())
}

/// The file beside `path` whose name has another part in this one's place, packed or not; `None` where there is no such part or file.
fn sibling(path: &Path, part: &str, other: &str) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".gz").unwrap_or(name);
    let other = name.contains(part).then(|| name.replace(part, other))?;
    with_optional_gz(&path.with_file_name(other))
}

/// Refuses a set that would not fit in memory, before it is allocated.
fn check_size(file: &File, rows: usize, features: usize) -> Result<(), DataError> {
    if rows.checked_mul(features).is_some_and(|values| values <= MOST_VALUES) {
        return Ok(());
    }
    let problem = format!(
        "{rows} rows of {features} features are more than the 2^31 values a dense set may have: use fewer rows or features"
    );
    Err(DataError::unusable(&file.name, problem))
}

/// The number of every class by its label.
type Classes = BTreeMap<(i64, String), u32>;

/// Labels that are whole numbers come in the order of their values, others in that of the alphabet.
fn classes_of(labels: &[String]) -> Classes {
    let mut classes: Classes = labels.iter().map(|label| (class_key(label), 0)).collect();
    classes.values_mut().zip(0..).for_each(|(class, index)| *class = index);
    classes
}

fn class_key(label: &str) -> (i64, String) {
    match label.parse::<f64>() {
        Ok(value) if value.fract() == 0.0 && value.abs() < 1e15 => (value as i64, String::new()),
        _ => (i64::MAX, label.to_owned()),
    }
}

/// The classes of the training part; refuses what cannot be classified.
fn training_classes(file: &str, table: &Table) -> Result<Classes, DataError> {
    let unusable = |problem: String| Err(DataError::unusable(file, problem));
    if table.labels.is_empty() {
        return unusable("there is not one row of data: give a file with rows".to_owned());
    }
    if table.features == 0 {
        return unusable("the rows have a label but no features: put the features before the label".to_owned());
    }
    let is_target =
        |label: &&String| label.parse::<f64>().is_ok_and(|value| value.fract() != 0.0 || !value.is_finite());
    if let Some(label) = table.labels.iter().find(is_target) {
        return unusable(format!(
            "the label {label} is not a class: labels are whole numbers or words, regression targets are not supported (is the label in the last column?)"
        ));
    }
    let classes = classes_of(&table.labels);
    match classes.len() {
        1 => {
            unusable(format!("every row has the label {}: classification needs at least two classes", table.labels[0]))
        }
        count if count > MOST_CLASSES => unusable(format!(
            "{count} different labels are more than the {MOST_CLASSES} classes that are supported (is the label in the last column?)"
        )),
        _ => Ok(classes),
    }
}

fn split_of(file: &str, classes: &Classes, x: Vec<f32>, labels: &[String]) -> Result<Split, DataError> {
    let class = |label: &String| {
        classes.get(&class_key(label)).copied().ok_or_else(|| {
            let problem = format!(
                "the label {label} of the test rows is out of range: no training row has it; give training rows of every class"
            );
            DataError::unusable(file, problem)
        })
    };
    Ok(Split { x, y: labels.iter().map(class).collect::<Result<_, _>>()? })
}

/// A set with a test part of its own. LIBSVM files may end before the other's last feature.
fn with_test(
    name: &str,
    (train_file, mut train): (&File, Table),
    (test_file, mut test): (&File, Table),
) -> Result<Dataset, DataError> {
    let features = train.features.max(test.features);
    for table in [&mut train, &mut test] {
        check_size(train_file, table.labels.len(), features)?;
        if table.features < features {
            widen(table, features);
        }
    }
    let classes = training_classes(&train_file.name, &train)?;
    if test.labels.is_empty() {
        return Err(DataError::unusable(&test_file.name, "this test file has no rows: remove it, or give it some"));
    }
    let number = classes.len();
    let train = split_of(&train_file.name, &classes, train.x, &train.labels)?;
    let test = split_of(&test_file.name, &classes, test.x, &test.labels)?;
    Ok(Dataset { name: name.to_owned(), features, classes: number, train, test })
}

fn widen(table: &mut Table, features: usize) {
    let mut x = vec![0.0; table.labels.len() * features];
    if table.features > 0 {
        for (wide, row) in x.chunks_mut(features).zip(table.x.chunks(table.features)) {
            wide[..row.len()].copy_from_slice(row);
        }
    }
    (table.x, table.features) = (x, features);
}

/// A set of one part: one row in five becomes the test part.
fn hold_out(file: &str, name: &str, table: Table) -> Result<Dataset, DataError> {
    let classes = training_classes(file, &table)?;
    let rows = table.labels.len();
    let mut order: Vec<usize> = (0..rows).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(HOLD_OUT_SEED));
    // At least one row on either side: two classes mean two rows.
    let (test, train) = order.split_at((rows / HELD_OUT).max(1));
    let part = |rows: &[usize]| {
        let x = rows.iter().flat_map(|&row| &table.x[row * table.features..][..table.features]).copied().collect();
        let labels: Vec<String> = rows.iter().map(|&row| table.labels[row].clone()).collect();
        split_of(file, &classes, x, &labels)
    };
    let (train, test) = (part(train)?, part(test)?);
    Ok(Dataset { name: name.to_owned(), features: table.features, classes: classes.len(), train, test })
}

/// Gives every column mean 0 and deviation 1 over the training rows; a constant column becomes 0.
fn standardise(dataset: &mut Dataset) {
    let features = dataset.features;
    let rows = dataset.train.rows() as f64;
    for column in 0..features {
        let values = || dataset.train.x[column..].iter().step_by(features).map(|&x| f64::from(x));
        let mean = values().sum::<f64>() / rows;
        let variance = values().map(|x| (x - mean).powi(2)).sum::<f64>() / rows;
        let deviation = variance.sqrt();
        let scale = if deviation > 0.0 { 1.0 / deviation } else { 0.0 };
        for split in [&mut dataset.train, &mut dataset.test] {
            for x in split.x[column..].iter_mut().step_by(features) {
                *x = ((f64::from(*x) - mean) * scale) as f32;
            }
        }
    }
}

/// A number of a text file: finite and no further from 0 than f32 goes.
fn feature(file: &File, place: impl Fn() -> String, text: &str) -> Result<f32, DataError> {
    let problem = match text.parse::<f32>() {
        Ok(value) if value.is_finite() => return Ok(value),
        Ok(_) => format!("the feature \"{text}\" is not finite: remove the row or fill the value in"),
        Err(_) => {
            format!("\"{text}\" is not a number: features are numbers, only the last column, the label, may be a word")
        }
    };
    Err(file.malformed(place(), problem))
}

pub fn load_from(spec: &str) -> Result<Loaded, DataError> {
    Ok(Loaded { dataset: load(spec)?, files: Vec::new() })
}
