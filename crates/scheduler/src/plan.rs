//! Dealing out one step.

use crate::{
    Scheduler,
    pace::Backlog,
    scheduler::Promise,
    sequence::{State, Turn},
};
use powertrain_step::{RowStart, RowWork, StepPlan};
use std::sync::Arc;

/// What came of trying to give a waiting sequence a row.
enum Admission {
    /// It runs, with this many positions in this step.
    Admitted(u32),
    /// It waits for a prefix that is being computed.
    Parked,
    /// There is no row, or there are too few free blocks.
    NoRoom,
}

/// What a waiting sequence needs to be admitted.
struct Need {
    /// Blocks at its beginning that might be cached, and those that are.
    skippable: usize,
    cached: usize,
    /// Free blocks that it takes: all but the cached ones that somebody holds.
    blocks: u32,
}

impl Scheduler {
    /// Plans the next step. `None` when as many are in flight as may be, or nothing can be computed before one of those
    /// completes, or there is nothing to do. Costs O(running), and the prefix lookups of those admitted and of the first that
    /// is not; how many wait does not matter, but for those that park behind one prefix: each of them is hashed once, all in the plan that first meets them.
    ///
    /// With nothing in flight and a sequence alive there is always a plan.
    pub fn plan(&mut self) -> Option<&StepPlan> {
        self.first_scheduled.clear();
        if self.flights.len() >= self.config.depth as usize {
            return None;
        }
        self.plan.started.clear();
        self.plan.appended.clear();
        self.plan.work.clear();
        let mut flight = self.spare_flights.pop().unwrap_or_default();
        flight.work.clear();
        flight.step = self.step + 1;
        self.flights.push_back(flight);

        let mut budget = self.config.limits.max_num_batched_tokens;
        let mut short_of_blocks = self.plan_running(&mut budget, |missing| missing == 1);
        budget = budget.min(self.prompt_positions());
        if !short_of_blocks && let Some(priority) = self.priority_of_first_prefill() {
            self.plan_waiting(&mut budget, |turn| turn.priority < priority);
        }
        short_of_blocks |= self.plan_running(&mut budget, |missing| missing > 1);
        if !short_of_blocks {
            self.plan_waiting(&mut budget, |_| true);
        }

        if self.plan.work.is_empty() {
            self.spare_flights.extend(self.flights.pop_back());
            debug_assert!(!self.flights.is_empty() || self.waiting_len() + self.running.len() as u32 == 0);
            return None;
        }
        self.step += 1;
        let arrived = std::mem::take(&mut self.arrived_tokens);
        self.pace.iter_mut().for_each(|pace| pace.stepped(arrived));
        self.plan.step = self.step;
        self.plan.released.clear();
        std::mem::swap(&mut self.plan.released, &mut self.released);
        Some(&self.plan)
    }

    /// How many positions of prompts this step takes at most, beside the decodes that it holds already.
    fn prompt_positions(&self) -> u32 {
        let Some(pace) = &self.pace else { return u32::MAX };
        pace.next(self.plan.work.len() as u32, self.backlog(), self.arrived_tokens)
    }

    /// What running sequences lack of their prompts, and those that wait for a row as far as there are rows.
    fn backlog(&self) -> Backlog {
        let (mut begun, mut first) = (0, None);
        for &(_, slot) in &self.running {
            let sequence = self.sequence(slot);
            let missing = sequence.missing();
            if missing > 1 {
                begun += u64::from(missing);
                first.get_or_insert((missing, sequence.known()));
            }
        }
        let (rows, waiting) = (self.vacant_rows.len() as u64, self.waiting.len() as u64);
        let startable = self.waiting_tokens * rows.min(waiting) / waiting.max(1);
        let first_waiting = || self.waiting.values().next().map(|&slot| self.sequence(slot).known());
        let first = first.or_else(|| first_waiting().map(|known| (known, known)));
        let (first, first_whole) = first.unwrap_or_default();
        Backlog { positions: begun + startable, first, first_whole }
    }

    /// Gives running sequences that lack the right number of positions what budget and blocks allow. Whether blocks ran out.
    fn plan_running(&mut self, budget: &mut u32, wanted: fn(u32) -> bool) -> bool {
        let preemptions = self.counters.preemptions;
        let mut short_of_blocks = false;
        let mut index = 0;
        // Victims are taken from the end, so what stands before `index` stays.
        while index < self.running.len() && *budget > 0 {
            let slot = self.running[index].1;
            index += 1;
            let missing = self.sequence(slot).missing();
            if !wanted(missing) {
                continue;
            }
            let want = missing.min(*budget);
            let len = self.grow(slot, want);
            short_of_blocks |= len < want;
            if len > 0 {
                self.push_work(slot, len);
                *budget -= len;
            }
        }
        short_of_blocks || self.counters.preemptions > preemptions
    }

    /// Makes room for `want` more positions of a running sequence, at the cost of those whose turn is later. How many
    /// there is room for; when it is 0 the sequence may itself have been preempted.
    fn grow(&mut self, slot: u32, want: u32) -> u32 {
        let (planned, held) = (self.sequence(slot).planned, self.sequence(slot).blocks.len() as u32);
        let mut len = want;
        while self.pool.free() < self.blocks_for(planned + len) - held {
            if self.leaving > 0 {
                // Blocks come back when a step in flight completes: until then, what fits into those at hand.
                len = (held + self.pool.free()) * self.config.limits.block_size - planned;
                break;
            }
            let victim = self.running.last().expect("the sequence that grows is running").1;
            self.preempt(victim);
            if victim == slot {
                return 0;
            }
        }
        self.append_blocks(slot, self.blocks_for(planned + len));
        len
    }

    /// Of the running sequences in mid-prompt, the first one's. Only those more urgent than it start before it goes on.
    fn priority_of_first_prefill(&self) -> Option<i32> {
        let (head, _) = self.waiting.first_key_value()?;
        let (last, _) = self.running.last()?;
        if last.priority <= head.priority {
            return None;
        }
        let prefill = self.running.iter().find(|&&(_, slot)| self.sequence(slot).missing() > 1);
        prefill.map(|(turn, _)| turn.priority)
    }

    /// Gives rows to waiting sequences in order, until budget, rows or blocks run out or the next is not `wanted`.
    fn plan_waiting(&mut self, budget: &mut u32, wanted: impl Fn(Turn) -> bool) {
        if !self.waiting.first_key_value().is_some_and(|(&turn, _)| wanted(turn)) {
            return;
        }
        // Blocks that running sequences need for what they already know and one token more: not to be given away, or
        // the newcomer would be preempted at once.
        let mut pledged: u32 = self.running.iter().map(|&(_, slot)| self.pledge(slot)).sum();
        while *budget > 0 {
            let Some((&turn, &slot)) = self.waiting.first_key_value().filter(|(turn, _)| wanted(**turn)) else {
                return;
            };
            let admission =
                if self.vacant_rows.is_empty() { Admission::NoRoom } else { self.admit(slot, *budget, pledged) };
            match admission {
                Admission::Admitted(len) => {
                    *budget -= len;
                    pledged += self.pledge(slot);
                }
                Admission::Parked => {}
                Admission::NoRoom => {
                    let Some(&(worst, victim)) = self.running.last() else { return };
                    if worst.priority <= turn.priority || self.leaving > 0 {
                        return;
                    }
                    // Nobody is preempted in vain.
                    let needed = self.need(slot).blocks + pledged;
                    if !self.could_have(needed, turn) {
                        return;
                    }
                    pledged -= self.pledge(victim);
                    self.preempt(victim);
                }
            }
        }
    }

    /// Whether so many blocks would be there if all running sequences of lesser urgency gave up theirs.
    fn could_have(&self, needed: u32, turn: Turn) -> bool {
        let lesser = self.running.iter().rev().take_while(|(other, _)| other.priority > turn.priority);
        let gained: u32 = lesser.map(|&(_, slot)| self.sequence(slot).blocks.len() as u32 + self.pledge(slot)).sum();
        self.pool.free() + gained >= needed
    }

    /// Blocks a running sequence is going to need next beyond those it holds.
    fn pledge(&self, slot: u32) -> u32 {
        let sequence = self.sequence(slot);
        let next = sequence.known() + sequence.tokens_in_flight + u32::from(sequence.max_new > 0);
        self.blocks_for(next.min(sequence.prompt_len() + sequence.max_new)).saturating_sub(sequence.blocks.len() as u32)
    }

    /// Looks up what of a waiting sequence is cached.
    fn need(&mut self, slot: u32) -> Need {
        let block_size = self.config.limits.block_size;
        if self.config.prefix_caching {
            let key = self.config.hash_key;
            self.sequence_mut(slot).extend_hashes(block_size, &key);
        }
        let sequence = self.sequence(slot);
        let known = sequence.known();
        let may_skip = self.config.prefix_caching && sequence.scores_prompt().is_none();
        // The last known token is always computed: its logits are what is wanted.
        let skippable = if may_skip { ((known - 1) / block_size) as usize } else { 0 };
        let hits = sequence.hashes[..skippable].iter().map_while(|&hash| self.pool.find(hash));
        let (cached, held) =
            hits.fold((0, 0), |(cached, held), block| (cached + 1, held + u32::from(!self.pool.is_free(block))));
        Need { skippable, cached, blocks: self.blocks_for(known) - held }
    }

    fn admit(&mut self, slot: u32, budget: u32, pledged: u32) -> Admission {
        let block_size = self.config.limits.block_size;
        let known = self.sequence(slot).known();
        let Need { skippable, cached, blocks: needed } = self.need(slot);
        let sequence = self.sequence(slot);
        // Whoever promised must not be less urgent than who waits, or it could itself be kept waiting for ever.
        let promised = sequence.hashes[cached..skippable].iter().take_while(|&hash| {
            let promise = self.promised.get(hash);
            promise.is_some_and(|promise| self.sequence(promise.by).turn.priority <= sequence.turn.priority)
        });
        if let Some(&last) = promised.last() {
            self.park(slot, last);
            return Admission::Parked;
        }

        if self.pool.free() < needed + pledged {
            return Admission::NoRoom;
        }

        let turn = sequence.turn;
        let row = self.vacant_rows.pop().expect("a row is vacant");
        self.stop_waiting(slot);
        let place = self.running.partition_point(|&(other, _)| other < turn);
        self.running.insert(place, (turn, slot));
        self.start_row(slot, row, cached);
        self.promise(slot, cached);
        let computed = cached as u32 * block_size;
        let len = (known - computed).min(budget);
        self.append_blocks(slot, self.blocks_for(computed + len));
        self.push_work(slot, len);
        Admission::Admitted(len)
    }

    fn start_row(&mut self, slot: u32, row: powertrain_step::RowId, cached: usize) {
        let id = self.id(slot);
        let computed = cached as u32 * self.config.limits.block_size;
        for block in 0..cached {
            let hit = self.pool.find(self.sequence(slot).hashes[block]).expect("looked up a moment ago");
            self.pool.hold(hit);
            self.plan.appended.push((row, hit));
            self.sequence_mut(slot).blocks.push(hit);
        }
        let sequence = self.sequence_mut(slot);
        sequence.state = State::Running;
        sequence.row = row;
        (sequence.planned, sequence.computed, sequence.published) = (computed, computed, cached as u32);
        let first = sequence.cached.is_none();
        sequence.cached.get_or_insert(computed);
        let start = RowStart {
            row,
            tokens: sequence.tokens(),
            prompt_len: sequence.prompt_len(),
            computed,
            sampling: Arc::clone(&sequence.request.sampling),
            prompt_logprobs: sequence.scores_prompt(),
        };
        let prompt_tokens = u64::from(start.prompt_len);
        self.plan.started.push(start);
        if first {
            self.first_scheduled.push(id);
            self.counters.prompt_tokens += prompt_tokens;
            self.arrived_tokens -= f64::from(computed);
            if self.config.prefix_caching {
                self.counters.prefix_tokens_queried += prompt_tokens;
                self.counters.prefix_tokens_hit += u64::from(computed);
            }
        }
    }

    /// Lets others wait for the full blocks this sequence is about to compute.
    fn promise(&mut self, slot: u32, cached: usize) {
        for block in cached..self.sequence(slot).hashes.len() {
            let contents = self.sequence(slot).hashes[block];
            if self.pool.find(contents).is_none() {
                let lesser = self
                    .promised
                    .get(&contents)
                    .is_some_and(|promise| self.sequence(promise.by).turn.priority > self.sequence(slot).turn.priority);
                let promise = self.promised.entry(contents).or_insert_with(|| Promise { by: slot, parked: Vec::new() });
                if lesser {
                    promise.by = slot;
                }
            }
        }
    }

    fn append_blocks(&mut self, slot: u32, count: u32) {
        let row = self.sequence(slot).row;
        while (self.sequence(slot).blocks.len() as u32) < count {
            let block = self.pool.allocate().expect("free blocks were counted before");
            self.sequence_mut(slot).blocks.push(block);
            self.plan.appended.push((row, block));
        }
    }

    fn push_work(&mut self, slot: u32, len: u32) {
        let sequence = self.sequence_mut(slot);
        let end = sequence.planned + len;
        let sample = sequence.max_new > 0 && end == sequence.known() + sequence.tokens_in_flight;
        let work = RowWork { row: sequence.row, start: sequence.planned, len, sample };
        sequence.planned = end;
        sequence.steps_in_flight += 1;
        sequence.tokens_in_flight += u32::from(sample);
        self.plan.work.push(work);
        self.flights.back_mut().expect("a flight is open while planning").work.push((slot, work));
    }
}
