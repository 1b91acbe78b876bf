//! The result of a run as it is stored: one JSON file, read again by whoever compares or reports.

use crate::{
    client_health::ClientHealth,
    machine::Machine,
    schedule::{Arrivals, Load},
    subject::{MetricsChange, Subject},
    summary::Summary,
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
}

impl From<Load> for LoadResult {
    fn from(load: Load) -> Self {
        match load {
            Load::Closed { concurrency } => Self::Closed { concurrency },
            Load::Open { rate, arrivals, in_flight_max } => {
                let (name, burstiness) = match arrivals {
                    Arrivals::Constant => ("constant", None),
                    Arrivals::Poisson => ("poisson", None),
                    Arrivals::Gamma { burstiness } => ("gamma", Some(burstiness)),
                };
                Self::Open { rate, arrivals: name.to_owned(), burstiness, in_flight_max }
            }
        }
    }
}
