//! Runs an executor as an engine would, and compares what comes out.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod synthetic;

use powertrain_cpu::{CpuConfig, CpuExecutor};
use powertrain_model::Model;
use powertrain_step::{
    BlockId, Executor, RowId, RowOutput, RowStart, RowWork, SamplingParams, StepLimits, StepPlan, TokenId,
    TokenLogprobs,
};
use std::{collections::HashMap, path::PathBuf, sync::Arc};

/// Alternatives asked for: 255, which means the whole vocabulary.
pub const TOP: u8 = 255;

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures")
}

pub fn limits(tokens: u32) -> StepLimits {
    StepLimits { max_num_seqs: 8, max_num_batched_tokens: tokens, max_model_len: 128, block_size: 16 }
}

pub fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, logprobs: Some(TOP), ..SamplingParams::default() }
}

/// A small linear congruential generator: the tests need variety, not quality.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// In -1..1.
    pub fn float(&mut self) -> f32 {
        (self.next() % 2_000_001) as f32 / 1_000_000.0 - 1.0
    }
}

/// One sequence's bookkeeping on the engine's side.
struct Sequence {
    computed: u32,
    blocks: u32,
    known: u32,
}

/// An executor with the least of an engine around it.
pub struct Driver {
    pub executor: CpuExecutor,
    limits: StepLimits,
    free: Vec<u32>,
    sequences: HashMap<u32, Sequence>,
    plan: StepPlan,
    step: u64,
}

impl Driver {
    pub fn new(executor: CpuExecutor, limits: StepLimits, shuffle: Option<u64>) -> Self {
        let mut free: Vec<u32> = (0..executor.facts().kv_blocks).rev().collect();
        if let Some(seed) = shuffle {
            let mut random = Random(seed);
            for i in (1..free.len()).rev() {
                free.swap(i, random.below(i + 1));
            }
        }
        Self { executor, limits, free, sequences: HashMap::new(), plan: StepPlan::default(), step: 0 }
    }

    pub fn start(&mut self, row: u32, tokens: &[TokenId], prompt_len: usize, sampling: SamplingParams, score: bool) {
        self.sequences.insert(row, Sequence { computed: 0, blocks: 0, known: tokens.len() as u32 });
        self.plan.started.push(RowStart {
            row: RowId(row),
            tokens: Arc::from(tokens),
            prompt_len: prompt_len as u32,
            computed: 0,
            sampling: Arc::new(sampling),
            prompt_logprobs: score.then_some(TOP),
        });
    }

    pub fn release(&mut self, row: u32) {
        self.sequences.remove(&row);
        self.plan.released.push(RowId(row));
    }

    /// Plans up to `len` of the row's missing positions.
    pub fn work(&mut self, row: u32, len: u32) {
        let sequence = self.sequences.get_mut(&row).unwrap();
        let len = len.min(sequence.known - sequence.computed);
        let start = sequence.computed;
        sequence.computed += len;
        let sample = sequence.computed == sequence.known;
        while sequence.blocks * self.limits.block_size < sequence.computed {
            let block = self.free.pop().expect("the test's cache is large enough");
            self.plan.appended.push((RowId(row), BlockId(block)));
            sequence.blocks += 1;
        }
        self.plan.work.push(RowWork { row: RowId(row), start, len, sample });
    }

    pub fn step(&mut self) -> Vec<(RowId, RowOutput)> {
        self.step += 1;
        let plan = std::mem::take(&mut self.plan);
        let plan = StepPlan { step: self.step, ..plan };
        self.executor.launch(&plan).unwrap();
        let result = self.executor.collect().unwrap();
        assert_eq!(result.step, self.step);
        assert_eq!(result.rows.len(), plan.work.len());
        let rows: Vec<_> = result.rows.into_iter().map(|(row, output)| (row, output.unwrap())).collect();
        for (row, output) in &rows {
            self.sequences.get_mut(&row.0).unwrap().known += output.sampled.len() as u32;
        }
        rows
    }

    /// Scores `prompt` in chunks of `chunk` and generates `count` tokens greedily, alone: the log-probabilities of every
    /// position, and the tokens.
    pub fn generate(&mut self, prompt: &[TokenId], count: usize, chunk: u32) -> (Vec<TokenLogprobs>, Vec<TokenId>) {
        self.start(0, prompt, prompt.len(), greedy(), true);
        let (mut scores, mut tokens) = (Vec::new(), Vec::new());
        while tokens.len() < count {
            self.work(0, chunk);
            for (_, output) in self.step() {
                scores.extend(output.prompt_logprobs);
                for sampled in output.sampled {
                    tokens.push(sampled.token);
                    scores.extend(sampled.logprobs);
                }
            }
        }
        self.release(0);
        (scores, tokens)
    }
}

pub fn open(name: &str, limits: StepLimits, config: CpuConfig) -> CpuExecutor {
    let model = Model::open(&fixtures().join(name)).unwrap();
    let limits = StepLimits { max_model_len: limits.max_model_len.min(model.spec().context_len as u32), ..limits };
    CpuExecutor::new(&model, limits, config).unwrap()
}

/// What transformers computed for a fixture.
pub struct Expected {
    pub prompt: Vec<TokenId>,
    pub greedy: Vec<TokenId>,
    pub vocab_size: usize,
    /// `[prompt.len()][vocab_size]`
    pub logits: Vec<f32>,
}

pub fn expected(name: &str) -> Expected {
    let path = fixtures().join(name);
    let stem = if path.is_dir() { path.join("expected") } else { path.with_extension("") };
    let json = std::fs::read(stem.with_extension("json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let ids = |field: &str| {
        json[field].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as TokenId).collect::<Vec<_>>()
    };
    let bytes = std::fs::read(stem.with_extension("f32")).unwrap();
    let logits = bytes.as_chunks::<4>().0.iter().map(|&value| f32::from_le_bytes(value)).collect();
    Expected {
        prompt: ids("prompt"),
        greedy: ids("greedy"),
        vocab_size: json["vocab_size"].as_u64().unwrap() as usize,
        logits,
    }
}

pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x - max) - sum.ln()).collect()
}

/// The largest difference between reported log-probabilities and those of `logits`, over all positions and alternatives.
pub fn largest_error(scores: &[TokenLogprobs], expected: &Expected) -> f64 {
    let mut worst: f64 = 0.0;
    for (score, logits) in scores.iter().zip(expected.logits.chunks_exact(expected.vocab_size)) {
        let wanted = log_softmax(logits);
        assert_eq!(score.top.len(), expected.vocab_size);
        for &(token, logprob) in &score.top {
            worst = worst.max((f64::from(logprob) - wanted[token as usize]).abs());
        }
    }
    worst
}

/// The mean difference of the log-probabilities.
pub fn mean_error(scores: &[TokenLogprobs], expected: &Expected) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for (score, logits) in scores.iter().zip(expected.logits.chunks_exact(expected.vocab_size)) {
        let wanted = log_softmax(logits);
        for &(token, logprob) in &score.top {
            sum += (f64::from(logprob) - wanted[token as usize]).abs();
            count += 1;
        }
    }
    sum / f64::from(count)
}
