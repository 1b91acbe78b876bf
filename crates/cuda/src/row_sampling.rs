//! How the device chooses each row's tokens: what of its parameters is kept there, and which rows are left to the host.
//!
//! A row has sixteen words in the arena. A row with penalties has the counts of its tokens (two bytes a token of the vocabulary), allocated when it
//! first needs them and kept; one with bias or held-back tokens has a list in the arena. Where there is no room, the host samples.

use crate::{
    driver::{Buffer, Context},
    error::CudaError,
    kernels::{SAMPLING_WORDS, TOP_MAX},
    staging::{Arena, Changes},
};
use powertrain_step::SamplingParams;
use std::ops::Range;

/// What is done with a row's logits: the words of sample.cu's `ROW_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mode(pub(crate) u32);

impl Mode {
    pub(crate) const UNUSED: Self = Self(0);
    pub(crate) const GREEDY: Self = Self(1);
    const DRAW: Self = Self(2);
    pub(crate) const HOST: Self = Self(3);
    const KIND: u32 = 0xf;
    const ADJUST: u32 = 0x10;
    const COUNTS: u32 = 0x20;
    const FRESH: u32 = 0x40;
    const LOGPROBS: u32 = 0x80;

    /// Whether the token takes more than the highest logit: it is drawn on the device, or the host chooses.
    pub(crate) fn draws(self) -> bool {
        [Self::DRAW, Self::HOST].map(|mode| mode.0).contains(&(self.0 & Self::KIND))
    }

    /// Whether it takes the kernels that plain rows do without.
    pub(crate) fn is_extra(self) -> bool {
        self.0 & (Self::ADJUST | Self::LOGPROBS) != 0
    }

    /// How many of the likeliest tokens the device reports, if it reports log-probabilities.
    pub(crate) fn reported(self) -> Option<usize> {
        (self.0 & Self::LOGPROBS != 0).then_some((self.0 >> 8) as usize)
    }

    fn with(self, bits: u32) -> Self {
        Self(self.0 | bits)
    }
}

/// A row's modes over its life.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Modes {
    /// While it holds back tokens.
    early: Mode,
    later: Mode,
    /// From which position on `later` holds.
    later_from: u32,
    /// Whether the device has still to count the tokens it started with.
    fresh: bool,
    /// Whether its prompt's log-probabilities are wanted.
    pub(crate) scores_prompt: bool,
}

impl Modes {
    /// How the token after `position` is chosen. Called once for each.
    pub(crate) fn take(&mut self, position: u32) -> Mode {
        let mode = if position < self.later_from { self.early } else { self.later };
        let fresh = std::mem::take(&mut self.fresh) && mode.0 & Mode::COUNTS != 0;
        if fresh { mode.with(Mode::FRESH) } else { mode }
    }

    /// Whether the host samples all its tokens.
    pub(crate) fn is_host(&self) -> bool {
        self.later == Mode::HOST
    }

    fn all(mode: Mode) -> Self {
        Self { early: mode, later: mode, later_from: 0, fresh: true, scores_prompt: false }
    }
}

/// What the device keeps for rows that ask for more than a draw.
pub(crate) struct RowSampling {
    vocab_size: usize,
    /// Logits of the step's samples.
    samples: usize,
    /// By row.
    counts: Vec<Option<Buffer>>,
    lists: Vec<Range<usize>>,
    /// `[samples, vocabulary]` in f32: changed logits.
    adjusted: Option<Buffer>,
}

impl RowSampling {
    pub(crate) fn new(vocab_size: usize, samples: usize, rows: usize) -> Self {
        Self { vocab_size, samples, counts: (0..rows).map(|_| None).collect(), lists: vec![0..0; rows], adjusted: None }
    }

    /// Where changed logits go; 0 while no row has changed any.
    pub(crate) fn adjusted(&self) -> u64 {
        self.adjusted.as_ref().map_or(0, Buffer::pointer)
    }

    /// Brings a row's parameters to the device and says how its tokens will be chosen.
    pub(crate) fn start(
        &mut self,
        context: &Context,
        arena: &Arena,
        changes: &mut Changes,
        row: u32,
        params: &SamplingParams,
        prompt_len: u32,
    ) -> Modes {
        let place = row as usize;
        self.lists[place] = 0..0;
        if params.logprobs.is_some_and(|top| top > TOP_MAX) {
            return Modes::all(Mode::HOST);
        }
        let (list, biased, held_back) = self.list(params);
        let counts = params.uses_history();
        if counts && self.make_room_for_counts(context, place).is_err()
            || (counts || !list.is_empty()) && self.make_room_for_adjusted(context).is_err()
        {
            return Modes::all(Mode::HOST);
        }
        let Some(list_at) = self.place_list(arena, place, list.len()) else { return Modes::all(Mode::HOST) };
        changes.set(list_at, list);
        let counts_at = self.counts[place].as_ref().map_or(0, Buffer::pointer);
        let words: [u32; SAMPLING_WORDS] = [
            params.temperature.to_bits(),
            params.top_k,
            params.top_p.to_bits(),
            params.min_p.to_bits(),
            params.seed as u32,
            (params.seed >> 32) as u32,
            prompt_len,
            params.repetition_penalty.to_bits(),
            params.frequency_penalty.to_bits(),
            params.presence_penalty.to_bits(),
            counts_at as u32,
            (counts_at >> 32) as u32,
            list_at as u32,
            biased,
            held_back,
            params.min_tokens,
        ];
        changes.set(arena.sampling_at() + place * SAMPLING_WORDS, words);

        let mut later = if params.temperature > 0.0 { Mode::DRAW } else { Mode::GREEDY };
        if let Some(top) = params.logprobs {
            later = later.with(Mode::LOGPROBS | u32::from(top).min(self.vocab_size as u32) << 8);
        }
        if counts {
            later = later.with(Mode::ADJUST | Mode::COUNTS);
        }
        if biased > 0 {
            later = later.with(Mode::ADJUST);
        }
        let early = if held_back > 0 { later.with(Mode::ADJUST) } else { later };
        // The token at this position is the first that may be any.
        let later_from = (prompt_len + params.min_tokens).saturating_sub(1);
        Modes { early, later, later_from, fresh: true, scores_prompt: false }
    }

    /// The biased tokens with their bias, sorted by token and otherwise in order, then the held-back ones; and how many of each.
    fn list(&self, params: &SamplingParams) -> (Vec<u32>, u32, u32) {
        let is_token = |token: u32| (token as usize) < self.vocab_size;
        let mut biased: Vec<_> = params.logit_bias.iter().filter(|(token, _)| is_token(*token)).collect();
        biased.sort_by_key(|(token, _)| *token);
        let held_back = if params.min_tokens > 0 { &params.suppressed[..] } else { &[] };
        let held_back = held_back.iter().copied().filter(|&token| is_token(token));
        let mut list: Vec<u32> = biased.iter().flat_map(|(token, bias)| [*token, bias.to_bits()]).collect();
        list.extend(held_back);
        let count = list.len() - 2 * biased.len();
        (list, biased.len() as u32, count as u32)
    }

    fn make_room_for_counts(&mut self, context: &Context, row: usize) -> Result<(), CudaError> {
        if self.counts[row].is_none() {
            let bytes = self.vocab_size.next_multiple_of(2) * 2;
            self.counts[row] = Some(Buffer::allocate(context, bytes, "token counts for penalties")?);
        }
        Ok(())
    }

    fn make_room_for_adjusted(&mut self, context: &Context) -> Result<(), CudaError> {
        if self.adjusted.is_none() {
            let bytes = self.samples * self.vocab_size * 4;
            self.adjusted = Some(Buffer::allocate(context, bytes, "logits changed by penalties and bias")?);
        }
        Ok(())
    }

    /// The first gap among the other rows' lists that holds `words`.
    fn place_list(&mut self, arena: &Arena, row: usize, words: usize) -> Option<usize> {
        let pool = arena.lists();
        if words == 0 {
            return Some(pool.start);
        }
        let mut taken: Vec<_> = self.lists.iter().filter(|list| !list.is_empty()).cloned().collect();
        taken.sort_by_key(|list| list.start);
        let mut begin = pool.start;
        for list in taken {
            if list.start - begin >= words {
                break;
            }
            begin = list.end;
        }
        if begin + words > pool.end {
            return None;
        }
        self.lists[row] = begin..begin + words;
        Some(begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use powertrain_step::StepLimits;

    fn limits() -> StepLimits {
        StepLimits { max_num_seqs: 4, max_num_batched_tokens: 64, max_model_len: 64, block_size: 16 }
    }

    #[test]
    fn lists_fill_gaps_and_give_up_when_none_is_left() {
        let arena = Arena::new(&limits());
        let pool = arena.lists();
        let mut rows = RowSampling::new(100, 4, 4);
        let third = pool.len() / 3;
        assert_eq!(rows.place_list(&arena, 0, third), Some(pool.start));
        assert_eq!(rows.place_list(&arena, 1, third), Some(pool.start + third));
        assert_eq!(rows.place_list(&arena, 2, third), Some(pool.start + 2 * third));
        assert_eq!(rows.place_list(&arena, 3, third), None);
        rows.lists[1] = 0..0;
        assert_eq!(rows.place_list(&arena, 3, third - 1), Some(pool.start + third));
        assert_eq!(rows.place_list(&arena, 1, 0), Some(pool.start));
    }

    #[test]
    fn a_list_is_sorted_by_token_and_leaves_out_what_is_no_token() {
        let params = SamplingParams {
            logit_bias: vec![(7, 1.0), (3, 2.0), (100, 9.0), (7, 3.0)],
            suppressed: vec![5, 200],
            min_tokens: 1,
            ..SamplingParams::default()
        };
        let rows = RowSampling::new(100, 4, 4);
        let [one, two, three] = [1f32, 2.0, 3.0].map(f32::to_bits);
        assert_eq!(rows.list(&params), (vec![3, two, 7, one, 7, three, 5], 3, 1));
        let (list, ..) = rows.list(&SamplingParams { min_tokens: 0, ..params });
        assert_eq!(list.len(), 6);
    }

    #[test]
    fn tokens_are_held_back_until_there_are_enough_and_counted_afresh_once() {
        let held = Mode::GREEDY.with(Mode::ADJUST | Mode::COUNTS);
        let mut modes = Modes {
            early: held,
            later: Mode::GREEDY.with(Mode::COUNTS),
            later_from: 11,
            fresh: true,
            ..Modes::default()
        };
        assert_eq!(modes.take(9), held.with(Mode::FRESH));
        assert_eq!(modes.take(10), held);
        assert_eq!(modes.take(11), Mode::GREEDY.with(Mode::COUNTS));
        assert!(!Mode::GREEDY.is_extra() && held.is_extra() && Mode::DRAW.draws());
        // The host reads logits, which steps of greedy rows alone do not write.
        assert!(Mode::HOST.draws() && !Mode::GREEDY.draws() && !Mode::UNUSED.draws());
        assert_eq!(Mode::GREEDY.with(Mode::LOGPROBS | 5 << 8).reported(), Some(5));
    }
}
