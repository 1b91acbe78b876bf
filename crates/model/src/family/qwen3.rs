//! Qwen3: Qwen2 without biases, with a norm over each head of Q and K.

use super::names::Naming;
use super::rope::Rope;
use super::shape::{Shape, ShapeDefaults};
use super::{Decoder, Family, GgufModel, ModelError, qwen2};
use crate::config::Config;
use crate::spec::{AttentionSpec, RopePairing};

pub(super) const FAMILY: Family =
    Family { classes: &["Qwen3ForCausalLM"], model_types: &["qwen3"], gguf: Some("qwen3"), from_config, from_gguf };

fn from_config(config: &Config) -> Result<Decoder, ModelError> {
    let defaults = ShapeDefaults {
        head_dim: Some(128),
        context_len: Some(32768),
        norm_epsilon: Some(1e-6),
        ..ShapeDefaults::default()
    };
    let shape = Shape::from_config(config, defaults)?;
    config.expect_text("hidden_act", "silu")?;
    let rope = Rope::from_config(config)?;
    let mut attention = shape.attention(rope.spec(RopePairing::Halves, shape.head_dim));
    attention.qk_norm = Some(shape.norm());
    attention.qkv_bias = config.flag("attention_bias")?.unwrap_or(false);
    attention.output_bias = attention.qkv_bias;
    let layers = qwen2::windows(config, shape.layers)?
        .into_iter()
        .map(|window| shape.layer(AttentionSpec { window, ..attention.clone() }))
        .collect();
    Ok(Decoder { spec: shape.decoder(layers, &rope), naming: Naming::HuggingFace })
}

fn from_gguf(model: &GgufModel<'_>) -> Result<Decoder, ModelError> {
    model.refuse_tensor("blk.0.attn_q.bias", "a bias of the queries")?;
    let shape = Shape::from_gguf(model)?;
    let rotary_dim = model.rotary_dim(&shape)?;
    let rope = Rope::from_gguf(model, rotary_dim)?;
    let mut attention = shape.attention(rope.spec(RopePairing::Halves, rotary_dim));
    attention.qk_norm = Some(shape.norm());
    let layers = vec![shape.layer(attention); shape.layers];
    Ok(Decoder { spec: shape.decoder(layers, &rope), naming: Naming::Gguf })
}
