//! What the two kinds of checkpoint call their tensors. Families differ only in what their norms are called.

use crate::weights::{LayerSlot, Slot};

/// How a checkpoint names tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// `model.layers.0.self_attn.q_proj.weight`; one norm before the attention and one before the feed-forward.
    HuggingFace,
    /// The same, with Gemma's four norms: `post_attention_layernorm` stands after the attention, not before the feed-forward.
    HuggingFaceGemma,
    /// `blk.0.attn_q.weight`
    Gguf,
}

/// Where a text model's tensors stand in a Hugging Face checkpoint: alone, or inside a model that also sees (as it was
/// published, and as transformers 5 writes it). The head's prefix is beside it.
const PREFIXES: [(&str, &str); 3] =
    [("model.", ""), ("language_model.model.", "language_model."), ("model.language_model.", "")];

impl Naming {
    /// The prefix under which the checkpoint has an embedding; the plain one where none has, for the error to come.
    pub(super) fn find_prefix(self, has_tensor: &dyn Fn(&str) -> bool) -> &'static str {
        let found = PREFIXES.iter().find(|(prefix, _)| has_tensor(&self.name(prefix, Slot::Embedding)));
        found.map_or(PREFIXES[0].0, |(prefix, _)| prefix)
    }

    /// The name of a slot's tensor.
    pub(super) fn name(self, prefix: &str, slot: Slot) -> String {
        match (self, slot) {
            (Self::Gguf, Slot::Embedding) => "token_embd.weight".to_owned(),
            (Self::Gguf, Slot::FinalNorm) => "output_norm.weight".to_owned(),
            (Self::Gguf, Slot::Head) => "output.weight".to_owned(),
            (Self::Gguf, Slot::Layer(index, slot)) => format!("blk.{index}.{}", gguf(slot)),
            (_, Slot::Embedding) => format!("{prefix}embed_tokens.weight"),
            (_, Slot::FinalNorm) => format!("{prefix}norm.weight"),
            (_, Slot::Head) => {
                let head_prefix = PREFIXES.iter().find(|(body, _)| *body == prefix).map_or("", |(_, head)| head);
                format!("{head_prefix}lm_head.weight")
            }
            (_, Slot::Layer(index, slot)) => {
                format!("{prefix}layers.{index}.{}", hugging_face(slot, self == Self::HuggingFaceGemma))
            }
        }
    }
}

fn hugging_face(slot: LayerSlot, gemma: bool) -> &'static str {
    match slot {
        LayerSlot::AttentionNorm => "input_layernorm.weight",
        LayerSlot::Query => "self_attn.q_proj.weight",
        LayerSlot::QueryBias => "self_attn.q_proj.bias",
        LayerSlot::Key => "self_attn.k_proj.weight",
        LayerSlot::KeyBias => "self_attn.k_proj.bias",
        LayerSlot::Value => "self_attn.v_proj.weight",
        LayerSlot::ValueBias => "self_attn.v_proj.bias",
        LayerSlot::QueryNorm => "self_attn.q_norm.weight",
        LayerSlot::KeyNorm => "self_attn.k_norm.weight",
        LayerSlot::Output => "self_attn.o_proj.weight",
        LayerSlot::OutputBias => "self_attn.o_proj.bias",
        LayerSlot::PostAttentionNorm => "post_attention_layernorm.weight",
        LayerSlot::FeedForwardNorm if gemma => "pre_feedforward_layernorm.weight",
        LayerSlot::FeedForwardNorm => "post_attention_layernorm.weight",
        LayerSlot::Gate => "mlp.gate_proj.weight",
        LayerSlot::Up => "mlp.up_proj.weight",
        LayerSlot::Down => "mlp.down_proj.weight",
        LayerSlot::PostFeedForwardNorm => "post_feedforward_layernorm.weight",
    }
}

fn gguf(slot: LayerSlot) -> &'static str {
    match slot {
        LayerSlot::AttentionNorm => "attn_norm.weight",
        LayerSlot::Query => "attn_q.weight",
        LayerSlot::QueryBias => "attn_q.bias",
        LayerSlot::Key => "attn_k.weight",
        LayerSlot::KeyBias => "attn_k.bias",
        LayerSlot::Value => "attn_v.weight",
        LayerSlot::ValueBias => "attn_v.bias",
        LayerSlot::QueryNorm => "attn_q_norm.weight",
        LayerSlot::KeyNorm => "attn_k_norm.weight",
        LayerSlot::Output => "attn_output.weight",
        LayerSlot::OutputBias => "attn_output.bias",
        LayerSlot::PostAttentionNorm => "post_attention_norm.weight",
        LayerSlot::FeedForwardNorm => "ffn_norm.weight",
        LayerSlot::Gate => "ffn_gate.weight",
        LayerSlot::Up => "ffn_up.weight",
        LayerSlot::Down => "ffn_down.weight",
        LayerSlot::PostFeedForwardNorm => "post_ffw_norm.weight",
    }
}
