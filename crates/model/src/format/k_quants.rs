//! GGML's K formats: 256 elements in 8 or 16 groups, each with a small integer scale (and minimum) under the block's f16 `d`
//! (and `dmin`).

use super::block::{blocks, scale};

pub(super) const BLOCK_ELEMENTS: usize = 256;
/// scales, 2-bit quants, d, dmin
pub(super) const Q2_K_BYTES: usize = 16 + 64 + 2 + 2;
/// third bits, low 2 bits, scales, d
pub(super) const Q3_K_BYTES: usize = 32 + 64 + 12 + 2;
/// d, dmin, scales, nibbles
pub(super) const Q4_K_BYTES: usize = 2 + 2 + 12 + 128;
/// d, dmin, scales, fifth bits, nibbles
pub(super) const Q5_K_BYTES: usize = 2 + 2 + 12 + 32 + 128;
/// nibbles, high 2 bits, scales, d
pub(super) const Q6_K_BYTES: usize = 128 + 64 + 16 + 2;

/// Groups of 16: `(d * scale) * q - dmin * minimum`, scale and minimum of 4 bits, q of 2.
pub(super) fn q2_k(stored: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<Q2_K_BYTES, BLOCK_ELEMENTS>(stored, out) {
        let (scales, rest) = block.split_at(16);
        let (quants, rest) = rest.split_at(64);
        let (d, dmin) = (scale(rest, 0), scale(rest, 2));
        for (group, out) in out.chunks_exact_mut(16).enumerate() {
            let dl = d * f32::from(scales[group] & 0x0F);
            let ml = dmin * f32::from(scales[group] >> 4);
            for (i, out) in out.iter_mut().enumerate() {
                let q = two_bits(quants, group * 16 + i);
                *out = dl * f32::from(q) - ml;
            }
        }
    }
}

/// Groups of 16: `(d * (scale - 32)) * q`, scale of 6 bits, q from -4 to 3.
pub(super) fn q3_k(stored: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<Q3_K_BYTES, BLOCK_ELEMENTS>(stored, out) {
        let (high, rest) = block.split_at(32);
        let (low, rest) = rest.split_at(64);
        let (scales, rest) = rest.split_at(12);
        let d = scale(rest, 0);
        for (group, out) in out.chunks_exact_mut(16).enumerate() {
            // Bytes 0 to 7: low nibbles of groups 0 to 7, high nibbles of 8 to 15. Bytes 8 to 11: two more bits for each.
            let four = scales[group % 8] >> (group / 8 * 4) & 0x0F;
            let two = scales[8 + group % 4] >> (group / 4 * 2) & 3;
            let dl = d * (f32::from(four | two << 4) - 32.0);
            for (i, out) in out.iter_mut().enumerate() {
                let element = group * 16 + i;
                // A set bit means that nothing is subtracted.
                let third = high[element % 32] >> (element / 32) & 1;
                let q = two_bits(low, element) as i8 - if third == 0 { 4 } else { 0 };
                *out = dl * f32::from(q);
            }
        }
    }
}

/// Groups of 32: `(d * scale) * q - dmin * minimum`, scale and minimum of 6 bits, q of 4.
pub(super) fn q4_k(stored: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<Q4_K_BYTES, BLOCK_ELEMENTS>(stored, out) {
        let (d, dmin) = (scale(block, 0), scale(block, 2));
        let (scales, quants) = block[4..].split_at(12);
        for (group, out) in out.chunks_exact_mut(32).enumerate() {
            let (group_scale, group_min) = six_bit_scales(scales, group);
            let (dl, ml) = (d * group_scale, dmin * group_min);
            for (i, out) in out.iter_mut().enumerate() {
                let q = quants[group / 2 * 32 + i] >> (group % 2 * 4) & 0x0F;
                *out = dl * f32::from(q) - ml;
            }
        }
    }
}

/// As Q4_K, q of 5 bits.
pub(super) fn q5_k(stored: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<Q5_K_BYTES, BLOCK_ELEMENTS>(stored, out) {
        let (d, dmin) = (scale(block, 0), scale(block, 2));
        let (scales, rest) = block[4..].split_at(12);
        let (high, low) = rest.split_at(32);
        for (group, out) in out.chunks_exact_mut(32).enumerate() {
            let (group_scale, group_min) = six_bit_scales(scales, group);
            let (dl, ml) = (d * group_scale, dmin * group_min);
            for (i, out) in out.iter_mut().enumerate() {
                let four = low[group / 2 * 32 + i] >> (group % 2 * 4) & 0x0F;
                let fifth = high[i] >> group & 1;
                *out = dl * f32::from(four | fifth << 4) - ml;
            }
        }
    }
}

/// Groups of 16: `(d * scale) * (q - 32)`, scale of 8 bits signed, q of 6.
pub(super) fn q6_k(stored: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<Q6_K_BYTES, BLOCK_ELEMENTS>(stored, out) {
        let (low, rest) = block.split_at(128);
        let (high, rest) = rest.split_at(64);
        let (scales, rest) = rest.split_at(16);
        let d = scale(rest, 0);
        for (group, out) in out.chunks_exact_mut(16).enumerate() {
            let dl = d * f32::from(scales[group] as i8);
            for (i, out) in out.iter_mut().enumerate() {
                let element = group * 16 + i;
                let (half, within) = (element / 128, element % 128);
                let four = low[half * 64 + within % 64] >> (within / 64 * 4) & 0x0F;
                let two = high[half * 32 + within % 32] >> (within / 32 * 2) & 3;
                *out = dl * (f32::from(four | two << 4) - 32.0);
            }
        }
    }
}

/// Element of 2-bit quants: 32 bytes hold four runs of 32 elements, the first in the lowest bits.
fn two_bits(packed: &[u8], element: usize) -> u8 {
    let (half, within) = (element / 128, element % 128);
    packed[half * 32 + within % 32] >> (within / 32 * 2) & 3
}

/// Scale and minimum of one of the eight groups of Q4_K and Q5_K, 6 bits each in 12 bytes: bytes 0 to 3 and 4 to 7 hold the
/// scales and minima of groups 0 to 3, and in their top bits those of groups 4 to 7, whose low nibbles are in bytes 8 to 11.
fn six_bit_scales(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (packed[group] & 0x3F, packed[group + 4] & 0x3F)
    } else {
        let low = packed[group + 4];
        (low & 0x0F | packed[group - 4] >> 2 & 0x30, low >> 4 | packed[group] >> 2 & 0x30)
    };
    (f32::from(scale), f32::from(min))
}
