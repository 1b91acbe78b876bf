//! Raw events read back: the requests of each level as `load` noted them.

use powertrain_load::{Chunk, Failure, FailureClass, Nanos, RequestRecord, Usage};
use serde::Deserialize;
use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

/// Longest line: a request with a million chunks.
const LINE_BYTES_MAX: usize = 64 << 20;
/// Most levels of a run.
const LEVELS_MAX: usize = 4096;

/// Why raw events cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The file.
    #[error("{}: cannot read the raw events: {error}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What is in it.
    #[error("{}, line {line}: {reason}", .path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Deserialize)]
struct Line {
    level: usize,
    #[serde(default)]
    index: u64,
    #[serde(default)]
    turn: u32,
    #[serde(default)]
    warmup: bool,
    scheduled_us: f64,
    #[serde(default)]
    started_us: f64,
    #[serde(default)]
    sent_us: Option<f64>,
    #[serde(default)]
    first_byte_us: Option<f64>,
    #[serde(default)]
    first_event_us: Option<f64>,
    #[serde(default)]
    last_event_us: Option<f64>,
    ended_us: f64,
    #[serde(default)]
    chunk_gaps_us: Vec<u64>,
    #[serde(default)]
    chunk_characters: Vec<u32>,
    #[serde(default)]
    chunk_tokens: Option<Vec<u32>>,
    #[serde(default)]
    status: Option<u16>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    streamed: bool,
    #[serde(default)]
    reused_connection: bool,
    #[serde(default)]
    prompt_tokens_asked: Option<u32>,
    #[serde(default)]
    output_tokens_asked: u32,
    #[serde(default)]
    failure: Option<FailureLine>,
}

#[derive(Deserialize)]
struct FailureLine {
    class: String,
    message: String,
}

/// The requests of each level.
///
/// # Errors
/// When the file cannot be read or a line is no request.
pub fn read_events(path: &Path) -> Result<Vec<Vec<RequestRecord>>, EventsError> {
    let read = |error| EventsError::Read { path: path.to_owned(), error };
    let mut reader = BufReader::new(File::open(path).map_err(read)?);
    let (mut levels, mut text, mut number) = (Vec::<Vec<RequestRecord>>::new(), String::new(), 0);
    loop {
        text.clear();
        number += 1;
        let wrong = |reason: String| EventsError::Line { path: path.to_owned(), line: number, reason };
        let bytes = io::Read::take(&mut reader, LINE_BYTES_MAX as u64).read_line(&mut text).map_err(read)?;
        if bytes == 0 {
            return Ok(levels);
        }
        if bytes == LINE_BYTES_MAX {
            return Err(wrong(format!("longer than {LINE_BYTES_MAX} bytes")));
        }
        let line: Line = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if line.level >= LEVELS_MAX {
            return Err(wrong(format!("level {} of at most {LEVELS_MAX}", line.level)));
        }
        if levels.len() <= line.level {
            levels.resize_with(line.level + 1, Vec::new);
        }
        levels[line.level].push(line.record());
    }
}

impl Line {
    fn record(self) -> RequestRecord {
        let nanos = |micros: f64| (micros.max(0.0) * 1e3).round() as Nanos;
        let scheduled = nanos(self.scheduled_us);
        // Gaps are differences of instants in whole microseconds.
        let mut at = scheduled / 1000;
        let tokens = self.chunk_tokens.unwrap_or_default();
        let chunks = self.chunk_gaps_us.iter().enumerate().map(|(place, gap)| {
            at = at.saturating_add(*gap);
            Chunk {
                at: at.saturating_mul(1000).max(scheduled),
                characters: self.chunk_characters.get(place).copied().unwrap_or(0),
                tokens: tokens.get(place).copied(),
            }
        });
        let chunks = chunks.collect();
        RequestRecord {
            index: self.index,
            turn: self.turn,
            warmup: self.warmup,
            scheduled,
            started: nanos(self.started_us),
            sent: self.sent_us.map(nanos),
            first_byte: self.first_byte_us.map(nanos),
            first_event: self.first_event_us.map(nanos),
            chunks,
            last_event: self.last_event_us.map(nanos),
            ended: nanos(self.ended_us),
            status: self.status,
            usage: self.usage,
            finish_reason: self.finish_reason,
            streamed: self.streamed,
            reused_connection: self.reused_connection,
            prompt_tokens_asked: self.prompt_tokens_asked,
            output_tokens_asked: self.output_tokens_asked,
            failure: self.failure.map(|failure| Failure { class: class(&failure.class), message: failure.message }),
        }
    }
}

/// The class of this name; one that this version does not know says that something was not as expected.
fn class(name: &str) -> FailureClass {
    use FailureClass as Class;
    let all = [
        Class::UnknownHost,
        Class::Refused,
        Class::Unreachable,
        Class::Tls,
        Class::ClientExhausted,
        Class::Status,
        Class::ServerError,
        Class::Closed,
        Class::EndedEarly,
        Class::TimedOut,
        Class::Malformed,
        Class::Interrupted,
    ];
    all.into_iter().find(|class| class.name() == name).unwrap_or(Class::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use powertrain_load::{definitions, files::EventsFile};

    #[test]
    fn what_was_written_is_read_again() {
        let chunk = |at| Chunk { at, characters: 3, tokens: Some(2) };
        let record = RequestRecord {
            index: 4,
            scheduled: 1_234_567_800,
            started: 1_234_567_900,
            sent: Some(1_234_600_000),
            chunks: vec![chunk(1_300_000_000), chunk(1_310_000_000)],
            last_event: Some(1_311_000_000),
            ended: 1_312_000_000,
            status: Some(200),
            usage: Some(Usage { prompt_tokens: 7, completion_tokens: 4, cached_tokens: None }),
            streamed: true,
            output_tokens_asked: 4,
            ..RequestRecord::default()
        };
        let failed = RequestRecord {
            failure: Some(Failure { class: FailureClass::TimedOut, message: "late".to_owned() }),
            chunks: Vec::new(),
            warmup: true,
            ..record.clone()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.events.jsonl");
        let mut file = EventsFile::create(&path).unwrap();
        file.write_level(0, std::slice::from_ref(&record)).unwrap();
        file.write_level(1, &[record.clone(), failed.clone()]).unwrap();
        file.finish().unwrap();
        let levels = read_events(&path).unwrap();
        assert_eq!(levels.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(levels[0][0], record);
        assert_eq!(levels[1][1], failed);
        assert_eq!(definitions::ttft(&levels[0][0]), definitions::ttft(&record));
    }

    #[test]
    fn a_damaged_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.events.jsonl");
        std::fs::write(&path, "{\"level\":0,\"scheduled_us\":1,\"ended_us\":2}\n{\"level\":\n").unwrap();
        assert!(read_events(&path).unwrap_err().to_string().contains("line 2"));
        std::fs::write(&path, "{\"level\":99999,\"scheduled_us\":1,\"ended_us\":2}\n").unwrap();
        assert!(read_events(&path).unwrap_err().to_string().contains("at most 4096"));
    }
}
