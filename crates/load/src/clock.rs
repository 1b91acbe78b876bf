//! The run's clock.

use crate::record::Nanos;
use std::time::{Duration, Instant};

/// The process's monotonic clock, from the run's origin.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Nanoseconds since the origin.
    pub fn now(&self) -> Nanos {
        // 584 years fit.
        self.origin.elapsed().as_nanos() as Nanos
    }

    /// How long until a time on this clock; none when it has come.
    pub fn until(&self, at: Nanos) -> Option<Duration> {
        at.checked_sub(self.now()).filter(|&left| left > 0).map(Duration::from_nanos)
    }
}
