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

use super::{AttentionWork, NOTHING, Partial, QUERIES, QueryRows, SPAN};
use crate::{
    kernel::exponential::{exp_below_zero_of, tanh},
    kv::KvLayout,
    simd::{IOTA, LANES, Lanes},
};
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

/// Weights below are taken for 0: their inverse overflows.
const SMALLEST: f32 = 1.0e-30;

/// The largest magnitude's 127th and its inverse, which is 0 where nothing can be divided; NaN and infinity stay in the
/// first.
#[inline(always)]
fn scales(largest: f32) -> (f32, f32) {
    (largest / 127.0, if largest > f32::MIN_POSITIVE { 127.0 / largest } else { 0.0 })
}

/// Sixteen elements of a row from `at` on, zeros past its end.
///
/// # Safety
/// The level's instructions; the row has `len` elements.
#[inline(always)]
unsafe fn load_padded<S: Lanes>(row: *const f32, at: usize, len: usize) -> S::F {
    // SAFETY: the caller's promises.
    unsafe {
        if at + LANES <= len {
            return S::load(row.add(at));
        }
        let mut padded = [0.0f32; LANES];
        for (i, element) in padded.iter_mut().enumerate().take(len - at) {
            *element = *row.add(at + i);
        }
        S::load(padded.as_ptr())
    }
}

/// # Safety
/// The level's instructions; the row has `len` elements.
#[inline(always)]
unsafe fn largest_magnitude<S: Lanes>(row: *const f32, len: usize) -> f32 {
    // SAFETY: the caller's promises.
    unsafe {
        let mut bits = S::splat_i32(0);
        for at in (0..len).step_by(LANES) {
            bits = S::max_magnitude_bits(bits, load_padded::<S>(row, at, len));
        }
        f32::from_bits(S::reduce_max_i32(bits) as u32)
    }
}

/// Quantises queries: per six vectors a header, then for each 64 columns those of each vector.
///
/// # Safety
/// As [`load_queries`](super::load_queries).
#[inline(always)]
pub(super) unsafe fn load_queries<S: Lanes>(rows: QueryRows, to: *mut u8) {
    let QueryRows { head_dim, .. } = rows;
    for v in 0..rows.vectors() {
        // SAFETY: the caller's promises; a group holds six vectors.
        unsafe {
            let from = rows.vector(v);
            let group = to.add(v / QUERIES * group_bytes(head_dim));
            let (header, bytes) = (group.cast::<f32>().add(v % QUERIES), group.add(HEADER + v % QUERIES * COLUMNS));
            let (scale, inverse) = scales(largest_magnitude::<S>(from, head_dim));
            let mut sum = 0;
            for at in (0..head_dim).step_by(LANES) {
                let x = S::mul(load_padded::<S>(from, at, head_dim), S::splat(inverse));
                sum += S::quantize(x, bytes.add(at / COLUMNS * COLUMNS * QUERIES + at % COLUMNS).cast());
            }
            *header = scale;
            *header.add(STARTS).cast::<i32>() = -8 * sum;
        }
    }
}

/// Sixteen elements of a row from `at` on as bytes.
///
/// # Safety
/// The level's instructions; the row has `len` elements.
#[inline(always)]
unsafe fn quantize_padded<S: Lanes>(row: *const f32, at: usize, len: usize, inverse: f32) -> [i8; LANES] {
    let mut bytes = [0i8; LANES];
    // SAFETY: the caller's promises.
    unsafe { S::quantize(S::mul(load_padded::<S>(row, at, len), S::splat(inverse)), bytes.as_mut_ptr()) };
    bytes
}

/// Stores one position's key, 128 added to each byte, and value of one head.
///
/// # Safety
/// As [`store`](super::store).
#[inline(always)]
pub(super) unsafe fn store<S: Lanes>(kv: &KvLayout, tile: *mut u8, in_tile: usize, key: *const f32, value: *const f32) {
    // SAFETY: the caller's promises; all offsets stay inside the tile.
    unsafe {
        let scale_at = tile.add(kv.key_scales()).cast::<f32>().add(in_tile);
        let (scale, inverse) = scales(largest_magnitude::<S>(key, kv.head_dim));
        *scale_at = scale;
        for at in (0..kv.head_dim).step_by(LANES) {
            let bytes = quantize_padded::<S>(key, at, kv.head_dim, inverse);
            for quad in 0..(kv.head_dim - at).div_ceil(4).min(LANES / 4) {
                let word = bytes.as_ptr().add(quad * 4).cast::<u32>().read_unaligned() ^ 0x8080_8080;
                tile.add((at / 4 + quad) * 64 + in_tile * 4).cast::<u32>().write_unaligned(word);
            }
        }
        let (scale, inverse) = scales(largest_magnitude::<S>(value, kv.head_dim));
        *scale_at.add(LANES) = scale;
        let values = tile.add(kv.values() + in_tile / 4 * kv.value_width() * 4 + in_tile % 4);
        for at in (0..kv.head_dim).step_by(LANES) {
            let bytes = quantize_padded::<S>(value, at, kv.head_dim, inverse);
            for i in 0..LANES {
                *values.add((at + i) * 4) = bytes[i] as u8;
            }
        }
    }
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

/// Softmax weights of a span.
struct Weights<const M: usize> {
    /// As [`Lanes::quantize_u7`] leaves them: for each block of tiles, of their four quads each, the bytes of the first tile, of the
    /// second and so on.
    bytes: [[u8; SPAN]; M],
    /// What they count in each block.
    units: [[f32; TILES / BLOCK]; M],
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

/// Scores of M queries with P tiles of keys from `tile` on.
///
/// # Safety
/// The level's instructions; the tiles are whole; the group's queries are there.
#[inline(always)]
unsafe fn scores<S: Lanes, const M: usize, const P: usize>(
    work: &AttentionWork,
    group: Group<'_>,
    scores: *mut [f32; SPAN],
    tile: usize,
) {
    let kv = &work.kv;
    // SAFETY: the caller's promises.
    unsafe {
        let header = group.queries.cast::<f32>();
        let starts = header.cast::<i32>().add(STARTS);
        let asked = Asked::of(kv);
        let mut dots = [[S::splat_i32(0); P]; M];
        for m in 0..M {
            dots[m] = [S::start_i8(*starts.add(m)); P];
        }
        let mut queries = group.queries.add(HEADER).cast::<i8>();
        for quad in 0..kv.head_dim.div_ceil(4) {
            let mut line = [S::splat_i32(0); P];
            for p in 0..P {
                line[p] = S::load_line(group.tiles[tile + p].add(quad * 64));
                if let Some(next) = group.next
                    && quad < asked.with_scores
                {
                    S::prefetch(next[tile + p].add(quad * 64));
                }
            }
            for m in 0..M {
                for p in 0..P {
                    dots[m][p] = S::dot_i8(dots[m][p], line[p], queries.add(m * COLUMNS));
                }
            }
            let is_last = quad % (COLUMNS / 4) == COLUMNS / 4 - 1;
            queries = queries.wrapping_add(if is_last { 4 + COLUMNS * (QUERIES - 1) } else { 4 });
        }
        let mut scales = [S::splat(0.0); P];
        for p in 0..P {
            scales[p] = S::load(group.tiles[tile + p].add(kv.key_scales()).cast());
        }
        // No more than this: a longer body is not unrolled, and the sums go through memory.
        for m in 0..M {
            let scale = S::splat(*header.add(m) * work.scale);
            for p in 0..P {
                let score = S::mul(S::to_f32(dots[m][p]), S::mul(scales[p], scale));
                S::store(scores.add(m).cast::<f32>().add((tile + p) * LANES), score);
            }
        }
    }
}

/// Scores to weights: `e^(score - highest)`, their sum, and their products with the values' scales in 7 bits.
///
/// # Safety
/// The level's instructions; the tiles are whole; `out` has the group's vectors.
#[inline(always)]
unsafe fn soften<S: Lanes, const M: usize>(
    work: &AttentionWork,
    group: Group<'_>,
    scores: *mut [f32; SPAN],
    weights: &mut Weights<M>,
    out: Partial,
) {
    let mut scales = ValueScales { seen: Seen::NOTHING, of: [0.0; SPAN] };
    let blocks = group.live.div_ceil(BLOCK);
    let asked = Asked::of(&work.kv);
    // SAFETY: the caller's promises.
    unsafe {
        for m in 0..group.count {
            let seen = group.seen[m];
            let (max, sum) = (out.max.add(group.first + m), out.sum.add(group.first + m));
            if seen == Seen::NOTHING {
                (*max, *sum) = (NOTHING, 0.0);
                continue;
            }
            if scales.seen != seen {
                scales.fill::<S>(work, group, seen);
            }
            let scores = scores.add(m).cast::<f32>();
            if work.softcap.is_some() || !seen.has_all_of(blocks * BLOCK) {
                hide::<S>(work, group.live, seen, scores);
            }
            let mut highest = [S::splat(NOTHING); 2];
            for tile in 0..group.live {
                highest[tile % 2] = S::max(highest[tile % 2], S::load(scores.add(tile * LANES)));
            }
            let highest = S::reduce_max(S::max(highest[0], highest[1]));
            // All exponentials, then all units, then all bytes: a block's way through them is a chain, those of four go side by side.
            let mut added = [S::splat(0.0); 2];
            let mut largest = [S::splat_i32(0); TILES / BLOCK];
            for block in 0..blocks {
                let at = block * BLOCK * LANES;
                if let Some(next) = group.next {
                    for tile in &next[block * BLOCK..(block + 1) * BLOCK] {
                        for line in (asked.with_scores + m..asked.with_weights).step_by(group.count) {
                            S::prefetch(tile.wrapping_add(line * 64));
                        }
                    }
                }
                largest[block] = weigh_values::<S>(scores.add(at), scales.of.as_ptr().add(at), highest, &mut added);
            }
            (*max, *sum) = (highest, S::reduce_add(S::add(added[0], added[1])));
            let mut inverses = [0.0; TILES / BLOCK];
            for block in 0..blocks {
                // NaN and infinity stay in the unit.
                let largest = f32::from_bits(S::reduce_max_i32(largest[block]) as u32);
                weights.units[m][block] = largest / 127.0;
                inverses[block] = if largest > SMALLEST { 127.0 / largest } else { 0.0 };
            }
            for block in 0..blocks {
                let mut x = [S::splat(0.0); BLOCK];
                for i in 0..BLOCK {
                    let weight = S::load(scores.add((block * BLOCK + i) * LANES));
                    x[i] = S::mul(weight, S::splat(inverses[block]));
                }
                S::quantize_u7(x, weights.bytes[m].as_mut_ptr().add(block * BLOCK * LANES));
            }
        }
    }
}

/// Scores of a block to `e^(score - highest)`, which are added up, times the values' scales. Returns the bits of the largest
/// magnitude in each lane.
///
/// # Safety
/// The level's instructions; a block of scores and of scales.
#[inline(always)]
unsafe fn weigh_values<S: Lanes>(scores: *mut f32, scales: *const f32, highest: f32, added: &mut [S::F; 2]) -> S::I {
    // SAFETY: the caller's promises.
    unsafe {
        let mut x = [S::splat(0.0); BLOCK];
        for i in 0..BLOCK {
            x[i] = S::sub(S::load(scores.add(i * LANES)), S::splat(highest));
        }
        x = exp_below_zero_of::<S, BLOCK>(x);
        let mut largest = S::splat_i32(0);
        for i in 0..BLOCK {
            added[i % 2] = S::add(added[i % 2], x[i]);
            x[i] = S::mul(x[i], S::load(scales.add(i * LANES)));
            S::store(scores.add(i * LANES), x[i]);
            largest = S::max_magnitude_bits(largest, x[i]);
        }
        largest
    }
}

/// Caps scores and sets those not seen, and the tiles that fill the last block, to minus infinity.
///
/// # Safety
/// The level's instructions; `scores` are a span's.
#[inline(always)]
unsafe fn hide<S: Lanes>(work: &AttentionWork, live: usize, seen: Seen, scores: *mut f32) {
    // SAFETY: the caller's promises.
    unsafe {
        for tile in live..live.next_multiple_of(BLOCK) {
            S::store(scores.add(tile * LANES), S::splat(f32::NEG_INFINITY));
        }
        for tile in 0..live {
            let at = scores.add(tile * LANES);
            let mut score = S::load(at);
            if let Some(cap) = work.softcap {
                score = S::mul(S::splat(cap), tanh::<S>(S::mul(score, S::splat(1.0 / cap))));
            }
            S::store(at, seen.mask::<S>(tile, score, f32::NEG_INFINITY));
        }
    }
}

/// The scales of the values seen, 0 for others. (The scale of a position not seen may be anything.)
struct ValueScales {
    seen: Seen,
    of: [f32; SPAN],
}

impl ValueScales {
    /// # Safety
    /// The level's instructions; the group's tiles are whole.
    #[inline(always)]
    unsafe fn fill<S: Lanes>(&mut self, work: &AttentionWork, group: Group<'_>, seen: Seen) {
        // SAFETY: the caller's promises.
        unsafe {
            for tile in 0..group.live {
                let scale = S::load(group.tiles[tile].add(work.kv.value_scales()).cast());
                S::store(self.of.as_mut_ptr().add(tile * LANES), seen.mask::<S>(tile, scale, 0.0));
            }
        }
        self.seen = seen;
    }
}

/// `output = weights x values` for D times 16 columns from `d` on; 0 for vectors that see nothing.
///
/// # Safety
/// The level's instructions; the tiles are whole; `out` has the group's vectors.
#[inline(always)]
unsafe fn weigh<S: Lanes, const M: usize, const D: usize>(
    work: &AttentionWork,
    group: Group<'_>,
    d: usize,
    weights: &Weights<M>,
    out: Partial,
) {
    let (width, asked) = (work.kv.value_width(), Asked::of(&work.kv));
    // SAFETY: the caller's promises.
    unsafe {
        let mut sums = [[S::splat(0.0); D]; M];
        for block in 0..group.live.div_ceil(BLOCK) {
            let mut dots = [[S::splat_i32(0); D]; M];
            for tile in block * BLOCK..group.live.min((block + 1) * BLOCK) {
                let values = group.tiles[tile].add(work.kv.values() + d * 4);
                for four in 0..LANES / 4 {
                    let mut line = [S::splat_i32(0); D];
                    for i in 0..D {
                        line[i] = S::load_line(values.add(four * width * 4 + i * 64));
                        let asks = asked.with_weights + d / LANES * 4 + four * D + i;
                        if let Some(next) = group.next
                            && asks < asked.lines
                        {
                            S::prefetch(next[tile].add(asks * 64));
                        }
                    }
                    let at = (block * LANES + four * BLOCK + tile % BLOCK) * 4;
                    for m in 0..M {
                        for i in 0..D {
                            dots[m][i] = S::dot_u7(dots[m][i], line[i], weights.bytes[m].as_ptr().add(at));
                        }
                    }
                }
            }
            for m in 0..M {
                for i in 0..D {
                    let unit = S::splat(weights.units[m][block]);
                    sums[m][i] = S::fma(S::to_f32(dots[m][i]), unit, sums[m][i]);
                }
            }
        }
        for m in 0..group.count {
            for i in 0..D {
                S::store(out.output.add((group.first + m) * width + d + i * LANES), sums[m][i]);
            }
        }
    }
}
