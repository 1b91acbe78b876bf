//! GGML's first block formats: 32 elements share an f16 scale `d`, and in the `_1` kinds an f16 minimum `m`.
//!
//! Of the 4 and 5 bit formats byte `i` holds element `i` in its low and element `i + 16` in its high nibble.

use super::block::{blocks, scale};

pub(super) const BLOCK_ELEMENTS: usize = 32;
/// d, nibbles
pub(super) const Q4_0_BYTES: usize = 2 + 16;
/// d, m, nibbles
pub(super) const Q4_1_BYTES: usize = 2 + 2 + 16;
/// d, fifth bits, nibbles
pub(super) const Q5_0_BYTES: usize = 2 + 4 + 16;
/// d, m, fifth bits, nibbles
pub(super) const Q5_1_BYTES: usize = 2 + 2 + 4 + 16;
/// d, bytes
pub(super) const Q8_0_BYTES: usize = 2 + 32;

/// `d * (q - 8)`
pub(super) fn q4_0(stored: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<Q4_0_BYTES, BLOCK_ELEMENTS>(stored, out) {
        let d = scale(block, 0);
        for i in 0..16 {
            let byte = block[2 + i];
            out[i] = d * (f32::from(byte & 0x0F) - 8.0);
            out[i + 16] = d * (f32::from(byte >> 4) - 8.0);
        }
    }
}

/// `d * q + m`
pub(super) fn q4_1(stored: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<Q4_1_BYTES, BLOCK_ELEMENTS>(stored, out) {
        let (d, m) = (scale(block, 0), scale(block, 2));
        for i in 0..16 {
            let byte = block[4 + i];
            out[i] = d * f32::from(byte & 0x0F) + m;
            out[i + 16] = d * f32::from(byte >> 4) + m;
        }
    }
}

/// `d * (q - 16)`
pub(super) fn q5_0(stored: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<Q5_0_BYTES, BLOCK_ELEMENTS>(stored, out) {
        let d = scale(block, 0);
        let quants = five_bits(&block[2..]);
        for (out, q) in out.iter_mut().zip(quants) {
            *out = d * (f32::from(q) - 16.0);
        }
    }
}

/// `d * q + m`
pub(super) fn q5_1(stored: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<Q5_1_BYTES, BLOCK_ELEMENTS>(stored, out) {
        let (d, m) = (scale(block, 0), scale(block, 2));
        let quants = five_bits(&block[4..]);
        for (out, q) in out.iter_mut().zip(quants) {
            *out = d * f32::from(q) + m;
        }
    }
}

/// `d * q`, q signed
pub(super) fn q8_0(stored: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<Q8_0_BYTES, BLOCK_ELEMENTS>(stored, out) {
        let d = scale(block, 0);
        for (out, &byte) in out.iter_mut().zip(&block[2..]) {
            *out = d * f32::from(byte as i8);
        }
    }
}

/// Four bytes of fifth bits, element 0 lowest, then the nibbles.
fn five_bits(packed: &[u8]) -> [u8; BLOCK_ELEMENTS] {
    let high = u32::from_le_bytes([packed[0], packed[1], packed[2], packed[3]]);
    let mut quants = [0; BLOCK_ELEMENTS];
    for i in 0..16 {
        let byte = packed[4 + i];
        quants[i] = byte & 0x0F | ((high >> i) as u8 & 1) << 4;
        quants[i + 16] = byte >> 4 | ((high >> (i + 16)) as u8 & 1) << 4;
    }
    quants
}
