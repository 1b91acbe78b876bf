//! Whether the client was up to what it measured: its own lateness in numbers, and a verdict by stated limits.

use crate::{
    definitions,
    live::Live,
    priority::Priority,
    record::{FailureClass, RequestRecord},
    run::LevelRun,
    statistics::interpolated,
};
use serde::{Deserialize, Serialize};

/// Above this 99th percentile of the event loops' lag, arrival times are not to be trusted to the millisecond.
const LAG_P99_MS_MAX: f64 = 5.0;
/// Above this 99th percentile of the time that bytes lay in sockets, chunks may have been read together.
const SOCKET_WAIT_P99_MS_MAX: f64 = 10.0;
/// Above this share of a CPU, a client thread has no reserve left.
const CPU_SHARE_MAX: f64 = 0.85;
/// Above this 99th percentile, requests were not sent when they were due.
const LATENESS_P99_MS_MAX: f64 = 5.0;

/// What the client noted of itself during a level.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientHealth {
    /// Client threads.
    pub threads: usize,
    /// The lowest priority that a client thread got.
    #[serde(default)]
    pub priority: Priority,
    /// What they asked for.
    #[serde(default)]
    pub priority_asked: Priority,
    /// Probes of the event loops.
    pub lag_probes: usize,
    /// How late an event loop got to what had arrived: median.
    pub lag_ms_p50: Option<f64>,
    /// 99th percentile.
    pub lag_ms_p99: Option<f64>,
    /// Longest.
    pub lag_ms_max: Option<f64>,
    /// Who took the time of arrivals: `kernel`, or `loop` where the kernel does not tell.
    #[serde(default)]
    pub receive_times: String,
    /// From the kernel's receipt to the client's read: median, to one part in eight.
    #[serde(default)]
    pub socket_wait_ms_p50: Option<f64>,
    /// 99th percentile. Chunks of one stream that come meanwhile are read together and have one time.
    #[serde(default)]
    pub socket_wait_ms_p99: Option<f64>,
    /// Longest.
    #[serde(default)]
    pub socket_wait_ms_max: Option<f64>,
    /// Share of the time in which a thread read in rounds of half a millisecond, because chunks came faster than it could be woken for each: the longest of all threads.
    #[serde(default)]
    pub in_rounds_share: f64,
    /// How late requests were begun after they were due: 99th percentile.
    pub lateness_ms_p99: Option<f64>,
    /// Of the busiest thread: its share of a CPU.
    pub cpu_share_max: f64,
    /// Of the thread that waited most: share of the time it was ready and had no CPU.
    pub cpu_wait_share_max: f64,
    /// CPU seconds of this process.
    pub own_cpu_s: Option<f64>,
    /// CPU seconds of everything else on this machine meanwhile: the server, if it runs here, and whatever disturbs it.
    pub others_cpu_s: Option<f64>,
    /// Why the client, not the server, may have limited the numbers; empty when it did not.
    pub client_limited: Vec<String>,
}

impl ClientHealth {
    /// Judges a level.
    pub fn of(run: &LevelRun, live: &Live) -> Self {
        let waits = &live.waits;
        let waited = |q| waits.quantile(q).map(|nanos| nanos as f64 / 1e6);
        let mut lags: Vec<f64> =
            run.threads.iter().flat_map(|thread| &thread.lags).map(|&lag| lag as f64 / 1e6).collect();
        lags.sort_unstable_by(f64::total_cmp);
        let mut late: Vec<f64> = run.records.iter().map(|record| definitions::lateness(record) as f64 / 1e6).collect();
        late.sort_unstable_by(f64::total_cmp);
        let at = |sorted: &[f64], q| (!sorted.is_empty()).then(|| interpolated(sorted, q));
        let share = |time: fn(&crate::ThreadObservation) -> std::time::Duration| {
            let shares =
                run.threads.iter().map(|thread| time(thread).as_secs_f64() / thread.wall.as_secs_f64().max(1e-9));
            shares.fold(0.0, f64::max)
        };
        let mut health = Self {
            threads: run.threads.len(),
            priority: run.threads.iter().map(|thread| thread.priority).min().unwrap_or_default(),
            priority_asked: run.threads.iter().map(|thread| thread.priority_asked).max().unwrap_or_default(),
            lag_probes: lags.len(),
            lag_ms_p50: at(&lags, 0.5),
            lag_ms_p99: at(&lags, 0.99),
            lag_ms_max: at(&lags, 1.0),
            receive_times: if waits.count() > 0 { "kernel" } else { "loop" }.to_owned(),
            socket_wait_ms_p50: waited(0.5),
            socket_wait_ms_p99: waited(0.99),
            socket_wait_ms_max: (waits.count() > 0).then(|| waits.longest() as f64 / 1e6),
            in_rounds_share: share(|thread| thread.in_rounds),
            lateness_ms_p99: at(&late, 0.99),
            cpu_share_max: share(|thread| thread.cpu),
            cpu_wait_share_max: share(|thread| thread.cpu_wait),
            own_cpu_s: run.cpu.map(|cpu| cpu.own_s),
            others_cpu_s: run.cpu.map(|cpu| cpu.others_s),
            client_limited: Vec::new(),
        };
        health.client_limited = health.reasons(&run.records);
        health
    }

    /// The priority of the client's threads in words, and whether a higher one was refused.
    pub fn priority_text(&self) -> String {
        let (got, asked) = (self.priority.in_words(), self.priority_asked.in_words());
        if self.priority == self.priority_asked { got.to_owned() } else { format!("{got}, as {asked} was refused") }
    }

    fn reasons(&self, records: &[RequestRecord]) -> Vec<String> {
        let mut reasons = Vec::new();
        // With the kernel's times a late loop still reads the right ones, until it falls behind by whole gaps.
        if let Some(wait) = self.socket_wait_ms_p99.filter(|&wait| wait > SOCKET_WAIT_P99_MS_MAX) {
            reasons.push(format!(
                "p99 of the time that bytes lay in sockets is {wait:.1} ms, over {SOCKET_WAIT_P99_MS_MAX} ms: chunks that came \
                 meanwhile have one time"
            ));
        }
        let by_loop = self.socket_wait_ms_p99.is_none();
        if let Some(lag) = self.lag_ms_p99.filter(|&lag| by_loop && lag > LAG_P99_MS_MAX) {
            reasons.push(format!(
                "p99 of the event loops' lag is {lag:.1} ms, over {LAG_P99_MS_MAX} ms; client threads waited for a CPU {:.0} % \
                 of the time",
                self.cpu_wait_share_max * 100.0
            ));
        }
        if self.cpu_share_max > CPU_SHARE_MAX {
            reasons.push(format!(
                "a client thread used {:.0} % of a CPU, over {:.0} %; use more --client-threads",
                self.cpu_share_max * 100.0,
                CPU_SHARE_MAX * 100.0
            ));
        }
        if let Some(late) = self.lateness_ms_p99.filter(|&late| late > LATENESS_P99_MS_MAX) {
            reasons.push(format!(
                "p99 of requests were begun {late:.1} ms after they were due, over {LATENESS_P99_MS_MAX} ms (by this client, \
                 or by its limit of requests in flight)"
            ));
        }
        let exhausted = |record: &&RequestRecord| {
            record.failure.as_ref().is_some_and(|failure| failure.class == FailureClass::ClientExhausted)
        };
        let count = records.iter().filter(exhausted).count();
        if count > 0 {
            reasons.push(format!("{count} requests found no free port or file descriptor on this machine"));
        }
        reasons
    }
}
