//! When requests are due: by clients that wait for their answers (closed loop) or by a clock (open loop).

use crate::{random::Random, record::Nanos};
use std::time::Duration;

/// How load is offered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// So many clients, each sending its next request when the last has ended.
    Closed {
        /// Clients.
        concurrency: u32,
    },
    /// Requests due at times fixed beforehand, however the server fares.
    Open {
        /// Mean requests per second.
        rate: f64,
        /// The gaps between them.
        arrivals: Arrivals,
        /// Most requests in flight; further ones wait, and their wait counts as latency.
        in_flight_max: u32,
    },
}

/// The distribution of the gaps between arrivals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// All gaps alike.
    Constant,
    /// Independent arrivals: exponential gaps.
    Poisson,
    /// Gamma-distributed gaps of this shape: below 1 burstier than Poisson, above 1 more even.
    Gamma {
        /// Shape; the coefficient of variation of the gaps is `1 / sqrt(shape)`.
        burstiness: f64,
    },
}

/// When a level ends: at whichever comes first. What was sent by then is waited for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Until {
    /// Measured requests.
    pub requests: Option<u64>,
    /// Time during which requests are sent.
    pub duration: Option<Duration>,
}

impl Until {
    /// Whether a request is still due: `sent` measured ones were before it, `elapsed` passed since the first was due.
    pub fn allows(&self, sent: u64, elapsed: Duration) -> bool {
        self.requests.is_none_or(|requests| sent < requests) && self.duration.is_none_or(|duration| elapsed < duration)
    }
}

impl Arrivals {
    /// The times at which requests are due, from 0, ascending and without end; a pure function of rate and seed.
    pub fn times(self, rate: f64, seed: u64) -> impl Iterator<Item = Nanos> {
        assert!(rate > 0.0, "a rate of {rate} requests per second");
        // Its own family of numbers: arrivals do not change when prompts do.
        let mut random = Random::of_item(seed, u64::MAX);
        let mut seconds = 0.0;
        std::iter::repeat_with(move || {
            let at = (seconds * 1e9) as Nanos;
            let gap = match self {
                Self::Constant => 1.0,
                Self::Poisson => random.exponential(),
                Self::Gamma { burstiness } => random.gamma(burstiness) / burstiness,
            };
            seconds += gap / rate;
            at
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(arrivals: Arrivals, seed: u64) -> (f64, f64) {
        let times: Vec<Nanos> = arrivals.times(20.0, seed).take(50_000).collect();
        assert!(times.is_sorted());
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / 1e9).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn gaps_have_the_rate_and_spread_asked_for() {
        let seed = 5;
        for (arrivals, spread) in [
            (Arrivals::Constant, 0.0),
            (Arrivals::Poisson, 1.0),
            (Arrivals::Gamma { burstiness: 0.25 }, 2.0),
            (Arrivals::Gamma { burstiness: 4.0 }, 0.5),
        ] {
            let (mean, variation) = gaps(arrivals, seed);
            assert!((mean * 20.0 - 1.0).abs() < 0.03, "{arrivals:?}, seed {seed}: mean {mean}");
            assert!((variation - spread).abs() < 0.05, "{arrivals:?}, seed {seed}: variation {variation}");
        }
    }

    #[test]
    fn a_schedule_repeats_with_its_seed() {
        let times = |seed| Arrivals::Poisson.times(10.0, seed).take(100).collect::<Vec<_>>();
        assert_eq!(times(1), times(1));
        assert_ne!(times(1), times(2));
        let constant = Arrivals::Constant.times(2.0, 0).take(3);
        assert_eq!(constant.collect::<Vec<_>>(), [0, 500_000_000, 1_000_000_000]);
    }

    #[test]
    fn a_level_ends_at_whichever_comes_first() {
        let second = Duration::from_secs(1);
        let until = Until { requests: Some(3), duration: Some(2 * second) };
        assert!(until.allows(2, second) && !until.allows(3, second) && !until.allows(0, 2 * second));
        assert!(Until { requests: None, duration: None }.allows(u64::MAX, 1_000_000 * second));
    }
}
