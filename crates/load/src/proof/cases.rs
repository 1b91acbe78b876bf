//! The traps, each a server's script and what a right measurement of it says.

use super::{
    Ending, RemoteTruth, Script, TruthServer,
    errors::{Errors, OneClock},
};
use crate::{
    client_health::ClientHealth,
    clock::Clock,
    definitions::Objectives,
    exchange::Target,
    http::{Connector, Limits, Trust, Url},
    live::Live,
    openai::{Api, RequestOptions},
    priority::ClientThreads,
    run::{Level, LevelRun, run_level},
    schedule::{Load, Until},
    stop::Stop,
    summary::Summary,
    work::{Calibration, Lengths, Prompts, Synthetic, WORDS, Work},
};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};

/// A server that wrote at least this share of the rate asked has offered that rate.
pub const WRITTEN_SHARE_MIN: f64 = 0.95;

/// One trap.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is about.
    pub name: &'static str,
    /// How the server behaves; none where nobody listens.
    pub script: Option<Script>,
    /// Clients.
    pub concurrency: u32,
    /// Requests.
    pub requests: u64,
    /// What must be found.
    expected: Expected,
}

#[derive(Clone, Copy, Debug)]
enum Expected {
    /// All complete, with the server's instants.
    Instants,
    /// All complete, with so many tokens per chunk.
    TokensPerChunk(f64),
    /// All complete, the longest gap at least this.
    LongestGap(Duration),
    /// All cut off, for this class.
    CutOff(&'static str),
    /// All failed, for this class.
    Failed(&'static str),
}

/// How a measurement compares with what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every count, class and instant, within the limits of error.
    Right,
    /// Likewise, but the server wrote at less than [`WRITTEN_SHARE_MIN`] of the rate asked: nothing is shown of that rate.
    BelowRate,
    /// Every count and class, but instants beyond the limits: too much load for this machine now, or too little CPU left.
    Late,
    /// A count or class.
    Wrong,
}

/// What came of a case.
#[derive(Clone, Debug)]
pub struct CaseResult {
    /// The case.
    pub name: &'static str,
    /// Whether the measurement says what the server did.
    pub verdict: Verdict,
    /// What was found, in one line.
    pub found: String,
    /// The rate at which a stream's chunks were written, as a share of the one asked; none where the case asks for none.
    pub written_share: Option<f64>,
    /// The client's own state meanwhile.
    pub client: ClientHealth,
}

/// All cases; the last is the load of `streams` streams at `rate` tokens per second each, for `duration`.
pub fn cases(streams: u32, rate: f64, duration: Duration) -> Vec<Case> {
    let ms = Duration::from_millis;
    let steady = Script { ttft: ms(50), gap: ms(10), chunks: 40, spread: ms(10), ..Script::default() };
    let few = |name, script, expected| Case { name, script, concurrency: 8, requests: 32, expected };
    let gap = Duration::from_secs_f64(1.0 / rate);
    let chunks = (duration.as_secs_f64() * rate) as u32;
    let loaded = Script { gap, chunks, spread: ms(1000), chunks_vary: 0.3, ..steady.clone() };
    vec![
        few("role chunk at once, first token after 50 ms", Some(steady.clone()), Expected::Instants),
        few(
            "four tokens per chunk",
            Some(Script { tokens_per_chunk: 4, ..steady.clone() }),
            Expected::TokensPerChunk(4.0),
        ),
        few(
            "a stall of 2 s in each answer",
            Some(Script { stall: Some((20, ms(2000))), ..steady.clone() }),
            Expected::LongestGap(ms(2000)),
        ),
        few("connections refused", None, Expected::Failed("refused")),
        few("status 500", Some(Script { ending: Ending::Status(500), ..steady.clone() }), Expected::Failed("status")),
        few(
            "connections closed after 10 chunks",
            Some(Script { ending: Ending::Closed(10), ..steady.clone() }),
            Expected::CutOff("closed"),
        ),
        few(
            "answers that end without an end",
            Some(Script { ending: Ending::Early(10), ..steady.clone() }),
            Expected::CutOff("ended_early"),
        ),
        few(
            "an error event after 10 chunks",
            Some(Script { ending: Ending::Error(10), ..steady }),
            Expected::CutOff("server_error"),
        ),
        Case {
            name: "many streams",
            script: Some(loaded),
            concurrency: streams,
            requests: u64::from(streams) * 2,
            expected: Expected::Instants,
        },
    ]
}

/// Runs one case on client threads, against a server of its own or one of another process.
///
/// # Errors
/// When the server or the client cannot be set up, or the other process is none.
pub fn prove(case: &Case, threads: ClientThreads, remote: Option<&RemoteTruth>, stop: &Stop) -> io::Result<CaseResult> {
    let clock = Clock::start();
    let mut server = None;
    let url = match (&case.script, remote) {
        (Some(script), Some(remote)) => {
            remote.set(script)?;
            remote.chat()
        }
        (Some(script), None) => {
            let started = TruthServer::beside(threads, script.clone(), clock)?;
            chat(server.insert(started).address())?
        }
        // A port that was just given up: nobody listens there.
        (None, _) => chat(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)?,
    };
    let work = Arc::new(work());
    let level = Level {
        load: Load::Closed { concurrency: case.concurrency },
        until: Until { requests: Some(case.requests), duration: None },
        warmup: 0,
        first_number: 0,
    };
    let target = Arc::new(target(&url, clock)?);
    let run = run_level(&target, &work, level, threads, stop)?;
    let errors = match (&server, remote) {
        (Some(server), _) => Errors::of(&run.records, &work, &server.truths(), OneClock::Yes),
        (None, Some(remote)) if case.script.is_some() => {
            Errors::of(&run.records, &work, &remote.truths()?, OneClock::No)
        }
        _ => Errors::default(),
    };
    let written_share = written_share(case, &errors);
    let (verdict, found) = judge(case, &run, &errors);
    let verdict = at_rate(verdict, written_share);
    Ok(CaseResult { name: case.name, verdict, found, written_share, client: ClientHealth::of(&run, &target.live) })
}

/// Short prompts of words, no two alike: the server's notes are found by them.
pub(super) fn work() -> Work {
    let words = WORDS.iter().map(|&word| word.to_owned()).collect();
    let calibration = Calibration::Words { words, overhead: 0, verified: true };
    let input = Lengths::Fixed(12);
    let prompts = Prompts::Synthetic(Synthetic { input, calibration, prefix_tokens: 0, prefix_groups: 1 });
    Work { prompts, output: Lengths::Fixed(64), conversations: None, seed: 1 }
}

/// The chat route of a server on this machine.
pub(super) fn chat(address: SocketAddr) -> io::Result<Url> {
    format!("http://{address}/v1/chat/completions").parse().map_err(io::Error::other)
}

pub(super) fn target(url: &Url, clock: Clock) -> io::Result<Target> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let limits = Limits { connect: Duration::from_secs(10), trust: Trust::Machine };
    let connector = runtime.block_on(Connector::new(url, &limits));
    Ok(Target {
        connector: connector.map_err(|failure| io::Error::other(failure.message))?,
        url: url.clone(),
        headers: Vec::new(),
        options: RequestOptions {
            api: Api::Chat,
            model: "truth".to_owned(),
            stream: true,
            usage_per_chunk: false,
            ignore_eos: false,
            temperature: None,
            extra_body: serde_json::Map::new(),
        },
        timeout: Duration::from_secs(600),
        no_keep_alive: false,
        clock,
        live: Arc::new(Live::default()),
    })
}

/// Of steady answers: those that stall or break off are no matter of rate.
fn written_share(case: &Case, errors: &Errors) -> Option<f64> {
    let script = case.script.as_ref().filter(|script| script.stall.is_none() && script.ending == Ending::Complete)?;
    Some(script.gap.as_secs_f64() * 1e3 / errors.written_every_ms()?)
}

/// What is right of a load that was never offered shows nothing of that load.
fn at_rate(verdict: Verdict, written_share: Option<f64>) -> Verdict {
    let below = written_share.is_some_and(|share| share < WRITTEN_SHARE_MIN);
    if verdict == Verdict::Right && below { Verdict::BelowRate } else { verdict }
}

fn judge(case: &Case, run: &LevelRun, errors: &Errors) -> (Verdict, String) {
    let Some(summary) = Summary::of(&run.records, &Objectives::default()) else {
        return (Verdict::Wrong, "nothing was measured".to_owned());
    };
    let counts = &summary.requests;
    let all = |count: u64, class: &str| {
        let classes: Vec<String> =
            summary.failures.iter().map(|(name, failure)| format!("{} {name}", failure.count)).collect();
        let right = count == case.requests && counts.sent == case.requests && summary.failures.contains_key(class);
        let verdict = if right { Verdict::Right } else { Verdict::Wrong };
        (verdict, format!("{} of {} sent: {}", counts.sent, case.requests, classes.join(", ")))
    };
    match case.expected {
        Expected::CutOff(class) => return all(counts.cut_off, class),
        Expected::Failed(class) => return all(counts.failed, class),
        Expected::Instants | Expected::TokensPerChunk(_) | Expected::LongestGap(_) => {}
    }
    let mut right = counts.completed == case.requests && errors.unmatched == 0 && errors.before_written == 0;
    let mut found = format!("{} of {} completed; {}", counts.completed, case.requests, errors.text());
    match case.expected {
        Expected::TokensPerChunk(tokens) => {
            right &= summary.chunks.tokens_per_chunk == Some(tokens);
            found += &format!("; {:.2} tokens per chunk", summary.chunks.tokens_per_chunk.unwrap_or(0.0));
        }
        Expected::LongestGap(pause) => {
            right &= summary.chunks.longest_gap_ms >= pause.as_secs_f64() * 1e3;
            found += &format!("; longest gap {:.1} ms", summary.chunks.longest_gap_ms);
        }
        _ => {}
    }
    let verdict = match (right, errors.are_small()) {
        (false, _) => Verdict::Wrong,
        (true, false) => Verdict::Late,
        (true, true) => Verdict::Right,
    };
    (verdict, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_is_only_what_was_offered() {
        for (verdict, share, expected) in [
            (Verdict::Right, Some(1.0), Verdict::Right),
            (Verdict::Right, Some(0.95), Verdict::Right),
            (Verdict::Right, Some(0.82), Verdict::BelowRate),
            (Verdict::Right, None, Verdict::Right),
            (Verdict::Late, Some(0.5), Verdict::Late),
            (Verdict::Wrong, Some(0.5), Verdict::Wrong),
        ] {
            assert_eq!(at_rate(verdict, share), expected, "{verdict:?} {share:?}");
        }
    }
}
