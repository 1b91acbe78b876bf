//! Attention over keys and values kept as floats.
//!
//! Work per position and KV head, for a group of g query heads of width d: 2 d KV elements read once, 2 g d multiply-adds,
//! 16 an instruction. With f16, g = 3 and d = 64 that is 256 bytes and 24 + 8 (conversion) instructions: on Zen 4 at
//! 3.65 GHz 9 ns of work against 7 ns of memory per core when two share 37 GB/s; it reaches 17 GB/s on one core. Prefill shares a tile's reads among 16
//! positions and is bound by the multiply-adds.

use super::{AttentionWork, NewKeyValue, Partial, QUERIES};
use crate::{
    kernel::exponential::{exp_below_zero, tanh},
    kv::{KvElement, KvLayout},
    simd::{IOTA, LANES, Lanes},
};
use std::ops::Range;

/// Positions whose scores are made together: so many that the softmax's chains of dependent steps (a maximum over lanes, its
/// exponential, the output's scaling) are a small part, so few that the scores of six queries stay in the L1 cache.
const CHUNK: usize = 128;
const TILES: usize = CHUNK / LANES;

/// # Safety
/// As [`store`](super::store).
#[inline(always)]
pub(super) unsafe fn store<E: KvElement>(kv: &KvLayout, layer: *mut u8, new: NewKeyValue) {
    let NewKeyValue { block, in_block, head, key, value } = new;
    // SAFETY: the caller's promises; offsets stay inside the block.
    unsafe {
        let layer = layer.cast::<E::Stored>();
        let keys = layer.add(kv.key_offset(block, head, in_block) + in_block % LANES);
        let values = layer.add(kv.value_offset(block, head, in_block));
        for d in 0..kv.head_dim {
            *keys.add(d * LANES) = E::from_f32(*key.add(d));
            *values.add(d) = E::from_f32(*value.add(d));
        }
    }
}

/// # Safety
/// As [`attend`](super::attend).
#[inline(always)]
pub(super) unsafe fn attend<S: Lanes, E: KvElement>(work: &AttentionWork, span: Range<usize>, out: Partial) {
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
                let oldest = work.oldest(first);
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
    // A tile past the end is masked whole; any memory does.
    let mut tiles = Tiles { keys: [layer; TILES], values: [layer; TILES] };
    let (mut index, mut in_block) = (chunk / work.kv.block_size, chunk % work.kv.block_size);
    for tile in 0..(end - chunk).min(CHUNK).div_ceil(LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let block = *work.blocks.add(index) as usize;
            tiles.keys[tile] = layer.add(work.kv.key_offset(block, work.kv_head, in_block));
            tiles.values[tile] = layer.add(work.kv.value_offset(block, work.kv_head, in_block));
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
struct Chunk {
    /// The first of them.
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
    // SAFETY: the caller's promises.
    unsafe {
        let live = chunk.seen.div_ceil(LANES);
        let mut tile = 0;
        while tile < live {
            if S::TILE >= 8 {
                let keys = four(&tiles.keys, tile);
                let next = next.map(|next| four(&next.keys, tile));
                scores::<S, E, M, 4>(work.kv.head_dim, chunk.queries, keys, next, &mut weights, tile);
                tile += 4;
            } else {
                let (keys, next) = ([tiles.keys[tile]], next.map(|next| [next.keys[tile]]));
                scores::<S, E, M, 1>(work.kv.head_dim, chunk.queries, keys, next, &mut weights, tile);
                tile += 1;
            }
        }
        let corrections = soften::<S, M>(work, chunk.position, chunk.first, count, live, &mut weights, out);
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

#[inline(always)]
fn four<T>(tiles: &[*const T; TILES], first: usize) -> [*const T; 4] {
    [tiles[first], tiles[first + 1], tiles[first + 2], tiles[first + 3]]
}

/// Turns the scores of up to M queries with a chunk of positions from `chunk` on into weights `e^(score - max)`, and finds what
/// the earlier output of each is to be scaled by. A query that sees nothing of the chunk keeps its state to the bit.
///
/// One loop after the other over the queries, so that the long chains of one (a maximum, its exponentials, their sum) run beside
/// those of the others. Tiles from `live` on, which none of them sees, are left out: their weights would add zeros.
///
/// # Safety
/// The level's instructions; `count <= M` vectors exist from `first` on, and `out` has them.
#[inline(always)]
unsafe fn soften<S: Lanes, const M: usize>(
    work: &AttentionWork,
    chunk: usize,
    first: usize,
    count: usize,
    live: usize,
    scores: &mut [[f32; CHUNK]; M],
    out: Partial,
) -> [f32; LANES] {
    let mut differences = [0.0f32; LANES];
    // SAFETY: the caller's promises; M is at most QUERIES.
    unsafe {
        for m in 0..count {
            let Some(seen) = Seen::of(work, chunk, first + m) else { continue };
            let at = scores[m].as_mut_ptr();
            let mut highest = S::splat(f32::NEG_INFINITY);
            for tile in 0..live {
                let mut x = S::mul(S::load(at.add(tile * LANES)), S::splat(work.scale));
                if let Some(cap) = work.softcap {
                    x = S::mul(S::splat(cap), tanh::<S>(S::mul(x, S::splat(1.0 / cap))));
                }
                if !seen.all {
                    x = seen.mask::<S>(tile, x, f32::NEG_INFINITY);
                }
                S::store(at.add(tile * LANES), x);
                highest = S::max(highest, x);
            }
            let highest = S::reduce_max(highest);
            let max = out.max.add(first + m);
            if highest > *max {
                differences[m] = *max - highest;
                *max = highest;
            }
        }
        let corrections = exp_below_zero::<S>(S::load(differences.as_ptr()));
        S::store(differences.as_mut_ptr(), corrections);
        for m in 0..count {
            if Seen::of(work, chunk, first + m).is_none() {
                scores[m] = [0.0; CHUNK];
                continue;
            }
            let at = scores[m].as_mut_ptr();
            let max = S::splat(*out.max.add(first + m));
            let mut added = S::splat(0.0);
            for tile in 0..live {
                let x = exp_below_zero::<S>(S::sub(S::load(at.add(tile * LANES)), max));
                S::store(at.add(tile * LANES), x);
                added = S::add(added, x);
            }
            let added = S::reduce_add(added);
            let sum = out.sum.add(first + m);
            *sum = *sum * differences[m] + added;
        }
    }
    differences
}

/// What one query sees of a chunk.
struct Seen {
    /// All of it.
    all: bool,
    /// The lanes from here on,
    from: f32,
    /// and before here.
    to: f32,
}

impl Seen {
    /// `None`: nothing.
    #[inline(always)]
    fn of(work: &AttentionWork, chunk: usize, vector: usize) -> Option<Self> {
        let (position, oldest) = (work.position(vector), work.oldest(vector));
        if chunk > position || chunk + CHUNK <= oldest {
            return None;
        }
        let all = position + 1 >= chunk + CHUNK && oldest <= chunk;
        Some(Self { all, from: oldest as f32 - chunk as f32, to: (position + 1 - chunk) as f32 })
    }

    /// `x` where lanes of a tile are seen, `hidden` elsewhere.
    ///
    /// # Safety
    /// The level's instructions.
    #[inline(always)]
    unsafe fn mask<S: Lanes>(&self, tile: usize, x: S::F, hidden: f32) -> S::F {
        let first = (tile * LANES) as f32;
        // SAFETY: the caller's promise.
        unsafe {
            let (lane, hidden) = (S::load(IOTA.as_ptr()), S::splat(hidden));
            let x = S::select_less(lane, S::splat(self.to - first), x, hidden);
            S::select_less(lane, S::splat(self.from - first), hidden, x)
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
    corrections: &[f32; LANES],
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
                    let weight = S::splat(*weights[m].as_ptr().add(tile * LANES + position));
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
