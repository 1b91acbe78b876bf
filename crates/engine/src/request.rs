//! What goes into the engine and what comes out.

use powertrain_scheduler::NewSequence;
pub use powertrain_scheduler::{FinishReason, StopConditions};
use powertrain_step::{RowError, SampledToken, SamplingParams, TokenId, TokenLogprobs};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// One sequence to generate. `n` completions of a prompt are n requests, submitted together.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name for logs and errors; unique among those alive.
    pub id: Arc<str>,
    /// Token ids, at least one, all below the vocabulary's size.
    pub prompt: Arc<[TokenId]>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When to end.
    pub stop: StopConditions,
    /// Lower goes first, as in vLLM; 0 is usual.
    pub priority: i32,
    /// Past this the request ends with [`FinishReason::DeadlineExceeded`], running or waiting.
    pub deadline: Option<Instant>,
    /// Prefix-cache blocks are shared only between equal salts (tenants).
    pub cache_salt: Option<Arc<str>>,
    /// Report every prompt token's log-probability with this many alternatives; `powertrain_sampling::WHOLE_VOCABULARY` of them
    /// are all there are.
    pub prompt_logprobs: Option<u8>,
}

impl Request {
    pub(crate) fn into_sequence(self) -> NewSequence {
        NewSequence {
            prompt: self.prompt,
            sampling: Arc::new(self.sampling),
            stop: self.stop,
            priority: self.priority,
            cache_salt: self.cache_salt,
            prompt_logprobs: self.prompt_logprobs,
        }
    }
}

/// What a request's stream yields. The last one is `Finished` or `Failed`.
#[derive(Debug)]
pub enum Event {
    /// It was planned into a step for the first time; once, before all others. For those who stop listening early, at a
    /// stop string say, and so never see [`Finished`].
    Scheduled {
        /// When.
        at: Instant,
        /// Prompt tokens taken from the prefix cache.
        cached_tokens: u32,
    },
    /// Log-probabilities of prompt tokens 1.., possibly over several events (chunked prefill), in order.
    PromptLogprobs(Vec<TokenLogprobs>),
    /// The next token.
    Token(SampledToken),
    /// The end, as asked.
    Finished(Finished),
    /// This request alone failed.
    Failed(Failure),
}

/// How a request ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of them, taken from the prefix cache when first scheduled.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
    /// How often it was preempted.
    pub preemptions: u32,
    /// When what happened.
    pub timings: Timings,
}

/// Moments of a request by the engine's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// Accepted by the engine.
    pub queued: Instant,
    /// First planned into a step.
    pub scheduled: Option<Instant>,
    /// First token sampled.
    pub first_token: Option<Instant>,
    /// Ended.
    pub finished: Instant,
}

/// One request's failure.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The model failed on this row.
    #[error(transparent)]
    Row(#[from] RowError),
    /// The whole step failed.
    #[error("{0}")]
    Step(String),
    /// The engine itself broke down; no request goes on.
    #[error("the engine stopped: {0}; the server must be restarted")]
    Engine(String),
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The waiting queue is full.
    #[error(
        "{waiting} requests wait already, --max-queue is {limit}: there is no place for {requested} more; retry in {} s",
        retry_after.as_secs()
    )]
    QueueFull {
        /// Requests submitted together.
        requested: u32,
        /// Requests waiting.
        waiting: u32,
        /// `--max-queue`.
        limit: u32,
        /// Whole seconds, from the rate at which the queue drained lately.
        retry_after: Duration,
    },
    /// More together than rows and queue hold, however empty they are.
    #[error(
        "{requested} sequences (prompts times n) are more than --max-num-seqs and --max-queue hold together; ask for at most {most}"
    )]
    GroupTooLarge {
        /// Requests submitted together.
        requested: u32,
        /// The most there can be.
        most: u32,
    },
    /// Prompt and one token do not fit the model.
    #[error(
        "the prompt has {prompt_tokens} tokens; --max-model-len {max_model_len} must hold it and at least one generated token"
    )]
    PromptTooLong {
        /// The prompt's length.
        prompt_tokens: u32,
        /// The limit.
        max_model_len: u32,
    },
    /// The whole KV cache could not hold this one sequence.
    #[error(
        "prompt and max_tokens need {blocks_needed} KV blocks, the cache has {blocks_total}; raise --kv-cache-memory or ask for fewer tokens"
    )]
    ExceedsKvCache {
        /// What it needs at its longest.
        blocks_needed: u32,
        /// What there is.
        blocks_total: u32,
    },
    /// An id the model does not have, or an empty prompt.
    #[error("{0}")]
    InvalidPrompt(String),
    /// The engine is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The engine broke down.
    #[error("the engine stopped after an internal error; the server must be restarted")]
    EngineStopped,
}
