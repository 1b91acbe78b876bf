//! `sweep`, `compare` and `eval` as people run them, on the real model.

use crate::process::{powertrain, run, serve};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The object that a command prints.
#[track_caller]
fn printed(arguments: &[&str]) -> Value {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
}

fn text() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")
}

#[test]
fn a_run_in_which_every_request_failed_is_kept_and_is_no_success() {
    let server = serve(&["--max-model-len", "128"]);
    let folder = tempfile::tempdir().unwrap();
    let result = folder.path().join("result.json");
    let url = format!("http://{}", server.address);
    let arguments = ["bench", &url, "--model", "nobody", "--endpoint", "completions", "--prompt-token-ids", "100-200"];
    let load = ["--input-tokens", "8", "--max-tokens", "4", "--concurrency", "2", "--num-requests", "6", "--output"];
    let output = run(&[&arguments[..], &load, &[result.to_str().unwrap()]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("all 6 requests failed"), "{said}");
    let kept: Value = serde_json::from_slice(&fs::read(result).unwrap()).unwrap();
    assert_eq!(kept["levels"][0]["summary"]["requests"]["failed"], 6, "{kept:#}");
}

#[test]
fn a_sweep_of_ours_fills_the_table_and_its_proposals_run() {
    let folder = tempfile::tempdir().unwrap();
    let matrix = folder.path().join("ours.toml");
    let text = format!(
        "warmup_requests = 2
         [[server]]
         name = 'ours'
         command = ['{}', 'serve', 'smollm2', '--port', '{{port}}', '--max-model-len', '256', '--log-level', 'warn']
         ready_timeout_s = 120
         parameters = {{ max-num-seqs = [1, 4], kv-cache-memory = ['64MiB', '1KiB'] }}
         [[workload]]
         name = 'short'
         concurrency = [1, 2]
         num_requests = 12
         input_tokens = '32'
         output_tokens = '8'\n",
        env!("CARGO_BIN_EXE_powertrain")
    );
    fs::write(&matrix, text).unwrap();
    let matrix = matrix.to_str().unwrap();
    let listed = run(&["sweep", matrix, "--list"]);
    assert!(String::from_utf8(listed.stdout).unwrap().contains("--max-num-seqs 4 --kv-cache-memory 1KiB"));

    let output = run(&["sweep", matrix]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let results = folder.path().join("ours.sweep");
    let table: Value = serde_json::from_slice(&fs::read(results.join("sweep.json")).unwrap()).unwrap();
    let rows = table["rows"].as_array().unwrap();
    // Two configurations of two loads, and two whose cache is too small to start.
    assert_eq!(rows.len(), 6, "{table:#}");
    for row in rows {
        if row["parameters"][1][1] == "1KiB" {
            assert!(row["failure"]["reason"].as_str().unwrap().contains("before it was ready"), "{row:#}");
        } else {
            assert_eq!(row["numbers"]["completed"], 12, "{row:#}");
            assert!(row["startup"]["kv_tokens"].as_u64().unwrap() > 1000, "{row:#}");
        }
    }
    for name in ["sweep.md", "sweep.csv", "latency.toml", "latency.sh", "throughput.toml", "throughput.sh"] {
        assert!(results.join(name).exists(), "{name}");
    }

    let side = |name: &str| results.join(name).to_str().unwrap().to_owned();
    let runs = folder.path().join("runs");
    let arguments =
        ["compare", &side("latency.toml"), &side("throughput.toml"), "--interleave", "--pairs", "2", "--json"];
    let comparison = printed(&[&arguments[..], &["--num-requests", "12", "--output", runs.to_str().unwrap()]].concat());
    assert_eq!(comparison["paired"], true, "{comparison:#}");
    assert_eq!(comparison["levels"].as_array().unwrap().len(), 2);
    assert_eq!(comparison["levels"][0]["metrics"][0]["basis"], "between_runs");

    // The same runs compared with themselves: nothing differs, whatever the limit.
    let same = runs.join("a");
    let same = same.to_str().unwrap();
    let output = run(&["compare", same, same, "--fail-if", "ttft_mean>+0%", "--fail-if", "output_tokens_per_s<-0%"]);
    assert_eq!(output.status.code(), Some(0));
    // And with themselves at half the rate: CI is told by the exit code.
    let slower = folder.path().join("slower");
    fs::create_dir(&slower).unwrap();
    for name in ["0.json", "1.json"] {
        let mut run: Value = serde_json::from_slice(&fs::read(runs.join("a").join(name)).unwrap()).unwrap();
        for level in run["levels"].as_array_mut().unwrap() {
            let rate = &mut level["summary"]["throughput"]["output_tokens_per_s"];
            *rate = (rate.as_f64().unwrap() / 2.0).into();
        }
        fs::write(slower.join(name), run.to_string()).unwrap();
    }
    let output = run(&["compare", same, slower.to_str().unwrap(), "--fail-if", "output_tokens_per_s<-20%"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains("FAILED: -50.0 %"));
    let absent = run(&["compare", same, same, "--fail-if", "ttft_p99.9>+5%"]);
    assert_eq!(absent.status.code(), Some(2));
    assert!(String::from_utf8(absent.stderr).unwrap().contains("no load has this number"));
}

#[test]
fn perplexity_over_http_is_that_of_our_engine() {
    let text = text();
    let text = text.to_str().unwrap();
    let flags = ["--file", text, "--context", "64", "--windows", "6", "--json"];
    let ours = printed(&[&["eval", "perplexity"], &flags[..]].concat());
    let server = serve(&["--max-num-seqs", "4", "--max-model-len", "256"]);
    let url = format!("http://{}", server.address);
    let over_http = printed(&[&["eval", "perplexity", "--url", &url], &flags[..]].concat());
    assert_eq!((&over_http["windows_of"], &over_http["scoring"]), (&"tokens".into(), &"prompt_logprobs".into()));
    assert_eq!(over_http["tokens_scored"], ours["tokens_scored"]);
    let [ours, over_http] = [ours, over_http].map(|object| object["perplexity"].as_f64().unwrap());
    assert!((ours / over_http - 1.0).abs() < 1e-5, "{ours} {over_http}");
}

#[test]
fn divergence_is_zero_from_itself_and_small_from_eight_bits() {
    let text = text();
    let flags =
        ["--file", text.to_str().unwrap(), "--context", "64", "--windows", "4", "--max-model-len", "64", "--json"];
    let exact = ["--cpu-activations", "f32", "--kv-cache-dtype", "f32"];
    let same = printed(&[&["eval", "divergence"], &flags[..], &exact[..]].concat());
    assert_eq!((same["top1_agreement"].as_f64(), same["kl_divergence_max"].as_f64()), (Some(1.0), Some(0.0)));
    assert_eq!(same["perplexity"], same["perplexity_reference"]);
    let served = printed(&[&["eval", "divergence"], &flags[..]].concat());
    let number = |name: &str| served[name].as_f64().unwrap();
    assert!(number("top1_agreement") > 0.85, "{served:#}");
    assert!((1e-7..0.05).contains(&number("kl_divergence_mean")), "{served:#}");
    assert_eq!(served["tokens_scored"], 4 * 31);
}

#[test]
fn questions_are_judged() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("questions.jsonl");
    let lines = r#"{"kind": "facts", "question": "What is the capital of Japan?", "match": "words", "answers": ["Tokyo"]}
{"kind": "facts", "question": "What is the capital of Japan?", "match": "exact", "answers": ["Berlin"]}
"#;
    fs::write(&file, lines).unwrap();
    let server = serve(&["--max-num-seqs", "4", "--max-model-len", "256"]);
    let url = format!("http://{}", server.address);
    let path = file.to_str().unwrap();
    let result = folder.path().join("result.json");
    let arguments = ["eval", "questions", &url, "--questions", path, "--max-tokens", "16", "--output"];
    let output = powertrain().args(arguments).arg(&result).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("1 of 2"), "{said}");
    let object: Value = serde_json::from_slice(&fs::read(result).unwrap()).unwrap();
    assert_eq!((object["accuracy"].as_f64(), object["failed"].as_u64()), (Some(0.5), Some(0)));
    assert_eq!(object["format"], "powertrain-eval/1");
}
