//! `powertrain bench URL`

use crate::{print, progress::Progress};
use anyhow::{Context, ensure};
use powertrain_load::{
    Event, Plan, PromptPlan, Stop, bench,
    definitions::Objectives,
    files::{self, EventsFile},
    http::{Trust, Url, UrlError},
    openai::Api,
    proof::{self, Verdict},
    result::RunResult,
    schedule::{Arrivals, Load, Until},
    table,
    work::Lengths,
};
use serde_json::{Map, Value};
use std::{ops::Range, path::PathBuf, time::Duration};

/// Measure any OpenAI-compatible server: latency, throughput and goodput under a stated load.
///
/// Every number comes with its count and definition, failed and cut-off requests are shown apart, and the client measures
/// itself: where it was the limit, the result says so.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The server, e.g. http://localhost:8000; `self` measures the client's own error against a built-in server
    url: Subject,
    /// Model name; by default the first the server lists
    #[arg(long)]
    model: Option<String>,
    /// Route to measure
    #[arg(long, value_enum, default_value_t = Endpoint::Chat)]
    endpoint: Endpoint,
    /// Key sent as `Authorization: Bearer`
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Further header, `Name: value`; repeatable
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// JSON object whose fields are set over all others in each body; null removes one
    #[arg(long, value_name = "JSON")]
    extra_body: Option<String>,
    /// Ask for whole answers in place of streams: no TTFT, no gaps
    #[arg(long)]
    no_stream: bool,
    /// Ask for token counts in each chunk (continuous_usage_stats), to tell token gaps from chunk gaps
    #[arg(long)]
    usage_per_chunk: bool,
    /// Generate to the limit whatever the model says, where the server has this extension
    #[arg(long)]
    ignore_eos: bool,
    /// Sampling temperature; `server` leaves it to the server
    #[arg(long, default_value = "0")]
    temperature: String,

    /// Closed loop: clients that each wait for their answer; a list makes a level of each
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100_000), conflicts_with = "request_rate")]
    concurrency: Vec<u32>,
    /// Open loop: requests per second, whatever the answers do; a list makes a level of each
    #[arg(long, value_delimiter = ',', value_name = "PER_SECOND")]
    request_rate: Vec<f64>,
    /// Gaps between requests of an open loop
    #[arg(long, value_enum, default_value_t = ArrivalKind::Poisson)]
    arrivals: ArrivalKind,
    /// Shape of gamma-distributed gaps: below 1 burstier than Poisson, above 1 more even; implies --arrivals gamma
    #[arg(long)]
    burstiness: Option<f64>,
    /// Most requests in flight of an open loop; the wait beyond counts as latency
    #[arg(long, default_value_t = 10_000, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_in_flight: u32,
    /// Measured requests per level [default: none, see --duration]
    #[arg(long, visible_alias = "num-prompts", value_name = "REQUESTS", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    num_requests: Option<u64>,
    /// Seconds during which requests are sent per level [default: 30 where --num-requests is not given]
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Requests per level before the measurement, which begins while they run [default: one per client, at most 16]
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    warmup: Option<u64>,

    /// Prompt tokens as the server counts them: 512, 128-1024, or normal:MEAN:DEVIATION, which may go on with :MIN:MAX
    #[arg(long, visible_alias = "random-input-len", default_value = "256", value_name = "LENGTHS")]
    input_tokens: Lengths,
    /// Most tokens of an answer, likewise
    #[arg(long, visible_aliases = ["output-tokens", "random-output-len"], default_value = "128", value_name = "LENGTHS")]
    max_tokens: Lengths,
    /// Prompts from JSON lines: MT-Bench, ShareGPT, or objects with `prompt`, `text` or `messages`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["input_tokens", "prompt_token_ids", "prefix_tokens"])]
    prompts: Option<PathBuf>,
    /// Prompts of token ids from this range, FIRST-LAST, for --endpoint completions
    #[arg(long, value_name = "RANGE")]
    prompt_token_ids: Option<Lengths>,
    /// Tokens at the beginning that prompts share
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    prefix_tokens: u32,
    /// Groups of prompts with different shared beginnings
    #[arg(long, default_value_t = 1, value_name = "GROUPS", value_parser = clap::value_parser!(u32).range(1..))]
    prefix_groups: u32,
    /// Repeats the prompts, lengths and arrivals of an earlier run; by default each run has its own, lest the server
    /// find the last run's prompts in its cache
    #[arg(long)]
    seed: Option<u64>,

    /// Limits that make a request good: ttft:MS, tpot:MS, e2e:MS
    #[arg(long, num_args = 1.., value_name = "LIMIT")]
    goodput: Vec<String>,
    /// Seconds after which a request is given up
    #[arg(long, default_value_t = 600.0, value_name = "SECONDS")]
    timeout: f64,
    /// Seconds after which making a connection is given up
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    connect_timeout: f64,
    /// Believe servers whose certificates the authorities in this PEM file vouch for, in place of this machine's own
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Believe any certificate: whoever stands between can read everything, the key too
    #[arg(long, conflicts_with = "ca_file")]
    insecure: bool,
    /// Open a connection for each request
    #[arg(long)]
    no_keep_alive: bool,
    /// Threads of this client [default: one for every two CPUs, at most 4]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    client_threads: Option<u16>,
    /// Write the result as JSON here, raw events beside it as FILE.events.jsonl
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the classic table here, a line per level
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Name of the measured configuration, for the result
    #[arg(long, default_value = "")]
    config: String,
}

/// What is measured.
#[derive(Clone)]
enum Subject {
    Server(Url),
    Itself,
}

impl std::str::FromStr for Subject {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text == "self" { Ok(Self::Itself) } else { text.parse().map(Self::Server) }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Endpoint {
    Chat,
    Completions,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ArrivalKind {
    Constant,
    Poisson,
    Gamma,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let url = match &arguments.url {
        Subject::Server(url) => url,
        Subject::Itself => return prove_itself(arguments),
    };
    let plan = arguments.plan(url)?;
    let mut events = match &arguments.output {
        Some(path) => {
            let path = files::events_path(path);
            Some(EventsFile::create(&path).with_context(|| format!("cannot write {}", path.display()))?)
        }
        None => None,
    };
    let stop = Stop::new();
    stop_on_interrupt(&stop);
    eprintln!("seed {}", plan.seed);
    let mut progress: Option<Progress> = None;
    let mut write_error = None;
    let mut level = 0;
    let result = bench(&plan, &stop, |event| match event {
        Event::Note(text) => eprintln!("{text}"),
        Event::LevelBegins { load, live } => progress = Some(Progress::begin(load, live)),
        Event::LevelEnded { result, records } => {
            drop(progress.take());
            // A reader that went away is no reason to stop measuring.
            _ = print(&table::level_table(result));
            if let Some(Err(error)) = events.as_mut().map(|events| events.write_level(level, records)) {
                write_error.get_or_insert(error);
            }
            level += 1;
        }
    })?;
    print(&table::definitions_text())?;
    if let Some(error) = write_error {
        return Err(error).context("cannot write the raw events");
    }
    write(arguments, result, events)
}

/// Runs every trap against the built-in server. Failing one fails the command.
fn prove_itself(arguments: &Arguments) -> anyhow::Result<()> {
    let stop = Stop::new();
    stop_on_interrupt(&stop);
    let streams = arguments.concurrency.first().copied().unwrap_or(1000);
    let rate = arguments.request_rate.first().copied().unwrap_or(100.0);
    ensure!(
        (1.0..=10_000.0).contains(&rate),
        "--request-rate {rate}: of `self` it is tokens per second and stream, 1 to 10000"
    );
    let duration = Duration::from_secs_f64(arguments.duration.unwrap_or(5.0).clamp(0.1, 600.0));
    let threads = arguments.client_threads.map_or_else(default_threads, usize::from);
    let (mut wrong, mut late) = (0, 0);
    for case in proof::cases(streams, rate, duration) {
        if stop.is_requested() {
            break;
        }
        let result = proof::prove(&case, threads, &stop)?;
        let verdict = match result.verdict {
            Verdict::Right => "right",
            Verdict::Late => "LATE ",
            Verdict::Wrong => "WRONG",
        };
        wrong += usize::from(result.verdict == Verdict::Wrong);
        late += usize::from(result.verdict == Verdict::Late);
        let mut text = format!("{verdict}  {} ({} clients)\n       {}\n", result.name, case.concurrency, result.found);
        let client = &result.client;
        if result.verdict == Verdict::Late {
            text.push_str(&format!(
                "       a client thread used {:.0} % of a CPU and waited for one {:.0} % of the time, while other programs used \
                 {:.1} CPU s\n",
                client.cpu_share_max * 100.0,
                client.cpu_wait_share_max * 100.0,
                client.others_cpu_s.unwrap_or(0.0),
            ));
        }
        for reason in &client.client_limited {
            text.push_str(&format!("       client-limited: {reason}\n"));
        }
        print(&text)?;
    }
    ensure!(wrong == 0 && late == 0, "{wrong} cases were measured wrong and {late} late, on this machine now");
    Ok(())
}

fn write(arguments: &Arguments, mut result: RunResult, events: Option<EventsFile>) -> anyhow::Result<()> {
    if let (Some(path), Some(events)) = (&arguments.output, events) {
        events.finish().context("cannot write the raw events")?;
        let name = files::events_path(path).file_name().map(|name| name.to_string_lossy().into_owned());
        result.events_file = name;
        files::write_result(path, &result).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    if let Some(path) = &arguments.csv {
        files::write_csv(path, &result).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

impl Arguments {
    fn plan(&self, url: &Url) -> anyhow::Result<Plan> {
        let seconds = |value: f64, name: &str| {
            ensure!(
                value.is_finite() && value > 0.0 && value <= 1e6,
                "{name} {value}: write seconds, above 0, at most 1000000"
            );
            Ok(Duration::from_secs_f64(value))
        };
        let duration = match (self.duration, self.num_requests) {
            (None, None) => Some(30.0),
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
            prompts: self.prompt_plan()?,
            output: self.max_tokens,
            seed: self.seed.unwrap_or_else(fresh_seed),
            loads: self.loads()?,
            until: Until {
                requests: self.num_requests,
                duration: duration.map(|duration| seconds(duration, "--duration")).transpose()?,
            },
            warmup: self.warmup,
            threads: self.client_threads.map_or_else(default_threads, usize::from),
            timeout: seconds(self.timeout, "--timeout")?,
            connect_timeout: seconds(self.connect_timeout, "--connect-timeout")?,
            trust: match (&self.ca_file, self.insecure) {
                (Some(path), _) => Trust::Authorities(path.clone()),
                (None, true) => Trust::Anyone,
                (None, false) => Trust::Machine,
            },
            no_keep_alive: self.no_keep_alive,
            objectives: objectives(&self.goodput)?,
            config: self.config.clone(),
            command: command(std::env::args()),
        })
    }

    fn loads(&self) -> anyhow::Result<Vec<Load>> {
        if self.request_rate.is_empty() {
            let one = vec![1];
            let levels = if self.concurrency.is_empty() { &one } else { &self.concurrency };
            return Ok(levels.iter().map(|&concurrency| Load::Closed { concurrency }).collect());
        }
        let arrivals = match (self.burstiness, self.arrivals) {
            (Some(shape), _) => {
                ensure!(
                    shape.is_finite() && (1e-3..=1e6).contains(&shape),
                    "--burstiness {shape}: write 0.001 to 1000000"
                );
                Arrivals::Gamma { burstiness: shape }
            }
            (None, ArrivalKind::Constant) => Arrivals::Constant,
            (None, ArrivalKind::Poisson) => Arrivals::Poisson,
            (None, ArrivalKind::Gamma) => anyhow::bail!("--arrivals gamma needs its shape: --burstiness"),
        };
        let load = |&rate: &f64| {
            ensure!(
                rate.is_finite() && (1e-6..=1e6).contains(&rate),
                "--request-rate {rate}: write 0.000001 to 1000000"
            );
            Ok(Load::Open { rate, arrivals, in_flight_max: self.max_in_flight })
        };
        self.request_rate.iter().map(load).collect()
    }

    fn prompt_plan(&self) -> anyhow::Result<PromptPlan> {
        if let Some(path) = &self.prompts {
            return Ok(PromptPlan::File(path.clone()));
        }
        let token_ids: Option<Range<u32>> = match self.prompt_token_ids {
            Some(Lengths::Uniform(first, last)) => Some(first..last + 1),
            Some(other) => anyhow::bail!("--prompt-token-ids {other}: write FIRST-LAST, e.g. 1000-30000"),
            None => None,
        };
        let (prefix_tokens, prefix_groups) = (self.prefix_tokens, self.prefix_groups);
        Ok(PromptPlan::Synthetic { input: self.input_tokens, token_ids, prefix_tokens, prefix_groups })
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
pub(crate) fn objectives(limits: &[String]) -> anyhow::Result<Objectives> {
    let mut objectives = Objectives::default();
    for limit in limits.iter().flat_map(|limit| limit.split(',')) {
        let (name, ms) =
            limit.split_once(':').with_context(|| format!("--goodput {limit}: write ttft:MS, tpot:MS or e2e:MS"))?;
        let ms: f64 = ms
            .parse()
            .ok()
            .filter(|ms: &f64| *ms > 0.0)
            .with_context(|| format!("--goodput {limit}: {ms} is no time"))?;
        match name {
            "ttft" => objectives.ttft_ms = Some(ms),
            "tpot" => objectives.tpot_ms = Some(ms),
            "e2e" | "e2el" => objectives.e2e_ms = Some(ms),
            _ => anyhow::bail!("--goodput {limit}: only ttft, tpot and e2e have limits"),
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

fn default_threads() -> usize {
    // The other CPUs are for the system's share of each packet, and for a server on this machine.
    std::thread::available_parallelism().map_or(1, |count| (count.get() / 2).clamp(1, 4))
}

/// A seed no earlier run had: the time.
fn fresh_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // Fewer digits are easier to type again; microseconds differ between runs.
    since.map_or(0, |since| since.as_micros() as u64 % 1_000_000_000)
}

/// The first Ctrl-C ends the run and keeps what was measured; the second ends the program.
fn stop_on_interrupt(stop: &Stop) {
    let stop = stop.clone();
    let watch = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                eprintln!("\nending; what was measured is kept (again: give it up)");
                stop.request();
                if tokio::signal::ctrl_c().await.is_ok() {
                    std::process::exit(130);
                }
            }
        });
    };
    // Without this thread Ctrl-C ends the program at once, as it would any other.
    _ = std::thread::Builder::new().name("interrupt".to_owned()).spawn(watch);
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
        let limits = |text: &[&str]| objectives(&text.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        let read = limits(&["ttft:200,tpot:50", "e2e:1e3"]).unwrap();
        assert_eq!(read, Objectives { ttft_ms: Some(200.0), tpot_ms: Some(50.0), e2e_ms: Some(1000.0) });
        for bad in ["ttft", "ttft:x", "itl:5", "tpot:-1"] {
            assert!(limits(&[bad]).is_err(), "{bad}");
        }
    }
}
