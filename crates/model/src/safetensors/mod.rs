//! Safetensors: one file, or shards under an index, as Hugging Face folders hold them.
//!
//! Layout (<https://huggingface.co/docs/safetensors>): eight bytes of header length, a JSON header from tensor names to
//! dtype, shape and offsets, then the data. We parse the header ourselves: the `safetensors` crate keeps the last of two
//! tensors of one name, and its errors name neither the file nor, for a wrong shape or dtype, the tensor.

mod header;
mod index;

pub use header::{Header, parse};
pub(crate) use index::{INDEX_FILE, Index};

/// The weights of an unsharded folder.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
