//! An idle server uses no CPU: not little, none. The kernel counts how often each thread was given a core; while nothing is
//! asked that count must not move, however slow or busy the machine is.

use crate::process::{ask, serve};
use std::{collections::BTreeMap, fs, io::Read, net::TcpStream, process::Child, time::Duration};

/// Longer than any timer a server could be forgiven for: what wakes up every second is seen.
const PERIOD: Duration = Duration::from_millis(1500);
/// After work, threads may need some of them to come to rest on a busy machine; one that polls never does.
const PERIODS_MAX: usize = 20;

#[test]
fn an_idle_server_is_never_scheduled_also_after_load() {
    let server = serve(&["--max-num-seqs", "8", "--max-model-len", "512"]);
    assert_comes_to_rest(&server.process, &server.address);
    let body = r#"{"model": "smollm2", "prompt": ["One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"],
        "max_tokens": 24, "ignore_eos": true, "stream": true}"#;
    let (status, answer) = ask(&server, "POST", "/v1/completions", body);
    assert_eq!(status, 200, "{answer}");
    assert_comes_to_rest(&server.process, &server.address);
}

/// Waits, on a connection where nothing is asked, for a period in which no thread ran.
fn assert_comes_to_rest(process: &Child, address: &str) {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(PERIOD)).unwrap();
    let mut ran = BTreeMap::new();
    for _ in 0..PERIODS_MAX {
        let before = times_scheduled(process);
        // Nothing comes; had the server closed the connection, this would not wait and the count would not rest.
        let waited = connection.read(&mut [0]);
        let after = times_scheduled(process);
        assert!(waited.is_err(), "the server ended an idle connection after less than {PERIOD:?}");
        if before == after {
            return;
        }
        ran = after;
        ran.retain(|thread, times| before.get(thread) != Some(times));
    }
    panic!("{PERIODS_MAX} periods of {PERIOD:?} without a request, and in the last these threads ran: {ran:?}");
}

/// How often each thread, by id and name, was given a core so far.
fn times_scheduled(process: &Child) -> BTreeMap<(String, String), u64> {
    let threads = fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
    let threads = threads.map(|thread| thread.unwrap().path());
    // A thread that ends meanwhile is not there next time, which is a difference too.
    let of_thread = |path: std::path::PathBuf| {
        let name = fs::read_to_string(path.join("comm")).ok()?.trim().to_owned();
        let counts = fs::read_to_string(path.join("schedstat")).ok()?;
        let times = counts.split_whitespace().nth(2)?.parse().expect("the third number is a count");
        Some(((path.file_name()?.to_string_lossy().into_owned(), name), times))
    };
    let counts: BTreeMap<_, _> = threads.filter_map(of_thread).collect();
    assert!(!counts.is_empty(), "the kernel does not count how often threads run (CONFIG_SCHED_INFO)");
    counts
}
