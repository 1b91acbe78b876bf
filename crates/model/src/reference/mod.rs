//! The scalar f32 reference: what a [`DecoderSpec`](crate::spec::DecoderSpec) means, and the oracle for every other executor.
//!
//! Plain loops over unpacked weights, one position of one row at a time: so a row's tokens cannot depend on the batch, on
//! the chunking of its prompt, or on which blocks it holds. Meant for tests and small models; it allocates as it goes.

mod cache;
mod decoder;
mod row;

use crate::model::Model;
use cache::KvCache;
use decoder::Decoder;
use powertrain_sampling::{Sampler, logprobs_of};
use powertrain_step::*;
use row::Row;

/// The reference executor. Steps are computed within [`Executor::launch`]; depth is 1.
#[derive(Debug)]
pub struct Reference {
    decoder: Decoder,
    cache: KvCache,
    sampler: Sampler,
    limits: StepLimits,
    facts: ExecutorFacts,
    /// By [`RowId`].
    rows: Vec<Option<Row>>,
    finished: Option<StepResult>,
}

/// The logits of every position of a token sequence: `tokens.len()` rows of `[vocab_size]`.
///
/// # Panics
/// When a token is not below the vocabulary's size.
pub fn logits(model: &Model, tokens: &[TokenId]) -> Vec<Vec<f32>> {
    let decoder = Decoder::new(model);
    let mut cache = KvCache::new(model.spec(), 1, tokens.len());
    let mut logits_at = |(position, token): (usize, &TokenId)| {
        let state = decoder.position(&mut cache, &[BlockId(0)], *token, position);
        decoder.logits(&state)
    };
    tokens.iter().enumerate().map(&mut logits_at).collect()
}

impl Reference {
    /// Unpacks the model's weights to f32 and allocates `kv_blocks` blocks of KV cache in f32.
    pub fn new(model: &Model, limits: StepLimits, kv_blocks: u32) -> Self {
        let decoder = Decoder::new(model);
        let cache = KvCache::new(model.spec(), kv_blocks as usize, limits.block_size as usize);
        let kv_bytes_per_token = cache.bytes_per_token();
        let facts = ExecutorFacts {
            executor: "reference",
            device: "CPU, scalar f32, 1 thread".to_owned(),
            threads: 1,
            simd: "scalar".to_owned(),
            weights_bytes: decoder.weights_bytes(),
            kv_cache_bytes: kv_bytes_per_token * u64::from(limits.block_size) * u64::from(kv_blocks),
            kv_bytes_per_token,
            kv_dtype: "f32",
            kv_blocks,
            depth: 1,
            device_memory: None,
            graphs: None,
            step_costs: None,
        };
        let rows = (0..limits.max_num_seqs).map(|_| None).collect();
        let sampler = Sampler::new(model.spec().vocab_size);
        Self { decoder, cache, sampler, limits, facts, rows, finished: None }
    }

    /// Applies the plan in the order of its fields.
    ///
    /// # Errors
    /// When the plan breaks the contract: what it breaks, in words.
    fn run(&mut self, plan: &StepPlan) -> Result<StepResult, String> {
        for row in &plan.released {
            let rows = self.rows.len();
            let place = self.rows.get_mut(row.0 as usize);
            // It may never have started: the plan that would have started it failed.
            *place.ok_or_else(|| format!("row {} is released of {rows} rows", row.0))? = None;
        }
        for start in &plan.started {
            let (rows, vocab_size) = (self.rows.len(), self.decoder.spec().vocab_size);
            let place = self.rows.get_mut(start.row.0 as usize);
            let place = place.ok_or_else(|| format!("row {} is started of {rows} rows", start.row.0))?;
            require(place.is_none(), || format!("row {} is started but taken", start.row.0))?;
            *place = Some(Row::start(start, vocab_size, self.limits.max_model_len)?);
        }
        for (row, block) in &plan.appended {
            require(block.0 < self.facts.kv_blocks, || format!("block {} of {}", block.0, self.facts.kv_blocks))?;
            started(&mut self.rows, *row)?.table.push(*block);
        }
        let positions: u64 = plan.work.iter().map(|work| u64::from(work.len)).sum();
        let budget = self.limits.max_num_batched_tokens;
        require(positions <= u64::from(budget), || format!("{positions} positions exceed the budget of {budget}"))?;
        let rows = plan.work.iter().map(|work| Ok((work.row, self.work(work)?)));
        Ok(StepResult { step: plan.step, rows: rows.collect::<Result<_, String>>()? })
    }

    /// Computes one row's positions. The outer error is a broken contract, the inner one the row's own.
    fn work(&mut self, work: &RowWork) -> Result<Result<RowOutput, RowError>, String> {
        let row = started(&mut self.rows, work.row)?;
        let range = row.range_of(work, self.limits.block_size)?;
        let mut output = RowOutput::default();
        for position in range.clone() {
            let state = self.decoder.position(&mut self.cache, &row.table, row.tokens[position], position);
            row.computed = position + 1;
            let predicted = row.prompt_token_to_report(position + 1);
            let sample = work.sample && position + 1 == range.end;
            if predicted.is_none() && !sample {
                continue;
            }
            let logits = self.decoder.logits(&state);
            let damaged = Ok(Err(RowError::NonFiniteLogits { position: position as u32 }));
            if let Some((token, top)) = predicted {
                let Ok(logprobs) = logprobs_of(&logits, token, top) else { return damaged };
                output.prompt_logprobs.push(logprobs);
            }
            if sample {
                let sampled = self.sampler.sample(&logits, &row.sampling, &row.history, range.end as u32);
                let Ok(sampled) = sampled else { return damaged };
                row.push(sampled.token);
                output.sampled.push(sampled);
            }
        }
        Ok(Ok(output))
    }
}

impl Executor for Reference {
    fn facts(&self) -> &ExecutorFacts {
        &self.facts
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        let failed = |reason: String| StepError::Failed { step: plan.step, executor: "reference", reason };
        if self.finished.is_some() {
            return Err(failed("the step before was not collected: depth is 1".to_owned()));
        }
        self.finished = Some(self.run(plan).map_err(failed)?);
        Ok(())
    }

    fn collect(&mut self) -> Result<StepResult, StepError> {
        let nothing =
            || StepError::Failed { step: 0, executor: "reference", reason: "no step is in flight".to_owned() };
        self.finished.take().ok_or_else(nothing)
    }
}

fn started(rows: &mut [Option<Row>], id: RowId) -> Result<&mut Row, String> {
    rows.get_mut(id.0 as usize).and_then(Option::as_mut).ok_or_else(|| format!("row {} was not started", id.0))
}

/// A rule of the contract.
fn require(holds: bool, broken: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken()) }
}
