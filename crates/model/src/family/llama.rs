//! Llama 2 and 3.x, and what is built like them: SmolLM2, Mistral (every layer's attention windowed where its config says so).

use super::names::Naming;
use super::rope::Rope;
use super::shape::{Shape, ShapeDefaults};
use super::{Decoder, Family, GgufModel, ModelError, window};
use crate::config::Config;
use crate::spec::RopePairing;

pub(super) const FAMILY: Family = Family {
    classes: &["LlamaForCausalLM", "MistralForCausalLM"],
    model_types: &["llama", "mistral"],
    gguf: Some("llama"),
    from_config,
    from_gguf,
};

/// What transformers assumes of a Mistral config without the field; null is no window.
const MISTRAL_WINDOW_DEFAULT: usize = 4096;

fn from_config(config: &Config) -> Result<Decoder, ModelError> {
    let mistral = is_mistral(config)?;
    let defaults = ShapeDefaults {
        kv_heads: mistral.then_some(8),
        context_len: Some(if mistral { 4096 * 32 } else { 2048 }),
        norm_epsilon: Some(1e-6),
        ..ShapeDefaults::default()
    };
    let shape = Shape::from_config(config, defaults)?;
    config.expect_text("hidden_act", "silu")?;
    config.expect_flag("mlp_bias", false)?;
    let rope = Rope::from_config(config)?;
    let mut attention = shape.attention(rope.spec(RopePairing::Halves, shape.head_dim));
    if mistral {
        attention.window = match window::size(config)? {
            None if !config.contains("sliding_window") => Some(MISTRAL_WINDOW_DEFAULT),
            window => window,
        };
    } else {
        attention.qkv_bias = config.flag("attention_bias")?.unwrap_or(false);
        attention.output_bias = attention.qkv_bias;
    }
    let layers = vec![shape.layer(attention); shape.layers];
    Ok(Decoder { spec: shape.decoder(layers, &rope), naming: Naming::HuggingFace })
}

fn from_gguf(model: &GgufModel<'_>) -> Result<Decoder, ModelError> {
    model.refuse_key("expert_count", "a mixture of experts")?;
    model.refuse_tensor("blk.0.ffn_gate.bias", "a bias of the feed-forward")?;
    let shape = Shape::from_gguf(model)?;
    let rotary_dim = model.rotary_dim(&shape)?;
    let rope = Rope::from_gguf(model, rotary_dim)?;
    // The converter permutes the rows of Q and K of this architecture, and of no other here.
    let mut attention = shape.attention(rope.spec(RopePairing::Adjacent, rotary_dim));
    // Converters that write it mean Mistral's: every layer.
    let window = model.metadata.get_u32(&model.key("attention.sliding_window"))?;
    attention.window = window.filter(|window| *window > 0).map(|window| window as usize);
    attention.qkv_bias = model.has_tensor("blk.0.attn_q.bias");
    attention.output_bias = model.has_tensor("blk.0.attn_output.bias");
    let layers = vec![shape.layer(attention); shape.layers];
    Ok(Decoder { spec: shape.decoder(layers, &rope), naming: Naming::Gguf })
}

fn is_mistral(config: &Config) -> Result<bool, ModelError> {
    match config.texts("architectures")?.and_then(|classes| classes.first().copied()) {
        Some(class) => Ok(class == "MistralForCausalLM"),
        None => Ok(config.text("model_type")? == Some("mistral")),
    }
}
