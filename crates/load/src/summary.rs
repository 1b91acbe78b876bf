//! What a level comes to: counts, rates and distributions, a pure function of its records.

use crate::{
    definitions::{self, Objectives, OutputTokens},
    record::{FailureClass, Nanos, Outcome, RequestRecord},
    statistics::{Distribution, PERCENTILES, Sample},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A level in numbers; the type in which results are stored. Times in milliseconds, windows in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Measured requests by how they ended.
    pub requests: Counts,
    /// Failures and cut-offs by class, each with an example.
    pub failures: BTreeMap<String, FailureCount>,
    /// From the first measured request's scheduled send to the last one's end.
    pub window_s: f64,
    /// Rates over that window, of completed requests.
    pub throughput: Throughput,
    /// Rates while load was offered; none when that was no time (all requests at once).
    pub while_offered: Option<Offered>,
    /// Requests that met the objectives, if any were set.
    pub goodput: Option<Goodput>,
    /// Distributions by name, of completed requests; the names are those of [`definitions::DEFINITIONS`].
    pub latency: BTreeMap<String, LatencySummary>,
    /// What chunks looked like.
    pub chunks: ChunkSummary,
    /// Prompt lengths as asked for and as the server counted them.
    pub prompts: PromptSummary,
    /// Output lengths as limited and as generated.
    pub outputs: OutputSummary,
    /// Mean number of requests in flight over the window.
    pub concurrency_mean: f64,
}

/// How many requests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Measured requests.
    pub sent: u64,
    /// Whole answers.
    pub completed: u64,
    /// Failures before any content.
    pub failed: u64,
    /// Failures after some content.
    pub cut_off: u64,
    /// Given up by this client when the user ended the run.
    pub interrupted: u64,
    /// Completed answers without any content.
    pub without_content: u64,
    /// Completed answers whose usage says 0 tokens of content or prompt that there was.
    #[serde(default)]
    pub usage_contradicted: u64,
    /// Requests before the measurement.
    pub warmup: u64,
    /// Of those, not completed.
    pub warmup_failed: u64,
    /// Measured requests that opened a connection of their own.
    pub new_connections: u64,
}

/// A class of failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureCount {
    /// How often.
    pub count: u64,
    /// The first message.
    pub example: String,
}

/// Rates of completed requests over the window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// Completed requests per second.
    pub requests_per_s: f64,
    /// Their output tokens per second.
    pub output_tokens_per_s: f64,
    /// Their prompt and output tokens per second, where the server counts both.
    pub total_tokens_per_s: Option<f64>,
    /// Some output was counted by chunks, because the server did not.
    pub estimated: bool,
}

/// Rates between the first and the last measured request's scheduled send: no ramp, no stragglers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offered {
    /// That time.
    pub window_s: f64,
    /// Requests that became due per second.
    pub offered_per_s: f64,
    /// Output tokens that arrived per second, whichever request they belong to (warm-up and cut-off ones too); none for
    /// answers that are not streamed.
    pub output_tokens_per_s: Option<f64>,
}

/// Requests that met the objectives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goodput {
    /// Highest TTFT.
    pub ttft_ms_max: Option<f64>,
    /// Highest TPOT.
    pub tpot_ms_max: Option<f64>,
    /// Highest E2E.
    pub e2e_ms_max: Option<f64>,
    /// How many met all.
    pub good: u64,
    /// Of all that were sent and not interrupted; failed ones count against it.
    pub share: f64,
    /// Per second of the window.
    pub requests_per_s: f64,
}

/// One distribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Values.
    pub count: u64,
    /// Requests they come from.
    pub requests: u32,
    /// Arithmetic mean.
    pub mean: f64,
    /// Its 95 % interval.
    pub mean_interval: Option<(f64, f64)>,
    /// Sample standard deviation.
    pub standard_deviation: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// `p50` … `p99.9`; null where the count does not support it.
    pub percentiles: BTreeMap<String, Option<PercentileSummary>>,
}

/// One percentile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PercentileSummary {
    /// The sample's.
    pub value: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// What chunks looked like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChunkSummary {
    /// Content chunks of completed requests.
    pub count: u64,
    /// Output tokens per content chunk; above 1, chunk gaps are no token gaps. None where the server does not count.
    pub tokens_per_chunk: Option<f64>,
    /// Share of chunks that came in one read with the one before: the server, the network or this client joined them.
    pub joined_share: f64,
    /// Longest gap between two chunks of one request, cut-off ones included.
    pub longest_gap_ms: f64,
}

/// Prompt lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PromptSummary {
    /// Mean length asked for, where the work knows it.
    pub asked_mean: Option<f64>,
    /// Mean length by the server's count.
    pub counted_mean: Option<f64>,
    /// Requests whose two lengths are both known.
    pub compared: u64,
    /// Of those, exactly as asked.
    pub exact: u64,
    /// Largest difference between the two.
    pub difference_max: u32,
    /// Share of prompt tokens the server had cached, where it tells.
    pub cached_share: Option<f64>,
}

/// Output lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OutputSummary {
    /// Mean limit.
    pub limit_mean: f64,
    /// Mean length of completed answers.
    pub mean: Option<f64>,
    /// Completed answers that reached their limit.
    pub at_limit: u64,
    /// Tokens of completed answers.
    pub total: u64,
}

impl Summary {
    /// Summarises a level; none when it measured no request.
    pub fn of(records: &[RequestRecord], objectives: &Objectives) -> Option<Self> {
        let measured: Vec<&RequestRecord> = records.iter().filter(|record| !record.warmup).collect();
        let first = measured.iter().map(|record| record.scheduled).min()?;
        let last_due = measured.iter().map(|record| record.scheduled).max()?;
        let end = measured.iter().map(|record| record.ended).max()?;
        let window_s = seconds(end.saturating_sub(first)).max(1e-9);
        let completed: Vec<&RequestRecord> =
            measured.iter().copied().filter(|record| record.outcome() == Outcome::Completed).collect();
        let in_flight: f64 = measured.iter().map(|record| seconds(record.ended.saturating_sub(record.scheduled))).sum();
        Some(Self {
            requests: counts(records),
            failures: failures(&measured),
            window_s,
            throughput: throughput(&completed, window_s),
            while_offered: while_offered(records, measured.len(), first, last_due),
            goodput: goodput(&measured, objectives, window_s),
            latency: latency(&completed),
            chunks: chunks(&measured, &completed),
            prompts: prompts(&completed),
            outputs: outputs(&measured, &completed),
            concurrency_mean: in_flight / window_s,
        })
    }
}

fn counts(records: &[RequestRecord]) -> Counts {
    let mut counts = Counts::default();
    for record in records {
        let outcome = record.outcome();
        if record.warmup {
            counts.warmup += 1;
            counts.warmup_failed += u64::from(outcome != Outcome::Completed);
            continue;
        }
        counts.sent += 1;
        match outcome {
            Outcome::Completed => counts.completed += 1,
            Outcome::Failed => counts.failed += 1,
            Outcome::CutOff => counts.cut_off += 1,
            Outcome::Interrupted => counts.interrupted += 1,
        }
        let empty = outcome == Outcome::Completed && record.streamed && record.chunks.is_empty();
        counts.without_content += u64::from(empty);
        let contradicted = outcome == Outcome::Completed && definitions::is_usage_contradicted(record);
        counts.usage_contradicted += u64::from(contradicted);
        counts.new_connections += u64::from(!record.reused_connection);
    }
    counts
}

fn failures(measured: &[&RequestRecord]) -> BTreeMap<String, FailureCount> {
    let mut classes = BTreeMap::new();
    for failure in measured.iter().filter_map(|record| record.failure.as_ref()) {
        if failure.class == FailureClass::Interrupted {
            continue;
        }
        let new = || FailureCount { count: 0, example: failure.message.clone() };
        classes.entry(failure.class.name().to_owned()).or_insert_with(new).count += 1;
    }
    classes
}

fn throughput(completed: &[&RequestRecord], window_s: f64) -> Throughput {
    let tokens: Vec<OutputTokens> = completed.iter().map(|record| definitions::output_tokens(record)).collect();
    // Not `sum`: that of nothing is -0.
    let output = tokens.iter().fold(0.0, |sum, tokens| sum + f64::from(tokens.count));
    let prompts: Option<f64> = completed.iter().map(|record| definitions::prompt_tokens(record).map(f64::from)).sum();
    Throughput {
        requests_per_s: completed.len() as f64 / window_s,
        output_tokens_per_s: output / window_s,
        total_tokens_per_s: prompts.filter(|_| !completed.is_empty()).map(|prompts| (prompts + output) / window_s),
        estimated: tokens.iter().any(|tokens| tokens.estimated),
    }
}

fn while_offered(records: &[RequestRecord], measured: usize, first: Nanos, last_due: Nanos) -> Option<Offered> {
    let window_s = Some(seconds(last_due - first)).filter(|&window_s| window_s > 0.0)?;
    let streamed = records.iter().any(|record| !record.chunks.is_empty());
    let tokens: f64 = records.iter().map(|record| definitions::tokens_between(record, first, last_due)).sum();
    Some(Offered {
        window_s,
        // The last one ends the window and is not in it.
        offered_per_s: (measured - 1) as f64 / window_s,
        output_tokens_per_s: streamed.then_some(tokens / window_s),
    })
}

fn goodput(measured: &[&RequestRecord], objectives: &Objectives, window_s: f64) -> Option<Goodput> {
    if objectives.is_empty() {
        return None;
    }
    let judged = measured.iter().filter(|record| record.outcome() != Outcome::Interrupted);
    let total = judged.clone().count();
    let good = judged.filter(|record| objectives.met_by(record)).count();
    Some(Goodput {
        ttft_ms_max: objectives.ttft_ms,
        tpot_ms_max: objectives.tpot_ms,
        e2e_ms_max: objectives.e2e_ms,
        good: good as u64,
        share: good as f64 / total.max(1) as f64,
        requests_per_s: good as f64 / window_s,
    })
}

fn latency(completed: &[&RequestRecord]) -> BTreeMap<String, LatencySummary> {
    let mut all = BTreeMap::new();
    let mut add = |name: &str, values: &dyn Fn(&RequestRecord) -> Vec<f64>| {
        let mut sample = Sample::default();
        for record in completed {
            sample.push_request(values(record).into_iter().map(|nanos| nanos / 1e6));
        }
        if let Some(distribution) = sample.distribution() {
            all.insert(name.to_owned(), LatencySummary::from(distribution));
        }
    };
    let one = |value: Option<f64>| value.into_iter().collect();
    let whole = |value: Option<Nanos>| value.map(|nanos| nanos as f64).into_iter().collect();
    add("ttft_ms", &|record| whole(definitions::ttft(record)));
    add("itl_ms", &|record| definitions::chunk_gaps(record).map(|nanos| nanos as f64).collect());
    add("token_gap_ms", &|record| definitions::token_gaps(record).collect());
    add("tpot_ms", &|record| one(definitions::tpot(record)));
    add("tpot_with_first_ms", &|record| one(definitions::tpot_with_first(record)));
    add("e2e_ms", &|record| whole(definitions::e2e(record)));
    add("first_event_ms", &|record| whole(definitions::first_event(record)));
    add("send_delay_ms", &|record| whole(definitions::send_delay(record)));
    all
}

fn chunks(measured: &[&RequestRecord], completed: &[&RequestRecord]) -> ChunkSummary {
    let count: usize = completed.iter().map(|record| record.chunks.len()).sum();
    let tokens: Option<u64> = completed
        .iter()
        .filter(|record| !record.chunks.is_empty())
        .map(|record| definitions::output_tokens(record))
        .try_fold(0, |sum, tokens| (!tokens.estimated).then_some(sum + u64::from(tokens.count)));
    let joined: usize =
        completed.iter().map(|record| definitions::chunk_gaps(record).filter(|&gap| gap == 0).count()).sum();
    let longest = measured.iter().flat_map(|record| definitions::chunk_gaps(record)).max().unwrap_or(0);
    ChunkSummary {
        count: count as u64,
        tokens_per_chunk: tokens.filter(|_| count > 0).map(|tokens| tokens as f64 / count as f64),
        joined_share: joined as f64 / count.max(1) as f64,
        longest_gap_ms: longest as f64 / 1e6,
    }
}

fn prompts(completed: &[&RequestRecord]) -> PromptSummary {
    let usages = || completed.iter().filter_map(|record| record.usage);
    let counted = completed.iter().filter_map(|record| definitions::prompt_tokens(record)).map(f64::from);
    let pairs: Vec<(u32, u32)> = completed
        .iter()
        .filter_map(|record| Some((record.prompt_tokens_asked?, definitions::prompt_tokens(record)?)))
        .collect();
    let cached = usages().filter_map(|usage| usage.cached_tokens).map(f64::from);
    let cached: Option<f64> = cached.fold(None, |sum: Option<f64>, tokens| Some(sum.unwrap_or(0.0) + tokens));
    let total: f64 = counted.clone().sum();
    PromptSummary {
        asked_mean: mean(completed.iter().filter_map(|record| record.prompt_tokens_asked).map(f64::from)),
        counted_mean: mean(counted),
        compared: pairs.len() as u64,
        exact: pairs.iter().filter(|(asked, counted)| asked == counted).count() as u64,
        difference_max: pairs.iter().map(|(asked, counted)| asked.abs_diff(*counted)).max().unwrap_or(0),
        cached_share: cached.filter(|_| total > 0.0).map(|cached| cached / total),
    }
}

fn outputs(measured: &[&RequestRecord], completed: &[&RequestRecord]) -> OutputSummary {
    let tokens = |record: &RequestRecord| definitions::output_tokens(record).count;
    OutputSummary {
        limit_mean: mean(measured.iter().map(|record| f64::from(record.output_tokens_asked))).unwrap_or(0.0),
        mean: mean(completed.iter().map(|record| f64::from(tokens(record)))),
        at_limit: completed.iter().filter(|record| tokens(record) >= record.output_tokens_asked).count() as u64,
        total: completed.iter().map(|record| u64::from(tokens(record))).sum(),
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
    (count > 0.0).then(|| sum / count)
}

fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e9
}

impl From<Distribution> for LatencySummary {
    fn from(distribution: Distribution) -> Self {
        let percentiles = PERCENTILES.iter().zip(distribution.percentiles).map(|(percent, estimate)| {
            let summary = estimate.map(|estimate| PercentileSummary {
                value: estimate.value,
                low: estimate.interval.0,
                high: estimate.interval.1,
            });
            (format!("p{percent}"), summary)
        });
        Self {
            count: distribution.count as u64,
            requests: distribution.requests,
            mean: distribution.mean,
            // Times: of few requests the interval would begin below zero, where none can be.
            mean_interval: distribution.mean_interval.map(|(low, high)| (low.max(0.0), high)),
            standard_deviation: distribution.standard_deviation,
            min: distribution.min,
            max: distribution.max,
            percentiles: percentiles.collect(),
        }
    }
}
