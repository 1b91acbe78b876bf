//! SmolLM2 from the product's own cache, through the binary.

use crate::process::{Served, ask, fixture, powertrain, serve};
use serde_json::{Value, json};
use std::{path::Path, process::Command};

#[test]
fn the_default_model_is_served_until_sigterm() {
    let mut server = serve(&["--max-num-seqs", "4", "--max-model-len", "512", "--cpu-activations", "f32"]);
    assert_eq!(ask(&server, "GET", "/ready", "").0, 200);
    let question = r#"{"model": "smollm2", "temperature": 0, "max_tokens": 16,
        "messages": [{"role": "user", "content": "What is the capital of France?"}]}"#;
    let (status, answer) = ask(&server, "POST", "/v1/chat/completions", question);
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains("Paris"), "{answer}");
    let (_, facts) = ask(&server, "GET", "/v1/engine", "");
    assert!(facts.contains(r#""max_model_len":512"#), "{facts}");

    let process = server.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
    assert_eq!(server.process.wait().unwrap().code(), Some(0));
}

/// The greedy text of 20 prompts by transformers in f32 over the dequantised weights (`smollm2.py` beside the fixture), 32
/// tokens each. Two of them may part where two logits are all but equal.
#[test]
fn greedy_text_equals_that_of_transformers() {
    let server = serve(&[
        "--max-num-seqs",
        "20",
        "--max-model-len",
        "256",
        "--cpu-activations",
        "f32",
        "--kv-cache-dtype",
        "f32",
    ]);
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(fixture("smollm2.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 20);
    let prompts: Vec<&Value> = cases.iter().map(|case| &case["prompt"]).collect();
    let body = json!({"model": "smollm2", "prompt": prompts, "temperature": 0, "max_tokens": 32, "ignore_eos": true,
        "return_token_ids": true});
    let answer = complete(&server, &body);
    let choices = answer["choices"].as_array().unwrap();
    let parted: Vec<&Value> = cases
        .iter()
        .zip(choices)
        .filter(|(case, choice)| choice["token_ids"] != case["greedy"])
        .map(|(case, _)| &case["text"])
        .collect();
    assert!(parted.len() <= 2, "other text than transformers' after {parted:?}");
}

/// With activations in eight bits the most probable next token stays the same in at least 98 of 100 places where the exact
/// computation prefers it clearly.
#[test]
fn quantised_activations_agree_on_the_next_token() {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/wikitext-2-raw/wiki.test.raw");
    let Ok(text) = std::fs::read_to_string(&text) else {
        eprintln!("skipped: {} is not there", text.display());
        return;
    };
    // Whole characters, about 450 tokens each.
    let windows: Vec<String> =
        text.chars().collect::<Vec<_>>().chunks(2000).take(6).map(|w| w.iter().collect()).collect();
    let tops = |flags: &[&str]| -> Vec<Vec<(String, f64)>> {
        let server = serve(&[&["--max-num-seqs", "6", "--max-model-len", "1024"], flags].concat());
        let body = json!({"model": "smollm2", "prompt": windows, "max_tokens": 0, "echo": true, "logprobs": 2});
        let answer = complete(&server, &body);
        let choices = answer["choices"].as_array().unwrap().iter();
        choices.flat_map(|choice| choice["logprobs"]["top_logprobs"].as_array().unwrap()).map(most_probable).collect()
    };
    let exact = tops(&["--cpu-activations", "f32", "--kv-cache-dtype", "f32"]);
    let quantised = tops(&[]);
    assert_eq!(exact.len(), quantised.len());
    let clear = exact.iter().zip(&quantised).filter(|(exact, _)| exact.len() > 1 && exact[0].1 - exact[1].1 > 0.5);
    let (mut places, mut agree) = (0, 0);
    for (exact, quantised) in clear {
        places += 1;
        agree += usize::from(exact[0].0 == quantised[0].0);
    }
    assert!(places > 1000, "only {places} places are clear");
    assert!(agree * 100 >= places * 98, "{agree} of {places} agree");
}

/// Alternatives of one place, the most probable first; the first token of a text has none.
fn most_probable(place: &Value) -> Vec<(String, f64)> {
    let tokens = place.as_object().into_iter().flatten();
    let mut tokens: Vec<_> = tokens.map(|(token, logprob)| (token.clone(), logprob.as_f64().unwrap())).collect();
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1));
    tokens.truncate(2);
    tokens
}

fn complete(server: &Served, body: &Value) -> Value {
    let (status, answer) = ask(server, "POST", "/v1/completions", &body.to_string());
    assert_eq!(status, 200, "{answer}");
    serde_json::from_str(&answer).unwrap()
}

/// transformers 5 in f32 over the dequantised weights, by `scripts/perplexity_reference.py`: windows, and the sum of negative
/// log-likelihoods of their scored tokens.
const REFERENCE_WINDOWS: usize = 8;
const REFERENCE_NEGATIVE_LOG_LIKELIHOOD: f64 = 6450.436663897836;

#[test]
fn perplexity_equals_that_of_transformers() {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/wikitext-2-raw/wiki.test.raw");
    if !text.exists() {
        eprintln!("skipped: {} is not there", text.display());
        return;
    }
    let measure = |activations: &str| {
        let windows = REFERENCE_WINDOWS.to_string();
        let mut command = powertrain();
        command.args(["eval", "perplexity", "--json", "--file", text.to_str().unwrap(), "--windows", &windows]);
        let output = command.args(["--kv-cache-dtype", "f32", "--cpu-activations", activations]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["windows"], REFERENCE_WINDOWS);
        assert_eq!(result["tokens_scored"], REFERENCE_WINDOWS * 255);
        result["negative_log_likelihood"].as_f64().unwrap() / (REFERENCE_WINDOWS as f64 * 255.0)
    };
    let reference = REFERENCE_NEGATIVE_LOG_LIKELIHOOD / (REFERENCE_WINDOWS as f64 * 255.0);
    for (activations, tolerance) in [("f32", 0.001), ("int8", 0.005)] {
        let ratio = (measure(activations) - reference).exp();
        assert!((ratio - 1.0).abs() < tolerance, "{activations}: perplexity is {ratio} of the reference's");
    }
}
