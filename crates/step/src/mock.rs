//! An executor without a model: it computes tokens from what attention would read, and panics when the contract is broken.
//!
//! Its KV cache holds, for each position of a block, a number that stands for all tokens up to there. A step first checks
//! that every position before its range holds what the row's own tokens say, so a wrong block table, a block reused too
//! early or a wrong prefix-cache hit is found where it happens. The next token is a function of those numbers:
//! [`expected_tokens`] says which, whatever the batch was. Work is done as late as the contract allows, in `collect`.

use crate::{
    BlockId, DeviceMemory, Executor, ExecutorFacts, ExecutorLost, Graphs, RowError, RowId, RowOutput, RowStart,
    RowWork, SampledToken, StepCosts, StepError, StepLimits, StepPlan, StepResult, TokenId, TokenLogprobs,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard},
};

/// What goes wrong in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// `launch` fails; of the plan only the releases happen.
    Launch,
    /// `collect` fails; nothing was computed.
    Collect,
    /// This entry of the work fails alone.
    Row(usize),
    /// `collect` panics.
    Panic,
    /// `launch` loses the device.
    LostAtLaunch,
    /// `collect` loses the device.
    LostAtCollect,
}

/// See the [module](self).
pub struct MockExecutor {
    facts: ExecutorFacts,
    limits: StepLimits,
    vocab_size: u32,
    /// By block, then by position in it; 0 was never written.
    cache: Vec<Vec<u64>>,
    /// In how many live rows' tables each block stands.
    holders: Vec<u32>,
    rows: HashMap<RowId, Row>,
    in_flight: VecDeque<(StepPlan, Fault)>,
    last_step: u64,
    faults: Box<dyn FnMut(&StepPlan) -> Fault + Send>,
    gate: Option<Gate>,
}

struct Row {
    tokens: Vec<TokenId>,
    start: RowStart,
    table: Vec<BlockId>,
    /// The number that stands for tokens 0..=p, for each p computed so far.
    chain: Vec<u64>,
    /// A step that held it failed: what later steps in flight bring for it is rubbish, as on a real device.
    damaged: bool,
}

impl MockExecutor {
    /// An executor of these sizes whose tokens are below `vocab_size`.
    pub fn new(limits: StepLimits, kv_blocks: u32, depth: u32, vocab_size: u32) -> Self {
        let facts = ExecutorFacts {
            executor: "mock",
            device: "none".into(),
            threads: 0,
            simd: "none".into(),
            weights_bytes: 0,
            kv_cache_bytes: 8 * u64::from(kv_blocks) * u64::from(limits.block_size),
            kv_bytes_per_token: 8,
            kv_dtype: "f32",
            kv_blocks,
            depth,
            device_memory: None,
            graphs: None,
            step_costs: None,
        };
        Self {
            facts,
            limits,
            vocab_size,
            cache: vec![vec![0; limits.block_size as usize]; kv_blocks as usize],
            holders: vec![0; kv_blocks as usize],
            rows: HashMap::new(),
            in_flight: VecDeque::new(),
            last_step: 0,
            faults: Box::new(|_| Fault::None),
            gate: None,
        }
    }

    /// Asks `faults` at each launch what shall go wrong.
    pub fn with_faults(mut self, faults: impl FnMut(&StepPlan) -> Fault + Send + 'static) -> Self {
        self.faults = Box::new(faults);
        self
    }

    /// Claims to run on a device with memory of its own.
    pub fn on_device(mut self, memory: DeviceMemory) -> Self {
        let graphs = Graphs {
            planned: 40.into(),
            captured: 3.into(),
            prompts: 5.into(),
            microseconds: 1_500_000.into(),
            ..Graphs::default()
        };
        self.facts.device_memory = Some(memory);
        self.facts.graphs = Some(Arc::new(graphs));
        self
    }

    /// Claims that steps were measured to cost this.
    pub fn with_step_costs(mut self, costs: StepCosts) -> Self {
        self.facts.step_costs = Some(costs);
        self
    }

    /// Completes steps only as the gate allows.
    pub fn gated(mut self) -> (Self, Gate) {
        let gate = Gate::default();
        self.gate = Some(gate.clone());
        (self, gate)
    }

    fn apply(&mut self, plan: &StepPlan) {
        self.release(&plan.released);
        for start in &plan.started {
            assert!(start.row.0 < self.limits.max_num_seqs, "row {} does not exist", start.row.0);
            assert!((start.computed as usize) < start.tokens.len(), "a row starts with nothing to compute");
            assert!(start.prompt_logprobs.is_none() || start.computed == 0, "prompt log-probabilities were skipped");
            let row = Row {
                tokens: start.tokens.to_vec(),
                start: start.clone(),
                table: Vec::new(),
                chain: chain_of(&start.tokens[..start.computed as usize]),
                damaged: false,
            };
            assert!(self.rows.insert(start.row, row).is_none(), "row {} has two owners", start.row.0);
        }
        for &(row, block) in &plan.appended {
            let table = &mut self.rows.get_mut(&row).expect("blocks are appended to live rows").table;
            assert!(!table.contains(&block), "block {} stands twice in the table of row {}", block.0, row.0);
            table.push(block);
            self.holders[block.0 as usize] += 1;
        }
    }

    fn release(&mut self, rows: &[RowId]) {
        for row in rows {
            // A row whose first step failed at launch was never started here.
            for block in self.rows.remove(row).map(|row| row.table).unwrap_or_default() {
                self.holders[block.0 as usize] -= 1;
            }
        }
    }

    fn compute(&mut self, work: RowWork) -> RowOutput {
        let row = self.rows.get_mut(&work.row).expect("work is for live rows");
        if row.damaged {
            let rubbish = SampledToken { token: 0, logprobs: None };
            return RowOutput { sampled: vec![rubbish; usize::from(work.sample)], prompt_logprobs: Vec::new() };
        }
        let (start, end) = (work.start as usize, (work.start + work.len) as usize);
        let block_size = self.limits.block_size as usize;
        assert!(work.len > 0 && end <= row.tokens.len(), "row {}: positions {start}..{end} have no tokens", work.row.0);
        assert!(end <= self.limits.max_model_len as usize, "row {}: position past the model's length", work.row.0);
        assert_eq!(row.chain.len(), start, "row {}: the first position not computed", work.row.0);
        assert_eq!(row.table.len(), end.div_ceil(block_size), "row {}: the table covers the work", work.row.0);
        for (position, expected) in row.chain.iter().enumerate() {
            let found = self.cache[row.table[position / block_size].0 as usize][position % block_size];
            assert_eq!(found, *expected, "row {}: attention would read a wrong position {position}", work.row.0);
        }
        for position in start..end {
            let link = next_link(row.chain.last().copied(), row.tokens[position]);
            let block = row.table[position / block_size].0 as usize;
            assert_eq!(self.holders[block], 1, "row {}: position {position} of a shared block is written", work.row.0);
            self.cache[block][position % block_size] = link;
            row.chain.push(link);
        }
        let mut output = RowOutput::default();
        let vocab_size = self.vocab_size;
        if let Some(count) = row.start.prompt_logprobs {
            let predicted = start + 1..(end + 1).min(row.start.prompt_len as usize);
            let told = predicted.map(|position| logprobs_at(position, row.tokens[position], count, vocab_size));
            output.prompt_logprobs = told.collect();
        }
        if work.sample {
            assert_eq!(end, row.tokens.len(), "row {}: sampling before the last known token", work.row.0);
            let token = choose(*row.chain.last().expect("not empty"), row.start.sampling.seed, self.vocab_size);
            let logprobs = row.start.sampling.logprobs.map(|count| logprobs_at(end, token, count, vocab_size));
            row.tokens.push(token);
            output.sampled.push(SampledToken { token, logprobs });
        }
        output
    }
}

impl Executor for MockExecutor {
    fn facts(&self) -> &ExecutorFacts {
        &self.facts
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        assert_eq!(plan.step, self.last_step + 1, "steps are numbered in order");
        self.last_step = plan.step;
        assert!(self.in_flight.len() < self.facts.depth as usize, "too many steps in flight");
        let positions: u32 = plan.work.iter().map(|work| work.len).sum();
        assert!(positions <= self.limits.max_num_batched_tokens, "{positions} positions exceed the budget");
        let mut rows: Vec<RowId> = plan.work.iter().map(|work| work.row).collect();
        rows.sort_unstable();
        assert!(rows.windows(2).all(|pair| pair[0] != pair[1]), "a row stands twice in a step");
        for (flight, _) in &self.in_flight {
            let used = |row: &RowId| flight.work.iter().any(|work| work.row == *row);
            assert!(!plan.released.iter().any(used), "a row is released while a step in flight uses it");
        }
        match (self.faults)(plan) {
            Fault::Launch => {
                // Steps in flight do not use these rows, so that it happens early makes no difference.
                self.release(&plan.released);
                Err(StepError::Failed { step: plan.step, executor: "mock", reason: "asked to fail at launch".into() })
            }
            Fault::LostAtLaunch => Err(lost()),
            fault => {
                self.in_flight.push_back((plan.clone(), fault));
                Ok(())
            }
        }
    }

    fn collect(&mut self) -> Result<StepResult, StepError> {
        if let Some(gate) = &self.gate {
            gate.pass();
        }
        let (plan, fault) = self.in_flight.pop_front().expect("a step is in flight");
        self.apply(&plan);
        let step = plan.step;
        match fault {
            Fault::Panic => panic!("asked to panic in step {step}"),
            Fault::LostAtCollect => Err(lost()),
            Fault::Collect => {
                for work in &plan.work {
                    self.rows.get_mut(&work.row).expect("work is for live rows").damaged = true;
                }
                Err(StepError::Failed { step, executor: "mock", reason: "asked to fail".into() })
            }
            fault => {
                let rows = plan.work.iter().enumerate().map(|(entry, &work)| match fault {
                    Fault::Row(failing) if failing == entry => {
                        self.rows.get_mut(&work.row).expect("work is for live rows").damaged = true;
                        (work.row, Err(RowError::NonFiniteLogits { position: work.start }))
                    }
                    _ => (work.row, Ok(self.compute(work))),
                });
                Ok(StepResult { step, rows: rows.collect() })
            }
        }
    }
}

fn lost() -> StepError {
    ExecutorLost { executor: "mock", reason: "asked to lose the device".into() }.into()
}

/// The tokens a [`MockExecutor`] generates after `prompt`.
pub fn expected_tokens(prompt: &[TokenId], seed: u64, vocab_size: u32, count: usize) -> Vec<TokenId> {
    let mut last = chain_of(prompt).last().copied().expect("a prompt has tokens");
    let next = |_| {
        let token = choose(last, seed, vocab_size);
        last = next_link(Some(last), token);
        token
    };
    (0..count).map(next).collect()
}

fn chain_of(tokens: &[TokenId]) -> Vec<u64> {
    let link = |last: &mut Option<u64>, &token: &TokenId| {
        *last = Some(next_link(*last, token));
        *last
    };
    tokens.iter().scan(None, link).collect()
}

fn next_link(last: Option<u64>, token: TokenId) -> u64 {
    mix(last.unwrap_or(0).wrapping_add(u64::from(token)).wrapping_add(0x9e37_79b9_7f4a_7c15)) | 1
}

fn choose(link: u64, seed: u64, vocab_size: u32) -> TokenId {
    (mix(link ^ seed.rotate_left(32)) % u64::from(vocab_size)) as TokenId
}

/// The finaliser of SplitMix64: every bit of the input moves every bit of the output.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Recognisable by its position. The alternatives are the ids that follow.
fn logprobs_at(position: usize, token: TokenId, count: u8, vocab_size: u32) -> TokenLogprobs {
    let logprob = -(position as f32);
    let others = (1..u32::from(count)).map(|i| ((token + i) % vocab_size, logprob - i as f32));
    TokenLogprobs { token, logprob, rank: 1, top: std::iter::once((token, logprob)).chain(others).collect() }
}

/// Holds a gated executor at the door of `collect`.
#[derive(Clone, Default)]
pub struct Gate {
    state: Arc<(Mutex<Door>, Condvar)>,
}

#[derive(Default)]
struct Door {
    open: bool,
    permits: u64,
    waiting: bool,
}

impl Gate {
    /// Lets this many more steps complete.
    pub fn allow(&self, steps: u64) {
        self.door().permits += steps;
        self.state.1.notify_all();
    }

    /// Lets all further steps complete.
    pub fn open(&self) {
        self.door().open = true;
        self.state.1.notify_all();
    }

    /// Waits until a step stands at the door and no more may pass.
    pub fn wait_until_blocked(&self) {
        let blocked = |door: &mut Door| !(door.waiting && door.permits == 0);
        drop(self.state.1.wait_while(self.door(), blocked).expect("no test thread panicked at the gate"));
    }

    fn pass(&self) {
        let mut door = self.door();
        door.waiting = true;
        self.state.1.notify_all();
        let closed = |door: &mut Door| !door.open && door.permits == 0;
        door = self.state.1.wait_while(door, closed).expect("no test thread panicked at the gate");
        door.permits = door.permits.saturating_sub(1);
        door.waiting = false;
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        self.state.0.lock().expect("no test thread panicked at the gate")
    }
}
