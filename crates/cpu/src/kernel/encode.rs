//! Rows of f32 to the [encodings](crate::activations::Encoding) the matrix kernels read.

use super::{
    exponential::{gelu_tanh, silu_of},
    rows::Gate,
};
use crate::{
    activations::{Activations, BLOCK, QuantBlock, TILE_ROWS},
    simd::{LANES, Lanes, scalar::f32_to_bf16},
};
use powertrain_model::spec::Activation;
use std::ops::Range;

/// Writes row `row` of `x`, whose elements are at `from`, in every encoding its readers want.
///
/// # Safety
/// The level's instructions; `from` holds `x.columns` elements, padded with zeros to a multiple of 16, of 32 for
/// [`Encoding::Int8`](crate::activations::Encoding::Int8); `x` has room for the row, which no other thread touches.
#[inline(always)]
pub(crate) unsafe fn encode_row<S: Lanes>(x: Activations, row: usize, from: *const f32) {
    let (tile, place) = (row / TILE_ROWS, row % TILE_ROWS);
    // SAFETY: the caller's promises.
    unsafe {
        if x.encodings.int8 {
            encode_blocks::<S>(x, row, 0..x.blocks(), from);
        }
        if x.encodings.f32 {
            let to = x.f32.add(tile * x.f32_tile() + place);
            for column in 0..x.columns {
                *to.add(column * TILE_ROWS) = *from.add(column);
            }
        }
        if x.encodings.bf16 {
            let to = x.bf16.add(tile * x.bf16_tile() + place * 2);
            for column in 0..x.columns {
                *to.add(column / 2 * 2 * TILE_ROWS + column % 2) = f32_to_bf16(*from.add(column));
            }
            if x.columns % 2 == 1 {
                *to.add(x.columns / 2 * 2 * TILE_ROWS + 1) = 0;
            }
        }
    }
}

/// Writes some blocks of row `row` as 8-bit numbers.
///
/// # Safety
/// The level's instructions; `from` holds 32 elements a block; `x` has room for the row, whose blocks no other thread touches.
#[inline(always)]
pub(crate) unsafe fn encode_blocks<S: Lanes>(x: Activations, row: usize, blocks: Range<usize>, from: *const f32) {
    let (tile, place) = (row / TILE_ROWS, row % TILE_ROWS);
    // SAFETY: the caller's promises.
    unsafe {
        let to = x.int8.add(tile * x.blocks() + blocks.start);
        let count = blocks.len();
        let mut block = 0;
        while block + 2 <= count {
            let at = from.add(block * BLOCK);
            let first = [S::load(at), S::load(at.add(LANES))];
            let second = [S::load(at.add(BLOCK)), S::load(at.add(BLOCK + LANES))];
            quantize::<S, 2>([to.add(block), to.add(block + 1)], [place; 2], [first, second]);
            block += 2;
        }
        if block < count {
            let at = from.add(block * BLOCK);
            quantize::<S, 1>([to.add(block)], [place], [[S::load(at), S::load(at.add(LANES))]]);
        }
    }
}

/// Writes 32 columns of each of N rows or blocks as 8-bit numbers, step by step for all: one alone is a chain of dependent
/// instructions, from the maximum over lanes to the division, with too few others beside it.
///
/// NaN anywhere in a block makes its scale NaN, infinity makes it infinite: damage is not rounded away.
///
/// # Safety
/// The level's instructions; no other thread touches these places of the blocks.
#[inline(always)]
unsafe fn quantize<S: Lanes, const N: usize>(to: [*mut QuantBlock; N], place: [usize; N], x: [[S::F; 2]; N]) {
    let (mut largest, mut inverse) = ([0.0f32; N], [0.0f32; N]);
    // SAFETY: the caller's promises.
    unsafe {
        for i in 0..N {
            let [low, high] = x[i];
            let magnitudes = S::max_magnitude_bits(S::max_magnitude_bits(S::splat_i32(0), low), high);
            largest[i] = f32::from_bits(S::reduce_max_i32(magnitudes) as u32);
        }
        for i in 0..N {
            inverse[i] = if largest[i] > f32::MIN_POSITIVE { 127.0 / largest[i] } else { 0.0 };
        }
        for i in 0..N {
            let (to, place, scale) = (&mut *to[i], place[i], largest[i] / 127.0);
            let q = to.q[place].as_mut_ptr();
            let first = S::quantize(S::mul(x[i][0], S::splat(inverse[i])), q);
            let second = S::quantize(S::mul(x[i][1], S::splat(inverse[i])), q.add(LANES));
            to.scale[place] = scale;
            to.start[place] = (first + second) * ((1 << 19) - 8);
            to.sum[place] = scale * (first + second) as f32;
            to.zero[place] = -8 * (first + second);
            to.zero_first[place] = -8 * first;
        }
    }
}

/// Some rows of gates and ups, 32 columns each, one after the other.
#[derive(Clone, Copy)]
pub(crate) struct GateRows {
    pub(crate) gates: *const f32,
    pub(crate) ups: *const f32,
    pub(crate) count: usize,
    /// Where the first of them goes in the activations.
    pub(crate) first_row: usize,
    /// Which 32 columns of a row these are.
    pub(crate) block: usize,
}

/// `activation(gate) * up` of some rows, as 8-bit numbers: what the down projection of quantised weights reads.
///
/// Of 32 columns two rows at a time: 2 x 2 exponentials and divisions, then two maxima over lanes. About 60 instructions a row and 32
/// columns; nothing goes back to memory as f32.
///
/// # Safety
/// The level's instructions; gates and ups have the rows; `to` has them and that block in 8 bits, and no other thread touches them.
#[inline(always)]
pub(crate) unsafe fn encode_gated<S: Lanes>(gate: Gate, rows: GateRows, to: Activations) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut row = 0;
        while row + 2 <= rows.count {
            encode_gated_rows::<S, 2, 4>(gate, rows, row, to);
            row += 2;
        }
        if row < rows.count {
            encode_gated_rows::<S, 1, 2>(gate, rows, row, to);
        }
    }
}

/// # Safety
/// As [`encode_gated`], for N rows from `row` on, V = 2 N vectors.
#[inline(always)]
unsafe fn encode_gated_rows<S: Lanes, const N: usize, const V: usize>(
    gate: Gate,
    rows: GateRows,
    row: usize,
    to: Activations,
) {
    // SAFETY: the caller's promises.
    unsafe {
        let (gates, ups) = (rows.gates.add(row * BLOCK), rows.ups.add(row * BLOCK));
        let mut x = [S::splat(0.0); V];
        for v in 0..V {
            x[v] = S::load(gates.add(v * LANES));
        }
        if gate.0 == Activation::Silu {
            x = silu_of::<S, V>(x);
        }
        for v in 0..V {
            if gate.0 == Activation::GeluTanh {
                x[v] = gelu_tanh::<S>(x[v]);
            }
            x[v] = S::mul(x[v], S::load(ups.add(v * LANES)));
        }
        let (mut blocks, mut places, mut columns) = ([to.int8; N], [0; N], [[x[0]; 2]; N]);
        for i in 0..N {
            let to_row = rows.first_row + row + i;
            blocks[i] = to.int8.add(to_row / TILE_ROWS * to.blocks() + rows.block);
            (places[i], columns[i]) = (to_row % TILE_ROWS, [x[2 * i], x[2 * i + 1]]);
        }
        quantize::<S, N>(blocks, places, columns);
    }
}
