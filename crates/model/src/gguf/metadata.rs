//! [`Metadata`]: a GGUF file's keys and typed values.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::bytes::FileBytes;
use crate::error::{ModelError, quoted};

/// The key-value part of a GGUF file. Cheap to clone; strings and arrays stay in the mapped file.
///
/// Getters come in two kinds: `get_*` is `Ok(None)` for a missing key, `require_*` an error. A value of the wrong type is an
/// error in both; any integer type will do where the value fits.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: Arc<Path>,
    file: Arc<FileBytes>,
    values: Arc<BTreeMap<Box<str>, Value>>,
}

/// A metadata value. Integers are widened; ranges point into the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// u8, u16, u32 or u64.
    Unsigned(u64),
    /// i8, i16, i32 or i64.
    Signed(i64),
    /// f32.
    F32(f32),
    /// f64.
    F64(f64),
    /// bool.
    Bool(bool),
    /// Where the string's bytes stand; not yet known to be UTF-8.
    String(Range<usize>),
    /// An array of one element type.
    Array(Array),
}

/// An array that stays in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Type of every element.
    pub element: ElementType,
    /// Number of elements.
    pub count: usize,
    /// The bytes of the elements, all of them inside the file; strings with their length prefixes.
    pub bytes: Range<usize>,
}

/// GGUF's value types, but for arrays: `u32` numbers 0 to 12 in the file, 9 being the array itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ElementType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

impl Metadata {
    pub(crate) fn new(path: &Path, file: Arc<FileBytes>, values: BTreeMap<Box<str>, Value>) -> Self {
        Self { path: path.into(), file, values: Arc::new(values) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(|key| &**key)
    }

    /// Whether the key is there, whatever its type.
    pub fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The raw value.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// An integer that fits `u32`.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.get(key, "an integer from 0 to 4294967295", |value| match value {
            Value::Unsigned(found) => u32::try_from(*found).ok(),
            Value::Signed(found) => u32::try_from(*found).ok(),
            _ => None,
        })
    }

    /// An integer that fits `u64`.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.get(key, "an integer of at least 0", |value| match value {
            Value::Unsigned(found) => Some(*found),
            Value::Signed(found) => u64::try_from(*found).ok(),
            _ => None,
        })
    }

    /// A floating-point number; an f64 is rounded.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.get(key, "a floating-point number", |value| match value {
            Value::F32(found) => Some(*found),
            Value::F64(found) => Some(*found as f32),
            _ => None,
        })
    }

    /// A bool.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.get(key, "a bool", |value| match value {
            Value::Bool(found) => Some(*found),
            _ => None,
        })
    }

    /// A string.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.get(key, "a UTF-8 string", |value| match value {
            Value::String(range) => std::str::from_utf8(&self.file[range.clone()]).ok(),
            _ => None,
        })
    }

    /// An array of strings, each borrowed from the file (a vocabulary of 262,144 costs 4 MiB of pointers).
    pub fn get_strs(&self, key: &str) -> Result<Option<Vec<&str>>, ModelError> {
        self.get(key, "an array of UTF-8 strings", |value| match value {
            Value::Array(array) if array.element == ElementType::String => self.strings(array),
            _ => None,
        })
    }

    /// An array of integers that each fit `u32`.
    pub fn get_u32s(&self, key: &str) -> Result<Option<Vec<u32>>, ModelError> {
        self.get(key, "an array of integers from 0 to 4294967295", |value| match value {
            Value::Array(array) => self.u32s(array),
            _ => None,
        })
    }

    /// An array of floating-point numbers; f64 are rounded.
    pub fn get_f32s(&self, key: &str) -> Result<Option<Vec<f32>>, ModelError> {
        self.get(key, "an array of floating-point numbers", |value| match value {
            Value::Array(array) => self.f32s(array),
            _ => None,
        })
    }

    /// [`get_u32`](Self::get_u32), the key required.
    pub fn require_u32(&self, key: &str) -> Result<u32, ModelError> {
        self.get_u32(key)?.ok_or_else(|| self.missing(key, "an integer"))
    }

    /// [`get_f32`](Self::get_f32), the key required.
    pub fn require_f32(&self, key: &str) -> Result<f32, ModelError> {
        self.get_f32(key)?.ok_or_else(|| self.missing(key, "a floating-point number"))
    }

    /// [`get_str`](Self::get_str), the key required.
    pub fn require_str(&self, key: &str) -> Result<&str, ModelError> {
        self.get_str(key)?.ok_or_else(|| self.missing(key, "a string"))
    }

    /// [`get_strs`](Self::get_strs), the key required.
    pub fn require_strs(&self, key: &str) -> Result<Vec<&str>, ModelError> {
        self.get_strs(key)?.ok_or_else(|| self.missing(key, "an array of strings"))
    }

    /// An error about this key: the value found in words, and what was expected instead.
    pub fn wrong(&self, key: &str, expected: impl Into<String>, advice: impl Into<String>) -> ModelError {
        let found = self.values.get(key).map_or_else(|| "nothing".to_owned(), |value| self.describe(value));
        ModelError::invalid(&self.path, key, found, expected, advice)
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(value) => match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(self.wrong(key, expected, "convert the model again with a current converter")),
            },
        }
    }

    fn missing(&self, key: &str, expected: &str) -> ModelError {
        self.wrong(key, expected, "the file lacks a key its architecture needs: convert the model again")
    }

    /// The value in words, for messages: short whatever the value.
    fn describe(&self, value: &Value) -> String {
        match value {
            Value::Unsigned(found) => found.to_string(),
            Value::Signed(found) => found.to_string(),
            Value::F32(found) => format!("{found:?}"),
            Value::F64(found) => format!("{found:?}"),
            Value::Bool(found) => found.to_string(),
            Value::String(range) => match std::str::from_utf8(&self.file[range.clone()]) {
                Ok(text) => quoted(text),
                Err(_) => format!("{} bytes that are not UTF-8", range.len()),
            },
            Value::Array(array) => format!("an array of {} {:?}", array.count, array.element),
        }
    }

    fn strings(&self, array: &Array) -> Option<Vec<&str>> {
        let mut rest = &self.file[array.bytes.clone()];
        let mut strings = Vec::with_capacity(array.count);
        for _ in 0..array.count {
            let (prefix, after) = rest.split_first_chunk()?;
            let (text, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*prefix)).ok()?)?;
            strings.push(std::str::from_utf8(text).ok()?);
            rest = after;
        }
        Some(strings)
    }

    fn u32s(&self, array: &Array) -> Option<Vec<u32>> {
        let bytes = &self.file[array.bytes.clone()];
        match array.element {
            ElementType::U8 => Some(bytes.iter().map(|&byte| u32::from(byte)).collect()),
            ElementType::I8 => elements(bytes, |[byte]| u32::try_from(i8::from_le_bytes([byte])).ok()),
            ElementType::U16 => elements(bytes, |element| Some(u16::from_le_bytes(element).into())),
            ElementType::I16 => elements(bytes, |element| i16::from_le_bytes(element).try_into().ok()),
            ElementType::U32 => elements(bytes, |element| Some(u32::from_le_bytes(element))),
            ElementType::I32 => elements(bytes, |element| i32::from_le_bytes(element).try_into().ok()),
            ElementType::U64 => elements(bytes, |element| u64::from_le_bytes(element).try_into().ok()),
            ElementType::I64 => elements(bytes, |element| i64::from_le_bytes(element).try_into().ok()),
            ElementType::F32 | ElementType::F64 | ElementType::Bool | ElementType::String => None,
        }
    }

    fn f32s(&self, array: &Array) -> Option<Vec<f32>> {
        let bytes = &self.file[array.bytes.clone()];
        match array.element {
            ElementType::F32 => elements(bytes, |element| Some(f32::from_le_bytes(element))),
            ElementType::F64 => elements(bytes, |element| Some(f64::from_le_bytes(element) as f32)),
            _ => None,
        }
    }
}

fn elements<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> Option<T>) -> Option<Vec<T>> {
    bytes.as_chunks().0.iter().map(|&element| convert(element)).collect()
}

impl ElementType {
    /// By its number in the file; `None` for the array's and for unknown ones.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of one element; of a string, its length prefix.
    pub(super) fn bytes_min(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::String | Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}
