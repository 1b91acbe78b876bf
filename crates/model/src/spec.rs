//! [`DecoderSpec`]: a decoder-only transformer, described completely enough to run it.
//!
//! **Invariant:** an executor reads the spec and never asks for the family's name. A family that needs a new switch adds it
//! here, to the reference, and to each backend, in that order.

use std::sync::Arc;

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// The checkpoint's own word for it (`llama`, `Qwen2ForCausalLM`): shown to people, never branched on.
    pub architecture: String,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Positions the model was made for: the upper bound of `--max-model-len`.
    pub context_len: usize,
    /// Embeddings are multiplied by this (Gemma: sqrt(hidden_size), unrounded as in f32 transformers and llama.cpp; a
    /// bf16 run of transformers rounds it to bf16); 1.0 elsewhere.
    pub embedding_scale: f32,
    /// The layers, first to last.
    pub layers: Vec<LayerSpec>,
    /// Norm before the head.
    pub final_norm: NormSpec,
    /// Whether the head is the embedding matrix.
    pub tied_head: bool,
    /// `cap * tanh(logit / cap)` (Gemma 2).
    pub logit_softcap: Option<f32>,
}

/// One layer: `x += post_attention(attention(pre_attention(x)))`, then the same with the feed-forward.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Norm of the attention's input.
    pub attention_norm: NormSpec,
    /// The attention.
    pub attention: AttentionSpec,
    /// Norm of the attention's output before the residual sum (Gemma).
    pub post_attention_norm: Option<NormSpec>,
    /// Norm of the feed-forward's input.
    pub feed_forward_norm: NormSpec,
    /// The feed-forward.
    pub feed_forward: FeedForwardSpec,
    /// Norm of the feed-forward's output before the residual sum (Gemma).
    pub post_feed_forward_norm: Option<NormSpec>,
}

/// A normalisation over the last dimension. The weight tensor stands in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Which.
    pub kind: NormKind,
    /// Added to the mean square (or variance) before the root.
    pub epsilon: f32,
    /// Added to the stored weight (Gemma stores `w - 1` in safetensors: 1.0; its GGUF stores `w`: 0.0).
    pub weight_offset: f32,
}

/// Kinds of norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x) * w`
    Rms,
}

/// Causal grouped-query attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head, for queries, keys and values alike.
    pub head_dim: usize,
    /// Whether Q, K and V have biases (Qwen2).
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Norm over each head of Q and K before RoPE (Qwen3, Gemma 3).
    pub qk_norm: Option<NormSpec>,
    /// Rotary embedding.
    pub rope: RopeSpec,
    /// A position sees itself and the `window - 1` before it; `None` sees all.
    pub window: Option<usize>,
    /// `cap * tanh(score / cap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// Scores are multiplied by this, usually `head_dim^-0.5`.
    pub scale: f32,
}

/// Rotary position embedding, all scaling already folded in.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Which elements form a pair.
    pub pairing: RopePairing,
    /// Radians per position for each pair: `rotary_dim / 2` of them. Elements past the rotary dimension pass through.
    pub inverse_frequencies: Arc<[f32]>,
    /// Multiplies sine and cosine (YaRN's attention factor); 1.0 elsewhere.
    pub magnitude: f32,
}

/// How RoPE pairs the elements of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// Element i with i + rotary_dim / 2 (Hugging Face checkpoints; GGUF of Qwen and Gemma).
    Halves,
    /// Element 2i with 2i + 1 (GGUF of the llama architecture, whose Q and K rows were permuted for it).
    Adjacent,
}

/// The feed-forward: `down(activation(gate(x)) * up(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedForwardSpec {
    /// Width between.
    pub hidden_size: usize,
    /// What is applied to the gate.
    pub activation: Activation,
}

/// Gate activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// GELU by its tanh approximation (Gemma).
    GeluTanh,
}
