//! [`parse`]: from a GGUF file's bytes to its metadata and tensor table, every claim checked before it is believed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use super::MAGIC;
use super::cursor::{ADVICE_DAMAGED, Cursor};
use super::metadata::{Array, ElementType, Value};
use super::tensors;
use crate::error::{ModelError, quoted};
use crate::tensors::StoredTensor;

/// What stands before the tensor data. Ranges point into the parsed bytes.
#[derive(Clone, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Metadata by key.
    pub values: BTreeMap<Box<str>, Value>,
    /// Tensors in the table's order; their `file` is 0.
    pub tensors: Vec<StoredTensor>,
    /// Every tensor starts at a multiple of this, counted from the start of the data.
    pub alignment_bytes: usize,
}

/// Bytes of a metadata key at most, by the specification.
const KEY_BYTES_MAX: usize = 65_535;
/// Key of the alignment, and what holds without it.
const ALIGNMENT_KEY: &str = "general.alignment";
const ALIGNMENT_BYTES_DEFAULT: usize = 32;
/// Alignment at most: larger ones have no use, and hide damage.
const ALIGNMENT_BYTES_MAX: u64 = 1 << 20;
/// The smallest metadata entry: key length, one byte of key, type, one byte of value.
const ENTRY_BYTES_MIN: usize = 8 + 1 + 4 + 1;
/// The type number of arrays.
const TYPE_ARRAY: u32 = 9;

/// Reads a GGUF header. `bytes` is the whole file, so that tensor ranges can be checked against its end.
///
/// Time and memory are bounded by a small multiple of `bytes`, whatever they claim; errors name `path`.
pub fn parse(bytes: &[u8], path: &Path) -> Result<Header, ModelError> {
    let mut cursor = Cursor::new(bytes, path);
    let version = parse_version(&mut cursor)?;
    let tensor_count = cursor.count(tensors::ENTRY_BYTES_MIN, || "tensor count".to_owned())?;
    let entry_count = cursor.count(ENTRY_BYTES_MIN, || "metadata count".to_owned())?;
    let mut values = BTreeMap::new();
    for index in 0..entry_count {
        let key = cursor.name(KEY_BYTES_MAX, || format!("metadata key {} of {entry_count}", index + 1))?;
        let value = parse_value(&mut cursor, key)?;
        match values.entry(Box::from(key)) {
            Entry::Vacant(vacant) => vacant.insert(value),
            Entry::Occupied(_) => {
                return Err(ModelError::invalid(path, quoted(key), "a second value", "one value", ADVICE_DAMAGED));
            }
        };
    }
    let alignment_bytes = alignment(&values, path)?;
    let tensors = tensors::parse(&mut cursor, tensor_count, alignment_bytes, bytes.len())?;
    Ok(Header { version, values, tensors, alignment_bytes })
}

fn parse_version(cursor: &mut Cursor<'_>) -> Result<u32, ModelError> {
    let magic: [u8; 4] = cursor.array(|| "magic".to_owned())?;
    if magic != MAGIC {
        return Err(ModelError::invalid(
            cursor.path(),
            "magic",
            format!("\"{}\"", magic.escape_ascii()),
            "\"GGUF\"",
            "this is not a GGUF file: name one",
        ));
    }
    let version = cursor.u32(|| "version".to_owned())?;
    let advice = match version {
        2 | 3 => return Ok(version),
        1 => "version 1 was replaced in 2023: convert the model again",
        _ if (1..=3).contains(&version.swap_bytes()) => {
            "the file is big-endian: convert the model for little-endian machines"
        }
        _ => "the file is damaged, or newer than this program",
    };
    Err(ModelError::invalid(cursor.path(), "GGUF version", version.to_string(), "2 or 3", advice))
}

fn parse_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, ModelError> {
    let field = || quoted(key);
    let number = cursor.u32(|| format!("type of {}", quoted(key)))?;
    if number == TYPE_ARRAY {
        return parse_array(cursor, key);
    }
    let Some(element) = ElementType::from_number(number) else {
        return Err(ModelError::invalid(
            cursor.path(),
            format!("type of {}", quoted(key)),
            number.to_string(),
            "a value type from 0 to 12",
            ADVICE_DAMAGED,
        ));
    };
    Ok(match element {
        ElementType::U8 => Value::Unsigned(u8::from_le_bytes(cursor.array(field)?).into()),
        ElementType::U16 => Value::Unsigned(u16::from_le_bytes(cursor.array(field)?).into()),
        ElementType::U32 => Value::Unsigned(cursor.u32(field)?.into()),
        ElementType::U64 => Value::Unsigned(cursor.u64(field)?),
        ElementType::I8 => Value::Signed(i8::from_le_bytes(cursor.array(field)?).into()),
        ElementType::I16 => Value::Signed(i16::from_le_bytes(cursor.array(field)?).into()),
        ElementType::I32 => Value::Signed(i32::from_le_bytes(cursor.array(field)?).into()),
        ElementType::I64 => Value::Signed(i64::from_le_bytes(cursor.array(field)?)),
        ElementType::F32 => Value::F32(f32::from_le_bytes(cursor.array(field)?)),
        ElementType::F64 => Value::F64(f64::from_le_bytes(cursor.array(field)?)),
        ElementType::String => Value::String(cursor.string(field)?),
        ElementType::Bool => match cursor.array(field)? {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            [byte] => {
                return Err(ModelError::invalid(
                    cursor.path(),
                    field(),
                    byte.to_string(),
                    "a bool, 0 or 1",
                    ADVICE_DAMAGED,
                ));
            }
        },
    })
}

fn parse_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, ModelError> {
    let field = || format!("array {}", quoted(key));
    let number = cursor.u32(|| format!("element type of {}", quoted(key)))?;
    let Some(element) = ElementType::from_number(number) else {
        return Err(ModelError::invalid(
            cursor.path(),
            format!("element type of {}", quoted(key)),
            if number == TYPE_ARRAY { "an array".to_owned() } else { number.to_string() },
            "a value type from 0 to 12 that is no array",
            ADVICE_DAMAGED,
        ));
    };
    let count = cursor.count(element.bytes_min(), || format!("length of {}", quoted(key)))?;
    let start = cursor.position();
    if element == ElementType::String {
        for _ in 0..count {
            cursor.string(field)?;
        }
    } else {
        // No overflow: `count` says that this many bytes remain.
        cursor.take(count * element.bytes_min(), field)?;
    }
    Ok(Value::Array(Array { element, count, bytes: start..cursor.position() }))
}

fn alignment(values: &BTreeMap<Box<str>, Value>, path: &Path) -> Result<usize, ModelError> {
    match values.get(ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT_BYTES_DEFAULT),
        Some(&Value::Unsigned(bytes)) if bytes.is_power_of_two() && bytes <= ALIGNMENT_BYTES_MAX => Ok(bytes as usize),
        Some(other) => Err(ModelError::invalid(
            path,
            ALIGNMENT_KEY,
            match other {
                Value::Unsigned(found) => found.to_string(),
                _ => "another type".to_owned(),
            },
            format!("a power of two up to {ALIGNMENT_BYTES_MAX}"),
            ADVICE_DAMAGED,
        )),
    }
}
