//! Whether the engine works: a step completed lately, or there is nothing to run.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// The engine's own answer to "are you alive?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// There is nothing to run, or a step completed within the stall timeout.
    Live,
    /// There is work, and no step completed for this long.
    Stalled(Duration),
    /// The engine thread ended by a panic; the process must be restarted.
    Dead(String),
}

impl Health {
    /// Whether requests can be expected to make progress.
    pub fn is_live(&self) -> bool {
        *self == Self::Live
    }
}

/// Written by the engine thread, read by anyone.
pub(crate) struct Pulse {
    origin: Instant,
    stall_timeout: Duration,
    busy: AtomicBool,
    /// Milliseconds since `origin` at which a step completed or work appeared.
    last_beat_ms: AtomicU64,
    death: OnceLock<String>,
}

impl Pulse {
    pub(crate) fn new(stall_timeout: Duration) -> Self {
        Self {
            origin: Instant::now(),
            stall_timeout,
            busy: AtomicBool::new(false),
            last_beat_ms: AtomicU64::new(0),
            death: OnceLock::new(),
        }
    }

    /// A step completed, or the first work appeared.
    pub(crate) fn beat(&self, now: Instant) {
        self.last_beat_ms.store(now.saturating_duration_since(self.origin).as_millis() as u64, Relaxed);
        self.busy.store(true, Relaxed);
    }

    /// There is nothing to run.
    pub(crate) fn rest(&self) {
        self.busy.store(false, Relaxed);
    }

    pub(crate) fn die(&self, reason: String) {
        // Only the first reason counts.
        let _ = self.death.set(reason);
    }

    pub(crate) fn health(&self, now: Instant) -> Health {
        if let Some(reason) = self.death.get() {
            return Health::Dead(reason.clone());
        }
        let last_beat = self.origin + Duration::from_millis(self.last_beat_ms.load(Relaxed));
        let silence = now.saturating_duration_since(last_beat);
        if self.busy.load(Relaxed) && silence > self.stall_timeout { Health::Stalled(silence) } else { Health::Live }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_is_a_recent_step_or_nothing_to_run() {
        let pulse = Pulse::new(Duration::from_secs(10));
        let at = |seconds| pulse.origin + Duration::from_secs(seconds);
        assert_eq!(pulse.health(at(1000)), Health::Live, "idle");
        pulse.beat(at(1000));
        assert_eq!(pulse.health(at(1009)), Health::Live, "a step completed lately");
        assert_eq!(pulse.health(at(1011)), Health::Stalled(Duration::from_secs(11)));
        pulse.rest();
        assert_eq!(pulse.health(at(2000)), Health::Live, "idle again");
        pulse.die("it broke".into());
        assert_eq!(pulse.health(at(2000)), Health::Dead("it broke".into()));
    }
}
