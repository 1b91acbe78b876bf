//! The traps, each a server's script and what a right measurement of it says.

use super::{Ending, Script, Truth, TruthServer};
use crate::{
    client_health::ClientHealth,
    clock::Clock,
    definitions::{Objectives, chunk_gaps},
    exchange::Target,
    http::{Connector, Limits, Url},
    live::Live,
    openai::{Api, Prompt, RequestOptions},
    record::RequestRecord,
    run::{Level, LevelRun, run_level},
    schedule::{Load, Until},
    statistics::interpolated,
    stop::Stop,
    summary::Summary,
    work::{Calibration, Lengths, Prompts, Synthetic, WORDS, Work},
};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};

/// Highest error of a TTFT at the 99th percentile, in milliseconds.
const TTFT_ERROR_P99_MS_MAX: f64 = 5.0;
/// Highest error of a gap at the 99th percentile, in milliseconds.
const GAP_ERROR_P99_MS_MAX: f64 = 1.0;

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
    /// The client's own state meanwhile.
    pub client: ClientHealth,
}

/// All cases; the last is the load of `streams` streams at `rate` tokens per second each, for `duration`.
pub fn cases(streams: u32, rate: f64, duration: Duration) -> Vec<Case> {
    let ms = Duration::from_millis;
    let steady = Script { ttft: ms(50), gap: ms(10), chunks: 40, spread: true, ..Script::default() };
    let few = |name, script, expected| Case { name, script, concurrency: 8, requests: 32, expected };
    let gap = Duration::from_secs_f64(1.0 / rate);
    let loaded =
        Script { ttft: ms(50), gap, chunks: (duration.as_secs_f64() * rate) as u32, spread: true, ..steady.clone() };
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

/// Runs one case on `threads` client threads.
///
/// # Errors
/// When the server or the client cannot be set up.
pub fn prove(case: &Case, threads: usize, stop: &Stop) -> io::Result<CaseResult> {
    let clock = Clock::start();
    let server = case.script.clone().map(|script| TruthServer::start(script, clock)).transpose()?;
    let address = match &server {
        Some(server) => server.address(),
        // A port that was just given up: nobody listens there.
        None => std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?,
    };
    let work = Arc::new(work());
    let level = Level {
        load: Load::Closed { concurrency: case.concurrency },
        until: Until { requests: Some(case.requests), duration: None },
        warmup: 0,
        first_number: 0,
    };
    let run = run_level(&Arc::new(target(address, clock)?), &work, level, threads, stop)?;
    let (verdict, found) = judge(case, &run, &work, server.as_ref());
    Ok(CaseResult { name: case.name, verdict, found, client: ClientHealth::of(&run) })
}

/// Short prompts of words, no two alike: the server's notes are found by them.
pub(super) fn work() -> Work {
    let words = WORDS.iter().map(|&word| word.to_owned()).collect();
    let calibration = Calibration::Words { words, overhead: 0, verified: true };
    let input = Lengths::Fixed(12);
    let prompts = Prompts::Synthetic(Synthetic { input, calibration, prefix_tokens: 0, prefix_groups: 1 });
    Work { prompts, output: Lengths::Fixed(64), seed: 1 }
}

pub(super) fn target(address: SocketAddr, clock: Clock) -> io::Result<Target> {
    let url: Url = format!("http://{address}/v1/chat/completions").parse().map_err(io::Error::other)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let limits = Limits { connect: Duration::from_secs(10) };
    let connector = runtime.block_on(Connector::new(&url, limits));
    Ok(Target {
        connector: connector.map_err(|failure| io::Error::other(failure.message))?,
        url,
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

fn judge(case: &Case, run: &LevelRun, work: &Work, server: Option<&TruthServer>) -> (Verdict, String) {
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
    let errors = server.map(|server| Errors::of(&run.records, work, &server.truths())).unwrap_or_default();
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

/// What the client got wrong, in milliseconds, ascending.
#[derive(Default)]
pub(super) struct Errors {
    /// From the server's write of the first content to the client's stamp of it.
    pub(super) ttft: Vec<f64>,
    /// Between a gap as measured and as written.
    pub(super) gap: Vec<f64>,
    /// Records without the server's note, or of another number of chunks.
    pub(super) unmatched: u64,
    /// Chunks stamped before they were written: impossible, so the two were mixed up.
    pub(super) before_written: u64,
}

impl Errors {
    pub(super) fn of(
        records: &[RequestRecord],
        work: &Work,
        truths: &std::collections::HashMap<String, Vec<Truth>>,
    ) -> Self {
        let mut errors = Self::default();
        for record in records {
            let Prompt::Text(prompt) = work.item(record.index).prompt else { continue };
            let truth = truths.get(&prompt).and_then(|truths| truths.first());
            let Some(truth) =
                truth.filter(|truth| truth.written.len() == record.chunks.len() && !truth.written.is_empty())
            else {
                errors.unmatched += 1;
                continue;
            };
            let late = record.chunks.iter().zip(&truth.written).filter(|(chunk, written)| chunk.at < **written);
            errors.before_written += late.count() as u64;
            errors.ttft.push(record.chunks[0].at.saturating_sub(truth.written[0]) as f64 / 1e6);
            let written = truth.written.windows(2).map(|pair| pair[1] - pair[0]);
            errors.gap.extend(
                chunk_gaps(record).zip(written).map(|(measured, written)| measured.abs_diff(written) as f64 / 1e6),
            );
        }
        errors.ttft.sort_unstable_by(f64::total_cmp);
        errors.gap.sort_unstable_by(f64::total_cmp);
        errors
    }

    fn are_small(&self) -> bool {
        let within = |errors: &[f64], limit| !errors.is_empty() && interpolated(errors, 0.99) <= limit;
        within(&self.ttft, TTFT_ERROR_P99_MS_MAX) && within(&self.gap, GAP_ERROR_P99_MS_MAX)
    }

    fn text(&self) -> String {
        let of = |errors: &[f64]| match errors {
            [] => "unknown".to_owned(),
            errors => format!(
                "p50 {:.3} p99 {:.3} max {:.3} ms",
                interpolated(errors, 0.5),
                interpolated(errors, 0.99),
                interpolated(errors, 1.0)
            ),
        };
        format!("error of TTFT {}, of gaps {}", of(&self.ttft), of(&self.gap))
    }
}
