//! The rows an executor holds and what of them one step computes.

use powertrain_sampling::{History, SamplingParams, TokenId};
use powertrain_step::{RowStart, StepLimits, StepPlan};
use std::sync::Arc;

/// A running sequence.
pub(crate) struct Row {
    /// Prompt and what was generated since.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) prompt_len: usize,
    pub(crate) blocks: Vec<u32>,
    pub(crate) sampling: Arc<SamplingParams>,
    pub(crate) history: History,
    pub(crate) prompt_logprobs: Option<u8>,
}

impl Row {
    fn new(start: &RowStart, limits: &StepLimits) -> Self {
        let prompt_len = start.prompt_len as usize;
        let (prompt, generated) = start.tokens.split_at(prompt_len);
        // Room for all it can become: nothing is allocated while it runs.
        let mut tokens = Vec::with_capacity(limits.max_model_len as usize + 1);
        tokens.extend_from_slice(&start.tokens);
        Self {
            tokens,
            prompt_len,
            blocks: Vec::with_capacity(limits.max_model_len.div_ceil(limits.block_size) as usize + 1),
            history: History::counting(start.sampling.uses_history(), prompt, generated),
            sampling: Arc::clone(&start.sampling),
            prompt_logprobs: start.prompt_logprobs,
        }
    }

    /// Takes a token it sampled.
    pub(crate) fn push(&mut self, token: TokenId) {
        self.tokens.push(token);
        self.history.push(token);
    }
}

/// One position to compute.
#[derive(Clone, Copy)]
pub(crate) struct Token {
    pub(crate) id: TokenId,
    pub(crate) position: usize,
    /// Where its key and value go.
    pub(crate) block: usize,
    pub(crate) in_block: usize,
}

/// Consecutive positions of one row, few enough for one call of the attention kernel.
#[derive(Clone, Copy)]
pub(crate) struct AttentionTile {
    pub(crate) row: usize,
    /// Index of the first among the step's tokens.
    pub(crate) first: usize,
    pub(crate) tokens: usize,
    pub(crate) first_position: usize,
}

/// What is done with the logits of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogitUse {
    /// The next token is sampled from them.
    Sample,
    /// They give the log-probability of the prompt's next token.
    Prompt,
}

/// A position whose logits are wanted.
#[derive(Clone, Copy)]
pub(crate) struct LogitRow {
    /// Index among the step's tokens.
    pub(crate) token: usize,
    /// Entry of the plan's work.
    pub(crate) work: usize,
    pub(crate) row: usize,
    pub(crate) position: usize,
    pub(crate) wanted: LogitUse,
}

/// What a step computes, flat. Reused: sized for the largest step.
pub(crate) struct Batch {
    pub(crate) tokens: Vec<Token>,
    pub(crate) tiles: Vec<AttentionTile>,
    /// In the order of the step's tokens.
    pub(crate) logits: Vec<LogitRow>,
    /// Of each of `logits` its position alone: what the last layer attends.
    pub(crate) wanted_tiles: Vec<AttentionTile>,
}

impl Batch {
    pub(crate) fn new(limits: &StepLimits) -> Self {
        let tokens = limits.max_num_batched_tokens as usize;
        Self {
            tokens: Vec::with_capacity(tokens),
            tiles: Vec::with_capacity(tokens),
            logits: Vec::with_capacity(tokens),
            wanted_tiles: Vec::with_capacity(tokens),
        }
    }

    /// Fills in the work of `plan`, already applied to `rows` and checked.
    pub(crate) fn fill(&mut self, plan: &StepPlan, rows: &[Option<Row>], block_size: usize, tile_tokens: usize) {
        self.tokens.clear();
        self.tiles.clear();
        self.logits.clear();
        self.wanted_tiles.clear();
        for (work_index, work) in plan.work.iter().enumerate() {
            let index = work.row.0 as usize;
            let Some(row) = &rows[index] else { unreachable!("the plan was checked") };
            let (start, end) = (work.start as usize, (work.start + work.len) as usize);
            let first = self.tokens.len();
            for position in start..end {
                let token = self.tokens.len();
                self.tokens.push(Token {
                    id: row.tokens[position],
                    position,
                    block: row.blocks[position / block_size] as usize,
                    in_block: position % block_size,
                });
                let wanted = if work.sample && position + 1 == end {
                    LogitUse::Sample
                } else if row.prompt_logprobs.is_some() && position + 1 < row.prompt_len {
                    LogitUse::Prompt
                } else {
                    continue;
                };
                self.logits.push(LogitRow { token, work: work_index, row: index, position, wanted });
                self.wanted_tiles.push(AttentionTile { row: index, first: token, tokens: 1, first_position: position });
            }
            for offset in (0..end - start).step_by(tile_tokens) {
                self.tiles.push(AttentionTile {
                    row: index,
                    first: first + offset,
                    tokens: (end - start - offset).min(tile_tokens),
                    first_position: start + offset,
                });
            }
        }
    }
}

/// Applies what changes in the batch, and checks that the work can be done.
///
/// # Errors
/// What is wrong with the plan. The rows named in it are then in an unknown state.
pub(crate) fn apply(
    plan: &StepPlan,
    rows: &mut [Option<Row>],
    limits: &StepLimits,
    kv_blocks: u32,
    vocab_size: usize,
) -> Result<(), String> {
    let count = rows.len();
    let place = |row: u32| if (row as usize) < count { Ok(row as usize) } else { Err(format!("row {row} of {count}")) };
    for released in &plan.released {
        rows[place(released.0)?] = None;
    }
    for start in &plan.started {
        let row = place(start.row.0)?;
        if rows[row].is_some() {
            return Err(format!("row {row} is taken already"));
        }
        let len = start.tokens.len();
        if len == 0 || start.prompt_len as usize > len || len > limits.max_model_len as usize {
            return Err(format!("row {row} starts with {len} tokens, {} of them its prompt", start.prompt_len));
        }
        if let Some(token) = start.tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(format!("row {row} holds token {token}; the vocabulary has {vocab_size}"));
        }
        rows[row] = Some(Row::new(start, limits));
    }
    for (row, block) in &plan.appended {
        if block.0 >= kv_blocks {
            return Err(format!("block {} of {kv_blocks}", block.0));
        }
        let row = rows[place(row.0)?].as_mut().ok_or_else(|| format!("a block for row {}, which is free", row.0))?;
        row.blocks.push(block.0);
    }
    let mut total = 0u64;
    for (index, work) in plan.work.iter().enumerate() {
        let row =
            rows[place(work.row.0)?].as_ref().ok_or_else(|| format!("work for row {}, which is free", work.row.0))?;
        let end = u64::from(work.start) + u64::from(work.len);
        total += u64::from(work.len);
        let blocks = row.blocks.len() as u64 * u64::from(limits.block_size);
        if work.len == 0 || end > row.tokens.len() as u64 || end > blocks {
            return Err(format!(
                "row {} is to compute {} positions from {} on; it has {} tokens and blocks for {blocks}",
                work.row.0,
                work.len,
                work.start,
                row.tokens.len()
            ));
        }
        if work.sample && end != row.tokens.len() as u64 {
            return Err(format!("row {} is to be sampled before its last token", work.row.0));
        }
        if plan.work[..index].iter().any(|other| other.row == work.row) {
            return Err(format!("row {} has two entries", work.row.0));
        }
    }
    if total > u64::from(limits.max_num_batched_tokens) {
        return Err(format!("{total} positions; --max-num-batched-tokens is {}", limits.max_num_batched_tokens));
    }
    Ok(())
}
