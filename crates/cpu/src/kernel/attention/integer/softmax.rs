//! Scores to softmax weights of 7 bits, a unit for each block of tiles.

use super::{Asked, BLOCK, Group, Seen, TILES};
use crate::{
    kernel::{
        attention::{AttentionWork, NOTHING, Partial, SPAN},
        exponential::{exp_below_zero_of, tanh},
    },
    simd::{LANES, Lanes},
};

/// Weights below are taken for 0: their inverse overflows.
const SMALLEST: f32 = 1.0e-30;

/// Softmax weights of a span.
pub(super) struct Weights<const M: usize> {
    /// As [`Lanes::quantize_u7`] leaves them: for each block of tiles, of their four quads each, the bytes of the first tile, of the
    /// second and so on.
    pub(super) bytes: [[u8; SPAN]; M],
    /// What they count in each block.
    pub(super) units: [[f32; TILES / BLOCK]; M],
}

/// Scores to weights: `e^(score - highest)`, their sum, and their products with the values' scales in 7 bits.
///
/// # Safety
/// The level's instructions; the tiles are whole; `out` has the group's vectors.
#[inline(always)]
pub(super) unsafe fn soften<S: Lanes, const M: usize>(
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
