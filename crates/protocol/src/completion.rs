//! `POST /v1/completions`.

use crate::{
    ApiError, CompletionLogprobs, Fields, GenerationFields, PromptLogprobs, SEQUENCES_MAX, StopReason, TokenId, Usage,
    WireFinishReason, generation::read_logprobs_count, refused,
};
use serde::Serialize;
use serde_json::Value;

/// Prompts to continue.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// At least one; together with `n` at most [`SEQUENCES_MAX`] sequences.
    pub prompts: Vec<Prompt>,
    /// How to generate.
    pub generation: GenerationFields,
    /// Report log-probabilities with this many alternatives.
    pub logprobs: Option<u8>,
    /// Whether the prompt's text comes first.
    pub echo: bool,
    /// Whether the tokenizer puts the model's own first tokens before a text prompt; the default.
    pub add_special_tokens: bool,
}

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// To be encoded.
    Text(String),
    /// Used as they are.
    Tokens(Vec<TokenId>),
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub struct CompletionResponse {
    /// `cmpl-…`.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The name that the request used.
    pub model: String,
    /// The server's version.
    pub system_fingerprint: &'static str,
    /// `n` for each prompt, the first prompt's first.
    pub choices: Vec<CompletionChoice>,
    /// Tokens.
    pub usage: Usage,
}

/// One completion of one prompt.
#[derive(Debug, Serialize)]
pub struct CompletionChoice {
    /// Its number: prompt times `n` plus completion.
    pub index: u32,
    /// The text.
    pub text: String,
    /// When asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// How it ended.
    pub finish_reason: WireFinishReason,
    /// What stopped it, when the request named it.
    pub stop_reason: Option<StopReason>,
    /// When asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<TokenId>>,
    /// When asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<TokenId>>,
    /// When asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
}

/// A piece of a streamed answer.
#[derive(Debug, Serialize)]
pub struct CompletionChunk<'a> {
    /// The same in all pieces.
    pub id: &'a str,
    /// `text_completion`.
    pub object: &'static str,
    /// Unix seconds, the same in all pieces.
    pub created: u64,
    /// The name that the request used.
    pub model: &'a str,
    /// The server's version.
    pub system_fingerprint: &'static str,
    /// One, or none in the last piece with the usage.
    pub choices: &'a [CompletionChunkChoice<'a>],
    /// Absent unless asked for; null in pieces that have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// A piece of one completion.
#[derive(Debug, Serialize)]
pub struct CompletionChunkChoice<'a> {
    /// Its number.
    pub index: u32,
    /// More text.
    pub text: &'a str,
    /// Of the tokens in this piece.
    pub logprobs: Option<CompletionLogprobs>,
    /// In its last piece.
    pub finish_reason: Option<WireFinishReason>,
    /// In its last piece, when the request named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// When asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<&'a [TokenId]>,
    /// In its first piece, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [TokenId]>,
}

impl CompletionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// With everything that is wrong with it.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let prompts = read_prompts(&mut fields);
        let generation = GenerationFields::read(&mut fields, 0);
        let sequences = prompts.len() * generation.n as usize;
        if sequences > SEQUENCES_MAX {
            fields.problem("prompt", format!("prompts times n make {sequences} sequences; at most {SEQUENCES_MAX}"));
        }
        refused::refuse(&mut fields, generation.n);
        let request = Self {
            prompts,
            logprobs: read_logprobs_count(&mut fields),
            generation,
            echo: fields.bool("echo").unwrap_or(false),
            add_special_tokens: fields.bool("add_special_tokens").unwrap_or(true),
        };
        if request.echo && request.generation.stream && request.logprobs.is_some() {
            fields.problem("echo", "with logprobs it is not available as a stream");
        }
        fields.finish()?;
        Ok(request)
    }
}

/// A string, token ids, or a list of either.
fn read_prompts(fields: &mut Fields) -> Vec<Prompt> {
    let items = match fields.take("prompt") {
        Some(Value::String(text)) => return vec![Prompt::Text(text)],
        Some(Value::Array(items)) => items,
        Some(other) => return fields.wrong_kind("prompt", &other, "a string or an array").unwrap_or_default(),
        None => {
            fields.problem("prompt", "is missing");
            return Vec::new();
        }
    };
    if items.is_empty() {
        fields.problem("prompt", "is empty");
    }
    if items.first().is_some_and(Value::is_number) {
        return fields.token_ids_in("prompt", &items).map(Prompt::Tokens).into_iter().collect();
    }
    let mut prompts = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let place = format!("prompt[{index}]");
        match item {
            Value::String(text) => prompts.push(Prompt::Text(text)),
            Value::Array(ids) => prompts.extend(fields.token_ids_in(&place, &ids).map(Prompt::Tokens)),
            other => prompts.extend(fields.wrong_kind::<Prompt>(&place, &other, "a string or an array of token ids")),
        }
    }
    prompts
}
