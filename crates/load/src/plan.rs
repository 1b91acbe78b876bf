//! What a run is asked to do, and what it tells while it goes on.

use crate::{
    capacity::SearchPlan,
    definitions::Objectives,
    http::{Trust, Url},
    live::Live,
    openai::Api,
    priority::ClientThreads,
    record::{Failure, RequestRecord},
    result::LevelResult,
    schedule::{Load, Until},
    telemetry::Sample,
    work::{Conversations, FileError, Lengths, Trace},
};
use serde_json::{Map, Value};
use std::{io, ops::Range, path::PathBuf, sync::Arc, time::Duration};

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
    /// Conversations of several turns, for chat.
    pub conversations: Option<Conversations>,
    /// Lengths of answers.
    pub output: Lengths,
    /// Everything random follows from it.
    pub seed: u64,
    /// One level each, in order.
    pub loads: Vec<Load>,
    /// In place of those loads, search for the highest under which the objectives are met.
    pub search: Option<SearchPlan>,
    /// When each level ends; stages and traces end by themselves too.
    pub until: Until,
    /// Requests before each measurement; by the level's size where none.
    pub warmup: Option<u64>,
    /// Client threads.
    pub threads: ClientThreads,
    /// Longest time of one request.
    pub timeout: Duration,
    /// Longest time to make a connection.
    pub connect_timeout: Duration,
    /// Whom to believe over https.
    pub trust: Trust,
    /// A new connection for every request.
    pub no_keep_alive: bool,
    /// How often to look at the server's metrics and the GPUs; not at all where none.
    pub look_every: Option<Duration>,
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
    /// As long as those of a trace, and alike where those were.
    Trace {
        /// Its file's name.
        name: String,
        /// The trace.
        trace: Trace,
        /// Token ids of this range in place of words.
        token_ids: Option<Range<u32>>,
    },
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
        /// What was seen meanwhile.
        series: &'a [Sample],
    },
}

/// Why a run cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The server's name or this machine's certificates.
    #[error("{}", .0.message)]
    Server(Failure),
    /// No model was named and the server lists none.
    #[error("{url} names no model: {reason}; if that is as it should be, name one with --model")]
    NoModel {
        /// Its list of models.
        url: String,
        /// What came of asking for it.
        reason: String,
    },
    /// The file of prompts.
    #[error(transparent)]
    Prompts(#[from] FileError),
    /// Messages or token ids for a route that does not take them.
    #[error("{0}")]
    WrongRoute(&'static str),
    /// A search without limits to search under.
    #[error("a search for the capacity needs limits that make a request good, e.g. --goodput ttft:500 tpot:50")]
    NoObjectives,
    /// Stopped while the server was asked about itself or tokens were counted.
    #[error("interrupted before anything was measured")]
    Interrupted,
    /// Threads or event loops.
    #[error("cannot make the client's threads: {0}")]
    Threads(#[from] io::Error),
}
