//! Counters that all clients fill while they run: what the progress line shows, and how long bytes waited to be read.

use crate::{
    definitions::{chunk_gaps, ttft},
    record::{Nanos, Outcome, RequestRecord},
    waits::Waits,
};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Live {
    started: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    cut_off: AtomicU64,
    chunks: AtomicU64,
    first_chunks: AtomicU64,
    ttft_nanos: AtomicU64,
    gaps: AtomicU64,
    gap_nanos: AtomicU64,
    /// From the kernel's receipt of bytes to the read that took them, where the kernel tells.
    pub(crate) waits: Waits,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LiveCounts {
    /// Requests sent and not ended.
    pub running: u64,
    /// Whole answers.
    pub completed: u64,
    /// Failures before any content.
    pub failed: u64,
    /// Failures after some.
    pub cut_off: u64,
    /// Content chunks.
    pub chunks: u64,
    /// Mean TTFT so far, in milliseconds.
    pub ttft_ms: Option<f64>,
    /// Mean gap between chunks so far, in milliseconds.
    pub itl_ms: Option<f64>,
}

impl Live {
    pub(crate) fn started(&self) {
        self.started.fetch_add(1, Relaxed);
    }

    /// One more content chunk, not yet in its record.
    pub(crate) fn chunk(&self, record: &RequestRecord, at: Nanos) {
        self.chunks.fetch_add(1, Relaxed);
        if record.chunks.is_empty() {
            self.first_chunks.fetch_add(1, Relaxed);
            self.ttft_nanos.fetch_add(at.saturating_sub(record.scheduled), Relaxed);
        }
    }

    pub(crate) fn ended(&self, record: &RequestRecord) {
        let counter = match record.outcome() {
            Outcome::Completed => &self.completed,
            Outcome::CutOff => &self.cut_off,
            Outcome::Failed | Outcome::Interrupted => &self.failed,
        };
        counter.fetch_add(1, Relaxed);
        if ttft(record).is_some() {
            self.gaps.fetch_add(record.chunks.len() as u64 - 1, Relaxed);
            self.gap_nanos.fetch_add(chunk_gaps(record).sum(), Relaxed);
        }
    }

    /// The counters now.
    pub fn counts(&self) -> LiveCounts {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let mean_ms = |sum: &AtomicU64, count: &AtomicU64| match get(count) {
            0 => None,
            count => Some(get(sum) as f64 / count as f64 / 1e6),
        };
        let (completed, failed, cut_off) = (get(&self.completed), get(&self.failed), get(&self.cut_off));
        LiveCounts {
            running: get(&self.started).saturating_sub(completed + failed + cut_off),
            completed,
            failed,
            cut_off,
            chunks: get(&self.chunks),
            ttft_ms: mean_ms(&self.ttft_nanos, &self.first_chunks),
            itl_ms: mean_ms(&self.gap_nanos, &self.gaps),
        }
    }
}
