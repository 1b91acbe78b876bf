//! A whole run: find out what the server is, make the work, run the levels, gather the result.

use crate::{
    client_health::ClientHealth,
    clock::Clock,
    definitions::{DEFINITIONS, Objectives},
    exchange::Target,
    http::{Limits, Trust, Url},
    live::Live,
    machine::Machine,
    openai::{Api, Part, Prompt, RequestOptions},
    record::{Failure, RequestRecord},
    result::{FORMAT, LevelResult, RunResult, WorkResult},
    run::{Level, run_level},
    schedule::{Load, Until},
    session::Session,
    stop::Stop,
    subject::{self, MetricsChange, Subject},
    summary::Summary,
    work::{Calibration, FileError, Lengths, PromptFile, Prompts, Synthetic, Work, calibrate},
};
use serde_json::{Map, Value, json};
use std::{io, ops::Range, path::PathBuf, sync::Arc, time::Duration};

/// Room for the numbers of one level's requests.
const NUMBERS_PER_LEVEL: u64 = 1 << 32;
/// A closed level warms up with a request per client, up to this many.
const WARMUP_MAX: u64 = 16;

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server; its path may be empty, end in `/v1`, or be the whole route.
    pub url: Url,
    /// The route.
    pub api: Api,
    /// The model; the first the server offers where none.
    pub model: Option<String>,
    /// Headers of every request, the key's among them.
    pub headers: Vec<(String, String)>,
    /// Ask for streams.
    pub stream: bool,
    /// Ask for token counts in every chunk.
    pub usage_per_chunk: bool,
    /// Generate to the limit.
    pub ignore_eos: bool,
    /// Sampling temperature; the server's default where none.
    pub temperature: Option<f64>,
    /// Fields set over all others in each body.
    pub extra_body: Map<String, Value>,
    /// Where prompts come from.
    pub prompts: PromptPlan,
    /// Lengths of answers.
    pub output: Lengths,
    /// Everything random follows from it.
    pub seed: u64,
    /// One level each, in order.
    pub loads: Vec<Load>,
    /// When each level ends.
    pub until: Until,
    /// Requests before each measurement; by the level's size where none.
    pub warmup: Option<u64>,
    /// Client threads.
    pub threads: usize,
    /// Longest time of one request.
    pub timeout: Duration,
    /// Longest time to make a connection.
    pub connect_timeout: Duration,
    /// Whom to believe over https.
    pub trust: Trust,
    /// A new connection for every request.
    pub no_keep_alive: bool,
    /// What makes a request good.
    pub objectives: Objectives,
    /// A label for the configuration that is measured.
    pub config: String,
    /// The command line as it may be stored.
    pub command: Vec<String>,
}

/// Where prompts come from.
#[derive(Clone, Debug)]
pub enum PromptPlan {
    /// Made to length.
    Synthetic {
        /// Lengths.
        input: Lengths,
        /// Token ids of this range in place of words.
        token_ids: Option<Range<u32>>,
        /// Tokens at the beginning that prompts of a group share.
        prefix_tokens: u32,
        /// Groups.
        prefix_groups: u32,
    },
    /// From a file of JSON lines.
    File(PathBuf),
}

/// What a run tells while it goes on.
pub enum Event<'a> {
    /// Something worth a line.
    Note(String),
    /// A level begins; the counters are its own.
    LevelBegins {
        /// How load is offered.
        load: Load,
        /// Its counters.
        live: Arc<Live>,
    },
    /// A level has ended.
    LevelEnded {
        /// What it came to.
        result: &'a LevelResult,
        /// All it recorded.
        records: &'a [RequestRecord],
    },
}

/// Why a run cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The server's name or this machine's certificates.
    #[error("{}", .0.message)]
    Server(Failure),
    /// No model was named and the server lists none.
    #[error("{0} lists no models at /v1/models; is it up? Name one with --model")]
    NoModel(String),
    /// The file of prompts.
    #[error(transparent)]
    Prompts(#[from] FileError),
    /// Messages or token ids for a route that does not take them.
    #[error("{0}")]
    WrongRoute(&'static str),
    /// Threads or event loops.
    #[error("cannot make the client's threads: {0}")]
    Threads(#[from] io::Error),
}

/// Runs a plan to its end, or until `stop`; what was measured by then is in the result.
///
/// # Errors
/// When it cannot begin. A server that fails requests is a result, not an error.
pub fn bench(plan: &Plan, stop: &Stop, mut tell: impl FnMut(Event<'_>)) -> Result<RunResult, BenchError> {
    let began_at = jiff::Timestamp::now().to_string();
    let machine = Machine::now();
    let session = Session::new()?;
    let mut target = target(plan, &session)?;
    let server = Subject::ask(&session, &target);
    let model = plan.model.clone().or_else(|| server.first_model().map(str::to_owned));
    target.options.model = model.ok_or_else(|| BenchError::NoModel(plan.url.root().to_string()))?;

    let work =
        Arc::new(Work { prompts: prompts(plan, &session, &target, &mut tell)?, output: plan.output, seed: plan.seed });
    let mut levels = Vec::new();
    for (place, &load) in plan.loads.iter().enumerate() {
        if stop.is_requested() {
            break;
        }
        let warmup = plan.warmup.unwrap_or_else(|| match load {
            Load::Closed { concurrency } => u64::from(concurrency).min(WARMUP_MAX),
            Load::Open { rate, .. } => (rate.ceil() as u64).clamp(1, WARMUP_MAX),
        });
        let level = Level { load, until: plan.until, warmup, first_number: place as u64 * NUMBERS_PER_LEVEL };
        target.live = Arc::new(Live::default());
        tell(Event::LevelBegins { load, live: target.live.clone() });
        let before = subject::metrics(&session, &target);
        let run = run_level(&Arc::new(target.clone()), &work, level, plan.threads, stop)?;
        let metrics = MetricsChange::between(&before, &subject::metrics(&session, &target), &run.records);
        let result = LevelResult {
            load: load.into(),
            interrupted: run.interrupted,
            wall_s: run.wall.as_secs_f64(),
            summary: Summary::of(&run.records, &plan.objectives),
            client: ClientHealth::of(&run, &target.live),
            metrics,
            load_average_after: Machine::now().load_average,
        };
        tell(Event::LevelEnded { result: &result, records: &run.records });
        levels.push(result);
    }
    Ok(RunResult {
        format: FORMAT.to_owned(),
        began_at,
        powertrain: env!("CARGO_PKG_VERSION").to_owned(),
        command: plan.command.clone(),
        config: plan.config.clone(),
        complete: levels.len() == plan.loads.len() && levels.iter().all(|level| !level.interrupted),
        url: target.url.to_string(),
        model: target.options.model.clone(),
        server,
        work: work_result(plan, &work, &target),
        machine,
        levels,
        events_file: None,
        definitions: DEFINITIONS.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect(),
    })
}

/// Everything that requests have in common, but the model's name.
fn target(plan: &Plan, session: &Session) -> Result<Target, BenchError> {
    let route = plan.api.path();
    let url = match plan.url.path.as_str() {
        path if path.ends_with(route) => plan.url.clone(),
        path if path.ends_with("/v1") => plan.url.join(route),
        _ => plan.url.join("/v1").join(route),
    };
    let limits = Limits { connect: plan.connect_timeout, trust: plan.trust.clone() };
    let connector = session.connector(&url, &limits).map_err(BenchError::Server)?;
    Ok(Target {
        connector,
        url,
        headers: plan.headers.clone(),
        options: RequestOptions {
            api: plan.api,
            model: String::new(),
            stream: plan.stream,
            usage_per_chunk: plan.usage_per_chunk,
            ignore_eos: plan.ignore_eos,
            temperature: plan.temperature,
            extra_body: plan.extra_body.clone(),
        },
        timeout: plan.timeout,
        no_keep_alive: plan.no_keep_alive,
        clock: Clock::start(),
        live: Arc::new(Live::default()),
    })
}

fn prompts(
    plan: &Plan,
    session: &Session,
    target: &Target,
    tell: &mut impl FnMut(Event<'_>),
) -> Result<Prompts, BenchError> {
    let (input, token_ids, prefix_tokens, prefix_groups) = match &plan.prompts {
        PromptPlan::File(path) => {
            let file = PromptFile::open(path)?;
            if file.needs_chat() && plan.api != Api::Chat {
                return Err(BenchError::WrongRoute("the file holds messages, which only --endpoint chat takes"));
            }
            return Ok(Prompts::File(file));
        }
        PromptPlan::Synthetic { input, token_ids, prefix_tokens, prefix_groups } => {
            (*input, token_ids.clone(), *prefix_tokens, *prefix_groups)
        }
    };
    let calibration = match token_ids {
        Some(_) if plan.api != Api::Completions => {
            return Err(BenchError::WrongRoute("token ids are a prompt for --endpoint completions only"));
        }
        Some(range) => Calibration::Ids(range),
        None => {
            tell(Event::Note("counting tokens with the server's tokenizer".to_owned()));
            calibrated(session, target)
        }
    };
    match &calibration {
        Calibration::Words { verified: false, .. } => tell(Event::Note(
            "the server does not count tokens: prompt lengths are a guess of one token per word".to_owned(),
        )),
        Calibration::Words { words, overhead, .. } => {
            tell(Event::Note(format!("{} one-token words, {overhead} tokens around them", words.len())));
        }
        Calibration::Ids(_) => {}
    }
    Ok(Prompts::Synthetic(Synthetic { input, calibration, prefix_tokens, prefix_groups }))
}

/// Calibrates by `/tokenize` where it agrees with what a request is charged, else by the charges of one-token requests.
fn calibrated(session: &Session, target: &Target) -> Calibration {
    let charged = |text: &str| charged_tokens(session, target, text);
    let probe = crate::work::FIRST_WORD;
    match (tokenized(session, target, probe), charged(probe)) {
        (Some(counted), Some(charged)) if counted == charged => calibrate(|text| tokenized(session, target, text)),
        // A server that reports no usage can still count.
        (Some(_), None) => calibrate(|text| tokenized(session, target, text)),
        _ => calibrate(charged),
    }
}

/// Tokens of a prompt by the server's `/tokenize` (vLLM's), template included.
fn tokenized(session: &Session, target: &Target, text: &str) -> Option<u32> {
    let model = &target.options.model;
    let body = match target.options.api {
        Api::Chat => {
            json!({"model": model, "messages": [{"role": "user", "content": text}], "add_generation_prompt": true})
        }
        Api::Completions => json!({"model": model, "prompt": text}),
    };
    let url = target.url.root().join("/tokenize");
    let body = session.body(target, "POST", &url, Some(body.to_string().as_bytes()))?;
    let reply: Value = serde_json::from_slice(&body).ok()?;
    u32::try_from(reply.get("count")?.as_u64()?).ok()
}

/// Tokens of a prompt by the usage of a request for one token.
fn charged_tokens(session: &Session, target: &Target, text: &str) -> Option<u32> {
    let options = RequestOptions { stream: false, ..target.options.clone() };
    let body = options.body(&Prompt::Text(text.to_owned()), 1);
    let reply = session.body(target, "POST", &target.url, Some(&body))?;
    Part::parse(&reply).ok()?.usage.map(|usage| usage.prompt_tokens)
}

fn work_result(plan: &Plan, work: &Work, target: &Target) -> WorkResult {
    let (prompts, input_tokens, overhead_tokens, calibrated, prefix) = match (&work.prompts, &plan.prompts) {
        (Prompts::Synthetic(synthetic), _) => {
            let (name, overhead, calibrated) = match &synthetic.calibration {
                Calibration::Ids(_) => ("synthetic token ids", Some(0), None),
                Calibration::Words { overhead, verified, .. } => ("synthetic words", Some(*overhead), Some(*verified)),
            };
            let prefix = (synthetic.prefix_tokens, synthetic.prefix_groups);
            (name.to_owned(), Some(synthetic.input.to_string()), overhead, calibrated, prefix)
        }
        (Prompts::File(_), PromptPlan::File(path)) => (path.display().to_string(), None, None, None, (0, 0)),
        (Prompts::File(_), PromptPlan::Synthetic { .. }) => ("file".to_owned(), None, None, None, (0, 0)),
    };
    let request = target.options.body(&Prompt::Text(String::new()), 0);
    let mut request: Value = serde_json::from_slice(&request).unwrap_or(Value::Null);
    if let Some(fields) = request.as_object_mut() {
        for field in ["messages", "prompt", "max_tokens"] {
            fields.remove(field);
        }
    }
    WorkResult {
        seed: plan.seed,
        prompts,
        input_tokens,
        overhead_tokens,
        calibrated,
        prefix_tokens: prefix.0,
        prefix_groups: prefix.1,
        output_tokens: plan.output.to_string(),
        streamed: plan.stream,
        request,
    }
}
