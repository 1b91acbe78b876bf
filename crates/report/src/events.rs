//! The raw events beside a result: every request's chunks, from which distributions and the course over time are drawn.

use powertrain_load::{
    Nanos, Outcome, RequestRecord, definitions,
    events::{EventsError, EventsReader},
    statistics::student_95,
};
use std::{collections::BTreeMap, io::BufRead, path::Path};

/// Most values kept of one distribution of one level; what comes later is counted, not drawn.
const VALUES_MAX: usize = 2_000_000;
/// Most seconds of a course over time.
const SECONDS_MAX: usize = 24 * 3600;
/// Slices of a level's time whose differences give the interval of its throughput.
const SLICES: usize = 10;
/// Two-sided 95 % point of Student's t with one degree of freedom less than there are slices is taken from this.
const SLICE_DEGREES: u32 = SLICES as u32 - 1;

/// A run's raw events.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// By the level's place in the run.
    pub levels: BTreeMap<usize, LevelEvents>,
    /// Lines that are no request.
    pub unread: usize,
}

/// A level's raw events.
#[derive(Clone, Debug, Default)]
pub struct LevelEvents {
    /// Of completed measured requests, ascending, in milliseconds.
    pub ttft_ms: Vec<f64>,
    /// Gaps between content chunks of completed measured requests, ascending, in milliseconds.
    pub itl_ms: Vec<f64>,
    /// Tokens that arrived in each second since the level's first request, warm-up included.
    pub tokens_per_second: Vec<f64>,
    /// Half the width of throughput's 95 % interval, as part of throughput: from the differences between ten slices of
    /// the time in which load was offered.
    pub throughput_spread: Option<f64>,
    /// Values beyond the limit of what is kept.
    pub dropped: usize,
}

/// A level while its lines are read.
#[derive(Default)]
struct Gathering {
    events: LevelEvents,
    /// Instant and tokens of each chunk, in seconds.
    arrivals: Vec<(f64, f64)>,
    first_s: Option<f64>,
    offered: Option<(f64, f64)>,
}

impl Events {
    /// Reads the file. Lines that are no request are counted, so that what else it holds can be shown.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> Result<Self, EventsError> {
        Self::read(EventsReader::open(path)?)
    }

    fn read(reader: EventsReader<impl BufRead>) -> Result<Self, EventsError> {
        let mut gathered: BTreeMap<usize, Gathering> = BTreeMap::new();
        let mut unread = 0;
        for request in reader {
            match request {
                Ok((level, record)) => gathered.entry(level).or_default().add(&record),
                Err(EventsError::Line { .. }) => unread += 1,
                Err(error @ EventsError::Read { .. }) => return Err(error),
            }
        }
        let levels = gathered.into_iter().map(|(level, gathering)| (level, gathering.finish())).collect();
        Ok(Self { levels, unread })
    }
}

impl Gathering {
    fn add(&mut self, record: &RequestRecord) {
        let due_s = seconds(record.scheduled);
        self.first_s = Some(self.first_s.map_or(due_s, |first| first.min(due_s)));
        let counted = record.chunks.iter().all(|chunk| chunk.tokens.is_some());
        // The server's total spread evenly where it does not count by chunk; a chunk is a token where it does not count.
        let even = f64::from(definitions::output_tokens(record).count) / record.chunks.len().max(1) as f64;
        let room = VALUES_MAX - self.arrivals.len();
        self.arrivals.extend(record.chunks.iter().take(room).map(|chunk| {
            let tokens = chunk.tokens.filter(|_| counted).map_or(even, f64::from);
            (seconds(chunk.at), tokens)
        }));
        if record.warmup {
            return;
        }
        let (first, last) = self.offered.unwrap_or((due_s, due_s));
        self.offered = Some((first.min(due_s), last.max(due_s)));
        if record.outcome() != Outcome::Completed {
            return;
        }
        self.events.ttft_ms.extend(definitions::ttft(record).map(milliseconds));
        let room = VALUES_MAX - self.events.itl_ms.len();
        self.events.itl_ms.extend(definitions::chunk_gaps(record).take(room).map(milliseconds));
        self.events.dropped += record.chunks.len().saturating_sub(1).saturating_sub(room);
    }

    fn finish(mut self) -> LevelEvents {
        self.events.ttft_ms.sort_unstable_by(f64::total_cmp);
        self.events.itl_ms.sort_unstable_by(f64::total_cmp);
        if let Some(first) = self.first_s {
            for &(at, tokens) in &self.arrivals {
                let second = (at - first).max(0.0) as usize;
                if second >= SECONDS_MAX {
                    continue;
                }
                if self.events.tokens_per_second.len() <= second {
                    self.events.tokens_per_second.resize(second + 1, 0.0);
                }
                self.events.tokens_per_second[second] += tokens;
            }
        }
        let complete = self.arrivals.len() < VALUES_MAX;
        self.events.throughput_spread =
            self.offered.filter(|_| complete).and_then(|offered| spread(&self.arrivals, offered));
        self.events
    }
}

fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e9
}

fn milliseconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e6
}

/// Batch means: the 95 % interval's half width of the mean over equal slices, as part of that mean.
fn spread(arrivals: &[(f64, f64)], (from, to): (f64, f64)) -> Option<f64> {
    let width = (to - from) / SLICES as f64;
    if width <= 0.0 {
        return None;
    }
    let mut slices = [0.0; SLICES];
    for &(at, tokens) in arrivals.iter().filter(|(at, _)| (from..to).contains(at)) {
        slices[(((at - from) / width) as usize).min(SLICES - 1)] += tokens;
    }
    let mean = slices.iter().sum::<f64>() / SLICES as f64;
    let variance = slices.iter().map(|slice| (slice - mean).powi(2)).sum::<f64>() / (SLICES - 1) as f64;
    (mean > 0.0).then(|| student_95(SLICE_DEGREES) * (variance / SLICES as f64).sqrt() / mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"{"level":0,"warmup":true,"scheduled_us":0,"ended_us":1500000,"chunk_gaps_us":[1000000,500000],"usage":{"completion_tokens":4}}
{"level":0,"warmup":false,"scheduled_us":1000000,"ended_us":1600000,"chunk_gaps_us":[300000,200000,100000],"chunk_tokens":[1,2,3],"failure":null}
{"level":0,"scheduled_us":2000000,"ended_us":2005000,"chunk_gaps_us":[5000],"failure":{"class":"closed","message":"x"}}
not a line
{"level":1,"scheduled_us":0,"ended_us":0,"chunk_gaps_us":[]}
"#;

    #[test]
    fn warm_up_and_failed_requests_are_in_no_distribution() {
        let events = Events::read(EventsReader::new(Path::new("x"), LINES.as_bytes())).unwrap();
        assert_eq!(events.unread, 1);
        let level = &events.levels[&0];
        assert_eq!(level.ttft_ms, [300.0]);
        assert_eq!(level.itl_ms, [100.0, 200.0]);
        // Second 1: four tokens of the warm-up in two chunks, and all six of the measured one.
        assert_eq!(level.tokens_per_second, [0.0, 10.0, 1.0]);
        assert!(events.levels[&1].ttft_ms.is_empty());
    }

    #[test]
    fn the_spread_of_a_steady_stream_is_nothing() {
        let steady: Vec<(f64, f64)> = (0..1000).map(|index| (f64::from(index) / 100.0 + 0.001, 1.0)).collect();
        assert!(spread(&steady, (0.0, 10.0)).unwrap() < 1e-9);
        // Half of the slices carry everything: mean 1, standard deviation 1.054, t 2.262 over the root of 10.
        let halting: Vec<(f64, f64)> = (0..5).map(|index| (f64::from(index) * 2.0 + 0.5, 2.0)).collect();
        assert!((spread(&halting, (0.0, 10.0)).unwrap() - 0.754).abs() < 0.01);
        assert_eq!(spread(&halting, (1.0, 1.0)), None);
    }
}
