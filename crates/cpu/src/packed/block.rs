//! 32 columns of one stored row as integers, for every block format of GGML. The layouts are those of `ggml-quants.c`.

use crate::simd::scalar::f16_to_f32;
use powertrain_model::weights::WeightFormat;

/// 32 columns of a row, as [`PanelKind::of`](super::PanelKind::of) wants them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// With the layout's zero point.
    pub(super) q: [u8; 32],
    /// Scales of the first and second 16 columns; the first is that of all 32 where the group is 32.
    pub(super) scales: [Scale; 2],
    pub(super) minima: [Scale; 2],
}

/// A scale or minimum.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scale {
    /// As stored.
    F16(u16),
    /// A product.
    F32(f32),
}

impl Scale {
    const NONE: Self = Self::F16(0);
}

/// Columns `32 * index..` of a stored row.
#[inline(always)]
pub(super) fn unpack(format: WeightFormat, row: &[u8], index: usize) -> Block {
    let bytes = format.block_bytes();
    match format.block_elements() {
        32 => unpack_32(format, &row[index * bytes..][..bytes]),
        _ => unpack_256(format, &row[index / 8 * bytes..][..bytes], index % 8),
    }
}

#[inline(always)]
fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[inline(always)]
fn nibbles(qs: &[u8]) -> [u8; 32] {
    let mut q = [0; 32];
    for (i, &byte) in qs[..16].iter().enumerate() {
        q[i] = byte & 15;
        q[i + 16] = byte >> 4;
    }
    q
}

/// Adds bit i of `high` to element i as its fifth bit.
#[inline(always)]
fn with_fifth_bits(mut q: [u8; 32], high: u32) -> [u8; 32] {
    for (i, q) in q.iter_mut().enumerate() {
        *q |= ((high >> i & 1) as u8) << 4;
    }
    q
}

#[inline(always)]
fn unpack_32(format: WeightFormat, block: &[u8]) -> Block {
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (q, minimum) = match format {
        WeightFormat::Q4_0 => (nibbles(&block[2..]), None),
        WeightFormat::Q4_1 => (nibbles(&block[4..]), Some(half(block, 2))),
        WeightFormat::Q5_0 => (with_fifth_bits(nibbles(&block[6..]), word(2)).map(|q| q + (128 - 16)), None),
        WeightFormat::Q5_1 => (with_fifth_bits(nibbles(&block[8..]), word(4)).map(|q| q + 128), Some(half(block, 2))),
        WeightFormat::Q8_0 => (std::array::from_fn(|i| block[2 + i] ^ 128), None),
        other => unreachable!("{other:?} has no blocks of 32"),
    };
    let scale = Scale::F16(half(block, 0));
    let minimum = minimum.map_or(Scale::NONE, Scale::F16);
    Block { q, scales: [scale; 2], minima: [minimum; 2] }
}

#[inline(always)]
fn unpack_256(format: WeightFormat, block: &[u8], slice: usize) -> Block {
    // 128 columns share a run of bytes; within it, four slices of 32 stand in different bits.
    let (run, quarter) = (slice / 4, slice % 4);
    let scale_at = |at: usize| f16_to_f32(half(block, at));
    match format {
        WeightFormat::Q2K => {
            let (d, dmin) = (scale_at(80), scale_at(82));
            let scales = [block[2 * slice], block[2 * slice + 1]];
            Block {
                q: std::array::from_fn(|i| block[16 + 32 * run + i] >> (2 * quarter) & 3),
                scales: scales.map(|s| Scale::F32(d * f32::from(s & 15))),
                minima: scales.map(|s| Scale::F32(-(dmin * f32::from(s >> 4)))),
            }
        }
        WeightFormat::Q3K => {
            let d = scale_at(108);
            let scale = |i: usize| {
                let low = if i < 8 { block[96 + i] & 15 } else { block[96 + i - 8] >> 4 };
                let high = block[104 + i % 4] >> (2 * (i / 4)) & 3;
                Scale::F32(d * f32::from((low | high << 4) as i8 - 32))
            };
            Block {
                // The stored two bits count from -4 where the mask's bit is clear, else from 0; 8 is the zero point.
                q: std::array::from_fn(|i| {
                    (block[32 + 32 * run + i] >> (2 * quarter) & 3) + 4 + (block[i] >> slice & 1) * 4
                }),
                scales: [scale(2 * slice), scale(2 * slice + 1)],
                minima: [Scale::NONE; 2],
            }
        }
        WeightFormat::Q4K | WeightFormat::Q5K => {
            let (d, dmin) = (scale_at(0), scale_at(2));
            let (scale, minimum) = six_bit_scales(&block[4..16], slice);
            let wide = format == WeightFormat::Q5K;
            let qs = &block[if wide { 48 } else { 16 } + slice / 2 * 32..][..32];
            let q = std::array::from_fn(|i| {
                let low = qs[i] >> (4 * (slice % 2)) & 15;
                if wide { (low | (block[16 + i] >> slice & 1) << 4) + 128 } else { low }
            });
            Block {
                q,
                scales: [Scale::F32(d * f32::from(scale)); 2],
                minima: [Scale::F32(-(dmin * f32::from(minimum))); 2],
            }
        }
        WeightFormat::Q6K => {
            let d = scale_at(208);
            let low = &block[64 * run + 32 * (quarter % 2)..][..32];
            let high = &block[128 + 32 * run..][..32];
            let scale = |i: usize| Scale::F32(d * f32::from(block[192 + 2 * slice + i] as i8));
            Block {
                q: std::array::from_fn(|i| {
                    (low[i] >> (4 * (quarter / 2)) & 15 | (high[i] >> (2 * quarter) & 3) << 4) + (128 - 32)
                }),
                scales: [scale(0), scale(1)],
                minima: [Scale::NONE; 2],
            }
        }
        other => unreachable!("{other:?} has no blocks of 256"),
    }
}

/// Scale and minimum of one of 8 slices, from the 12 bytes of Q4_K and Q5_K.
#[inline(always)]
fn six_bit_scales(packed: &[u8], slice: usize) -> (u8, u8) {
    if slice < 4 {
        (packed[slice] & 63, packed[slice + 4] & 63)
    } else {
        (packed[slice + 4] & 15 | (packed[slice - 4] >> 6) << 4, packed[slice + 4] >> 4 | (packed[slice] >> 6) << 4)
    }
}
