//! GGUF: the one-file checkpoint of llama.cpp and its kin, versions 2 and 3, little-endian.
//!
//! Layout (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): magic, version, counts; then typed key-value
//! metadata; then the tensor table; then, aligned, the tensor data. [`parse`] walks all but the data once and copies nothing
//! big: strings and arrays stay in the file and are looked at when asked for.

mod cursor;
mod header;
mod metadata;
mod tensors;

pub use header::{Header, parse};
pub use metadata::{Array, ElementType, Metadata, Value};

/// The first four bytes of a GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";
