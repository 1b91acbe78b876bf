//! A whole run: find out what the server is, make the work, run the levels, gather the result.

use crate::{
    capacity::{CapacityResult, Search, SearchPlan, Step, Trial, Unit},
    client_health::ClientHealth,
    clock::Clock,
    definitions::DEFINITIONS,
    exchange::Target,
    gpu::GpuWatch,
    http::Limits,
    live::Live,
    machine::Machine,
    openai::{Prompt, RequestOptions},
    plan::{BenchError, Event, Plan, PromptPlan},
    prompting::prompts,
    result::{FORMAT, LevelResult, RunResult, WorkResult},
    run::{Level, run_level},
    schedule::Load,
    session::Session,
    stages_of::{stage_results, turn_results},
    stop::Stop,
    subject::{self, MODELS, MetricsChange, Subject},
    summary::Summary,
    telemetry,
    work::{Calibration, Prompts, Work},
};
use serde_json::Value;
use std::sync::Arc;

/// Room for the numbers of one level's requests.
const NUMBERS_PER_LEVEL: u64 = 1 << 32;
/// An open loop warms up with the requests of a second, up to this many.
const WARMUP_MAX: u64 = 16;
/// An open loop keeps up when it completes this share of what was due.
const KEPT_UP_SHARE: f64 = 0.95;

/// Runs a plan to its end, or until `stop`; what was measured by then is in the result.
///
/// # Errors
/// When it cannot begin. A server that fails requests is a result, not an error.
pub fn bench(plan: &Plan, stop: &Stop, mut tell: impl FnMut(Event<'_>)) -> Result<RunResult, BenchError> {
    let began_at = jiff::Timestamp::now().to_string();
    let machine = Machine::now();
    let session = Session::new(stop)?;
    let mut target = target(plan, &session)?;
    let (server, listed) = Subject::ask(&session, &target);
    let going_on = || if stop.is_requested() { Err(BenchError::Interrupted) } else { Ok(()) };
    going_on()?;
    let no_model = |reason| BenchError::NoModel { url: plan.url.root().join(MODELS).to_string(), reason };
    target.options.model = match (&plan.model, server.first_model()) {
        (Some(named), _) => named.clone(),
        (None, Some(first)) => first.to_owned(),
        (None, None) => {
            let unlisted = || "the answer is no list with a model's id in it".to_owned();
            return Err(no_model(listed.err().unwrap_or_else(unlisted)));
        }
    };

    if plan.search.is_some() && plan.objectives.is_empty() {
        return Err(BenchError::NoObjectives);
    }
    let work = Work {
        prompts: prompts(plan, &session, &target, &mut tell)?,
        output: plan.output.clone(),
        conversations: plan.conversations.clone(),
        seed: plan.seed,
    };
    going_on()?;
    let mut run =
        Run { plan, session, target, work: Arc::new(work), gpus: GpuWatch::open(), levels: Vec::new(), stop, tell };
    let capacity = match &plan.search {
        Some(search) => Some(run.search(search)?),
        None => {
            for load in &plan.loads {
                if !stop.is_requested() {
                    run.level(load)?;
                }
            }
            None
        }
    };
    let Run { target, work, gpus, levels, .. } = run;
    let all = plan.search.is_some() || levels.len() == plan.loads.len();
    Ok(RunResult {
        format: FORMAT.to_owned(),
        began_at,
        powertrain: env!("CARGO_PKG_VERSION").to_owned(),
        command: plan.command.clone(),
        config: plan.config.clone(),
        complete: all && !stop.is_requested() && levels.iter().all(|level| !level.interrupted),
        url: target.url.to_string(),
        model: target.options.model.clone(),
        server,
        work: work_result(plan, &work, &target),
        machine,
        levels,
        events_file: None,
        series_file: None,
        gpus: gpus.gpus,
        capacity,
        definitions: DEFINITIONS.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect(),
    })
}

/// A run under way.
struct Run<'a, Tell> {
    plan: &'a Plan,
    session: Session,
    target: Target,
    work: Arc<Work>,
    gpus: GpuWatch,
    levels: Vec<LevelResult>,
    stop: &'a Stop,
    tell: Tell,
}

impl<Tell: FnMut(Event<'_>)> Run<'_, Tell> {
    /// Runs one level to its end and keeps what it came to.
    fn level(&mut self, load: &Load) -> Result<&LevelResult, BenchError> {
        let Self { plan, session, target, work, gpus, levels, stop, tell } = self;
        let warmup = plan.warmup.unwrap_or_else(|| match load {
            // The whole first wave: where a part of it counted, its prompts would be computed in the measured time and the
            // tokens of the others would not count.
            Load::Closed { concurrency } => u64::from(*concurrency),
            Load::Open { rate, .. } => (rate.ceil() as u64).clamp(1, WARMUP_MAX),
            // What changes with time has no part that stands for another.
            Load::Clients { .. } | Load::Rates { .. } | Load::Trace { .. } => 0,
        });
        let first_number = levels.len() as u64 * NUMBERS_PER_LEVEL;
        let level = Level { load: load.clone(), until: plan.until, warmup, first_number };
        target.live = Arc::new(Live::default());
        tell(Event::LevelBegins { load: load.clone(), live: target.live.clone() });
        let before = subject::page(session, target).samples;
        let shared = Arc::new(target.clone());
        let (run, seen) =
            telemetry::during(target, gpus, plan.look_every, || run_level(&shared, work, level, plan.threads, stop))?;
        let run = run?;
        let result = LevelResult {
            load: load.into(),
            interrupted: run.interrupted,
            wall_s: run.wall.as_secs_f64(),
            summary: Summary::of(&run.records, &plan.objectives),
            client: ClientHealth::of(&run, &target.live),
            metrics: MetricsChange::between(&before, &subject::page(session, target).samples, &run.records),
            load_average_after: Machine::now().load_average,
            stages: stage_results(load, &run, &plan.objectives),
            turns: turn_results(&run.records, &plan.objectives),
            gauges: seen.gauges,
            gpus: seen.gpus,
        };
        tell(Event::LevelEnded { result: &result, records: &run.records, series: &seen.series });
        levels.push(result);
        Ok(&levels[levels.len() - 1])
    }

    fn search(&mut self, plan: &SearchPlan) -> Result<CapacityResult, BenchError> {
        let mut search = Search::new(plan.clone());
        while let Step::Try { at, confirmation } = search.next() {
            if self.stop.is_requested() {
                break;
            }
            let load = match plan.unit {
                Unit::Concurrency => Load::Closed { concurrency: at as u32 },
                Unit::Rate => Load::Open { rate: at, arrivals: plan.arrivals, in_flight_max: plan.in_flight_max },
            };
            let level = self.level(&load)?;
            if level.interrupted {
                break;
            }
            let why = failing(level, plan);
            let passed = why.is_none();
            let said = if passed { "passed" } else { "failed" };
            let why = why.unwrap_or_default();
            let what = if confirmation { "confirmation at" } else { "trial at" };
            let colon = if passed { "" } else { ": " };
            (self.tell)(Event::Note(format!("{what} {}: {said}{colon}{why}", shown(at))));
            search.note(Trial { at, passed, confirmation, why, level: self.levels.len() - 1 });
        }
        Ok(search.result())
    }
}

fn shown(load: f64) -> String {
    if load.fract() == 0.0 { load.to_string() } else { format!("{load:.3}") }
}

/// Why a level does not meet what a search asks; none when it does.
fn failing(level: &LevelResult, plan: &SearchPlan) -> Option<String> {
    let Some(summary) = &level.summary else { return Some("no request was measured".to_owned()) };
    let share = summary.goodput.map_or(0.0, |goodput| goodput.share);
    if share < plan.attainment {
        return Some(format!("{:.1} % of requests were good, not {:.1} %", share * 100.0, plan.attainment * 100.0));
    }
    let completed = summary.requests.completed as f64 / summary.window_s;
    match (plan.unit, summary.while_offered) {
        // The window ends with the last answer: a server that is behind makes it long.
        (Unit::Rate, Some(offered)) if completed < KEPT_UP_SHARE * offered.offered_per_s && summary.window_s > 10.0 => {
            Some(format!("{completed:.2} requests/s completed of {:.2} due", offered.offered_per_s))
        }
        _ => None,
    }
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
        (Prompts::Trace { calibration, .. }, PromptPlan::Trace { name, .. }) => {
            let (overhead, calibrated) = match calibration {
                Calibration::Ids(_) => (Some(0), None),
                Calibration::Words { overhead, verified, .. } => (Some(*overhead), Some(*verified)),
            };
            (name.clone(), None, overhead, calibrated, (0, 0))
        }
        // Prompts are made from their plan.
        _ => ("unknown".to_owned(), None, None, None, (0, 0)),
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
        output_tokens: match &plan.prompts {
            PromptPlan::Trace { .. } => "as in the trace".to_owned(),
            _ => plan.output.to_string(),
        },
        streamed: plan.stream,
        turns: plan.conversations.as_ref().map(|conversations| conversations.turns.to_string()),
        think_s: plan.conversations.as_ref().map(|conversations| conversations.think.to_string()),
        request,
    }
}
