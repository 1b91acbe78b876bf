//! [`Summary`]: what a model weighs, for people to read before they serve it.

use std::collections::BTreeMap;

use crate::model::Model;
use crate::spec::DecoderSpec;
use crate::weights::WeightFormat;

/// Sizes of a model. Shapes are in its [`spec`](Model::spec).
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The checkpoint's word for the architecture.
    pub architecture: String,
    /// Weights per format, in the order of [`WeightFormat`].
    pub formats: Vec<FormatUse>,
    /// Elements of all weights; a tied head counts once.
    pub parameters: u64,
    /// Bytes of all weights as stored; a tied head counts once.
    pub weight_bytes: u64,
    /// Elements of keys and values that one token keeps, all layers together.
    pub kv_elements_per_token: usize,
}

/// The weights of one format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct FormatUse {
    pub format: WeightFormat,
    pub tensors: usize,
    pub elements: u64,
    pub bytes: u64,
}

impl Summary {
    /// Bytes of KV cache that one token takes with elements of `element_bytes` (f32: 4, f16 and bf16: 2).
    pub fn kv_bytes_per_token(&self, element_bytes: usize) -> usize {
        self.kv_elements_per_token * element_bytes
    }
}

impl Model {
    /// Adds up the weights.
    pub fn summary(&self) -> Summary {
        let mut formats: BTreeMap<WeightFormat, FormatUse> = BTreeMap::new();
        for slot in self.spec().slots() {
            let format = self.format(slot).expect("every slot was checked when the model was opened");
            let (rows, columns) = self.spec().shape(slot);
            let row_bytes = format.row_bytes(columns).expect("a stored row is whole blocks");
            let entry = formats.entry(format).or_insert(FormatUse { format, tensors: 0, elements: 0, bytes: 0 });
            entry.tensors += 1;
            entry.elements += rows as u64 * columns as u64;
            entry.bytes += rows as u64 * row_bytes as u64;
        }
        let formats: Vec<FormatUse> = formats.into_values().collect();
        Summary {
            architecture: self.spec().architecture.clone(),
            parameters: formats.iter().map(|entry| entry.elements).sum(),
            weight_bytes: formats.iter().map(|entry| entry.bytes).sum(),
            kv_elements_per_token: self.spec().kv_elements_per_token(),
            formats,
        }
    }
}

impl DecoderSpec {
    /// Elements of keys and values that one token keeps, all layers together.
    pub fn kv_elements_per_token(&self) -> usize {
        self.layers.iter().map(|layer| 2 * layer.attention.kv_heads * layer.attention.head_dim).sum()
    }
}
