//! Float weights, and any weights in the f32 reference mode: exact products, summed in f32 column by column.
//!
//! A panel is first expanded to f32 in the thread's scratch memory (which stays in its L2 cache), then multiplied with all
//! rows, each output element in one chain of fused multiply-adds over the columns: 16 multiply-adds an instruction, half of
//! what bf16 does and a quarter of 8 bits. For one row the chain's latency (4 cycles a column) is the bound.

use super::Epilogue;
use crate::{
    activations::TILE_ROWS,
    simd::{LANES, Lanes},
};

/// Multiplies an expanded panel, `[columns][16]`, with `rows` rows of `x`.
///
/// # Safety
/// The level's instructions; `x` holds `ceil(rows / 8)` tiles of `columns`; `out` has `rows` rows, `stride` apart, of 16
/// elements that no other thread touches.
#[inline(always)]
pub(crate) unsafe fn multiply_f32<S: Lanes>(
    panel: *const f32,
    columns: usize,
    x: *const f32,
    rows: usize,
    out: *mut f32,
    stride: usize,
    epilogue: Epilogue,
) {
    let mut row = 0;
    while row < rows {
        let in_tile = row % TILE_ROWS;
        let count = (rows - row).min(TILE_ROWS - in_tile).min(S::TILE);
        // SAFETY: the tile holds these rows; out has them.
        unsafe {
            let x = x.add(row / TILE_ROWS * columns * TILE_ROWS + in_tile);
            let out = out.add(row * stride);
            macro_rules! tile {
                ($m:literal) => {
                    epilogue.write::<S>(&tile_f32::<S, $m>(panel, columns, x)[..count], out, stride)
                };
            }
            match count {
                1 => tile!(1),
                2 => tile!(2),
                3 | 4 if S::TILE >= 4 => tile!(4),
                _ if S::TILE >= 8 => tile!(8),
                _ => unreachable!("a tile holds at most S::TILE rows"),
            }
        }
        row += count;
    }
}

/// # Safety
/// As [`multiply_f32`], for M rows from `x` on.
#[inline(always)]
unsafe fn tile_f32<S: Lanes, const M: usize>(panel: *const f32, columns: usize, x: *const f32) -> [S::F; M] {
    // SAFETY: the caller's promises.
    unsafe {
        let mut sums = [S::splat(0.0); M];
        for column in 0..columns {
            let w = S::load(panel.add(column * LANES));
            let x = x.add(column * TILE_ROWS);
            for (m, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(w, S::splat(*x.add(m)), *sum);
            }
        }
        sums
    }
}

/// Multiplies a bf16 panel, `[columns / 2][16][2]`, with `rows` rows of bf16 `x` by the bf16 dot product: 32 multiply-adds
/// an instruction, one instruction a cycle on Zen 4. 64 bytes of weights per 2 columns: with one row memory decides.
///
/// # Safety
/// The level's instructions, [`Lanes::HAS_BF16_DOT`]; the rest as [`multiply_f32`], with `pairs` pairs of columns.
#[inline(always)]
pub(crate) unsafe fn multiply_bf16<S: Lanes>(
    panel: *const u16,
    pairs: usize,
    x: *const u16,
    rows: usize,
    out: *mut f32,
    stride: usize,
    epilogue: Epilogue,
) {
    let mut row = 0;
    while row < rows {
        let in_tile = row % TILE_ROWS;
        let count = (rows - row).min(TILE_ROWS - in_tile).min(S::TILE);
        // SAFETY: the tile holds these rows; out has them.
        unsafe {
            let x = x.add(row / TILE_ROWS * pairs * 2 * TILE_ROWS + in_tile * 2);
            let out = out.add(row * stride);
            macro_rules! tile {
                ($m:literal) => {
                    epilogue.write::<S>(&tile_bf16::<S, $m>(panel, pairs, x)[..count], out, stride)
                };
            }
            match count {
                1 => tile!(1),
                2 => tile!(2),
                3 | 4 if S::TILE >= 4 => tile!(4),
                _ if S::TILE >= 8 => tile!(8),
                _ => unreachable!("a tile holds at most S::TILE rows"),
            }
        }
        row += count;
    }
}

/// # Safety
/// As [`multiply_bf16`], for M rows from `x` on.
#[inline(always)]
unsafe fn tile_bf16<S: Lanes, const M: usize>(panel: *const u16, pairs: usize, x: *const u16) -> [S::F; M] {
    // SAFETY: the caller's promises.
    unsafe {
        // Even and odd pairs in two chains, so that one row is not bound by the dot's latency.
        let mut even = [S::splat(0.0); M];
        let mut odd = [S::splat(0.0); M];
        for pair in 0..pairs / 2 {
            let at = panel.add(pair * 4 * LANES);
            let (first, second) = (S::load_line(at.cast()), S::load_line(at.add(2 * LANES).cast()));
            let x = x.add(pair * 4 * TILE_ROWS);
            for m in 0..M {
                even[m] = S::dot_bf16(even[m], first, x.add(2 * m));
                odd[m] = S::dot_bf16(odd[m], second, x.add(2 * TILE_ROWS + 2 * m));
            }
        }
        if pairs % 2 == 1 {
            let line = S::load_line(panel.add((pairs - 1) * 2 * LANES).cast());
            for (m, sum) in even.iter_mut().enumerate() {
                *sum = S::dot_bf16(*sum, line, x.add((pairs - 1) * 2 * TILE_ROWS + 2 * m));
            }
        }
        for m in 0..M {
            even[m] = S::add(even[m], odd[m]);
        }
        even
    }
}

/// Expands a bf16 panel, `[columns / 2][16][2]`, to f32.
///
/// # Safety
/// The level's instructions; `out` has room for `pairs * 2 * 16` elements.
#[inline(always)]
pub(crate) unsafe fn expand_bf16<S: Lanes>(panel: *const u16, pairs: usize, out: *mut f32) {
    // SAFETY: the caller's promises.
    unsafe {
        for pair in 0..pairs {
            let line = S::load_line(panel.add(pair * 2 * LANES).cast());
            let high = S::shift_right_and::<0>(line, 0xffff_0000_u32 as i32);
            let low = S::shift_left_and::<16>(line, -1);
            S::store(out.add(pair * 2 * LANES), S::bits_to_f32(low));
            S::store(out.add((pair * 2 + 1) * LANES), S::bits_to_f32(high));
        }
    }
}

/// Expands an f16 panel, `[columns][16]`, to f32.
///
/// # Safety
/// The level's instructions; `out` has room for `columns * 16` elements.
#[inline(always)]
pub(crate) unsafe fn expand_f16<S: Lanes>(panel: *const u16, columns: usize, out: *mut f32) {
    for column in 0..columns {
        // SAFETY: the caller's promises.
        unsafe { S::store(out.add(column * LANES), S::load_f16(panel.add(column * LANES))) };
    }
}
