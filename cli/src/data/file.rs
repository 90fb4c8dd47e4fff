//! Files, unpacked into memory.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;

use super::DataError;
use crate::memory;
use crate::words::{self, escaped};

/// Size of the largest file in bytes, packed or not.
const MOST_BYTES: u64 = 1 << 33;
/// Fraction of the available memory that a file may take. As text and as numbers it takes several times its size.
const SHARE: f64 = 0.25;

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// First bytes of files that are not text, with advice.
const OTHERS: [(&[u8], &str); 15] = [
    (&GZIP, "it is packed by gzip twice: unpack it once"),
    (b"\x1f\x9d", "it is packed by compress: unpack it"),
    (b"\x78\x9c", "it is packed by zlib: unpack it"),
    (b"\x78\xda", "it is packed by zlib: unpack it"),
    (b"\x78\x01", "it is packed by zlib: unpack it"),
    (b"\xd0\xcf\x11\xe0", "it is a spreadsheet: save it as CSV"),
    (b"\xff\xfe", "it is UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "it is UTF-16: save it as UTF-8"),
    (b"PK\x03\x04", "it is a zip archive or a spreadsheet: unpack it, or save it as CSV"),
    (b"\x93NUMPY", "it is a NumPy array: save it as CSV, numpy.savetxt does"),
    (b"PAR1", "it is a Parquet file: save it as CSV"),
    (b"\x89HDF", "it is an HDF5 file: save it as CSV"),
    (b"BZh", "it is packed by bzip2: unpack it"),
    (b"\xfd7zXZ", "it is packed by xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "it is packed by zstd: unpack it"),
];

/// Content of a file, unpacked, with its name for messages.
pub struct File<'a> {
    pub name: String,
    pub bytes: Cow<'a, [u8]>,
}

/// Returns the largest number of bytes that a file may have.
fn most_bytes() -> u64 {
    memory::available().map_or(MOST_BYTES, |available| MOST_BYTES.min((SHARE * available) as u64))
}

impl<'a> File<'a> {
    pub fn open(path: &Path) -> Result<File<'static>, DataError> {
        let name = words::path(path);
        let unreadable = |message: String| DataError::Unreadable { file: name.clone(), message };
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing(name.clone()),
            _ => unreadable(error.to_string()),
        };
        let about = path.metadata().map_err(failed)?;
        // Reading may block on a pipe and never end on a device.
        if !about.is_file() {
            return Err(unreadable("it is a pipe or a device; give a file".to_owned()));
        }
        let most = most_bytes();
        let too_large = || unreadable(format!("it has more than {}, give fewer rows", words::bytes(most as f64)));
        if about.len() > most {
            return Err(too_large());
        }
        let mut bytes = memory::list(about.len() as usize).map_err(unreadable)?;
        std::fs::File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes)).map_err(failed)?;
        if bytes.len() as u64 > most {
            return Err(too_large());
        }
        File::unpacked(name.clone(), Cow::Owned(bytes))
    }

    pub fn built_in(name: &str, bytes: &'a [u8]) -> Result<File<'a>, DataError> {
        File::unpacked(name.to_owned(), Cow::Borrowed(bytes))
    }

    /// Unpacks gzip, which is recognised by its first two bytes. The file may have several members, followed by zeros
    /// and line ends, which tapes and some servers add.
    fn unpacked(name: String, bytes: Cow<'a, [u8]>) -> Result<File<'a>, DataError> {
        if !bytes.starts_with(&GZIP) {
            return Ok(File { name, bytes });
        }
        let unreadable = |message: String| DataError::Unreadable { file: name.clone(), message };
        let mut plain = Vec::new();
        // A malicious file can unpack to a thousand times its size.
        let most = most_bytes();
        let mut rest = bytes.as_ref();
        while rest.starts_with(&GZIP) {
            let mut decoder = GzDecoder::new(rest);
            let room = most - plain.len() as u64;
            let read = decoder.by_ref().take(room + 1).read_to_end(&mut plain);
            read.map_err(|error| unreadable(format!("{error}; the gzip file is damaged or cut off")))?;
            if plain.len() as u64 > most {
                return Err(unreadable(format!(
                    "it unpacks to more than {}, give fewer rows",
                    words::bytes(most as f64)
                )));
            }
            rest = decoder.into_inner();
            let padding = rest.iter().take_while(|byte| matches!(byte, 0 | b'\n' | b'\r')).count();
            rest = &rest[padding..];
        }
        if !rest.is_empty() {
            return Err(unreadable(format!(
                "{} bytes behind the packed data are not gzip; the file is damaged, or two files in one",
                words::grouped(rest.len() as u64)
            )));
        }
        Ok(File { name, bytes: Cow::Owned(plain) })
    }

    /// Returns the text without a byte order mark.
    pub fn text(&self) -> Result<&str, DataError> {
        let refused = |at: usize| {
            let other = OTHERS.iter().find(|(start, _)| self.bytes.starts_with(start));
            let what = match other {
                Some((_, what)) => what,
                None if self.bytes.get(257..262) == Some(b"ustar") => "it is a tar archive: unpack it",
                None if !self.bytes.contains(&0) => "if it is Latin-1 or another old encoding, save it as UTF-8",
                None => "give a CSV, LIBSVM or IDX file, gzipped or not",
            };
            self.malformed(format!("byte {at}"), format!("this is not text: {what}"))
        };
        let text = std::str::from_utf8(&self.bytes).map_err(|error| refused(error.valid_up_to()))?;
        match text.bytes().position(|byte| byte == 0) {
            Some(at) => Err(refused(at)),
            None => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        }
    }

    pub fn malformed(&self, place: impl Into<String>, problem: impl Into<String>) -> DataError {
        DataError::Malformed { file: self.name.clone(), place: place.into(), problem: problem.into() }
    }

    /// Returns the file's name without its folder and extensions.
    pub fn stem(&self) -> String {
        let name = Path::new(&self.name).file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        escaped(name.strip_suffix(".csv").unwrap_or(name))
    }
}

/// Returns the lines of a text, which may use the line ends of several systems.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// Returns the path or the path with `.gz`, whichever exists. If both exist, the packed one is returned on request.
pub fn with_optional_gz(path: &Path, rather_packed: bool) -> Option<PathBuf> {
    let mut packed = path.as_os_str().to_owned();
    packed.push(".gz");
    let mut paths = [path.to_owned(), PathBuf::from(packed)];
    if rather_packed {
        paths.reverse();
    }
    paths.into_iter().find(|path| match path.metadata() {
        Ok(about) => about.is_file(),
        // Reading a file whose metadata cannot be read gives an error with its name.
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidFilename),
    })
}

/// Returns the first file beside `path` in whose name the second part of a pair replaces the first, packed or not and
/// preferably packed like `path`. Returns `None` if there is no such part or file.
pub fn sibling(path: &Path, parts: &[(&str, &str)]) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let (name, is_packed) = name.strip_suffix(".gz").map_or((name, false), |name| (name, true));
    let names = parts.iter().filter(|(part, _)| name.contains(part)).map(|(part, other)| name.replace(part, other));
    names.filter(|other| other != name).find_map(|other| with_optional_gz(&path.with_file_name(other), is_packed))
}
