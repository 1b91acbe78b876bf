//! The binary with the real model, called as its users call it: by the official `openai` Python client, in a virtual
//! environment made here. Without pip the tests say so and pass; with `CI=true` they fail.

mod served;

use served::{Served, python};

/// Runs one function of `suite.py` against a server.
fn suite(server: &Served, test: &str) {
    let Some(python) = python() else { return };
    let done = std::process::Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openai_client/suite.py"))
        .args([test, &server.address, &server.process_id().to_string()])
        .status()
        .expect("Python runs");
    assert!(done.success(), "{test} failed; its output is above");
}

#[test]
fn the_api_as_the_official_client_sees_it() {
    let server = Served::start(&[]);
    for test in ["chat", "completions", "streaming", "logprobs", "several", "stop", "seed", "errors", "crowd"] {
        suite(&server, test);
    }
    server.stop();
}

#[test]
fn a_full_queue_and_a_patient_stop() {
    let server = Served::start(&["--max-num-seqs", "1", "--max-queue", "1"]);
    suite(&server, "full_queue");
    suite(&server, "drain");
    server.ended();
}

#[test]
fn an_impatient_stop() {
    let server = Served::start(&["--shutdown-timeout", "0"]);
    suite(&server, "cut_short");
    server.ended();
}
