//! [`Row`]: a sequence in its row, and the rules of the step contract about it.

use super::require;
use powertrain_sampling::History;
use powertrain_step::*;
use std::ops::Range;
use std::sync::Arc;

/// A sequence in its row.
#[derive(Debug)]
pub(super) struct Row {
    id: RowId,
    pub(super) tokens: Vec<TokenId>,
    prompt_len: usize,
    /// Positions in the cache.
    pub(super) computed: usize,
    pub(super) table: Vec<BlockId>,
    pub(super) sampling: Arc<SamplingParams>,
    pub(super) history: History,
    prompt_logprobs: Option<u8>,
}

impl Row {
    /// # Errors
    /// What of the contract the start breaks.
    pub(super) fn start(start: &RowStart, vocab_size: usize, max_model_len: u32) -> Result<Self, String> {
        let (id, len) = (start.row.0, start.tokens.len());
        let (prompt_len, computed) = (start.prompt_len as usize, start.computed as usize);
        require(len <= max_model_len as usize, || format!("row {id} starts with {len} tokens of {max_model_len}"))?;
        require((1..=len).contains(&prompt_len), || format!("row {id} has a prompt of {prompt_len} of {len} tokens"))?;
        require(computed < len, || format!("row {id} has {computed} positions computed of {len}"))?;
        require(start.prompt_logprobs.is_none() || computed == 0, || {
            format!("row {id} asks for log-probabilities of a prompt of which {computed} positions are skipped")
        })?;
        let strange = start.tokens.iter().find(|token| **token as usize >= vocab_size);
        require(strange.is_none(), || format!("row {id} holds token {strange:?} of a vocabulary of {vocab_size}"))?;
        let (prompt, generated) = start.tokens.split_at(prompt_len);
        Ok(Self {
            id: start.row,
            tokens: start.tokens.to_vec(),
            prompt_len,
            computed,
            table: Vec::new(),
            sampling: start.sampling.clone(),
            history: History::counting(start.sampling.uses_history(), prompt, generated),
            prompt_logprobs: start.prompt_logprobs,
        })
    }

    /// The positions to compute.
    ///
    /// # Errors
    /// What of the contract the work breaks.
    pub(super) fn range_of(&self, work: &RowWork, block_size: u32) -> Result<Range<usize>, String> {
        let (id, known) = (self.id.0, self.tokens.len());
        let (start, end) = (work.start as usize, work.start as usize + work.len as usize);
        let held = self.table.len() * block_size as usize;
        require(work.len > 0, || format!("row {id} has no position to compute"))?;
        require(start == self.computed, || format!("row {id} starts at {start}, but {} are computed", self.computed))?;
        require(end <= known, || format!("row {id} ends at {end}, but has {known} tokens"))?;
        require(end <= held, || format!("row {id} ends at {end}, but its blocks hold {held} positions"))?;
        // A prompt may be scored to its end without sampling.
        require(!work.sample || end == known, || format!("row {id} samples after {end} of {known} tokens"))?;
        Ok(start..end)
    }

    /// The token at this position and how many alternatives to report with it, if it is the prompt's and was asked for.
    pub(super) fn prompt_token_to_report(&self, position: usize) -> Option<(TokenId, u8)> {
        let token = self.tokens[..self.prompt_len].get(position)?;
        Some((*token, self.prompt_logprobs?))
    }

    /// The sequence goes on with this token.
    pub(super) fn push(&mut self, token: TokenId) {
        self.tokens.push(token);
        self.history.push(token);
    }
}
