//! Rows of f32 to the [encodings](crate::activations::Encoding) the matrix kernels read.

use crate::{
    activations::{Activations, BLOCK, TILE_ROWS},
    simd::{LANES, Lanes, scalar::f32_to_bf16},
};

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
            for block in 0..x.blocks() {
                quantize_block::<S>(x, row, block, from.add(block * BLOCK));
            }
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

/// Writes 32 columns of one row as 8-bit numbers.
///
/// NaN anywhere in the block makes its scale NaN, infinity makes it infinite: damage is not rounded away.
///
/// # Safety
/// As [`encode_row`], for the block's 32 elements at `from`.
#[inline(always)]
pub(crate) unsafe fn quantize_block<S: Lanes>(x: Activations, row: usize, block: usize, from: *const f32) {
    let (tile, place) = (row / TILE_ROWS, row % TILE_ROWS);
    // SAFETY: the caller's promises.
    unsafe {
        let to = &mut *x.int8.add(tile * x.blocks() + block);
        let (low, high) = (S::load(from), S::load(from.add(LANES)));
        let magnitudes = S::max_magnitude_bits(S::max_magnitude_bits(S::splat_i32(0), low), high);
        let largest = f32::from_bits(S::reduce_max_i32(magnitudes) as u32);
        let inverse = S::splat(if largest > f32::MIN_POSITIVE { 127.0 / largest } else { 0.0 });
        let scale = largest / 127.0;
        let q = to.q[place].as_mut_ptr();
        let first = S::quantize(S::mul(low, inverse), q);
        let second = S::quantize(S::mul(high, inverse), q.add(LANES));
        to.scale[place] = scale;
        to.sum[place] = scale * (first + second) as f32;
        to.zero[place] = -8 * (first + second);
        to.zero_first[place] = -8 * first;
    }
}
