//! Keys that are NaN in the cache: each row that attends to one must be refused, and no other, by every kernel of attention.

use crate::models::{SYNTHETIC, report, scattered, synthetic};
use powertrain_cuda::{CudaOptions, check::Profiler};
use powertrain_model::Model;
use powertrain_step::*;
use std::sync::Arc;

/// So many that every decode kernel takes its turn, as in models.rs.
const ROWS: u32 = 72;
const BLOCK: u32 = 16;
/// Positions of each row's prompt: one tile of keys of flash.cu, and three.
const PROMPTS: [u32; 2] = [45, 300];
/// So far before the prompt's end is the damaged key: within the shortest window of the shapes.
const BEFORE_END: u32 = 40;

pub(crate) fn check_all() -> usize {
    let checked = |(name, json)| report(name, synthetic(json).and_then(|model| check(&model)));
    SYNTHETIC.into_iter().map(checked).sum()
}

fn damaged(row: u32) -> bool {
    row.is_multiple_of(3)
}

fn check(model: &Model) -> Result<String, String> {
    let rows = PROMPTS.map(|prompt| check_length(model, prompt)).into_iter().sum::<Result<usize, String>>()?;
    Ok(format!("{rows} rows, refused were those that attend to NaN"))
}

/// How many rows were computed after the damage.
fn check_length(model: &Model, prompt: u32) -> Result<usize, String> {
    let limits = StepLimits { max_num_seqs: ROWS, max_num_batched_tokens: 4096, max_model_len: 320, block_size: BLOCK };
    let options = CudaOptions { kv_cache_bytes: Some(1 << 28), ..crate::options() };
    let profiler = Profiler::load(model, &limits, &options).map_err(|error| error.to_string())?;
    let blocks_each = (prompt + 1).div_ceil(BLOCK);
    let mut checked = Checked { profiler, tokens: scattered(model, prompt as usize + 1), step: 0, blocks_each };
    let rows: Vec<u32> = (0..ROWS).collect();
    for rows in rows.chunks((limits.max_num_batched_tokens / prompt) as usize) {
        let prompts: Vec<_> = rows.iter().map(|&row| work(row, 0, prompt)).collect();
        if let Some(row) = checked.refused(&prompts)?.first() {
            return Err(format!("row {row} was refused before anything was damaged"));
        }
    }
    let position = prompt - BEFORE_END;
    for row in (0..ROWS).filter(|&row| damaged(row)) {
        let block = BlockId(row * blocks_each + position / BLOCK);
        checked.profiler.damage_key(block, position % BLOCK).map_err(|error| error.to_string())?;
    }
    let mut rows = 0;
    // Decodes in batches of all sizes of kernels, then the ends of prompts whose beginning is cached.
    let ends = [(1, prompt - 13), (ROWS, prompt - 5)];
    for (batch, start) in [1, 2, 9, 17, 40, ROWS].map(|batch| (batch, prompt)).into_iter().chain(ends) {
        for first in [0, 1] {
            let works: Vec<_> =
                (first..ROWS.min(first + batch)).map(|row| work(row, start, (prompt - start).max(1))).collect();
            let refused = checked.refused(&works)?;
            let expected: Vec<u32> = works.iter().map(|work| work.row.0).filter(|&row| damaged(row)).collect();
            if refused != expected {
                return Err(format!(
                    "{} rows from position {start}: {refused:?} were refused, {expected:?} attend to NaN",
                    works.len()
                ));
            }
            rows += works.len();
        }
    }
    Ok(rows)
}

fn work(row: u32, start: u32, len: u32) -> RowWork {
    RowWork { row: RowId(row), start, len, sample: true }
}

struct Checked {
    profiler: Profiler,
    tokens: Vec<TokenId>,
    step: u64,
    blocks_each: u32,
}

impl Checked {
    /// Starts rows anew over what the cache holds before their work, and does it. The rows that were refused.
    fn refused(&mut self, works: &[RowWork]) -> Result<Vec<u32>, String> {
        self.step += 1;
        let started = works.iter().map(|work| RowStart {
            row: work.row,
            tokens: self.tokens[..(work.start + work.len) as usize].into(),
            prompt_len: work.start + work.len,
            computed: work.start,
            sampling: Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }),
            prompt_logprobs: None,
        });
        let each = self.blocks_each;
        let blocks = |row: RowId| (0..each).map(move |i| (row, BlockId(row.0 * each + i)));
        let plan = StepPlan {
            step: self.step,
            released: (0..ROWS).map(RowId).collect(),
            started: started.collect(),
            appended: works.iter().flat_map(|work| blocks(work.row)).collect(),
            work: works.to_vec(),
        };
        let executor = self.profiler.executor();
        executor.launch(&plan).map_err(|error| error.to_string())?;
        let result = executor.collect().map_err(|error| error.to_string())?;
        Ok(result.rows.into_iter().filter(|(_, outcome)| outcome.is_err()).map(|(row, _)| row.0).collect())
    }
}
