//! The flags of `powertrain bench`.

use powertrain_load::{
    http::{Url, UrlError},
    stages::Stages,
    work::{Lengths, Pause},
};
use std::{net::SocketAddr, path::PathBuf};

const SERVER: &str = "The server";
const LOAD: &str = "Load";
const WORK: &str = "What is asked";
const LIMITS: &str = "Limits and capacity";
const CLIENT: &str = "The client and what it watches";
const OUTPUT: &str = "Output";
const OWN_ERROR: &str = "The client's own error";

/// Measure any OpenAI-compatible server: latency, throughput and goodput under a stated load.
///
/// Every number comes with its count and definition, failed and cut-off requests are shown apart, and the client measures
/// itself: where it was the limit, the result says so.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The server, e.g. http://localhost:8000; `self` measures the client's own error against a built-in server, `ground-truth` is that server
    /// alone, for clients of other processes and machines
    pub(super) url: Subject,
    /// Model name; by default the first the server lists
    #[arg(long, help_heading = SERVER)]
    pub(super) model: Option<String>,
    /// Route to measure
    #[arg(long, value_enum, default_value_t = Endpoint::Chat, help_heading = SERVER)]
    pub(super) endpoint: Endpoint,
    /// Key sent as `Authorization: Bearer`
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, help_heading = SERVER)]
    pub(super) api_key: Option<String>,
    /// Further header, `Name: value`; repeatable
    #[arg(long = "header", value_name = "HEADER", help_heading = SERVER)]
    pub(super) headers: Vec<String>,
    /// JSON object whose fields are set over all others in each body; null removes one
    #[arg(long, value_name = "JSON", help_heading = SERVER)]
    pub(super) extra_body: Option<String>,
    /// Ask for whole answers in place of streams: no TTFT, no gaps
    #[arg(long, help_heading = SERVER)]
    pub(super) no_stream: bool,
    /// Ask for token counts in each chunk (continuous_usage_stats), to tell token gaps from chunk gaps
    #[arg(long, help_heading = SERVER)]
    pub(super) usage_per_chunk: bool,
    /// Generate to the limit whatever the model says, where the server has this extension
    #[arg(long, help_heading = SERVER)]
    pub(super) ignore_eos: bool,
    /// Sampling temperature; `server` leaves it to the server
    #[arg(long, default_value = "0", help_heading = SERVER)]
    pub(super) temperature: String,

    /// Closed loop: clients that each wait for their answer; a list makes a level of each. Of `self`: streams [default: 1000]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = LOAD)]
    pub(super) concurrency: Vec<u32>,
    /// Open loop: requests per second, whatever the answers do; a list makes a level of each. Of `self`: tokens per second of each
    /// stream [default: 100]
    #[arg(long, value_delimiter = ',', value_name = "PER_SECOND", help_heading = LOAD)]
    pub(super) request_rate: Vec<f64>,
    /// Open loop whose rate changes: DURATION:RATE or DURATION:FROM-TO with commas between, e.g. 30s:10,1m:10-50
    #[arg(long, value_name = "STAGES", conflicts_with_all = ["concurrency", "request_rate", "find_capacity"], help_heading = LOAD)]
    pub(super) stages: Option<Stages>,
    /// Closed loop whose number of clients changes, likewise
    #[arg(long, value_name = "STAGES", conflicts_with_all = ["concurrency", "request_rate", "stages", "find_capacity"], help_heading = LOAD)]
    pub(super) client_stages: Option<Stages>,
    /// Replay a trace: Azure's CSV, Mooncake's JSON lines, or JSON lines of at_s, input_tokens and output_tokens
    #[arg(long, value_name = "FILE", conflicts_with_all = ["concurrency", "request_rate", "stages", "client_stages", "find_capacity", "prompts", "input_tokens", "max_tokens", "prefix_tokens", "turns"], help_heading = LOAD)]
    pub(super) trace: Option<PathBuf>,
    /// Multiply the trace's times: 0.5 is twice as fast
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", requires = "trace", help_heading = LOAD)]
    pub(super) time_scale: f64,
    /// Replay the requests of the trace's first seconds only, e.g. 600 or 10m
    #[arg(long, value_name = "SECONDS", requires = "trace", help_heading = LOAD)]
    pub(super) trace_seconds: Option<String>,
    /// Cut longer prompts of the trace to so many tokens
    #[arg(long, value_name = "TOKENS", requires = "trace", value_parser = clap::value_parser!(u32).range(1..), help_heading = LOAD)]
    pub(super) trace_input_max: Option<u32>,
    /// Cut longer answers of the trace likewise
    #[arg(long, value_name = "TOKENS", requires = "trace", value_parser = clap::value_parser!(u32).range(1..), help_heading = LOAD)]
    pub(super) trace_output_max: Option<u32>,
    /// Search for the highest load at which enough requests meet the limits of --goodput
    #[arg(long, value_enum, value_name = "UNIT", requires = "goodput", help_heading = LIMITS)]
    pub(super) find_capacity: Option<CapacityUnit>,
    /// Share of the requests that must be good there
    #[arg(long, default_value_t = 0.99, value_name = "SHARE", requires = "find_capacity", help_heading = LIMITS)]
    pub(super) attainment: f64,
    /// Highest load that is tried [default: 1000 clients, or 1000 requests/s]
    #[arg(long, value_name = "LOAD", requires = "find_capacity", help_heading = LIMITS)]
    pub(super) capacity_max: Option<f64>,
    /// Gaps between requests of an open loop [default: poisson]
    #[arg(long, value_enum, help_heading = LOAD)]
    pub(super) arrivals: Option<ArrivalKind>,
    /// Shape of gamma-distributed gaps: below 1 burstier than Poisson, above 1 more even; implies --arrivals gamma
    #[arg(long, help_heading = LOAD)]
    pub(super) burstiness: Option<f64>,
    /// Most requests in flight of an open loop; the wait beyond counts as latency
    #[arg(long, default_value_t = 10_000, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = LOAD)]
    pub(super) max_in_flight: u32,
    /// Measured requests per level [default: none, see --duration]
    #[arg(long, visible_alias = "num-prompts", value_name = "REQUESTS", value_parser = clap::value_parser!(u64).range(1..=100_000_000), help_heading = LOAD)]
    pub(super) num_requests: Option<u64>,
    /// Seconds during which requests are sent per level [default: 30 where --num-requests is not given]
    #[arg(long, value_name = "SECONDS", help_heading = LOAD)]
    pub(super) duration: Option<f64>,
    /// Requests per level before the measurement, which begins while they run [default: one per client; of an open loop those of a second, at most 16]
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u64).range(0..=1_000_000), help_heading = LOAD)]
    pub(super) warmup: Option<u64>,

    /// Prompt tokens as the server counts them: 512, 128-1024, normal:MEAN:DEVIATION or lognormal:MEAN:DEVIATION, which may
    /// go on with :MIN:MAX, or file:PATH with lengths to draw from
    #[arg(long, visible_alias = "random-input-len", default_value = "256", value_name = "LENGTHS", help_heading = WORK)]
    pub(super) input_tokens: Lengths,
    /// Most tokens of an answer, likewise
    #[arg(long, visible_aliases = ["output-tokens", "random-output-len"], default_value = "128", value_name = "LENGTHS", help_heading = WORK)]
    pub(super) max_tokens: Lengths,
    /// Prompts from JSON lines or a JSON list: MT-Bench, ShareGPT, or objects with `prompt`, `text` or `messages`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["input_tokens", "prompt_token_ids", "prefix_tokens"], help_heading = WORK)]
    pub(super) prompts: Option<PathBuf>,
    /// Prompts of token ids from this range, FIRST-LAST, for --endpoint completions
    #[arg(long, value_name = "RANGE", help_heading = WORK)]
    pub(super) prompt_token_ids: Option<Lengths>,
    /// Conversations of so many turns (see --input-tokens for how to write it); each counts as one of --num-requests
    #[arg(long, value_name = "TURNS", help_heading = WORK)]
    pub(super) turns: Option<Lengths>,
    /// Seconds between an answer and the next turn: 2, 1-5 or exponential:3
    #[arg(long, default_value = "0", value_name = "SECONDS", requires = "turns", help_heading = WORK)]
    pub(super) think_time: Pause,
    /// Tokens at the beginning that prompts share
    #[arg(long, default_value_t = 0, value_name = "TOKENS", help_heading = WORK)]
    pub(super) prefix_tokens: u32,
    /// Groups of prompts with different shared beginnings
    #[arg(long, default_value_t = 1, value_name = "GROUPS", value_parser = clap::value_parser!(u32).range(1..), help_heading = WORK)]
    pub(super) prefix_groups: u32,
    /// Repeats the prompts, lengths and arrivals of an earlier run; by default each run has its own, lest the server
    /// find the last run's prompts in its cache
    #[arg(long, help_heading = WORK)]
    pub(super) seed: Option<u64>,

    /// Limits that make a request good: ttft:MS, tpot:MS, e2e:MS
    #[arg(long, num_args = 1.., value_name = "LIMIT", help_heading = LIMITS)]
    pub(super) goodput: Vec<String>,
    /// Seconds after which a request is given up
    #[arg(long, default_value_t = 600.0, value_name = "SECONDS", help_heading = SERVER)]
    pub(super) timeout: f64,
    /// Seconds after which making a connection is given up
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", help_heading = SERVER)]
    pub(super) connect_timeout: f64,
    /// Believe servers whose certificates the authorities in this PEM file vouch for, in place of this machine's own
    #[arg(long, value_name = "FILE", help_heading = SERVER)]
    pub(super) ca_file: Option<PathBuf>,
    /// Believe any certificate: whoever stands between can read everything, the key too
    #[arg(long, conflicts_with = "ca_file", help_heading = SERVER)]
    pub(super) insecure: bool,
    /// Open a connection for each request
    #[arg(long, help_heading = SERVER)]
    pub(super) no_keep_alive: bool,
    /// Threads of this client [default: one for every two CPUs, at most 4; two of 500 clients and more]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256), help_heading = CLIENT)]
    pub(super) client_threads: Option<u16>,
    /// How this client's threads go before other programs on this machine; where the system refuses, the next lower one
    #[arg(long, value_enum, default_value_t = ClientPriority::RealTime, value_name = "PRIORITY", help_heading = CLIENT)]
    pub(super) client_priority: ClientPriority,
    /// Look at the server's metrics and this machine's GPUs (NVML) every so many milliseconds; 0 for not at all
    #[arg(long, default_value_t = 1000, value_name = "MS", value_parser = clap::value_parser!(u32).range(0..=3_600_000), help_heading = CLIENT)]
    pub(super) loop_ms: u32,
    /// Write the result as JSON here, a name in .json; raw events go beside it into the same name in .events.jsonl, samples in .series.jsonl
    #[arg(short, long, value_name = "FILE", help_heading = OUTPUT)]
    pub(super) output: Option<PathBuf>,
    /// Write the classic table here, a line per level
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub(super) csv: Option<PathBuf>,
    /// Of `ground-truth`: where it listens; whoever reaches it says what it does
    #[arg(long, default_value = "127.0.0.1:9100", value_name = "ADDRESS:PORT", help_heading = OWN_ERROR)]
    pub(super) listen: SocketAddr,
    /// Of `self`: the address of a `ground-truth` of another process or machine, in place of one in this process
    #[arg(long, value_name = "URL", help_heading = OWN_ERROR)]
    pub(super) ground_truth: Option<Url>,
    /// Of `self`: only the cases whose names hold this, e.g. `many streams`
    #[arg(long, value_name = "TEXT", help_heading = OWN_ERROR)]
    pub(super) case: Option<String>,
    /// Name of the measured configuration, for the result
    #[arg(long, default_value = "", help_heading = OUTPUT)]
    pub(super) config: String,
}

/// What is measured.
#[derive(Clone)]
pub(super) enum Subject {
    Server(Url),
    Itself,
    GroundTruth,
}

impl std::str::FromStr for Subject {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        match text {
            "self" => Ok(Self::Itself),
            "ground-truth" => Ok(Self::GroundTruth),
            url => url.parse().map(Self::Server),
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum Endpoint {
    Chat,
    Completions,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum ClientPriority {
    /// SCHED_RR, where a CPU is left for everything else
    RealTime,
    /// Niceness -15
    Nice,
    /// As any other program
    Normal,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum CapacityUnit {
    Concurrency,
    Rate,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum ArrivalKind {
    Constant,
    Poisson,
    Gamma,
}
