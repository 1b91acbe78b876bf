//! Quantised weights times 8-bit activations: the kernel that decides the speed of quantised models.
//!
//! One call multiplies a panel (16 output rows) with all rows of the step, a tile of up to 8 rows at a time: a weight is
//! read from memory once per step, unpacked once per tile. Every output element is, whatever the tile,
//! `for each group g: sum = fma(dw[g] * dx[g], dot[g], sum); with minima: sum = fma(m[g], s[g], sum)`, where `dot` is an
//! exact integer; so results do not depend on the batch, and all levels agree bit for bit.
//!
//! Work per panel and 32 columns, for Q4_1: 320 bytes of weights (256 of quants, 64 of scales and minima); per row 8 dot
//! instructions (512 multiply-adds), one multiply and two fused ones on the same pipes: 8 of 11 slots do the work.
//! Ceilings on Zen 4 at 3.65 GHz, one core: one 64-wide dot an instruction and cycle = 234 G multiply-adds/s, times 8/11
//! = 170; measured 155. With one row the memory decides: 30 GB/s on one core and 37 on two, against 28 cycles'
//! work for each 320 bytes (41 GB/s from the L2 cache). A panel is therefore one unbroken stream, scales between the quants:
//! read as two streams, each starting anew with every panel, the machine's prefetchers gave 12 GB/s of 30.

use super::Epilogue;
use crate::{
    activations::{QuantBlock, TILE_ROWS},
    packed::IntegerLayout,
    simd::{LANES, Lanes},
};
use std::sync::atomic::{Ordering, compiler_fence};

/// One panel of an integer-packed matrix.
#[derive(Clone, Copy)]
pub(crate) struct IntegerPanel {
    /// Block after block: lines of quants, then per group 16 scales and, if the layout has them, 16 minima.
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
    let IntegerLayout { bits, group, minima, .. } = panel.layout;
    // SAFETY: the caller's promises are passed on.
    unsafe {
        match (bits, group, minima) {
            (4, 32, false) => multiply_layout::<S, 4, 32, false>(panel, x, rows, out, stride, epilogue),
            (4, 32, true) => multiply_layout::<S, 4, 32, true>(panel, x, rows, out, stride, epilogue),
            (4, 16, false) => multiply_layout::<S, 4, 16, false>(panel, x, rows, out, stride, epilogue),
            (4, 16, true) => multiply_layout::<S, 4, 16, true>(panel, x, rows, out, stride, epilogue),
            (8, 32, false) => multiply_layout::<S, 8, 32, false>(panel, x, rows, out, stride, epilogue),
            (8, 32, true) => multiply_layout::<S, 8, 32, true>(panel, x, rows, out, stride, epilogue),
            (8, 16, false) => multiply_layout::<S, 8, 16, false>(panel, x, rows, out, stride, epilogue),
            other => unreachable!("no format is packed as {other:?}"),
        }
    }
}

/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn multiply_layout<S: Lanes, const BITS: u32, const GROUP: usize, const MINIMA: bool>(
    panel: IntegerPanel,
    x: *const QuantBlock,
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
            let x = x.add(row / TILE_ROWS * panel.blocks);
            let out = out.add(row * stride);
            macro_rules! tile {
                ($m:literal) => {{
                    let sums = tile::<S, BITS, GROUP, MINIMA, $m>(panel, x, in_tile, row == 0);
                    epilogue.write::<S>(&sums[..count], out, stride)
                }};
            }
            // A tile may be computed wider than it is filled: the rows past `count` exist in memory and are dropped.
            match count {
                1 => tile!(1),
                2 => tile!(2),
                3 | 4 if S::TILE >= 4 => tile!(4),
                5 | 6 if S::TILE >= 8 => tile!(6),
                _ if S::TILE >= 8 => tile!(8),
                _ => unreachable!("a tile holds at most S::TILE rows"),
            }
        }
        row += count;
    }
}

/// # Safety
/// As [`multiply`], for rows `first..first + M` of the tile at `x`; `first + M <= 8`. `from_memory`: the panel is read for the
/// first time in this step.
#[inline(always)]
unsafe fn tile<S: Lanes, const BITS: u32, const GROUP: usize, const MINIMA: bool, const M: usize>(
    panel: IntegerPanel,
    x: *const QuantBlock,
    first: usize,
    from_memory: bool,
) -> [S::F; M] {
    let lines = BITS as usize * GROUP / 32;
    let groups = 32 / GROUP;
    let scale_bytes = LANES * if panel.layout.wide_scales { 4 } else { 2 };
    // SAFETY: all offsets stay inside the panel and the tile.
    unsafe {
        let mut sums = [S::splat(0.0); M];
        let mut quants = panel.data;
        for block in 0..panel.blocks {
            let x = &*x.add(block);
            let mut scales = quants.add(64 * lines * groups);
            // With one or two rows the machine's own prefetchers do better; with more there is time to ask.
            if M >= 4 && from_memory {
                for line in 0..=lines * groups {
                    S::prefetch(quants.wrapping_add(PREFETCH_BYTES + 64 * line));
                }
            }
            for half in 0..groups {
                let zero = |m: usize| match (GROUP, half) {
                    (32, _) => x.zero[first + m],
                    (_, 0) => x.zero_first[first + m],
                    _ => x.zero[first + m] - x.zero_first[first + m],
                };
                let mut dots = [S::splat_i32(0); M];
                for (m, dot) in dots.iter_mut().enumerate() {
                    if BITS == 8 {
                        *dot = S::start_i8(zero(m));
                    } else if !MINIMA {
                        *dot = S::splat_i32(zero(m));
                    }
                }
                for line in 0..lines {
                    let packed = S::load_line(quants.add(64 * line));
                    let column = half * 16 + line * if BITS == 4 { 8 } else { 4 };
                    if BITS == 4 {
                        let low = S::shift_right_and::<0>(packed, 0x0f0f_0f0f);
                        let high = S::shift_right_and::<4>(packed, 0x0f0f_0f0f);
                        for (m, dot) in dots.iter_mut().enumerate() {
                            let q = x.q[first + m].as_ptr().add(column);
                            *dot = S::dot_u4(*dot, low, q);
                            *dot = S::dot_u4(*dot, high, q.add(4));
                        }
                    } else {
                        // Keeps each line's loads with it: else the compiler loads the activations of all lines ahead, runs out of
                        // registers, and half the speed is gone.
                        compiler_fence(Ordering::SeqCst);
                        for (m, dot) in dots.iter_mut().enumerate() {
                            *dot = S::dot_i8(*dot, packed, x.q[first + m].as_ptr().add(column));
                        }
                    }
                }
                quants = quants.add(64 * lines);
                let scale = load_scales::<S>(scales, panel.layout.wide_scales);
                scales = scales.add(scale_bytes);
                for m in 0..M {
                    let both = S::mul(scale, S::splat(x.scale[first + m]));
                    sums[m] = S::fma(both, S::to_f32(dots[m]), sums[m]);
                }
                if MINIMA {
                    let minimum = load_scales::<S>(scales, panel.layout.wide_scales);
                    scales = scales.add(scale_bytes);
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

/// How far ahead of the first rows of a larger batch the weights are asked for.
const PREFETCH_BYTES: usize = 2048;

/// # Safety
/// The level's instructions; 16 scales at `from`.
#[inline(always)]
unsafe fn load_scales<S: Lanes>(from: *const u8, wide: bool) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { if wide { S::load(from.cast()) } else { S::load_f16(from.cast()) } }
}

/// Unpacks `panel` to f32, `[columns][16]`.
///
/// # Safety
/// The level's instructions; `panel` as described; `out` has room for `32 * panel.blocks * 16` elements.
#[inline(always)]
pub(crate) unsafe fn expand<S: Lanes>(panel: IntegerPanel, out: *mut f32) {
    let IntegerLayout { bits, group, minima, wide_scales } = panel.layout;
    let zero = panel.layout.zero_point() as f32;
    let scale_bytes = LANES * if wide_scales { 4 } else { 2 };
    let mut quants = panel.data;
    // SAFETY: all offsets stay inside the panel and `out`.
    unsafe {
        for block in 0..panel.blocks {
            let mut scales = quants.add(panel.layout.quant_bytes());
            for first in (0..32).step_by(group) {
                let scale = load_scales::<S>(scales, wide_scales);
                scales = scales.add(scale_bytes);
                let mut minimum = S::splat(0.0);
                if minima {
                    minimum = load_scales::<S>(scales, wide_scales);
                    scales = scales.add(scale_bytes);
                }
                for column in first..first + group {
                    let quad = column / 4;
                    let q = match (bits, quad % 2) {
                        (4, 0) => S::shift_right_and::<0>(S::load_line(quants.add(quad / 2 * 64)), 0x0f0f_0f0f),
                        (4, _) => S::shift_right_and::<4>(S::load_line(quants.add(quad / 2 * 64)), 0x0f0f_0f0f),
                        _ => S::load_line(quants.add(quad * 64)),
                    };
                    let q = S::sub(S::to_f32(byte_of_lane::<S>(q, column % 4)), S::splat(zero));
                    S::store(out.add((block * 32 + column) * LANES), S::fma(scale, q, minimum));
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
