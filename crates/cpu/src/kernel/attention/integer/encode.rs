//! Queries, keys and values to bytes: a scale a vector, 8 bits a number.

use super::{COLUMNS, HEADER, STARTS, group_bytes};
use crate::{
    kernel::attention::{QUERIES, QueryRows},
    kv::KvLayout,
    simd::{LANES, Lanes},
};

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

/// Quantises queries: per six vectors a header, then for each 64 columns those of each vector.
///
/// # Safety
/// As [`load_queries`](crate::kernel::attention::load_queries).
#[inline(always)]
pub(in crate::kernel::attention) unsafe fn load_queries<S: Lanes>(rows: QueryRows, to: *mut u8) {
    let QueryRows { head_dim, .. } = rows;
    for v in 0..rows.vectors() {
        // SAFETY: the caller's promises; a group holds six vectors.
        unsafe {
            let from = rows.vector(v);
            let group = to.add(v / QUERIES * group_bytes(head_dim));
            let (header, bytes) = (group.cast::<f32>().add(v % QUERIES), group.add(HEADER + v % QUERIES * COLUMNS));
            let (scale, inverse) = scales(largest_magnitude::<S>(from, head_dim));
            let mut sum = 0;
            for at in (0..head_dim).step_by(LANES) {
                let x = S::mul(load_padded::<S>(from, at, head_dim), S::splat(inverse));
                sum += S::quantize(x, bytes.add(at / COLUMNS * COLUMNS * QUERIES + at % COLUMNS).cast());
            }
            *header = scale;
            *header.add(STARTS).cast::<i32>() = -8 * sum;
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
/// As [`store`](crate::kernel::attention::store).
#[inline(always)]
pub(in crate::kernel::attention) unsafe fn store<S: Lanes>(
    kv: &KvLayout,
    tile: *mut u8,
    in_tile: usize,
    key: *const f32,
    value: *const f32,
) {
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
