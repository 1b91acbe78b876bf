//! Qwen2 and Qwen2.5: biases on Q, K and V; windows on the layers from `max_window_layers` on, where they are switched on at all.

use super::names::Naming;
use super::rope::Rope;
use super::shape::{Shape, ShapeDefaults};
use super::{Decoder, Family, GgufModel, ModelError, window};
use crate::config::Config;
use crate::spec::{AttentionSpec, RopePairing};

pub(super) const FAMILY: Family =
    Family { classes: &["Qwen2ForCausalLM"], model_types: &["qwen2"], gguf: Some("qwen2"), from_config, from_gguf };

fn from_config(config: &Config) -> Result<Decoder, ModelError> {
    let defaults = ShapeDefaults { context_len: Some(32768), norm_epsilon: Some(1e-6), ..ShapeDefaults::default() };
    let shape = Shape::from_config(config, defaults)?;
    config.expect_text("hidden_act", "silu")?;
    let rope = Rope::from_config(config)?;
    let mut attention = shape.attention(rope.spec(RopePairing::Halves, shape.head_dim));
    attention.qkv_bias = true;
    let layers = windows(config, shape.layers)?
        .into_iter()
        .map(|window| shape.layer(AttentionSpec { window, ..attention.clone() }))
        .collect();
    Ok(Decoder { spec: shape.decoder(layers, &rope), naming: Naming::HuggingFace })
}

fn from_gguf(model: &GgufModel<'_>) -> Result<Decoder, ModelError> {
    model.refuse_key("expert_count", "a mixture of experts")?;
    let shape = Shape::from_gguf(model)?;
    let rotary_dim = model.rotary_dim(&shape)?;
    let rope = Rope::from_gguf(model, rotary_dim)?;
    let mut attention = shape.attention(rope.spec(RopePairing::Halves, rotary_dim));
    attention.qkv_bias = true;
    attention.output_bias = model.has_tensor("blk.0.attn_output.bias");
    let layers = vec![shape.layer(attention); shape.layers];
    Ok(Decoder { spec: shape.decoder(layers, &rope), naming: Naming::Gguf })
}

/// Each layer's window in a Qwen config: none unless `use_sliding_window`; then by `layer_types`, or from
/// `max_window_layers` on.
pub(super) fn windows(config: &Config, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    const MAX_WINDOW_LAYERS_DEFAULT: usize = 28;
    let window = match config.flag("use_sliding_window")? {
        Some(true) => window::size(config)?,
        _ => None,
    };
    let first = config.count("max_window_layers")?.unwrap_or(MAX_WINDOW_LAYERS_DEFAULT);
    window::per_layer(config, layers, window, |layer| window.is_some() && layer >= first)
}
