//! Which weight goes where: the slots of a spec and the stored tensors that fill them.

use crate::spec::{DecoderSpec, LayerSpec};

/// A place a [`DecoderSpec`] has for a tensor. Matrices are `[out, in]`, rows contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// `[vocab_size, hidden_size]`
    Embedding,
    /// `[hidden_size]`
    FinalNorm,
    /// `[vocab_size, hidden_size]`; of a tied head, the embedding.
    Head,
    /// One of a layer's.
    Layer(usize, LayerSlot),
}

/// A layer's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LayerSlot {
    AttentionNorm,
    Query,
    QueryBias,
    Key,
    KeyBias,
    Value,
    ValueBias,
    QueryNorm,
    KeyNorm,
    Output,
    OutputBias,
    PostAttentionNorm,
    FeedForwardNorm,
    Gate,
    Up,
    Down,
    PostFeedForwardNorm,
}

/// How the elements of a stored tensor are encoded. Block formats are GGML's; a row is a whole number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are the field's own")]
pub enum WeightFormat {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// A stored tensor, borrowed from its checkpoint: `rows` x `columns` elements, each row `row_bytes` long. A vector is one row.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Encoding of `data`.
    pub format: WeightFormat,
    /// Output dimension; 1 for a vector.
    pub rows: usize,
    /// Input dimension, or a vector's length.
    pub columns: usize,
    /// Exactly `rows * row_bytes` bytes.
    pub data: &'a [u8],
}

impl DecoderSpec {
    /// Every tensor the model has, in the order it needs them. A tied head is the embedding and is not listed.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        let layers = self.layers.iter().enumerate();
        std::iter::once(Slot::Embedding)
            .chain(layers.flat_map(|(index, layer)| layer.slots().map(move |slot| Slot::Layer(index, slot))))
            .chain(std::iter::once(Slot::FinalNorm))
            .chain((!self.tied_head).then_some(Slot::Head))
    }

    /// Rows and columns of the tensor in a slot; a vector is one row.
    ///
    /// # Panics
    /// When the slot names a layer the model does not have.
    pub fn shape(&self, slot: Slot) -> (usize, usize) {
        match slot {
            Slot::Embedding | Slot::Head => (self.vocab_size, self.hidden_size),
            Slot::FinalNorm => (1, self.hidden_size),
            Slot::Layer(index, slot) => self.layers[index].shape(slot, self.hidden_size),
        }
    }
}

impl LayerSpec {
    /// The tensors this layer has.
    fn slots(&self) -> impl Iterator<Item = LayerSlot> + use<> {
        use LayerSlot::*;
        let attention = &self.attention;
        let slots = [
            (AttentionNorm, true),
            (Query, true),
            (QueryBias, attention.qkv_bias),
            (Key, true),
            (KeyBias, attention.qkv_bias),
            (Value, true),
            (ValueBias, attention.qkv_bias),
            (QueryNorm, attention.qk_norm.is_some()),
            (KeyNorm, attention.qk_norm.is_some()),
            (Output, true),
            (OutputBias, attention.output_bias),
            (PostAttentionNorm, self.post_attention_norm.is_some()),
            (FeedForwardNorm, true),
            (Gate, true),
            (Up, true),
            (Down, true),
            (PostFeedForwardNorm, self.post_feed_forward_norm.is_some()),
        ];
        slots.into_iter().filter_map(|(slot, present)| present.then_some(slot))
    }

    fn shape(&self, slot: LayerSlot, hidden_size: usize) -> (usize, usize) {
        use LayerSlot::*;
        let query_size = self.attention.heads * self.attention.head_dim;
        let key_size = self.attention.kv_heads * self.attention.head_dim;
        match slot {
            AttentionNorm | PostAttentionNorm | FeedForwardNorm | PostFeedForwardNorm => (1, hidden_size),
            Query => (query_size, hidden_size),
            QueryBias => (1, query_size),
            Key | Value => (key_size, hidden_size),
            KeyBias | ValueBias => (1, key_size),
            QueryNorm | KeyNorm => (1, self.attention.head_dim),
            Output => (hidden_size, query_size),
            OutputBias => (1, hidden_size),
            Gate | Up => (self.feed_forward.hidden_size, hidden_size),
            Down => (hidden_size, self.feed_forward.hidden_size),
        }
    }
}
