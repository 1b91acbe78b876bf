//! What the ground-truth server is told to do, and what it notes of it.

use crate::record::Nanos;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Most content chunks of an answer that another process asks for.
const CHUNKS_MAX: f64 = 1e6;

/// How every request is answered.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Script {
    /// From the request to the first content.
    pub ttft: Duration,
    /// Between content chunks.
    pub gap: Duration,
    /// Content chunks.
    pub chunks: u32,
    /// Tokens counted for each.
    pub tokens_per_chunk: u32,
    /// Send a chunk with only the role at once.
    pub role_first: bool,
    /// Begin the answers of a connection's clients at phases spread over this time, so that streams do not write in one burst.
    pub spread: Duration,
    /// Vary the number of chunks by up to this share of it, upwards and downwards, so that streams do not end in one burst.
    pub chunks_vary: f64,
    /// Wait so long before the chunk of this number.
    pub stall: Option<(u32, Duration)>,
    /// How it ends.
    pub ending: Ending,
    /// Report usage at the end.
    pub usage: bool,
    /// Write this many bytes at a time, to split events anywhere; all at once where none.
    pub write_bytes: Option<usize>,
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Ending {
    /// Finish reason, usage, end mark.
    Complete,
    /// The connection is closed after so many chunks.
    Closed(u32),
    /// The body is ended properly after so many chunks, without finish reason or end mark.
    Early(u32),
    /// An error event after so many chunks.
    Error(u32),
    /// This status in place of an answer.
    Status(u16),
}

/// When the server did what for one request.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Truth {
    /// The last packet of the request had arrived.
    pub received: Nanos,
    /// Messages of the request.
    pub messages: usize,
    /// Of each content chunk.
    pub writes: Vec<Write>,
}

/// When a chunk was written: its packet left within this time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(into = "(Nanos, Nanos)", from = "(Nanos, Nanos)")]
pub struct Write {
    /// Just before.
    pub at: Nanos,
    /// By how much later the write had returned.
    pub took: Nanos,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            ttft: Duration::ZERO,
            gap: Duration::ZERO,
            chunks: 4,
            tokens_per_chunk: 1,
            role_first: true,
            spread: Duration::ZERO,
            chunks_vary: 0.0,
            stall: None,
            ending: Ending::Complete,
            usage: true,
            write_bytes: None,
        }
    }
}

/// One answer of a script: what varies between them is settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Content chunks of a complete answer.
    pub(super) chunks: u32,
    /// Content chunks that are written before the answer ends.
    pub(super) written: u32,
    /// Added to the time to the first content.
    pub(super) phase: Duration,
}

impl Script {
    /// Short enough that its notes fit in memory: another process may ask for anything.
    pub(super) fn is_bounded(&self) -> bool {
        f64::from(self.chunks) * (1.0 + self.chunks_vary.abs()) <= CHUNKS_MAX
    }

    /// The answer of a number.
    pub(super) fn plan(&self, number: u32) -> Plan {
        // A prime stride puts neighbours far apart.
        let place = f64::from(number.wrapping_mul(617) % 1000) / 1000.0;
        let chunks = (f64::from(self.chunks) * (1.0 + self.chunks_vary * (2.0 * place - 1.0))).round() as u32;
        let written = match self.ending {
            Ending::Closed(after) | Ending::Early(after) | Ending::Error(after) => after.min(chunks),
            Ending::Complete | Ending::Status(_) => chunks,
        };
        Plan { chunks, written, phase: self.spread.mul_f64(place) }
    }
}

impl From<Write> for (Nanos, Nanos) {
    fn from(write: Write) -> Self {
        (write.at, write.took)
    }
}

impl From<(Nanos, Nanos)> for Write {
    fn from((at, took): (Nanos, Nanos)) -> Self {
        Self { at, took }
    }
}
