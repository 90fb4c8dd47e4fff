//! Header of a safetensors file: its length, then JSON. The format's own crate checks offsets, types and shapes. This
//! module also checks every length and number of dimensions before it is used.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

/// Number of bytes of the header's length.
pub(super) const LENGTH_BYTES: usize = size_of::<u64>();
/// Length of the longest header that readers of the format accept.
const MOST_BYTES: u64 = 100_000_000;
/// Largest number of dimensions of a tensor that this crate writes.
const MOST_DIMENSIONS: usize = 2;
/// Key of the format's metadata, which is not a tensor.
const METADATA: &str = "__metadata__";

/// Returns an error if a file has no room for a header's length.
pub(super) fn check_size(size: u64) -> Result<(), String> {
    if size < LENGTH_BYTES as u64 {
        return Err(format!("{size} bytes are too few for a header"));
    }
    Ok(())
}

/// Returns the header's length, or an error if a file of this size is too short for it.
pub(super) fn checked_length(length: [u8; LENGTH_BYTES], size: u64) -> Result<usize, String> {
    let length = u64::from_le_bytes(length);
    let left = size - LENGTH_BYTES as u64;
    if length > left {
        return Err(format!(
            "its header would have {length} bytes, but only {left} follow: it is cut off, or not in the safetensors format"
        ));
    }
    if length > MOST_BYTES {
        return Err(format!("its header has {length} bytes, more than {MOST_BYTES}"));
    }
    Ok(length as usize)
}

/// Returns an error if no reader would accept the header.
pub(super) fn check_written(header: &[u8]) -> Result<(), String> {
    let length = (header.len() - LENGTH_BYTES) as u64;
    if length > MOST_BYTES {
        return Err(format!(
            "its header has {length} bytes, more than the {MOST_BYTES} that readers of safetensors accept; use shorter notes, shorter names or fewer tensors"
        ));
    }
    Ok(())
}

/// Header that has been checked.
pub(super) struct Header {
    /// Metadata texts by key.
    pub(super) texts: BTreeMap<String, String>,
    /// The tensors.
    pub(super) metadata: Metadata,
}

/// Reads and checks a header.
pub(super) fn parse(text: &[u8]) -> Result<Header, String> {
    let Listing { texts, mut tensors } =
        serde_json::from_slice(text).map_err(|error| format!("its header cannot be read: {error}"))?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut seen = HashSet::new();
    if let Some((name, _)) = tensors.iter().find(|(name, _)| !seen.insert(name.as_str())) {
        return Err(format!("its header names \"{name}\" twice"));
    }
    // Checks that the tensors follow each other without gaps, and that each is as long as its shape says.
    let metadata = Metadata::new(None, tensors).map_err(|error| format!("its header contradicts itself: {error}"))?;
    Ok(Header { texts, metadata })
}

/// Contents of a header.
#[derive(Default)]
struct Listing {
    texts: BTreeMap<String, String>,
    tensors: Vec<(String, TensorInfo)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for Listing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Listing;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("tensors by name")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Listing, M::Error> {
                let mut listing = Listing::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        listing.texts = map.next_value()?;
                    } else {
                        let Entry { dtype, shape: Shape(shape), data_offsets } = map.next_value()?;
                        let info = TensorInfo { dtype, shape, data_offsets };
                        listing.tensors.push((name, info));
                    }
                }
                Ok(listing)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Shape with few dimensions. The limit keeps two characters of text from becoming eight bytes of memory many times
/// over.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "at most {MOST_DIMENSIONS} dimensions")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut sequence: S) -> Result<Shape, S::Error> {
                let mut shape = Vec::with_capacity(MOST_DIMENSIONS);
                while let Some(dimension) = sequence.next_element()? {
                    if shape.len() == MOST_DIMENSIONS {
                        return Err(S::Error::invalid_length(MOST_DIMENSIONS + 1, &self));
                    }
                    shape.push(dimension);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}

/// Returns the header of a file. The same content gives the same bytes.
pub(super) fn write(texts: &BTreeMap<&str, String>, metadata: &Metadata) -> Vec<u8> {
    struct Out<'a> {
        texts: &'a BTreeMap<&'a str, String>,
        metadata: &'a Metadata,
    }
    impl Serialize for Out<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(None)?;
            map.serialize_entry(METADATA, self.texts)?;
            for name in self.metadata.offset_keys() {
                map.serialize_entry(&name, &self.metadata.info(&name))?;
            }
            map.end()
        }
    }
    let out = Out { texts, metadata };
    // Serializing maps of strings and numbers cannot fail.
    let text = serde_json::to_vec(&out).unwrap_or_default();
    // The data must begin at a multiple of eight bytes.
    let padded = text.len().next_multiple_of(8);
    let mut head = Vec::with_capacity(LENGTH_BYTES + padded);
    head.extend_from_slice(&(padded as u64).to_le_bytes());
    head.extend_from_slice(&text);
    head.resize(LENGTH_BYTES + padded, b' ');
    head
}
