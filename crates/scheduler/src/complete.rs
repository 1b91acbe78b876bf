//! Taking in what a step brought.

use crate::{
    FinishReason, Output, Outputs, Scheduler,
    scheduler::Flight,
    sequence::{Sequence, State, Then},
};
use powertrain_step::{RowOutput, RowWork, StepResult, TokenId};

impl Scheduler {
    /// Takes the result of the oldest step in flight and adds what it means to `outputs`.
    ///
    /// # Panics
    /// When the result is not that of the oldest step, entry for entry.
    pub fn complete(&mut self, result: StepResult, outputs: &mut Outputs) {
        let flight = self.flights.pop_front().expect("a step is in flight");
        assert_eq!(flight.step, result.step, "results come in the order of the steps");
        assert_eq!(flight.work.len(), result.rows.len(), "one result for each row of step {}", flight.step);
        for (&(slot, work), (row, output)) in flight.work.iter().zip(result.rows) {
            assert_eq!(work.row, row, "results of step {} are in the order of its work", flight.step);
            if self.land(slot, work) {
                match output {
                    Ok(output) => self.advance(slot, work, output, outputs),
                    Err(error) => {
                        self.forget_published(slot);
                        self.end_with(slot, Output::RowFailed(error), outputs);
                    }
                }
            }
            self.depart_if_done(slot);
        }
        self.close(flight);
    }

    /// A step in flight failed as a whole: every sequence in it ends with [`Output::StepFailed`].
    ///
    /// # Panics
    /// When no step of this number is in flight.
    pub fn fail_step(&mut self, step: u64, outputs: &mut Outputs) {
        let place = self.flights.iter().position(|flight| flight.step == step);
        let flight = place.and_then(|place| self.flights.remove(place)).expect("the step is in flight");
        for &(slot, work) in &flight.work {
            if self.land(slot, work) {
                self.end_with(slot, Output::StepFailed, outputs);
            }
            self.depart_if_done(slot);
        }
        self.close(flight);
    }

    fn close(&mut self, flight: Flight) {
        self.counters.steps += 1;
        self.spare_flights.push(flight);
    }

    /// The step no longer uses this sequence. Whether the sequence still wants to hear of it.
    fn land(&mut self, slot: u32, work: RowWork) -> bool {
        let sequence = self.sequence_mut(slot);
        sequence.steps_in_flight -= 1;
        sequence.tokens_in_flight -= u32::from(work.sample);
        sequence.state != State::Leaving(Then::End)
    }

    fn depart_if_done(&mut self, slot: u32) {
        if self.is_done_leaving(slot) {
            self.depart(slot);
        }
    }

    fn end_with(&mut self, slot: u32, output: Output, outputs: &mut Outputs) {
        outputs.push((self.id(slot), output));
        self.end(slot);
    }

    /// What a row that failed has computed may be why: who asks again is not given it.
    fn forget_published(&mut self, slot: u32) {
        let sequence = self.sequence(slot);
        let published: Vec<_> = sequence.blocks.iter().take(sequence.published as usize).copied().collect();
        published.into_iter().for_each(|block| self.pool.forget(block));
    }

    fn advance(&mut self, slot: u32, work: RowWork, output: RowOutput, outputs: &mut Outputs) {
        let id = self.id(slot);
        let sequence = self.sequence_mut(slot);
        sequence.computed = work.start + work.len;
        if let Some(fresh) = sequence.fresh_prompt_logprobs(work, output.prompt_logprobs) {
            outputs.push((id, Output::PromptLogprobs(fresh)));
        }
        let mut reason = None;
        let mut accepted = 0;
        for sampled in output.sampled {
            let token = sampled.token;
            sequence.generated.push(token);
            accepted += 1;
            outputs.push((id, Output::Token(sampled)));
            reason = sequence.reason_to_stop(token);
            if reason.is_some() {
                break;
            }
        }
        if sequence.max_new == 0 && sequence.computed == sequence.prompt_len() {
            reason = Some(FinishReason::Length);
        }
        self.counters.generated_tokens += accepted;
        self.publish(slot);
        if let Some(reason) = reason {
            let summary = self.sequence(slot).summary();
            self.end_with(slot, Output::Finished(reason, summary), outputs);
        }
    }

    /// Offers the blocks whose last position is computed by now to the prefix cache.
    fn publish(&mut self, slot: u32) {
        if !self.config.prefix_caching {
            return;
        }
        let (block_size, key) = (self.config.limits.block_size, self.config.hash_key);
        let sequence = self.sequence_mut(slot);
        let full = sequence.computed / block_size;
        if sequence.published >= full {
            return;
        }
        sequence.extend_hashes(block_size, &key);
        for index in sequence.published..full {
            let sequence = self.sequence_mut(slot);
            let (block, contents) = (sequence.blocks[index as usize], sequence.hashes[index as usize]);
            sequence.published = index + 1;
            self.pool.publish(block, contents);
            self.settle(contents);
        }
    }
}

impl Sequence {
    fn reason_to_stop(&self, token: TokenId) -> Option<FinishReason> {
        let stop = &self.request.stop;
        if stop.eos_token_ids.contains(&token) {
            Some(FinishReason::EndOfSequence)
        } else if stop.stop_token_ids.contains(&token) {
            Some(FinishReason::StopToken(token))
        } else if self.generated.len() as u32 >= self.max_new {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Of the log-probabilities a step brought, those that were not reported before a preemption.
    fn fresh_prompt_logprobs<T>(&mut self, work: RowWork, mut all: Vec<T>) -> Option<Vec<T>> {
        self.scores_prompt()?;
        let first = work.start + 1;
        let end = (work.start + work.len + 1).min(self.prompt_len()).max(first);
        let reported = self.scored.max(first).min(end) - first;
        self.scored = self.scored.max(end);
        all.drain(..(reported as usize).min(all.len()));
        (!all.is_empty()).then_some(all)
    }
}
