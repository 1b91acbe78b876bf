//! What a step brings to the device, in one piece: changes of the tables, and which positions to compute.
//!
//! The pinned buffer begins with a header (12 words: changes, where they begin, addresses of the results, of the records of
//! log-probabilities and of changed logits, [`Counts`], two unused), then the step's arrays, then the changes. `apply_changes` (step.cu) carries the changes out on the arena.

use crate::kernels::{SAMPLING_WORDS, State};
use powertrain_step::StepLimits;

const HEADER_WORDS: usize = 12;
/// Where the header holds the [`Counts`].
pub(crate) const COUNTS_AT: usize = 8;
/// Words for the biased and held-back tokens of all rows.
const LIST_WORDS: usize = 1 << 20;

/// Sizes of the arena that [`State`] points to, in words: token tables, block tables, sampling parameters, lists. One row more than can
/// live is the idle row, at which padding points.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arena {
    pub(crate) max_len: usize,
    pub(crate) max_blocks: usize,
    pub(crate) rows: usize,
}

impl Arena {
    pub(crate) fn new(limits: &StepLimits) -> Self {
        Self {
            max_len: limits.max_model_len as usize,
            max_blocks: limits.max_model_len.div_ceil(limits.block_size) as usize,
            rows: limits.max_num_seqs as usize + 1,
        }
    }

    pub(crate) fn idle_row(&self) -> u32 {
        self.rows as u32 - 1
    }

    pub(crate) fn words(&self) -> usize {
        self.lists().end
    }

    pub(crate) fn blocks_at(&self) -> usize {
        self.rows * self.max_len
    }

    pub(crate) fn sampling_at(&self) -> usize {
        self.blocks_at() + self.rows * self.max_blocks
    }

    pub(crate) fn lists(&self) -> std::ops::Range<usize> {
        let begin = self.sampling_at() + self.rows * SAMPLING_WORDS;
        begin..begin + LIST_WORDS
    }

    pub(crate) fn state(&self, words: u64) -> State {
        State {
            words,
            blocks_at: self.blocks_at() as u64,
            sampling_at: self.sampling_at() as u64,
            max_len: self.max_len as i32,
            max_blocks: self.max_blocks as i32,
        }
    }
}

/// What a step holds of what its arrays have room for (`Counts` of common.cuh).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// The first positions, one a row, that the decode kernel computes.
    pub(crate) decodes: usize,
    /// Flash tiles.
    pub(crate) tiles: usize,
}

/// Where a step's arrays stand, in words from the start. Fixed by the counts, so that a captured graph finds them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    /// Positions computed, padding included.
    pub(crate) tokens: usize,
    /// Positions whose logits are made, padding included.
    pub(crate) samples: usize,
    /// Flash tiles there is room for.
    pub(crate) tiles: usize,
}

impl Layout {
    /// Per position: its row.
    pub(crate) fn rows(&self) -> usize {
        HEADER_WORDS
    }
    /// Per position: where in the row.
    pub(crate) fn positions(&self) -> usize {
        self.rows() + self.tokens
    }
    /// Per sample: what to do with the logits (`ROW_*` of sample.cu).
    pub(crate) fn modes(&self) -> usize {
        self.positions() + self.tokens
    }
    /// Per sample: its row.
    pub(crate) fn sample_rows(&self) -> usize {
        self.modes() + self.samples
    }
    /// Per sample: the position whose logits they are.
    pub(crate) fn sample_positions(&self) -> usize {
        self.sample_rows() + self.samples
    }
    /// Per sample: which of the step's positions it is.
    pub(crate) fn sample_tokens(&self) -> usize {
        self.sample_positions() + self.samples
    }
    /// Flash tiles, four words each, on a 16-byte boundary.
    pub(crate) fn tile_words(&self) -> usize {
        (self.sample_tokens() + self.samples).next_multiple_of(4)
    }
    fn changes(&self) -> usize {
        self.tile_words() + 4 * self.tiles
    }
    /// Words of header and arrays.
    pub(crate) fn fixed_words(&self) -> usize {
        self.changes()
    }
}

/// Changes of the arena, collected for one step.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// First word in the arena, first word in `data`, words.
    spans: Vec<(usize, usize, usize)>,
    data: Vec<u32>,
}

impl Changes {
    pub(crate) fn clear(&mut self) {
        self.spans.clear();
        self.data.clear();
    }

    /// Sets words from `at` on. Continues the last span where it can.
    pub(crate) fn set(&mut self, at: usize, words: impl IntoIterator<Item = u32>) {
        let from = self.data.len();
        self.data.extend(words);
        let count = self.data.len() - from;
        if count == 0 {
            return;
        }
        match self.spans.last_mut() {
            Some((to, _, length)) if *to + *length == at => *length += count,
            _ => self.spans.push((at, from, count)),
        }
    }

    /// Words this takes behind a step's arrays.
    pub(crate) fn words(&self) -> usize {
        3 * self.spans.len() + self.data.len()
    }

    /// Writes the header and the changes; returns the words used in all. `addresses`: where tokens,
    /// records of log-probabilities and changed logits go.
    pub(crate) fn write(&self, layout: &Layout, counts: Counts, addresses: [u64; 3], staged: &mut [u32]) -> usize {
        let (begin, table) = (layout.changes(), 3 * self.spans.len());
        staged[0] = self.spans.len() as u32;
        staged[1] = begin as u32;
        staged[COUNTS_AT..HEADER_WORDS].copy_from_slice(&[counts.decodes as u32, counts.tiles as u32, 0, 0]);
        for (place, address) in staged[2..COUNTS_AT].chunks_exact_mut(2).zip(addresses) {
            place.copy_from_slice(&[address as u32, (address >> 32) as u32]);
        }
        for (place, &(to, from, count)) in staged[begin..begin + table].chunks_exact_mut(3).zip(&self.spans) {
            place.copy_from_slice(&[to as u32, count as u32, (table + from) as u32]);
        }
        staged[begin + table..begin + table + self.data.len()].copy_from_slice(&self.data);
        begin + table + self.data.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_join_and_are_written_behind_the_arrays() {
        let mut changes = Changes::default();
        changes.set(100, [1, 2]);
        changes.set(102, [3]);
        changes.set(50, [9]);
        changes.set(7, []);
        let layout = Layout { tokens: 2, samples: 1, tiles: 1 };
        let mut staged = vec![0; layout.fixed_words() + changes.words()];
        let counts = Counts { decodes: 7, tiles: 8 };
        let used = changes.write(&layout, counts, [0x1_0000_0002, 0x3_0000_0004, 6], &mut staged);
        assert_eq!(used, staged.len());
        assert_eq!(staged[..HEADER_WORDS], [2, layout.fixed_words() as u32, 2, 1, 4, 3, 6, 0, 7, 8, 0, 0]);
        assert_eq!(staged[layout.fixed_words()..], [100, 3, 6, 50, 1, 9, 1, 2, 3, 9]);
        assert_eq!(layout.tile_words() % 4, 0);
    }
}
