//! One sequence: what it asks, what is known of it, where it stands.

use crate::hash::BlockHash;
use powertrain_step::{BlockId, RowId, SamplingParams, TokenId};
use std::sync::Arc;

/// Names a sequence from its submission until its slot is vacated; a name that is over is recognised as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl SequenceId {
    /// A small number, unique among the sequences alive: an index for tables beside the scheduler's own.
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// A sequence to generate.
#[derive(Clone, Debug)]
pub struct NewSequence {
    /// Token ids, at least one.
    pub prompt: Arc<[TokenId]>,
    /// How its tokens are chosen; passed through to the executor.
    pub sampling: Arc<SamplingParams>,
    /// When it ends.
    pub stop: StopConditions,
    /// Lower goes first; first come, first served among equals.
    pub priority: i32,
    /// Blocks are shared only between equal salts.
    pub cache_salt: Option<Arc<str>>,
    /// Report every prompt token's log-probability with this many alternatives.
    pub prompt_logprobs: Option<u8>,
}

/// When a sequence ends. Stop strings are the text layer's: it drops the stream when it sees one. `min_tokens` is the
/// sampler's: before it none of the ids below can be sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct StopConditions {
    /// Tokens to generate at most; 0 only scores the prompt. With the prompt never more than `max_model_len`.
    pub max_tokens: u32,
    /// End when one of these is sampled; the token is counted and reported, its text is not shown.
    pub stop_token_ids: Vec<TokenId>,
    /// The model's own end-of-sequence ids; empty with `ignore_eos`.
    pub eos_token_ids: Vec<TokenId>,
}

/// Who goes first: by priority, then by arrival. Unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    pub(crate) priority: i32,
    pub(crate) arrival: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// In the waiting queue.
    Waiting,
    /// Beside the waiting queue, until a running sequence has computed these contents (or will not).
    Parked(BlockHash),
    /// Owns a row and blocks.
    Running,
    /// Gave up its turn, but steps in flight still use its row and blocks.
    Leaving(Then),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Preempted: back to the waiting queue.
    Wait,
    /// Over: its end was already reported.
    End,
}

pub(crate) struct Sequence {
    pub(crate) turn: Turn,
    pub(crate) state: State,
    pub(crate) request: NewSequence,
    /// Tokens it may generate: `max_tokens`, or what the model's length leaves.
    pub(crate) max_new: u32,
    pub(crate) generated: Vec<TokenId>,
    /// Contents of its full blocks of known tokens, as far as they were needed.
    pub(crate) hashes: Vec<BlockHash>,
    pub(crate) root: BlockHash,

    // What it holds while running or leaving.
    pub(crate) row: RowId,
    pub(crate) blocks: Vec<BlockId>,
    /// Positions computed, or planned in a step that is in flight.
    pub(crate) planned: u32,
    /// Positions computed by completed steps.
    pub(crate) computed: u32,
    /// Leading blocks already offered to the prefix cache.
    pub(crate) published: u32,
    /// Steps in flight with work of this sequence.
    pub(crate) steps_in_flight: u32,
    /// Tokens those steps will sample.
    pub(crate) tokens_in_flight: u32,

    /// Prompt positions whose log-probabilities were reported; a recomputation does not report them again.
    pub(crate) scored: u32,
    /// Tokens found in the prefix cache when first scheduled; `None` before.
    pub(crate) cached: Option<u32>,
    pub(crate) preemptions: u32,
}

impl Sequence {
    pub(crate) fn new(request: NewSequence, turn: Turn, max_new: u32, root: BlockHash) -> Self {
        Self {
            turn,
            state: State::Waiting,
            request,
            max_new,
            generated: Vec::new(),
            hashes: Vec::new(),
            root,
            row: RowId(u32::MAX),
            blocks: Vec::new(),
            planned: 0,
            computed: 0,
            published: 0,
            steps_in_flight: 0,
            tokens_in_flight: 0,
            scored: 0,
            cached: None,
            preemptions: 0,
        }
    }

    pub(crate) fn prompt_len(&self) -> u32 {
        self.request.prompt.len() as u32
    }

    /// Tokens on the host: prompt and generated.
    pub(crate) fn known(&self) -> u32 {
        self.prompt_len() + self.generated.len() as u32
    }

    /// Positions that can be planned now. 0 when the tokens in flight are certainly its last.
    pub(crate) fn missing(&self) -> u32 {
        let certain_end = self.max_new > 0 && self.generated.len() as u32 + self.tokens_in_flight >= self.max_new;
        if certain_end { 0 } else { self.known() + self.tokens_in_flight - self.planned }
    }

    /// All tokens, for a row that starts.
    pub(crate) fn tokens(&self) -> Arc<[TokenId]> {
        if self.generated.is_empty() {
            return Arc::clone(&self.request.prompt);
        }
        self.request.prompt.iter().chain(&self.generated).copied().collect()
    }

    fn token(&self, position: usize) -> TokenId {
        let prompt = &self.request.prompt;
        if position < prompt.len() { prompt[position] } else { self.generated[position - prompt.len()] }
    }

    /// Brings `hashes` up to all full blocks of known tokens.
    pub(crate) fn extend_hashes(&mut self, block_size: u32, key: &[u8; 16]) {
        for block in self.hashes.len()..(self.known() / block_size) as usize {
            let parent = self.hashes.last().copied().unwrap_or(self.root);
            let positions = block * block_size as usize..(block + 1) * block_size as usize;
            let hash = parent.child(key, positions.map(|position| self.token(position)));
            self.hashes.push(hash);
        }
    }

    /// Whether prompt log-probabilities are still to be reported: then every prompt position must be computed.
    pub(crate) fn scores_prompt(&self) -> Option<u8> {
        self.request.prompt_logprobs.filter(|_| self.scored < self.prompt_len())
    }
}
