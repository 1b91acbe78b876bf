//! What Prometheus reads. Every metric that vLLM has too is exposed twice, under our name and under vLLM's, so that its
//! dashboards and Kubernetes inference gateways work unchanged.
//!
//! Text format 0.0.4, which both parse, and the `prometheus` crate because it writes names as given.

use crate::EngineReport;
use powertrain_engine::Snapshot;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder, core::Collector,
};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// `Content-Type` of the exposition.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Our prefix; a family `powertrain_x` listed in [`VLLM_NAMES`] is exposed as `vllm:x` too.
const PREFIX: &str = "powertrain_";

/// What vLLM has under the same name and meaning.
const VLLM_NAMES: &[&str] = &[
    "cache_config_info",
    "e2e_request_latency_seconds",
    "generation_tokens_total",
    "inter_token_latency_seconds",
    "kv_cache_usage_perc",
    "num_preemptions_total",
    "num_requests_running",
    "num_requests_waiting",
    "prefix_cache_hits_total",
    "prefix_cache_queries_total",
    "prompt_tokens_total",
    "request_decode_time_seconds",
    "request_generation_tokens",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_prompt_tokens",
    "request_queue_time_seconds",
    "request_success_total",
    "request_time_per_output_token_seconds",
    "time_to_first_token_seconds",
];

// Bucket boundaries are vLLM's, in seconds.
const TTFT_BUCKETS_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const TOKEN_BUCKETS_S: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const REQUEST_BUCKETS_S: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

/// All metrics of one server.
pub(crate) struct Metrics {
    registry: Registry,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    time_per_output_token: Histogram,
    e2e_latency: Histogram,
    queue_time: Histogram,
    prefill_time: Histogram,
    decode_time: Histogram,
    inference_time: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    success: IntCounterVec,
    responses: IntCounterVec,
    engine: Mutex<EngineMetrics>,
}

/// Copied from the engine's snapshot when somebody looks.
struct EngineMetrics {
    running: Gauge,
    waiting: Gauge,
    kv_cache_usage: Gauge,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    preemptions: IntCounter,
    prompt_tokens: IntCounter,
    generated_tokens: IntCounter,
    steps: IntCounter,
}

/// How a sequence ended, in vLLM's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Stop,
    Length,
    Abort,
    Error,
}

/// A sequence's life, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub(crate) arrived: Instant,
    pub(crate) queued: Option<Instant>,
    pub(crate) scheduled: Option<Instant>,
    pub(crate) first_token: Option<Instant>,
    pub(crate) last_token: Option<Instant>,
    pub(crate) prompt_tokens: u32,
    pub(crate) generated_tokens: u32,
}

impl Ending {
    /// The label's value.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

impl Metrics {
    /// For a model served under `model_name`.
    pub(crate) fn new(model_name: &str, engine: &EngineReport) -> Self {
        let make = Maker { registry: Registry::new(), model_name };
        let counts = one_two_five(engine.max_model_len);
        let info = make.info(
            "cache_config_info",
            "The KV cache: its block size and how many blocks it has",
            &[
                ("block_size", &engine.block_size.to_string()),
                ("num_gpu_blocks", &engine.kv_blocks.to_string()),
                ("cache_dtype", engine.kv_cache_dtype),
            ],
        );
        info.set(1.0);
        make.info("build_info", "The server's version", &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        let metrics = Self {
            time_to_first_token: make.histogram(
                "time_to_first_token_seconds",
                "Arrival to first token",
                TTFT_BUCKETS_S,
            ),
            inter_token_latency: make.histogram(
                "inter_token_latency_seconds",
                "Between two tokens of a sequence",
                TOKEN_BUCKETS_S,
            ),
            time_per_output_token: make.histogram(
                "request_time_per_output_token_seconds",
                "Mean time between tokens of a sequence",
                TOKEN_BUCKETS_S,
            ),
            e2e_latency: make.histogram("e2e_request_latency_seconds", "Arrival to last token", REQUEST_BUCKETS_S),
            queue_time: make.histogram("request_queue_time_seconds", "Accepted to first scheduled", REQUEST_BUCKETS_S),
            prefill_time: make.histogram(
                "request_prefill_time_seconds",
                "First scheduled to first token",
                REQUEST_BUCKETS_S,
            ),
            decode_time: make.histogram("request_decode_time_seconds", "First token to last token", REQUEST_BUCKETS_S),
            inference_time: make.histogram(
                "request_inference_time_seconds",
                "First scheduled to last token",
                REQUEST_BUCKETS_S,
            ),
            prompt_tokens: make.histogram("request_prompt_tokens", "Tokens of a prompt", &counts),
            generation_tokens: make.histogram("request_generation_tokens", "Tokens generated for a sequence", &counts),
            success: make.counters("request_success_total", "Sequences ended, by reason", "finished_reason"),
            responses: make.counters("http_responses_total", "HTTP responses, by status", "status"),
            engine: Mutex::new(EngineMetrics {
                running: make.gauge("num_requests_running", "Sequences running"),
                waiting: make.gauge("num_requests_waiting", "Sequences waiting"),
                kv_cache_usage: make.gauge("kv_cache_usage_perc", "Share of KV cache blocks in use; 1 is all"),
                prefix_queries: make
                    .counter("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache"),
                prefix_hits: make.counter("prefix_cache_hits_total", "Prompt tokens found in the prefix cache"),
                preemptions: make.counter("num_preemptions_total", "Times a running sequence gave up its blocks"),
                prompt_tokens: make.counter("prompt_tokens_total", "Prompt tokens processed"),
                generated_tokens: make.counter("generation_tokens_total", "Tokens generated"),
                steps: make.counter("engine_steps_total", "Steps completed"),
            }),
            registry: make.registry,
        };
        for ending in [Ending::Stop, Ending::Length, Ending::Abort, Ending::Error] {
            metrics.success.with_label_values(&[ending.name()]);
        }
        metrics
    }

    /// A token followed another.
    pub(crate) fn token_gap(&self, gap: Duration) {
        self.inter_token_latency.observe(gap.as_secs_f64());
    }

    /// The first token of a sequence came.
    pub(crate) fn first_token(&self, after: Duration) {
        self.time_to_first_token.observe(after.as_secs_f64());
    }

    /// An HTTP response's head went out.
    pub(crate) fn response(&self, status: u16) {
        self.responses.with_label_values(&[status.to_string().as_str()]).inc();
    }

    /// A sequence ended.
    pub(crate) fn sequence(&self, life: &Life, ending: Ending) {
        self.success.with_label_values(&[ending.name()]).inc();
        if matches!(ending, Ending::Abort | Ending::Error) {
            return;
        }
        let observe = |histogram: &Histogram, from: Option<Instant>, to: Option<Instant>| {
            if let (Some(from), Some(to)) = (from, to) {
                histogram.observe(to.saturating_duration_since(from).as_secs_f64());
            }
        };
        observe(&self.e2e_latency, Some(life.arrived), Some(life.last_token.unwrap_or_else(Instant::now)));
        observe(&self.queue_time, life.queued, life.scheduled);
        observe(&self.prefill_time, life.scheduled, life.first_token);
        observe(&self.decode_time, life.first_token, life.last_token);
        observe(&self.inference_time, life.scheduled, life.last_token);
        if let (Some(first), Some(last), gaps @ 1..) =
            (life.first_token, life.last_token, life.generated_tokens.saturating_sub(1))
        {
            let mean_s = last.saturating_duration_since(first).as_secs_f64() / f64::from(gaps);
            self.time_per_output_token.observe(mean_s);
        }
        self.prompt_tokens.observe(life.prompt_tokens.into());
        self.generation_tokens.observe(life.generated_tokens.into());
    }

    /// Everything as text.
    pub(crate) fn expose(&self, snapshot: &Snapshot) -> Vec<u8> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).copy(snapshot);
        let mut families = self.registry.gather();
        let mut aliases = Vec::with_capacity(VLLM_NAMES.len());
        for family in &families {
            if let Some(name) = family.name().strip_prefix(PREFIX)
                && VLLM_NAMES.contains(&name)
            {
                let mut alias = family.clone();
                alias.set_name(format!("vllm:{name}"));
                aliases.push(alias);
            }
        }
        families.append(&mut aliases);
        let mut text = Vec::with_capacity(16 << 10);
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::error!(%error, "metrics cannot be encoded");
        }
        text
    }
}

impl EngineMetrics {
    fn copy(&mut self, snapshot: &Snapshot) {
        self.running.set(snapshot.running as f64);
        self.waiting.set(snapshot.waiting as f64);
        self.kv_cache_usage.set(snapshot.kv_blocks_used as f64 / snapshot.kv_blocks_total.max(1) as f64);
        // The engine's counters only grow.
        for (counter, total) in [
            (&self.prefix_queries, snapshot.prefix_tokens_queried),
            (&self.prefix_hits, snapshot.prefix_tokens_hit),
            (&self.preemptions, snapshot.preemptions),
            (&self.prompt_tokens, snapshot.prompt_tokens),
            (&self.generated_tokens, snapshot.generated_tokens),
            (&self.steps, snapshot.steps),
        ] {
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }
}

/// Makes and registers metrics with our prefix and labels.
struct Maker<'a> {
    registry: Registry,
    model_name: &'a str,
}

impl Maker<'_> {
    /// `engine` is what vLLM calls a data-parallel rank; here there is one.
    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([("model_name".to_owned(), self.model_name.to_owned()), ("engine".to_owned(), "0".to_owned())])
    }

    fn options(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("{PREFIX}{name}"), help).const_labels(self.labels())
    }

    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        // Names and labels are the literals of this file; the tests make them all.
        let collector = made.expect("a valid metric");
        self.registry.register(Box::new(collector.clone())).expect("registered once");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(self.options(name, help)))
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        self.register(IntCounterVec::new(self.options(name, help), &[label]))
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::with_opts(self.options(name, help)))
    }

    fn info(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Gauge {
        let mut options = self.options(name, help);
        for (label, value) in labels {
            options = options.const_label(*label, *value);
        }
        self.register(Gauge::with_opts(options))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts { common_opts: self.options(name, help), buckets: buckets.to_vec() };
        self.register(Histogram::with_opts(options))
    }
}

/// 1, 2, 5, 10, 20, 50 … up to `max`: vLLM's buckets for counts of tokens.
fn one_two_five(max: u32) -> Vec<f64> {
    let mut buckets = Vec::new();
    let mut decade = 1_u64;
    loop {
        for mantissa in [1, 2, 5] {
            let value = mantissa * decade;
            if value > u64::from(max.max(1)) {
                return buckets;
            }
            buckets.push(value as f64);
        }
        decade *= 10;
    }
}
