//! Attention over keys and values kept as bytes: integer dots, 64 multiply-adds an instruction.
//!
//! A key is `scale * q` with 8 bits a number and one scale a head and position, a value likewise. The other factor of each
//! product loses next to nothing: queries and softmax weights enter as two bytes, high and low, so that what is lost is what
//! the cache lost. (One byte of a weight would be too few: where one position takes most of the softmax, as the first often
//! does, all others would round to nothing.) Weights are scaled by the largest among the positions of a chunk, after each
//! was multiplied with its value's scale; so the sum over the chunk is one exact integer a column.
//!
//! Work per position and KV head, for a group of g query heads of width d: 2 d + 8 bytes read once, 4 g d multiply-adds (two
//! limbs). With g = 3 and d = 64 that is 136 bytes and 12 dots, about as many instructions again for the softmax: 7 ns of
//! work on Zen 4 against 5 ns of memory when one core has 28 GB/s, 7 ns when two share 37.

use super::{AttentionWork, CHUNK, Partial, QUERIES, QueryRows, Seen, TILES, soften};
use crate::{
    kv::KvLayout,
    simd::{LANES, Lanes},
};
use std::ops::Range;

/// Bytes before the quantised queries of six vectors: their scales, then the dots' starts for high and for low bytes.
const HEADER: usize = 128;
const HIGH_STARTS: usize = 8;
const LOW_STARTS: usize = 16;
/// Bytes four columns of six vectors take: for each vector four high bytes, then four low ones.
const QUAD: usize = QUERIES * 8;

/// Bytes six vectors take.
pub(super) fn group_bytes(head_dim: usize) -> usize {
    (HEADER + head_dim.div_ceil(4) * QUAD).next_multiple_of(64)
}

/// Bytes as f32: what a low byte counts of a high one.
const LOW: f32 = 1.0 / 128.0;

/// Rounds sixteen values of magnitude up to 127 to `high + low / 128`; returns the sums of both.
///
/// # Safety
/// The level's instructions; 16 bytes at both.
#[inline(always)]
unsafe fn quantize_twice<S: Lanes>(x: S::F, high: *mut i8, low: *mut i8) -> (i32, i32) {
    // SAFETY: the caller's promises; what rounding leaves is at most a half, so low bytes are at most 64.
    unsafe {
        let whole = S::round(x);
        let rest = S::mul(S::sub(x, whole), S::splat(1.0 / LOW));
        (S::quantize(whole, high), S::quantize(rest, low))
    }
}

/// A dot of two-byte numbers from those of their bytes.
///
/// # Safety
/// The level's instructions.
#[inline(always)]
unsafe fn join<S: Lanes>(high: S::I, low: S::I) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { S::fma(S::to_f32(low), S::splat(LOW), S::to_f32(high)) }
}

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

/// Quantises queries: per six vectors a header, then quads of columns.
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
            let (header, quads) = (group.cast::<f32>().add(v % QUERIES), group.add(HEADER + v % QUERIES * 8));
            let (scale, inverse) = scales(largest_magnitude::<S>(from, head_dim));
            let (mut high_sum, mut low_sum) = (0, 0);
            for at in (0..head_dim).step_by(LANES) {
                let (mut high, mut low) = ([0i8; LANES], [0i8; LANES]);
                let x = S::mul(load_padded::<S>(from, at, head_dim), S::splat(inverse));
                let (h, l) = quantize_twice::<S>(x, high.as_mut_ptr(), low.as_mut_ptr());
                (high_sum, low_sum) = (high_sum + h, low_sum + l);
                for quad in 0..(head_dim - at).div_ceil(4).min(LANES / 4) {
                    let to = quads.add((at / 4 + quad) * QUAD);
                    to.cast::<u32>().write_unaligned(high.as_ptr().add(quad * 4).cast::<u32>().read_unaligned());
                    to.add(4).cast::<u32>().write_unaligned(low.as_ptr().add(quad * 4).cast::<u32>().read_unaligned());
                }
            }
            *header = scale;
            *header.add(HIGH_STARTS).cast::<i32>() = -8 * high_sum;
            *header.add(LOW_STARTS).cast::<i32>() = -8 * low_sum;
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
        out.clear(vectors, work.kv.value_width());
        // What follows is asked for beyond the span too: its reader is most often this thread.
        let end = work.first_position + work.tokens;
        let mut ahead = tiles_at(work, span.start, end);
        for chunk in span.step_by(CHUNK) {
            let tiles = ahead;
            let more = chunk + CHUNK < end;
            if more {
                ahead = tiles_at(work, chunk + CHUNK, end);
            }
            let next = (more && vectors <= QUERIES).then_some(&ahead);
            for first in (0..vectors).step_by(QUERIES) {
                let count = (vectors - first).min(QUERIES);
                if chunk > work.position(first + count - 1) || chunk + CHUNK <= work.oldest(first) {
                    continue;
                }
                let queries = work.queries.cast::<u8>().add(first / QUERIES * group_bytes(work.kv.head_dim));
                let live = (work.position(first + count - 1) + 1 - chunk).min(CHUNK).div_ceil(LANES);
                let chunk = Chunk { position: chunk, first, count, live, queries, tiles: &tiles, next };
                match (count, S::TILE >= 8) {
                    (1, true) => attend_chunk::<S, 1, 4, 4>(work, chunk, out),
                    (2, true) => attend_chunk::<S, 2, 4, 4>(work, chunk, out),
                    (3, true) => attend_chunk::<S, 3, 4, 4>(work, chunk, out),
                    (4, true) => attend_chunk::<S, 4, 2, 2>(work, chunk, out),
                    (_, true) => attend_chunk::<S, 6, 2, 2>(work, chunk, out),
                    (1, false) => attend_chunk::<S, 1, 1, 1>(work, chunk, out),
                    (2, false) => attend_chunk::<S, 2, 1, 1>(work, chunk, out),
                    (3, false) => attend_chunk::<S, 3, 1, 1>(work, chunk, out),
                    (4, false) => attend_chunk::<S, 4, 1, 1>(work, chunk, out),
                    (_, false) => attend_chunk::<S, 6, 1, 1>(work, chunk, out),
                }
            }
        }
    }
}

/// Where the tiles of a chunk stand.
///
/// # Safety
/// All positions below `end` have a block in the work's table; `chunk` is one of them.
#[inline(always)]
unsafe fn tiles_at(work: &AttentionWork, chunk: usize, end: usize) -> [*const u8; TILES] {
    // A tile past the end is masked whole; any memory does.
    let mut tiles = [work.layer; TILES];
    let (mut index, mut in_block) = (chunk / work.kv.block_size, chunk % work.kv.block_size);
    for tile in &mut tiles[..(end - chunk).min(CHUNK).div_ceil(LANES)] {
        // SAFETY: the caller's promise.
        unsafe {
            let block = *work.blocks.add(index) as usize;
            *tile = work.layer.add(work.kv.tile_offset(block, work.kv_head, in_block));
        }
        in_block += LANES;
        if in_block == work.kv.block_size {
            (index, in_block) = (index + 1, 0);
        }
    }
    tiles
}

/// Six query vectors or fewer meet a chunk of positions.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    /// The first of them.
    position: usize,
    /// The first query vector.
    first: usize,
    /// Vectors.
    count: usize,
    /// Tiles from the first to the last that any of the vectors sees.
    live: usize,
    /// The group's, from [`load_queries`].
    queries: *const u8,
    tiles: &'a [*const u8; TILES],
    /// The tiles that follow, to be asked for meanwhile.
    next: Option<&'a [*const u8; TILES]>,
}

/// Softmax weights of a chunk in two bytes each.
struct Weights<const M: usize> {
    high: [[u8; CHUNK]; M],
    low: [[u8; CHUNK]; M],
    /// What a high byte counts.
    scales: [f32; LANES],
    /// What the earlier output is to be multiplied with.
    corrections: [f32; LANES],
}

/// P tiles of keys, D times 16 columns of values at a time.
///
/// # Safety
/// As [`attend`]; `chunk.count <= M`.
#[inline(always)]
unsafe fn attend_chunk<S: Lanes, const M: usize, const P: usize, const D: usize>(
    work: &AttentionWork,
    chunk: Chunk<'_>,
    out: Partial,
) {
    let mut scored = [[0.0f32; CHUNK]; M];
    let mut weights =
        Weights { high: [[0; CHUNK]; M], low: [[0; CHUNK]; M], scales: [0.0; LANES], corrections: [1.0; LANES] };
    // SAFETY: the caller's promises.
    unsafe {
        for tile in (0..chunk.live).step_by(P) {
            scores::<S, M, P>(&work.kv, chunk, &mut scored, tile);
        }
        weights.corrections =
            soften::<S, M>(work, chunk.position, chunk.first, chunk.count, chunk.live, &mut scored, out);
        quantize_weights::<S, M>(work, chunk, &mut scored, &mut weights);
        let width = work.kv.value_width();
        let mut d = 0;
        while d < width {
            if d + D * LANES <= width {
                weigh::<S, M, D>(work, chunk, d, &weights, out);
                d += D * LANES;
            } else {
                weigh::<S, M, 1>(work, chunk, d, &weights, out);
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
    kv: &KvLayout,
    chunk: Chunk<'_>,
    scores: &mut [[f32; CHUNK]; M],
    tile: usize,
) {
    // SAFETY: the caller's promises.
    unsafe {
        let header = chunk.queries.cast::<f32>();
        let starts = header.cast::<i32>();
        let mut high = [[S::splat_i32(0); P]; M];
        let mut low = [[S::splat_i32(0); P]; M];
        for m in 0..M {
            high[m] = [S::start_i8(*starts.add(HIGH_STARTS + m)); P];
            low[m] = [S::start_i8(*starts.add(LOW_STARTS + m)); P];
        }
        let queries = chunk.queries.add(HEADER).cast::<i8>();
        for quad in 0..kv.head_dim.div_ceil(4) {
            let mut line = [S::splat_i32(0); P];
            for p in 0..P {
                line[p] = S::load_line(chunk.tiles[tile + p].add(quad * 64));
                if let Some(next) = chunk.next {
                    S::prefetch(next[tile + p].add(quad * 64));
                }
            }
            for m in 0..M {
                let x = queries.add(quad * QUAD + m * 8);
                for p in 0..P {
                    high[m][p] = S::dot_i8(high[m][p], line[p], x);
                }
                for p in 0..P {
                    low[m][p] = S::dot_i8(low[m][p], line[p], x.add(4));
                }
            }
        }
        for p in 0..P {
            let at = chunk.tiles[tile + p].add(kv.key_scales());
            let scale = S::load(at.cast());
            if let Some(next) = chunk.next {
                S::prefetch(next[tile + p].add(kv.key_scales()));
                S::prefetch(next[tile + p].add(kv.value_scales()));
            }
            for m in 0..M {
                let both = S::mul(scale, S::splat(*header.add(m)));
                let score = S::mul(join::<S>(high[m][p], low[m][p]), both);
                S::store(scores[m].as_mut_ptr().add((tile + p) * LANES), score);
            }
        }
    }
}

/// Multiplies weights with the scales of their values and rounds them to two bytes.
///
/// # Safety
/// The level's instructions; the tiles are whole; `softened` are the weights of the chunk's vectors.
#[inline(always)]
unsafe fn quantize_weights<S: Lanes, const M: usize>(
    work: &AttentionWork,
    chunk: Chunk<'_>,
    softened: &mut [[f32; CHUNK]; M],
    weights: &mut Weights<M>,
) {
    let mut largest = [0.0f32; LANES];
    let mut inverses = [0.0f32; LANES];
    // SAFETY: the caller's promises.
    unsafe {
        for m in 0..chunk.count {
            // What is not seen weighs nothing.
            let Some(seen) = Seen::of(work, chunk.position, chunk.first + m) else { continue };
            let at = softened[m].as_mut_ptr();
            let mut bits = S::splat_i32(0);
            for tile in 0..chunk.live {
                let scale = S::load(chunk.tiles[tile].add(work.kv.value_scales()).cast());
                let mut x = S::mul(S::load(at.add(tile * LANES)), scale);
                if !seen.all {
                    // The scale of a position not seen may be anything.
                    x = seen.mask::<S>(tile, x, 0.0);
                }
                bits = S::max_magnitude_bits(bits, x);
                S::store(at.add(tile * LANES), x);
            }
            largest[m] = f32::from_bits(S::reduce_max_i32(bits) as u32);
        }
        let magnitudes = S::load(largest.as_ptr());
        S::store(weights.scales.as_mut_ptr(), S::mul(magnitudes, S::splat(1.0 / 127.0)));
        let inverse = S::div(S::splat(127.0 / LOW), magnitudes);
        let inverse = S::select_less(S::splat(f32::MIN_POSITIVE), magnitudes, inverse, S::splat(0.0));
        S::store(inverses.as_mut_ptr(), inverse);
        for m in 0..chunk.count {
            if Seen::of(work, chunk.position, chunk.first + m).is_none() {
                continue;
            }
            let (high, low) = (weights.high[m].as_mut_ptr(), weights.low[m].as_mut_ptr());
            for tile in 0..chunk.live {
                let x = S::mul(S::load(softened[m].as_ptr().add(tile * LANES)), S::splat(inverses[m]));
                S::quantize_u14(x, high.add(tile * LANES), low.add(tile * LANES));
            }
        }
    }
}

/// `output = output * correction + weights x values` for D times 16 columns from `d` on.
///
/// # Safety
/// The level's instructions; the tiles are whole; `out` has the chunk's vectors.
#[inline(always)]
unsafe fn weigh<S: Lanes, const M: usize, const D: usize>(
    work: &AttentionWork,
    chunk: Chunk<'_>,
    d: usize,
    weights: &Weights<M>,
    out: Partial,
) {
    let width = work.kv.value_width();
    // SAFETY: the caller's promises.
    unsafe {
        let mut high = [[S::splat_i32(0); D]; M];
        let mut low = [[S::splat_i32(0); D]; M];
        for tile in 0..chunk.live {
            let values = chunk.tiles[tile].add(work.kv.values() + d * 4);
            for four in 0..LANES / 4 {
                let mut line = [S::splat_i32(0); D];
                for i in 0..D {
                    line[i] = S::load_line(values.add(four * width * 4 + i * 64));
                    if let Some(next) = chunk.next {
                        S::prefetch(next[tile].add(work.kv.values() + four * width * 4 + d * 4 + i * 64));
                    }
                }
                let at = tile * LANES + four * 4;
                for m in 0..M {
                    for i in 0..D {
                        high[m][i] = S::dot_u7(high[m][i], line[i], weights.high[m].as_ptr().add(at));
                    }
                    for i in 0..D {
                        low[m][i] = S::dot_u7(low[m][i], line[i], weights.low[m].as_ptr().add(at));
                    }
                }
            }
        }
        for m in 0..chunk.count {
            let (scale, correction) = (S::splat(weights.scales[m]), S::splat(weights.corrections[m]));
            for i in 0..D {
                let at = out.output.add((chunk.first + m) * width + d + i * LANES);
                let earlier = S::mul(S::load(at), correction);
                S::store(at, S::fma(join::<S>(high[m][i], low[m][i]), scale, earlier));
            }
        }
    }
}
