//! Why a server failed, from how it ended and what it wrote last.

use serde::{Deserialize, Serialize};

/// What servers and systems write when memory does not suffice; compared in lower case.
const MEMORY_MARKS: &[&str] = &[
    "out of memory",
    "outofmemory",
    "out_of_memory",
    "larger than the available kv cache memory",
    "no available memory for the cache blocks",
    "is less than desired gpu memory utilization",
    "not enough memory",
    "failed to allocate",
    "cannot allocate memory",
    "std::bad_alloc",
    "memory allocation of",
    "does not fit",
    // Ours, of a GPU whose share does not hold one sequence.
    "of gpu memory, ",
];
/// Last lines of logs that say nothing themselves.
const EMPTY_WORDS: &[&str] = &[
    "For further information visit",
    "See root cause above",
    "resource_tracker: There appear",
    "warnings.warn(",
    // What clap says after an error.
    "For more information, try",
    "Usage: ",
    "  tip: ",
];
/// Lines of a log that are kept with a failure.
const TAIL_LINES: usize = 30;
/// Longest kept line.
const LINE_CHARACTERS: usize = 500;

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFailure {
    /// Its kind.
    pub kind: FailureKind,
    /// What happened, in one line.
    pub reason: String,
    /// The last lines of its log.
    pub log_tail: Vec<String>,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The program could not be run.
    CannotRun,
    /// Somebody else has the port.
    PortTaken,
    /// It ran out of memory, by its own words or killed by the system.
    OutOfMemory,
    /// It ended before it was ready.
    Ended,
    /// It did not answer in time.
    TimedOut,
    /// It ended while it was measured.
    Died,
    /// It answers, but cannot be measured.
    Unusable,
}

impl FailureKind {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::CannotRun => "cannot run",
            Self::PortTaken => "port taken",
            Self::OutOfMemory => "out of memory",
            Self::Ended => "ended at start",
            Self::TimedOut => "not ready in time",
            Self::Died => "died while measured",
            Self::Unusable => "unusable",
        }
    }
}

impl ServerFailure {
    /// A failure of this kind, or lack of memory where the log says so. The log's line about memory, or else its last,
    /// becomes part of the reason.
    pub fn new(kind: FailureKind, reason: String, log: &str) -> Self {
        let log_tail = tail(log);
        let marked = log_tail.iter().rev().find(|line| {
            let line = line.to_lowercase();
            MEMORY_MARKS.iter().any(|mark| line.contains(mark))
        });
        let ended = matches!(kind, FailureKind::Ended | FailureKind::Died | FailureKind::TimedOut);
        // Else the server's last words are the best reason there is.
        let telling = |line: &&String| !EMPTY_WORDS.iter().any(|words| line.contains(words));
        let last = log_tail.iter().rev().find(telling).or(log_tail.last());
        let (kind, line) = match (marked.filter(|_| ended), last.filter(|_| ended)) {
            (Some(line), _) => (FailureKind::OutOfMemory, Some(line)),
            (None, last) => (kind, last),
        };
        let reason = line.map_or(reason.clone(), |line| format!("{reason}: {}", line.trim()));
        Self { kind, reason, log_tail }
    }
}

/// The last lines, without control characters (colours).
fn tail(log: &str) -> Vec<String> {
    let clean = |line: &str| -> String {
        let mut clean = String::new();
        let mut rest = line.chars();
        while let Some(character) = rest.next() {
            // A colour: ESC [ … letter.
            if character == '\u{1b}' {
                rest.find(|c| c.is_ascii_alphabetic());
            } else if !character.is_control() {
                clean.push(character);
            }
        }
        clean.chars().take(LINE_CHARACTERS).collect()
    };
    let lines: Vec<String> = log.lines().map(clean).filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_after_an_error_is_no_reason() {
        let log = "error: unexpected argument '-1' found\n\n  tip: to pass '-1' as a value, use '-- -1'\n\nFor more information, try '--help'.\n";
        let reason = |log| ServerFailure::new(FailureKind::Ended, "code 2".to_owned(), log).reason;
        assert_eq!(reason(log), "code 2: error: unexpected argument '-1' found");
        assert_eq!(reason("loading\nbye\n"), "code 2: bye");
    }

    #[test]
    fn lack_of_memory_is_told_from_other_ends() {
        for (log, expected) in [
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\nexit", FailureKind::OutOfMemory),
            (
                "ValueError: To serve at least one request (4.00 GiB KV cache is needed, which is larger than the available KV cache memory",
                FailureKind::OutOfMemory,
            ),
            (
                "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9",
                FailureKind::OutOfMemory,
            ),
            (
                "error: KV cache for one sequence of --max-model-len needs 28 MiB of GPU memory, 0 MiB are free; lower --max-model-len",
                FailureKind::OutOfMemory,
            ),
            ("error: unknown argument --colour", FailureKind::Ended),
        ] {
            assert_eq!(ServerFailure::new(FailureKind::Ended, "code 1".to_owned(), log).kind, expected, "{log}");
        }
        let ended = ServerFailure::new(FailureKind::Ended, "code 2".to_owned(), "loading\nerror: no such file\n\n");
        assert_eq!(ended.reason, "code 2: error: no such file");
        // As vLLM ends when a length is more than the model has.
        let log = "ValidationError: 1 validation error for ModelConfig\n  Value error, max_model_len (16384) is greater than 8192\n    \
                   For further information visit https://errors.pydantic.dev/2.14/v/value_error\n";
        let ended = ServerFailure::new(FailureKind::Ended, "code 1".to_owned(), log);
        assert_eq!(ended.reason, "code 1: Value error, max_model_len (16384) is greater than 8192");
        let taken = ServerFailure::new(FailureKind::PortTaken, "port 1".to_owned(), "out of memory");
        assert_eq!(taken.kind, FailureKind::PortTaken);
    }

    #[test]
    fn the_tail_is_short_and_plain() {
        let log = (0..100).map(|n| format!("\u{1b}[31mline {n}\u{1b}[0m\n")).collect::<String>() + &"x".repeat(2000);
        let failure = ServerFailure::new(FailureKind::Ended, String::new(), &log);
        assert_eq!(failure.log_tail.len(), 30);
        assert_eq!(failure.log_tail[0], "line 71");
        assert_eq!(failure.log_tail[29].len(), 500);
    }
}
