//! [`ChatTemplate`]: messages to the prompt a model was trained on.

use crate::{
    jinja::{self, Compiled, FUEL, Raised},
    tokenizer::Tokenizer,
};
use jiff::Zoned;
use minijinja::Value;
use serde_json::{Map, Value as Json};
use std::error::Error as _;

/// A model's chat template, compiled. Immutable; share it by `Arc`.
///
/// A rendering is bounded in instructions, so no messages can make it run on. Its memory is the template's affair: take
/// templates from the model's owner, not from requests.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    default: Compiled,
    /// Used when there are tools, where a model brings a template of its own for them.
    tool_use: Option<Compiled>,
    special_tokens: Vec<(&'static str, String)>,
    content: ContentFormat,
    calls_beside_null: bool,
}

/// What a template does with a message's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentFormat {
    /// It wants a string: lists of text parts are joined with newlines.
    String,
    /// It reads lists of parts itself, and strings.
    Parts,
    /// It reads only lists of parts: strings become one.
    PartsOnly,
}

/// The sources of a model's template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatTemplateSources {
    /// For every chat.
    pub default: String,
    /// For chats with tools instead, if the model has one.
    pub tool_use: Option<String>,
}

/// A chat to render.
#[derive(Clone, Copy, Debug)]
pub struct Chat<'r> {
    /// As in the request: objects with `role` and `content`.
    pub messages: &'r [Json],
    /// Tools as in the request.
    pub tools: Option<&'r [Json]>,
    /// Documents for retrieval templates.
    pub documents: Option<&'r [Json]>,
    /// End with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// End inside the last message, so that the model goes on with it. Excludes `add_generation_prompt`.
    pub continue_final_message: bool,
    /// Further variables (`chat_template_kwargs`), such as `enable_thinking`.
    pub variables: Option<&'r Map<String, Json>>,
}

/// Why a template cannot be used, or a chat not rendered. But for [`Self::Template`] it is the caller's mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatTemplateError {
    /// The template does not compile.
    #[error("the model's chat template is not valid: {0}; give another with --chat-template")]
    Template(String),
    /// The template called `raise_exception`.
    #[error("the model's chat template refused the messages: {0}")]
    Refused(String),
    /// The template failed on this chat.
    #[error("the model's chat template could not render the messages: {0}")]
    Render(String),
    /// The chat took more than the allowed instructions.
    #[error("rendering the chat took more than {FUEL} template instructions; send fewer messages")]
    TooMuchWork,
    /// A part of a message's content that is no text.
    #[error("messages[{message}].content[{part}] has type {kind:?}; this model reads only parts of type \"text\"")]
    UnsupportedPart {
        /// Index of the message.
        message: usize,
        /// Index in its content.
        part: usize,
        /// The type given.
        kind: String,
    },
    /// Content that is neither a string nor a list of parts nor null; or a message that is no object.
    #[error("messages[{message}]{problem}")]
    BadMessage {
        /// Index of the message.
        message: usize,
        /// The rest of the sentence.
        problem: &'static str,
    },
    /// A variable that the chat itself sets.
    #[error("chat_template_kwargs must not set {name:?}: it has a field of its own")]
    ReservedVariable {
        /// Its name.
        name: String,
    },
    /// Both ways to end.
    #[error("add_generation_prompt and continue_final_message exclude each other; set one of them")]
    TwoEndings,
    /// There is no final text to continue.
    #[error("continue_final_message: the last message has no text content to continue")]
    NothingToContinue,
    /// The template dropped the final message.
    #[error("continue_final_message: this model's chat template does not show the last message's content as it is")]
    FinalMessageLost,
}

/// Around messages that are rendered to see what a template does.
const PROBING: Chat<'static> = Chat {
    messages: &[],
    tools: None,
    documents: None,
    add_generation_prompt: false,
    continue_final_message: false,
    variables: None,
};
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];
/// Marks where the final message ends, as transformers does it: the space tells whether the template trims.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

impl ChatTemplate {
    /// Compiles a template. The tokenizer says what `bos_token` and the like are.
    pub fn new(sources: &ChatTemplateSources, tokenizer: &Tokenizer) -> Result<Self, ChatTemplateError> {
        Self::with_clock(sources, tokenizer.named_special_tokens(), Zoned::now)
    }

    /// The same with the special tokens named by hand, and a clock for `strftime_now`.
    pub fn with_clock(
        sources: &ChatTemplateSources,
        special_tokens: Vec<(&'static str, String)>,
        now: fn() -> Zoned,
    ) -> Result<Self, ChatTemplateError> {
        let compile = |source: &str| Compiled::new(source, now).map_err(ChatTemplateError::Template);
        let mut template = Self {
            source: sources.default.clone(),
            default: compile(&sources.default)?,
            tool_use: sources.tool_use.as_deref().map(compile).transpose()?,
            special_tokens,
            content: ContentFormat::String,
            calls_beside_null: false,
        };
        template.content = template.probe_content();
        template.calls_beside_null = template.probe_calls();
        Ok(template)
    }

    /// The prompt of a chat. Encode it with `AddSpecial::No` and `ParseSpecial::Yes`: it has its control tokens.
    pub fn render(&self, chat: &Chat<'_>) -> Result<String, ChatTemplateError> {
        let mut messages = self.prepare(chat.messages)?;
        if chat.continue_final_message {
            if chat.add_generation_prompt {
                return Err(ChatTemplateError::TwoEndings);
            }
            let text = final_text(&mut messages).ok_or(ChatTemplateError::NothingToContinue)?;
            text.push_str(CONTINUE_TAG);
        }
        let prompt = self.render_prepared(&messages, chat)?;
        if chat.continue_final_message { cut_at_tag(prompt) } else { Ok(prompt) }
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What the template does with a message's content, found by trying.
    pub fn content_format(&self) -> ContentFormat {
        self.content
    }

    /// Whether the template shows an assistant's tool calls only where the content beside them is null, found by trying.
    pub fn calls_beside_null(&self) -> bool {
        self.calls_beside_null
    }

    fn render_prepared(&self, messages: &[Json], chat: &Chat<'_>) -> Result<String, ChatTemplateError> {
        let list = |items: Option<&[Json]>| {
            items.map_or_else(|| Value::from(()), |items| items.iter().map(jinja::value).collect::<Value>())
        };
        let mut context: Vec<(&str, Value)> =
            self.special_tokens.iter().map(|(name, text)| (*name, Value::from(text.as_str()))).collect();
        for (name, variable) in chat.variables.into_iter().flatten() {
            if RESERVED.contains(&name.as_str()) {
                return Err(ChatTemplateError::ReservedVariable { name: name.clone() });
            }
            context.push((name, jinja::value(variable)));
        }
        context.push(("messages", list(Some(messages))));
        context.push(("tools", list(chat.tools)));
        context.push(("documents", list(chat.documents)));
        context.push(("add_generation_prompt", Value::from(chat.add_generation_prompt)));
        let template = self.tool_use.as_ref().filter(|_| chat.tools.is_some()).unwrap_or(&self.default);
        let rendered = template.render(&context).map_err(ChatTemplateError::Render)?;
        rendered.map_err(|error| {
            let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
            while let Some(inner) = cause {
                if let Some(Raised(message)) = inner.downcast_ref() {
                    return ChatTemplateError::Refused(message.clone());
                }
                cause = inner.source();
            }
            match jinja::is_out_of_fuel(&error) {
                true => ChatTemplateError::TooMuchWork,
                false => ChatTemplateError::Render(jinja::describe(&error)),
            }
        })
    }

    /// Messages as the template wants them.
    fn prepare(&self, messages: &[Json]) -> Result<Vec<Json>, ChatTemplateError> {
        messages.iter().enumerate().map(|(index, message)| self.prepare_message(index, message)).collect()
    }

    fn prepare_message(&self, index: usize, message: &Json) -> Result<Json, ChatTemplateError> {
        let bad = |problem| ChatTemplateError::BadMessage { message: index, problem };
        let Json::Object(fields) = message else { return Err(bad(" must be an object")) };
        let mut fields = fields.clone();
        match (fields.get("content"), self.content) {
            (Some(Json::Array(parts)), format) => {
                let texts = texts(index, parts)?;
                if format == ContentFormat::String {
                    fields.insert("content".to_owned(), Json::from(texts.join("\n")));
                }
            }
            (Some(Json::String(text)), ContentFormat::PartsOnly) => {
                let part = serde_json::json!({"type": "text", "text": text});
                fields.insert("content".to_owned(), Json::Array(vec![part]));
            }
            (Some(Json::String(_) | Json::Null) | None, _) => {}
            (Some(_), _) => return Err(bad(".content must be a string, a list of parts or null")),
        }
        // Requests carry arguments as JSON text; templates were written for the object.
        let calls = fields.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten();
        for arguments in calls.filter_map(|call| call.pointer_mut("/function/arguments")) {
            if let Json::String(text) = arguments {
                let text = if text.trim().is_empty() { "{}" } else { text };
                if let Ok(object @ Json::Object(_)) = serde_json::from_str(text) {
                    *arguments = object;
                }
            }
        }
        // Clients send reasoning under one of three names, templates read one of the first two.
        let names = ["reasoning_content", "thinking", "reasoning"];
        if let Some(reasoning) = names.iter().find_map(|&name| fields.get(name).filter(|r| !r.is_null())).cloned() {
            fields.entry("thinking").or_insert_with(|| reasoning.clone());
            fields.insert("reasoning_content".to_owned(), reasoning);
        }
        Ok(Json::Object(fields))
    }

    /// Renders one message with each kind of content and looks which comes through.
    fn probe_content(&self) -> ContentFormat {
        const PROBE: &str = "Zq7content";
        let shows = |content: Json| {
            let message = serde_json::json!({"role": "user", "content": content});
            // A list printed as it is shows its keys.
            self.render_prepared(&[message], &PROBING).is_ok_and(|prompt| {
                prompt.contains(PROBE) && !prompt.contains("'type'") && !prompt.contains("\"type\"")
            })
        };
        match (shows(Json::from(PROBE)), shows(serde_json::json!([{"type": "text", "text": PROBE}]))) {
            (true, true) => ContentFormat::Parts,
            (false, true) => ContentFormat::PartsOnly,
            _ => ContentFormat::String,
        }
    }

    /// Renders a call beside null and beside an empty text and looks whether it comes through. Some templates want its
    /// arguments as an object, others as text.
    fn probe_calls(&self) -> bool {
        const PROBE: &str = "Zq7call";
        let shows = |content: Json, arguments: Json| {
            let function = serde_json::json!({"name": PROBE, "arguments": arguments});
            let calls = serde_json::json!([{"id": "123456789", "type": "function", "function": function}]);
            let messages = [
                serde_json::json!({"role": "user", "content": "x"}),
                serde_json::json!({"role": "assistant", "content": content, "tool_calls": calls}),
            ];
            self.render_prepared(&messages, &PROBING).is_ok_and(|prompt| prompt.contains(PROBE))
        };
        let ways = [serde_json::json!({}), Json::from("{}")];
        ways.iter().any(|way| shows(Json::Null, way.clone()))
            && !ways.iter().any(|way| shows(Json::from(""), way.clone()))
    }
}

/// The texts of a list of parts.
fn texts(message: usize, parts: &[Json]) -> Result<Vec<&str>, ChatTemplateError> {
    let text = |(part, json): (usize, &'_ Json)| {
        let kind = json.get("type").and_then(Json::as_str).unwrap_or("text");
        if kind != "text" {
            return Err(ChatTemplateError::UnsupportedPart { message, part, kind: kind.to_owned() });
        }
        Ok(())
    };
    parts.iter().enumerate().try_for_each(text)?;
    let no_text = ChatTemplateError::BadMessage { message, problem: ".content has a part without a \"text\" string" };
    parts.iter().map(|part| part.get("text").and_then(Json::as_str)).collect::<Option<_>>().ok_or(no_text)
}

/// The text at the end of the last message.
fn final_text(messages: &mut [Json]) -> Option<&mut String> {
    match messages.last_mut()?.get_mut("content")? {
        Json::String(text) => Some(text),
        Json::Array(parts) => match parts.iter_mut().rev().find_map(|part| part.get_mut("text"))? {
            Json::String(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

fn cut_at_tag(mut prompt: String) -> Result<String, ChatTemplateError> {
    let tag = CONTINUE_TAG.trim_end();
    let at = prompt.rfind(tag).ok_or(ChatTemplateError::FinalMessageLost)?;
    let trims = !prompt[at..].starts_with(CONTINUE_TAG);
    prompt.truncate(at);
    if trims {
        prompt.truncate(prompt.trim_end().len());
    }
    Ok(prompt)
}
