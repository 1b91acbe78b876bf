//! What a scheduler says: what a step brought each sequence, why a sequence was refused, and its counters.

use crate::SequenceId;
use powertrain_step::{RowError, SampledToken, TokenId, TokenLogprobs};

/// What one sequence got. `Finished` and the two failures are its last.
#[derive(Debug)]
pub enum Output {
    /// Log-probabilities of prompt tokens 1.., in order, each once.
    PromptLogprobs(Vec<TokenLogprobs>),
    /// The next token.
    Token(SampledToken),
    /// The end.
    Finished(FinishReason, Summary),
    /// The executor failed on this sequence's row.
    RowFailed(RowError),
    /// A step that held this sequence failed as a whole.
    StepFailed,
}

/// Outputs in the order they happened.
pub type Outputs = Vec<(SequenceId, Output)>;

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end-of-sequence token.
    EndOfSequence,
    /// The stop token of this id.
    StopToken(TokenId),
    /// `max_tokens`, or the model's length.
    Length,
    /// Its deadline passed.
    DeadlineExceeded,
    /// The server shut down before it was done.
    Shutdown,
}

/// A sequence's life in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of them, taken from the prefix cache when first scheduled.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
    /// How often it was preempted.
    pub preemptions: u32,
}

/// Why sequences were not taken. None of them was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A prompt without tokens.
    #[error("the prompt is empty; it needs at least one token")]
    EmptyPrompt,
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
    #[error("prompt and max_tokens need {blocks_needed} KV blocks, the cache has {blocks_total}")]
    ExceedsKvCache {
        /// What it needs at its longest.
        blocks_needed: u32,
        /// What there is.
        blocks_total: u32,
    },
    /// More at once than rows and queue hold together, however empty they are.
    #[error("{requested} sequences were submitted together; rows and queue hold {most}")]
    GroupTooLarge {
        /// Sequences submitted together.
        requested: u32,
        /// The most there can be.
        most: u32,
    },
    /// The waiting queue is full.
    #[error("{waiting} of {limit} sequences wait already: there is no place for {requested} more")]
    QueueFull {
        /// Sequences submitted together.
        requested: u32,
        /// Sequences waiting.
        waiting: u32,
        /// The limit.
        limit: u32,
    },
}

/// Where a scheduler stands, and what it did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences that own a row.
    pub running: u32,
    /// Sequences without one.
    pub waiting: u32,
    /// Blocks held by sequences; the others are free, with or without cached contents.
    pub kv_blocks_used: u32,
    /// Blocks in all.
    pub kv_blocks_total: u32,
    /// Prompt tokens looked up in the prefix cache, once a sequence.
    pub prefix_tokens_queried: u64,
    /// Of them, found.
    pub prefix_tokens_hit: u64,
    /// Times a running sequence gave up its blocks to be recomputed later.
    pub preemptions: u64,
    /// Tokens of the prompts of sequences scheduled.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Steps completed, failed ones included.
    pub steps: u64,
}
