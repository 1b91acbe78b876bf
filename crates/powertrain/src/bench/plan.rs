//! From the flags of `powertrain bench` to a plan.

use super::arguments::{Arguments, ArrivalKind, CapacityUnit, ClientPriority, Endpoint};
use anyhow::{Context, ensure};
use powertrain_load::{
    ClientThreads, Plan, Priority, PromptPlan, SearchPlan, Unit,
    definitions::Objectives,
    http::{Trust, Url},
    openai::Api,
    schedule::{Arrivals, Load, Until},
    stages,
    work::{Conversations, Lengths, Replay, Trace},
};
use serde_json::{Map, Value};
use std::{ops::Range, path::Path, time::Duration};

impl Arguments {
    pub(super) fn threads(&self) -> ClientThreads {
        let priority = match self.client_priority {
            ClientPriority::RealTime => Priority::RealTime,
            ClientPriority::Nice => Priority::Nice,
            ClientPriority::Normal => Priority::Normal,
        };
        ClientThreads { count: self.client_threads.map(usize::from), priority }
    }

    pub(super) fn plan(&self, url: &Url) -> anyhow::Result<Plan> {
        let seconds = |value: f64, name: &str| {
            ensure!(
                value.is_finite() && value > 0.0 && value <= 1e6,
                "{name} {value}: write seconds, above 0, at most 1000000"
            );
            Ok(Duration::from_secs_f64(value))
        };
        // Stages and traces end by themselves.
        let ends = self.stages.is_some() || self.client_stages.is_some() || self.trace.is_some();
        let duration = match (self.duration, self.num_requests) {
            (None, None) => Some(30.0).filter(|_| !ends),
            (duration, _) => duration,
        };
        let extra_body: Map<String, Value> = match &self.extra_body {
            Some(text) => serde_json::from_str(text).context("--extra-body must be a JSON object")?,
            None => Map::new(),
        };
        let temperature = match self.temperature.as_str() {
            "server" => None,
            number => Some(number.parse().with_context(|| format!("--temperature {number}: a number or `server`"))?),
        };
        let (loads, prompts) = match &self.trace {
            Some(path) => self.replay(path)?,
            None => (self.loads()?, self.prompt_plan()?),
        };
        Ok(Plan {
            url: url.clone(),
            api: match self.endpoint {
                Endpoint::Chat => Api::Chat,
                Endpoint::Completions => Api::Completions,
            },
            model: self.model.clone(),
            headers: self.all_headers()?,
            stream: !self.no_stream,
            usage_per_chunk: self.usage_per_chunk,
            ignore_eos: self.ignore_eos,
            temperature,
            extra_body,
            prompts,
            conversations: self.turns.clone().map(|turns| Conversations { turns, think: self.think_time }),
            output: self.max_tokens.clone(),
            seed: self.seed.unwrap_or_else(fresh_seed),
            loads,
            search: self.search()?,
            until: Until {
                requests: self.num_requests,
                duration: duration.map(|duration| seconds(duration, "--duration")).transpose()?,
            },
            warmup: self.warmup,
            threads: self.threads(),
            timeout: seconds(self.timeout, "--timeout")?,
            connect_timeout: seconds(self.connect_timeout, "--connect-timeout")?,
            trust: match (&self.ca_file, self.insecure) {
                (Some(path), _) => Trust::Authorities(path.clone()),
                (None, true) => Trust::Anyone,
                (None, false) => Trust::Machine,
            },
            no_keep_alive: self.no_keep_alive,
            look_every: (self.loop_ms > 0).then(|| Duration::from_millis(self.loop_ms.into())),
            objectives: self.objectives()?,
            config: self.config.clone(),
            command: command(std::env::args()),
        })
    }

    fn loads(&self) -> anyhow::Result<Vec<Load>> {
        let by_the_clock = !self.request_rate.is_empty()
            || self.stages.is_some()
            || matches!(self.find_capacity, Some(CapacityUnit::Rate));
        ensure!(
            by_the_clock || self.arrivals.is_none() && self.burstiness.is_none(),
            "--arrivals and --burstiness are of open loops: give --request-rate, --stages or --find-capacity rate"
        );
        if let Some(stages) = &self.client_stages {
            ensure!(stages.max() <= 100_000.0, "--client-stages {stages}: at most 100000 clients");
            return Ok(vec![Load::Clients { stages: stages.clone() }]);
        }
        if let Some(stages) = &self.stages {
            let (arrivals, in_flight_max) = (self.arrivals()?, self.max_in_flight);
            return Ok(vec![Load::Rates { stages: stages.clone(), arrivals, in_flight_max }]);
        }
        ensure!(
            self.concurrency.is_empty() || self.request_rate.is_empty(),
            "--concurrency and --request-rate: a level is either clients that wait or requests by the clock; give one of the two"
        );
        if self.request_rate.is_empty() {
            let one = vec![1];
            let levels = if self.concurrency.is_empty() { &one } else { &self.concurrency };
            return Ok(levels.iter().map(|&concurrency| Load::Closed { concurrency }).collect());
        }
        let arrivals = self.arrivals()?;
        let load = |&rate: &f64| {
            ensure!(
                rate.is_finite() && (1e-6..=1e6).contains(&rate),
                "--request-rate {rate}: write 0.000001 to 1000000"
            );
            Ok(Load::Open { rate, arrivals, in_flight_max: self.max_in_flight })
        };
        self.request_rate.iter().map(load).collect()
    }

    fn arrivals(&self) -> anyhow::Result<Arrivals> {
        Ok(match (self.burstiness, self.arrivals) {
            (Some(shape), Some(ArrivalKind::Constant | ArrivalKind::Poisson)) => {
                anyhow::bail!("--burstiness {shape} is the shape of gamma-distributed gaps; --arrivals asks for others")
            }
            (Some(shape), Some(ArrivalKind::Gamma) | None) => {
                ensure!(
                    shape.is_finite() && (1e-3..=1e6).contains(&shape),
                    "--burstiness {shape}: write 0.001 to 1000000"
                );
                Arrivals::Gamma { burstiness: shape }
            }
            (None, Some(ArrivalKind::Constant)) => Arrivals::Constant,
            (None, Some(ArrivalKind::Poisson) | None) => Arrivals::Poisson,
            (None, Some(ArrivalKind::Gamma)) => anyhow::bail!("--arrivals gamma needs its shape: --burstiness"),
        })
    }

    fn objectives(&self) -> anyhow::Result<Objectives> {
        let objectives = objectives("--goodput", &self.goodput)?;
        ensure!(
            !self.no_stream || objectives.ttft_ms.is_none() && objectives.tpot_ms.is_none(),
            "--no-stream: without a stream nobody sees when the first token came; of --goodput only e2e can be kept"
        );
        Ok(objectives)
    }

    fn search(&self) -> anyhow::Result<Option<SearchPlan>> {
        let Some(unit) = self.find_capacity else { return Ok(None) };
        let (unit, start, default_max) = match unit {
            CapacityUnit::Concurrency => {
                (Unit::Concurrency, self.concurrency.first().map(|&clients| f64::from(clients)), 1e3)
            }
            CapacityUnit::Rate => (Unit::Rate, self.request_rate.first().copied(), 1e3),
        };
        let max = self.capacity_max.unwrap_or(default_max);
        ensure!((1e-3..=1e5).contains(&max), "--capacity-max {max}: write 0.001 to 100000");
        let start = start.unwrap_or(1.0);
        ensure!(
            (1e-3..=max).contains(&start),
            "the search would start at {start}: write 0.001 to --capacity-max {max}"
        );
        let attainment = self.attainment;
        ensure!((0.0..=1.0).contains(&attainment), "--attainment {attainment}: write 0 to 1");
        match unit {
            Unit::Rate => ensure!(
                self.concurrency.is_empty(),
                "--find-capacity rate begins at --request-rate; --concurrency is for --find-capacity concurrency"
            ),
            Unit::Concurrency => ensure!(
                self.request_rate.is_empty(),
                "--find-capacity concurrency begins at --concurrency; --request-rate is for --find-capacity rate"
            ),
        }
        let (resolution, arrivals, in_flight_max) = (0.05, self.arrivals()?, self.max_in_flight);
        Ok(Some(SearchPlan { unit, start, max, resolution, attainment, arrivals, in_flight_max }))
    }

    /// A trace as load and prompts.
    fn replay(&self, path: &Path) -> anyhow::Result<(Vec<Load>, PromptPlan)> {
        let time_scale = self.time_scale;
        ensure!((1e-6..=1e6).contains(&time_scale), "--time-scale {time_scale}: write 0.000001 to 1000000");
        let cut = self.trace_seconds.as_deref().map(|text| {
            stages::seconds(text)
                .filter(|&seconds| seconds > 0.0)
                .with_context(|| format!("--trace-seconds {text}: no time"))
        });
        let replay = Replay {
            time_scale,
            seconds: cut.transpose()?,
            input_tokens_max: self.trace_input_max,
            output_tokens_max: self.trace_output_max,
        };
        let trace = Trace::open(path, &replay)?;
        let name = path.display().to_string();
        let (times, in_flight_max) = (trace.times(), self.max_in_flight);
        let load = Load::Trace { name: name.clone(), times, time_scale, in_flight_max };
        Ok((vec![load], PromptPlan::Trace { name, trace, token_ids: self.token_ids()? }))
    }

    fn prompt_plan(&self) -> anyhow::Result<PromptPlan> {
        if let Some(path) = &self.prompts {
            return Ok(PromptPlan::File(path.clone()));
        }
        let (prefix_tokens, prefix_groups) = (self.prefix_tokens, self.prefix_groups);
        let (input, token_ids) = (self.input_tokens.clone(), self.token_ids()?);
        let longest = input.longest();
        ensure!(
            prefix_tokens < longest,
            "--prefix-tokens {prefix_tokens}: prompts of at most {longest} tokens (--input-tokens) would be shared whole, and the server's prefix cache be measured"
        );
        Ok(PromptPlan::Synthetic { input, token_ids, prefix_tokens, prefix_groups })
    }

    fn token_ids(&self) -> anyhow::Result<Option<Range<u32>>> {
        match &self.prompt_token_ids {
            Some(Lengths::Uniform(first, last)) => Ok(Some(*first..last + 1)),
            Some(other) => anyhow::bail!("--prompt-token-ids {other}: write FIRST-LAST, e.g. 1000-30000"),
            None => Ok(None),
        }
    }

    fn all_headers(&self) -> anyhow::Result<Vec<(String, String)>> {
        let key = self.api_key.iter().map(|key| ("authorization".to_owned(), format!("Bearer {key}")));
        let mut headers: Vec<_> = key.collect();
        for header in &self.headers {
            let (name, value) =
                header.split_once(':').with_context(|| format!("--header `{header}`: write `Name: value`"))?;
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        for (name, value) in &headers {
            let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            ensure!(!name.is_empty() && name.bytes().all(is_token), "`{name}` is no name of a header");
            ensure!(
                value.bytes().all(|byte| byte >= 0x20 && byte != 0x7f),
                "the header {name} has a character that no header may hold"
            );
        }
        Ok(headers)
    }
}

/// Limits as vLLM's users write them: `ttft:200 tpot:50`.
pub(crate) fn objectives(flag: &str, limits: &[String]) -> anyhow::Result<Objectives> {
    let mut objectives = Objectives::default();
    for limit in limits.iter().flat_map(|limit| limit.split(',')) {
        let (name, ms) =
            limit.split_once(':').with_context(|| format!("{flag} {limit}: write ttft:MS, tpot:MS or e2e:MS"))?;
        let ms: f64 =
            ms.parse().ok().filter(|ms: &f64| *ms > 0.0).with_context(|| format!("{flag} {limit}: {ms} is no time"))?;
        match name {
            "ttft" => objectives.ttft_ms = Some(ms),
            "tpot" => objectives.tpot_ms = Some(ms),
            "e2e" | "e2el" => objectives.e2e_ms = Some(ms),
            _ => anyhow::bail!("{flag} {limit}: only ttft, tpot and e2e have limits"),
        }
    }
    Ok(objectives)
}

/// The command line as it may be kept: what follows a flag that holds a secret is left out.
pub(crate) fn command(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let (mut kept, mut hide_next) = (Vec::new(), false);
    for argument in arguments {
        let secret = ["--api-key", "--header"].into_iter().find(|flag| argument.split('=').next() == Some(flag));
        match (hide_next, secret) {
            (true, _) => kept.push("…".to_owned()),
            (false, Some(flag)) if argument.contains('=') => kept.push(format!("{flag}=…")),
            _ => kept.push(argument.clone()),
        }
        hide_next = !hide_next && secret.is_some() && !argument.contains('=');
    }
    kept
}

/// A seed no earlier run had: the time.
fn fresh_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // Fewer digits are easier to type again; microseconds differ between runs.
    since.map_or(0, |since| since.as_micros() as u64 % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_kept() {
        let given = ["powertrain", "bench", "u", "--api-key", "k", "--header=a: b", "--header", "c: d", "--seed", "1"];
        let kept = command(given.iter().map(|&argument| argument.to_owned())).join(" ");
        assert_eq!(kept, "powertrain bench u --api-key … --header=… --header … --seed 1");
    }

    #[test]
    fn limits_are_read() {
        let limits =
            |text: &[&str]| objectives("--goodput", &text.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        let read = limits(&["ttft:200,tpot:50", "e2e:1e3"]).unwrap();
        assert_eq!(read, Objectives { ttft_ms: Some(200.0), tpot_ms: Some(50.0), e2e_ms: Some(1000.0) });
        for bad in ["ttft", "ttft:x", "itl:5", "tpot:-1"] {
            assert!(limits(&[bad]).is_err(), "{bad}");
        }
    }
}
