//! Fields that would change the answer and that this server does not support: a quiet omission would be a wrong answer,
//! so they are refused. A value that asks for nothing (`null`, an empty list, the default) passes.

use crate::Fields;
use serde_json::Value;

/// Whether a field's value asks for nothing.
type Harmless = fn(&Value) -> bool;

/// Fields of both kinds of request, what in them is harmless, and what to say of the rest.
const REFUSED: &[(&str, Harmless, &str)] = &[
    ("audio", is_empty, "audio output is not supported"),
    ("allowed_token_ids", is_empty, "not supported; logit_bias can favour tokens"),
    ("bad_words", is_empty, "not supported; logit_bias can forbid tokens"),
    (
        "chat_template",
        is_empty,
        "a template of the request's own is not supported; the server's --chat-template decides",
    ),
    ("ebnf", is_empty, "grammars are not supported yet"),
    ("functions", is_empty, "function calls are not supported yet"),
    ("guided_choice", is_empty, "structured output is not supported yet"),
    ("guided_grammar", is_empty, "structured output is not supported yet"),
    ("guided_json", is_empty, "structured output is not supported yet"),
    ("guided_regex", is_empty, "structured output is not supported yet"),
    ("json_schema", is_empty, "structured output is not supported yet"),
    ("logits_processors", is_empty, "not supported"),
    ("modalities", is_text_only, "only [\"text\"] is supported"),
    ("prompt_embeds", is_empty, "prompts are text or token ids"),
    ("regex", is_empty, "structured output is not supported yet"),
    ("structured_outputs", is_empty, "structured output is not supported yet"),
    ("suffix", is_empty, "insertion is not supported"),
    ("truncate_prompt_tokens", is_empty, "not supported; send a shorter prompt"),
    ("use_beam_search", is_empty, "beam search is not supported"),
    ("web_search_options", is_empty, "web search is not supported"),
];

/// Notes a problem for every refused field that asks for something.
pub fn refuse(fields: &mut Fields, n: u32) {
    for (name, harmless, reason) in REFUSED {
        if let Some(value) = fields.take(name)
            && !harmless(&value)
        {
            fields.problem(*name, *reason);
        }
    }
    refuse_response_format(fields);
    refuse_tools(fields);
    if let Some(best_of) = fields.integer("best_of", 1..=crate::N_MAX)
        && !fields.has_problem("n")
    {
        let n = i64::from(n);
        if best_of > n {
            fields.problem("best_of", format!("{best_of} is above n {n}; choosing among more than n is not supported"));
        } else if best_of < n {
            fields.problem("best_of", format!("{best_of} is below n {n}; leave it out or send n"));
        }
    }
}

fn refuse_response_format(fields: &mut Fields) {
    let Some(mut format) = fields.object("response_format") else { return };
    match format.remove("type") {
        Some(Value::String(kind)) if kind == "text" => {}
        Some(Value::String(kind)) => {
            fields.problem("response_format.type", format!("{kind} is not supported yet; only text is"));
        }
        _ => fields.problem("response_format.type", "is missing; only text is supported"),
    }
}

/// Tools pass only where they cannot matter: an empty list, or `tool_choice: "none"`. With `auto` a model's call would
/// come back as plain text and the client would take it for an answer.
fn refuse_tools(fields: &mut Fields) {
    let choice = fields.take("tool_choice");
    let tools = fields.take("tools").filter(|tools| !is_empty(tools));
    let none = choice.as_ref().and_then(Value::as_str) == Some("none");
    let auto = choice.as_ref().is_none_or(|choice| choice.as_str() == Some("auto"));
    if !none && !auto {
        fields.problem("tool_choice", "tool calls are not supported yet; only \"none\" is");
    } else if tools.is_some() && !none {
        fields.problem("tools", "tool calls are not supported yet; leave them out or send tool_choice: \"none\"");
    }
    if let Some(call) = fields.take("function_call")
        && !matches!(call.as_str(), Some("none" | "auto"))
    {
        fields.problem("function_call", "function calls are not supported yet");
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn is_text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|items| items.iter().all(|item| item == "text"))
}
