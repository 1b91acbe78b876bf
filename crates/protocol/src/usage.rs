//! Token counts and how a text ended.

use crate::TokenId;
use serde::Serialize;

/// Tokens in and out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Of all prompts; a prompt with several completions counts once.
    pub prompt_tokens: u32,
    /// Of all completions.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
    /// More about the prompt's.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// A closer look at the prompt's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PromptTokensDetails {
    /// Not computed but found in the prefix cache.
    pub cached_tokens: u32,
}

impl Usage {
    /// From its parts.
    #[must_use]
    pub fn new(prompt_tokens: u32, cached_tokens: u32, completion_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// `finish_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WireFinishReason {
    /// An end-of-sequence token, a stop token or a stop string.
    Stop,
    /// `max_tokens` or the model's length.
    Length,
}

/// What stopped a text, when the request named it (vLLM's `stop_reason`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// The stop string.
    Text(String),
    /// The stop token.
    Token(TokenId),
}
