//! Attention over keys and values kept as bytes: integer dots, 64 multiply-adds an instruction.
//!
//! A key is `scale * q` with 8 bits a number and one scale a head and position, a value likewise; queries become the same, so
//! that a score loses of its query what it loses of its key. A softmax weight is `e^(score - the span's highest) * the value's
//! scale` in 7 bits, in units of a 127th of the largest among 64 positions: with one unit for a whole span, where one
//! position takes most of the softmax, as the first often does, all others would round to nothing. So the sum over 64 positions is an
//! exact integer a column, and what a weight loses is at most a 254th of the largest near it.
//!
//! Work per position and KV head, for a group of g query heads of width d: 2 d + 8 bytes read once, 2 g d multiply-adds. Of 16
//! positions that is for each query 16 dots for scores and 16 for values at d = 64, and on the same pipes 12 multiplications of softmax
//! and scales: at one a cycle 12 ns on Zen 4, with g = 3 for 2,176 bytes 36 ns, 60 GB/s.
//!
//! Here: a group of queries and its way through a span. `integer/encode.rs`: how numbers become bytes. `integer/dots.rs`: both products.
//! `integer/softmax.rs`: what is between them.

mod dots;
mod encode;
mod softmax;

pub(super) use encode::{load_queries, store};

use super::{AttentionWork, Partial, QUERIES, SPAN};
use crate::{
    kv::KvLayout,
    simd::{IOTA, LANES, Lanes},
};
use dots::{scores, weigh};
use softmax::{Weights, soften};
use std::{mem::MaybeUninit, ops::Range};

/// Tiles of a span.
const TILES: usize = SPAN / LANES;
/// Tiles whose softmax weights have a unit together.
const BLOCK: usize = 4;
/// Bytes before the quantised queries of six vectors: their scales, then the dots' starts.
const HEADER: usize = 64;
const STARTS: usize = 8;
/// Columns of a vector that stand side by side, followed by those of the other vectors.
const COLUMNS: usize = 64;

/// Bytes six vectors take.
pub(super) fn group_bytes(head_dim: usize) -> usize {
    HEADER + head_dim.div_ceil(COLUMNS) * QUERIES * COLUMNS
}

/// # Safety
/// As [`attend`](super::attend).
#[inline(always)]
pub(super) unsafe fn attend<S: Lanes>(work: &AttentionWork, span: Range<usize>, out: Partial) {
    let vectors = work.vectors();
    // SAFETY: the caller's promises; all positions of the work have a block in the table.
    unsafe {
        let end = work.first_position + work.tokens;
        let tiles = tiles_at(work, work.blocks, work.kv_head, span.start..end);
        // With many queries a tile is read again and again, and waiting for it is a small part.
        let next = work.next.as_ref().filter(|_| vectors <= QUERIES);
        let next = next.map(|next| tiles_at(work, next.blocks, next.kv_head, next.positions.clone()));
        for first in (0..vectors).step_by(QUERIES) {
            let group = Group::of(work, &span, first, &tiles, next.as_ref());
            match (group.count, S::TILE >= 8) {
                (1, true) => attend_group::<S, 1, 4>(work, group, out),
                (2, true) => attend_group::<S, 2, 4>(work, group, out),
                (3, true) => attend_group::<S, 3, 4>(work, group, out),
                (4, true) => attend_group::<S, 4, 2>(work, group, out),
                (_, true) => attend_group::<S, 6, 2>(work, group, out),
                (1, false) => attend_group::<S, 1, 1>(work, group, out),
                (2, false) => attend_group::<S, 2, 1>(work, group, out),
                (3, false) => attend_group::<S, 3, 1>(work, group, out),
                (4, false) => attend_group::<S, 4, 1>(work, group, out),
                (_, false) => attend_group::<S, 6, 1>(work, group, out),
            }
        }
    }
}

/// Where the tiles of the first [`SPAN`] of some positions stand.
///
/// # Safety
/// All the positions have a block in the table.
#[inline(always)]
unsafe fn tiles_at(
    work: &AttentionWork,
    blocks: *const u32,
    kv_head: usize,
    positions: Range<usize>,
) -> [*const u8; TILES] {
    // A tile past the end is masked whole; any memory does.
    let mut tiles = [work.layer; TILES];
    let (mut index, mut in_block) = (positions.start / work.kv.block_size, positions.start % work.kv.block_size);
    for tile in &mut tiles[..positions.len().min(SPAN).div_ceil(LANES)] {
        // SAFETY: the caller's promise.
        unsafe {
            let block = *blocks.add(index) as usize;
            *tile = work.layer.add(work.kv.tile_offset(block, kv_head, in_block));
        }
        in_block += LANES;
        if in_block == work.kv.block_size {
            (index, in_block) = (index + 1, 0);
        }
    }
    tiles
}

/// Which lines of the next tiles are asked for with which part of the work, so that memory has always some to bring and never more
/// at a time than a core may ask for: 24.
#[derive(Clone, Copy)]
struct Asked {
    /// Those before with scores.
    with_scores: usize,
    /// Those from there to here with softmax weights, the rest with values.
    with_weights: usize,
    /// Lines of a tile.
    lines: usize,
}

impl Asked {
    #[inline(always)]
    fn of(kv: &KvLayout) -> Self {
        let lines = kv.value_scales() / 64 + 1;
        Self { with_scores: lines * 3 / 10, with_weights: lines * 7 / 10, lines }
    }
}

/// Six query vectors or fewer meet a span of positions.
#[derive(Clone, Copy)]
struct Group<'a> {
    /// The first vector.
    first: usize,
    /// Vectors.
    count: usize,
    /// What each of them sees.
    seen: [Seen; QUERIES],
    /// Tiles from the first to the last that any of them sees.
    live: usize,
    /// From [`load_queries`].
    queries: *const u8,
    tiles: &'a [*const u8; TILES],
    /// The tiles that follow, to be asked for meanwhile.
    next: Option<&'a [*const u8; TILES]>,
}

/// Positions of a span one vector sees, from the first of them to behind the last, counted from the span's start.
#[derive(Clone, Copy, PartialEq)]
struct Seen {
    from: usize,
    to: usize,
}

impl Seen {
    const NOTHING: Self = Self { from: 0, to: 0 };
    /// Whether all lanes of so many tiles are seen.
    #[inline(always)]
    fn has_all_of(self, tiles: usize) -> bool {
        self.from == 0 && tiles * LANES <= self.to
    }

    /// Whether all lanes of a tile are seen.
    #[inline(always)]
    fn has_all(self, tile: usize) -> bool {
        self.from <= tile * LANES && (tile + 1) * LANES <= self.to
    }

    /// `x` where lanes of a tile are seen, `hidden` elsewhere.
    ///
    /// # Safety
    /// The level's instructions.
    #[inline(always)]
    unsafe fn mask<S: Lanes>(self, tile: usize, x: S::F, hidden: f32) -> S::F {
        if self.has_all(tile) {
            return x;
        }
        let first = (tile * LANES) as f32;
        // SAFETY: the caller's promise.
        unsafe {
            let (lane, hidden) = (S::load(IOTA.as_ptr()), S::splat(hidden));
            let x = S::select_less(lane, S::splat(self.to as f32 - first), x, hidden);
            S::select_less(lane, S::splat(self.from as f32 - first), hidden, x)
        }
    }
}

impl<'a> Group<'a> {
    #[inline(always)]
    fn of(
        work: &AttentionWork,
        span: &Range<usize>,
        first: usize,
        tiles: &'a [*const u8; TILES],
        next: Option<&'a [*const u8; TILES]>,
    ) -> Self {
        let count = (work.vectors() - first).min(QUERIES);
        let mut seen = [Seen::NOTHING; QUERIES];
        let mut live = 0;
        for (v, seen) in seen.iter_mut().enumerate().take(count) {
            let (oldest, behind) = (work.oldest(first + v), work.position(first + v) + 1);
            if behind > span.start && oldest < span.start + SPAN {
                let (from, to) = (oldest.saturating_sub(span.start), (behind - span.start).min(SPAN));
                *seen = Seen { from, to };
                live = live.max(to.div_ceil(LANES));
            }
        }
        // SAFETY: the work's queries hold the group.
        let queries = unsafe { work.queries.cast::<u8>().add(first / QUERIES * group_bytes(work.kv.head_dim)) };
        Self { first, count, seen, live, queries, tiles, next }
    }
}

/// D times 16 columns of values at a time.
///
/// # Safety
/// As [`attend`]; `group.count <= M`.
#[inline(always)]
unsafe fn attend_group<S: Lanes, const M: usize, const D: usize>(work: &AttentionWork, group: Group<'_>, out: Partial) {
    // Zeroing it would take as long as a tile's scores. What is read was written: live tiles by `scores`, those that fill the last
    // block by `hide`.
    let mut scored = MaybeUninit::<[[f32; SPAN]; M]>::uninit();
    let scored: *mut [f32; SPAN] = scored.as_mut_ptr().cast();
    let mut weights = Weights { bytes: [[0; SPAN]; M], units: [[0.0; TILES / BLOCK]; M] };
    // SAFETY: the caller's promises.
    unsafe {
        let mut tile = 0;
        while S::TILE >= 8 && tile + 4 <= group.live {
            scores::<S, M, 4>(work, group, scored, tile);
            tile += 4;
        }
        while S::TILE >= 8 && tile + 2 <= group.live {
            scores::<S, M, 2>(work, group, scored, tile);
            tile += 2;
        }
        while tile < group.live {
            scores::<S, M, 1>(work, group, scored, tile);
            tile += 1;
        }
        soften::<S, M>(work, group, scored, &mut weights, out);
        let width = work.kv.value_width();
        let mut d = 0;
        while d < width {
            if d + D * LANES <= width {
                weigh::<S, M, D>(work, group, d, &weights, out);
                d += D * LANES;
            } else {
                weigh::<S, M, 1>(work, group, d, &weights, out);
                d += LANES;
            }
        }
    }
}
