//! The state, and how sequences enter and leave it.

use crate::{
    ConfigError, NewSequence, Refusal, SchedulerConfig, SequenceId, Stats, Summary,
    hash::{BlockHash, ByContents},
    pace::Pace,
    pool::BlockPool,
    sequence::{Sequence, State, Then, Turn},
};
use powertrain_step::{RowId, RowWork, StepPlan};
use std::collections::{BTreeMap, VecDeque};

/// Decides what each step computes.
///
/// The caller alternates: [`plan`](Self::plan) until it gives nothing, then one of [`complete`](Self::complete) and
/// [`fail_step`](Self::fail_step) for the oldest step in flight; [`submit`](Self::submit) and [`finish`](Self::finish) at any time.
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) pool: BlockPool,
    slots: Vec<Slot>,
    vacant_slots: Vec<u32>,
    arrivals: u64,

    // Every sequence is in exactly one of: waiting, parked, running, leaving.
    pub(crate) waiting: BTreeMap<Turn, u32>,
    /// Tokens known of all of them.
    pub(crate) waiting_tokens: u64,
    parked: u32,
    pub(crate) running: Vec<(Turn, u32)>,
    pub(crate) leaving: u32,

    /// Contents that running sequences are going to compute.
    pub(crate) promised: ByContents<Promise>,
    pub(crate) vacant_rows: Vec<RowId>,
    /// Rows given back since the last plan.
    pub(crate) released: Vec<RowId>,

    pub(crate) step: u64,
    pub(crate) plan: StepPlan,
    pub(crate) flights: VecDeque<Flight>,
    pub(crate) spare_flights: Vec<Flight>,
    pub(crate) first_scheduled: Vec<SequenceId>,
    pub(crate) counters: Stats,
    pub(crate) pace: Option<Pace>,
    /// Tokens of the prompts submitted since the last step, less what the prefix cache held of those that were admitted.
    pub(crate) arrived_tokens: f64,
}

struct Slot {
    generation: u32,
    sequence: Option<Box<Sequence>>,
}

/// A step planned and not completed.
#[derive(Default)]
pub(crate) struct Flight {
    pub(crate) step: u64,
    pub(crate) work: Vec<(u32, RowWork)>,
}

/// A running sequence will compute some contents; these wait for it.
pub(crate) struct Promise {
    pub(crate) by: u32,
    pub(crate) parked: Vec<SequenceId>,
}

impl Scheduler {
    /// An idle scheduler.
    ///
    /// # Errors
    /// When the limits cannot work together.
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let rows = config.limits.max_num_seqs;
        Ok(Self {
            pool: BlockPool::new(config.kv_blocks),
            slots: Vec::new(),
            vacant_slots: Vec::new(),
            arrivals: 0,
            waiting: BTreeMap::new(),
            waiting_tokens: 0,
            parked: 0,
            running: Vec::with_capacity(rows as usize),
            leaving: 0,
            promised: ByContents::default(),
            vacant_rows: (0..rows).rev().map(RowId).collect(),
            released: Vec::with_capacity(rows as usize),
            step: 0,
            plan: StepPlan::default(),
            flights: VecDeque::with_capacity(config.depth as usize),
            spare_flights: Vec::new(),
            first_scheduled: Vec::new(),
            counters: Stats::default(),
            pace: config.step_costs.as_ref().map(Pace::new),
            arrived_tokens: 0.0,
            config,
        })
    }

    /// Takes all of these sequences into the waiting queue, or none.
    ///
    /// # Errors
    /// When one of them can never run, or the queue has no place for all.
    pub fn submit(&mut self, sequences: Vec<NewSequence>) -> Result<Vec<SequenceId>, Refusal> {
        for sequence in &sequences {
            self.check_it_can_run(sequence)?;
        }
        let requested = u32::try_from(sequences.len()).unwrap_or(u32::MAX);
        let limit = self.config.max_queue;
        let most = limit.saturating_add(self.config.limits.max_num_seqs);
        if requested > most {
            return Err(Refusal::GroupTooLarge { requested, most });
        }
        // Free rows take sequences out of the queue at the next plan, so they do not count against its limit.
        let waiting = self.waiting_len();
        if u64::from(waiting) + u64::from(requested) > u64::from(limit) + self.vacant_rows.len() as u64 {
            return Err(Refusal::QueueFull { requested, waiting, limit });
        }
        if self.is_idle() {
            self.arrived_tokens = 0.0;
            self.pace.iter_mut().for_each(Pace::forget);
        }
        Ok(sequences.into_iter().map(|sequence| self.enqueue(sequence)).collect())
    }

    /// Ends a sequence for a reason of the caller's: the client left, its time is over, the server stops. No output of it
    /// follows. `None` when it was over already.
    pub fn finish(&mut self, id: SequenceId) -> Option<Summary> {
        self.get(id)?;
        let sequence = self.sequence(id.slot);
        if sequence.state == State::Leaving(Then::End) {
            return None;
        }
        let summary = sequence.summary();
        self.end(id.slot);
        Some(summary)
    }

    /// Sequences that the last plan scheduled for the first time.
    pub fn first_scheduled(&self) -> &[SequenceId] {
        &self.first_scheduled
    }

    /// How many of a sequence's prompt tokens the prefix cache gave when it was first scheduled; `None` before that, and
    /// after its end.
    pub fn cached_tokens(&self, id: SequenceId) -> Option<u32> {
        self.get(id).and_then(|sequence| sequence.cached)
    }

    /// The step to complete next, when any is in flight.
    pub fn oldest_step(&self) -> Option<u64> {
        self.flights.front().map(|flight| flight.step)
    }

    /// Whether no sequence is waiting, running or leaving.
    pub fn is_idle(&self) -> bool {
        self.vacant_slots.len() == self.slots.len() && self.flights.is_empty()
    }

    /// Where things stand.
    pub fn stats(&self) -> Stats {
        Stats {
            running: self.running.len() as u32 + self.leaving,
            waiting: self.waiting_len(),
            kv_blocks_used: self.pool.total() - self.pool.free(),
            kv_blocks_total: self.pool.total(),
            ..self.counters
        }
    }

    fn check_it_can_run(&self, sequence: &NewSequence) -> Result<(), Refusal> {
        let max_model_len = self.config.limits.max_model_len;
        let prompt_tokens = u32::try_from(sequence.prompt.len()).unwrap_or(u32::MAX);
        if prompt_tokens == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        let room = u32::from(sequence.stop.max_tokens > 0);
        if prompt_tokens > max_model_len.saturating_sub(room) {
            return Err(Refusal::PromptTooLong { prompt_tokens, max_model_len });
        }
        // The last token generated is never computed.
        let positions = prompt_tokens + self.max_new(sequence).saturating_sub(1);
        let (blocks_needed, blocks_total) = (self.blocks_for(positions), self.pool.total());
        if blocks_needed > blocks_total {
            return Err(Refusal::ExceedsKvCache { blocks_needed, blocks_total });
        }
        Ok(())
    }

    fn max_new(&self, sequence: &NewSequence) -> u32 {
        sequence.stop.max_tokens.min(self.config.limits.max_model_len - sequence.prompt.len() as u32)
    }

    fn enqueue(&mut self, request: NewSequence) -> SequenceId {
        let turn = Turn { priority: request.priority, arrival: self.arrivals };
        self.arrivals += 1;
        let max_new = self.max_new(&request);
        let root = BlockHash::root(&self.config.hash_key, request.cache_salt.as_deref());
        let sequence = Box::new(Sequence::new(request, turn, max_new, root));
        let slot = self.vacant_slots.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, sequence: None });
            self.slots.len() as u32 - 1
        });
        self.arrived_tokens += f64::from(sequence.prompt_len());
        self.slots[slot as usize].sequence = Some(sequence);
        self.wait(slot);
        self.id(slot)
    }

    /// Puts a sequence into the waiting queue, at its turn.
    fn wait(&mut self, slot: u32) {
        let sequence = self.sequence_mut(slot);
        sequence.state = State::Waiting;
        let (turn, known) = (sequence.turn, sequence.known());
        self.waiting.insert(turn, slot);
        self.waiting_tokens += u64::from(known);
    }

    /// Takes a sequence out of the waiting queue.
    pub(crate) fn stop_waiting(&mut self, slot: u32) {
        let (turn, known) = (self.sequence(slot).turn, self.sequence(slot).known());
        self.waiting.remove(&turn);
        self.waiting_tokens -= u64::from(known);
    }

    /// Ends a sequence wherever it stands.
    pub(crate) fn end(&mut self, slot: u32) {
        match self.sequence(slot).state {
            State::Waiting => {
                self.stop_waiting(slot);
                self.vacate_slot(slot);
            }
            State::Parked(_) => {
                self.parked -= 1;
                self.vacate_slot(slot);
            }
            State::Running => self.leave(slot, Then::End),
            State::Leaving(_) => self.sequence_mut(slot).state = State::Leaving(Then::End),
        }
    }

    /// Takes a running sequence's blocks away; it returns to the queue at its old turn.
    pub(crate) fn preempt(&mut self, slot: u32) {
        self.counters.preemptions += 1;
        self.sequence_mut(slot).preemptions += 1;
        self.leave(slot, Then::Wait);
    }

    fn leave(&mut self, slot: u32, then: Then) {
        let turn = self.sequence(slot).turn;
        let place = self.running.binary_search_by_key(&turn, |&(turn, _)| turn);
        self.running.remove(place.expect("a running sequence is in the running list"));
        self.break_promises(slot);
        self.leaving += 1;
        let sequence = self.sequence_mut(slot);
        sequence.state = State::Leaving(then);
        if sequence.steps_in_flight == 0 {
            self.depart(slot);
        }
    }

    /// Gives back row and blocks of a leaving sequence that no step in flight uses any more.
    pub(crate) fn depart(&mut self, slot: u32) {
        self.leaving -= 1;
        let sequence = self.slots[slot as usize].sequence.as_mut().expect("an occupied slot");
        debug_assert_eq!(sequence.tokens_in_flight, 0);
        for block in sequence.blocks.drain(..).rev() {
            self.pool.give_back(block);
        }
        self.vacant_rows.push(sequence.row);
        self.released.push(sequence.row);
        sequence.row = RowId(u32::MAX);
        (sequence.planned, sequence.computed, sequence.published) = (0, 0, 0);
        if sequence.state == State::Leaving(Then::Wait) {
            self.wait(slot);
        } else {
            self.vacate_slot(slot);
        }
    }

    pub(crate) fn is_done_leaving(&self, slot: u32) -> bool {
        let sequence = self.slots[slot as usize].sequence.as_deref();
        sequence.is_some_and(|sequence| matches!(sequence.state, State::Leaving(_)) && sequence.steps_in_flight == 0)
    }

    /// Parks a waiting sequence until `contents` are published or no longer promised.
    pub(crate) fn park(&mut self, slot: u32, contents: BlockHash) {
        let id = self.id(slot);
        self.stop_waiting(slot);
        self.sequence_mut(slot).state = State::Parked(contents);
        self.parked += 1;
        self.promised.get_mut(&contents).expect("parked only on a promise").parked.push(id);
    }

    /// The contents are there, or will not be: whoever waits for them gets its turn back.
    pub(crate) fn settle(&mut self, contents: BlockHash) {
        let Some(promise) = self.promised.remove(&contents) else { return };
        for id in promise.parked {
            // A parked sequence that ended left its name behind.
            let parked = self.get(id).is_some_and(|sequence| sequence.state == State::Parked(contents));
            if parked {
                self.parked -= 1;
                self.wait(id.slot);
            }
        }
    }

    fn break_promises(&mut self, slot: u32) {
        let (from, to) = (self.sequence(slot).published as usize, self.sequence(slot).hashes.len());
        for block in from..to {
            let contents = self.sequence(slot).hashes[block];
            if self.promised.get(&contents).is_some_and(|promise| promise.by == slot) {
                self.settle(contents);
            }
        }
    }

    fn vacate_slot(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        entry.sequence = None;
        entry.generation = entry.generation.wrapping_add(1);
        self.vacant_slots.push(slot);
    }

    pub(crate) fn waiting_len(&self) -> u32 {
        self.waiting.len() as u32 + self.parked
    }

    pub(crate) fn blocks_for(&self, positions: u32) -> u32 {
        positions.div_ceil(self.config.limits.block_size)
    }

    pub(crate) fn id(&self, slot: u32) -> SequenceId {
        SequenceId { slot, generation: self.slots[slot as usize].generation }
    }

    fn get(&self, id: SequenceId) -> Option<&Sequence> {
        let slot = self.slots.get(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        slot.sequence.as_deref()
    }

    pub(crate) fn sequence(&self, slot: u32) -> &Sequence {
        self.slots[slot as usize].sequence.as_deref().expect("an occupied slot")
    }

    pub(crate) fn sequence_mut(&mut self, slot: u32) -> &mut Sequence {
        self.slots[slot as usize].sequence.as_deref_mut().expect("an occupied slot")
    }

    /// Panics where the state contradicts itself: the invariants of tests and of debug builds at idle. Slow.
    pub fn assert_consistent(&self) {
        let alive = || self.slots.iter().filter_map(|slot| slot.sequence.as_deref());
        self.pool.assert_consistent(alive().map(|sequence| sequence.blocks.as_slice()));
        let count = |wanted: fn(&State) -> bool| alive().filter(|sequence| wanted(&sequence.state)).count();
        assert_eq!(count(|state| *state == State::Waiting), self.waiting.len(), "waiting");
        let known = self.waiting.values().map(|&slot| u64::from(self.sequence(slot).known())).sum::<u64>();
        assert_eq!(known, self.waiting_tokens, "tokens that wait");
        assert_eq!(count(|state| matches!(state, State::Parked(_))), self.parked as usize, "parked");
        assert_eq!(count(|state| *state == State::Running), self.running.len(), "running");
        assert_eq!(count(|state| matches!(state, State::Leaving(_))), self.leaving as usize, "leaving");
        assert!(self.running.is_sorted(), "running sequences are in order of their turns");

        let mut owned = vec![false; self.config.limits.max_num_seqs as usize];
        let owners = alive().filter(|sequence| matches!(sequence.state, State::Running | State::Leaving(_)));
        for row in owners.map(|sequence| sequence.row).chain(self.vacant_rows.iter().copied()) {
            assert!(!std::mem::replace(&mut owned[row.0 as usize], true), "row {} has two owners", row.0);
        }
        assert!(owned.iter().all(|&owned| owned), "a row is neither owned nor vacant");

        for sequence in alive() {
            let holds_nothing = matches!(sequence.state, State::Waiting | State::Parked(_));
            assert!(!holds_nothing || sequence.blocks.is_empty(), "a waiting sequence holds blocks");
            assert!(sequence.computed <= sequence.planned && sequence.generated.len() as u32 <= sequence.max_new);
            assert_eq!(sequence.blocks.len() as u32, self.blocks_for(sequence.planned), "blocks cover what is planned");
        }
        for (contents, promise) in &self.promised {
            assert_eq!(self.sequence(promise.by).state, State::Running, "only running sequences promise");
            assert!(self.pool.find(*contents).is_none(), "a promise is settled once its contents are published");
        }
        if self.is_idle() {
            assert_eq!(self.pool.free(), self.pool.total(), "a block is held at idle");
            assert!(self.promised.is_empty(), "a promise outlives its sequence");
        }
    }
}

impl Sequence {
    pub(crate) fn summary(&self) -> Summary {
        Summary {
            prompt_tokens: self.prompt_len(),
            cached_tokens: self.cached.unwrap_or(0),
            generated_tokens: self.generated.len() as u32,
            preemptions: self.preemptions,
        }
    }
}
