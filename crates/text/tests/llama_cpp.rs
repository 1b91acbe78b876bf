//! SmolLM2's ids equal llama.cpp's, and come back as text. The vocabulary is the real one (`scripts/make_vocabulary_fixture.py`),
//! the ids are llama-tokenize's (`scripts/make_token_fixture.py`).

use powertrain_model::Checkpoint;
use powertrain_text::{AddSpecial, Detokenizer, ParseSpecial, TokenId, TokenKind, Tokenizer};
use serde_json::Value as Json;
use std::{collections::HashSet, path::PathBuf, sync::LazyLock};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

static SMOLLM2: LazyLock<Tokenizer> = LazyLock::new(|| {
    let checkpoint = Checkpoint::open(&fixture("smollm2_vocabulary.gguf")).expect("the fixture is a GGUF file");
    Tokenizer::from_gguf(checkpoint.metadata().expect("with metadata")).expect("with a tokenizer")
});

fn encode(text: &str, parse: ParseSpecial) -> Vec<TokenId> {
    SMOLLM2.encode(text, AddSpecial::Yes, parse).expect("short enough")
}

fn ids(json: &Json) -> Vec<TokenId> {
    json.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as TokenId).collect()
}

#[test]
fn ids_equal_llama_cpps() {
    let cases: Json =
        serde_json::from_slice(&std::fs::read(fixture("smollm2_tokens.json")).expect("there")).expect("JSON");
    let cases = cases.as_array().expect("a list");
    assert!(cases.len() >= 250);
    for case in cases {
        let text = case["text"].as_str().expect("a text");
        let parsed = ids(&case["ids"]);
        let plain = case.get("ids_without_special").map_or_else(|| parsed.clone(), ids);
        // Twice: the second time words are remembered.
        for _ in 0..2 {
            assert_eq!(encode(text, ParseSpecial::Yes), parsed, "{text:?}");
            assert_eq!(encode(text, ParseSpecial::No), plain, "{text:?} without special tokens");
        }
    }
}

#[test]
fn ids_come_back_as_the_text() {
    let cases: Json =
        serde_json::from_slice(&std::fs::read(fixture("smollm2_tokens.json")).expect("there")).expect("JSON");
    // The vocabulary lacks some bytes that its training never saw; llama.cpp drops them too.
    let tokens = 0..SMOLLM2.vocab_size() as TokenId;
    let known: HashSet<u8> =
        tokens.filter_map(|id| <[u8; 1]>::try_from(SMOLLM2.token_bytes(id)).ok()).map(|[b]| b).collect();
    assert_eq!(known.len(), 256 - 21);
    let mut returned = 0;
    for case in cases.as_array().expect("a list") {
        let text = case["text"].as_str().expect("a text");
        if text.bytes().any(|byte| !known.contains(&byte)) {
            continue;
        }
        returned += 1;
        assert_eq!(SMOLLM2.decode(&encode(text, ParseSpecial::Yes), true), text);
        assert_eq!(SMOLLM2.decode(&encode(text, ParseSpecial::No), false), text, "user text has no hidden tokens");
    }
    assert!(returned > 150, "{returned} texts came back");
}

#[test]
fn special_ids_are_the_files() {
    assert_eq!(SMOLLM2.vocab_size(), 49152);
    assert_eq!((SMOLLM2.bos(), SMOLLM2.eos(), SMOLLM2.padding()), (Some(1), Some(2), Some(2)));
    assert_eq!(SMOLLM2.end_of_generation(), [0, 2]);
    assert_eq!(SMOLLM2.special_token("<|im_start|>"), Some(1));
    assert_eq!(SMOLLM2.special_token("<|im_start|>x"), None);
    assert_eq!(SMOLLM2.token_kind(1), Some(TokenKind::Control));
    assert_eq!((SMOLLM2.token_kind(49152), SMOLLM2.token_bytes(49152)), (None, &b""[..]));
    assert!(!SMOLLM2.adds_bos());
}

#[test]
fn streamed_text_is_the_decoded_text_for_any_ids() {
    for seed in 1..=300_u64 {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as TokenId
        };
        // Mostly tokens of single bytes, so that characters are torn and broken; some past the end.
        let ids: Vec<TokenId> =
            (0..80).map(|_| next()).map(|n| if n % 3 == 0 { n % 49200 } else { 17 + n % 300 }).collect();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| SMOLLM2.token_bytes(id)).copied().collect();
        let mut detokenizer = Detokenizer::continuing(true);
        let mut text = String::new();
        for &id in &ids {
            detokenizer.push(&SMOLLM2, id, &mut text);
        }
        detokenizer.finish(&mut text);
        assert_eq!(text, String::from_utf8_lossy(&bytes), "seed {seed}");
        assert_eq!(text, SMOLLM2.decode(&ids, true), "seed {seed}");
    }
}

#[test]
fn a_torn_character_waits_and_ends_as_one_replacement() {
    let smile = encode("\u{1F642}", ParseSpecial::No);
    assert!(smile.len() > 1, "one token would prove nothing");
    let mut detokenizer = Detokenizer::continuing(false);
    let mut text = String::new();
    for &id in &smile[..smile.len() - 1] {
        detokenizer.push(&SMOLLM2, id, &mut text);
        assert_eq!(text, "");
    }
    assert!(detokenizer.is_mid_character());
    let mut cut = detokenizer.clone();
    let mut cut_text = text.clone();
    cut.finish(&mut cut_text);
    cut.finish(&mut cut_text);
    assert_eq!(cut_text, "\u{FFFD}");
    detokenizer.push(&SMOLLM2, smile[smile.len() - 1], &mut text);
    detokenizer.finish(&mut text);
    assert_eq!(text, "\u{1F642}");
}

#[test]
fn a_long_word_is_no_attack() {
    // Quadratic merging of a quarter of a million letters would take minutes.
    for text in ["a".repeat(1 << 18), "ab ".repeat(90_000), "\u{0301}".repeat(90_000), " ".repeat(1 << 18)] {
        assert_eq!(SMOLLM2.decode(&encode(&text, ParseSpecial::No), false), text);
    }
}
