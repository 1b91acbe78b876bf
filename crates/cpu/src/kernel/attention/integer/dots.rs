//! The two products of a span: queries with keys, softmax weights with values.

use super::{Asked, BLOCK, COLUMNS, Group, HEADER, STARTS, softmax::Weights};
use crate::{
    kernel::attention::{AttentionWork, Partial, QUERIES, SPAN},
    simd::{LANES, Lanes},
};

/// Scores of M queries with P tiles of keys from `tile` on.
///
/// # Safety
/// The level's instructions; the tiles are whole; the group's queries are there.
#[inline(always)]
pub(super) unsafe fn scores<S: Lanes, const M: usize, const P: usize>(
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

/// `output = weights x values` for D times 16 columns from `d` on; 0 for vectors that see nothing.
///
/// # Safety
/// The level's instructions; the tiles are whole; `out` has the group's vectors.
#[inline(always)]
pub(super) unsafe fn weigh<S: Lanes, const M: usize, const D: usize>(
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
