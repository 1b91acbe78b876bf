//! What a step brings to the device, in one piece: changes of the tables, and which positions to compute.
//!
//! The pinned buffer begins with a header (12 words: changes, where they begin, addresses of the results, of the records of
//! log-probabilities and of changed logits, [`Counts`], two unused), then the step's arrays, then the changes. `apply_changes` (step.cu) carries the changes out on the arena.

use crate::{
    kernels::{SAMPLING_WORDS, State, TILE_QUERIES},
    shapes::{bucket, padded_tokens, tiles_bucket},
};
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

/// A step's work, counted: what it holds, and how large its arrays are to be.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    positions: usize,
    samples: usize,
    longest: u32,
    counts: Counts,
}

impl Tally {
    /// Counts `len` positions of a row, `alone` if the decode kernel takes them.
    pub(crate) fn add(&mut self, len: u32, sample: bool, alone: bool) {
        self.positions += len as usize;
        self.samples += usize::from(sample);
        self.longest = self.longest.max(len);
        match alone {
            true => self.counts.decodes += 1,
            false => self.counts.tiles += len.div_ceil(TILE_QUERIES) as usize,
        }
    }

    /// Whether some row has more than one position.
    pub(crate) fn prompts(&self) -> bool {
        self.longest > 1
    }

    /// The arrays' sizes, and what they hold, padding included. Few kinds of steps differ: there is room for more than there is.
    pub(crate) fn layout(&self) -> (Layout, Counts) {
        if self.prompts() {
            let (tokens, samples) = (padded_tokens(self.positions), room(self.samples));
            return (Layout { tokens, samples, tiles: tiles_bucket(self.counts.tiles) }, self.counts);
        }
        // Every position is chosen from, and each padded one is a decode or a tile of its own.
        let tokens = room(self.positions);
        let counts = match self.counts.tiles {
            0 => Counts { decodes: tokens, tiles: 0 },
            _ => Counts { decodes: 0, tiles: tokens },
        };
        (Layout { tokens, samples: tokens, tiles: counts.tiles }, counts)
    }
}

/// How many of something there is room for, given how many there are.
pub(crate) fn room(count: usize) -> usize {
    if count == 0 { 0 } else { bucket(count) }
}

/// Words that say where a span of changes goes.
pub(crate) const SPAN_WORDS: usize = 3;

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
        SPAN_WORDS * self.spans.len() + self.data.len()
    }

    /// The same changes, in order, as several that take no more than `room` words each.
    pub(crate) fn pieces(&self, room: usize) -> Vec<Self> {
        debug_assert!(room > SPAN_WORDS, "a piece holds a word at least");
        let mut pieces = vec![Self::default()];
        for &(to, from, count) in &self.spans {
            let mut done = 0;
            while done < count {
                let piece = pieces.last_mut().expect("there is one from the start");
                let free = room.saturating_sub(piece.words() + SPAN_WORDS);
                if free == 0 {
                    pieces.push(Self::default());
                    continue;
                }
                let taken = free.min(count - done);
                piece.set(to + done, self.data[from + done..][..taken].iter().copied());
                done += taken;
            }
        }
        pieces
    }

    /// Writes the header and the changes; returns the words used in all. `addresses`: where tokens,
    /// records of log-probabilities and changed logits go.
    pub(crate) fn write(&self, layout: &Layout, counts: Counts, addresses: [u64; 3], staged: &mut [u32]) -> usize {
        let (begin, table) = (layout.changes(), SPAN_WORDS * self.spans.len());
        staged[0] = self.spans.len() as u32;
        staged[1] = begin as u32;
        staged[COUNTS_AT..HEADER_WORDS].copy_from_slice(&[counts.decodes as u32, counts.tiles as u32, 0, 0]);
        for (place, address) in staged[2..COUNTS_AT].chunks_exact_mut(2).zip(addresses) {
            place.copy_from_slice(&[address as u32, (address >> 32) as u32]);
        }
        for (place, &(to, from, count)) in staged[begin..begin + table].chunks_exact_mut(SPAN_WORDS).zip(&self.spans) {
            place.copy_from_slice(&[to as u32, count as u32, (table + from) as u32]);
        }
        staged[begin + table..begin + table + self.data.len()].copy_from_slice(&self.data);
        begin + table + self.data.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(works: &[(u32, bool)], deterministic: bool) -> Tally {
        let mut tally = Tally::default();
        works.iter().for_each(|&(len, sample)| tally.add(len, sample, len == 1 && !deterministic));
        tally
    }

    #[test]
    fn decodes_fill_their_arrays() {
        for rows in 1..=300 {
            for deterministic in [false, true] {
                let (layout, counts) = tally(&vec![(1, true); rows], deterministic).layout();
                let size = bucket(rows);
                let by_tiles = if deterministic { size } else { 0 };
                assert_eq!(layout, Layout { tokens: size, samples: size, tiles: by_tiles });
                assert_eq!(
                    counts,
                    Counts { decodes: size - by_tiles, tiles: by_tiles },
                    "each padded position has its work"
                );
            }
        }
        assert_eq!(tally(&[], false).layout(), (Layout { tokens: 0, samples: 0, tiles: 0 }, Counts::default()));
    }

    #[test]
    fn beside_prompts_there_is_room_for_what_there_is() {
        let mut state = 7_u32;
        let mut next = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        for _ in 0..2000 {
            let deterministic = next(4) == 0;
            let works: Vec<(u32, bool)> = (0..1 + next(300))
                .map(|_| (if next(8) == 0 { 2 + next(600) } else { 1 }, next(5) > 0))
                .chain([(2, false)])
                .collect();
            let tally = tally(&works, deterministic);
            let (layout, counts) = tally.layout();
            let positions: u32 = works.iter().map(|&(len, _)| len).sum();
            let samples = works.iter().filter(|&&(_, sample)| sample).count();
            let alone = works.iter().filter(|&&(len, _)| len == 1 && !deterministic).count();
            assert!(tally.prompts() && layout.tokens >= positions as usize && layout.samples >= samples);
            assert_eq!(counts.decodes, alone);
            assert!(room(counts.decodes) >= alone && layout.tiles >= counts.tiles && counts.tiles > 0);
            let in_tiles: u32 = works.iter().filter(|&&(len, _)| len > 1 || deterministic).map(|&(len, _)| len).sum();
            assert!(counts.tiles * TILE_QUERIES as usize >= in_tiles as usize);
        }
    }

    #[test]
    fn steps_that_differ_in_what_they_hold_alone_are_of_one_kind() {
        let step = |decodes: usize, prompts: &[u32]| {
            let works: Vec<_> = prompts.iter().map(|&len| (len, true)).chain(vec![(1, true); decodes]).collect();
            let (layout, counts) = tally(&works, false).layout();
            (layout, room(counts.decodes))
        };
        assert_eq!(step(33, &[50, 50, 50]), step(44, &[35, 35, 35, 35]));
        assert_ne!(step(33, &[50, 50, 50]), step(33, &[50, 50, 70]), "of more positions");
        assert_ne!(step(31, &[50, 50, 50]), step(33, &[50, 50, 50]), "of more decodes");
    }

    #[test]
    fn changes_in_pieces_are_the_same_and_fit() {
        let mut state = 5_u32;
        let mut next = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) % below) as usize
        };
        let carry_out = |changes: &Changes, arena: &mut [u32]| {
            for &(to, from, count) in &changes.spans {
                arena[to..to + count].copy_from_slice(&changes.data[from..from + count]);
            }
        };
        let mut several = 0;
        for _ in 0..300 {
            let mut changes = Changes::default();
            for _ in 0..next(12) {
                let (at, count, first) = (next(900), next(100), next(1000) as u32);
                changes.set(at, first..first + count as u32);
            }
            let room = SPAN_WORDS + 1 + next(300);
            let pieces = changes.pieces(room);
            assert!(pieces.iter().all(|piece| piece.words() <= room));
            several += usize::from(pieces.len() > 1);
            let (mut whole, mut piece_by_piece) = (vec![0; 1000], vec![0; 1000]);
            carry_out(&changes, &mut whole);
            pieces.iter().for_each(|piece| carry_out(piece, &mut piece_by_piece));
            assert_eq!(whole, piece_by_piece);
        }
        assert!(several > 100, "{several}");
    }

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
