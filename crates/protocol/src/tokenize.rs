//! `POST /tokenize` and `POST /detokenize`, as vLLM has them.

use crate::{ApiError, ChatMessage, Fields, TokenId};
use serde::Serialize;
use serde_json::{Map, Value};

/// Text or messages to token ids.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizeRequest {
    /// The model's name.
    pub model: Option<String>,
    /// What to encode.
    pub input: TokenizeInput,
    /// Whether to put the model's own first tokens before it: by default for text, not for rendered messages.
    pub add_special_tokens: Option<bool>,
    /// Whether to return the tokens' texts too.
    pub return_token_strs: bool,
}

/// What to encode.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizeInput {
    /// Plain text.
    Text(String),
    /// A conversation, rendered by the chat template.
    Chat {
        /// The messages.
        messages: Vec<ChatMessage>,
        /// Whether the assistant's turn is opened at the end.
        add_generation_prompt: bool,
        /// Whether the last message is left open instead.
        continue_final_message: bool,
        /// Variables of the template.
        chat_template_kwargs: Map<String, Value>,
    },
}

/// Token ids of a text.
#[derive(Debug, Serialize)]
pub struct TokenizeResponse {
    /// How many.
    pub count: usize,
    /// The limit they are under.
    pub max_model_len: u32,
    /// The ids.
    pub tokens: Vec<TokenId>,
    /// Each one's text, when asked for.
    pub token_strs: Option<Vec<String>>,
}

/// Token ids to text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetokenizeRequest {
    /// The model's name.
    pub model: Option<String>,
    /// The ids.
    pub tokens: Vec<TokenId>,
}

/// The text of token ids.
#[derive(Debug, Serialize)]
pub struct DetokenizeResponse {
    /// The text, control tokens included.
    pub prompt: String,
}

impl TokenizeRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// With everything that is wrong with it.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model");
        let input = match fields.string("prompt") {
            Some(text) => {
                if fields.has("messages") {
                    fields.problem("messages", "cannot be given beside prompt; send one of them");
                }
                TokenizeInput::Text(text)
            }
            None if fields.has_problem("prompt") => TokenizeInput::Text(String::new()),
            None => {
                let turn = crate::chat::Turn::read(&mut fields);
                TokenizeInput::Chat {
                    messages: ChatMessage::read_all(&mut fields),
                    add_generation_prompt: turn.add_generation_prompt,
                    continue_final_message: turn.continue_final_message,
                    chat_template_kwargs: fields.object("chat_template_kwargs").unwrap_or_default(),
                }
            }
        };
        let request = Self {
            model,
            input,
            add_special_tokens: fields.bool("add_special_tokens"),
            return_token_strs: fields.bool("return_token_strs").unwrap_or(false),
        };
        fields.finish()?;
        Ok(request)
    }
}

impl DetokenizeRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// With everything that is wrong with it.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model");
        let tokens = fields.token_ids("tokens");
        if tokens.is_none() && !fields.has_problems() {
            fields.problem("tokens", "is missing");
        }
        fields.finish()?;
        Ok(Self { model, tokens: tokens.unwrap_or_default() })
    }
}
