//! Texts and conversations to token ids.

use crate::state::App;
use powertrain_protocol::{ApiError, ChatMessage, Prompt};
use powertrain_step::TokenId;
use powertrain_text::{AddSpecial, Chat, ChatTemplateError, ParseSpecial};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A conversation to render.
pub(crate) struct ChatPrompt {
    pub(crate) messages: Vec<ChatMessage>,
    pub(crate) add_generation_prompt: bool,
    pub(crate) continue_final_message: bool,
    pub(crate) chat_template_kwargs: Map<String, Value>,
    pub(crate) add_special_tokens: bool,
    /// The body it came in: whatever a template may show of it is not larger.
    pub(crate) bytes: usize,
}

/// Encoding on the text pool.
pub(crate) trait Encode {
    /// A rendered conversation's ids.
    async fn encode_chat(&self, prompt: ChatPrompt) -> Result<Arc<[TokenId]>, ApiError>;

    /// The ids of prompts, in their order. Control tokens written in text are those tokens: whoever sends a prompt to
    /// `/v1/completions` has rendered it.
    async fn encode_prompts(&self, prompts: &[Prompt], add_special: bool) -> Result<Vec<Arc<[TokenId]>>, ApiError>;
}

impl Encode for App {
    async fn encode_chat(&self, prompt: ChatPrompt) -> Result<Arc<[TokenId]>, ApiError> {
        let app = Self::clone(self);
        self.pool
            .run(prompt.bytes, move || {
                let text = render(&app, &prompt)?;
                encode(&app, &text, prompt.add_special_tokens)
            })
            .await
    }

    async fn encode_prompts(&self, prompts: &[Prompt], add_special: bool) -> Result<Vec<Arc<[TokenId]>>, ApiError> {
        let mut encoded = Vec::with_capacity(prompts.len());
        for (index, prompt) in prompts.iter().enumerate() {
            encoded.push(match prompt {
                Prompt::Tokens(ids) => ids.as_slice().into(),
                Prompt::Text(text) => {
                    let (app, text) = (Self::clone(self), text.clone());
                    let ids = self.pool.run(text.len(), move || encode(&app, &text, add_special)).await;
                    ids.map_err(|error| error.of_prompt(index, prompts.len()))?
                }
            });
        }
        Ok(encoded)
    }
}

fn render(app: &App, prompt: &ChatPrompt) -> Result<String, ApiError> {
    let Some(template) = &app.model.template else {
        return Err(ApiError::Template(
            "this model has no chat template; use /v1/completions, or start the server with --chat-template FILE"
                .to_owned(),
        ));
    };
    // Plain structs with string keys serialise.
    let mut messages: Vec<Value> =
        prompt.messages.iter().map(|message| serde_json::to_value(message).expect("a message serialises")).collect();
    // Most templates put strings together and fail on null, or print it as a word: beside tool calls it is an empty text,
    // as in vLLM. Not where that would lose the calls, nor in a message to continue: it has no text that could go on.
    if !template.calls_beside_null() {
        let continued = usize::from(prompt.continue_final_message);
        for message in messages.iter_mut().rev().skip(continued).filter(|message| message["content"].is_null()) {
            message["content"] = Value::from("");
        }
    }
    let chat = Chat {
        messages: &messages,
        tools: None,
        documents: None,
        add_generation_prompt: prompt.add_generation_prompt,
        continue_final_message: prompt.continue_final_message,
        variables: Some(&prompt.chat_template_kwargs),
    };
    template.render(&chat).map_err(|error| match &error {
        ChatTemplateError::ReservedVariable { name } => {
            ApiError::field("chat_template_kwargs", format!("must not set {name:?}: it has a field of its own"))
        }
        _ => ApiError::Template(error.to_string()),
    })
}

fn encode(app: &App, text: &str, add_special: bool) -> Result<Arc<[TokenId]>, ApiError> {
    let (len, most) = (text.len(), app.prompt_bytes_max());
    if len > most {
        let max_model_len = app.engine.limits().max_model_len;
        return Err(ApiError::ContextLengthExceeded(format!(
            "the prompt has {len} bytes of text; the {max_model_len} tokens of --max-model-len are at most {most}"
        )));
    }
    let add = if add_special { AddSpecial::Yes } else { AddSpecial::No };
    let ids = app.model.tokenizer.encode(text, add, ParseSpecial::Yes);
    Ok(ids.map_err(|error| ApiError::field("prompt", error.to_string()))?.into())
}
