//! When requests are due: by clients that wait for their answers (closed loop) or by a clock (open loop).

use crate::{random::Random, record::Nanos, stages::Stages};
use std::{sync::Arc, time::Duration};

/// How load is offered.
#[derive(Clone, Debug, PartialEq)]
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
    /// Clients as in a closed loop, whose number changes by stages.
    Clients {
        /// How many there are.
        stages: Stages,
    },
    /// Requests due by a clock, at a rate that changes by stages.
    Rates {
        /// Mean requests per second.
        stages: Stages,
        /// The gaps between them, stretched by the rate.
        arrivals: Arrivals,
        /// Most requests in flight.
        in_flight_max: u32,
    },
    /// Requests due when a trace had them.
    Trace {
        /// The trace's file.
        name: String,
        /// When each is due, ascending.
        times: Arc<[Nanos]>,
        /// The trace's own times were multiplied by this.
        time_scale: f64,
        /// Most requests in flight.
        in_flight_max: u32,
    },
}

impl Load {
    /// When requests are due, from 0, ascending; none where clients wait for their answers.
    pub fn times(&self, seed: u64) -> Option<Box<dyn Iterator<Item = Nanos> + Send>> {
        match self {
            Self::Closed { .. } | Self::Clients { .. } => None,
            &Self::Open { rate, arrivals, .. } => Some(Box::new(arrivals.times(rate, seed))),
            Self::Rates { stages, arrivals, .. } => {
                let stages = stages.clone();
                Some(Box::new(arrivals.events(seed).map_while(move |event| stages.when(event))))
            }
            Self::Trace { times, .. } => {
                let times = times.clone();
                Some(Box::new((0..times.len()).map(move |place| times[place])))
            }
        }
    }

    /// The stages, where it has any.
    pub fn stages(&self) -> Option<&Stages> {
        match self {
            Self::Clients { stages } | Self::Rates { stages, .. } => Some(stages),
            _ => None,
        }
    }

    /// Most clients, or requests in flight, at a time.
    pub fn clients_max(&self) -> u32 {
        match self {
            Self::Closed { concurrency } => *concurrency,
            Self::Clients { stages } => stages.max().ceil() as u32,
            Self::Open { in_flight_max, .. }
            | Self::Rates { in_flight_max, .. }
            | Self::Trace { in_flight_max, .. } => *in_flight_max,
        }
    }
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
    pub fn times(self, rate: f64, seed: u64) -> impl Iterator<Item = Nanos> + Send {
        assert!(rate > 0.0, "a rate of {rate} requests per second");
        self.events(seed).map(move |event| (event / rate * 1e9) as Nanos)
    }

    /// The same at a rate of one, in seconds.
    fn events(self, seed: u64) -> impl Iterator<Item = f64> + Send {
        // Its own family of numbers: arrivals do not change when prompts do.
        let mut random = Random::of_item(seed, u64::MAX);
        let mut event = 0.0;
        std::iter::repeat_with(move || {
            let at = event;
            event += match self {
                Self::Constant => 1.0,
                Self::Poisson => random.exponential(),
                Self::Gamma { burstiness } => random.gamma(burstiness) / burstiness,
            };
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
    fn stages_offer_as_many_requests_as_their_area() {
        let stages: Stages = "100s:10,100s:10-50".parse().unwrap();
        let load = |arrivals| Load::Rates { stages: stages.clone(), arrivals, in_flight_max: 1 };
        let times: Vec<Nanos> = load(Arrivals::Constant).times(0).unwrap().collect();
        assert_eq!((times.len(), times.is_sorted()), (4000, true));
        assert_eq!(times.iter().filter(|&&at| at < 100_000_000_000).count(), 1000);
        let seed = 3;
        let count = load(Arrivals::Poisson).times(seed).unwrap().count() as f64;
        // Five standard deviations.
        assert!((count - 4000.0).abs() < 5.0 * 4000f64.sqrt(), "seed {seed}: {count}");
        let trace = Load::Trace { name: "t".into(), times: vec![5, 9].into(), time_scale: 1.0, in_flight_max: 1 };
        assert_eq!(trace.times(0).unwrap().collect::<Vec<_>>(), [5, 9]);
    }

    #[test]
    fn a_level_ends_at_whichever_comes_first() {
        let second = Duration::from_secs(1);
        let until = Until { requests: Some(3), duration: Some(2 * second) };
        assert!(until.allows(2, second) && !until.allows(3, second) && !until.allows(0, 2 * second));
        assert!(Until { requests: None, duration: None }.allows(u64::MAX, 1_000_000 * second));
    }
}
