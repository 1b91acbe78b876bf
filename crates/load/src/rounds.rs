//! Reading in rounds, where chunks come faster than a thread can be woken for each.
//!
//! To be woken for a chunk costs this machine more than to read it, and a server on this machine pays for it with every write. So from
//! [`READS_PER_S_MIN`] on a client thread sleeps for a short time and then reads what has come, as network drivers do under load. The
//! kernel's stamps keep every chunk's time; only chunks of one stream that come within one round have one time, so rounds are for
//! streams whose chunks are much further apart.

use crate::record::Nanos;
use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// From one round to the next.
pub(crate) const ROUND: Duration = Duration::from_micros(500);
/// Reads of a thread from which it reads in rounds.
const READS_PER_S_MIN: f64 = 20_000.0;
/// Below this share of it it stops to.
const STOP_SHARE: f64 = 0.75;
/// A stream's chunks must be so many rounds apart.
const ROUNDS_APART_MIN: f64 = 4.0;
/// How often a thread looks how much it reads.
const LOOK_EVERY: Duration = Duration::from_millis(10);

thread_local! {
    /// Reads of this thread whose bytes the kernel had stamped.
    static READS: Cell<u64> = const { Cell::new(0) };
    /// Streams that this thread reads.
    static STREAMS: Cell<u32> = const { Cell::new(0) };
}

/// One more read that the kernel had stamped.
pub(crate) fn note_read() {
    READS.set(READS.get() + 1);
}

/// A stream, while it is read.
pub(crate) struct Reading(());

impl Reading {
    pub(crate) fn begin() -> Self {
        STREAMS.set(STREAMS.get() + 1);
        Self(())
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        STREAMS.set(STREAMS.get().saturating_sub(1));
    }
}

/// Keeps this thread's event loop to rounds as long as they pay; adds up the time it did.
pub(crate) async fn keep(in_rounds: Arc<AtomicU64>) {
    loop {
        let (began, before) = (Instant::now(), READS.get());
        tokio::time::sleep(LOOK_EVERY).await;
        let mut pays = rounds_pay(READS.get() - before, STREAMS.get(), began.elapsed(), 1.0);
        while pays {
            let (began, before) = (Instant::now(), READS.get());
            while began.elapsed() < LOOK_EVERY {
                std::thread::sleep(ROUND);
                // What has come meanwhile is read before this goes on.
                tokio::task::yield_now().await;
            }
            let took = began.elapsed();
            in_rounds.fetch_add(took.as_nanos() as Nanos, Relaxed);
            pays = rounds_pay(READS.get() - before, STREAMS.get(), took, STOP_SHARE);
        }
    }
}

/// Whether a thread that read so often from so many streams does so in rounds, from a share of the usual rate on.
fn rounds_pay(reads: u64, streams: u32, took: Duration, share: f64) -> bool {
    let per_s = reads as f64 / took.as_secs_f64().max(1e-9);
    let apart_s = f64::from(streams) / per_s.max(1e-9);
    per_s >= share * READS_PER_S_MIN && apart_s >= ROUNDS_APART_MIN * ROUND.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_for_many_slow_streams() {
        let second = Duration::from_secs(1);
        assert!(rounds_pay(100_000, 1000, second, 1.0));
        assert!(!rounds_pay(19_999, 1000, second, 1.0), "too few");
        assert!(rounds_pay(19_999, 1000, second, STOP_SHARE), "once begun");
        assert!(!rounds_pay(50_000, 50, second, 1.0), "a chunk every millisecond");
        assert!(!rounds_pay(0, 0, second, 1.0));
    }
}
