//! SmolLM2 from the product's own cache, through the binary.

use crate::process::{ask, powertrain, serve};
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
