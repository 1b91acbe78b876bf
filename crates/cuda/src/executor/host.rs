//! What the host computes from logits: tokens of rows the device cannot choose for, log-probabilities of prompts.

use super::CudaExecutor;
use crate::{
    CudaError,
    driver::Pinned,
    results::{Entry, InFlight},
};
use powertrain_sampling::logprobs_of;
use powertrain_step::{RowError, StepPlan};

impl CudaExecutor {
    /// Copies the logits of rows that the host samples.
    pub(super) fn fetch_host_logits(&mut self, slot: usize, entries: &[Entry]) -> Result<(), CudaError> {
        let vocab = self.forward.spec.vocab_size;
        let wanted = entries.iter().filter_map(Entry::host_sample);
        let host_rows = wanted.clone().count();
        if self.slots[slot].logits.words().len() < host_rows * vocab {
            self.slots[slot].logits = Pinned::allocate(host_rows.next_power_of_two() * vocab)?;
        }
        for (at, sample) in wanted.enumerate() {
            let logits = &self.forward.workspace.chooser.logits;
            self.stream.copy_to_host(&self.slots[slot].logits, at * vocab, logits, sample * vocab * 4, vocab)?;
        }
        Ok(())
    }

    /// Log-probabilities of prompts, for rows that asked. Waits for the device: such requests score, they do not serve.
    pub(super) fn score_prompts(&mut self, plan: &StepPlan, step: &mut InFlight) -> Result<(), CudaError> {
        if !plan.work.iter().any(|work| self.modes[work.row.0 as usize].scores_prompt) {
            return Ok(());
        }
        let decodes = plan.work.iter().filter(|work| self.decodes_alone(work)).count();
        let (mut next_decode, mut next_prefill) = (0, decodes);
        let vocab = self.forward.spec.vocab_size;
        let at_once = self.samples_max();
        for (index, work) in plan.work.iter().enumerate() {
            let first = if self.decodes_alone(work) { &mut next_decode } else { &mut next_prefill };
            let begin = *first as u32;
            *first += work.len as usize;
            let Some(row) = &self.rows[work.row.0 as usize] else { continue };
            let Some(top) = row.prompt_logprobs else { continue };
            let predicting = row.prompt_len.saturating_sub(1).saturating_sub(work.start).min(work.len);
            let indices: Vec<u32> = (begin..begin + predicting).collect();
            let mut scored = Ok(Vec::with_capacity(indices.len()));
            for (group, indices) in indices.chunks(at_once).enumerate() {
                self.gather.write(0, indices)?;
                self.forward.logits(&self.stream, self.gather.pointer(), indices.len())?;
                self.stream.wait()?;
                let logits: Vec<f32> = self.forward.workspace.chooser.logits.read(0, indices.len() * vocab)?;
                for (i, logits) in logits.chunks_exact(vocab).enumerate() {
                    let position = work.start + (group * at_once + i) as u32;
                    let token = row.prompt[position as usize + 1];
                    match (logprobs_of(logits, token, top), &mut scored) {
                        (Ok(logprobs), Ok(scored)) => scored.push(logprobs),
                        (Err(_), scored) => *scored = Err(RowError::NonFiniteLogits { position }),
                        (Ok(_), Err(_)) => {}
                    }
                }
            }
            step.scored.push((index, scored));
        }
        Ok(())
    }

    /// A row the host samples cannot go on before its token is chosen.
    pub(super) fn resolve_waiting(&mut self) -> Result<(), CudaError> {
        for index in 0..self.in_flight.len() {
            if self.in_flight[index].wants_host {
                self.waits += 1;
                self.resolve(index)?;
            }
        }
        Ok(())
    }

    /// Waits for a step and samples what is the host's, unless that was done.
    pub(super) fn resolve(&mut self, index: usize) -> Result<(), CudaError> {
        let step = &mut self.in_flight[index];
        let slot = &self.slots[step.slot];
        slot.done.wait()?;
        if !std::mem::take(&mut step.wants_host) {
            return Ok(());
        }
        let vocab = self.forward.spec.vocab_size;
        let entries = step.entries.iter().enumerate().filter(|(_, entry)| entry.host_sample().is_some());
        for (at, (index, entry)) in entries.enumerate() {
            let Some(row) = &mut self.rows[entry.row as usize] else { continue };
            let logits: Vec<f32> =
                slot.logits.words()[at * vocab..(at + 1) * vocab].iter().map(|&w| f32::from_bits(w)).collect();
            let history = row.history.get_or_insert_default();
            let sampled = match self.sampler.sample(&logits, &row.sampling, history, entry.last + 1) {
                Ok(sampled) => {
                    history.push(sampled.token);
                    self.chosen.push((entry.row, entry.last + 1, sampled.token));
                    Ok(sampled)
                }
                Err(_) => Err(RowError::NonFiniteLogits { position: entry.last }),
            };
            step.sampled.push((index, sampled));
        }
        Ok(())
    }
}
