//! What the client got wrong of what the ground-truth server did.

use super::server::Noted;
use crate::{
    definitions::{self, chunk_gaps},
    openai::Prompt,
    record::{Nanos, RequestRecord},
    statistics::interpolated,
    work::Work,
};

/// Highest error of a TTFT at the 99th percentile, in milliseconds.
const TTFT_ERROR_P99_MS_MAX: f64 = 5.0;
/// Highest error of a gap at the 99th percentile, in milliseconds.
const GAP_ERROR_P99_MS_MAX: f64 = 1.0;
/// Two clocks are read one after the other where the kernel's time is put on the run's clock.
const CLOCKS_APART_MAX: Nanos = 10_000;

/// A write that takes longer was interrupted.
const TOOK_MAX: Nanos = 100_000;

/// Errors in milliseconds, ascending.
#[derive(Default)]
pub(super) struct Errors {
    /// Of a TTFT: as measured, from the scheduled send to the first content's arrival, less as made, from the request's
    /// arrival at the server to the write of the first content.
    pub(super) ttft: Vec<f64>,
    /// Between a gap as measured and as written.
    pub(super) gap: Vec<f64>,
    /// Records without the server's note, or of another number of chunks.
    pub(super) unmatched: u64,
    /// Chunks stamped before they were written: impossible, so the two were mixed up.
    pub(super) before_written: u64,
    /// Chunks written.
    writes: u64,
    /// Gaps between them, and their sum.
    gaps_written: u64,
    gaps_written_sum: Nanos,
    /// Of those, the ones whose time is known less well, because the server lost its CPU while it wrote.
    interrupted_writes: u64,
}

/// Whether the server's notes and the client's are by the same clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OneClock {
    Yes,
    No,
}

/// By how many milliseconds a value lies outside of bounds.
fn outside(value: Nanos, least: Nanos, most: Nanos) -> f64 {
    least.saturating_sub(value).max(value.saturating_sub(most)) as f64 / 1e6
}

impl Errors {
    pub(super) fn of(records: &[RequestRecord], work: &Work, truths: &Noted, one_clock: OneClock) -> Self {
        let mut errors = Self::default();
        for record in records {
            let Prompt::Text(prompt) = work.item(record.index).prompt else { continue };
            let truth = truths.get(&prompt).and_then(|truths| truths.first());
            let Some(truth) =
                truth.filter(|truth| truth.writes.len() == record.chunks.len() && !truth.writes.is_empty())
            else {
                errors.unmatched += 1;
                continue;
            };
            let writes = &truth.writes;
            let (first, last) = (writes[0], writes[writes.len() - 1]);
            if one_clock == OneClock::Yes {
                let pairs = record.chunks.iter().zip(writes);
                errors.before_written +=
                    pairs.filter(|(chunk, write)| chunk.at + CLOCKS_APART_MAX < write.at).count() as u64;
            }
            errors.writes += writes.len() as u64;
            errors.gaps_written += writes.len() as u64 - 1;
            errors.gaps_written_sum += last.at - first.at;
            errors.interrupted_writes += writes.iter().filter(|write| write.took > TOOK_MAX).count() as u64;
            if let Some(ttft) = definitions::ttft(record) {
                let least = first.at.saturating_sub(truth.received);
                errors.ttft.push(outside(ttft, least, least + first.took));
            }
            // The packet left between the two times of its write, so a gap is known to lie between two bounds.
            let left = |place: usize| (writes[place].at, writes[place].at + writes[place].took);
            errors.gap.extend(chunk_gaps(record).enumerate().map(|(place, gap)| {
                let (before, after) = (left(place), left(place + 1));
                outside(gap, after.0.saturating_sub(before.1), after.1 - before.0)
            }));
        }
        errors.ttft.sort_unstable_by(f64::total_cmp);
        errors.gap.sort_unstable_by(f64::total_cmp);
        errors
    }

    pub(super) fn are_small(&self) -> bool {
        let within = |errors: &[f64], limit| !errors.is_empty() && interpolated(errors, 0.99) <= limit;
        within(&self.ttft, TTFT_ERROR_P99_MS_MAX) && within(&self.gap, GAP_ERROR_P99_MS_MAX)
    }

    /// Mean time between a stream's chunks as they were written; none without a gap.
    pub(super) fn written_every_ms(&self) -> Option<f64> {
        (self.gaps_written > 0).then(|| self.gaps_written_sum as f64 / self.gaps_written as f64 / 1e6)
    }

    pub(super) fn text(&self) -> String {
        let of = |errors: &[f64]| match errors {
            [] => "unknown".to_owned(),
            errors => format!(
                "p50 {:.3} p99 {:.3} max {:.3} ms",
                interpolated(errors, 0.5),
                interpolated(errors, 0.99),
                interpolated(errors, 1.0)
            ),
        };
        let unsure = 100.0 * self.interrupted_writes as f64 / self.writes.max(1) as f64;
        let unsure = if unsure > 0.0 { format!(" ({unsure:.2} % of writes took over 0.1 ms)") } else { String::new() };
        let every = self.written_every_ms().unwrap_or(0.0);
        format!("a chunk every {every:.2} ms; error of TTFT {}, of gaps {}{unsure}", of(&self.ttft), of(&self.gap))
    }
}
