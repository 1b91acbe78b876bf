//! What commands say, above all when they cannot do what was asked.

use crate::process::{ask, fixture, powertrain, run, serve};
use std::{net::TcpListener, path::Path};

/// The command fails with code 2 and one line that says all of this.
#[track_caller]
fn check_refused(arguments: &[&str], expected: &[&str]) {
    let output = run(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    for part in expected {
        assert!(said.contains(part), "{arguments:?}: {said:?} lacks {part:?}");
    }
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn bad_models_are_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let good = std::fs::read(fixture("llama-F16.gguf")).unwrap();
    let truncated = file(folder.path(), "truncated.gguf", &good[..good.len() / 2]);
    let page = file(folder.path(), "page.gguf", b"<html>Not found</html>");
    let empty = file(folder.path(), "empty.gguf", b"");
    for command in ["serve", "inspect"] {
        check_refused(&[command, "no/such/model.gguf"], &["no/such/model.gguf", "no such file"]);
        check_refused(&[command, "gpt2"], &["\"gpt2\" is not a model"]);
        check_refused(&[command, folder.path().to_str().unwrap()], &["config.json"]);
        check_refused(&[command, &truncated], &["truncated.gguf"]);
        check_refused(&[command, &page], &["page.gguf", "web page"]);
        check_refused(&[command, &empty], &["empty.gguf"]);
        check_refused(&[command, "org/repository"], &["org/repository", "HF_HUB_OFFLINE"]);
    }
}

#[test]
fn what_does_not_fit_names_the_number_to_change() {
    let model = fixture("llama-F16.gguf");
    let model = model.to_str().unwrap();
    let refused = |flags: &[&str], expected: &[&str]| {
        check_refused(&[&["serve", model, "--port", "0", "--device", "reference"], flags].concat(), expected);
    };
    refused(&["--max-model-len", "1000000"], &["--max-model-len 1000000", "set it to at most"]);
    refused(&["--kv-cache-memory", "1"], &["set --kv-cache-memory to at least"]);
    refused(&["--kv-cache-memory", "900TiB"], &["--kv-cache-memory 900 TiB", "set it to at most"]);
    refused(
        &["--max-num-seqs", "64", "--max-num-batched-tokens", "8"],
        &["--max-num-batched-tokens 8", "set it to at least 64"],
    );
    refused(&["--block-size", "0"], &["--block-size is 0"]);
    refused(&["--dtype", "float16"], &["--dtype is for GPUs", "leave it out, or give --device cuda"]);
}

#[test]
fn a_taken_port_is_told_before_anything_is_loaded() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    check_refused(
        &["serve", fixture("llama-F16.gguf").to_str().unwrap(), "--port", &port],
        &["taken", "--port", &port],
    );
}

#[test]
fn the_cache_is_listed_and_what_is_not_there_cannot_be_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = powertrain();
        command.env("POWERTRAIN_CACHE", folder.path()).env("HF_HUB_CACHE", folder.path()).args(arguments);
        command.output().unwrap()
    };
    assert_eq!(
        String::from_utf8(run(&["models"]).stdout).unwrap(),
        "no model is cached; `powertrain pull` fetches one\n"
    );
    let refused = run(&["models", "rm", "smollm2"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("smollm2 is not in the cache"));
}

#[test]
fn what_would_measure_something_else_is_refused_before_anything_is_sent() {
    let nowhere = "/nonexistent/x.csv";
    for (arguments, part) in [
        (&["--no-stream", "--goodput", "tpot:5"][..], "of --goodput only e2e"),
        (&["--find-capacity", "rate", "--goodput", "e2e:5", "--concurrency", "4"], "--concurrency is for"),
        (&["--find-capacity", "concurrency", "--goodput", "e2e:5", "--request-rate", "4"], "--request-rate is for"),
        (&["--arrivals", "constant"], "are of open loops"),
        (&["--burstiness", "2", "--concurrency", "4"], "are of open loops"),
        (&["--request-rate", "5", "--arrivals", "poisson", "--burstiness", "2"], "asks for others"),
        (&["--prefix-tokens", "300", "--input-tokens", "100-300"], "shared whole"),
        (&["--csv", nowhere], "cannot write --csv"),
    ] {
        // Nobody listens there.
        let output = run(&[&["bench", "http://127.0.0.1:9"], arguments].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains(part), "{arguments:?}: {said}");
    }
    let model = fixture("gemma3-F16.gguf");
    let (model, text) = (model.to_str().unwrap(), "tests/cli/commands.rs");
    for (arguments, part) in
        [(["-o", "/nonexistent/x.json"], "cannot write --output"), (["--windows", "0"], "leaves nothing to score")]
    {
        let output = run(&[&["eval", "perplexity", model, "--file", text], &arguments[..]].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains(part), "{arguments:?}: {said}");
    }
}

#[test]
fn inspect_shows_what_a_model_is() {
    let output = run(&["inspect", "--tensors", fixture("gemma3-F16.gguf").to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "architecture    gemma3\n",
        "window 8, QK norm",
        "KV per token    ",
        " in int8 (the default on CPUs), ",
        "F16 ",
        "blk.0.attn_q.weight",
        "chat template",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn dummy_weights_need_only_a_config() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("qwen3/config.json"), folder.path().join("config.json")).unwrap();
    let server = serve(&[folder.path().to_str().unwrap(), "--load-format", "dummy", "--served-model-name", "made-up"]);
    let (status, answer) = ask(
        &server,
        "POST",
        "/v1/completions",
        r#"{"model": "made-up", "prompt": "Hello", "max_tokens": 3, "ignore_eos": true}"#,
    );
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains(r#""completion_tokens":3"#), "{answer}");
}

#[test]
fn streams_and_their_rate_are_two_settings_of_self_and_one_of_a_server() {
    let both = ["--concurrency", "2", "--request-rate", "10"];
    let itself = run(&[&["bench", "self", "--case", "status 500"][..], &both].concat());
    assert_eq!(itself.status.code(), Some(0), "{itself:?}");
    let server = run(&[&["bench", "http://127.0.0.1:9", "--model", "m"][..], &both].concat());
    assert_eq!(server.status.code(), Some(2));
    assert!(String::from_utf8(server.stderr).unwrap().contains("give one of the two"));
}
