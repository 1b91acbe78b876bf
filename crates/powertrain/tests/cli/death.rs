//! A server whose engine dies ends with a code of its own, so that its supervisor starts it anew.

use crate::process::{Served, ask, powertrain};
use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
};

/// On the scalar executor the prompt below takes the better part of a second, which the watchdog cannot miss.
const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_hidden_layers": 8, "vocab_size": 512, "max_position_embeddings": 512, "rms_norm_eps": 1e-5}"#;

#[test]
fn a_step_beyond_its_limit_ends_the_process_with_code_1_and_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    let mut command = powertrain();
    command.args(["serve", folder.path().to_str().unwrap(), "--load-format", "dummy", "--device", "reference"]);
    command.args(["--step-timeout", "0.001", "--port", "0"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
    let line = lines.into_iter().find(|line| line.contains("listening on")).expect("it listens");
    let mut served = Served { process, address: line.split("http://").last().unwrap().to_owned() };
    let ids: Vec<String> = (0..400).map(|id| (id % 500).to_string()).collect();
    let body = format!(r#"{{"prompt": [{}], "max_tokens": 1}}"#, ids.join(","));
    let (status, answer) = ask(&served, "POST", "/v1/completions", &body);
    assert_eq!(status, 500, "{answer}");
    assert!(answer.contains("step 1 (1 rows, 400 tokens) has not come back after"), "{answer}");
    assert!(answer.contains("--step-timeout is 0.001 s"), "{answer}");
    assert_eq!(served.process.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    served.process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.lines().last().unwrap().starts_with("error: the engine died: step 1 "), "{said}");
}
