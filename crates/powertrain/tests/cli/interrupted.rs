//! Ctrl-C, SIGTERM or a lost terminal during a measurement: what was measured is kept and marked.

use crate::process::{powertrain, run};
use powertrain_load::{
    Clock,
    proof::{Script, TruthServer},
};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::TcpListener,
    process::{Command, Stdio},
    time::Duration,
};

#[test]
fn an_interrupted_measurement_keeps_what_it_has() {
    keeps_what_it_has("-INT");
    keeps_what_it_has("-TERM");
    // Whoever is started to outlive its terminal (nohup) hands that on to what it starts.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    if u64::from_str_radix(ignored.trim(), 16).unwrap() & 1 == 0 {
        keeps_what_it_has("-HUP");
    } else {
        eprintln!("SIGHUP is ignored here: a lost terminal is not tried");
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

#[test]
fn a_bench_that_waits_for_a_silent_server_can_be_interrupted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = powertrain();
    client.args(["bench", &format!("http://{}", listener.local_addr().unwrap()), "--model", "silent"]);
    let mut client = client.args(["--num-requests", "1"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // It asks the server about itself, and gets no answer.
    let _asking = listener.accept().unwrap();
    let sent = Command::new("kill").args(["-INT", &client.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let mut said = String::new();
    client.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_ne!(client.wait().unwrap().code(), Some(0), "{said}");
    assert!(said.contains("interrupted before anything was measured"), "{said}");
}

#[test]
fn answers_without_content_are_no_success() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let (mut request, mut part) = (Vec::new(), [0; 4096]);
            // The body ends with the last bracket of its object.
            let whole = |request: &[u8]| {
                request.ends_with(b"}") || request.starts_with(b"GET") && request.ends_with(b"\r\n\r\n")
            };
            while !whole(&request) {
                let read = connection.read(&mut part).unwrap();
                if read == 0 {
                    break;
                }
                request.extend_from_slice(&part[..read]);
            }
            let answer =
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: [DONE]\n\n";
            // A client that left is no concern of this one.
            _ = connection.write_all(answer.as_bytes());
        }
    });
    let url = format!("http://{address}");
    let output = run(&["bench", &url, "--model", "empty", "--concurrency", "1", "--num-requests", "5"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("none of the 5 answers had any content"), "{said}");
}
