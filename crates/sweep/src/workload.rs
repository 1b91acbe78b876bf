//! What is asked of a server: the file's form of a `bench`.

use powertrain_load::{
    Plan, PromptPlan,
    definitions::Objectives,
    http::{Trust, Url},
    openai::Api,
    schedule::{Arrivals, Load, Until},
    work::Lengths,
};
use serde::{Deserialize, Deserializer, Serialize};
use std::{path::PathBuf, time::Duration};

/// Most requests in flight of an open loop.
const IN_FLIGHT_MAX: u32 = 10_000;
/// How often the server's metrics and the GPUs are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest time to make a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One workload; every load of it is a level of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// What tables call it, and its folder.
    pub name: String,
    /// `chat` or `completions`.
    #[serde(default = "chat")]
    pub endpoint: String,
    /// Closed loops of so many clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub concurrency: Vec<u32>,
    /// Open loops of so many requests per second, Poisson arrivals.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_rate: Vec<f64>,
    /// Measured requests of each load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_requests: Option<u64>,
    /// Seconds during which each load is offered; 30 where neither is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_s: Option<f64>,
    /// Prompt tokens, as `bench --input-tokens` takes them.
    #[serde(default = "input_tokens", deserialize_with = "text_or_number")]
    pub input_tokens: String,
    /// Most output tokens, likewise.
    #[serde(default = "output_tokens", deserialize_with = "text_or_number")]
    pub output_tokens: String,
    /// Generate to the limit, where the server can: else configurations may be compared by different answers.
    #[serde(default = "yes")]
    pub ignore_eos: bool,
    /// A connection for several requests. Some servers offer that and close it while the next request is on its way.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub keep_alive: bool,
    /// Tokens at the beginning that prompts share.
    #[serde(default)]
    pub prefix_tokens: u32,
    /// Prompts from JSON lines in place of synthetic ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<PathBuf>,
    /// Seconds after which a request is given up.
    #[serde(default = "timeout")]
    pub timeout_s: f64,
}

/// Limits that make a request good, and the share that must be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Highest TTFT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Highest TPOT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<f64>,
    /// Highest E2E.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2e_ms: Option<f64>,
    /// Share of requests that must meet them all.
    #[serde(default = "attainment")]
    pub attainment: f64,
}

/// Why a workload cannot be offered.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum WorkloadError {
    /// Neither or both kinds of load.
    #[error("give concurrency = [clients, …] or request_rate = [per second, …], one of the two")]
    Loads,
    /// One load more than once.
    #[error("the load {load} is there twice; leave one out, and set `repeats` to measure everything several times")]
    Twice {
        /// Which.
        load: f64,
    },
    /// A number.
    #[error("{name} = {value}: {range}")]
    Range {
        /// Which.
        name: &'static str,
        /// What was given.
        value: String,
        /// What can be.
        range: &'static str,
    },
    /// The limits.
    #[error("[objectives] has no limit; give ttft_ms, tpot_ms or e2e_ms")]
    NoLimit,
}

/// Where a workload goes.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The server.
    pub url: Url,
    /// The model's name; the first the server lists where none.
    pub model: Option<String>,
    /// Headers of every request.
    pub headers: Vec<(String, String)>,
    /// The label of results.
    pub config: String,
    /// The command that results keep.
    pub command: Vec<String>,
}

impl Limits {
    /// As `bench` takes them.
    pub fn objectives(&self) -> Objectives {
        Objectives { ttft_ms: self.ttft_ms, tpot_ms: self.tpot_ms, e2e_ms: self.e2e_ms }
    }
}

impl Workload {
    /// So many clients, and the defaults of a file.
    pub fn closed(name: &str, clients: u32) -> Self {
        Self {
            name: name.to_owned(),
            endpoint: chat(),
            concurrency: vec![clients],
            request_rate: Vec::new(),
            num_requests: None,
            duration_s: None,
            input_tokens: input_tokens(),
            output_tokens: output_tokens(),
            ignore_eos: yes(),
            keep_alive: yes(),
            prefix_tokens: 0,
            prompts: None,
            timeout_s: timeout(),
        }
    }

    /// Whether it can be offered.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, limits: Option<&Limits>) -> Result<(), WorkloadError> {
        let range = |holds: bool, name, value: String, range| {
            if holds { Ok(()) } else { Err(WorkloadError::Range { name, value, range }) }
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let named = !self.name.is_empty() && self.name.len() <= 100 && !self.name.starts_with('.');
        range(
            named && self.name.chars().all(is_plain),
            "name",
            self.name.clone(),
            "letters, digits, dashes, dots, at most 100",
        )?;
        if self.concurrency.is_empty() == self.request_rate.is_empty() {
            return Err(WorkloadError::Loads);
        }
        let loads = self.concurrency.iter().map(|&clients| f64::from(clients)).chain(self.request_rate.iter().copied());
        let loads: Vec<f64> = loads.collect();
        if let Some(again) =
            loads.iter().enumerate().find_map(|(place, load)| loads[..place].contains(load).then_some(load))
        {
            return Err(WorkloadError::Twice { load: *again });
        }
        for &clients in &self.concurrency {
            range((1..=100_000).contains(&clients), "concurrency", clients.to_string(), "1 to 100000")?;
        }
        for &rate in &self.request_rate {
            let holds = rate.is_finite() && (1e-6..=1e6).contains(&rate);
            range(holds, "request_rate", rate.to_string(), "0.000001 to 1000000")?;
        }
        let is_time = |seconds: f64| seconds.is_finite() && seconds > 0.0 && seconds <= 1e6;
        let duration = self.duration_s.unwrap_or(1.0);
        range(is_time(duration), "duration_s", duration.to_string(), "above 0, at most 1000000")?;
        range(is_time(self.timeout_s), "timeout_s", self.timeout_s.to_string(), "above 0, at most 1000000")?;
        let requests = self.num_requests.unwrap_or(1);
        range((1..=100_000_000).contains(&requests), "num_requests", requests.to_string(), "1 to 100000000")?;
        let endpoint = self.endpoint.clone();
        range(matches!(endpoint.as_str(), "chat" | "completions"), "endpoint", endpoint, "chat or completions")?;
        for (name, text) in [("input_tokens", &self.input_tokens), ("output_tokens", &self.output_tokens)] {
            let holds = text.parse::<Lengths>().is_ok();
            range(holds, name, text.clone(), "512, 128-1024, or normal:MEAN:DEVIATION, which may go on with :MIN:MAX")?;
        }
        if let Some(limits) = limits {
            if limits.objectives().is_empty() {
                return Err(WorkloadError::NoLimit);
            }
            let share = limits.attainment;
            range((0.0..=1.0).contains(&share), "attainment", share.to_string(), "0 to 1")?;
            for limit in [limits.ttft_ms, limits.tpot_ms, limits.e2e_ms].into_iter().flatten() {
                range(limit > 0.0, "objectives", limit.to_string(), "milliseconds above 0")?;
            }
        }
        Ok(())
    }

    /// The run of `bench` that offers it.
    ///
    /// # Panics
    /// On a workload that [`Self::check`] refuses.
    pub(crate) fn plan(&self, to: &Destination, limits: Option<&Limits>, seed: u64) -> Plan {
        let lengths = |text: &str| text.parse::<Lengths>().expect("checked when the file was read");
        let closed = self.concurrency.iter().map(|&concurrency| Load::Closed { concurrency });
        let open = self.request_rate.iter().map(|&rate| Load::Open {
            rate,
            arrivals: Arrivals::Poisson,
            in_flight_max: IN_FLIGHT_MAX,
        });
        let duration = match (self.duration_s, self.num_requests) {
            (None, None) => Some(30.0),
            (duration, _) => duration,
        };
        let prompts = match &self.prompts {
            Some(path) => PromptPlan::File(path.clone()),
            None => PromptPlan::Synthetic {
                input: lengths(&self.input_tokens),
                token_ids: None,
                prefix_tokens: self.prefix_tokens,
                prefix_groups: 1,
            },
        };
        Plan {
            url: to.url.clone(),
            api: if self.endpoint == "chat" { Api::Chat } else { Api::Completions },
            model: to.model.clone(),
            headers: to.headers.clone(),
            stream: true,
            usage_per_chunk: false,
            ignore_eos: self.ignore_eos,
            temperature: Some(0.0),
            extra_body: Default::default(),
            prompts,
            conversations: None,
            output: lengths(&self.output_tokens),
            seed,
            loads: closed.chain(open).collect(),
            search: None,
            until: Until { requests: self.num_requests, duration: duration.map(Duration::from_secs_f64) },
            warmup: None,
            threads: powertrain_load::ClientThreads::default(),
            timeout: Duration::from_secs_f64(self.timeout_s),
            connect_timeout: CONNECT_TIMEOUT,
            trust: Trust::default(),
            no_keep_alive: !self.keep_alive,
            look_every: Some(LOOK_EVERY),
            objectives: limits.map(Limits::objectives).unwrap_or_default(),
            config: to.config.clone(),
            command: to.command.clone(),
        }
    }

    /// The same, but for so long a time, whatever it said about its end.
    pub(crate) fn lasting(&self, seconds: f64) -> Self {
        Self { num_requests: None, duration_s: Some(seconds), ..self.clone() }
    }

    /// A few requests, to warm a server up.
    pub(crate) fn warming_up(&self, requests: u32) -> Self {
        let clients = self.concurrency.iter().copied().max().unwrap_or(8).clamp(1, requests.max(1));
        Self {
            concurrency: vec![clients],
            request_rate: Vec::new(),
            num_requests: Some(u64::from(requests)),
            duration_s: None,
            ..self.clone()
        }
    }
}

fn chat() -> String {
    "chat".to_owned()
}

/// A length as `"128"` or `128`, a range as text.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a text or a whole number of tokens")]
    enum Given {
        Number(u32),
        Text(String),
    }
    Ok(match Given::deserialize(deserializer)? {
        Given::Number(tokens) => tokens.to_string(),
        Given::Text(text) => text,
    })
}

fn input_tokens() -> String {
    "256".to_owned()
}

fn output_tokens() -> String {
    "128".to_owned()
}

fn yes() -> bool {
    true
}

/// For what is left out of files that were written before there was a choice.
fn is_yes(value: &bool) -> bool {
    *value
}

fn timeout() -> f64 {
    120.0
}

fn attainment() -> f64 {
    0.95
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_numbers_or_texts() {
        let read = |more: &str| toml::from_str::<Workload>(&format!("name = 'w'\nconcurrency = [1]\n{more}"));
        let lengths = |more| read(more).map(|workload| (workload.input_tokens, workload.output_tokens)).unwrap();
        assert_eq!(lengths("input_tokens = 32\noutput_tokens = '16-64'"), ("32".to_owned(), "16-64".to_owned()));
        assert_eq!(lengths("output_tokens = 8").1, "8");
        let error = read("input_tokens = 1.5").unwrap_err().to_string();
        assert!(error.contains("a text or a whole number of tokens"), "{error}");
    }

    #[test]
    fn connections_are_kept_unless_told_otherwise_and_old_folders_stay_valid() {
        let to = Destination {
            url: "http://127.0.0.1:1".parse().unwrap(),
            model: None,
            headers: Vec::new(),
            config: String::new(),
            command: Vec::new(),
        };
        let read = |more: &str| toml::from_str::<Workload>(&format!("name = 'w'\nconcurrency = [1]\n{more}")).unwrap();
        let (kept, closed) = (read(""), read("keep_alive = false"));
        assert!(!kept.plan(&to, None, 1).no_keep_alive && closed.plan(&to, None, 1).no_keep_alive);
        // A finished cell's definition from before the choice is that of kept connections.
        assert!(serde_json::to_value(&kept).unwrap().get("keep_alive").is_none());
        assert_eq!(serde_json::to_value(&closed).unwrap()["keep_alive"], false);
    }
}
