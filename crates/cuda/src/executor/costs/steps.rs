//! Which steps are measured: as they come under load, as far as the limits and the KV cache allow them.

use powertrain_step::{BlockId, RowId, RowStart, RowWork, SamplingParams, StepLimits, StepPlan, TokenId};
use std::sync::Arc;

/// Numbers of decodes, ascending: so far apart that other kernels compute their attention (decode.rs) or their products.
const DECODES: [u32; 4] = [8, 48, 100, 240];
/// Positions of a step with prompts. What is measured first loses most if there is no time for it: whole waves of tiles, which the pace takes most
/// often, beside all numbers of decodes, and a size for those who wait long.
const ROUNDS: [&[u32]; 2] = [&[256, 512, 1024, 2048], &[4096, 384, 1280, 640, 768, 1536]];
/// Larger sizes are measured beside the most decodes alone: there the decodes are a small part.
const BESIDE_ALL: u32 = 1024;
/// Of a decode, positions before it; of a prompt, its length.
const CONTEXT: u32 = 512;
/// Fewer positions of prompts than this, or than an eighth of the decodes, are not taken beside them (the scheduler's `pace.rs`).
const FEWEST: u32 = 32;

/// A step of decodes, and of prompts from their beginnings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoadedStep {
    pub(super) decodes: u32,
    /// Where each decode stands in its sequence.
    position: u32,
    /// How much of each prompt is computed: all of it, but of the last. None: decodes alone.
    prompts: Vec<u32>,
}

/// The steps to measure, in this order: of each number of decodes the one without prompts comes first.
pub(super) fn loaded_steps(limits: &StepLimits, kv_blocks: u32) -> Vec<LoadedStep> {
    // A row is left to prompts where there are two.
    let rows_of_decodes = limits.max_num_seqs.saturating_sub(1).max(1);
    let mut numbers: Vec<u32> = DECODES.into_iter().filter(|&decodes| decodes <= rows_of_decodes).collect();
    if numbers.is_empty() {
        numbers.push(rows_of_decodes);
    }
    numbers.retain(|&decodes| LoadedStep::alone(limits, kv_blocks, decodes).is_some());
    let most = numbers.last().copied();
    let mut steps = Vec::new();
    for (round, sizes) in ROUNDS.iter().enumerate() {
        for &decodes in numbers.iter().rev() {
            let Some(alone) = LoadedStep::alone(limits, kv_blocks, decodes) else { continue };
            let sizes = sizes.iter().filter(|&&positions| positions <= BESIDE_ALL || Some(decodes) == most);
            let with_prompts: Vec<_> =
                sizes.filter_map(|&positions| alone.with_prompts(limits, kv_blocks, positions)).collect();
            steps.extend((round == 0).then_some(alone));
            steps.extend(with_prompts);
        }
    }
    steps
}

impl LoadedStep {
    /// `None` where the cache is too small: half of it is left to prompts.
    fn alone(limits: &StepLimits, kv_blocks: u32, decodes: u32) -> Option<Self> {
        let room = u64::from(kv_blocks / 2 / decodes) * u64::from(limits.block_size);
        let last = room.min(u64::from(limits.max_model_len)).checked_sub(1)?;
        Some(Self { decodes, position: last.min(u64::from(CONTEXT)) as u32, prompts: Vec::new() })
    }

    /// The same decodes and prompts for the rest of `positions`. `None` where there are no such steps: the pace would not take them, or there
    /// are too few rows or blocks.
    fn with_prompts(&self, limits: &StepLimits, kv_blocks: u32, positions: u32) -> Option<Self> {
        let wanted = positions.checked_sub(self.decodes).filter(|&wanted| wanted >= FEWEST.max(self.decodes / 8))?;
        let rows = limits.max_num_seqs.checked_sub(self.decodes).filter(|&rows| rows > 0)?;
        // Longer ones where rows are few.
        let length = CONTEXT.min(limits.max_model_len).max(wanted.div_ceil(rows));
        let prompts = (0..wanted).step_by(length as usize).map(|begin| length.min(wanted - begin)).collect();
        let step = Self { prompts, ..self.clone() };
        let possible = positions <= limits.max_num_batched_tokens
            && length <= limits.max_model_len
            && step.blocks(limits.block_size) <= u64::from(kv_blocks);
        possible.then_some(step)
    }

    /// Positions in all.
    pub(super) fn positions(&self) -> u32 {
        self.decodes + self.prompts.iter().sum::<u32>()
    }

    pub(super) fn has_prompts(&self) -> bool {
        !self.prompts.is_empty()
    }

    /// Of each row, the positions it has once the step is done.
    fn lengths(&self) -> impl Iterator<Item = u32> {
        std::iter::repeat_n(self.position + 1, self.decodes as usize).chain(self.prompts.iter().copied())
    }

    fn blocks(&self, block_size: u32) -> u64 {
        self.lengths().map(|length| u64::from(length.div_ceil(block_size))).sum()
    }

    /// Blocks of the decodes: the first of the cache.
    pub(super) fn blocks_of_decodes(&self, block_size: u32) -> u32 {
        self.decodes * (self.position + 1).div_ceil(block_size)
    }

    /// The plan that brings the rows and computes nothing, and the one to measure, which brings nothing.
    pub(super) fn plans(&self, limits: &StepLimits, vocab_size: usize) -> [StepPlan; 2] {
        let sampling = Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() });
        let token = |row: u32, at: u32| ((at * 31 + row * 17) as usize % vocab_size) as TokenId;
        let (mut started, mut appended, mut work, mut next_block) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (row, length) in (0..).zip(self.lengths()) {
            let (decodes, id) = (row < self.decodes, RowId(row));
            started.push(RowStart {
                row: id,
                tokens: (0..length).map(|at| token(row, at)).collect(),
                prompt_len: length,
                computed: 0,
                sampling: sampling.clone(),
                prompt_logprobs: None,
            });
            let blocks = length.div_ceil(limits.block_size);
            appended.extend((0..blocks).map(|block| (id, BlockId(next_block + block))));
            next_block += blocks;
            // What is cut off of a prompt comes in another step.
            let whole = length >= self.prompts.first().copied().unwrap_or(0);
            work.push(match decodes {
                true => RowWork { row: id, start: self.position, len: 1, sample: true },
                false => RowWork { row: id, start: 0, len: length, sample: whole },
            });
        }
        let released = (0..limits.max_num_seqs).map(RowId).collect();
        let rows = StepPlan { released, started, appended, ..StepPlan::default() };
        [rows, StepPlan { work, ..StepPlan::default() }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const LIMITS: StepLimits =
        StepLimits { max_num_seqs: 256, max_num_batched_tokens: 8192, max_model_len: 8192, block_size: 16 };

    /// Decodes, where they stand, and positions of the steps.
    fn measured(limits: &StepLimits, kv_blocks: u32) -> Vec<(u32, u32, Vec<u32>)> {
        let steps = loaded_steps(limits, kv_blocks);
        let mut all: Vec<_> = steps.iter().filter(|step| !step.has_prompts()).collect();
        all.sort_unstable_by_key(|step| step.decodes);
        let positions = |decodes| {
            let with = steps.iter().filter(|step| step.decodes == decodes && step.has_prompts());
            let mut positions: Vec<_> = with.map(LoadedStep::positions).collect();
            positions.sort_unstable();
            positions
        };
        all.iter().map(|step| (step.decodes, step.position, positions(step.decodes))).collect()
    }

    #[test]
    fn large_steps_are_measured_beside_the_most_decodes() {
        let each = [256, 384, 512, 640, 768, 1024];
        // Beside 240 decodes the 16 other positions of 256 are too few.
        let most = [384, 512, 640, 768, 1024, 1280, 1536, 2048, 4096];
        let expected = [(8, 512, each.to_vec()), (48, 512, each.to_vec()), (100, 512, each.to_vec())];
        assert_eq!(measured(&LIMITS, 20_000), [&expected[..], &[(240, 512, most.to_vec())]].concat());
        let fewer = StepLimits { max_num_seqs: 101, max_num_batched_tokens: 1024, ..LIMITS };
        let each = [256, 384, 512, 640, 768, 1024];
        assert_eq!(measured(&fewer, 20_000), [8, 48, 100].map(|decodes| (decodes, 512, each.to_vec())));
    }

    #[test]
    fn few_rows_few_blocks_and_short_sequences_allow_what_fits() {
        // A single prompt, as long as it takes.
        let two = StepLimits { max_num_seqs: 2, ..LIMITS };
        let all = [256, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 4096];
        assert_eq!(measured(&two, 20_000), [(1, 512, all.to_vec())]);
        let one = StepLimits { max_num_seqs: 1, ..LIMITS };
        assert_eq!(measured(&one, 20_000), [(1, 512, Vec::new())]);
        // One of 1,000 positions and no longer.
        let short = StepLimits { max_num_seqs: 9, max_model_len: 1000, ..LIMITS };
        assert_eq!(measured(&short, 20_000), [(8, 512, vec![256, 384, 512, 640, 768])]);
        let shortest = StepLimits { max_model_len: 40, ..LIMITS };
        let sizes: Vec<_> = measured(&shortest, 20_000).iter().map(|(.., sizes)| sizes.len()).collect();
        assert_eq!(sizes, [6, 6, 6, 4], "beside 240 decodes there are 16 rows of 40");
        // 100 decodes have half of 1,000 blocks, five each; 240 have two.
        let small: Vec<_> = measured(&LIMITS, 1000).iter().map(|case| (case.0, case.1)).collect();
        assert_eq!(small, [(8, 512), (48, 159), (100, 79), (240, 31)]);
        let smallest: Vec<_> = measured(&LIMITS, 100).iter().map(|case| (case.0, case.1)).collect();
        assert_eq!(smallest, [(8, 95), (48, 15)], "100 rows have no block each");
        assert_eq!(measured(&LIMITS, 1), []);
    }

    #[test]
    fn every_plan_is_one_that_could_come() {
        for limits in [
            LIMITS,
            StepLimits { max_num_seqs: 1, ..LIMITS },
            StepLimits { max_num_seqs: 9, max_model_len: 4000, block_size: 64, ..LIMITS },
            StepLimits { max_num_seqs: 60, max_model_len: 2, ..LIMITS },
            StepLimits { max_num_seqs: 250, max_num_batched_tokens: 700, max_model_len: 300, ..LIMITS },
        ] {
            for kv_blocks in [10, 300, 1000, 20_000] {
                let steps = loaded_steps(&limits, kv_blocks);
                for (at, step) in steps.iter().enumerate() {
                    let first = steps.iter().position(|other| other.decodes == step.decodes).expect("itself");
                    assert_eq!(step.has_prompts(), first != at, "decodes alone come first, and once");
                    check(step, &limits, kv_blocks);
                }
            }
        }
    }

    fn check(step: &LoadedStep, limits: &StepLimits, kv_blocks: u32) {
        let [rows, work] = step.plans(limits, 1000);
        assert!(rows.work.is_empty() && work.started.is_empty() && work.appended.is_empty());
        let blocks: BTreeSet<_> = rows.appended.iter().map(|(_, block)| block.0).collect();
        assert_eq!(blocks.len(), rows.appended.len(), "each is one row's");
        assert!(blocks.last().is_none_or(|&last| last < kv_blocks));
        let of_decodes = rows.appended.iter().filter(|(row, _)| row.0 < step.decodes).map(|(_, block)| block.0);
        assert_eq!(of_decodes.max(), Some(step.blocks_of_decodes(limits.block_size) - 1));
        assert!(rows.started.len() <= limits.max_num_seqs as usize);
        assert_eq!(work.work.iter().map(|work| work.len).sum::<u32>(), step.positions());
        assert!(step.positions() <= limits.max_num_batched_tokens);
        assert_eq!(rows.started.len(), work.work.len());
        for (at, (start, work)) in rows.started.iter().zip(&work.work).enumerate() {
            let row = RowId(at as u32);
            assert_eq!((start.row, work.row), (row, row));
            assert_eq!(start.tokens.len() as u32, work.start + work.len);
            assert!(start.tokens.len() <= limits.max_model_len as usize && work.len > 0);
            assert!(start.tokens.iter().all(|&token| token < 1000));
            let blocks = rows.appended.iter().filter(|(owner, _)| *owner == row).count() as u32;
            assert_eq!(blocks, (work.start + work.len).div_ceil(limits.block_size));
        }
    }
}
