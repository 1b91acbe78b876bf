//! How long bytes lay in sockets before they were read, over millions of reads, in little space.

use crate::record::Nanos;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Steps within each power of two: a value is known to one part in eight.
const STEPS: u64 = 8;
/// Powers of two from 1 us to over an hour.
const POWERS: u64 = 32;
/// Waits below this many nanoseconds are one step.
const UNIT: Nanos = 1024;

/// A histogram that threads fill together.
#[derive(Debug)]
pub(crate) struct Waits {
    counts: Vec<AtomicU64>,
    longest: AtomicU64,
}

impl Default for Waits {
    fn default() -> Self {
        Self { counts: (0..POWERS * STEPS).map(|_| AtomicU64::new(0)).collect(), longest: AtomicU64::new(0) }
    }
}

impl Waits {
    /// One more read.
    pub(crate) fn add(&self, waited: Nanos) {
        self.counts[step(waited)].fetch_add(1, Relaxed);
        if waited > self.longest.load(Relaxed) {
            self.longest.fetch_max(waited, Relaxed);
        }
    }

    /// Reads so far.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// The wait that a share `q` of the reads did not exceed, to one part in eight; none without reads.
    pub(crate) fn quantile(&self, q: f64) -> Option<Nanos> {
        let count = self.count();
        let rank = (q * count as f64).ceil() as u64;
        let mut below = 0;
        let place = self.counts.iter().position(|count| {
            below += count.load(Relaxed);
            below >= rank.max(1)
        })?;
        Some(upper_end(place).min(self.longest()))
    }

    /// The longest wait.
    pub(crate) fn longest(&self) -> Nanos {
        self.longest.load(Relaxed)
    }
}

fn step(waited: Nanos) -> usize {
    let units = waited / UNIT;
    let place = if units < STEPS {
        units
    } else {
        let power = u64::from(units.ilog2());
        let within = (units >> (power - 3)) - STEPS;
        (power - 2) * STEPS + within
    };
    place.min(POWERS * STEPS - 1) as usize
}

fn upper_end(place: usize) -> Nanos {
    let place = place as u64 + 1;
    if place < STEPS { place * UNIT } else { (STEPS + place % STEPS) << (place / STEPS - 1) << UNIT.ilog2() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_each_other_without_gaps() {
        let mut last = 0;
        for exponent in 0..40 {
            for waited in [1u64 << exponent, (1 << exponent) + (1 << exponent) / 3] {
                let place = step(waited);
                assert!(place >= last, "{waited}");
                last = place;
                assert!(waited < upper_end(place), "{waited} ends at {}", upper_end(place));
                assert!(place == 0 || waited >= upper_end(place - 1), "{waited}");
                assert!(waited < UNIT * STEPS || upper_end(place) <= waited + waited / 7, "{waited}");
            }
        }
    }

    #[test]
    fn quantiles_are_those_of_what_was_added() {
        let waits = Waits::default();
        assert_eq!(waits.quantile(0.5), None);
        (1..=1000).for_each(|micros| waits.add(micros * 1000));
        assert_eq!((waits.count(), waits.longest()), (1000, 1_000_000));
        for (q, expected) in [(0.5, 500e3), (0.99, 990e3), (1.0, 1e6)] {
            let found = waits.quantile(q).unwrap() as f64;
            assert!((found / expected - 1.0).abs() < 0.13, "{q}: {found}");
        }
    }
}
