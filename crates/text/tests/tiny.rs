//! Tiny tokenizers of every kind encode as their makers do: byte-level BPE from tokenizer.json and from a GGUF vocabulary as
//! the `tokenizers` package, SentencePiece as the `sentencepiece` package (and, but for tekken, all as llama.cpp). Made by
//! `scripts/make_tiny_tokenizers.py`.

use powertrain_model::Checkpoint;
use powertrain_text::{AddSpecial, ChatTemplateSources, ParseSpecial, TokenId, Tokenizer, TokenizerError};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny").join(name)
}

fn from_gguf(name: &str) -> Tokenizer {
    let checkpoint = Checkpoint::open(&folder(name).join("vocabulary.gguf")).expect("a GGUF file");
    Tokenizer::from_gguf(checkpoint.metadata().expect("metadata")).expect("a tokenizer")
}

fn from_folder(name: &str) -> Tokenizer {
    Tokenizer::from_folder(&folder(name)).expect("a tokenizer")
}

fn check(name: &str, tokenizer: &Tokenizer) {
    let fixture: Json = serde_json::from_slice(&std::fs::read(folder("ids.json")).expect("there")).expect("JSON");
    let ids = |kind: &str, at: usize| -> Option<Vec<TokenId>> {
        let ids = fixture["tokenizers"][name][kind][at].as_array()?;
        Some(ids.iter().map(|id| id.as_u64().expect("an id") as TokenId).collect())
    };
    let texts = fixture["texts"].as_array().expect("a list");
    assert!(texts.len() >= 90);
    for (at, text) in texts.iter().enumerate() {
        let text = text.as_str().expect("a text");
        let plain = tokenizer.encode(text, AddSpecial::No, ParseSpecial::No).expect("encodes");
        assert_eq!(Some(&plain), ids("plain", at).as_ref(), "{name}: {text:?} ({tokenizer:?})");
        let parsed = tokenizer.encode(text, AddSpecial::Yes, ParseSpecial::Yes).expect("encodes");
        if let Some(expected) = ids("parsed", at) {
            assert_eq!(parsed, expected, "{name}: {text:?} with special tokens ({tokenizer:?})");
        }
        // U+2581 is SentencePiece's own sign for a space, so it comes back as one.
        let sentence_piece = ["llama2", "gemma"].contains(&name);
        let back = if sentence_piece { text.replace('\u{2581}', " ") } else { text.to_owned() };
        assert_eq!(tokenizer.decode(&plain, false), back, "{name}");
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)), "{name}");
}

#[test]
fn byte_level_bpe_from_gguf() {
    for name in ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"] {
        check(name, &from_gguf(name));
    }
}

#[test]
fn byte_level_bpe_from_tokenizer_json() {
    for name in ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"] {
        let tokenizer = from_folder(name);
        check(name, &tokenizer);
        assert_eq!(tokenizer.end_of_generation(), [2, 3]);
        assert_eq!(tokenizer.adds_bos(), name == "llama-bpe");
    }
}

#[test]
fn both_paths_know_the_same_bytes() {
    for name in ["gpt-2", "qwen2"] {
        let (gguf, json) = (from_gguf(name), from_folder(name));
        assert_eq!(gguf.vocab_size(), json.vocab_size());
        for id in 0..gguf.vocab_size() as TokenId {
            assert_eq!(gguf.token_bytes(id), json.token_bytes(id), "{name} {id}");
            // A GGUF file can say that a token is the unknown one, tokenizer.json only that it is special.
            assert!(id == 0 || gguf.token_kind(id) == json.token_kind(id), "{name} {id}");
        }
    }
}

#[test]
fn sentence_piece_from_gguf() {
    check("llama2", &from_gguf("llama2"));
    check("gemma", &from_gguf("gemma"));
}

#[test]
fn a_folder_without_tokenizer_says_what_is_missing() {
    let error = Tokenizer::from_folder(&folder("llama2")).expect_err("no tokenizer.json").to_string();
    assert!(error.contains("tokenizer.json: not found"), "{error}");
    assert_eq!(ChatTemplateSources::from_folder(&folder("gpt-2")).expect("readable"), None);
    assert!(matches!(Tokenizer::from_folder(&folder("nowhere")), Err(TokenizerError::Invalid { .. })));
}
