//! Steps in flight as the host sees them, and what it reads of one that is done.

use crate::{kernels::RECORD_WORDS, row_sampling::Mode};
use powertrain_step::{RowError, RowId, RowOutput, SampledToken, TokenId, TokenLogprobs};

/// A result of sample.cu: the row's logits were NaN or infinite, or no token was left.
const DAMAGED: u32 = u32::MAX;
/// In place of a sample's number: the entry has none.
const NO_SAMPLE: u32 = u32::MAX;

/// One entry of a step's work. Small: a step has hundreds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) row: u32,
    /// Position of the last token computed.
    pub(crate) last: u32,
    /// Which of the step's samples, or [`NO_SAMPLE`].
    sample: u32,
    mode: Mode,
}

impl Entry {
    pub(crate) fn new(row: RowId, last: u32, sample: Option<(usize, Mode)>) -> Self {
        let (sample, mode) = sample.map_or((NO_SAMPLE, Mode::UNUSED), |(index, mode)| (index as u32, mode));
        Self { row: row.0, last, sample, mode }
    }

    /// The sample whose logits the host gets.
    pub(crate) fn host_sample(&self) -> Option<usize> {
        (self.sample != NO_SAMPLE && self.mode == Mode::HOST).then_some(self.sample as usize)
    }
}

/// What the host has found out for a row of a step by itself.
type Found<T> = Vec<(usize, Result<T, RowError>)>;

/// A step launched and not yet collected.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) step: u64,
    pub(crate) slot: usize,
    pub(crate) entries: Vec<Entry>,
    /// By entry: tokens the host sampled.
    pub(crate) sampled: Found<SampledToken>,
    /// By entry: log-probabilities of prompts.
    pub(crate) scored: Found<Vec<TokenLogprobs>>,
    /// Whether some row waits for the host's sampler.
    pub(crate) wants_host: bool,
}

impl InFlight {
    pub(crate) fn new(step: u64, slot: usize, entries: Vec<Entry>) -> Self {
        let wants_host = entries.iter().any(|entry| entry.host_sample().is_some());
        Self { step, slot, entries, sampled: Vec::new(), scored: Vec::new(), wants_host }
    }

    /// What each entry got. `results`: the tokens of `samples` rows, then their records.
    pub(crate) fn outputs(self, results: &[u32], samples: usize) -> Vec<(RowId, Result<RowOutput, RowError>)> {
        let of_entry = |entry: &Entry| {
            let mut output = RowOutput::default();
            if entry.sample != NO_SAMPLE && entry.mode != Mode::HOST {
                output.sampled.push(read(results, samples, entry)?);
            }
            Ok(output)
        };
        let mut rows: Vec<_> = self.entries.iter().map(|entry| (RowId(entry.row), of_entry(entry))).collect();
        for (index, sampled) in self.sampled {
            merge(&mut rows[index].1, sampled, |output, token| output.sampled.push(token));
        }
        for (index, scored) in self.scored {
            merge(&mut rows[index].1, scored, |output, logprobs| output.prompt_logprobs = logprobs);
        }
        rows
    }
}

fn merge<T>(row: &mut Result<RowOutput, RowError>, found: Result<T, RowError>, put: impl FnOnce(&mut RowOutput, T)) {
    match (row.as_mut(), found) {
        (Ok(output), Ok(found)) => put(output, found),
        (Ok(_), Err(error)) => *row = Err(error),
        (Err(_), _) => {}
    }
}

/// The token of a sample, and its record where one was asked for.
fn read(results: &[u32], samples: usize, entry: &Entry) -> Result<SampledToken, RowError> {
    let sample = entry.sample as usize;
    let token: TokenId = match results[sample] {
        DAMAGED => return Err(RowError::NonFiniteLogits { position: entry.last }),
        token => token,
    };
    let logprobs = entry.mode.reported().map(|top| {
        let record = &results[samples + sample * RECORD_WORDS..][..RECORD_WORDS];
        let pairs = record[2..].chunks_exact(2).take(top);
        TokenLogprobs {
            token,
            logprob: f32::from_bits(record[0]),
            rank: record[1],
            top: pairs.map(|pair| (pair[0], f32::from_bits(pair[1]))).collect(),
        }
    });
    Ok(SampledToken { token, logprobs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_gets_what_is_its_own() {
        const SAMPLES: usize = 3;
        let position = 9;
        let reports_two = Mode(1 | 0x80 | 2 << 8);
        let entries = vec![
            Entry::new(RowId(5), position, Some((2, reports_two))),
            Entry::new(RowId(4), position, None),
            Entry::new(RowId(3), position, Some((0, Mode::HOST))),
            Entry::new(RowId(2), position, Some((1, Mode(2)))),
        ];
        let mut results = vec![0; SAMPLES * (1 + RECORD_WORDS)];
        results[..SAMPLES].copy_from_slice(&[77, DAMAGED, 8]);
        let [chosen, best] = [-1.5f32, -0.5].map(f32::to_bits);
        let record = [chosen, 2, 6, best, 8, chosen];
        results[SAMPLES + 2 * RECORD_WORDS..][..record.len()].copy_from_slice(&record);

        let mut step = InFlight::new(1, 0, entries);
        assert!(step.wants_host);
        let host_token = SampledToken { token: 31, logprobs: None };
        step.sampled.push((2, Ok(host_token.clone())));
        let damaged = RowError::NonFiniteLogits { position };
        step.scored.push((1, Err(damaged.clone())));
        let rows = step.outputs(&results, SAMPLES);

        let tokens = |at: usize| rows[at].1.as_ref().map(|output| output.sampled.clone());
        let logprobs = TokenLogprobs { token: 8, logprob: -1.5, rank: 2, top: vec![(6, -0.5), (8, -1.5)] };
        assert_eq!(rows.iter().map(|(row, _)| row.0).collect::<Vec<_>>(), [5, 4, 3, 2]);
        assert_eq!(tokens(0), Ok(vec![SampledToken { token: 8, logprobs: Some(logprobs) }]));
        assert_eq!(tokens(1), Err(&damaged));
        assert_eq!(tokens(2), Ok(vec![host_token]));
        assert_eq!(tokens(3), Err(&damaged));
    }
}
