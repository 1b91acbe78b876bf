//! What stands in the files of a Hugging Face folder: templates in their three places, special tokens in their two forms,
//! SentencePiece-like tokenizer.json, and files that are not what they should be.

use powertrain_text::{AddSpecial, ChatTemplateSources, ParseSpecial, TokenKind, Tokenizer};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

fn folder(files: &[(&str, String)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, contents) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("inside the folder")).expect("created");
        std::fs::write(path, contents).expect("written");
    }
    folder
}

/// In the manner of Llama 2: spaces as U+2581, one put before text, bytes for what is missing.
fn llama2_json() -> Json {
    let mut vocabulary = serde_json::Map::new();
    let mut add = |token: String| vocabulary.insert(token, Json::from(0));
    for token in ["<unk>", "<s>", "</s>"] {
        add(token.to_owned());
    }
    for byte in 0..=255 {
        add(format!("<0x{byte:02X}>"));
    }
    for token in ["▁", "h", "i", "hi", "▁hi"] {
        add(token.to_owned());
    }
    for (id, value) in vocabulary.values_mut().enumerate() {
        *value = Json::from(id);
    }
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocabulary, "merges": ["h i", "▁ hi"]},
    })
}

fn tokenizer_error(folder: &TempDir) -> String {
    Tokenizer::from_folder(folder.path()).expect_err("a bad folder").to_string()
}

#[cfg(target_os = "linux")]
#[test]
fn a_device_is_not_read() {
    let folder = folder(&[("tokenizer.json", llama2_json().to_string())]);
    std::os::unix::fs::symlink("/dev/zero", folder.path().join("tokenizer_config.json")).expect("a link");
    let error = tokenizer_error(&folder);
    assert!(error.contains("no regular file") && error.contains("tokenizer_config.json"), "{error}");
}

#[test]
fn sentence_piece_like_tokenizer_json() {
    let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>"});
    let folder = folder(&[
        ("tokenizer.json", llama2_json().to_string()),
        ("tokenizer_config.json", config.to_string()),
        ("config.json", json!({"eos_token_id": 2}).to_string()),
    ]);
    let tokenizer = Tokenizer::from_folder(folder.path()).expect("a tokenizer");
    let (space, hi, space_hi) = (259, 262, 263);
    assert_eq!(tokenizer.token_bytes(space), b" ");
    assert_eq!(tokenizer.token_bytes(space_hi), b" hi");
    assert_eq!((tokenizer.token_bytes(3 + 0xE2), tokenizer.token_kind(3 + 0xE2)), (&[0xE2][..], Some(TokenKind::Byte)));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.end_of_generation()), (Some(1), Some(2), &[2][..]));
    assert!(tokenizer.adds_bos());
    let ids = tokenizer.encode("hi hi€</s>", AddSpecial::Yes, ParseSpecial::Yes).expect("encodes");
    assert_eq!(ids, [1, space_hi, space_hi, 3 + 0xE2, 3 + 0x82, 3 + 0xAC, 2]);
    assert_eq!(tokenizer.decode(&ids, false), "hi hi€");
    assert_eq!(tokenizer.decode(&ids, true), "<s>hi hi€</s>");
    assert_eq!(tokenizer.decode(&[hi, space_hi], false), "hi hi");
    let plain = tokenizer.encode("</s>", AddSpecial::No, ParseSpecial::No).expect("encodes");
    assert!(!plain.contains(&2), "text is no control token: {plain:?}");
    assert_eq!(
        tokenizer.named_special_tokens()[..2],
        [("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())]
    );
}

#[test]
fn chat_templates_in_their_places() {
    let check = |files: &[(&str, String)], expected: Option<(&str, Option<&str>)>| {
        let sources = ChatTemplateSources::from_folder(folder(files).path()).expect("readable");
        let expected = expected.map(|(default, tool_use)| ChatTemplateSources {
            default: default.into(),
            tool_use: tool_use.map(str::to_owned),
        });
        assert_eq!(sources, expected);
    };
    let field = ("tokenizer_config.json", json!({"chat_template": "field"}).to_string());
    let list = json!({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]});
    check(&[], None);
    check(&[("tokenizer_config.json", "{}".to_owned())], None);
    check(std::slice::from_ref(&field), Some(("field", None)));
    check(&[("tokenizer_config.json", list.to_string())], Some(("D", Some("T"))));
    check(&[("chat_template.json", json!({"chat_template": "J"}).to_string())], Some(("J", None)));
    check(&[field, ("chat_template.jinja", "file".to_owned())], Some(("file", None)));
    let tools = ("additional_chat_templates/tool_use.jinja", "tools".to_owned());
    check(&[("chat_template.jinja", "file".to_owned()), tools], Some(("file", Some("tools"))));
    let nameless =
        folder(&[("tokenizer_config.json", json!({"chat_template": [{"name": "x", "template": "y"}]}).to_string())]);
    let error = ChatTemplateSources::from_folder(nameless.path()).expect_err("no default").to_string();
    assert!(error.contains("tokenizer_config.json") && error.contains("default"), "{error}");
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let broken = tokenizer_error(&folder(&[("tokenizer.json", "{".to_owned())]));
    assert!(broken.contains("tokenizer.json"), "{broken}");
    let mut json = llama2_json();
    json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let decoder = tokenizer_error(&folder(&[("tokenizer.json", json.to_string())]));
    assert!(decoder.contains("WordPiece") && decoder.contains("ByteLevel"), "{decoder}");
    let json = ("tokenizer.json", llama2_json().to_string());
    let config = tokenizer_error(&folder(&[json, ("generation_config.json", "[".to_owned())]));
    assert!(config.contains("generation_config.json"), "{config}");
    let missing = tokenizer_error(&folder(&[("tokenizer.model", String::new())]));
    assert!(missing.contains("tokenizer.json") && missing.contains("tokenizer.model"), "{missing}");
}
