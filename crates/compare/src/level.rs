//! One load on one side: the runs that offered it, and the measures they left.

use crate::{
    metric::{Latency, Metric, Statistic},
    sample::{Measure, Numbers, Rate, Sample},
    side::Side,
};
use powertrain_load::{Nanos, RequestRecord, Summary, definitions, result::LoadResult, table};
use std::ops::Range;

/// Slices of a run's time, to see how its rates vary.
const SLICES: usize = 20;
/// Blocks of requests that a run should have at least.
const BLOCKS_PER_RUN_MIN: usize = 10;

/// A load's runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct LevelRuns<'a> {
    pub(crate) runs: Vec<LevelRun<'a>>,
}

/// One run of a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LevelRun<'a> {
    pub(crate) summary: &'a Summary,
    requests: Option<&'a [RequestRecord]>,
}

/// The loads of a side by name, in the order of the first run. A load that a run offered twice has its number at the name.
pub(crate) fn levels(side: &Side) -> Vec<(String, LevelRuns<'_>)> {
    let mut all: Vec<(String, LevelRuns<'_>)> = Vec::new();
    for run in &side.runs {
        let mut names: Vec<String> = Vec::new();
        for (place, level) in run.result.levels.iter().enumerate() {
            let bare = load_name(&level.load);
            let before = names.iter().filter(|name| **name == bare).count();
            names.push(bare.clone());
            // What was broken off measured something else.
            let Some(summary) = level.summary.as_ref().filter(|_| !level.interrupted) else { continue };
            let name = if before == 0 { bare } else { format!("{bare} ({})", before + 1) };
            let found = LevelRun { summary, requests: run.requests(place) };
            match all.iter_mut().find(|(other, _)| *other == name) {
                Some((_, runs)) => runs.runs.push(found),
                None => all.push((name, LevelRuns { runs: vec![found] })),
            }
        }
    }
    all
}

/// The load in words.
pub(crate) fn load_name(load: &LoadResult) -> String {
    table::load_name(load)
}

impl LevelRuns<'_> {
    /// The measure that holds this metric; none where no run has it.
    pub(crate) fn measure(&self, metric: Metric) -> Option<Measure> {
        match metric {
            Metric::Latency(latency, _) => self.distribution(latency),
            _ => self.rate(metric),
        }
    }

    /// Of `sent` requests, those that failed or were cut off.
    pub(crate) fn failed(&self) -> (u64, u64) {
        let counts = self.runs.iter().map(|run| &run.summary.requests);
        counts.fold((0, 0), |(failed, sent), counts| {
            (failed + counts.failed + counts.cut_off, sent + counts.sent - counts.interrupted)
        })
    }

    /// Mean length of completed answers.
    pub(crate) fn answer_tokens(&self) -> Option<f64> {
        let (tokens, completed) = self.runs.iter().fold((0, 0), |(tokens, completed), run| {
            (tokens + run.summary.outputs.total, completed + run.summary.requests.completed)
        });
        (completed > 0).then(|| tokens as f64 / completed as f64)
    }

    /// Answers without content, of so many completed.
    pub(crate) fn without_content(&self) -> (u64, u64) {
        let counts = self.runs.iter().map(|run| &run.summary.requests);
        counts.fold((0, 0), |(empty, all), counts| (empty + counts.without_content, all + counts.completed))
    }

    fn rate(&self, metric: Metric) -> Option<Measure> {
        let mut rate = Rate::default();
        for run in &self.runs {
            let summary = run.summary;
            let per_second = match metric {
                Metric::RequestsPerSecond => summary.throughput.requests_per_s,
                Metric::OutputTokensPerSecond => summary.throughput.output_tokens_per_s,
                Metric::TotalTokensPerSecond => summary.throughput.total_tokens_per_s?,
                Metric::GoodRequestsPerSecond => summary.goodput?.requests_per_s,
                Metric::Latency(..) => return None,
            };
            rate.runs.push((per_second * summary.window_s, summary.window_s));
            rate.slices.extend(match metric {
                Metric::OutputTokensPerSecond => run.requests.map(token_slices),
                Metric::RequestsPerSecond => run.requests.map(answer_slices),
                _ => None,
            });
        }
        // A rate of which only some runs know how it varied is as one of which none does.
        if rate.slices.len() < rate.runs.len() || rate.slices.iter().any(Vec::is_empty) {
            rate.slices.clear();
        }
        Some(Measure::Rate(rate))
    }

    fn distribution(&self, latency: Latency) -> Option<Measure> {
        let mut sample = Sample::default();
        for run in &self.runs {
            let Some(records) = run.requests else { return self.stored(latency) };
            let mut measured: Vec<&RequestRecord> = records.iter().filter(|record| is_counted(record)).collect();
            measured.sort_by_key(|record| record.scheduled);
            let values: Vec<Vec<f64>> = measured.iter().map(|record| values(record, latency)).collect();
            let together = run.summary.concurrency_mean.round().max(1.0) as usize;
            sample.push_run(&values, together.min(values.len() / BLOCKS_PER_RUN_MIN));
        }
        sample.supports(Statistic::Mean).then_some(Measure::Distribution(sample))
    }

    /// The runs' own numbers.
    fn stored(&self, latency: Latency) -> Option<Measure> {
        let numbers = self.runs.iter().map(|run| {
            let stored = run.summary.latency.get(&latency.stored_name())?;
            let number = |statistic: Statistic| match statistic {
                Statistic::Mean => stored.mean,
                other => stored.percentiles.get(other.name()).copied().flatten().map_or(f64::NAN, |found| found.value),
            };
            Some(Numbers::from(Statistic::ALL.map(number)))
        });
        numbers.collect::<Option<Vec<_>>>().map(Measure::Stored)
    }
}

/// Distributions hold measured, completed requests, as in the summaries.
fn is_counted(record: &RequestRecord) -> bool {
    !record.warmup && record.failure.is_none()
}

/// One request's values in milliseconds.
fn values(record: &RequestRecord, latency: Latency) -> Vec<f64> {
    let nanos: Vec<f64> = match latency {
        Latency::Ttft => definitions::ttft(record).map(|nanos| nanos as f64).into_iter().collect(),
        Latency::Itl => definitions::chunk_gaps(record).map(|nanos| nanos as f64).collect(),
        Latency::Tpot => definitions::tpot(record).into_iter().collect(),
        Latency::E2e => definitions::e2e(record).map(|nanos| nanos as f64).into_iter().collect(),
    };
    nanos.into_iter().map(|nanos| nanos / 1e6).collect()
}

/// Tokens that arrived in each slice of the time during which load was offered; empty when that was no time.
fn token_slices(records: &[RequestRecord]) -> Vec<f64> {
    if !records.iter().any(|record| !record.chunks.is_empty() && record.streamed) {
        return Vec::new();
    }
    slices(records, |record, slice| definitions::tokens_between(record, slice.start, slice.end))
}

/// Answers that ended in each slice.
fn answer_slices(records: &[RequestRecord]) -> Vec<f64> {
    slices(records, |record, slice| {
        let ended = definitions::e2e(record).is_some_and(|nanos| slice.contains(&(record.scheduled + nanos)));
        f64::from(u8::from(ended))
    })
}

fn slices(records: &[RequestRecord], of: impl Fn(&RequestRecord, &Range<Nanos>) -> f64) -> Vec<f64> {
    let due = || records.iter().filter(|record| !record.warmup).map(|record| record.scheduled);
    let (Some(first), Some(last)) = (due().min(), due().max()) else { return Vec::new() };
    let width = (last - first) / SLICES as Nanos;
    if width == 0 {
        return Vec::new();
    }
    let slice = |number: usize| {
        let from = first + number as Nanos * width;
        records.iter().map(|record| of(record, &(from..from + width))).sum()
    };
    (0..SLICES).map(slice).collect()
}
