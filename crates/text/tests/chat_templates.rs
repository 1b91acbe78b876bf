//! Chat templates render as transformers renders them, and fail as they should.

use powertrain_text::{Chat, ChatTemplate, ChatTemplateError, ChatTemplateSources, ContentFormat};
use serde_json::{Value as Json, json};
use std::path::Path;

#[path = "chat_templates/cases.rs"]
mod cases;

fn template(source: &str) -> ChatTemplate {
    compile(source).expect("a valid template")
}

fn compile(source: &str) -> Result<ChatTemplate, ChatTemplateError> {
    let sources = ChatTemplateSources { default: source.to_owned(), tool_use: None };
    ChatTemplate::with_clock(&sources, vec![("bos_token", "<s>".to_owned())], jiff::Zoned::now)
}

fn chat(messages: &[Json]) -> Chat<'_> {
    Chat {
        messages,
        tools: None,
        documents: None,
        add_generation_prompt: false,
        continue_final_message: false,
        variables: None,
    }
}

#[test]
fn renders_as_transformers_does() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let outcome =
        cases::compare(&fixtures.join("chat_templates"), &fixtures.join("chat_templates.json")).expect("readable");
    assert!(outcome.cases > 150);
    assert!(outcome.differences.is_empty(), "{}", outcome.differences.join("\n"));
}

#[test]
fn content_is_given_as_the_template_reads_it() {
    let parts = [json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})];
    let text = [json!({"role": "user", "content": "a"})];
    let string = template("{% for m in messages %}{{ m.content }}{% endfor %}");
    assert_eq!(string.content_format(), ContentFormat::String);
    assert_eq!(string.render(&chat(&parts)).expect("renders"), "a\nb");
    let only = template("{% for m in messages %}{% for p in m.content %}{{ p.text }}.{% endfor %}{% endfor %}");
    assert_eq!(only.content_format(), ContentFormat::PartsOnly);
    assert_eq!(only.render(&chat(&parts)).expect("renders"), "a.b.");
    assert_eq!(only.render(&chat(&text)).expect("renders"), "a.");
    let image = [json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]})];
    let error = string.render(&chat(&image)).expect_err("no images");
    assert_eq!(error, ChatTemplateError::UnsupportedPart { message: 0, part: 0, kind: "image_url".to_owned() });
}

#[test]
fn tool_call_arguments_become_objects() {
    let template = template("{{ messages[0].tool_calls[0].function.arguments.b.a }}");
    let call = json!({"type": "function", "function": {"name": "f", "arguments": "{\"b\": {\"a\": 7}}"}});
    let messages = [json!({"role": "assistant", "content": null, "tool_calls": [call]})];
    assert_eq!(template.render(&chat(&messages)).expect("renders"), "7");
}

#[test]
fn templates_that_want_null_beside_calls_are_known() {
    let calls = "{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments }}{% endfor %}";
    let each = |body: &str| template(&format!("{{% for m in messages %}}{body}{{% endfor %}}"));
    assert!(
        each(&format!("{{% if m.content is none %}}{calls}{{% else %}}{{{{ m.content }}}}{{% endif %}}"))
            .calls_beside_null()
    );
    assert!(!each(&format!("{{{{ m.role + m.content }}}}{calls}")).calls_beside_null());
    assert!(!each(&format!("{{{{ m.content or '' }}}}{calls}")).calls_beside_null());
    assert!(!each("{{ m.role + m.content }}").calls_beside_null());
}

#[test]
fn the_tool_template_serves_chats_with_tools() {
    let sources =
        ChatTemplateSources { default: "plain".to_owned(), tool_use: Some("{{ tools | length }} tools".to_owned()) };
    let template = ChatTemplate::with_clock(&sources, Vec::new(), jiff::Zoned::now).expect("valid");
    assert_eq!(template.render(&chat(&[])).expect("renders"), "plain");
    let tools = [json!({}), json!({})];
    assert_eq!(template.render(&Chat { tools: Some(&tools), ..chat(&[]) }).expect("renders"), "2 tools");
}

#[test]
fn mistakes_of_callers_are_named() {
    let template = template("{% for m in messages %}{{ m.content }}{% endfor %}");
    let variables = json!({"messages": 1});
    let error = template.render(&Chat { variables: variables.as_object(), ..chat(&[]) }).expect_err("reserved");
    assert_eq!(error, ChatTemplateError::ReservedVariable { name: "messages".to_owned() });
    let both = Chat { add_generation_prompt: true, continue_final_message: true, ..chat(&[]) };
    assert_eq!(template.render(&both).expect_err("both"), ChatTemplateError::TwoEndings);
    let nothing = Chat { continue_final_message: true, ..chat(&[]) };
    assert_eq!(template.render(&nothing).expect_err("nothing"), ChatTemplateError::NothingToContinue);
    assert!(matches!(template.render(&chat(&[json!("x")])), Err(ChatTemplateError::BadMessage { message: 0, .. })));
    let number = [json!({"role": "user", "content": 5})];
    assert!(matches!(template.render(&chat(&number)), Err(ChatTemplateError::BadMessage { message: 0, .. })));
}

#[test]
fn templates_that_do_not_compile_say_where() {
    let error = compile("a\n{% if %}").expect_err("invalid").to_string();
    assert!(error.contains("line 2"), "{error}");
}

#[test]
fn no_chat_runs_on() {
    let template = template(
        "{% for a in range(90000) %}{% for b in range(90000) %}{% for m in messages %}{{ m.role }}{% endfor %}{% endfor %}{% endfor %}",
    );
    assert_eq!(template.render(&chat(&[])).expect_err("bounded"), ChatTemplateError::TooMuchWork);
    assert_eq!(
        compile("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").map(|t| t.render(&chat(&[])).is_err()),
        Ok(true)
    );
}

#[test]
fn a_panic_of_the_template_engine_is_an_error() {
    assert!(matches!(
        template("{{ messages[::-1] | list }}").render(&chat(&[])),
        Err(ChatTemplateError::Render(_)) | Ok(_)
    ));
}

#[test]
fn long_renderings_are_whole_also_within_what_a_template_includes() {
    let long = "{% for i in range(3000) %}x{% endfor %}";
    assert_eq!(template(long).render(&chat(&[])).expect("renders"), "x".repeat(3000));
    let itself =
        format!("{{% if inner %}}{long}{{% else %}}{{% set inner = 1 %}}{{% include 'chat_template' %}}{{% endif %}}");
    assert_eq!(template(&itself).render(&chat(&[])).expect("renders"), "x".repeat(3000));
}
