//! The OpenAI API as a client sees it: the body of a request, and what a chunk of the answer holds.
//!
//! Reading is lenient where servers differ and counts characters instead of copying text: a chunk costs a microsecond.

use crate::record::Usage;
use serde::{
    Deserialize,
    de::{self, Deserializer, IgnoredAny, Visitor},
};
use serde_json::{Map, Value, json};
use std::{borrow::Cow, fmt};

/// Which of the two routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

/// What a request asks about.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Plain text; for chat the one message of the user.
    Text(String),
    /// Messages as given, for chat only.
    Messages(Vec<Value>),
    /// Token ids, for completions only.
    Tokens(Vec<u32>),
}

/// What all requests of a run have in common.
#[derive(Clone, Debug)]
pub struct RequestOptions {
    /// The route.
    pub api: Api,
    /// The model's name as the server knows it.
    pub model: String,
    /// Ask for a stream of events.
    pub stream: bool,
    /// Ask for token counts in every chunk (vLLM's `continuous_usage_stats`).
    pub usage_per_chunk: bool,
    /// Generate to the limit whatever the model says (vLLM's extension).
    pub ignore_eos: bool,
    /// Sampling temperature; the server's default where none.
    pub temperature: Option<f64>,
    /// Fields set last, over all others; null removes one.
    pub extra_body: Map<String, Value>,
}

impl Api {
    /// The route's path under `/v1`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completions => "/completions",
        }
    }
}

impl RequestOptions {
    /// The JSON body of one request.
    pub fn body(&self, prompt: &Prompt, output_tokens_max: u32) -> Vec<u8> {
        let mut body = Map::new();
        body.insert("model".into(), self.model.clone().into());
        match (self.api, prompt) {
            (Api::Chat, Prompt::Text(text)) => {
                body.insert("messages".into(), json!([{"role": "user", "content": text}]));
            }
            (_, Prompt::Messages(messages)) => _ = body.insert("messages".into(), messages.clone().into()),
            (Api::Completions, Prompt::Text(text)) => _ = body.insert("prompt".into(), text.clone().into()),
            (_, Prompt::Tokens(tokens)) => _ = body.insert("prompt".into(), tokens.clone().into()),
        }
        body.insert("max_tokens".into(), output_tokens_max.into());
        if let Some(temperature) = self.temperature {
            body.insert("temperature".into(), temperature.into());
        }
        if self.ignore_eos {
            body.insert("ignore_eos".into(), true.into());
        }
        body.insert("stream".into(), self.stream.into());
        if self.stream {
            let mut options = Map::new();
            options.insert("include_usage".into(), true.into());
            if self.usage_per_chunk {
                options.insert("continuous_usage_stats".into(), true.into());
            }
            body.insert("stream_options".into(), options.into());
        }
        for (name, value) in &self.extra_body {
            match value {
                Value::Null => _ = body.remove(name),
                value => _ = body.insert(name.clone(), value.clone()),
            }
        }
        Value::from(body).to_string().into_bytes()
    }
}

/// What one event, or a whole non-streamed body, holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// It carries a choice, be it only a role or a finish reason.
    pub has_choice: bool,
    /// Characters of text, reasoning, refusal, or of a tool call's name and arguments.
    pub characters: u32,
    /// Why the answer ended, in the last part that has a choice.
    pub finish_reason: Option<String>,
    /// Token counts, final or so far.
    pub usage: Option<Usage>,
    /// The server's error.
    pub error: Option<String>,
}

impl Part {
    /// Reads an event's data or a body.
    ///
    /// # Errors
    /// When it is not JSON of the API's shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let wire: Wire<'_> = serde_json::from_slice(bytes)?;
        let mut part = wire.choices;
        part.usage = wire.usage.map(UsageWire::counts);
        if let Some(error) = wire.error {
            part.error = Some(error_message(&error));
        } else if wire.object.as_deref() == Some("error") {
            let message = wire.message.map(Cow::into_owned);
            part.error = Some(message.unwrap_or_else(|| "an error without a message".to_owned()));
        }
        Ok(part)
    }

    fn add(&mut self, choice: Choice) {
        self.has_choice = true;
        self.finish_reason = self.finish_reason.take().or(choice.finish_reason);
        let delta = choice.delta.or(choice.message);
        self.characters += choice.text.0 + delta.map_or(0, |delta| delta.characters());
    }
}

/// Appends the content of a chunk or a whole answer, reasoning left out, to `text`; what is none adds nothing.
pub fn append_text(bytes: &[u8], text: &mut String) {
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let content = |name: &str| value.pointer(&format!("/choices/0/{name}")).and_then(Value::as_str);
    text.extend(content("delta/content").or_else(|| content("message/content")).or_else(|| content("text")));
}

/// The message inside an error, whatever its shape.
pub fn error_message(error: &Value) -> String {
    let inner = error.get("error").unwrap_or(error);
    let message = inner.get("message").or_else(|| error.get("detail")).unwrap_or(inner);
    message.as_str().map_or_else(|| message.to_string(), str::to_owned)
}

/// A chunk as it is written; reading one of content copies nothing.
#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(default, deserialize_with = "choices")]
    choices: Part,
    #[serde(default)]
    usage: Option<UsageWire>,
    #[serde(default)]
    error: Option<Value>,
    #[serde(default, borrow)]
    object: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    message: Option<Cow<'a, str>>,
}

/// Adds up the choices of a chunk, null as none.
fn choices<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Part, D::Error> {
    struct Choices;
    impl<'de> Visitor<'de> for Choices {
        type Value = Part;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of choices")
        }

        fn visit_unit<E: de::Error>(self) -> Result<Part, E> {
            Ok(Part::default())
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut sequence: A) -> Result<Part, A::Error> {
            let mut part = Part::default();
            while let Some(choice) = sequence.next_element()? {
                part.add(choice);
            }
            Ok(part)
        }
    }
    deserializer.deserialize_any(Choices)
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    message: Option<Delta>,
    #[serde(default)]
    text: Characters,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Characters,
    #[serde(default)]
    reasoning_content: Characters,
    #[serde(default)]
    reasoning: Characters,
    #[serde(default)]
    refusal: Characters,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
}

#[derive(Deserialize)]
struct ToolCall {
    #[serde(default)]
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    #[serde(default)]
    name: Characters,
    #[serde(default)]
    arguments: Characters,
}

impl Delta {
    fn characters(&self) -> u32 {
        let calls = self.tool_calls.iter().flatten().filter_map(|call| call.function.as_ref());
        // Some servers send reasoning under both names.
        self.content.0
            + self.reasoning_content.0.max(self.reasoning.0)
            + self.refusal.0
            + calls.map(|function| function.name.0 + function.arguments.0).sum::<u32>()
    }
}

#[derive(Deserialize)]
struct UsageWire {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: Option<u32>,
    #[serde(default)]
    cached_tokens: Option<u32>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u32>,
}

impl UsageWire {
    fn counts(self) -> Usage {
        let cached_tokens = self.prompt_tokens_details.and_then(|details| details.cached_tokens);
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens.unwrap_or(0),
            cached_tokens: cached_tokens.or(self.cached_tokens),
        }
    }
}

/// The length of a string that is not kept; 0 for null and for anything that is no string.
#[derive(Default)]
struct Characters(u32);

impl<'de> Deserialize<'de> for Characters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Characters;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Characters, E> {
                Ok(Characters(u32::try_from(text.chars().count()).unwrap_or(u32::MAX)))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Characters, E> {
                Ok(Characters(0))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut sequence: A) -> Result<Characters, A::Error> {
                while sequence.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Characters(0))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Characters, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Characters(0))
            }
        }
        deserializer.deserialize_any(Count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(event: &str, expected: Part) {
        assert_eq!(Part::parse(event.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn content_is_told_from_what_comes_with_it() {
        let choice = |characters| Part { has_choice: true, characters, ..Part::default() };
        check(r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#, choice(0));
        check(r#"{"choices":[{"delta":{"role":"assistant"}}]}"#, choice(0));
        check(r#"{"choices":[{"delta":{"content":"h\u00e9\n🙂"}}]}"#, choice(4));
        check(r#"{"choices":[{"text":" a","logprobs":null}]}"#, choice(2));
        check(r#"{"choices":[{"delta":{"content":null,"reasoning_content":"abc","reasoning":"abc"}}]}"#, choice(3));
        check(r#"{"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}}]}"#, choice(3));
        check(r#"{"choices":[{"message":{"role":"assistant","content":"ok"}}]}"#, choice(2));
        let finished = Some("stop".to_owned());
        check(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, Part { finish_reason: finished, ..choice(0) });
    }

    #[test]
    fn texts_are_kept_for_the_next_turn() {
        let mut text = String::new();
        for chunk in [
            r#"{"choices":[{"delta":{"role":"assistant","content":"a"}}]}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#,
            r#"{"choices":[{"delta":{"content":"\u00e9"}}]}"#,
            r#"{"choices":[]}"#,
            "[DONE]",
            r#"{"choices":[{"message":{"content":"b"}}]}"#,
            r#"{"choices":[{"text":"c"}]}"#,
        ] {
            append_text(chunk.as_bytes(), &mut text);
        }
        assert_eq!(text, "aébc");
    }

    #[test]
    fn usage_is_read_in_every_shape() {
        let usage = |cached_tokens| Part {
            usage: Some(Usage { prompt_tokens: 5, completion_tokens: 2, cached_tokens }),
            ..Part::default()
        };
        check(r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}"#, usage(None));
        let details = r#"{"choices":null,"usage":{"prompt_tokens":5,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}}"#;
        check(details, usage(Some(4)));
        check(r#"{"usage":null}"#, Part::default());
    }

    #[test]
    fn errors_are_found_in_every_shape() {
        let error = |message: &str| Part { error: Some(message.to_owned()), ..Part::default() };
        check(r#"{"error":{"message":"no room","code":503}}"#, error("no room"));
        check(r#"{"error":"plain"}"#, error("plain"));
        check(r#"{"object":"error","message":"old vLLM"}"#, error("old vLLM"));
        assert!(Part::parse(b"<html>").is_err());
        assert_eq!(error_message(&json!({"detail": "FastAPI"})), "FastAPI");
    }

    #[test]
    fn bodies_say_what_was_asked() {
        let mut options = RequestOptions {
            api: Api::Chat,
            model: "m".into(),
            stream: true,
            usage_per_chunk: true,
            ignore_eos: true,
            temperature: Some(0.0),
            extra_body: Map::new(),
        };
        let body = |options: &RequestOptions, prompt| String::from_utf8(options.body(&prompt, 8)).unwrap();
        assert_eq!(
            body(&options, Prompt::Text("hi".into())),
            r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":8,"temperature":0.0,"ignore_eos":true,"#
                .to_owned()
                + r#""stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#
        );
        options.extra_body = json!({"max_tokens": null, "max_completion_tokens": 9}).as_object().unwrap().clone();
        options =
            RequestOptions { api: Api::Completions, stream: false, ignore_eos: false, temperature: None, ..options };
        let text = body(&options, Prompt::Tokens(vec![1, 2]));
        assert_eq!(text, r#"{"model":"m","prompt":[1,2],"stream":false,"max_completion_tokens":9}"#);
    }
}
