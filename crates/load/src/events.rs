//! Raw events: every request of a run as one line of JSON, written by [`EventsFile`] and read back by [`EventsReader`].

use crate::{
    files::{Lines, open_regular},
    record::{Chunk, Failure, FailureClass, Nanos, RequestRecord, Usage},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

/// Longest line that is read: a request with some million chunks.
const LINE_BYTES_MAX: usize = 64 << 20;
/// Most levels of a run.
const LEVELS_MAX: usize = 4096;

/// Raw events on their way to their file, level by level.
pub struct EventsFile(Lines);

impl EventsFile {
    /// Begins the file; it gets its name at the end.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        Lines::create(path).map(Self)
    }

    /// Adds a level's requests, one line each; instants and gaps in microseconds, chunks as gaps from the one before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_level(&mut self, level: usize, records: &[RequestRecord]) -> io::Result<()> {
        for record in records {
            self.0.write(&written(level, record))?;
        }
        self.0.flush()
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// When it cannot be written or renamed.
    pub fn finish(self) -> io::Result<()> {
        self.0.finish()
    }
}

/// Why raw events cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The file; nothing more can be read from it.
    #[error("{}: cannot read the raw events: {error}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// One line of it; the next may be whole.
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

/// The requests of a file, each with the level it belongs to. A line that is no request is an error of its own; after an error
/// of the file nothing follows.
pub struct EventsReader<R> {
    path: PathBuf,
    reader: R,
    bytes: Vec<u8>,
    line: usize,
    ended: bool,
}

impl EventsReader<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, EventsError> {
        let file = open_regular(path).map_err(|error| EventsError::Read { path: path.to_owned(), error })?;
        Ok(Self::new(path, BufReader::new(file)))
    }
}

impl<R: BufRead> EventsReader<R> {
    /// Reads from anywhere; errors name `path`.
    pub fn new(path: &Path, reader: R) -> Self {
        Self { path: path.to_owned(), reader, bytes: Vec::new(), line: 0, ended: false }
    }

    fn request(&self) -> Result<(usize, RequestRecord), EventsError> {
        let wrong = |reason: String| EventsError::Line { path: self.path.clone(), line: self.line, reason };
        if self.bytes.len() == LINE_BYTES_MAX {
            return Err(wrong(format!("longer than {LINE_BYTES_MAX} bytes")));
        }
        let line: Line = serde_json::from_slice(&self.bytes).map_err(|error| wrong(error.to_string()))?;
        if line.level >= LEVELS_MAX {
            return Err(wrong(format!("level {} of at most {LEVELS_MAX}", line.level)));
        }
        Ok((line.level, line.record()))
    }
}

impl<R: BufRead> Iterator for EventsReader<R> {
    type Item = Result<(usize, RequestRecord), EventsError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            self.bytes.clear();
            self.line += 1;
            let mut limited = io::Read::take(&mut self.reader, LINE_BYTES_MAX as u64);
            match limited.read_until(b'\n', &mut self.bytes) {
                Ok(0) => self.ended = true,
                Ok(_) if self.bytes.iter().all(u8::is_ascii_whitespace) => {}
                Ok(_) => return Some(self.request()),
                Err(error) => {
                    self.ended = true;
                    return Some(Err(EventsError::Read { path: self.path.clone(), error }));
                }
            }
        }
        None
    }
}

/// The requests of each level of a file.
///
/// # Errors
/// When the file cannot be read or a line is no request.
pub fn read_events(path: &Path) -> Result<Vec<Vec<RequestRecord>>, EventsError> {
    let mut levels = Vec::<Vec<RequestRecord>>::new();
    for request in EventsReader::open(path)? {
        let (level, record) = request?;
        if levels.len() <= level {
            levels.resize_with(level + 1, Vec::new);
        }
        levels[level].push(record);
    }
    Ok(levels)
}

fn written(level: usize, record: &RequestRecord) -> Value {
    let micros = |nanos: Nanos| nanos as f64 / 1e3;
    let mut previous = record.scheduled;
    let gaps: Vec<u64> = record
        .chunks
        .iter()
        .map(|chunk| {
            // Differences of rounded instants, so that they add up without drift.
            let gap = (chunk.at / 1000).saturating_sub(previous / 1000);
            previous = chunk.at;
            gap
        })
        .collect();
    let counted = record.chunks.iter().all(|chunk| chunk.tokens.is_some());
    let tokens: Option<Vec<u32>> = counted
        .then(|| record.chunks.iter().filter_map(|chunk| chunk.tokens).collect())
        .filter(|all: &Vec<u32>| !all.is_empty());
    json!({
        "level": level,
        "index": record.index,
        "turn": record.turn,
        "warmup": record.warmup,
        "scheduled_us": micros(record.scheduled),
        "started_us": micros(record.started),
        "sent_us": record.sent.map(micros),
        "first_byte_us": record.first_byte.map(micros),
        "first_event_us": record.first_event.map(micros),
        "last_event_us": record.last_event.map(micros),
        "ended_us": micros(record.ended),
        "chunk_gaps_us": gaps,
        "chunk_characters": record.chunks.iter().map(|chunk| chunk.characters).collect::<Vec<_>>(),
        "chunk_tokens": tokens,
        "status": record.status,
        "usage": record.usage,
        "finish_reason": record.finish_reason,
        "streamed": record.streamed,
        "reused_connection": record.reused_connection,
        "prompt_tokens_asked": record.prompt_tokens_asked,
        "output_tokens_asked": record.output_tokens_asked,
        "failure": record.failure.as_ref().map(|failure| json!({"class": failure.class.name(), "message": failure.message})),
    })
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
    use crate::definitions;

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
    fn what_follows_a_damaged_line_is_read() {
        let text = "{\"level\":0,\"scheduled_us\":1,\"ended_us\":2}\n\n{\"level\":\n{\"level\":1,\"scheduled_us\":1,\"ended_us\":2}\n";
        let read: Vec<_> = EventsReader::new(Path::new("x"), text.as_bytes()).collect();
        let levels: Vec<Option<usize>> = read.iter().map(|line| line.as_ref().ok().map(|(level, _)| *level)).collect();
        assert_eq!(levels, [Some(0), None, Some(1)]);
        assert!(read[1].as_ref().unwrap_err().to_string().starts_with("x, line 3: "));
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
