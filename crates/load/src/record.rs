//! What one request left behind: instants, sizes and how it ended. Nothing here is computed; see [`crate::definitions`].
//!
//! Every instant is in nanoseconds of the process's monotonic clock since the run's origin ([`crate::Clock`]).

/// Nanoseconds since the run's origin.
pub type Nanos = u64;

/// One request, from the moment it was due.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestRecord {
    /// Its number in the level, from 0, warm-up included; work item and arrival time follow from it and the seed.
    pub index: u64,
    /// Its turn in a conversation, from 0; conversations have one index for all their turns.
    pub turn: u32,
    /// Sent before the measurement began: kept in the raw events, left out of every number.
    pub warmup: bool,
    /// When it was due: its time in the schedule (open loop), or when its client became free (closed loop).
    pub scheduled: Nanos,
    /// When the client turned to it: later than `scheduled` only by the client's own lateness or its limit of requests in
    /// flight, which says nothing about the server.
    pub started: Nanos,
    /// When its first byte was handed to the socket; later than `scheduled` by connecting and by the client's own delay.
    pub sent: Option<Nanos>,
    /// When the first byte of the response was read.
    pub first_byte: Option<Nanos>,
    /// When the first event was read that carries a choice, be it only a role: what some tools call the first token.
    pub first_event: Option<Nanos>,
    /// The chunks with content, in order of arrival.
    pub chunks: Vec<Chunk>,
    /// When the last event was read that carries a choice (content or the finish reason), or a non-streamed body's end.
    pub last_event: Option<Nanos>,
    /// When the response ended, well or not.
    pub ended: Nanos,
    /// The HTTP status, once one was read.
    pub status: Option<u16>,
    /// The server's own counts, if it gave them.
    pub usage: Option<Usage>,
    /// As the server put it: `stop`, `length`, ….
    pub finish_reason: Option<String>,
    /// Asked as a stream of events.
    pub streamed: bool,
    /// Went over a connection that an earlier request had opened.
    pub reused_connection: bool,
    /// Prompt tokens the work meant to send, where it knows.
    pub prompt_tokens_asked: Option<u32>,
    /// The limit of output tokens in the request.
    pub output_tokens_asked: u32,
    /// Why it did not complete.
    pub failure: Option<Failure>,
}

/// One event with content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// When the read that completed it returned.
    pub at: Nanos,
    /// Unicode characters of content: text, reasoning, or a tool call's name and arguments.
    pub characters: u32,
    /// Tokens it brought, where the server counts them as it goes (`continuous_usage_stats`).
    pub tokens: Option<u32>,
}

/// Token counts as the server reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Usage {
    /// Tokens of the prompt, template included.
    #[serde(default)]
    pub prompt_tokens: u32,
    /// Tokens generated.
    #[serde(default)]
    pub completion_tokens: u32,
    /// Of the prompt, those the server had in its prefix cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u32>,
}

/// Why a request did not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its kind, to count by.
    pub class: FailureClass,
    /// What was seen, in one line.
    pub message: String,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureClass {
    /// The name has no address.
    UnknownHost,
    /// Nobody listens.
    Refused,
    /// The connection was not made within the limit, or the network is unreachable.
    Unreachable,
    /// The TLS handshake failed.
    Tls,
    /// This machine is out of ports or file descriptors.
    ClientExhausted,
    /// The server answered with a status other than 200.
    Status,
    /// An error object arrived in place of a chunk or after some.
    ServerError,
    /// The connection ended before the response did.
    Closed,
    /// The response ended properly, but without a finish reason or end mark.
    EndedEarly,
    /// Not complete within the limit of one request.
    TimedOut,
    /// What arrived is not HTTP, not events, or not the API's JSON, or exceeds a limit.
    Malformed,
    /// Given up by this client when the run was interrupted.
    Interrupted,
}

impl FailureClass {
    /// The name used in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownHost => "unknown_host",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::ClientExhausted => "client_exhausted",
            Self::Status => "status",
            Self::ServerError => "server_error",
            Self::Closed => "closed",
            Self::EndedEarly => "ended_early",
            Self::TimedOut => "timed_out",
            Self::Malformed => "malformed",
            Self::Interrupted => "interrupted",
        }
    }
}

/// How a request ended: the four are never mixed in one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A whole answer.
    Completed,
    /// Some content, then a failure.
    CutOff,
    /// A failure before any content.
    Failed,
    /// Given up because the run was interrupted; says nothing about the server.
    Interrupted,
}

impl RequestRecord {
    /// How it ended.
    pub fn outcome(&self) -> Outcome {
        match &self.failure {
            None => Outcome::Completed,
            Some(failure) if failure.class == FailureClass::Interrupted => Outcome::Interrupted,
            Some(_) if self.chunks.is_empty() => Outcome::Failed,
            Some(_) => Outcome::CutOff,
        }
    }
}
