//! `--deterministic`: what a request gets must not depend on what is computed beside it, bit for bit.

use crate::models::{SYNTHETIC, report, scattered, synthetic};
use powertrain_cuda::CudaOptions;
use powertrain_model::Model;
use powertrain_step::*;
use std::{path::Path, sync::Arc, time::Duration};

const ROWS: u32 = 64;
const BLOCK: u32 = 16;
const PROMPT: usize = 150;
const GENERATED: usize = 12;
/// More alternatives than the device reports: then the host gets whole rows of logits, and says every token's log-probability.
const EVERYTHING: u8 = u8::MAX;

pub(crate) fn check_all(paths: &[String]) -> usize {
    let mut failures = 0;
    for index in [0, 1, 3, 5, 7] {
        let (name, json) = SYNTHETIC[index];
        failures += report(name, synthetic(json).and_then(|model| check(&model)));
    }
    for path in paths {
        let model = Model::dummy(Path::new(path)).map_err(|error| error.to_string());
        failures += report(path, model.and_then(|model| check(&model)));
    }
    failures
}

/// How one request is run; the others beside it have other prompts and lengths.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    /// Positions of its prompt in a step.
    chunk: usize,
    /// Rows beside it, all the time.
    beside: u32,
    /// Positions another request has left in the cache.
    cached: usize,
    /// Generated tokens after which it loses its row, and comes back with all its tokens; 0 is never.
    preempted_after: usize,
}

const ALONE: Way = Way { name: "alone", chunk: PROMPT, beside: 0, cached: 0, preempted_after: 0 };
const WAYS: [Way; 7] = [
    Way { name: "in a batch of 12", beside: 11, ..ALONE },
    Way { name: "in a batch of 64", beside: 63, ..ALONE },
    Way { name: "chunks of 37", chunk: 37, beside: 2, ..ALONE },
    Way { name: "one position a step", chunk: 1, beside: 1, ..ALONE },
    Way { name: "cached", cached: 96, ..ALONE },
    Way { name: "cached, in a batch", cached: 64, beside: 20, ..ALONE },
    Way { name: "preempted", preempted_after: 5, beside: 4, ..ALONE },
];

/// Of each step: the token, and the bits of every token's log-probability.
type Trace = Vec<(TokenId, Vec<u32>)>;

fn check(model: &Model) -> Result<String, String> {
    let mut words = Vec::new();
    for deterministic in [true, false] {
        let mut device = Device::new(model, deterministic)?;
        let expected = device.trace(model, &ALONE)?;
        if expected.iter().any(|(_, bits)| bits.len() != model.spec().vocab_size) {
            return Err("a step without all its log-probabilities".into());
        }
        let mut differing = Vec::new();
        for way in WAYS {
            let got = device.trace(model, &way)?;
            let steps = expected.iter().zip(&got).filter(|(a, b)| a != b).count();
            let tokens = expected.iter().zip(&got).filter(|(a, b)| a.0 != b.0).count();
            if steps > 0 || got.len() != expected.len() {
                differing.push(format!("{} ({steps} steps, {tokens} tokens)", way.name));
            }
        }
        let distinct: std::collections::HashSet<_> = expected.iter().map(|step| step.0).collect();
        if deterministic && !differing.is_empty() {
            return Err(format!("differs from alone: {}", differing.join(", ")));
        }
        words.push(match deterministic {
            true => format!(
                "{} ways equal to alone, {} steps each with {} distinct tokens",
                WAYS.len(),
                expected.len(),
                distinct.len()
            ),
            false => format!("without the flag {} of {} differ: {}", differing.len(), WAYS.len(), differing.join(", ")),
        });
    }
    Ok(words.join("; "))
}

struct Device {
    executor: Box<dyn Executor>,
    step: u64,
    blocks_each: u32,
}

impl Device {
    fn new(model: &Model, deterministic: bool) -> Result<Self, String> {
        let length = (PROMPT + GENERATED + 8) as u32;
        let limits =
            StepLimits { max_num_seqs: ROWS, max_num_batched_tokens: 4096, max_model_len: length, block_size: BLOCK };
        let prepare_at_start = Duration::from_millis(200);
        // Steps with prompts kernel by kernel and by graphs.
        let capture_prompts_at = 2;
        let options = CudaOptions { deterministic, prepare_at_start, capture_prompts_at, ..crate::options() };
        let executor = powertrain_cuda::load(model, &limits, &options).map_err(|error| error.to_string())?;
        Ok(Self { executor, step: 0, blocks_each: length.div_ceil(BLOCK) })
    }

    fn run(&mut self, plan: StepPlan) -> Result<Vec<RowOutput>, String> {
        self.step += 1;
        let plan = StepPlan { step: self.step, ..plan };
        self.executor.launch(&plan).map_err(|error| error.to_string())?;
        let result = self.executor.collect().map_err(|error| error.to_string())?;
        result.rows.into_iter().map(|(_, row)| row.map_err(|error| error.to_string())).collect()
    }

    /// The first `shared` blocks are `owner`'s.
    fn blocks(&self, row: u32, shared: u32, owner: u32) -> impl Iterator<Item = (RowId, BlockId)> {
        let each = self.blocks_each;
        (0..each).map(move |i| (RowId(row), BlockId(if i < shared { owner } else { row } * each + i)))
    }

    fn trace(&mut self, model: &Model, way: &Way) -> Result<Trace, String> {
        let tokens = scattered(model, PROMPT + ROWS as usize);
        let prompt = &tokens[..PROMPT];
        let mut plan = StepPlan { released: (0..ROWS).map(RowId).collect(), ..StepPlan::default() };
        // Another request computes the shared blocks first, in one step of its own.
        let owner = ROWS - 1;
        if way.cached > 0 {
            plan.started.push(start(owner, prompt, PROMPT, 0, 0));
            plan.appended.extend(self.blocks(owner, 0, 0));
            plan.work.push(work(owner, 0, PROMPT, false));
            self.run(std::mem::take(&mut plan))?;
        }
        // Those beside: each has its prompt computed whole in the first step, then decodes.
        let lengths: Vec<usize> = (1..=way.beside as usize).map(|row| 3 + row * 13 % 90).collect();
        for (row, &length) in (1..).zip(&lengths) {
            if way.cached > 0 && row == owner {
                continue;
            }
            plan.started.push(start(row, &tokens[row as usize..row as usize + length], length, 0, 0));
            plan.appended.extend(self.blocks(row, 0, 0));
        }
        let mut steps_beside = 0;
        let mut beside = |plan: &mut StepPlan| {
            for (row, &length) in (1..).zip(&lengths) {
                let position = length + steps_beside - 1;
                if steps_beside == 0 {
                    plan.work.push(work(row, 0, length, true));
                } else if position + 1 < PROMPT {
                    plan.work.push(work(row, position, 1, true));
                }
            }
            steps_beside += 1;
        };
        let mut text = prompt.to_vec();
        let mut trace = Trace::new();
        let mut begin = way.cached;
        plan.started.push(start(0, &text, PROMPT, way.cached, EVERYTHING));
        plan.appended.extend(self.blocks(0, way.cached as u32 / BLOCK, owner));
        while trace.len() < GENERATED {
            let end = text.len().min(begin + if begin < PROMPT { way.chunk } else { text.len() });
            plan.work.push(work(0, begin, end - begin, end == text.len()));
            beside(&mut plan);
            let outputs = self.run(std::mem::take(&mut plan))?;
            begin = end;
            let Some(sampled) = outputs[0].sampled.first() else { continue };
            let logprobs = sampled.logprobs.as_ref().ok_or("no log-probabilities")?;
            trace.push((sampled.token, logprobs.top.iter().map(|pair| pair.1.to_bits()).collect()));
            text.push(sampled.token);
            if trace.len() == way.preempted_after {
                plan.released.push(RowId(0));
                plan.started.push(start(0, &text, PROMPT, 0, EVERYTHING));
                plan.appended.extend(self.blocks(0, 0, 0));
                begin = 0;
            }
        }
        Ok(trace)
    }
}

fn start(row: u32, tokens: &[TokenId], prompt_len: usize, computed: usize, logprobs: u8) -> RowStart {
    let sampling = SamplingParams { seed: 99, logprobs: (logprobs > 0).then_some(logprobs), ..Default::default() };
    RowStart {
        row: RowId(row),
        tokens: tokens.into(),
        prompt_len: prompt_len as u32,
        computed: computed as u32,
        sampling: Arc::new(sampling),
        prompt_logprobs: None,
    }
}

fn work(row: u32, start: usize, len: usize, sample: bool) -> RowWork {
    RowWork { row: RowId(row), start: start as u32, len: len as u32, sample }
}
