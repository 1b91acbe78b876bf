//! A load, and a device whose steps take what they were measured to take.

use powertrain_scheduler::{NewSequence, Output, Scheduler, SchedulerConfig, SequenceId, StopConditions};
use powertrain_step::{
    CostsBeside, RowOutput, RowWork, SampledToken, SamplingParams, StepCost, StepCosts, StepLimits, StepPlan,
    StepResult,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// What a model's steps take.
pub(crate) struct Device {
    pub(crate) name: &'static str,
    /// Steps of prompts of 512: positions, ms.
    prompts: &'static [(u32, f64)],
    /// Steps of decodes without what their attention reads: rows, ms.
    decodes: &'static [(u32, f64)],
    /// Of a decode for each position behind it, ms.
    decode_attention: f64,
    /// Of a prompt's position for each position before it, ms.
    prompt_attention: f64,
}

/// Llama-3.1-8B and Qwen2.5-1.5B on a card at its power limit: a model, made of the times an H100 measured at start, raised by what steps of some of these sizes
/// took longer under load (5 to 17 % and 6 %; Qwen's 8,192 positions are twice its 4,096).
pub(crate) const DEVICES: [Device; 2] = [
    Device {
        name: "A",
        prompts: &[
            (256, 7.8),
            (384, 10.4),
            (512, 12.6),
            (640, 15.3),
            (768, 18.0),
            (1024, 22.4),
            (1280, 27.2),
            (1536, 35.0),
            (2048, 43.2),
            (4096, 86.5),
            (8192, 171.0),
        ],
        decodes: &[(1, 5.17), (10, 5.55), (32, 6.09), (64, 6.25), (128, 6.65), (256, 7.85)],
        decode_attention: 5.2e-5,
        prompt_attention: 8.0e-7,
    },
    Device {
        name: "B",
        prompts: &[
            (256, 2.59),
            (384, 3.12),
            (512, 3.56),
            (640, 4.01),
            (768, 4.23),
            (1024, 4.90),
            (1280, 5.90),
            (1536, 7.35),
            (2048, 8.61),
            (4096, 16.62),
            (8192, 33.39),
        ],
        decodes: &[(1, 1.32), (10, 1.45), (32, 1.60), (64, 1.85), (128, 2.10), (256, 2.45)],
        decode_attention: 1.1e-5,
        prompt_attention: 1.6e-7,
    },
];

/// On a straight line between what is known.
fn between(table: &[(u32, f64)], at: u32) -> f64 {
    let above = table.partition_point(|&(known, _)| known < at);
    match (above.checked_sub(1).map(|below| table[below]), table.get(above)) {
        (Some((x0, y0)), Some(&(x1, y1))) => y0 + (y1 - y0) * f64::from(at - x0) / f64::from(x1 - x0),
        (_, Some(&(_, y))) => y,
        (Some((x, y)), None) => y * f64::from(at) / f64::from(x),
        (None, None) => 0.0,
    }
}

impl Device {
    fn milliseconds(&self, work: &[RowWork]) -> f64 {
        let positions: u32 = work.iter().map(|work| work.len).sum();
        let (decodes, prompts): (Vec<&RowWork>, Vec<&RowWork>) = work.iter().partition(|work| work.len == 1);
        let behind: f64 = decodes.iter().map(|work| f64::from(work.start)).sum();
        // Prompts of 512 are in the times of their steps.
        let before = |work: &RowWork| f64::from(work.len) * (f64::from(work.start) + f64::from(work.len) / 2.0 - 256.0);
        let longer: f64 = prompts.iter().map(|work| before(work).max(0.0)).sum();
        let products = between(if prompts.is_empty() { self.decodes } else { self.prompts }, positions);
        products + behind * self.decode_attention + longer * self.prompt_attention
    }

    /// As the executor measures them when it is loaded: decodes at 512.
    fn costs(&self) -> StepCosts {
        const DECODES: [u32; 4] = [8, 48, 100, 240];
        const POSITIONS: [u32; 10] = [256, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 4096];
        let beside = DECODES.map(|decodes| {
            let attention = f64::from(decodes) * 512.0 * self.decode_attention;
            let seconds = |table, positions| (between(table, positions) + attention) * 1e-3;
            let measured = |&positions: &u32| {
                let all = decodes == DECODES[DECODES.len() - 1];
                (all || positions <= 1024) && positions >= decodes + 32.max(decodes / 8)
            };
            let prompts = POSITIONS.into_iter().filter(measured);
            let prompts = prompts.map(|positions| StepCost { positions, seconds: seconds(self.prompts, positions) });
            CostsBeside { decodes, alone: seconds(self.decodes, decodes), prompts: prompts.collect() }
        });
        StepCosts { beside: beside.to_vec() }
    }
}

/// Who sends prompts: so many clients, each its next when its last is done, or at given times.
pub(crate) enum Load {
    Closed { clients: usize, requests: usize },
    Open { arrivals: Vec<f64> },
}

struct Sent {
    at: f64,
    first: Option<f64>,
    last: f64,
}

pub(crate) struct Run<'a> {
    device: &'a Device,
    scheduler: Scheduler,
    prompt: u32,
    output: u32,
    now: f64,
    sent: HashMap<SequenceId, Sent>,
    serial: u32,
    /// ms from a request to its first token, of each.
    pub(crate) first_tokens: Vec<f64>,
    /// ms a token after the first, of each.
    pub(crate) per_token: Vec<f64>,
    /// ms between tokens of a request, of all.
    pub(crate) gaps: Vec<f64>,
    tokens: u64,
}

impl<'a> Run<'a> {
    pub(crate) fn new(device: &'a Device, paced: bool, prompt: u32, output: u32) -> Self {
        let limits =
            StepLimits { max_num_seqs: 256, max_num_batched_tokens: 8192, max_model_len: 16_384, block_size: 16 };
        let config = SchedulerConfig {
            limits,
            kv_blocks: 40_000,
            max_queue: 100_000,
            prefix_caching: false,
            depth: 2,
            hash_key: [0; 16],
            step_costs: paced.then(|| device.costs()),
        };
        Self {
            device,
            scheduler: Scheduler::new(config).expect("limits that work together"),
            prompt,
            output,
            now: 0.0,
            sent: HashMap::new(),
            serial: 0,
            first_tokens: Vec::new(),
            per_token: Vec::new(),
            gaps: Vec::new(),
            tokens: 0,
        }
    }

    fn send(&mut self, at: f64) {
        self.serial += 1;
        let stop = StopConditions { max_tokens: self.output, stop_token_ids: Vec::new(), eos_token_ids: Vec::new() };
        let sequence = NewSequence {
            prompt: vec![self.serial; self.prompt as usize].into(),
            sampling: Arc::<SamplingParams>::default(),
            stop,
            priority: 0,
            cache_salt: None,
            prompt_logprobs: None,
        };
        let id = self.scheduler.submit(vec![sequence]).expect("there is room")[0];
        self.sent.insert(id, Sent { at, first: None, last: 0.0 });
    }

    /// Runs a load; tokens a second while prompts are still being sent.
    pub(crate) fn run(&mut self, load: &Load) -> f64 {
        let mut left = match load {
            Load::Closed { clients, requests } => {
                (0..*clients).for_each(|_| self.send(0.0));
                requests - clients
            }
            Load::Open { .. } => 0,
        };
        let mut arrivals: VecDeque<f64> = match load {
            Load::Open { arrivals } => arrivals.iter().copied().collect(),
            Load::Closed { .. } => VecDeque::new(),
        };
        let mut rate = None;
        let mut steps: VecDeque<StepPlan> = VecDeque::new();
        loop {
            while arrivals.front().is_some_and(|&at| at <= self.now) {
                let at = arrivals.pop_front().expect("looked at");
                self.send(at);
            }
            while let Some(plan) = self.scheduler.plan() {
                steps.push_back(plan.clone());
            }
            let Some(step) = steps.pop_front() else {
                let Some(&at) = arrivals.front() else { break };
                self.now = at;
                continue;
            };
            self.now += self.device.milliseconds(&step.work);
            let ended = self.complete(&step);
            for _ in 0..ended {
                if left > 0 {
                    self.send(self.now);
                    left -= 1;
                }
            }
            if left == 0 && arrivals.is_empty() && rate.is_none() {
                rate = Some(self.tokens as f64 / self.now * 1e3);
            }
        }
        rate.unwrap_or(0.0)
    }

    /// How many sequences ended.
    fn complete(&mut self, step: &StepPlan) -> usize {
        let token = SampledToken { token: 1, logprobs: None };
        let row = |work: &RowWork| {
            let sampled = if work.sample { vec![token.clone()] } else { Vec::new() };
            (work.row, Ok(RowOutput { sampled, ..RowOutput::default() }))
        };
        let mut outputs = Vec::new();
        let rows = step.work.iter().map(row).collect();
        self.scheduler.complete(StepResult { step: step.step, rows }, &mut outputs);
        let mut ended = 0;
        for (id, output) in outputs {
            match output {
                Output::Token(_) => {
                    self.tokens += 1;
                    let sent = self.sent.get_mut(&id).expect("it was sent");
                    match sent.first {
                        None => {
                            sent.first = Some(self.now);
                            self.first_tokens.push(self.now - sent.at);
                        }
                        Some(_) => self.gaps.push(self.now - sent.last),
                    }
                    sent.last = self.now;
                }
                Output::Finished(..) => {
                    let sent = self.sent.remove(&id).expect("it was sent");
                    let first = sent.first.expect("it has a token");
                    self.per_token.push((sent.last - first) / f64::from(self.output - 1));
                    ended += 1;
                }
                other => unreachable!("{other:?}"),
            }
        }
        ended
    }
}

/// Times of a Poisson process, in ms, the same at each run.
pub(crate) fn arrivals(per_second: f64, count: usize) -> Vec<f64> {
    let (mut state, mut at) = (0x9E37_79B9_7F4A_7C15_u64, 0.0);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = ((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
            at -= uniform.ln() / per_second * 1e3;
            at
        })
        .collect()
}

/// Of unsorted values.
pub(crate) fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(((values.len() - 1) as f64 * share) as usize).copied().unwrap_or(f64::NAN)
}
