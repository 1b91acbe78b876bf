//! [`Shape`]: the numbers every dense decoder has, and the spec that follows from them alone. A family sets its switches on top.

use super::rope::Rope;
use super::{GgufModel, ModelError};
use crate::config::Config;
use crate::spec::*;

/// The sizes of a decoder, checked.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) feed_forward_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) context_len: usize,
    pub(super) norm_epsilon: f32,
    pub(super) tied_head: bool,
}

/// What a config.json may leave out in a family, because transformers has a default for it there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ShapeDefaults {
    pub(super) vocab_size: Option<usize>,
    pub(super) heads: Option<usize>,
    /// `None`: as many as query heads.
    pub(super) kv_heads: Option<usize>,
    /// `None`: hidden_size / heads.
    pub(super) head_dim: Option<usize>,
    pub(super) context_len: Option<usize>,
    pub(super) norm_epsilon: Option<f64>,
    pub(super) tied_head: bool,
}

/// The largest sizes believed: several times those of any published model, and small enough that products of two never
/// overflow.
pub(super) mod limit {
    pub(in crate::family) const VOCAB: usize = 1 << 24;
    pub(in crate::family) const WIDTH: usize = 1 << 20;
    pub(in crate::family) const LAYERS: usize = 1 << 12;
    pub(in crate::family) const HEADS: usize = 1 << 12;
    pub(in crate::family) const HEAD_DIM: usize = 1 << 12;
    pub(in crate::family) const CONTEXT: usize = 1 << 30;
}

impl Shape {
    pub(super) fn from_config(config: &Config, defaults: ShapeDefaults) -> Result<Self, ModelError> {
        let count = |field: &str, default: Option<usize>, most: usize| {
            let value = match (config.count(field)?, default) {
                (None, Some(default)) => default,
                _ => config.require_count(field)?,
            };
            if !(1..=most).contains(&value) {
                return Err(config.wrong(field, format!("an integer from 1 to {most}"), "correct the file"));
            }
            Ok(value)
        };
        let hidden_size = count("hidden_size", None, limit::WIDTH)?;
        let heads = count("num_attention_heads", defaults.heads, limit::HEADS)?;
        let kv_heads = count("num_key_value_heads", defaults.kv_heads.or(Some(heads)), limit::HEADS)?;
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads, which is {heads}");
            return Err(config.wrong("num_key_value_heads", expected, "correct the file"));
        }
        if config.count("head_dim")?.or(defaults.head_dim).is_none() && !hidden_size.is_multiple_of(heads) {
            let expected = format!("a size, as hidden_size {hidden_size} is no multiple of {heads} heads");
            return Err(config.wrong("head_dim", expected, "correct the file"));
        }
        let head_dim = count("head_dim", defaults.head_dim.or(Some(hidden_size / heads)), limit::HEAD_DIM)?;
        if !head_dim.is_multiple_of(2) {
            return Err(config.wrong("head_dim", format!("an even size, not {head_dim}"), "correct the file"));
        }
        let norm_epsilon = config.number("rms_norm_eps")?.or(defaults.norm_epsilon);
        let norm_epsilon = norm_epsilon.map_or_else(|| config.require_number("rms_norm_eps"), Ok)?;
        if !(0.0..1.0).contains(&norm_epsilon) {
            return Err(config.wrong("rms_norm_eps", "a number from 0 to 1", "correct the file"));
        }
        Ok(Self {
            vocab_size: count("vocab_size", defaults.vocab_size, limit::VOCAB)?,
            hidden_size,
            feed_forward_size: count("intermediate_size", None, limit::WIDTH)?,
            layers: count("num_hidden_layers", None, limit::LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            context_len: count("max_position_embeddings", defaults.context_len, limit::CONTEXT)?,
            norm_epsilon: norm_epsilon as f32,
            tied_head: config.flag("tie_word_embeddings")?.unwrap_or(defaults.tied_head),
        })
    }

    pub(super) fn from_gguf(model: &GgufModel<'_>) -> Result<Self, ModelError> {
        let metadata = model.metadata;
        let checked = |name: &str, value: u32, most: usize| {
            let value = value as usize;
            if !(1..=most).contains(&value) {
                let advice = "convert the model again with a current converter";
                return Err(metadata.wrong(&model.key(name), format!("an integer from 1 to {most}"), advice));
            }
            Ok(value)
        };
        let count = |name: &str, most: usize| checked(name, metadata.require_u32(&model.key(name))?, most);
        let count_or = |name: &str, default: usize, most: usize| match metadata.get_u32(&model.key(name))? {
            Some(value) => checked(name, value, most),
            None => Ok(default),
        };
        let hidden_size = count("embedding_length", limit::WIDTH)?;
        let heads = count("attention.head_count", limit::HEADS)?;
        let kv_heads = count_or("attention.head_count_kv", heads, limit::HEADS)?;
        let advice = "convert the model again with a current converter";
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of the head count, which is {heads}");
            return Err(metadata.wrong(&model.key("attention.head_count_kv"), expected, advice));
        }
        let head_dim = count_or("attention.key_length", hidden_size / heads, limit::HEAD_DIM)?;
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            let expected = format!("an even size, not {head_dim}");
            return Err(metadata.wrong(&model.key("attention.key_length"), expected, advice));
        }
        if count_or("attention.value_length", head_dim, limit::HEAD_DIM)? != head_dim {
            let expected = format!("the same size as of keys, which is {head_dim}");
            let advice = "values of another size than keys are not supported: use another model";
            return Err(metadata.wrong(&model.key("attention.value_length"), expected, advice));
        }
        let embedding = (model.tensor)("token_embd.weight");
        let vocab_size =
            embedding.map(|view| view.rows).filter(|rows| (1..=limit::VOCAB).contains(rows)).ok_or_else(|| {
                model.wrong_tensor("token_embd.weight", "nothing usable", "a matrix of the vocabulary's embeddings")
            })?;
        let epsilon_key = model.key("attention.layer_norm_rms_epsilon");
        let norm_epsilon = metadata.require_f32(&epsilon_key)?;
        if !(0.0..1.0).contains(&norm_epsilon) {
            return Err(metadata.wrong(&epsilon_key, "a number from 0 to 1", advice));
        }
        Ok(Self {
            vocab_size,
            hidden_size,
            feed_forward_size: count("feed_forward_length", limit::WIDTH)?,
            layers: count("block_count", limit::LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            context_len: count("context_length", limit::CONTEXT)?,
            norm_epsilon,
            tied_head: !model.has_tensor("output.weight"),
        })
    }

    /// An RMS norm whose weights are stored as they are.
    pub(super) fn norm(&self) -> NormSpec {
        NormSpec { kind: NormKind::Rms, epsilon: self.norm_epsilon, weight_offset: 0.0 }
    }

    /// Attention without biases, norms, window or cap.
    pub(super) fn attention(&self, rope: RopeSpec) -> AttentionSpec {
        AttentionSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            qkv_bias: false,
            output_bias: false,
            qk_norm: None,
            rope,
            window: None,
            softcap: None,
            scale: (self.head_dim as f32).powf(-0.5),
        }
    }

    /// A layer with two norms and a SiLU-gated feed-forward.
    pub(super) fn layer(&self, attention: AttentionSpec) -> LayerSpec {
        LayerSpec {
            attention_norm: self.norm(),
            attention,
            post_attention_norm: None,
            feed_forward_norm: self.norm(),
            feed_forward: FeedForwardSpec { hidden_size: self.feed_forward_size, activation: Activation::Silu },
            post_feed_forward_norm: None,
        }
    }

    /// A decoder of these layers. `rope` may extend the context.
    pub(super) fn decoder(&self, layers: Vec<LayerSpec>, rope: &Rope) -> DecoderSpec {
        assert_eq!(layers.len(), self.layers, "one spec for each layer");
        DecoderSpec {
            architecture: String::new(), // named by the caller, who knows the checkpoint's word
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            context_len: rope.context_len(self.context_len),
            embedding_scale: 1.0,
            layers,
            final_norm: self.norm(),
            tied_head: self.tied_head,
            logit_softcap: None,
        }
    }
}
