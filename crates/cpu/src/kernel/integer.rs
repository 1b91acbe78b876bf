//! Quantised weights times 8-bit activations: the kernel that decides the speed of quantised models.
//!
//! One call multiplies a panel (16 output rows) with all rows of the step, a tile of up to 8 rows at a time: a weight is
//! read from memory once per step, unpacked once per tile. Every output element is, whatever the tile,
//! `for each group g: sum = fma(dw[g] * dx[g], dot[g], sum); with minima: sum = fma(m[g], s[g], sum)`, where `dot` is an
//! exact integer; so results do not depend on the batch, and all levels agree bit for bit.
//!
//! Work per panel and 32 columns, for Q5_1: 384 bytes of weights (320 of quants, 64 of scales and minima); per row 8 dot
//! instructions (512 multiply-adds), one multiply and two fused ones on the same pipes: 8 of 11 slots do the work, 8 of 10 where
//! there are no minima. Q4_1 takes 10 as well: [`fixed_point`](super::fixed_point).
//! Ceilings on Zen 4 at 3.65 GHz, one core: one 64-wide dot an instruction and cycle = 234 G multiply-adds/s, times 8/11
//! = 170; measured 163 (Q5_1), 178 without minima (Q4_0, of 187). With one row the memory decides: 30 GB/s on one core and 37 on two. A panel is therefore one unbroken stream, scales between the quants:
//! read as two streams, each starting anew with every panel, the machine's prefetchers gave 12 GB/s of 30.

use super::{Ahead, Epilogue, Tiles, each_tile};
use crate::{
    activations::{QuantBlock, TILE_ROWS},
    packed::{FACTOR_BLOCKS, FACTOR_BYTES, IntegerLayout},
    simd::{LANES, Lanes},
};
use std::sync::atomic::{Ordering, compiler_fence};

/// One panel of an integer-packed matrix.
#[derive(Clone, Copy)]
pub(crate) struct IntegerPanel {
    /// Block after block, as [`packed`](crate::packed) says.
    pub(crate) data: *const u8,
    pub(crate) layout: IntegerLayout,
    /// 32-column blocks.
    pub(crate) blocks: usize,
}

/// Multiplies `panel` with `rows` rows of `x`, giving 16 columns of `out`.
///
/// # Safety
/// The level's instructions; `panel` as described; `x` holds `ceil(rows / 8)` tiles of `panel.blocks` blocks; `out` has `rows`
/// rows, `stride` apart, of 16 elements that no other thread touches.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Lanes>(
    panel: IntegerPanel,
    x: *const QuantBlock,
    rows: usize,
    out: *mut f32,
    stride: usize,
    epilogue: Epilogue,
) {
    let IntegerLayout { bits, group, minima, factored } = panel.layout;
    let ahead = Ahead::of(rows, panel.layout.panel_bytes(panel.blocks * 32));
    macro_rules! layout {
        ($bits:literal, $group:literal, $minima:literal, $factored:literal) => {
            // SAFETY: the caller's promises are passed on.
            unsafe {
                let product = Product::<$bits, $group, $minima, $factored> { panel, x, ahead };
                each_tile::<S>(product, rows, out, stride, epilogue)
            }
        };
    }
    match (bits, group, minima, factored) {
        (4, 32, false, false) => layout!(4, 32, false, false),
        (5, 32, false, false) => layout!(5, 32, false, false),
        (5, 32, true, false) => layout!(5, 32, true, false),
        (8, 32, false, false) => layout!(8, 32, false, false),
        (4, 16, true, true) => layout!(4, 16, true, true),
        (4, 16, false, true) => layout!(4, 16, false, true),
        (4, 32, true, true) => layout!(4, 32, true, true),
        (5, 32, true, true) => layout!(5, 32, true, true),
        (6, 16, false, true) => layout!(6, 16, false, true),
        other => unreachable!("no format is packed as {other:?}"),
    }
}

/// A panel of one layout, and the activations it is multiplied with.
#[derive(Clone, Copy)]
struct Product<const BITS: u32, const GROUP: usize, const MINIMA: bool, const FACTORED: bool> {
    panel: IntegerPanel,
    x: *const QuantBlock,
    ahead: Ahead,
}

impl<S: Lanes, const BITS: u32, const GROUP: usize, const MINIMA: bool, const FACTORED: bool> Tiles<S>
    for Product<BITS, GROUP, MINIMA, FACTORED>
{
    #[inline(always)]
    unsafe fn tile<const M: usize>(self, row: usize) -> [S::F; M] {
        // SAFETY: the caller's promises.
        unsafe {
            let x = self.x.add(row / TILE_ROWS * self.panel.blocks);
            tile::<S, BITS, GROUP, MINIMA, FACTORED, M>(self.panel, x, row, self.ahead)
        }
    }
}

/// # Safety
/// As [`multiply`], for rows `row..row + M`, of the tile at `x`.
#[inline(always)]
unsafe fn tile<
    S: Lanes,
    const BITS: u32,
    const GROUP: usize,
    const MINIMA: bool,
    const FACTORED: bool,
    const M: usize,
>(
    panel: IntegerPanel,
    x: *const QuantBlock,
    row: usize,
    ahead: Ahead,
) -> [S::F; M] {
    let (groups, first) = (32 / GROUP, row % TILE_ROWS);
    // SAFETY: all offsets stay inside the panel and the tile.
    unsafe {
        let mut sums = [S::splat(0.0); M];
        let mut factors = [S::splat(1.0); 2];
        let mut quants = panel.data;
        for block in 0..panel.blocks {
            if FACTORED && block % FACTOR_BLOCKS == 0 {
                factors = [S::load_f16(quants.cast()), S::load_f16(quants.add(FACTOR_BYTES / 2).cast())];
                quants = quants.add(FACTOR_BYTES);
            }
            let x = &*x.add(block);
            let mut scales = quants.add(64 * BITS as usize);
            if ahead.asks(row, M, block) {
                for line in 0..=BITS as usize {
                    S::prefetch(quants.wrapping_add(ahead.bytes + 64 * line));
                }
            }
            for group in 0..groups {
                let zero = |m: usize| match (GROUP, group) {
                    (32, _) => x.zero[first + m],
                    (_, 0) => x.zero_first[first + m],
                    _ => x.zero[first + m] - x.zero_first[first + m],
                };
                let mut dots = [S::splat_i32(0); M];
                for (m, dot) in dots.iter_mut().enumerate() {
                    match BITS {
                        8 => *dot = S::start_i8(zero(m)),
                        // The zero point is 8 with 4 bits, 16 with 5, 32 with 6.
                        _ if !MINIMA => *dot = S::splat_i32(zero(m) << (BITS - 4)),
                        _ => {}
                    }
                }
                if BITS == 8 {
                    for quad in group * GROUP / 4..(group + 1) * GROUP / 4 {
                        let line = S::load_line(quants.add(64 * quad));
                        // Keeps each line's loads with it: else the compiler loads the activations of all lines ahead, runs out of
                        // registers, and half the speed is gone.
                        compiler_fence(Ordering::SeqCst);
                        for (m, dot) in dots.iter_mut().enumerate() {
                            *dot = S::dot_i8(*dot, line, x.q[first + m].as_ptr().add(4 * quad));
                        }
                    }
                } else {
                    // The bits above the fourth of all quads of the group.
                    let above = match BITS {
                        4 => S::splat_i32(0),
                        _ => S::load_line(quants.add(64 * (4 + group))),
                    };
                    for pair in group * GROUP / 8..(group + 1) * GROUP / 8 {
                        let line = S::load_line(quants.add(64 * pair));
                        let mut low = S::shift_right_and::<0>(line, 0x0f0f_0f0f);
                        let mut high = S::shift_right_and::<4>(line, 0x0f0f_0f0f);
                        if BITS > 4 {
                            low = S::or(low, above_fourth::<S, BITS>(above, 2 * pair));
                            high = S::or(high, above_fourth::<S, BITS>(above, 2 * pair + 1));
                        }
                        for (m, dot) in dots.iter_mut().enumerate() {
                            *dot = S::dot_u6(*dot, low, x.q[first + m].as_ptr().add(8 * pair));
                        }
                        if M > 2 {
                            compiler_fence(Ordering::SeqCst);
                        }
                        for (m, dot) in dots.iter_mut().enumerate() {
                            *dot = S::dot_u6(*dot, high, x.q[first + m].as_ptr().add(8 * pair + 4));
                        }
                    }
                }
                // Keeps the scales' loads behind those of the quants. Read ahead of them, a row alone goes through memory back and
                // forth, which the machine's prefetchers do not follow: 14 GB/s instead of 31.
                if M <= 2 {
                    compiler_fence(Ordering::SeqCst);
                }
                let scale = next_scales::<S, FACTORED>(&mut scales, factors[0]);
                for m in 0..M {
                    let both = S::mul(scale, S::splat(x.scale[first + m]));
                    sums[m] = S::fma(both, S::to_f32(dots[m]), sums[m]);
                }
                if MINIMA {
                    let minimum = next_scales::<S, FACTORED>(&mut scales, factors[1]);
                    for (m, sum) in sums.iter_mut().enumerate() {
                        let scaled_sum =
                            if GROUP == 32 { x.sum[first + m] } else { zero(m) as f32 * -0.125 * x.scale[first + m] };
                        *sum = S::fma(minimum, S::splat(scaled_sum), *sum);
                    }
                }
            }
            quants = scales;
        }
        sums
    }
}

/// The bits of quad `quad` above its lowest four, in their places, from the line that holds those of its group.
///
/// # Safety
/// The level's instructions.
#[inline(always)]
unsafe fn above_fourth<S: Lanes, const BITS: u32>(line: S::I, quad: usize) -> S::I {
    const FIFTH: i32 = 0x1010_1010;
    const FIFTH_AND_SIXTH: i32 = 0x3030_3030;
    // SAFETY: the caller's promise.
    unsafe {
        match (BITS, quad) {
            (5, 0) => S::shift_left_and::<4>(line, FIFTH),
            (5, 1) => S::shift_left_and::<3>(line, FIFTH),
            (5, 2) => S::shift_left_and::<2>(line, FIFTH),
            (5, 3) => S::shift_left_and::<1>(line, FIFTH),
            (5, 4) => S::shift_right_and::<0>(line, FIFTH),
            (5, 5) => S::shift_right_and::<1>(line, FIFTH),
            (5, 6) => S::shift_right_and::<2>(line, FIFTH),
            (5, _) => S::shift_right_and::<3>(line, FIFTH),
            (_, 0 | 4) => S::shift_left_and::<4>(line, FIFTH_AND_SIXTH),
            (_, 1 | 5) => S::shift_left_and::<2>(line, FIFTH_AND_SIXTH),
            (_, 2 | 6) => S::shift_right_and::<0>(line, FIFTH_AND_SIXTH),
            _ => S::shift_right_and::<2>(line, FIFTH_AND_SIXTH),
        }
    }
}

/// The 16 scales (or minima) at `from`, which is moved past them.
///
/// # Safety
/// The level's instructions; 16 scales at `from`.
#[inline(always)]
unsafe fn next_scales<S: Lanes, const FACTORED: bool>(from: &mut *const u8, factor: S::F) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        let here = *from;
        if FACTORED {
            *from = here.add(LANES);
            S::mul(factor, S::to_f32(S::load_i8(here.cast())))
        } else {
            *from = here.add(2 * LANES);
            S::load_f16(here.cast())
        }
    }
}

/// [`next_scales`] of either kind.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn next_scales_of<S: Lanes>(from: &mut *const u8, factor: S::F, factored: bool) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        match factored {
            true => next_scales::<S, true>(from, factor),
            false => next_scales::<S, false>(from, factor),
        }
    }
}

/// The lowest four bits of quad `quad` of a block.
///
/// # Safety
/// The level's instructions; a block of them at `quants`.
#[inline(always)]
unsafe fn lowest_four<S: Lanes>(quants: *const u8, quad: usize) -> S::I {
    // SAFETY: the caller's promise.
    unsafe {
        let line = S::load_line(quants.add(quad / 2 * 64));
        match quad % 2 {
            0 => S::shift_right_and::<0>(line, 0x0f0f_0f0f),
            _ => S::shift_right_and::<4>(line, 0x0f0f_0f0f),
        }
    }
}

/// Unpacks `panel` to f32, `[columns][16]`.
///
/// # Safety
/// The level's instructions; `panel` as described; `out` has room for `32 * panel.blocks * 16` elements.
#[inline(always)]
pub(crate) unsafe fn expand<S: Lanes>(panel: IntegerPanel, out: *mut f32) {
    let IntegerLayout { bits, group, minima, factored } = panel.layout;
    let zero = panel.layout.zero_point() as f32;
    let mut quants = panel.data;
    // SAFETY: all offsets stay inside the panel and `out`.
    unsafe {
        let mut factors = [S::splat(1.0); 2];
        for block in 0..panel.blocks {
            if factored && block % FACTOR_BLOCKS == 0 {
                factors = [S::load_f16(quants.cast()), S::load_f16(quants.add(FACTOR_BYTES / 2).cast())];
                quants = quants.add(FACTOR_BYTES);
            }
            let mut scales = quants.add(panel.layout.quant_bytes());
            for first in (0..32).step_by(group) {
                let scale = next_scales_of::<S>(&mut scales, factors[0], factored);
                let minimum =
                    if minima { next_scales_of::<S>(&mut scales, factors[1], factored) } else { S::splat(0.0) };
                for quad in first / 4..(first + group) / 4 {
                    let q = match bits {
                        4 => lowest_four::<S>(quants, quad),
                        5 => {
                            let above = above_fourth::<S, 5>(S::load_line(quants.add(4 * 64)), quad);
                            S::or(lowest_four::<S>(quants, quad), above)
                        }
                        6 => {
                            let above = above_fourth::<S, 6>(S::load_line(quants.add((4 + quad / 4) * 64)), quad);
                            S::or(lowest_four::<S>(quants, quad), above)
                        }
                        _ => S::load_line(quants.add(quad * 64)),
                    };
                    for byte in 0..4 {
                        let q = S::sub(S::to_f32(byte_of_lane::<S>(q, byte)), S::splat(zero));
                        S::store(out.add((block * 32 + quad * 4 + byte) * LANES), S::fma(scale, q, minimum));
                    }
                }
            }
            quants = scales;
        }
    }
}

/// # Safety
/// The level's instructions.
#[inline(always)]
unsafe fn byte_of_lane<S: Lanes>(line: S::I, byte: usize) -> S::I {
    // SAFETY: the caller's promise.
    unsafe {
        match byte {
            0 => S::shift_right_and::<0>(line, 0xff),
            1 => S::shift_right_and::<8>(line, 0xff),
            2 => S::shift_right_and::<16>(line, 0xff),
            _ => S::shift_right_and::<24>(line, 0xff),
        }
    }
}
