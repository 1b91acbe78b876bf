//! A scheduler, a mock executor and the book of what every sequence must get.
#![allow(dead_code, unreachable_pub)] // each test file uses its part, as of a library

use powertrain_scheduler::{
    FinishReason, NewSequence, Output, Outputs, Refusal, Scheduler, SchedulerConfig, SequenceId, StopConditions,
};
use powertrain_step::{
    Executor, SamplingParams, StepLimits, StepPlan, TokenId,
    mock::{Fault, MockExecutor, expected_tokens},
};
use std::{collections::HashMap, sync::Arc};

/// A small generator of test choices; the seed says it all.
pub struct Choices(u64);

impl Choices {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
    /// One of `range`, both ends included.
    pub fn of(&mut self, range: std::ops::RangeInclusive<u32>) -> u32 {
        range.start() + (self.next() % u64::from(range.end() - range.start() + 1)) as u32
    }
    pub fn one_in(&mut self, count: u32) -> bool {
        self.of(1..=count) == 1
    }
}

pub const VOCAB: u32 = 50;

pub fn config(rows: u32, budget: u32, block_size: u32, kv_blocks: u32) -> SchedulerConfig {
    SchedulerConfig {
        limits: StepLimits { max_num_seqs: rows, max_num_batched_tokens: budget, max_model_len: 10_000, block_size },
        kv_blocks,
        max_queue: 1000,
        prefix_caching: true,
        depth: 1,
        hash_key: [3; 16],
        step_costs: None,
    }
}

pub fn sequence(prompt: impl Into<Arc<[TokenId]>>, max_tokens: u32) -> NewSequence {
    NewSequence {
        prompt: prompt.into(),
        sampling: Arc::default(),
        stop: StopConditions { max_tokens, stop_token_ids: Vec::new(), eos_token_ids: Vec::new() },
        priority: 0,
        cache_salt: None,
        prompt_logprobs: None,
    }
}

/// What is known of one sequence from outside.
pub struct Page {
    pub request: NewSequence,
    pub max_new: u32,
    pub tokens: Vec<TokenId>,
    pub scored: u32,
    pub cached: u32,
    pub preemptions: u32,
    pub end: Option<End>,
    /// The step count by which it must have ended, see [`Bench::assert_nothing_starves`].
    patience: u64,
    submitted: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Finished(FinishReason),
    Cancelled,
    RowFailed,
    StepFailed,
}

pub struct Bench {
    pub scheduler: Scheduler,
    pub executor: MockExecutor,
    pub book: HashMap<SequenceId, Page>,
    pub plans: Vec<StepPlan>,
    config: SchedulerConfig,
    outputs: Outputs,
}

impl Bench {
    pub fn new(config: SchedulerConfig) -> Self {
        Self::with_faults(config, |_| Fault::None)
    }

    pub fn with_faults(config: SchedulerConfig, faults: impl FnMut(&StepPlan) -> Fault + Send + 'static) -> Self {
        Self {
            scheduler: Scheduler::new(config.clone()).expect("limits that work together"),
            executor: MockExecutor::new(config.limits, config.kv_blocks, config.depth, VOCAB).with_faults(faults),
            book: HashMap::new(),
            plans: Vec::new(),
            config,
            outputs: Vec::new(),
        }
    }

    pub fn submit(&mut self, group: Vec<NewSequence>) -> Result<Vec<SequenceId>, Refusal> {
        let ids = self.scheduler.submit(group.clone())?;
        for (&id, request) in ids.iter().zip(group) {
            let max_new = request.stop.max_tokens.min(self.config.limits.max_model_len - request.prompt.len() as u32);
            let own = life(&request, max_new);
            // Whoever is more urgent, or came before and is not less urgent, goes first.
            let mut patience = own;
            for page in self.book.values_mut().filter(|page| page.end.is_none()) {
                if page.request.priority <= request.priority {
                    patience += life(&page.request, page.max_new);
                } else {
                    page.patience += own;
                }
            }
            let page = Page {
                request,
                max_new,
                tokens: Vec::new(),
                scored: 1,
                cached: 0,
                preemptions: 0,
                end: None,
                patience,
                submitted: self.steps(),
            };
            assert!(self.book.insert(id, page).is_none_or(|old| old.end.is_some()), "a name is used once");
        }
        Ok(ids)
    }

    pub fn submit_one(&mut self, request: NewSequence) -> SequenceId {
        self.submit(vec![request]).expect("there is room")[0]
    }

    pub fn cancel(&mut self, id: SequenceId) {
        let page = self.book.get_mut(&id).expect("a name that was given");
        let summary = self.scheduler.finish(id);
        assert_eq!(summary.is_some(), page.end.is_none(), "only what is alive can be ended");
        if let Some(summary) = summary {
            assert_eq!(summary.generated_tokens as usize, page.tokens.len());
            page.end = Some(End::Cancelled);
        }
    }

    /// Plans and launches one step, if there is one.
    pub fn launch(&mut self) -> bool {
        let alive = self.alive() > 0;
        let idle_device = self.scheduler.oldest_step().is_none();
        let Some(plan) = self.scheduler.plan() else {
            assert!(!(alive && idle_device), "something is alive, nothing is in flight, and there is no plan");
            return false;
        };
        self.plans.push(plan.clone());
        let step = plan.step;
        if self.executor.launch(plan).is_err() {
            self.scheduler.fail_step(step, &mut self.outputs);
            self.write_down();
        }
        true
    }

    /// Completes the oldest step in flight, if there is one.
    pub fn collect(&mut self) -> bool {
        let Some(step) = self.scheduler.oldest_step() else { return false };
        match self.executor.collect() {
            Ok(result) => self.scheduler.complete(result, &mut self.outputs),
            Err(_) => self.scheduler.fail_step(step, &mut self.outputs),
        }
        self.write_down();
        true
    }

    /// Steps as an engine would: as many in flight as may be, then the oldest is completed. Whether anything happened.
    pub fn step(&mut self) -> bool {
        while self.launch() {}
        self.collect()
    }

    pub fn run_to_idle(&mut self) {
        while self.step() {
            self.assert_nothing_starves();
        }
        self.scheduler.assert_consistent();
        assert!(self.scheduler.is_idle(), "nothing is in flight, nothing can be planned, and yet something is alive");
        assert_eq!(self.alive(), 0, "the book agrees that all is over");
        assert_eq!(self.scheduler.stats().kv_blocks_used, 0, "a block leaked");
    }

    pub fn alive(&self) -> usize {
        self.book.values().filter(|page| page.end.is_none()).count()
    }

    /// Positions computed in all.
    pub fn positions(&self) -> u32 {
        self.plans.iter().flat_map(|plan| &plan.work).map(|work| work.len).sum()
    }

    /// The first of all running and waiting sequences advances at every step, so whoever waits has its turn once all who
    /// go before it are through.
    pub fn assert_nothing_starves(&self) {
        for (id, page) in self.book.iter().filter(|(_, page)| page.end.is_none()) {
            let waited = self.steps() - page.submitted;
            assert!(waited <= page.patience, "{id:?} is alive after {waited} steps, {} are its due", page.patience);
        }
    }

    fn steps(&self) -> u64 {
        self.plans.len() as u64
    }

    fn write_down(&mut self) {
        for (id, output) in self.outputs.drain(..) {
            let page = self.book.get_mut(&id).expect("outputs are for sequences that were submitted");
            assert_eq!(page.end, None, "{id:?} gets {output:?} after its end");
            match output {
                Output::Token(sampled) => page.tokens.push(sampled.token),
                Output::PromptLogprobs(logprobs) => {
                    assert!(!logprobs.is_empty());
                    for logprobs in logprobs {
                        assert_eq!(logprobs.token, page.request.prompt[page.scored as usize]);
                        assert_eq!(logprobs.logprob, -(page.scored as f32), "each prompt position once, in order");
                        page.scored += 1;
                    }
                }
                Output::Finished(reason, summary) => {
                    let (tokens, expected_reason) = page.expected();
                    assert_eq!((&page.tokens, reason), (&tokens, expected_reason), "{id:?}");
                    assert_eq!(summary.generated_tokens as usize, tokens.len());
                    assert_eq!(summary.prompt_tokens as usize, page.request.prompt.len());
                    if page.request.prompt_logprobs.is_some() {
                        assert_eq!(page.scored, summary.prompt_tokens, "every prompt position is scored");
                        assert_eq!(summary.cached_tokens, 0, "nothing is skipped where log-probabilities are wanted");
                    }
                    (page.cached, page.preemptions) = (summary.cached_tokens, summary.preemptions);
                    page.end = Some(End::Finished(reason));
                }
                Output::RowFailed(_) => page.end = Some(End::RowFailed),
                Output::StepFailed => page.end = Some(End::StepFailed),
            }
            if page.end != Some(End::Finished(FinishReason::Length)) {
                let (tokens, _) = page.expected();
                assert!(tokens.starts_with(&page.tokens), "{id:?}: {:?} instead of {tokens:?}", page.tokens);
            }
        }
    }
}

impl Page {
    /// What the sequence generates when nothing interrupts it, and why it ends.
    pub fn expected(&self) -> (Vec<TokenId>, FinishReason) {
        let NewSequence { prompt, sampling, stop, .. } = &self.request;
        let mut tokens = expected_tokens(prompt, sampling.seed, VOCAB, self.max_new as usize);
        let ends = |token: &TokenId| stop.eos_token_ids.contains(token) || stop.stop_token_ids.contains(token);
        let Some(place) = tokens.iter().position(ends) else { return (tokens, FinishReason::Length) };
        tokens.truncate(place + 1);
        let last = tokens[place];
        let eos = stop.eos_token_ids.contains(&last);
        (tokens, if eos { FinishReason::EndOfSequence } else { FinishReason::StopToken(last) })
    }
}

/// Steps a sequence takes at most when it is the first of all: one position each, and some to come and go.
fn life(request: &NewSequence, max_new: u32) -> u64 {
    request.prompt.len() as u64 + u64::from(max_new) + 8
}

pub fn seeded(seed: u64) -> Arc<SamplingParams> {
    Arc::new(SamplingParams { seed, ..SamplingParams::default() })
}
