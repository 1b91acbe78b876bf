//! [`Cursor`]: reads little-endian fields from a header whose every length is a claim to be checked.

use std::ops::Range;
use std::path::Path;

use crate::error::{ModelError, quoted};

/// What to do about a file that ends too soon or lies about its lengths.
pub(super) const ADVICE_DAMAGED: &str = "the file is damaged or incomplete: download it again";

/// A position in a GGUF header.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    path: &'a Path,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], path: &'a Path) -> Self {
        Self { bytes, position: 0, path }
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `len` bytes; `field` names them in the error.
    pub(super) fn take(&mut self, len: usize, field: impl FnOnce() -> String) -> Result<&'a [u8], ModelError> {
        match self.bytes[self.position..].get(..len) {
            Some(taken) => {
                self.position += len;
                Ok(taken)
            }
            None => Err(ModelError::invalid(
                self.path,
                field(),
                format!("the end of the file {} bytes after byte {}", self.remaining(), self.position),
                format!("{len} bytes"),
                ADVICE_DAMAGED,
            )),
        }
    }

    pub(super) fn array<const N: usize>(&mut self, field: impl FnOnce() -> String) -> Result<[u8; N], ModelError> {
        let taken = self.take(N, field)?;
        Ok(taken.try_into().expect("take returns exactly N bytes"))
    }

    pub(super) fn u32(&mut self, field: impl FnOnce() -> String) -> Result<u32, ModelError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: impl FnOnce() -> String) -> Result<u64, ModelError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A count of things that each take at least `item_bytes_min` of what remains: no more can be there, so a vector of
    /// `count` is safe to allocate.
    pub(super) fn count(
        &mut self,
        item_bytes_min: usize,
        field: impl Fn() -> String + Copy,
    ) -> Result<usize, ModelError> {
        let claimed = self.u64(field)?;
        let count_max = self.remaining() / item_bytes_min;
        match usize::try_from(claimed) {
            Ok(count) if count <= count_max => Ok(count),
            _ => Err(ModelError::invalid(
                self.path,
                field(),
                claimed.to_string(),
                format!("at most {count_max}, as {} bytes remain", self.remaining()),
                ADVICE_DAMAGED,
            )),
        }
    }

    /// A length-prefixed string, as the range of its bytes in the file.
    pub(super) fn string(&mut self, field: impl Fn() -> String + Copy) -> Result<Range<usize>, ModelError> {
        let len = self.count(1, || format!("length of {}", field()))?;
        let start = self.position;
        self.position += len;
        Ok(start..start + len)
    }

    /// A length-prefixed name of 1 to `bytes_max` bytes of UTF-8.
    pub(super) fn name(&mut self, bytes_max: usize, field: impl Fn() -> String + Copy) -> Result<&'a str, ModelError> {
        let range = self.string(field)?;
        let (len, at) = (range.len(), range.start);
        if len == 0 || len > bytes_max {
            return Err(ModelError::invalid(
                self.path,
                field(),
                format!("{len} bytes at byte {at}"),
                format!("1 to {bytes_max} bytes"),
                ADVICE_DAMAGED,
            ));
        }
        std::str::from_utf8(&self.bytes[range.clone()]).map_err(|_| {
            ModelError::invalid(
                self.path,
                field(),
                format!("{} at byte {at}", quoted(&String::from_utf8_lossy(&self.bytes[range]))),
                "UTF-8 text",
                ADVICE_DAMAGED,
            )
        })
    }
}
