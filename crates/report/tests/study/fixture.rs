//! Results as `bench` writes them, made up from a seed, in a folder that vanishes.

use powertrain_load::Random;
use powertrain_report::{analysis::Analysis, case_study, case_study::CaseStudy};
use serde_json::{Value, json};
use std::{fmt::Write, fs, path::PathBuf};
use tempfile::TempDir;

/// The scenario of most tests.
pub(crate) const SCENARIO: &str = r#"
[client]
company = "Example & Sons <b>"
use_case = "Support answers </script><script>alert('x')</script>"
situation = "Answers are slow."
before = "old engine"
after = "new engine"
currency = "EUR"

[requirements]
ttft_p95_ms = 2000
itl_p95_ms = 120
failed_share = 0.01

[demand]
requests_per_day = 50000
input_tokens = 128
output_tokens = 64
peak_to_mean = 2.5
utilisation_max = 0.7

[budget]
per_month = 900
change_once = 4000

[[hardware]]
name = "Rented"
rent_per_hour = 0.5

[[hardware]]
name = "Owned"
purchase = 4000
amortisation_years = 3
power_watts = 200
power_usage_effectiveness = 1.3
price_per_kwh = 0.3
hosting_per_month = 50

[api]
name = "A provider"
input_per_million = 0.1
output_per_million = 0.4
"#;

/// A folder of results.
pub(crate) struct Folder {
    pub(crate) folder: TempDir,
    before: Vec<PathBuf>,
    after: Vec<PathBuf>,
    sweeps: Vec<PathBuf>,
    scenario: PathBuf,
    /// Runs of which none says when it began, so far: each began in a minute of its own.
    began: u32,
}

/// When runs of [`run`] began, before they are added to a folder.
pub(crate) const BEGAN_AT: &str = "2026-11-22T00:31:21.96179972Z";

/// What a made-up level is like.
#[derive(Clone)]
pub(crate) struct Level {
    pub(crate) clients: u32,
    pub(crate) tokens_per_s: f64,
    pub(crate) ttft_ms: f64,
    pub(crate) itl_ms: f64,
    pub(crate) spread: f64,
    pub(crate) failed: u32,
    pub(crate) interrupted: bool,
    pub(crate) client_limited: bool,
    pub(crate) gpus: Value,
}

impl Level {
    pub(crate) fn of(clients: u32, tokens_per_s: f64, ttft_ms: f64, itl_ms: f64) -> Self {
        Self {
            clients,
            tokens_per_s,
            ttft_ms,
            itl_ms,
            spread: 0.02,
            failed: 0,
            interrupted: false,
            client_limited: false,
            gpus: json!([]),
        }
    }

    fn json(&self) -> Value {
        let completed = 100;
        let percentile = |value: f64| json!({"value": value, "low": value * (1.0 - self.spread), "high": value * (1.0 + self.spread)});
        let distribution = |middle: f64| {
            json!({
                "count": completed, "requests": completed, "mean": middle * 1.1,
                "mean_interval": [middle, middle * 1.2], "standard_deviation": middle * 0.2, "min": middle * 0.5, "max": middle * 3.0,
                "percentiles": {"p50": percentile(middle), "p90": percentile(middle * 1.5), "p95": percentile(middle * 1.7),
                    "p99": percentile(middle * 2.5), "p99.9": null},
            })
        };
        let mut failures = json!({});
        if self.failed > 0 {
            failures["closed"] = json!({"count": self.failed, "example": "the server closed the connection"});
        }
        let limited: Vec<&str> =
            self.client_limited.then_some("p99 of the event loops' lag is 9.0 ms").into_iter().collect();
        json!({
            "load": {"kind": "closed", "concurrency": self.clients},
            "interrupted": self.interrupted,
            "wall_s": 10.5,
            "summary": {
                "requests": {"sent": completed + self.failed, "completed": completed, "failed": self.failed, "cut_off": 0, "interrupted": 0},
                "failures": failures,
                "window_s": 10.0,
                "throughput": {"requests_per_s": self.tokens_per_s / 64.0, "output_tokens_per_s": self.tokens_per_s,
                    "total_tokens_per_s": self.tokens_per_s * 3.0, "estimated": false},
                "latency": {"ttft_ms": distribution(self.ttft_ms), "itl_ms": distribution(self.itl_ms),
                    "tpot_ms": distribution(self.itl_ms), "e2e_ms": distribution(self.ttft_ms + 63.0 * self.itl_ms)},
                "prompts": {"counted_mean": 128.0, "cached_share": 0.0},
            },
            "client": {"client_limited": limited},
            "gpus": self.gpus,
            "a field of the future": {"x": 1},
        })
    }

    /// Requests one after another, in each of which tokens come evenly.
    fn events(&self, place: usize, text: &mut String) {
        for index in 0..40u32 {
            let gaps: Vec<u64> =
                std::iter::once(self.ttft_ms).chain([self.itl_ms; 15]).map(|ms| (ms * 1e3) as u64).collect();
            let due_us = f64::from(index) * 250_000.0;
            let line = json!({"level": place, "index": index, "warmup": index == 0, "scheduled_us": due_us,
                "ended_us": due_us + gaps.iter().sum::<u64>() as f64, "chunk_gaps_us": gaps, "usage": {"prompt_tokens": 128, "completion_tokens": 16}, "failure": null});
            _ = writeln!(text, "{line}");
        }
    }
}

impl Folder {
    pub(crate) fn new(scenario: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scenario.toml");
        fs::write(&path, scenario).unwrap();
        Self { folder, before: Vec::new(), after: Vec::new(), sweeps: Vec::new(), scenario: path, began: 0 }
    }

    /// Adds a run to a side.
    pub(crate) fn run(&mut self, side: &str, levels: &[Level]) -> &mut Self {
        self.result(side, &run(levels), Some(levels))
    }

    /// Adds a result, with raw events where levels are given.
    pub(crate) fn result(&mut self, side: &str, result: &Value, levels: Option<&[Level]>) -> &mut Self {
        let files = if side == "before" { &mut self.before } else { &mut self.after };
        let path = self.folder.path().join(format!("{side}-{}.json", files.len() + 1));
        let mut result = result.clone();
        if result["format"] == "powertrain-bench/1" && result["began_at"] == BEGAN_AT {
            result["began_at"] = format!("2026-11-22T00:{:02}:21.96179972Z", self.began).into();
            self.began += 1;
        }
        if let Some(levels) = levels {
            let events = path.with_extension("events.jsonl");
            let mut text = String::new();
            levels.iter().enumerate().for_each(|(place, level)| level.events(place, &mut text));
            fs::write(&events, text).unwrap();
            result["events_file"] = events.file_name().unwrap().to_string_lossy().into();
        }
        fs::write(&path, result.to_string()).unwrap();
        files.push(path);
        self
    }

    /// Adds a sweep's table.
    pub(crate) fn sweep(&mut self, table: &Value) -> &mut Self {
        let path = self.folder.path().join(format!("sweep-{}.json", self.sweeps.len() + 1));
        fs::write(&path, table.to_string()).unwrap();
        self.sweeps.push(path);
        self
    }

    pub(crate) fn analysis(&self) -> Analysis {
        self.compared(None).unwrap()
    }

    /// With a comparison, or why not.
    pub(crate) fn compared(&self, comparison: Option<&Value>) -> Result<Analysis, powertrain_report::Error> {
        let path = self.folder.path().join("comparison.json");
        if let Some(comparison) = comparison {
            fs::write(&path, comparison.to_string()).unwrap();
        }
        let path = comparison.is_some().then_some(path.as_path());
        Analysis::of(&self.scenario, &self.before, &self.after, path, &self.sweeps)
    }

    pub(crate) fn study(&self) -> (Analysis, CaseStudy) {
        let analysis = self.analysis();
        let study = case_study::render(&analysis, "powertrain report scenario.toml").unwrap();
        (analysis, study)
    }
}

/// What NVML said of one GPU during a level.
pub(crate) fn gpu(power_w: f64, throttled: &Value) -> Value {
    json!([{"index": 0, "samples": 26, "utilisation_mean": 89.5, "memory_used_max_mib": 72205.0, "power_mean_w": power_w,
        "energy_j": 2540.5, "sm_clock_min_mhz": 1350.0, "sm_clock_mean_mhz": 1775.9, "temperature_max_c": 56.0,
        "throttled": throttled}])
}

/// A sweep of two configurations, of which one did not start.
pub(crate) fn sweep_table() -> Value {
    let row = |length: &str| {
        json!({"configuration": format!("ours/max-model-len={length}"), "server": "ours",
            "parameters": [["max-model-len", length]], "ready_s": null, "startup": {}, "failure": null, "workload": null,
            "load": null, "numbers": null})
    };
    let (mut good, mut bad) = (row("1024"), row("8192"));
    good["ready_s"] = json!(0.57);
    good["startup"] = json!({"weights_gib": 2.88, "kv_gib": 66.4, "kv_tokens": 2_485_088, "max_concurrency": 2427.0});
    good["workload"] = json!("chat");
    good["load"] = json!("closed loop, 4 clients");
    good["numbers"] = json!({"completed": 88, "requests_per_s": 34.7, "output_tokens_per_s": 2218.5, "ttft_p50": 12.7,
        "client_limited": true});
    bad["failure"] = json!({"kind": "out_of_memory", "reason": "ended with code 2: <0 MiB> are free", "log_tail": []});
    json!({"format": "powertrain-sweep-table/1", "parameters": ["max-model-len"], "rows": [good, bad], "proposals": [
        {"goal": "latency", "configuration": "ours/max-model-len=1024", "because": ["Within 2 % of the best."]}]})
}

/// A whole run.
pub(crate) fn run(levels: &[Level]) -> Value {
    json!({
        "format": "powertrain-bench/1",
        "began_at": BEGAN_AT,
        "powertrain": "0.1.0",
        "command": ["powertrain", "bench", "http://localhost:8000", "--config", "it's"],
        "config": "a",
        "complete": levels.iter().all(|level| !level.interrupted),
        "url": "http://localhost:8000/v1/chat/completions",
        "model": "m<odel",
        "server": {"models": {"data": [{"id": "m", "owned_by": "somebody"}]}, "version": null, "engine": null},
        "work": {"seed": 1, "prompts": "synthetic words", "input_tokens": "128", "output_tokens": "64", "streamed": true,
            "request": {"temperature": 0}},
        "gpus": {"absent": null, "driver": "580.1", "devices": [
            {"index": 0, "name": "NVIDIA H100 80GB HBM3", "memory_mib": 81559.0, "power_limit_w": 700.0}]},
        "machine": {"cpu": "A processor 9000", "cpus": 2, "memory_gib": 24.0, "kernel": "6.1"},
        "levels": levels.iter().map(Level::json).collect::<Vec<_>>(),
        "events_file": null,
        "definitions": {"ttft_ms": "scheduled send to first chunk"},
    })
}

/// A run of random levels.
pub(crate) fn random_levels(random: &mut Random, clients: &[u32]) -> Vec<Level> {
    let mut value = |low: f64, high: f64| low * (high / low).powf(random.uniform());
    let level = |&clients: &u32| Level {
        failed: u32::from(value(1.0, 10.0) > 7.0) * 5,
        interrupted: value(1.0, 10.0) > 8.0,
        client_limited: value(1.0, 10.0) > 8.0,
        spread: value(0.01, 0.5),
        ..Level::of(clients, value(20.0, 900.0), value(5.0, 5000.0), value(0.5, 300.0))
    };
    clients.iter().map(level).collect()
}
