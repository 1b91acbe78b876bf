//! 32 columns of one stored row as integers, for every block format of GGML. The layouts are those of `ggml-quants.c`.
//!
//! Columns come in quads: a u32 holds four of them, the first in its lowest byte, so that all of them are unpacked at once.

use powertrain_model::weights::WeightFormat;

/// 32 quants, with their layout's zero point.
pub(super) type Quads = [u32; 8];

/// Columns 0..32 of a block of 32: quants, scale and minimum (0 where the format has none), both f16 as stored.
#[inline(always)]
pub(super) fn unpack_32(format: WeightFormat, block: &[u8]) -> (Quads, u16, u16) {
    let (quads, minimum) = match format {
        WeightFormat::Q4_0 => (nibbles(&block[2..]), 0),
        WeightFormat::Q4_1 => (nibbles(&block[4..]), half(block, 2)),
        WeightFormat::Q5_0 => (with_fifth_bits(nibbles(&block[6..]), word(block, 2)), 0),
        WeightFormat::Q5_1 => (with_fifth_bits(nibbles(&block[8..]), word(block, 4)), half(block, 2)),
        WeightFormat::Q8_0 => (std::array::from_fn(|quad| word(block, 2 + 4 * quad) ^ 0x8080_8080), 0),
        other => unreachable!("{other:?} has no blocks of 32"),
    };
    (quads, half(block, 0), minimum)
}

/// The factors that all scales, and all minima, of a block of 256 are multiplied with: f16.
#[inline(always)]
pub(super) fn factors(format: WeightFormat, block: &[u8]) -> (u16, u16) {
    /// Minima are stored as what is subtracted.
    const NEGATIVE: u16 = 0x8000;
    match format {
        WeightFormat::Q2K => (half(block, 80), half(block, 82) ^ NEGATIVE),
        WeightFormat::Q3K => (half(block, 108), 0),
        WeightFormat::Q4K | WeightFormat::Q5K => (half(block, 0), half(block, 2) ^ NEGATIVE),
        WeightFormat::Q6K => (half(block, 208), 0),
        other => unreachable!("{other:?} has no blocks of 256"),
    }
}

/// Columns `32 * slice..` of a block of 256: quants, then scales and minima of the first and second 16 columns.
#[inline(always)]
pub(super) fn unpack_256(format: WeightFormat, block: &[u8], slice: usize) -> (Quads, [i8; 2], [i8; 2]) {
    // 128 columns share a run of bytes; within it, four slices of 32 stand in different bits.
    let (run, quarter) = (slice / 4, slice % 4);
    // Bits `shift..` of the 32 bytes from `at` on, under a mask for each byte.
    let bits = |at: usize, shift: usize, mask: u32| -> Quads {
        std::array::from_fn(|quad| word(block, at + 4 * quad) >> shift & mask)
    };
    match format {
        WeightFormat::Q2K => {
            let scales = [block[2 * slice], block[2 * slice + 1]];
            let quads = bits(16 + 32 * run, 2 * quarter, 0x0303_0303);
            (quads, scales.map(|both| (both & 15) as i8), scales.map(|both| (both >> 4) as i8))
        }
        WeightFormat::Q3K => {
            let scale = |i: usize| {
                let low = if i < 8 { block[96 + i] & 15 } else { block[96 + i - 8] >> 4 };
                let high = block[104 + i % 4] >> (2 * (i / 4)) & 3;
                (low | high << 4) as i8 - 32
            };
            // The stored two bits count from -4 where the mask's bit is clear, else from 0; 8 is the zero point.
            let (low, mask) = (bits(32 + 32 * run, 2 * quarter, 0x0303_0303), bits(0, slice, 0x0101_0101));
            let quads = std::array::from_fn(|quad| low[quad] + 0x0404_0404 + (mask[quad] << 2));
            (quads, [scale(2 * slice), scale(2 * slice + 1)], [0; 2])
        }
        WeightFormat::Q4K => {
            let (scale, minimum) = six_bit_scales(&block[4..16], slice);
            (bits(16 + slice / 2 * 32, 4 * (slice % 2), 0x0f0f_0f0f), [scale; 2], [minimum; 2])
        }
        WeightFormat::Q5K => {
            let (scale, minimum) = six_bit_scales(&block[4..16], slice);
            let low = bits(48 + slice / 2 * 32, 4 * (slice % 2), 0x0f0f_0f0f);
            let high = bits(16, slice, 0x0101_0101);
            (std::array::from_fn(|quad| low[quad] | high[quad] << 4), [scale; 2], [minimum; 2])
        }
        WeightFormat::Q6K => {
            let low = bits(64 * run + 32 * (quarter % 2), 4 * (quarter / 2), 0x0f0f_0f0f);
            let high = bits(128 + 32 * run, 2 * quarter, 0x0303_0303);
            let scales = [block[192 + 2 * slice] as i8, block[193 + 2 * slice] as i8];
            (std::array::from_fn(|quad| low[quad] | high[quad] << 4), scales, [0; 2])
        }
        other => unreachable!("{other:?} has no blocks of 256"),
    }
}

#[inline(always)]
fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// 16 bytes whose low halves are the first 16 columns.
#[inline(always)]
fn nibbles(qs: &[u8]) -> Quads {
    std::array::from_fn(|quad| word(qs, quad % 4 * 4) >> (quad / 4 * 4) & 0x0f0f_0f0f)
}

/// Adds bit i of `high` to column i as its fifth bit.
#[inline(always)]
fn with_fifth_bits(quads: Quads, high: u32) -> Quads {
    std::array::from_fn(|quad| {
        let four = high >> (4 * quad) & 15;
        // Copies 7 bits apart put bit i of the four into the lowest bit of byte i.
        quads[quad] | ((four * 0x0020_4081) & 0x0101_0101) << 4
    })
}

/// Scale and minimum of one of 8 slices, from the 12 bytes of Q4_K and Q5_K.
#[inline(always)]
fn six_bit_scales(packed: &[u8], slice: usize) -> (i8, i8) {
    let (scale, minimum) = if slice < 4 {
        (packed[slice] & 63, packed[slice + 4] & 63)
    } else {
        (packed[slice + 4] & 15 | (packed[slice - 4] >> 6) << 4, packed[slice + 4] >> 4 | (packed[slice] >> 6) << 4)
    };
    (scale as i8, minimum as i8)
}
