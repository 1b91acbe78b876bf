//! The OpenAI API as Powertrain serves it: what clients send, what they get back, and how errors look.
//!
//! Requests are read field by field, not derived, so that everything wrong with one is said at once and by name
//! ([`Fields`]). Unknown fields are tolerated, as clients send many; fields that would change the answer and are not
//! supported are refused ([`refused`]). Responses are plain serialisable structs; those of a stream borrow their text.
#![forbid(unsafe_code)]

mod chat;
mod completion;
mod error;
mod fields;
mod generation;
mod logprobs;
mod message;
mod models;
pub mod refused;
pub mod sse;
mod tokenize;
mod usage;

pub use chat::{AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatRequest, ChatResponse};
pub use completion::{
    CompletionChoice, CompletionChunk, CompletionChunkChoice, CompletionRequest, CompletionResponse, Prompt,
};
pub use error::{ApiError, ErrorBody, ErrorDetail};
pub use fields::{Fields, Problem, Problems};
pub use generation::{GenerationFields, StreamOptions};
pub use logprobs::{
    ChatLogprobs, CompletionLogprobs, Finite, PromptLogprob, PromptLogprobs, PromptPosition, TokenAlternative,
    TokenLogprob, TopLogprobs,
};
pub use message::ChatMessage;
pub use models::{ModelCard, ModelList};
pub use tokenize::{DetokenizeRequest, DetokenizeResponse, TokenizeInput, TokenizeRequest, TokenizeResponse};
pub use usage::{PromptTokensDetails, StopReason, Usage, WireFinishReason};

/// Index into a model's vocabulary.
pub type TokenId = u32;

/// Sequences one request may ask for: prompts times `n`.
pub const SEQUENCES_MAX: usize = 1024;
/// The largest `n`.
pub const N_MAX: i64 = 128;
/// Alternatives that may be reported per position.
pub const LOGPROBS_MAX: i64 = 20;
/// Stop strings in one request.
pub const STOP_STRINGS_MAX: usize = 64;
/// Bytes of one stop string: this much text is held back while it may still match.
pub const STOP_STRING_BYTES_MAX: usize = 1024;
/// Stop token ids in one request.
pub const STOP_TOKEN_IDS_MAX: usize = 1024;
/// Entries of `logit_bias`.
pub const LOGIT_BIAS_MAX: usize = 4096;
