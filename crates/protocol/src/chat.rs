//! `POST /v1/chat/completions`.

use crate::{
    ApiError, ChatLogprobs, ChatMessage, Fields, GenerationFields, LOGPROBS_MAX, PromptLogprobs, StopReason, TokenId,
    Usage, WireFinishReason, refused,
};
use serde::Serialize;
use serde_json::{Map, Value};

/// A conversation to continue.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The messages, at least one.
    pub messages: Vec<ChatMessage>,
    /// How to generate.
    pub generation: GenerationFields,
    /// Report log-probabilities with this many alternatives.
    pub logprobs: Option<u8>,
    /// Whether the template opens the assistant's turn; the default.
    pub add_generation_prompt: bool,
    /// Whether the model goes on with the last message instead of a new one.
    pub continue_final_message: bool,
    /// Whether the tokenizer puts its own first tokens before the rendered text; templates usually hold them.
    pub add_special_tokens: bool,
    /// Variables of the template.
    pub chat_template_kwargs: Map<String, Value>,
}

/// Who speaks next.
pub(crate) struct Turn {
    pub(crate) add_generation_prompt: bool,
    pub(crate) continue_final_message: bool,
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub struct ChatResponse {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The name that the request used.
    pub model: String,
    /// The server's version: equal fingerprint, weights and seed give equal text.
    pub system_fingerprint: &'static str,
    /// `n` of them.
    pub choices: Vec<ChatChoice>,
    /// Tokens.
    pub usage: Usage,
    /// When asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// When asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<TokenId>>,
}

/// One of the `n` answers.
#[derive(Debug, Serialize)]
pub struct ChatChoice {
    /// Its number.
    pub index: u32,
    /// What was said.
    pub message: AssistantMessage,
    /// When asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// How it ended.
    pub finish_reason: WireFinishReason,
    /// What stopped it, when the request named it.
    pub stop_reason: Option<StopReason>,
    /// When asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<TokenId>>,
}

/// The assistant's words.
#[derive(Debug, Serialize)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The text.
    pub content: String,
    /// Always null.
    pub refusal: Option<String>,
}

/// A piece of a streamed answer.
#[derive(Debug, Serialize)]
pub struct ChatChunk<'a> {
    /// The same in all pieces.
    pub id: &'a str,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Unix seconds, the same in all pieces.
    pub created: u64,
    /// The name that the request used.
    pub model: &'a str,
    /// The server's version.
    pub system_fingerprint: &'static str,
    /// One, or none in the last piece with the usage.
    pub choices: &'a [ChatChunkChoice<'a>],
    /// Absent unless asked for; null in pieces that have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// In the first piece, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [TokenId]>,
}

/// A piece of one of the `n` answers.
#[derive(Debug, Serialize)]
pub struct ChatChunkChoice<'a> {
    /// Its number.
    pub index: u32,
    /// What is new.
    pub delta: ChatDelta<'a>,
    /// Of the tokens in this piece.
    pub logprobs: Option<ChatLogprobs>,
    /// In its last piece.
    pub finish_reason: Option<WireFinishReason>,
    /// In its last piece, when the request named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// When asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<&'a [TokenId]>,
}

/// What is new in a piece.
#[derive(Debug, Default, Serialize)]
pub struct ChatDelta<'a> {
    /// `assistant`, in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// With everything that is wrong with it.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let messages = ChatMessage::read_all(&mut fields);
        let generation = GenerationFields::read(&mut fields, 1);
        let turn = Turn::read(&mut fields);
        let mut chat_template_kwargs = fields.object("chat_template_kwargs").unwrap_or_default();
        if let Some(effort) = fields.take("reasoning_effort") {
            chat_template_kwargs.entry("reasoning_effort").or_insert(effort);
        }
        refused::refuse(&mut fields, generation.n);
        if fields.bool("echo") == Some(true) {
            fields.problem("echo", "not supported in chat; /v1/completions has it");
        }
        let request = Self {
            messages,
            logprobs: read_logprobs(&mut fields),
            generation,
            add_generation_prompt: turn.add_generation_prompt,
            continue_final_message: turn.continue_final_message,
            add_special_tokens: fields.bool("add_special_tokens").unwrap_or(false),
            chat_template_kwargs,
        };
        fields.finish()?;
        Ok(request)
    }
}

impl Turn {
    /// Reads the two switches, which exclude each other.
    pub(crate) fn read(fields: &mut Fields) -> Self {
        let continue_final_message = fields.bool("continue_final_message").unwrap_or(false);
        let add_generation_prompt = fields.bool("add_generation_prompt");
        if continue_final_message && add_generation_prompt == Some(true) {
            fields.problem("continue_final_message", "cannot be true together with add_generation_prompt");
        }
        Self { add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message), continue_final_message }
    }
}

fn read_logprobs(fields: &mut Fields) -> Option<u8> {
    let wanted = fields.bool("logprobs").unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=LOGPROBS_MAX);
    if top.is_some_and(|top| top > 0) && !wanted {
        fields.problem("top_logprobs", "needs logprobs: true");
    }
    wanted.then_some(top.unwrap_or(0) as u8)
}
