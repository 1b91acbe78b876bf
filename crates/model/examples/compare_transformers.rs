//! The reference beside what transformers computed with the same weights (`tests/fixtures/smollm2.py`).
//!
//! `compare_transformers MODEL PROMPTS.json` counts the prompts whose greedy continuation is the same;
//! `compare_transformers MODEL PROMPTS.json LOGITS.f32` prints the largest error of the first prompt's logits.
#![expect(clippy::print_stdout, reason = "this is what it is for")]

use powertrain_model::reference::{self, Reference};
use powertrain_model::{Model, config::Config};
use powertrain_step::*;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

/// A prompt and its continuation by transformers.
struct Case {
    prompt: Vec<TokenId>,
    greedy: Vec<TokenId>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [model, prompts] => compare_greedy(&Model::open(Path::new(model))?, &read_cases(Path::new(prompts))?),
        [model, prompts, logits] => {
            let cases = read_cases(Path::new(prompts))?;
            compare_logits(&Model::open(Path::new(model))?, &cases[0].prompt, &std::fs::read(logits)?)
        }
        _ => Err("usage: compare_transformers MODEL PROMPTS.json [LOGITS.f32]".into()),
    }
}

fn read_cases(path: &Path) -> Result<Vec<Case>, Box<dyn Error>> {
    let array: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(path)?)?;
    let case = |value: &serde_json::Value| {
        let fields = Config::parse(path, value.to_string().as_bytes())?;
        let tokens = |field: &str| fields.token_ids(field).map(Option::unwrap_or_default);
        Ok(Case { prompt: tokens("prompt")?, greedy: tokens("greedy")? })
    };
    array.iter().map(case).collect()
}

fn compare_logits(model: &Model, prompt: &[TokenId], bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let expected: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let vocab_size = model.spec().vocab_size;
    if expected.len() != prompt.len() * vocab_size {
        return Err(format!("{} logits, not {} x {vocab_size}", expected.len(), prompt.len()).into());
    }
    let found = reference::logits(model, prompt);
    for (position, (found, expected)) in found.iter().zip(expected.chunks(vocab_size)).enumerate() {
        let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let highest = expected.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        println!("position {position}: largest error {error:.2e}, highest logit {highest:.4}");
    }
    Ok(())
}

fn compare_greedy(model: &Model, cases: &[Case]) -> Result<(), Box<dyn Error>> {
    let limits = StepLimits { max_num_seqs: 1, max_num_batched_tokens: 512, max_model_len: 512, block_size: 512 };
    let mut executor = Reference::new(model, limits, 1);
    let mut same = 0;
    for (index, case) in cases.iter().enumerate() {
        let found = greedy(&mut executor, &case.prompt, case.greedy.len())?;
        let agreed = found.iter().zip(&case.greedy).take_while(|(found, expected)| found == expected).count();
        println!("prompt {index}: {agreed} of {} tokens are the same", case.greedy.len());
        same += usize::from(agreed == case.greedy.len());
    }
    println!("{same} of {} continuations are the same", cases.len());
    Ok(())
}

fn greedy(executor: &mut Reference, prompt: &[TokenId], count: usize) -> Result<Vec<TokenId>, Box<dyn Error>> {
    let row = RowId(0);
    let mut plan = StepPlan {
        started: vec![RowStart {
            row,
            tokens: prompt.into(),
            prompt_len: prompt.len() as u32,
            computed: 0,
            sampling: Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }),
            prompt_logprobs: None,
        }],
        appended: vec![(row, BlockId(0))],
        work: vec![RowWork { row, start: 0, len: prompt.len() as u32, sample: true }],
        ..StepPlan::default()
    };
    let mut tokens = Vec::with_capacity(count);
    while tokens.len() < count {
        plan.step += 1;
        executor.launch(&plan)?;
        let result = executor.collect()?;
        tokens.extend(result.rows[0].1.as_ref().map_err(Clone::clone)?.sampled.iter().map(|sampled| sampled.token));
        let start = (prompt.len() + tokens.len() - 1) as u32;
        plan = StepPlan {
            step: plan.step,
            work: vec![RowWork { row, start, len: 1, sample: true }],
            ..StepPlan::default()
        };
    }
    executor.launch(&StepPlan { step: plan.step + 1, released: vec![row], ..StepPlan::default() })?;
    executor.collect()?;
    Ok(tokens)
}
