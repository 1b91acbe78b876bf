//! A ground-truth server of another process or machine: told what to do and asked what it did over HTTP, on a connection of its own.
//!
//! Its clock is another one, so what it notes is compared as differences of times: the network's part of a TTFT is in the error, and
//! that a chunk was stamped after it was written cannot be checked.

use super::{Script, Truth, cases::target, server};
use crate::{Clock, Stop, http::Url, session::Session};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, io};

/// Takes a [`Script`] and forgets what was noted.
pub(super) const SCRIPT_ROUTE: &str = "PUT /ground-truth/script";
/// Hands notes over and forgets them.
pub(super) const NOTES_ROUTE: &str = "POST /ground-truth/notes";
/// Writes whose times go into one answer.
const WRITES_MAX: usize = 200_000;

/// Where one is.
#[derive(Clone, Debug)]
pub struct RemoteTruth {
    root: Url,
}

/// Some of the server's notes; none when there are no more.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Notes {
    answers: Vec<(String, Truth)>,
}

/// Takes as many notes as one answer carries.
pub(super) fn take_some(truths: &mut HashMap<String, Vec<Truth>>) -> Notes {
    let (mut notes, mut writes) = (Notes::default(), 0);
    while writes < WRITES_MAX
        && let Some(prompt) = truths.keys().next().cloned()
    {
        for truth in truths.remove(&prompt).into_iter().flatten() {
            // An answer without a chunk counts too: no answer is endless.
            writes += 1 + truth.writes.len();
            notes.answers.push((prompt.clone(), truth));
        }
    }
    notes
}

impl RemoteTruth {
    /// The server at an address.
    pub fn new(url: &Url) -> Self {
        Self { root: url.root() }
    }

    pub(super) fn chat(&self) -> Url {
        self.root.join("/v1/chat/completions")
    }

    /// Says how requests are answered from now on.
    pub(super) fn set(&self, script: &Script) -> io::Result<()> {
        self.ask(SCRIPT_ROUTE, Some(&serde_json::to_vec(script)?)).map(|_| ())
    }

    /// Fetches what it did since.
    pub(super) fn truths(&self) -> io::Result<server::Noted> {
        let mut truths = server::Noted::new();
        loop {
            let notes: Notes = serde_json::from_slice(&self.ask(NOTES_ROUTE, None)?)?;
            if notes.answers.is_empty() {
                return Ok(truths);
            }
            for (prompt, truth) in notes.answers {
                truths.entry(prompt).or_default().push(truth);
            }
        }
    }

    fn ask(&self, route: &str, body: Option<&[u8]>) -> io::Result<Vec<u8>> {
        let (method, path) = route.split_once(' ').unwrap_or((route, ""));
        let url = self.root.join(path);
        let reply = Session::new(&Stop::new())?.ask(&target(&url, Clock::start())?, method, &url, body);
        let reply = reply.map_err(|failure| io::Error::other(format!("{url}: {}", failure.message)))?;
        if reply.status == 200 {
            return Ok(reply.body);
        }
        let text = String::from_utf8_lossy(&reply.body[..reply.body.len().min(200)]).into_owned();
        Err(io::Error::other(format!(
            "{url} answered with status {}: {text}; start `powertrain bench ground-truth` there",
            reply.status
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ClientThreads, Priority,
        proof::{Ending, TruthServer, Verdict, Write, cases, prove},
    };
    use std::time::Duration;

    fn threads() -> ClientThreads {
        ClientThreads { count: Some(1), priority: Priority::Normal }
    }

    #[test]
    fn a_server_elsewhere_is_told_what_to_do_and_asked_what_it_did() {
        let address = "127.0.0.1:0".parse().unwrap();
        let server = TruthServer::listen(address, threads(), Script::default(), Clock::start()).unwrap();
        let remote = RemoteTruth::new(&format!("http://{}", server.address()).parse().unwrap());
        for mut case in cases(4, 1000.0, Duration::from_millis(20)) {
            case.requests = u64::from(case.concurrency);
            if let Some(script) = &mut case.script {
                // Quick ones: what is looked at is that each script was followed and its notes were found.
                (script.ttft, script.gap) = (Duration::ZERO, Duration::ZERO);
                script.stall = script.stall.map(|(chunk, _)| (chunk, Duration::from_millis(1)));
            }
            let result = prove(&case, threads(), Some(&remote), &Stop::new()).unwrap();
            let stalled = case.name.contains("stall");
            assert!(stalled || result.verdict != Verdict::Wrong, "{}: {}", case.name, result.found);
            assert!(!result.found.contains("unknown"), "{}: {}", case.name, result.found);
        }
    }

    #[test]
    fn what_no_ground_truth_understands_is_said() {
        let address = "127.0.0.1:0".parse().unwrap();
        let server = TruthServer::listen(address, threads(), Script::default(), Clock::start()).unwrap();
        let url: Url = format!("http://{}", server.address()).parse().unwrap();
        let endless = Script { chunks: 2_000_000, ..Script::default() };
        let error = RemoteTruth::new(&url).set(&endless).unwrap_err().to_string();
        assert!(error.contains("status 400") && error.contains("1,000,000 chunks"), "{error}");
        drop(server);
        let error = RemoteTruth::new(&url).truths().unwrap_err().to_string();
        assert!(error.contains("/ground-truth/notes"), "{error}");
    }

    #[test]
    fn notes_come_in_parts_and_whole() {
        let writes = vec![Write { at: 5, took: 7 }; WRITES_MAX / 2];
        let truth = |received| Truth { received, messages: 1, writes: writes.clone() };
        let mut truths: HashMap<String, Vec<Truth>> =
            (0..5).map(|number| (number.to_string(), vec![truth(number)])).collect();
        let (mut parts, mut taken) = (0, HashMap::<String, Truth>::new());
        loop {
            let text = serde_json::to_string(&take_some(&mut truths)).unwrap();
            let notes: Notes = serde_json::from_str(&text).unwrap();
            if notes.answers.is_empty() {
                break;
            }
            parts += 1;
            taken.extend(notes.answers);
        }
        assert_eq!((parts, taken.len()), (3, 5));
        assert!((0..5).all(|number| taken[&number.to_string()] == truth(number)));
        let script = Script { ending: Ending::Early(3), stall: Some((2, Duration::from_secs(1))), ..Script::default() };
        let read: Script = serde_json::from_str(&serde_json::to_string(&script).unwrap()).unwrap();
        assert_eq!((read.ending, read.stall, read.chunks), (script.ending, script.stall, script.chunks));
    }
}
