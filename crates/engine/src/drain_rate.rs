//! How fast the waiting queue drains, and what a refused client is told from it.

use std::time::{Duration, Instant};

/// The memory of the measurement: what happened this long ago counts 1/e.
const MEMORY: Duration = Duration::from_secs(30);
/// Retry-After is at least this, also when nothing was measured yet,
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
/// and at most this, also when nothing drains at all.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Exponentially weighted average of departures from the waiting queue per second, over the time in which any waited.
pub(crate) struct DrainRate {
    departures: f64,
    seconds: f64,
    last: Instant,
}

impl DrainRate {
    pub(crate) fn new(now: Instant) -> Self {
        Self { departures: 0.0, seconds: 0.0, last: now }
    }

    /// From the last call until now some were `waiting`; `departed` of them left the queue for a row.
    pub(crate) fn record(&mut self, departed: usize, waiting: bool, now: Instant) {
        let elapsed = now.saturating_duration_since(self.last);
        self.last = now;
        if !waiting && departed == 0 {
            return;
        }
        let kept = (-elapsed.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.departures = self.departures * kept + departed as f64;
        self.seconds = self.seconds * kept + elapsed.as_secs_f64();
    }

    /// Departures per second; 0 before any was seen.
    pub(crate) fn per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.departures / self.seconds } else { 0.0 }
    }

    /// When the queue as it stands will be through, in whole seconds.
    pub(crate) fn retry_after(&self, waiting: u32) -> Duration {
        let rate = self.per_second();
        let seconds = match (rate > 0.0, self.seconds > 0.0) {
            (true, _) => f64::from(waiting) / rate,
            (false, true) => RETRY_AFTER_MAX.as_secs_f64(),
            (false, false) => 0.0,
        };
        Duration::from_secs(seconds.ceil() as u64).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_follows_the_measured_rate() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = DrainRate::new(start);
        assert_eq!(rate.retry_after(100), RETRY_AFTER_MIN, "nothing was measured");
        for second in 1..=10 {
            rate.record(2, true, at(second));
        }
        assert!((rate.per_second() - 2.0).abs() < 0.1, "{}", rate.per_second());
        let seconds = rate.retry_after(40).as_secs();
        assert!((19..=21).contains(&seconds), "{seconds}");
        rate.record(0, false, at(1000));
        assert!((rate.per_second() - 2.0).abs() < 0.1, "an empty queue says nothing about how fast it drains");
        rate.record(0, true, at(10_000));
        assert_eq!(rate.retry_after(1), RETRY_AFTER_MAX, "nothing left the queue for a long time");
    }
}
