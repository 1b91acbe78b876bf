//! What the server's metrics and the GPUs say while a level runs, looked at in a fixed period by a thread of its own.

use crate::{
    exchange::Target,
    gpu::{GpuSample, GpuSummary, GpuWatch},
    record::Nanos,
    session::Session,
    stop::Stop,
    subject::{self, Metrics},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

/// Most samples of a level; after that the rest of it is not looked at.
const SAMPLES_MAX: usize = 100_000;
/// Most values kept of one page of metrics.
const VALUES_MAX: usize = 500;

/// One look.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// When.
    pub at: Nanos,
    /// `metrics`, `gpu` or `client`.
    pub source: &'static str,
    /// Numbers by name.
    pub values: BTreeMap<String, f64>,
}

/// A gauge of the server's during a level.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GaugeSummary {
    /// How often it was seen.
    pub samples: u64,
    /// Lowest.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Highest.
    pub max: f64,
}

/// All that was seen during a level.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) series: Vec<Sample>,
    pub(crate) gauges: BTreeMap<String, GaugeSummary>,
    pub(crate) gpus: Vec<GpuSummary>,
}

/// How long the looks that are under way or to come when the work is over may take.
const LAST_LOOK_MAX: Duration = Duration::from_secs(2);

/// Runs `work` and looks meanwhile; not at all without a period.
pub(crate) fn during<T>(
    target: &Target,
    gpus: &GpuWatch,
    period: Option<Duration>,
    work: impl FnOnce() -> T,
) -> io::Result<(T, Seen)> {
    let Some(period) = period else { return Ok((work(), Seen::default())) };
    let patience = Stop::new();
    let session = Session::new(&patience)?;
    let (done, ended) = mpsc::channel::<()>();
    let (over, looked) = mpsc::channel::<()>();
    Ok(std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let mut watch =
                Watch { target, gpus, session, samples: Vec::new(), gpu_samples: Vec::new(), seen: Seen::default() };
            let mut next = Instant::now();
            while watch.samples.len() < SAMPLES_MAX {
                watch.look();
                next = (next + period).max(Instant::now());
                match ended.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Err(RecvTimeoutError::Timeout) => {}
                    // The last look shows the end.
                    _ => {
                        watch.look();
                        break;
                    }
                }
            }
            drop(over);
            watch.seen()
        });
        let result = work();
        drop(done);
        // A server that does not answer is not waited for.
        if looked.recv_timeout(LAST_LOOK_MAX) == Err(RecvTimeoutError::Timeout) {
            patience.request();
        }
        let seen = watch.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (result, seen)
    }))
}

struct Watch<'a> {
    target: &'a Target,
    gpus: &'a GpuWatch,
    session: Session,
    samples: Vec<Sample>,
    gpu_samples: Vec<GpuSample>,
    seen: Seen,
}

impl Watch<'_> {
    fn look(&mut self) {
        let at = self.target.clock.now();
        let page = subject::page(&self.session, self.target);
        if !page.samples.is_empty() {
            self.gauges(&page.samples, &page.gauges);
            let kept = page.samples.into_iter().filter(|(name, _)| !name.contains("_bucket")).take(VALUES_MAX);
            self.samples.push(Sample { at, source: "metrics", values: kept.collect() });
        }
        let looked = self.gpus.sample(self.target.clock.now());
        if !looked.is_empty() {
            let values = looked.iter().flat_map(GpuSample::values).collect();
            self.samples.push(Sample { at: self.target.clock.now(), source: "gpu", values });
            self.gpu_samples.extend(looked);
        }
        let counts = self.target.live.counts();
        let known = [
            ("running", Some(counts.running as f64)),
            ("completed", Some(counts.completed as f64)),
            ("failed", Some((counts.failed + counts.cut_off) as f64)),
            ("chunks", Some(counts.chunks as f64)),
            ("ttft_ms_mean", counts.ttft_ms),
            ("itl_ms_mean", counts.itl_ms),
        ];
        let values = known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        self.samples.push(Sample { at: self.target.clock.now(), source: "client", values });
    }

    fn gauges(&mut self, samples: &Metrics, gauges: &[String]) {
        for (name, &value) in samples {
            let bare = name.split('{').next().unwrap_or_default();
            if !gauges.iter().any(|gauge| gauge == bare) || self.seen.gauges.len() >= VALUES_MAX {
                continue;
            }
            let gauge = self.seen.gauges.entry(name.clone()).or_insert(GaugeSummary {
                samples: 0,
                min: value,
                mean: 0.0,
                max: value,
            });
            gauge.samples += 1;
            gauge.mean += (value - gauge.mean) / gauge.samples as f64;
            (gauge.min, gauge.max) = (gauge.min.min(value), gauge.max.max(value));
        }
    }

    fn seen(self) -> Seen {
        Seen { series: self.samples, gpus: GpuSummary::of(self.gpu_samples.iter()), ..self.seen }
    }
}
