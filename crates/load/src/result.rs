//! The result of a run as it is stored: one JSON file, read again by whoever compares or reports.

use crate::{
    capacity::CapacityResult,
    client_health::ClientHealth,
    gpu::{GpuSummary, Gpus},
    machine::Machine,
    schedule::{Arrivals, Load},
    subject::{MetricsChange, Subject},
    summary::Summary,
    telemetry::GaugeSummary,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The version of this format; a reader refuses others.
pub const FORMAT: &str = "powertrain-bench/1";

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// [`FORMAT`].
    pub format: String,
    /// When it began, UTC, RFC 3339.
    pub began_at: String,
    /// Version of the tool.
    pub powertrain: String,
    /// The command line, keys left out.
    pub command: Vec<String>,
    /// A label of the user's for the configuration that was measured.
    pub config: String,
    /// Every level ran to its end.
    pub complete: bool,
    /// Where requests went.
    pub url: String,
    /// The model's name in requests.
    pub model: String,
    /// What the server says it is.
    pub server: Subject,
    /// What was asked.
    pub work: WorkResult,
    /// The client's machine at the beginning.
    pub machine: Machine,
    /// The levels, in order.
    pub levels: Vec<LevelResult>,
    /// The file of raw events beside this one.
    pub events_file: Option<String>,
    /// The file of samples taken during levels, beside this one.
    #[serde(default)]
    pub series_file: Option<String>,
    /// The GPUs of the client's machine, which is the server's where both are one.
    #[serde(default)]
    pub gpus: Gpus,
    /// What a search for the capacity found.
    #[serde(default)]
    pub capacity: Option<CapacityResult>,
    /// What the numbers mean.
    pub definitions: BTreeMap<String, String>,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkResult {
    /// Everything random follows from it.
    pub seed: u64,
    /// `synthetic words`, `synthetic token ids` or the file's name.
    pub prompts: String,
    /// Prompt lengths asked for, where the work makes them.
    pub input_tokens: Option<String>,
    /// Tokens the server adds to a synthetic prompt's words.
    pub overhead_tokens: Option<u32>,
    /// Prompt lengths were calibrated by the server's own count.
    pub calibrated: Option<bool>,
    /// Tokens at the beginning that prompts share.
    pub prefix_tokens: u32,
    /// Groups of different beginnings.
    pub prefix_groups: u32,
    /// Output limits.
    pub output_tokens: String,
    /// Answers were asked as streams.
    pub streamed: bool,
    /// Turns of conversations, as given; null for single requests.
    #[serde(default)]
    pub turns: Option<String>,
    /// Pauses between turns in seconds, as given.
    #[serde(default)]
    pub think_s: Option<String>,
    /// A request's fields but for the prompt and its output limit.
    pub request: Value,
}

/// One level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelResult {
    /// How load was offered.
    pub load: LoadResult,
    /// Ended by the user before its time.
    pub interrupted: bool,
    /// From the first request, warm-up included, to the end of the last.
    pub wall_s: f64,
    /// The numbers; null when no request was measured.
    pub summary: Option<Summary>,
    /// The client's own state, and whether it was the limit.
    pub client: ClientHealth,
    /// The server's counters.
    pub metrics: MetricsChange,
    /// Load averages of the client's machine after the level.
    pub load_average_after: Option<(f64, f64, f64)>,
    /// Of a load in stages: the requests due in each.
    #[serde(default)]
    pub stages: Vec<StageResult>,
    /// Of conversations: the requests of each turn.
    #[serde(default)]
    pub turns: Vec<TurnResult>,
    /// The server's gauges during the level, where they were looked at.
    #[serde(default)]
    pub gauges: BTreeMap<String, GaugeSummary>,
    /// The GPUs during the level, where they were looked at.
    #[serde(default)]
    pub gpus: Vec<GpuSummary>,
}

/// One stage of a level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageResult {
    /// From the level's beginning.
    pub from_s: f64,
    /// Likewise.
    pub to_s: f64,
    /// Rate or clients at its beginning.
    pub from: f64,
    /// At its end.
    pub to: f64,
    /// Of the requests due in it; null when there was none.
    pub summary: Option<Summary>,
}

/// One turn of a level's conversations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnResult {
    /// From 0.
    pub turn: u32,
    /// Of all conversations' requests in this turn.
    pub summary: Option<Summary>,
}

/// How load was offered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LoadResult {
    /// Clients that wait for their answers.
    Closed {
        /// How many.
        concurrency: u32,
    },
    /// Requests due by the clock.
    Open {
        /// Mean requests per second.
        rate: f64,
        /// `constant`, `poisson` or `gamma`.
        arrivals: String,
        /// Shape of the gaps, for gamma.
        burstiness: Option<f64>,
        /// Most requests in flight.
        in_flight_max: u32,
    },
    /// Clients whose number changes, or requests at a rate that changes.
    Stages {
        /// `clients` or `rate`.
        unit: String,
        /// The stages, as on the command line.
        stages: String,
        /// Of rates: `constant`, `poisson` or `gamma`.
        arrivals: Option<String>,
        /// Shape of the gaps, for gamma.
        burstiness: Option<f64>,
        /// Of rates: most requests in flight.
        in_flight_max: Option<u32>,
    },
    /// Requests due when a trace had them.
    Trace {
        /// The file.
        file: String,
        /// How many it has.
        requests: u64,
        /// Its times were multiplied by this.
        time_scale: f64,
        /// Most requests in flight.
        in_flight_max: u32,
    },
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

impl From<&Load> for LoadResult {
    fn from(load: &Load) -> Self {
        let named = |arrivals: Arrivals| match arrivals {
            Arrivals::Constant => ("constant".to_owned(), None),
            Arrivals::Poisson => ("poisson".to_owned(), None),
            Arrivals::Gamma { burstiness } => ("gamma".to_owned(), Some(burstiness)),
        };
        match *load {
            Load::Closed { concurrency } => Self::Closed { concurrency },
            Load::Open { rate, arrivals, in_flight_max } => {
                let (arrivals, burstiness) = named(arrivals);
                Self::Open { rate, arrivals, burstiness, in_flight_max }
            }
            Load::Clients { ref stages } => Self::Stages {
                unit: "clients".to_owned(),
                stages: stages.to_string(),
                arrivals: None,
                burstiness: None,
                in_flight_max: None,
            },
            Load::Rates { ref stages, arrivals, in_flight_max } => {
                let (arrivals, burstiness) = named(arrivals);
                Self::Stages {
                    unit: "rate".to_owned(),
                    stages: stages.to_string(),
                    arrivals: Some(arrivals),
                    burstiness,
                    in_flight_max: Some(in_flight_max),
                }
            }
            Load::Trace { ref name, ref times, time_scale, in_flight_max } => {
                Self::Trace { file: name.clone(), requests: times.len() as u64, time_scale, in_flight_max }
            }
        }
    }
}
