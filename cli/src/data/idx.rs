//! IDX, the format of MNIST: a big-endian header, then bytes.

use super::{DataError, File, Table, check_size};

/// Whether a file starts as IDX files of unsigned bytes do.
pub fn is_idx(bytes: &[u8]) -> bool {
    matches!(bytes, [0, 0, 8, 1..=4, ..])
}

/// The dimensions and the bytes of an IDX file.
fn contents<'a>(file: &'a File) -> Result<(Vec<usize>, &'a [u8]), DataError> {
    let header = |problem: &str| {
        Err(file.malformed("header", format!("{problem}: give an IDX file of unsigned bytes, whole and unaltered")))
    };
    let bytes = file.bytes.as_ref();
    if !is_idx(bytes) {
        return header("it does not start with 0, 0, 8 and a number of dimensions from 1 to 4");
    }
    let dimensions = usize::from(bytes[3]);
    let Some((sizes, data)) = bytes[4..].split_at_checked(4 * dimensions) else {
        return header("it ends within the dimensions");
    };
    let sizes: Vec<usize> =
        sizes.chunks_exact(4).map(|size| size.iter().fold(0, |value, &byte| value << 8 | usize::from(byte))).collect();
    let expected = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    if expected != Some(data.len()) {
        return header(&format!("dimensions {sizes:?} do not fit the {} bytes that follow", data.len()));
    }
    Ok((sizes, data))
}

/// Reads images and their labels; bytes become 0..1.
pub fn parse(images: &File, labels: &File) -> Result<Table, DataError> {
    let (sizes, pixels) = contents(images)?;
    let (label_sizes, classes) = contents(labels)?;
    let rows = sizes[0];
    if label_sizes != [rows] {
        let problem = format!("dimensions {label_sizes:?} for {rows} images: give one label per image");
        return Err(DataError::unusable(&labels.name, problem));
    }
    let features = sizes[1..].iter().product();
    check_size(images, rows, features)?;
    Ok(Table {
        features,
        x: pixels.iter().map(|&pixel| f32::from(pixel) / 255.0).collect(),
        labels: classes.iter().map(|class| class.to_string()).collect(),
    })
}
