//! Causal attention of a few queries over the pages of one KV head, in the manner of FlashAttention (arXiv:2205.14135) and
//! Flash-Decoding: softmax on the fly, long contexts in independent spans that are merged afterwards.
//!
//! **Batch independence:** a query meets the keys in chunks of [`CHUNK`] and spans of [`SPAN`] positions, both aligned to
//! absolute positions. A chunk or span it does not see changes its state by not one bit (`e^0 = 1`, `e^-inf = 0`). So it
//! does not matter which queries share a call, nor whether spans run here one after the other or on several threads.
//!
//! Work per position and KV head, for a group of g query heads of width d: 2 d KV elements read once, 2 g d multiply-adds,
//! 16 an instruction. With f16, g = 3 and d = 64 that is 256 bytes and 24 + 8 (conversion) instructions: on Zen 4 at
//! 3.65 GHz 9 ns of work against 7 ns of memory per core when two share 37 GB/s; it reaches 17 GB/s on one core. Prefill shares a tile's reads among 16
//! positions and is bound by the multiply-adds.

use super::exponential::{exp, tanh};
use crate::{
    kv::{Bf16, F16, F32, KvDtype, KvElement, KvLayout},
    simd::{IOTA, LANES, Lanes},
};
use std::ops::Range;

/// Positions whose scores are made together.
pub(crate) const CHUNK: usize = 64;
/// Positions summed before they are merged into the rest: what one thread takes of a long context.
pub(crate) const SPAN: usize = 256;
/// Query vectors in registers together.
pub(crate) const QUERIES: usize = 6;
const TILES: usize = CHUNK / LANES;
/// Below every score; finite, so that differences of it are.
const NOTHING: f32 = -1.0e30;

/// Some positions' queries for one KV head.
pub(crate) struct AttentionWork {
    /// From [`load_queries`]: per six vectors `[head_dim][6]`.
    pub(crate) queries: *const f32,
    /// Query heads that share the KV head.
    pub(crate) group: usize,
    /// Positions; query vector v is head `v % group` of position `v / group`.
    pub(crate) tokens: usize,
    /// Position of the first.
    pub(crate) first_position: usize,
    /// Positions each sees, itself included; `usize::MAX` for all.
    pub(crate) window: usize,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    pub(crate) kv: KvLayout,
    /// This layer's part of the cache.
    pub(crate) layer: *const u8,
    pub(crate) kv_head: usize,
    /// The sequence's block table.
    pub(crate) blocks: *const u32,
}

impl AttentionWork {
    /// Query vectors.
    pub(crate) fn vectors(&self) -> usize {
        self.tokens * self.group
    }

    /// The spans any of its queries sees.
    pub(crate) fn spans(&self) -> Range<usize> {
        let oldest = (self.first_position + 1).saturating_sub(self.window);
        oldest / SPAN..(self.first_position + self.tokens).div_ceil(SPAN)
    }

    /// The positions of one span, cut off where the queries end.
    pub(crate) fn span(&self, span: usize) -> Range<usize> {
        span * SPAN..((span + 1) * SPAN).min(self.first_position + self.tokens)
    }

    fn position(&self, vector: usize) -> usize {
        self.first_position + vector / self.group
    }
}

/// The state of an unfinished softmax, per query vector.
#[derive(Clone, Copy)]
pub(crate) struct Partial {
    /// The highest score.
    pub(crate) max: *mut f32,
    /// Sum of `e^(score - max)`.
    pub(crate) sum: *mut f32,
    /// The values weighted so, rows of [`KvLayout::value_width`].
    pub(crate) output: *mut f32,
}

impl Partial {
    /// Elements a partial of `vectors` takes.
    pub(crate) fn elements(vectors: usize, value_width: usize) -> usize {
        (vectors * (value_width + 2)).next_multiple_of(LANES)
    }

    /// Lays a partial out in memory of that many elements.
    ///
    /// # Safety
    /// `at` has room for them.
    pub(crate) unsafe fn at(at: *mut f32, vectors: usize, value_width: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { output: at, max: at.add(vectors * value_width), sum: at.add(vectors * (value_width + 1)) } }
    }

    /// Nothing seen yet.
    ///
    /// # Safety
    /// It has room for `vectors`.
    pub(crate) unsafe fn clear(self, vectors: usize, value_width: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            for v in 0..vectors {
                *self.max.add(v) = NOTHING;
                *self.sum.add(v) = 0.0;
            }
            self.output.write_bytes(0, vectors * value_width);
        }
    }
}

/// Elements [`load_queries`] writes for so many vectors.
pub(crate) fn query_elements(vectors: usize, head_dim: usize) -> usize {
    vectors.div_ceil(QUERIES) * QUERIES * head_dim
}

/// Interleaves queries for the kernel: rows `stride` apart, the group's heads side by side in each.
///
/// # Safety
/// `rows` has `tokens` such rows; `to` has room for [`query_elements`].
pub(crate) unsafe fn load_queries(
    rows: *const f32,
    stride: usize,
    tokens: usize,
    group: usize,
    head_dim: usize,
    to: *mut f32,
) {
    for v in 0..tokens * group {
        // SAFETY: the caller's promises.
        unsafe {
            let from = rows.add(v / group * stride + v % group * head_dim);
            let to = to.add(v / QUERIES * QUERIES * head_dim + v % QUERIES);
            for d in 0..head_dim {
                *to.add(d * QUERIES) = *from.add(d);
            }
        }
    }
}

/// Attention over the positions `span` alone, into `out`.
///
/// # Safety
/// The level's instructions; `work`'s pointers are valid, all its positions up to `span.end` stand in the cache; `span` is one of
/// [`AttentionWork::span`]; `out` has room for the vectors.
#[inline(always)]
pub(crate) unsafe fn attend<S: Lanes>(work: &AttentionWork, span: Range<usize>, out: Partial) {
    // SAFETY: the caller's promises.
    unsafe {
        match work.kv.dtype {
            KvDtype::F32 => attend_as::<S, F32>(work, span, out),
            KvDtype::F16 => attend_as::<S, F16>(work, span, out),
            KvDtype::Bf16 => attend_as::<S, Bf16>(work, span, out),
        }
    }
}

/// # Safety
/// As [`attend`].
#[inline(always)]
unsafe fn attend_as<S: Lanes, E: KvElement>(work: &AttentionWork, span: Range<usize>, out: Partial) {
    let vectors = work.vectors();
    let (head_dim, width) = (work.kv.head_dim, work.kv.value_width());
    // SAFETY: the caller's promises; all positions below span.end have a block in the table.
    unsafe {
        out.clear(vectors, width);
        let mut ahead = tiles_at(work, span.start, span.end);
        for chunk in span.clone().step_by(CHUNK) {
            let tiles = ahead;
            // The next chunk is asked for while this one is worked on, unless many queries share it: blocks stand anywhere in
            // memory, where the machine does not guess.
            let more = chunk + CHUNK < span.end;
            if more {
                ahead = tiles_at(work, chunk + CHUNK, span.end);
            }
            let next = (more && vectors <= QUERIES).then_some(&ahead);
            for first in (0..vectors).step_by(QUERIES) {
                let count = (vectors - first).min(QUERIES);
                let newest = work.position(first + count - 1);
                let oldest = (work.position(first) + 1).saturating_sub(work.window);
                if chunk > newest || chunk + CHUNK <= oldest {
                    continue;
                }
                let chunk = Chunk {
                    position: chunk,
                    seen: (newest + 1 - chunk).min(CHUNK),
                    first,
                    queries: work.queries.add(first * head_dim),
                };
                match count {
                    1 => attend_chunk::<S, E, 1>(work, chunk, count, &tiles, next, out),
                    2 => attend_chunk::<S, E, 2>(work, chunk, count, &tiles, next, out),
                    3 => attend_chunk::<S, E, 3>(work, chunk, count, &tiles, next, out),
                    4 => attend_chunk::<S, E, 4>(work, chunk, count, &tiles, next, out),
                    _ => attend_chunk::<S, E, 6>(work, chunk, count, &tiles, next, out),
                }
            }
        }
    }
}

/// Where the keys and values of a chunk stand.
#[derive(Clone, Copy)]
struct Tiles<T> {
    keys: [*const T; TILES],
    values: [*const T; TILES],
}

/// # Safety
/// All positions below `end` have a block in the work's table; `chunk` is one of them.
#[inline(always)]
unsafe fn tiles_at<T>(work: &AttentionWork, chunk: usize, end: usize) -> Tiles<T> {
    let layer = work.layer.cast::<T>();
    let mut tiles = Tiles { keys: [layer; TILES], values: [layer; TILES] };
    for tile in 0..TILES {
        let position = chunk + tile * LANES;
        // A tile past the end is masked whole; any memory does.
        let position = if position < end { position } else { chunk };
        let in_block = position % work.kv.block_size;
        // SAFETY: the caller's promise.
        unsafe {
            let block = *work.blocks.add(position / work.kv.block_size) as usize;
            tiles.keys[tile] = layer.add(work.kv.key_offset(block, work.kv_head, in_block));
            tiles.values[tile] = layer.add(work.kv.value_offset(block, work.kv_head, in_block));
        }
    }
    tiles
}

/// Six query vectors or fewer meet 64 positions.
#[derive(Clone, Copy)]
struct Chunk {
    /// The first of the 64.
    position: usize,
    /// How many of them any of the queries may see.
    seen: usize,
    /// The first query vector.
    first: usize,
    /// `[head_dim][6]`
    queries: *const f32,
}

/// # Safety
/// As [`attend`]; `count <= M` vectors exist from `chunk.first` on, and scores of six can be made.
#[inline(always)]
unsafe fn attend_chunk<S: Lanes, E: KvElement, const M: usize>(
    work: &AttentionWork,
    chunk: Chunk,
    count: usize,
    tiles: &Tiles<E::Stored>,
    next: Option<&Tiles<E::Stored>>,
    out: Partial,
) {
    let mut weights = [[0.0f32; CHUNK]; M];
    let mut corrections = [0.0f32; M];
    // SAFETY: the caller's promises.
    unsafe {
        if S::TILE >= 8 {
            let next = next.map(|next| next.keys);
            scores::<S, E, M, TILES>(work.kv.head_dim, chunk.queries, tiles.keys, next, &mut weights, 0);
        } else {
            for tile in 0..chunk.seen.div_ceil(LANES) {
                let (keys, next) = ([tiles.keys[tile]], next.map(|next| [next.keys[tile]]));
                scores::<S, E, M, 1>(work.kv.head_dim, chunk.queries, keys, next, &mut weights, tile);
            }
        }
        for m in 0..count {
            let vector = chunk.first + m;
            corrections[m] = soften::<S>(
                work,
                chunk.position,
                work.position(vector),
                &mut weights[m],
                &mut *out.max.add(vector),
                &mut *out.sum.add(vector),
            );
        }
        let width = work.kv.value_width();
        let output = out.output.add(chunk.first * width);
        let next = next.map(|next| next.values);
        let mut d = 0;
        while d < width {
            if S::TILE >= 8 && d + 4 * LANES <= width {
                weigh::<S, E, M, 4>(width, d, chunk.seen, tiles.values, next, &weights, &corrections, count, output);
                d += 4 * LANES;
            } else {
                weigh::<S, E, M, 1>(width, d, chunk.seen, tiles.values, next, &weights, &corrections, count, output);
                d += LANES;
            }
        }
    }
}

/// Scores of M queries with P tiles of 16 keys, written to the tiles from `tile` on.
///
/// # Safety
/// The level's instructions; the keys' tiles are whole; `queries` is `[head_dim][6]`.
#[inline(always)]
unsafe fn scores<S: Lanes, E: KvElement, const M: usize, const P: usize>(
    head_dim: usize,
    queries: *const f32,
    keys: [*const E::Stored; P],
    next: Option<[*const E::Stored; P]>,
    scores: &mut [[f32; CHUNK]; M],
    tile: usize,
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut sums = [[S::splat(0.0); P]; M];
        for d in 0..head_dim {
            if let Some(next) = next
                && (d * LANES * size_of::<E::Stored>()).is_multiple_of(64)
            {
                for p in 0..P {
                    S::prefetch(next[p].add(d * LANES).cast());
                }
            }
            let mut key = [S::splat(0.0); P];
            for p in 0..P {
                key[p] = E::load::<S>(keys[p].add(d * LANES));
            }
            for m in 0..M {
                let q = S::splat(*queries.add(d * QUERIES + m));
                for p in 0..P {
                    sums[m][p] = S::fma(key[p], q, sums[m][p]);
                }
            }
        }
        for m in 0..M {
            for p in 0..P {
                S::store(scores[m].as_mut_ptr().add((tile + p) * LANES), sums[m][p]);
            }
        }
    }
}

/// Turns one query's scores of a chunk into weights `e^(score - max)`; returns what the earlier output is to be scaled by.
///
/// # Safety
/// The level's instructions.
#[inline(always)]
unsafe fn soften<S: Lanes>(
    work: &AttentionWork,
    chunk: usize,
    position: usize,
    scores: &mut [f32; CHUNK],
    max: &mut f32,
    sum: &mut f32,
) -> f32 {
    // SAFETY: the level's instructions; 64 scores.
    unsafe {
        let mut x = [S::splat(0.0); TILES];
        for tile in 0..TILES {
            x[tile] = S::mul(S::load(scores.as_ptr().add(tile * LANES)), S::splat(work.scale));
        }
        if let Some(cap) = work.softcap {
            for x in &mut x {
                *x = S::mul(S::splat(cap), tanh::<S>(S::mul(*x, S::splat(1.0 / cap))));
            }
        }
        let oldest = (position + 1).saturating_sub(work.window);
        if position + 1 < chunk + CHUNK || oldest > chunk {
            let hidden = S::splat(f32::NEG_INFINITY);
            let lane = S::load(IOTA.as_ptr());
            for (tile, x) in x.iter_mut().enumerate() {
                let first = (chunk + tile * LANES) as f32;
                *x = S::select_less(lane, S::splat((position + 1) as f32 - first), *x, hidden);
                *x = S::select_less(lane, S::splat(oldest as f32 - first), hidden, *x);
            }
        }
        let highest = S::reduce_max(S::max(S::max(x[0], x[1]), S::max(x[2], x[3])));
        let new_max = if highest > *max { highest } else { *max };
        let shift = S::splat(new_max);
        for tile in 0..TILES {
            x[tile] = exp::<S>(S::sub(x[tile], shift));
            S::store(scores.as_mut_ptr().add(tile * LANES), x[tile]);
        }
        let added = S::reduce_add(S::add(S::add(x[0], x[1]), S::add(x[2], x[3])));
        let correction = if new_max == *max { 1.0 } else { exp_one::<S>(*max - new_max) };
        *max = new_max;
        *sum = *sum * correction + added;
        correction
    }
}

/// # Safety
/// The level's instructions.
#[inline(always)]
unsafe fn exp_one<S: Lanes>(x: f32) -> f32 {
    // SAFETY: the level's instructions; all lanes are equal, so their maximum is each.
    unsafe { S::reduce_max(exp::<S>(S::splat(x))) }
}

/// `output = output * correction + weights x values` for D times 16 columns from `d` on.
///
/// # Safety
/// The level's instructions; the values of the `seen` first positions; `count` rows of `output`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined everywhere; a struct would name them once more")]
unsafe fn weigh<S: Lanes, E: KvElement, const M: usize, const D: usize>(
    width: usize,
    d: usize,
    seen: usize,
    values: [*const E::Stored; TILES],
    next: Option<[*const E::Stored; TILES]>,
    weights: &[[f32; CHUNK]; M],
    corrections: &[f32; M],
    count: usize,
    output: *mut f32,
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut sums = [[S::splat(0.0); D]; M];
        for m in 0..count {
            for i in 0..D {
                let at = output.add(m * width + d + i * LANES);
                sums[m][i] = S::mul(S::load(at), S::splat(corrections[m]));
            }
        }
        for tile in 0..seen.div_ceil(LANES) {
            let mut at = values[tile].add(d);
            let weights: [*const f32; M] = std::array::from_fn(|m| weights[m].as_ptr().add(tile * LANES));
            for position in 0..(seen - tile * LANES).min(LANES) {
                if let Some(next) = next {
                    let row = next[tile].add(position * width + d).cast::<u8>();
                    for line in (0..D * LANES * size_of::<E::Stored>()).step_by(64) {
                        S::prefetch(row.add(line));
                    }
                }
                let mut value = [S::splat(0.0); D];
                for i in 0..D {
                    value[i] = E::load::<S>(at.add(i * LANES));
                }
                for m in 0..M {
                    let weight = S::splat(*weights[m].add(position));
                    for i in 0..D {
                        sums[m][i] = S::fma(weight, value[i], sums[m][i]);
                    }
                }
                at = at.add(width);
            }
        }
        for m in 0..count {
            for i in 0..D {
                S::store(output.add(m * width + d + i * LANES), sums[m][i]);
            }
        }
    }
}

/// Merges a later span's partial into `into`.
///
/// # Safety
/// The level's instructions; both have the work's vectors.
#[inline(always)]
pub(crate) unsafe fn merge<S: Lanes>(work: &AttentionWork, into: Partial, from: Partial) {
    let width = work.kv.value_width();
    for v in 0..work.vectors() {
        // SAFETY: the caller's promises.
        unsafe {
            let (old, new) = (*into.max.add(v), *from.max.add(v));
            let max = if new > old { new } else { old };
            let (keep, add) = (exp_one::<S>(old - max), exp_one::<S>(new - max));
            *into.max.add(v) = max;
            *into.sum.add(v) = *into.sum.add(v) * keep + *from.sum.add(v) * add;
            for d in (0..width).step_by(LANES) {
                let (at, added) = (into.output.add(v * width + d), S::load(from.output.add(v * width + d)));
                S::store(at, S::fma(S::load(at), S::splat(keep), S::mul(added, S::splat(add))));
            }
        }
    }
}

/// Divides by the sums and writes rows `stride` apart, the group's heads side by side in each.
///
/// # Safety
/// The level's instructions; `total` has the work's vectors; `out` has room.
#[inline(always)]
pub(crate) unsafe fn finish<S: Lanes>(work: &AttentionWork, total: Partial, out: *mut f32, stride: usize) {
    let (head_dim, width) = (work.kv.head_dim, work.kv.value_width());
    for v in 0..work.vectors() {
        // SAFETY: the caller's promises; only whole 16s are stored as such.
        unsafe {
            let to = out.add(v / work.group * stride + v % work.group * head_dim);
            let from = total.output.add(v * width);
            let inverse = 1.0 / *total.sum.add(v);
            let whole = head_dim / LANES * LANES;
            for d in (0..whole).step_by(LANES) {
                S::store(to.add(d), S::mul(S::load(from.add(d)), S::splat(inverse)));
            }
            for d in whole..head_dim {
                *to.add(d) = *from.add(d) * inverse;
            }
        }
    }
}
