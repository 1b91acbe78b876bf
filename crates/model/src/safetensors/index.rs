//! [`Index`]: which shard of a folder holds which tensor.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use crate::bytes::open_regular;
use crate::error::{ModelError, quoted};

/// The file that says how a sharded model is split.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// `model.safetensors.index.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    /// Tensor name to file name in the same folder.
    pub(crate) weight_map: BTreeMap<Box<str>, Box<str>>,
}

/// Bytes of index at most: the largest public ones take 10 MB.
const INDEX_BYTES_MAX: u64 = 100_000_000;
/// Shards at most: each stays mapped.
const SHARDS_MAX: usize = 4096;

impl Index {
    /// Reads and checks an index; shard names must be plain names, so that an index cannot point out of its folder.
    pub(crate) fn read(path: &Path) -> Result<Self, ModelError> {
        let file = open_regular(path)?;
        let mut text = Vec::new();
        file.take(INDEX_BYTES_MAX + 1).read_to_end(&mut text).map_err(|source| ModelError::io(path, "read", source))?;
        if text.len() as u64 > INDEX_BYTES_MAX {
            return Err(invalid(path, "size", format!("over {INDEX_BYTES_MAX} bytes"), "an index of less".to_owned()));
        }
        let index: Self = serde_json::from_slice(&text).map_err(|error| {
            invalid(path, "index", error.to_string(), "JSON with a weight_map from tensor to file".to_owned())
        })?;
        let shards = index.shards();
        if shards.is_empty() || shards.len() > SHARDS_MAX {
            return Err(invalid(path, "weight_map", format!("{} shards", shards.len()), format!("1 to {SHARDS_MAX}")));
        }
        for shard in shards {
            if shard.is_empty() || shard.starts_with('.') || shard.contains(['/', '\\', ':', '\0']) {
                let expected = "the name of a file in the same folder".to_owned();
                return Err(invalid(path, "weight_map", quoted(shard), expected));
            }
        }
        Ok(index)
    }

    /// The shards' file names, each once, sorted.
    pub(crate) fn shards(&self) -> Vec<&str> {
        let mut shards: Vec<&str> = self.weight_map.values().map(|shard| &**shard).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }
}

fn invalid(path: &Path, field: &str, found: String, expected: String) -> ModelError {
    ModelError::invalid(path, field, found, expected, "the index is damaged: download it again")
}
