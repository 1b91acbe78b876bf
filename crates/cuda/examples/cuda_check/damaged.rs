//! Keys that are NaN in the cache: each row that attends to one must be refused, and no other, by every kernel of attention.

use crate::models::{SYNTHETIC, report, scattered, synthetic};
use powertrain_cuda::{CudaOptions, check::Profiler};
use powertrain_model::Model;
use powertrain_step::*;
use std::sync::Arc;

/// So many that every decode kernel takes its turn, as in models.rs.
const ROWS: u32 = 72;
const BLOCK: u32 = 16;
/// Positions of each row's prompt. All are within the shortest window of the shapes.
const PROMPT: u32 = 45;
const DAMAGED_POSITION: u32 = 5;
const BLOCKS_EACH: u32 = (PROMPT + BLOCK) / BLOCK;

pub(crate) fn check_all() -> usize {
    SYNTHETIC.into_iter().map(|(name, json)| report(name, synthetic(json).and_then(|model| check(&model)))).sum()
}

fn damaged(row: u32) -> bool {
    row.is_multiple_of(3)
}

fn check(model: &Model) -> Result<String, String> {
    let limits = StepLimits { max_num_seqs: ROWS, max_num_batched_tokens: 4096, max_model_len: 128, block_size: BLOCK };
    let options = CudaOptions { kv_cache_bytes: Some(1 << 28), ..crate::options() };
    let profiler = Profiler::load(model, &limits, &options).map_err(|error| error.to_string())?;
    let mut checked = Checked { profiler, tokens: scattered(model, PROMPT as usize + 1), step: 0 };
    let prompts: Vec<_> = (0..ROWS).map(|row| checked.work(row, 0, PROMPT)).collect();
    if let Some(row) = checked.refused(&prompts)?.first() {
        return Err(format!("row {row} was refused before anything was damaged"));
    }
    for row in (0..ROWS).filter(|&row| damaged(row)) {
        let block = BlockId(row * BLOCKS_EACH + DAMAGED_POSITION / BLOCK);
        let done = checked.profiler.damage_key(block, DAMAGED_POSITION % BLOCK);
        done.map_err(|error| error.to_string())?;
    }
    let mut rows = 0;
    // Decodes in batches of all sizes of kernels, then the ends of prompts whose beginning is cached.
    for (batch, start) in
        [(1, PROMPT), (2, PROMPT), (9, PROMPT), (17, PROMPT), (40, PROMPT), (ROWS, PROMPT), (1, 32), (ROWS, 40)]
    {
        for first in [0, 1] {
            let works: Vec<_> =
                (first..ROWS.min(first + batch)).map(|row| checked.work(row, start, (PROMPT - start).max(1))).collect();
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
    Ok(format!("{rows} rows, refused were those that attend to NaN"))
}

struct Checked {
    profiler: Profiler,
    tokens: Vec<TokenId>,
    step: u64,
}

impl Checked {
    fn work(&self, row: u32, start: u32, len: u32) -> RowWork {
        RowWork { row: RowId(row), start, len, sample: true }
    }

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
        let blocks = |row: RowId| (0..BLOCKS_EACH).map(move |i| (row, BlockId(row.0 * BLOCKS_EACH + i)));
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
