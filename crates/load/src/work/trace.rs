//! Traces of real traffic: when requests came, how long they and their answers were, and what their beginnings shared.
//!
//! Read are Azure's LLM inference traces (CSV: `TIMESTAMP,ContextTokens,GeneratedTokens`), Mooncake's (JSON lines:
//! `timestamp` in milliseconds, `input_length`, `output_length`, `hash_ids` of blocks of 512 tokens), and our own (JSON
//! lines: `at_s`, `input_tokens`, `output_tokens`, and `block_ids` of blocks of [`BLOCK_TOKENS`] or a `prompt`).

use crate::record::Nanos;
use serde::Deserialize;
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::Arc,
};

/// Tokens of a block with an id: prompts that have the same ids begin alike.
pub const BLOCK_TOKENS: u32 = 512;
/// Longest accepted file.
const FILE_BYTES_MAX: u64 = 4 << 30;
/// Most requests of a trace.
const REQUESTS_MAX: usize = 10_000_000;
/// Longest prompt or answer.
const TOKENS_MAX: u32 = 16 << 20;

/// A trace, in the order of its times.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The requests; the first is at 0.
    pub requests: Arc<[TraceRequest]>,
}

/// One request of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceRequest {
    /// When it came.
    pub at: Nanos,
    /// Tokens of its prompt.
    pub input_tokens: u32,
    /// Tokens of its answer.
    pub output_tokens: u32,
    /// Ids of the blocks its prompt is made of.
    pub blocks: Vec<u64>,
    /// The prompt itself, where the trace has it.
    pub prompt: Option<String>,
}

/// What of a trace is replayed, and how fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Replay {
    /// All times are multiplied by it: 0.5 is twice as fast.
    pub time_scale: f64,
    /// Only requests of the trace's first so many seconds, before scaling.
    pub seconds: Option<f64>,
    /// Longer prompts are cut to so many tokens.
    pub input_tokens_max: Option<u32>,
    /// Longer answers likewise.
    pub output_tokens_max: Option<u32>,
}

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read.
    #[error("cannot read the trace {path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// A line that is no request.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// No requests at all, or too many.
    #[error("{path} has {count} requests to replay; 1 to {REQUESTS_MAX} can be")]
    Count {
        /// The file.
        path: String,
        /// How many there are.
        count: usize,
    },
}

#[derive(Deserialize)]
struct Line {
    #[serde(default, alias = "timestamp")]
    timestamp_ms: Option<f64>,
    #[serde(default)]
    at_s: Option<f64>,
    #[serde(default, alias = "input_length")]
    input_tokens: Option<u32>,
    #[serde(alias = "output_length")]
    output_tokens: u32,
    #[serde(default, alias = "hash_ids")]
    block_ids: Vec<u64>,
    #[serde(default)]
    prompt: Option<String>,
}

impl Trace {
    /// Reads a trace and what is to be replayed of it.
    ///
    /// # Errors
    /// When it cannot be read, a line is no request, or nothing is left.
    pub fn open(path: &Path, replay: &Replay) -> Result<Self, TraceError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| TraceError::Io { path: name.clone(), error })?;
        Self::read(&name, BufReader::new(file.take(FILE_BYTES_MAX)), replay)
    }

    fn read(name: &str, lines: impl BufRead, replay: &Replay) -> Result<Self, TraceError> {
        let mut requests = Vec::new();
        for (index, line) in lines.lines().enumerate() {
            let line = line.map_err(|error| TraceError::Io { path: name.to_owned(), error })?;
            let line = line.trim().trim_start_matches('\u{feff}');
            let heading = index == 0 && line.starts_with("TIMESTAMP");
            if line.is_empty() || heading {
                continue;
            }
            let request = if line.starts_with('{') { json(line) } else { csv(line) };
            let wrong = |reason| TraceError::Line { path: name.to_owned(), line: index + 1, reason };
            requests.push(request.map_err(wrong)?);
            if requests.len() > REQUESTS_MAX {
                break;
            }
        }
        // Files are in order but for ties and clocks of several machines.
        requests.sort_by_key(|request| request.0);
        let begin = requests.first().map_or(0, |request| request.0);
        let last = replay.seconds.map_or(i128::MAX, |seconds| begin + (seconds * 1e9) as i128);
        let kept = requests.into_iter().take_while(|&(at, _)| at < last || at == begin).map(|(at, request)| {
            let cut = |tokens: u32, max: Option<u32>| tokens.min(max.unwrap_or(TOKENS_MAX)).max(1);
            TraceRequest {
                at: ((at - begin) as f64 * replay.time_scale) as Nanos,
                input_tokens: cut(request.input_tokens, replay.input_tokens_max),
                output_tokens: cut(request.output_tokens, replay.output_tokens_max),
                ..request
            }
        });
        let requests: Arc<[TraceRequest]> = kept.collect();
        match requests.len() {
            1..=REQUESTS_MAX => Ok(Self { requests }),
            count => Err(TraceError::Count { path: name.to_owned(), count }),
        }
    }

    /// When each request is due.
    pub fn times(&self) -> Arc<[Nanos]> {
        self.requests.iter().map(|request| request.at).collect()
    }

    /// The request of a number.
    pub fn request(&self, number: u64) -> &TraceRequest {
        &self.requests[(number % self.requests.len() as u64) as usize]
    }
}

fn json(line: &str) -> Result<(i128, TraceRequest), String> {
    let line: Line = serde_json::from_str(line).map_err(|error| format!("no request of a trace ({error})"))?;
    let seconds =
        line.at_s.or(line.timestamp_ms.map(|ms| ms / 1e3)).ok_or("no `timestamp` (milliseconds) or `at_s`")?;
    let input_tokens = match (&line.prompt, line.input_tokens) {
        (_, Some(tokens)) => tokens,
        (Some(_), None) => 0,
        (None, None) => return Err("neither a length of the prompt nor a `prompt`".to_owned()),
    };
    let request = TraceRequest {
        at: 0,
        input_tokens,
        output_tokens: line.output_tokens,
        blocks: line.block_ids,
        prompt: line.prompt,
    };
    Ok(((seconds * 1e9) as i128, request))
}

fn csv(line: &str) -> Result<(i128, TraceRequest), String> {
    let mut fields = line.split(',').map(str::trim);
    let time = fields.next().unwrap_or_default();
    let mut tokens = || fields.next().and_then(|field| field.parse().ok());
    let (Some(input_tokens), Some(output_tokens)) = (tokens(), tokens()) else {
        return Err("not TIMESTAMP,ContextTokens,GeneratedTokens".to_owned());
    };
    // Some files tell the zone, others not; only differences count.
    let civil: Result<jiff::civil::DateTime, _> =
        time.replacen(' ', "T", 1).split('+').next().unwrap_or_default().parse();
    let civil = civil.map_err(|error| format!("`{time}` is no time ({error})"))?;
    let nanos = civil.to_zoned(jiff::tz::TimeZone::UTC).map_err(|error| format!("`{time}`: {error}"))?;
    let request = TraceRequest { input_tokens, output_tokens, ..TraceRequest::default() };
    Ok((nanos.timestamp().as_nanosecond(), request))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Replay = Replay { time_scale: 1.0, seconds: None, input_tokens_max: None, output_tokens_max: None };

    fn read(text: &str, replay: &Replay) -> Result<Trace, TraceError> {
        Trace::read("t", text.as_bytes(), replay)
    }

    #[test]
    fn azures_form_is_read() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109";
        let trace = read(text, &ALL).unwrap();
        let [first, second] = &trace.requests[..] else { panic!("two") };
        assert_eq!((first.at, first.input_tokens, first.output_tokens), (0, 374, 44));
        assert_eq!((second.at, second.input_tokens, second.output_tokens), (4_314_579_000, 396, 109));
        let trace = read(&text.replace("46.6805900", "46.6805900+00:00"), &ALL).unwrap();
        assert_eq!(trace.requests[1].at, 4_314_579_000);
    }

    #[test]
    fn mooncakes_and_our_form_are_read_scaled_and_cut() {
        let text = r#"{"timestamp": 3000, "input_length": 700, "output_length": 5, "hash_ids": [1, 9]}
{"timestamp": 1000, "input_length": 600, "output_length": 50, "hash_ids": [1, 2]}
{"at_s": 4, "prompt": "hello", "output_tokens": 3}
{"at_s": 11, "input_tokens": 5, "output_tokens": 3}"#;
        let replay =
            Replay { time_scale: 0.5, seconds: Some(10.0), input_tokens_max: Some(650), output_tokens_max: Some(20) };
        let trace = read(text, &replay).unwrap();
        let found: Vec<_> =
            trace.requests.iter().map(|it| (it.at / 1_000_000, it.input_tokens, it.output_tokens)).collect();
        assert_eq!(found, [(0, 600, 20), (1000, 650, 5), (1500, 1, 3)]);
        assert_eq!(trace.requests[0].blocks, [1, 2]);
        assert_eq!(trace.request(5).prompt.as_deref(), Some("hello"));
    }

    #[test]
    fn what_is_no_trace_is_named() {
        for (text, reason) in [
            ("a,b,c", "not TIMESTAMP"),
            ("yesterday,1,2", "no time"),
            ("{\"timestamp\": 1}", "output_tokens"),
            ("{\"timestamp\": 1, \"output_length\": 2}", "neither"),
            ("{\"input_length\": 1, \"output_length\": 2}", "at_s"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "0 requests"),
        ] {
            let error = read(text, &ALL).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
