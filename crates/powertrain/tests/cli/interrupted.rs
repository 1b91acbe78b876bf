//! Ctrl-C, SIGTERM or a lost terminal during a measurement: what was measured is kept and marked.

use crate::process::powertrain;
use powertrain_load::{
    Clock,
    proof::{Script, TruthServer},
};
use serde_json::Value;
use std::{
    process::{Command, Stdio},
    time::Duration,
};

#[test]
fn an_interrupted_measurement_keeps_what_it_has() {
    for signal in ["-INT", "-TERM", "-HUP"] {
        keeps_what_it_has(signal);
    }
}

fn keeps_what_it_has(signal: &str) {
    let script = Script { gap: Duration::from_millis(2), ..Script::default() };
    let server = TruthServer::start(script, Clock::start()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    let mut client = powertrain();
    client.args(["bench", &format!("http://{}", server.address()), "--model", "truth", "--concurrency", "2,3"]);
    client.args(["--duration", "3600", "--output"]).arg(&path);
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Calibration asks for whole answers; those of the measurement are written chunk by chunk.
    let streamed = || server.truths().values().flatten().filter(|truth| !truth.writes.is_empty()).count();
    while streamed() < 40 {
        assert!(client.try_wait().unwrap().is_none(), "ended by itself");
        std::thread::yield_now();
    }
    let sent = Command::new("kill").args([signal, &client.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(client.wait().unwrap().code(), Some(0), "{signal}");

    let result: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((&result["complete"], result["levels"].as_array().unwrap().len()), (&Value::from(false), 1));
    let level = &result["levels"][0];
    assert_eq!(level["interrupted"], true);
    let requests = &level["summary"]["requests"];
    assert!(requests["completed"].as_u64().unwrap() >= 20, "{requests}");
    assert_eq!(requests["failed"], 0, "what this client gave up is no failure of the server: {requests}");
    let events = std::fs::read_to_string(folder.path().join("run.events.jsonl")).unwrap();
    let all = requests["sent"].as_u64().unwrap() + requests["warmup"].as_u64().unwrap();
    assert_eq!(events.lines().count() as u64, all);
}
