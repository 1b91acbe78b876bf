//! Cases made by `scripts/make_chat_template_fixture.py`: chats, and what transformers rendered.

use powertrain_text::{Chat, ChatTemplate, ChatTemplateSources};
use serde_json::Value as Json;
use std::{collections::HashMap, error::Error, path::Path};

/// What a comparison found.
pub(crate) struct Outcome {
    pub(crate) cases: usize,
    /// A description for each.
    pub(crate) differences: Vec<String>,
}

/// Renders every case of `file` by its template in `folder`.
pub(crate) fn compare(folder: &Path, file: &Path) -> Result<Outcome, Box<dyn Error>> {
    let fixture: Json = serde_json::from_slice(&std::fs::read(file)?)?;
    let special_tokens: Vec<(&'static str, String)> = ["bos_token", "eos_token", "unk_token"]
        .into_iter()
        .map(|name| (name, fixture["special_tokens"][name].as_str().unwrap_or_default().to_owned()))
        .collect();
    let mut templates: HashMap<&str, Result<ChatTemplate, String>> = HashMap::new();
    let mut differences = Vec::new();
    let cases = fixture["cases"].as_array().ok_or("no cases")?;
    for case in cases {
        let name = case["template"].as_str().ok_or("a case without template")?;
        if !templates.contains_key(name) {
            let default = std::fs::read_to_string(folder.join(format!("{name}.jinja")))?;
            let sources = ChatTemplateSources { default, tool_use: None };
            let template = ChatTemplate::with_clock(&sources, special_tokens.clone(), clock);
            templates.insert(name, template.map_err(|error| error.to_string()));
        }
        let rendered = templates[name].as_ref().map_err(Clone::clone).and_then(|template| render(template, case));
        let description = match (rendered, case["expected"].as_str(), case["error"].as_str()) {
            (Ok(text), Some(expected), _) if text == expected => continue,
            (Ok(text), Some(expected), _) => format!("rendered {text:?}\n  expected {expected:?}"),
            (Err(error), Some(expected), _) => format!("failed with {error:?}\n  expected {expected:?}"),
            (Ok(text), None, error) => format!("rendered {text:?}\n  expected the error {error:?}"),
            // Of transformers' own refusals only the beginning is ours too.
            (Err(ours), None, Some(error)) if ours.contains(error) || ours.split(':').next() == error.get(..22) => {
                continue;
            }
            (Err(ours), None, error) => format!("failed with {ours:?}\n  expected the error {error:?}"),
        };
        differences.push(format!("{name} on {}: {description}", case["chat"]));
    }
    Ok(Outcome { cases: cases.len(), differences })
}

fn clock() -> jiff::Zoned {
    jiff::civil::date(2026, 3, 7).at(9, 5, 0, 0).to_zoned(jiff::tz::TimeZone::UTC).expect("a valid date")
}

fn render(template: &ChatTemplate, case: &Json) -> Result<String, String> {
    let list = |name: &str| case[name].as_array().map(Vec::as_slice);
    let chat = Chat {
        messages: list("messages").unwrap_or_default(),
        tools: list("tools"),
        documents: list("documents"),
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap_or(false),
        continue_final_message: case["continue_final_message"].as_bool().unwrap_or(false),
        variables: case["variables"].as_object(),
    };
    template.render(&chat).map_err(|error| error.to_string())
}
