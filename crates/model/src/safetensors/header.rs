//! [`parse`]: from a safetensors file's bytes to its tensors.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{ModelError, quoted};
use crate::tensors::StoredTensor;
use crate::weights::WeightFormat;

/// What a safetensors file holds.
#[derive(Clone, Debug)]
pub struct Header {
    /// Tensors in the header's order; their `file` is 0.
    pub tensors: Vec<StoredTensor>,
    /// Tensors of a dtype we do not read: name and dtype. They matter only to a model that needs them.
    pub unread: Vec<(Box<str>, Box<str>)>,
}

/// Bytes of header at most, as the reference implementation has it.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Dimensions of a tensor at most. The format sets no limit; no weight has more than five.
const RANK_MAX: usize = 8;
/// The one key of the header that is no tensor.
const METADATA_KEY: &str = "__metadata__";
const ADVICE_DAMAGED: &str = "the file is damaged or incomplete: download it again";

/// Reads a safetensors header. `bytes` is the whole file, so that tensor ranges can be checked against its end.
///
/// Time and memory are bounded by a small multiple of `bytes`, whatever they claim; errors name `path`.
pub fn parse(bytes: &[u8], path: &Path) -> Result<Header, ModelError> {
    let invalid = |field: &str, found: String, expected: String| {
        ModelError::invalid(path, field, found, expected, ADVICE_DAMAGED)
    };
    let Some((prefix, rest)) = bytes.split_first_chunk() else {
        let found = format!("a file of {} bytes", bytes.len());
        return Err(invalid("header length", found, "8 bytes".to_owned()));
    };
    let claimed = u64::from_le_bytes(*prefix);
    let len_max = HEADER_BYTES_MAX.min(rest.len() as u64);
    if claimed > len_max {
        return Err(invalid("header length", claimed.to_string(), format!("at most {len_max}")));
    }
    let (json, data) = rest.split_at(claimed as usize);
    let entries: Entries<'_> = serde_json::from_slice(json).map_err(|error| {
        invalid("header", error.to_string(), "JSON of tensors, as safetensors writes it".to_owned())
    })?;
    let data_start = bytes.len() - data.len();
    let mut header = Header { tensors: Vec::with_capacity(entries.0.len()), unread: Vec::new() };
    for (name, entry) in entries.0 {
        match format_of(&entry.dtype) {
            None => header.unread.push((name.into(), entry.dtype.into())),
            Some(format) => header.tensors.push(place(name, entry, format, data_start, data.len(), path)?),
        }
    }
    Ok(header)
}

fn format_of(dtype: &str) -> Option<WeightFormat> {
    Some(match dtype {
        "F32" => WeightFormat::F32,
        "F16" => WeightFormat::F16,
        "BF16" => WeightFormat::BF16,
        _ => return None,
    })
}

fn place(
    name: Cow<'_, str>,
    entry: Entry<'_>,
    format: WeightFormat,
    data_start: usize,
    data_bytes: usize,
    path: &Path,
) -> Result<StoredTensor, ModelError> {
    let of = |part: &str| format!("{part} of tensor {}", quoted(&name));
    let invalid = |field: String, found: String, expected: String| {
        ModelError::invalid(path, field, found, expected, ADVICE_DAMAGED)
    };
    let [begin, end] = entry.data_offsets;
    if begin > end || end > data_bytes as u64 {
        let expected = format!("offsets in order within the file's {data_bytes} bytes of data");
        return Err(invalid(of("data"), format!("bytes {begin} to {end}"), expected));
    }
    let dims = entry.shape.dims();
    let shape: Option<Vec<usize>> = dims.iter().map(|&size| usize::try_from(size).ok()).collect();
    let shape = shape.filter(|shape| {
        let bytes = shape.iter().try_fold(format.block_bytes(), |bytes, &size| bytes.checked_mul(size));
        bytes.is_some_and(|bytes| bytes as u64 == end - begin)
    });
    let Some(shape) = shape else {
        return Err(invalid(of("shape"), format!("{dims:?} of {format}"), format!("a shape of {} bytes", end - begin)));
    };
    let bytes = data_start + begin as usize..data_start + end as usize;
    Ok(StoredTensor { name: name.into(), format, shape, file: 0, bytes })
}

/// The header's JSON object, in order, each name once.
struct Entries<'a>(Vec<(Cow<'a, str>, Entry<'a>)>);

#[derive(Deserialize)]
#[serde(expecting = "an object of dtype, shape and data_offsets")]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Shape,
    data_offsets: [u64; 2],
}

/// Dimensions without an allocation, so that a header cannot ask for much with few bytes.
struct Shape {
    rank: usize,
    sizes: [u64; RANK_MAX],
}

impl Shape {
    fn dims(&self) -> &[u64] {
        &self.sizes[..self.rank]
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;

        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a shape of at most {RANK_MAX} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = Shape { rank: 0, sizes: [0; RANK_MAX] };
                while let Some(size) = seq.next_element()? {
                    let Some(place) = shape.sizes.get_mut(shape.rank) else {
                        return Err(de::Error::invalid_length(shape.rank + 1, &self));
                    };
                    *place = size;
                    shape.rank += 1;
                }
                Ok(shape)
            }
        }

        deserializer.deserialize_seq(ShapeVisitor)
    }
}

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    if name == METADATA_KEY {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map
                        .next_value()
                        .map_err(|error| de::Error::custom(format!("tensor {}: {error}", quoted(&name))))?;
                    entries.push((name, entry));
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
