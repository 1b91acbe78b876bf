//! Gemma 3, its text part: four norms a layer and norms over the heads of Q and K, five windowed layers to each global one,
//! each kind with a rope of its own, GELU, scaled embeddings, a tied head.

use super::names::Naming;
use super::rope::{self, Rope};
use super::shape::{Shape, ShapeDefaults};
use super::{Decoder, Family, GgufModel, ModelError, window};
use crate::config::Config;
use crate::spec::*;

pub(super) const FAMILY: Family = Family {
    classes: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    model_types: &["gemma3_text", "gemma3"],
    gguf: Some("gemma3"),
    from_config,
    from_gguf,
};

/// Every sixth layer is global where the checkpoint does not say otherwise.
const PATTERN_DEFAULT: usize = 6;
const GLOBAL_THETA_DEFAULT: f64 = 1_000_000.0;
const LOCAL_THETA_DEFAULT: f64 = 10_000.0;
/// Layers of the 27B, the one size whose score scale is not the head size's; its GGUF does not say so.
const LAYERS_27B: usize = 62;

/// What decides a Gemma 3 beyond its shape.
struct Gemma {
    shape: Shape,
    /// Of the windowed layers.
    local_rope: Rope,
    /// Of the others.
    global_rope: Rope,
    rotary_dim: usize,
    /// Scores are multiplied by the root of its inverse.
    query_scalar: f64,
    /// Each layer's window.
    windows: Vec<Option<usize>>,
    attention_bias: bool,
    logit_softcap: Option<f32>,
    norm_weight_offset: f32,
}

fn from_config(config: &Config) -> Result<Decoder, ModelError> {
    // A model that also sees holds the text model's fields in a section, and published ones leave most to the defaults.
    let section = config.section("text_config")?;
    let config = section.as_ref().unwrap_or(config);
    let defaults = ShapeDefaults {
        vocab_size: Some(262_208),
        heads: Some(8),
        kv_heads: Some(4),
        head_dim: Some(256),
        context_len: Some(131_072),
        norm_epsilon: Some(1e-6),
        tied_head: true,
    };
    let shape = Shape::from_config(config, defaults)?;
    config.expect_text("hidden_activation", "gelu_pytorch_tanh")?;
    config.expect_flag("use_bidirectional_attention", false)?;
    if config.number("attn_logit_softcapping")?.is_some() {
        let advice = "capped attention scores are not part of Gemma 3: use another model";
        return Err(config.wrong("attn_logit_softcapping", "null", advice));
    }
    let query_scalar = config.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    let window = window::size(config)?.or((!config.contains("sliding_window")).then_some(4096));
    let mut pattern_field = "sliding_window_pattern";
    if !config.contains(pattern_field) {
        pattern_field = "_sliding_window_pattern";
    }
    let pattern = config.count(pattern_field)?.unwrap_or(PATTERN_DEFAULT);
    if pattern == 0 {
        return Err(config.wrong(pattern_field, "an integer of at least 1", "correct the file"));
    }
    let windows = window::per_layer(config, shape.layers, window, |layer| (layer + 1) % pattern != 0)?;
    let logit_softcap = config.positive("final_logit_softcapping")?.map(|cap| cap as f32);
    let (local_rope, global_rope) = ropes(config)?;
    let gemma = Gemma {
        rotary_dim: shape.head_dim,
        shape,
        local_rope,
        global_rope,
        query_scalar,
        windows,
        attention_bias: config.flag("attention_bias")?.unwrap_or(false),
        logit_softcap,
        norm_weight_offset: 1.0,
    };
    Ok(Decoder { spec: gemma.decoder(), naming: Naming::HuggingFaceGemma })
}

/// Local and global rope. transformers 5 writes one object a kind into `rope_parameters`; before, `rope_local_base_freq` was
/// the local base, and `rope_theta` and `rope_scaling` were the global layers' alone.
fn ropes(config: &Config) -> Result<(Rope, Rope), ModelError> {
    let global_theta = rope::theta(config, "rope_theta", GLOBAL_THETA_DEFAULT)?;
    let local_theta = rope::theta(config, "rope_local_base_freq", LOCAL_THETA_DEFAULT)?;
    let parameters = config.section("rope_parameters")?;
    let section = |kind: &str| match &parameters {
        Some(parameters) => parameters.section(kind),
        None => Ok(None),
    };
    let rope = |section: Option<Config>, theta: f64| match section {
        Some(section) => Rope::from_section(&section, theta, config),
        None => Ok(Rope::unscaled(theta)),
    };
    let global = match config.section("rope_scaling")? {
        Some(scaling) => Some(scaling),
        None => section("full_attention")?,
    };
    Ok((rope(section("sliding_attention")?, local_theta)?, rope(global, global_theta)?))
}

fn from_gguf(model: &GgufModel<'_>) -> Result<Decoder, ModelError> {
    let shape = Shape::from_gguf(model)?;
    let rotary_dim = model.rotary_dim(&shape)?;
    let metadata = model.metadata;
    let window = metadata.require_u32(&model.key("attention.sliding_window"))? as usize;
    if window == 0 {
        let key = model.key("attention.sliding_window");
        return Err(metadata.wrong(&key, "an integer of at least 1", "convert the model again"));
    }
    let pattern_key = model.key("attention.sliding_window_pattern");
    let pattern = metadata.get_u32(&pattern_key)?.map_or(PATTERN_DEFAULT, |pattern| pattern as usize);
    if pattern == 0 {
        return Err(metadata.wrong(&pattern_key, "an integer of at least 1", "convert the model again"));
    }
    let query_scalar = match shape.layers {
        LAYERS_27B => shape.hidden_size / shape.heads,
        _ => shape.head_dim,
    };
    let local_theta = rope::gguf_theta(model, "rope.freq_base_swa", LOCAL_THETA_DEFAULT)?;
    let mut global_rope = Rope::from_gguf(model, rotary_dim)?;
    if !metadata.contains(&model.key("rope.freq_base")) {
        global_rope.theta = GLOBAL_THETA_DEFAULT;
    }
    let gemma = Gemma {
        local_rope: Rope::unscaled(local_theta),
        global_rope,
        rotary_dim,
        query_scalar: query_scalar as f64,
        windows: (0..shape.layers).map(|layer| ((layer + 1) % pattern != 0).then_some(window)).collect(),
        attention_bias: false,
        logit_softcap: model.positive("final_logit_softcapping")?.map(|cap| cap as f32),
        // The converter adds the 1 that safetensors leave out.
        norm_weight_offset: 0.0,
        shape,
    };
    Ok(Decoder { spec: gemma.decoder(), naming: Naming::Gguf })
}

impl Gemma {
    fn decoder(&self) -> DecoderSpec {
        let norm = NormSpec { weight_offset: self.norm_weight_offset, ..self.shape.norm() };
        let local_rope = self.local_rope.spec(RopePairing::Halves, self.rotary_dim);
        let global_rope = self.global_rope.spec(RopePairing::Halves, self.rotary_dim);
        let layer = |window: &Option<usize>| {
            let rope = if window.is_some() { &local_rope } else { &global_rope };
            LayerSpec {
                attention_norm: norm,
                attention: AttentionSpec {
                    qkv_bias: self.attention_bias,
                    output_bias: self.attention_bias,
                    qk_norm: Some(norm),
                    window: *window,
                    scale: self.query_scalar.powf(-0.5) as f32,
                    ..self.shape.attention(rope.clone())
                },
                post_attention_norm: Some(norm),
                feed_forward_norm: norm,
                feed_forward: FeedForwardSpec {
                    hidden_size: self.shape.feed_forward_size,
                    activation: Activation::GeluTanh,
                },
                post_feed_forward_norm: Some(norm),
            }
        };
        let layers = self.windows.iter().map(layer).collect();
        DecoderSpec {
            embedding_scale: (self.shape.hidden_size as f64).sqrt() as f32,
            final_norm: norm,
            logit_softcap: self.logit_softcap,
            ..self.shape.decoder(layers, &self.global_rope)
        }
    }
}
