//! Data sets: two built in, four generated from a seed, and CSV, LIBSVM and IDX files, gzipped or not. The content of a
//! file tells its format.
//!
//! Inference uses the whole set, training and test rows together: whether there is a header, where indices begin, and
//! whether labels are numbers.

mod csv;
mod file;
mod idx;
mod labels;
mod libsvm;
mod made;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::memory;
use crate::words::{count, escaped, grouped};
use file::{File, sibling, with_optional_gz};
use labels::{Classes, Labels};

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Split {
    /// Features in row-major order, rows x features.
    pub x: Vec<f32>,
    /// Classes, counted from 0.
    pub y: Vec<u32>,
}

impl Split {
    pub fn rows(&self) -> usize {
        self.y.len()
    }
}

impl Dataset {
    /// Returns the fraction of the test rows that have the most frequent class of the training rows. It is the accuracy
    /// of an answer that ignores the features.
    pub fn chance(&self) -> f64 {
        let mut counts = vec![0usize; self.classes];
        self.train.y.iter().for_each(|&class| counts[class as usize] += 1);
        // Of several equally frequent classes the first one is taken.
        let most = (0..self.classes).rev().max_by_key(|&class| counts[class]).unwrap_or(0);
        let right = self.test.y.iter().filter(|&&y| y as usize == most);
        right.count() as f64 / self.test.rows().max(1) as f64
    }
}

/// Data set for classification, in a training and a test part.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    pub name: String,
    pub features: usize,
    pub classes: usize,
    pub train: Split,
    pub test: Split,
}

/// Data set and its source.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub dataset: Dataset,
    /// All files that were read.
    pub files: Vec<PathBuf>,
    /// Summary in one line: `pets: 150 rows, 4 features, 3 classes, 30 held out; header seen`.
    pub about: String,
}

/// Reason why data cannot be used, with advice.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DataError {
    #[error("{0}: no such file or folder; the sets without a file are {names}", names = NAMES)]
    Missing(String),
    #[error(
        "{folder}: no file of training images (train-images-idx3-ubyte or train-images.idx3-ubyte, with .gz or without) is in this folder; give a folder of IDX files, or one CSV or LIBSVM file"
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

/// Rows as a file holds them. Numbers are not scaled, and labels are not classes yet.
#[derive(Debug, Default)]
struct Table {
    features: usize,
    x: Vec<f64>,
    labels: Labels,
}

/// Largest number of values of a data set.
const MOST_VALUES: usize = 1 << 31;
/// Largest number of features of a row.
const MOST_FEATURES: usize = 1_000_000;
/// Denominator of the fraction of rows that is held out if a set has no test part: one in five.
const HELD_OUT: usize = 5;
/// Magnitude below which squares lose digits.
const TINY: f64 = 1e-140;
/// Number of f32 steps that the values of a feature should span.
const FEWEST_STEPS: f64 = 64.0;
/// Seed of the hold-out. It differs from the run's seed, so that every run has the same test rows.
const HOLD_OUT_SEED: u64 = 20_250_813;

/// Names that [`load`] accepts without a file.
pub const NAMES: &str = "digits, mushrooms, spirals, parity, sine and board";

/// Returns true if this is one of [`NAMES`].
pub fn is_named(spec: impl AsRef<OsStr>) -> bool {
    let name = spec.as_ref().to_str();
    name.is_some_and(|name| made::Made::named(name).is_some() || ["digits", "mushrooms"].contains(&name))
}

/// Returns the default number of epochs, which is enough to solve the set. Generated sets need more, because they have
/// few rows and are far from linear.
pub fn default_epochs(spec: impl AsRef<OsStr>) -> u32 {
    if spec.as_ref().to_str().and_then(made::Made::named).is_some() { 40 } else { 10 }
}

/// Loads a data set: one of [`NAMES`], or a path.
///
/// # Errors
/// See [`load_from`].
pub fn load(spec: impl AsRef<OsStr>) -> Result<Dataset, DataError> {
    Ok(load_from(spec, None)?.dataset)
}

/// Loads a data set: one of [`NAMES`], or a path. `label` is the column of a CSV file with the class: its name, its
/// number counted from 1, `first` or `last`. The default is the last column.
///
/// If a set has no test part, one row in five is held out, the same rows in every run. Digits are divided by 16 and IDX
/// bytes by 255. CSV columns and other IDX values are standardised by the mean and standard deviation of the training
/// part. LIBSVM values are not scaled.
///
/// # Errors
/// Returns a [`DataError`] that names the file, the place, the problem and what to do.
pub fn load_from(spec: impl AsRef<OsStr>, label: Option<&str>) -> Result<Loaded, DataError> {
    let mut loader = Loader { label, files: Vec::new(), remarks: Vec::new() };
    let (dataset, part) = loader.load(spec.as_ref())?;
    let Dataset { features, classes, train, test, .. } = &dataset;
    let test_rows = grouped(test.rows() as u64);
    let part = match part {
        TestPart::HeldOut => format!("{test_rows} held out"),
        TestPart::Own => format!("{test_rows} for testing"),
    };
    let words = [
        count((train.rows() + test.rows()) as u64, "row"),
        count(*features as u64, "feature"),
        count(*classes as u64, "class"),
        part,
    ];
    let remarks: String = loader.remarks.iter().map(|remark| format!("; {remark}")).collect();
    let about = format!("{}: {}{remarks}", dataset.name, words.join(", "));
    Ok(Loaded { about, files: loader.files, dataset })
}

/// Source of the test rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TestPart {
    HeldOut,
    Own,
}

/// Scaling of the values of a file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scaling {
    AsItIs,
    DividedBy(f64),
    Standardised,
}

/// Reads a set and records what it has read.
struct Loader<'a> {
    label: Option<&'a str>,
    files: Vec<PathBuf>,
    /// Findings about the set.
    remarks: Vec<String>,
}

impl Loader<'_> {
    fn load(&mut self, spec: &OsStr) -> Result<(Dataset, TestPart), DataError> {
        // A path need not be UTF-8, so it may have no name.
        let name = spec.to_str().unwrap_or_default();
        if let Some(made) = made::Made::named(name) {
            self.refuse_label(name)?;
            return Ok((made.dataset(), TestPart::HeldOut));
        }
        match name {
            "digits" => {
                self.refuse_label(name)?;
                let file = File::built_in("digits.csv", include_bytes!("../../data/digits.csv.gz"))?;
                let (table, _) = csv::parse(&file, None)?;
                self.assemble(name, (&file, table), None, Scaling::DividedBy(16.0))
            }
            "mushrooms" => {
                let train = File::built_in("agaricus.txt.train", include_bytes!("../../data/agaricus.txt.train.gz"))?;
                let test = File::built_in("agaricus.txt.test", include_bytes!("../../data/agaricus.txt.test.gz"))?;
                self.libsvm(name, &train, Some(&test))
            }
            _ => self.path(Path::new(spec)),
        }
    }

    fn open(&mut self, path: &Path) -> Result<File<'static>, DataError> {
        self.files.push(path.to_owned());
        File::open(path)
    }

    /// Returns an error if `--label` is given for a set that is not a CSV file.
    fn refuse_label(&self, name: &str) -> Result<(), DataError> {
        match self.label {
            None => Ok(()),
            Some(_) => Err(DataError::unusable(name, "--label is for CSV files, this set is none: leave it out")),
        }
    }

    fn path(&mut self, path: &Path) -> Result<(Dataset, TestPart), DataError> {
        let shown = crate::words::path(path);
        if path.is_dir() {
            let names = ["train-images-idx3-ubyte", "train-images.idx3-ubyte"];
            let images = names.iter().find_map(|name| with_optional_gz(&path.join(name), false));
            let (mut dataset, part) = self.path(&images.ok_or(DataError::NoIdxFiles { folder: shown })?)?;
            if let Some(name) = path.file_name() {
                dataset.name = escaped(&name.to_string_lossy());
            }
            return Ok((dataset, part));
        }
        let file = self.open(path)?;
        if idx::is_idx(&file.bytes) {
            return self.idx(path, &file);
        }
        if libsvm::is_libsvm(&file.bytes) {
            let test = sibling(path, &[("train", "test")]).map(|test| self.open(&test)).transpose()?;
            return self.libsvm(&file.stem(), &file, test.as_ref());
        }
        let (table, remarks) = csv::parse(&file, self.label)?;
        self.remarks = remarks;
        self.assemble(&file.stem(), (&file, table), None, Scaling::Standardised)
    }

    fn libsvm(&mut self, name: &str, train: &File, test: Option<&File>) -> Result<(Dataset, TestPart), DataError> {
        self.refuse_label(name)?;
        let (training, testing) = (libsvm::parse(train)?, test.map(libsvm::parse).transpose()?);
        let parts = || [Some(&training), testing.as_ref()].into_iter().flatten();
        // Files that count from 1 have no feature 0. A file may also end before the last feature of the other.
        let base = usize::from(!parts().any(|part| part.has_index_0));
        let features = parts().map(|part| part.indices.saturating_sub(base)).max().unwrap_or(0);
        if parts().any(|part| part.has_queries) {
            self.remarks.push("qid: is left out".to_owned());
        }
        let table = training.dense(train, base, features)?;
        self.remark_on_digits(&table, f64::from(f32::EPSILON), base);
        let test = test.zip(testing).map(|(file, part)| Ok((file, part.dense(file, base, features)?))).transpose()?;
        self.assemble(name, (train, table), test, Scaling::AsItIs)
    }

    fn idx(&mut self, path: &Path, images: &File) -> Result<(Dataset, TestPart), DataError> {
        self.refuse_label(&images.name)?;
        if images.bytes.get(3) == Some(&1) {
            let problem = "it has one dimension, as labels have: give the file of images, or the folder";
            return Err(DataError::unusable(&images.name, problem));
        }
        let training = self.idx_part(path, images)?;
        let plain = [("train-images", "t10k-images"), ("train-images", "test-images")];
        let test_path = sibling(path, &plain).or_else(|| idx_test_file(path, "images", 3));
        if test_path.is_none()
            && let Some(labels) = idx_test_file(path, "labels", 1)
        {
            self.remarks.push(format!("{} has no test images beside it and is not used", crate::words::path(&labels)));
        }
        let test_images = test_path.as_ref().map(|test| self.open(test)).transpose()?;
        let mut test = None;
        if let Some((file, path)) = test_images.as_ref().zip(test_path) {
            let testing = self.idx_part(&path, file)?;
            if (&testing.shape, testing.kind) != (&training.shape, training.kind) {
                let problem = format!(
                    "the images are {}, those of {} are {}: give training and test images of one shape and type",
                    testing.in_words(),
                    images.name,
                    training.in_words()
                );
                return Err(DataError::unusable(&file.name, problem));
            }
            test = Some((file, testing.table));
        }
        let scaling = if training.kind.is_byte() { Scaling::DividedBy(255.0) } else { Scaling::Standardised };
        self.assemble(&images.stem(), (images, training.table), test, scaling)
    }

    /// Reads images and the labels in the file beside them.
    fn idx_part(&mut self, path: &Path, images: &File) -> Result<idx::Part, DataError> {
        let names = [
            ("images-idx3", "labels-idx1"),
            ("images.idx3", "labels.idx1"),
            ("images-idx3", "labels.idx1"),
            ("images.idx3", "labels-idx1"),
        ];
        let labels = sibling(path, &names).ok_or_else(|| {
            let problem = "the file of labels is missing: put it beside this one, with images-idx3 replaced by labels-idx1 in its name";
            DataError::unusable(&images.name, problem)
        })?;
        idx::parse(images, &self.open(&labels)?)
    }

    /// Adds a remark on a feature that loses most of its digits in this precision. The first feature has number `base`.
    fn remark_on_digits(&mut self, table: &Table, epsilon: f64, base: usize) {
        if let Some(feature) = lost_digits(table, epsilon) {
            self.remarks.push(format!(
                "the values of feature {} are so close together for their size that few of their digits are kept: subtract a constant",
                feature + base
            ));
        }
    }

    /// Makes a set from these rows. Without a test part, one row in five becomes a test row.
    fn assemble(
        &mut self,
        name: &str,
        (file, table): (&File, Table),
        test: Option<(&File, Table)>,
        scaling: Scaling,
    ) -> Result<(Dataset, TestPart), DataError> {
        if table.labels.rows.is_empty() {
            return Err(DataError::unusable(&file.name, "there is not one row of data: give a file with rows"));
        }
        if table.features == 0 {
            let problem = "the rows have a label but no features: put the features beside the label, separated by commas, semicolons, tabs or blanks";
            return Err(DataError::unusable(&file.name, problem));
        }
        let of_test = test.as_ref().map(|(file, test)| (&test.labels, &*file.name));
        let classes = Classes::new(&table.labels, of_test, &file.name)?;
        self.remarks.extend(classes.remark(&table.labels));
        let rows = table.labels.rows.len();
        let mut order = memory::list(rows).map_err(|message| {
            DataError::unusable(&file.name, format!("the order of the rows {message}: use fewer rows"))
        })?;
        order.extend(0..rows);
        let (held_out, training) = if test.is_some() {
            order.split_at(0)
        } else {
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(HOLD_OUT_SEED));
            // Both parts have at least one row, because two classes mean at least two rows.
            let held_out = (rows / HELD_OUT).max(1);
            let class_of_name = classes.of_names(&table.labels);
            let class = |row: usize| class_of_name[table.labels.rows[row] as usize] as usize;
            let strangers = keep_every_class(&mut order, held_out, class, classes.count());
            if strangers > 0 {
                let rows = count(strangers as u64, "held-out row");
                self.remarks.push(format!("{rows} of classes with no row left for training can never be right"));
            }
            order.split_at(held_out)
        };
        let scales = Scale::of_columns(scaling, &table, training);
        if scaling == Scaling::Standardised {
            self.remark_on_digits(&table, f64::EPSILON, 1);
            let constant = scales.iter().filter(|scale| scale.factor == 0.0).count() as u64;
            if constant > 0 {
                let are = if constant == 1 { "is" } else { "are" };
                self.remarks.push(format!("{} {are} constant over the training rows", count(constant, "feature")));
            }
        }
        let train = classes.split(file, &table, training, &scales)?;
        let (test, part) = match &test {
            None => (classes.split(file, &table, held_out, &scales)?, TestPart::HeldOut),
            Some((file, table)) => {
                if table.labels.rows.is_empty() {
                    let problem = "this test file has no rows: remove it, or give it some";
                    return Err(DataError::unusable(&file.name, problem));
                }
                let all: Vec<usize> = (0..table.labels.rows.len()).collect();
                (classes.split(file, table, &all, &scales)?, TestPart::Own)
            }
        };
        Ok((Dataset { name: name.to_owned(), features: table.features, classes: classes.count(), train, test }, part))
    }
}

/// Returns the file of test images or labels beside training images, whatever precedes `idx` in the names.
fn idx_test_file(images: &Path, what: &str, dimensions: u8) -> Option<PathBuf> {
    let mut names = Vec::new();
    for part in ["t10k", "test"] {
        for (mark, other) in [("-", "-"), (".", "."), ("-", "."), (".", "-")] {
            names.push((format!("train-images{mark}idx3"), format!("{part}-{what}{other}idx{dimensions}")));
        }
    }
    let names: Vec<(&str, &str)> = names.iter().map(|(name, other)| (name.as_str(), other.as_str())).collect();
    sibling(images, &names)
}

/// Exchanges rows so that every class has at least one row for training, if other classes have one to spare. The first
/// `held_out` rows are held out. Returns the number of held-out rows whose class has no row for training.
fn keep_every_class(order: &mut [usize], held_out: usize, class: impl Fn(usize) -> usize, classes: usize) -> usize {
    let mut counts = vec![0usize; classes];
    order[held_out..].iter().for_each(|&row| counts[class(row)] += 1);
    let mut next = held_out;
    for at in 0..held_out {
        let wanted = class(order[at]);
        if counts[wanted] > 0 {
            continue;
        }
        next = (next..order.len()).find(|&other| counts[class(order[other])] > 1).unwrap_or(order.len());
        if next < order.len() {
            counts[class(order[next])] -= 1;
            counts[wanted] += 1;
            order.swap(at, next);
        }
    }
    order[..held_out].iter().filter(|&&row| counts[class(row)] == 0).count()
}

impl Classes {
    /// Returns some rows of a table, scaled.
    fn split(&self, file: &File, table: &Table, rows: &[usize], scales: &[Scale]) -> Result<Split, DataError> {
        let no_room =
            |message| DataError::unusable(&file.name, format!("the set {message}: use fewer rows or features"));
        let mut split = Split {
            x: memory::list(rows.len() * table.features).map_err(no_room)?,
            y: memory::list(rows.len()).map_err(no_room)?,
        };
        for &row in rows {
            let values = &table.x[row * table.features..][..table.features];
            split.x.extend(values.iter().zip(scales).map(|(&value, scale)| scale.apply(value)));
            split.y.push(self.class_of(&table.labels, row, &file.name)?);
        }
        Ok(split)
    }
}

/// Returns a feature with values other than 0 that are too close together for numbers of this relative precision.
fn lost_digits(table: &Table, epsilon: f64) -> Option<usize> {
    let mut ends = vec![(f64::INFINITY, f64::NEG_INFINITY); table.features];
    for row in table.x.chunks_exact(table.features.max(1)) {
        for ((low, high), &value) in ends.iter_mut().zip(row).filter(|(_, value)| **value != 0.0) {
            (*low, *high) = (low.min(value), high.max(value));
        }
    }
    ends.into_iter().position(|(low, high)| {
        let largest = low.abs().max(high.abs());
        // Values that were read as one number may have been several integers.
        let was_several = low == high && largest * f64::EPSILON > 1.0;
        was_several || high > low && high - low < FEWEST_STEPS * epsilon * largest
    })
}

/// Transformation of a column: `((x - origin) - mean) * factor / divisor`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Scale {
    /// A value of the column. Subtracting it keeps the digits of years, times and identifiers.
    origin: f64,
    mean: f64,
    factor: f64,
    divisor: f64,
}

impl Scale {
    const NONE: Scale = Scale { origin: 0.0, mean: 0.0, factor: 1.0, divisor: 1.0 };

    fn of_columns(scaling: Scaling, table: &Table, training: &[usize]) -> Vec<Scale> {
        let column = |column: usize| match scaling {
            Scaling::AsItIs => Scale::NONE,
            Scaling::DividedBy(divisor) => Scale { divisor, ..Scale::NONE },
            Scaling::Standardised => {
                let values = || training.iter().map(|&row| table.x[row * table.features + column]);
                Scale::standard(values, values().next().unwrap_or(0.0))
            }
        };
        (0..table.features).map(column).collect()
    }

    /// Returns the scale that gives these values mean 0 and standard deviation 1. Constant values become 0.
    fn standard<I: Iterator<Item = f64>>(values: impl Fn() -> I, origin: f64) -> Self {
        let rows = values().count() as f64;
        let mean = values().map(|x| x - origin).sum::<f64>() / rows;
        // Without this unit the squares of tiny values would be 0.
        let largest = values().map(|x| (x - origin - mean).abs()).fold(0.0, f64::max);
        let unit = if largest > 0.0 && largest < TINY { largest } else { 1.0 };
        let variance = values().map(|x| ((x - origin - mean) / unit).powi(2)).sum::<f64>() / rows;
        let factor = 1.0 / (variance.sqrt() * unit);
        Scale { origin, mean, factor: if factor.is_finite() { factor } else { 0.0 }, divisor: 1.0 }
    }

    fn apply(&self, value: f64) -> f32 {
        // A value that occurs only in test rows may exceed f32.
        let scaled = (value - self.origin - self.mean) * self.factor / self.divisor;
        scaled.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
    }
}

/// Allocates the list of values. Returns an error, before allocation, for a set that would not fit in memory.
fn values_of(file: &File, rows: usize, features: usize) -> Result<Vec<f64>, DataError> {
    let words = || format!("{} of {}", count(rows as u64, "row"), count(features as u64, "feature"));
    let refused = |why: String| Err(DataError::unusable(&file.name, format!("{}: use fewer rows or features", why)));
    match rows.checked_mul(features).filter(|&values| values <= MOST_VALUES) {
        None => refused(format!("{} are more than the 2^31 values a dense set may have", words())),
        // The estimate covers the values as read and as trained on, the labels, the classes and the order of the rows.
        Some(values) => {
            match memory::check(12.0 * values as f64 + 24.0 * rows as f64).and_then(|()| memory::list(values)) {
                Ok(list) => Ok(list),
                Err(why) => refused(format!("a dense set of {} {why}", words())),
            }
        }
    }
}

/// Returns true if this is a number with a decimal or thousands separator that some countries use.
fn is_number_elsewhere(text: &str) -> bool {
    let digits: String = text.chars().filter(|c| !".,'_ \u{2019}\u{a0}\u{202f}".contains(*c)).collect();
    text.ends_with(|c: char| c.is_ascii_digit()) && !text.starts_with('\'') && digits.parse::<f64>().is_ok()
}

/// Parses a number of a text file, which must be finite and within the range of f32. `form` describes the expected
/// form.
fn feature(file: &File, place: impl Fn() -> String, text: &str, form: &str) -> Result<f64, DataError> {
    let shown = crate::words::quoted(text);
    let problem = match text.parse::<f64>() {
        Ok(value) if value.abs() <= f64::from(f32::MAX) => return Ok(value),
        Ok(value) if value.is_finite() => {
            format!("the feature {shown} is beyond 3.4e38, the largest number of 32 bits: rescale it")
        }
        Ok(_) => format!("the feature {shown} is not finite: remove the row or fill the value in"),
        Err(_) if is_number_elsewhere(text) => {
            format!(
                "{shown} is not a number: write numbers with a decimal point, not with a comma, and nothing between thousands"
            )
        }
        Err(_) => format!("{shown} is not a number: {form}"),
    };
    Err(file.malformed(place(), problem))
}
