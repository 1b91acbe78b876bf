//! Which weight goes where: the slots of a spec and the stored tensors that fill them.

/// A place a [`DecoderSpec`](crate::spec::DecoderSpec) has for a tensor. Matrices are `[out, in]`, rows contiguous.
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
