//! Chat messages, as chat templates want them.

use crate::{Fields, Problems, fields::shown};
use serde::Serialize;
use serde_json::{Map, Value};

/// Roles that clients may use.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// One message. Serialises to what templates read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`. OpenAI's `developer` is `system` under a new name and becomes it, as
    /// templates do not know it.
    pub role: String,
    /// The text; several text parts are joined by newlines. `None` only beside tool calls, and then mostly rendered as an
    /// empty text.
    pub content: Option<String>,
    /// The speaker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the assistant thought before it spoke.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls the assistant made, as they were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<Value>>,
    /// The call that this message of a tool answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// Reads `messages`.
    pub(crate) fn read_all(fields: &mut Fields) -> Vec<Self> {
        let Some(items) = fields.array("messages") else {
            if !fields.has_problem("messages") {
                fields.problem("messages", "is missing");
            }
            return Vec::new();
        };
        if items.is_empty() {
            fields.problem("messages", "is empty; at least one message is needed");
        }
        let mut messages = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let place = format!("messages[{index}]");
            match item {
                Value::Object(map) => match Self::read(map) {
                    Ok(message) => messages.push(message),
                    Err(problems) => fields.problems_of(&place, problems),
                },
                other => fields.problem(place, format!("{} is not an object", shown(&other))),
            }
        }
        messages
    }

    fn read(map: Map<String, Value>) -> Result<Self, Problems> {
        let mut fields = Fields::new(map);
        let role = fields.string("role").unwrap_or_default();
        if role.is_empty() && !fields.has_problem("role") {
            fields.problem("role", "is missing");
        } else if !role.is_empty() && !ROLES.contains(&role.as_str()) {
            fields.problem("role", format!("{role:?} is not one of {}", ROLES.join(", ")));
        }
        let tool_calls = fields.array("tool_calls").filter(|calls| !calls.is_empty());
        let content = read_content(&mut fields);
        if content.is_none() && tool_calls.is_none() && !fields.has_problem("content") {
            fields.problem("content", "is missing");
        }
        let message = Self {
            role: if role == "developer" { "system".to_owned() } else { role },
            content,
            name: fields.string("name"),
            reasoning_content: fields.string("reasoning_content").or_else(|| fields.string("reasoning")),
            tool_calls,
            tool_call_id: fields.string("tool_call_id"),
        };
        let problems = fields.into_problems();
        if problems.0.is_empty() { Ok(message) } else { Err(problems) }
    }
}

/// A string, or a list of text parts.
fn read_content(fields: &mut Fields) -> Option<String> {
    let parts = match fields.take("content")? {
        Value::String(text) => return Some(text),
        Value::Array(parts) => parts,
        other => return fields.wrong_kind("content", &other, "a string or an array of parts"),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let place = format!("content[{index}]");
        match part {
            Value::String(text) => texts.push(text),
            Value::Object(mut part) => {
                let text = part.remove("text").or_else(|| part.remove("refusal"));
                match (part.get("type").and_then(Value::as_str), text) {
                    (Some("text" | "input_text" | "output_text" | "refusal") | None, Some(Value::String(text))) => {
                        texts.push(text);
                    }
                    (Some("text") | None, _) => fields.problem(format!("{place}.text"), "is missing"),
                    (Some(kind), _) => {
                        fields.problem(
                            format!("{place}.type"),
                            format!("{kind} is not supported; this server reads text"),
                        );
                    }
                }
            }
            other => fields.problem(place, format!("{} is not a part", shown(&other))),
        }
    }
    Some(texts.join("\n"))
}
