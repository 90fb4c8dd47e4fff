//! IDX, the format of MNIST: a big-endian header, then numbers of one type.

use super::{DataError, File, Labels, Table, values_of};

/// Type of the numbers, which is the header's third byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    U8 = 0x08,
    I8 = 0x09,
    I16 = 0x0b,
    I32 = 0x0c,
    F32 = 0x0d,
    F64 = 0x0e,
}

impl Kind {
    const ALL: [Kind; 6] = [Kind::U8, Kind::I8, Kind::I16, Kind::I32, Kind::F32, Kind::F64];

    pub fn is_byte(self) -> bool {
        self == Kind::U8
    }

    fn size(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 => 1,
            Kind::I16 => 2,
            Kind::I32 | Kind::F32 => 4,
            Kind::F64 => 8,
        }
    }

    /// Reads a number of this type from its [`Kind::size`] bytes.
    fn value(self, bytes: &[u8]) -> f64 {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        let [a, b, c, d, ..] = padded;
        match self {
            Kind::U8 => f64::from(a),
            Kind::I8 => f64::from(a as i8),
            Kind::I16 => f64::from(i16::from_be_bytes([a, b])),
            Kind::I32 => f64::from(i32::from_be_bytes([a, b, c, d])),
            Kind::F32 => f64::from(f32::from_be_bytes([a, b, c, d])),
            Kind::F64 => f64::from_be_bytes(padded),
        }
    }
}

/// Images with their labels.
pub struct Part {
    pub table: Table,
    pub kind: Kind,
    /// Lengths of an image's dimensions.
    pub shape: Vec<usize>,
}

impl Part {
    /// Returns shape and type, such as `28 x 28 of U8`.
    pub fn in_words(&self) -> String {
        let sizes: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        format!("{} of {:?}", sizes.join(" x "), self.kind)
    }
}

/// Returns true if a file starts like an IDX file and unlike any text: two zeros, a type, and the number of dimensions.
pub fn is_idx(bytes: &[u8]) -> bool {
    matches!(bytes, [0, 0, 1..=0x1f, 1..=8, ..])
}

struct Contents<'a> {
    kind: Kind,
    sizes: Vec<usize>,
    data: &'a [u8],
}

fn contents<'a>(file: &'a File) -> Result<Contents<'a>, DataError> {
    let header =
        |problem: String| Err(file.malformed("header", format!("{problem}: give an IDX file, whole and unaltered")));
    let [0, 0, kind, dimensions @ 1..=4, rest @ ..] = file.bytes.as_ref() else {
        return header("it does not start with 0, 0, a type, and a number of dimensions from 1 to 4".to_owned());
    };
    let Some(kind) = Kind::ALL.into_iter().find(|known| *known as u8 == *kind) else {
        return header(format!(
            "0x{kind:02x} is no type of IDX: they are 0x08 (u8), 0x09 (i8), 0x0b (i16), 0x0c (i32), 0x0d (f32) and 0x0e (f64)"
        ));
    };
    let Some((sizes, data)) = rest.split_at_checked(4 * usize::from(*dimensions)) else {
        return header("it ends within the dimensions".to_owned());
    };
    let sizes: Vec<usize> =
        sizes.chunks_exact(4).map(|size| size.iter().fold(0, |value, &byte| value << 8 | usize::from(byte))).collect();
    let expected = sizes.iter().try_fold(kind.size(), |product, &size| product.checked_mul(size));
    if expected != Some(data.len()) {
        return header(format!("dimensions {sizes:?} of {kind:?} do not fit the {} bytes that follow", data.len()));
    }
    Ok(Contents { kind, sizes, data })
}

/// Reads images and their labels.
pub fn parse(images: &File, labels: &File) -> Result<Part, DataError> {
    let pixels = contents(images)?;
    let classes = contents(labels)?;
    let rows = pixels.sizes[0];
    if classes.sizes != [rows] {
        let problem = format!("dimensions {:?} for {rows} images: give one label per image", classes.sizes);
        return Err(DataError::unusable(&labels.name, problem));
    }
    // If there is a row, this is at most the number of bytes.
    let features = if rows == 0 { 0 } else { pixels.sizes[1..].iter().product() };
    if rows > 0 && features == 0 {
        let problem = format!("dimensions {:?} leave no pixel in an image: give images", pixels.sizes);
        return Err(images.malformed("header", problem));
    }
    let mut x = values_of(images, rows, features)?;
    x.extend(pixels.data.chunks_exact(pixels.kind.size()).map(|bytes| pixels.kind.value(bytes)));
    if let Some(at) = x.iter().position(|value| !value.is_finite() || value.abs() > f64::from(f32::MAX)) {
        let problem = "is not finite, or beyond 3.4e38: give numbers that fit 32 bits";
        return Err(images.malformed(format!("image {}", at / features), format!("value {} {problem}", at % features)));
    }
    let mut table = Table { features, x, labels: Labels::default() };
    for bytes in classes.data.chunks_exact(classes.kind.size()) {
        let label = classes.kind.value(bytes).to_string();
        table.labels.push(&label).map_err(|problem| DataError::unusable(&labels.name, problem))?;
    }
    Ok(Part { table, kind: pixels.kind, shape: pixels.sizes[1..].to_vec() })
}
