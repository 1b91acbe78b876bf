//! 4-bit weights whose scales are 16-bit integers: what Q4_1 becomes.
//!
//! A block of 32 columns stores `d q + m`, q from 0 to 15. With the output row's unit u, a power of two, that is
//! `u (scale (q - 8) + 8 offset)`, where `scale = d / u` and `offset = (m + 8 d) / 8 u` are rounded to whole numbers of at most
//! [`MOST`] in magnitude. Scales of at least a 16th of the row's largest are then exact (f16 has 11 bits), and no weight is off by
//! more than 8 u, a 2,000th of the row's largest scale and less than the file's own minima are rounded by.
//!
//! A panel is 16 units as f32, then its blocks: 4 lines of quants as [`packed`](super) says, then for each of the 16 rows
//! scale and offset side by side: as many bytes as the file.

use super::{block::Quads, pack::put};
use crate::simd::{LANES, scalar::f16_to_f32};

/// The most a scale or an offset may be: all that 16 bits hold. A block's integer stays below 2^31: it is at most `8 * 127 * 32` times
/// the one and as much times the other, and the lower half's borrow once more the other.
pub(crate) const MOST: f32 = 32_767.0;
/// Bytes of the units before the blocks.
pub(crate) const UNIT_BYTES: usize = 4 * LANES;
/// Bytes of a block's quants.
pub(crate) const QUANT_BYTES: usize = 32 * LANES / 2;
/// Bytes of a block.
pub(crate) const BLOCK_BYTES: usize = QUANT_BYTES + 4 * LANES;

/// Bytes of a panel.
pub(super) fn panel_bytes(columns: usize) -> usize {
    UNIT_BYTES + columns / 32 * BLOCK_BYTES
}

/// One block of a row of the file: quants, scale and minimum, both f16.
pub(super) type Stored = (Quads, u16, u16);

/// Writes one row into its lane of a panel.
pub(super) fn pack_row(blocks: impl Iterator<Item = Stored> + Clone, lane: usize, out: &mut [u8]) {
    let parts = |(_, scale, minimum): &Stored| {
        let scale = f16_to_f32(*scale);
        (scale, scale + f16_to_f32(*minimum) * 0.125)
    };
    let largest = blocks.clone().map(|block| parts(&block)).fold(0.0f32, |largest, (scale, offset)| {
        // A number that is none stays: the row's results shall be none either.
        if scale.is_finite() && offset.is_finite() { largest.max(scale.abs()).max(offset.abs()) } else { f32::NAN }
    });
    let unit = unit(largest);
    put(out, 4 * lane, unit.to_le_bytes());
    let whole = |value: f32| ((value / unit).round_ties_even() as i16).to_le_bytes();
    for (block, out) in blocks.zip(out[UNIT_BYTES..].chunks_exact_mut(BLOCK_BYTES)) {
        for (index, &[low, high]) in block.0.as_chunks::<2>().0.iter().enumerate() {
            put(out, index * 64 + lane * 4, (low & 0x0f0f_0f0f | (high & 0x0f0f_0f0f) << 4).to_le_bytes());
        }
        let (scale, offset) = parts(&block);
        let ([a, b], [c, d]) = (whole(scale), whole(offset));
        put(out, QUANT_BYTES + 4 * lane, [a, b, c, d]);
    }
}

/// The smallest power of two of which `largest` is at most [`MOST`]; 0 where all is 0, NaN where something is no number.
fn unit(largest: f32) -> f32 {
    if largest == 0.0 || largest.is_nan() {
        return largest;
    }
    // An f16 is at least 2^-24 in magnitude, an eighth of it 2^-27: nothing here is subnormal.
    let least = f32::from_bits((largest / MOST).to_bits() & 0x7f80_0000);
    if largest <= MOST * least { least } else { 2.0 * least }
}

/// The weight at a column of the panel's row `lane`.
///
/// # Safety
/// `panel` points to a whole panel that has the column.
pub(crate) unsafe fn weight(panel: *const u8, lane: usize, column: usize) -> f32 {
    let (quad, byte) = (column % 32 / 4, column % 4);
    // SAFETY: all offsets stay inside the panel.
    unsafe {
        let unit = panel.cast::<f32>().add(lane).read_unaligned();
        let block = panel.add(UNIT_BYTES + column / 32 * BLOCK_BYTES);
        let q = *block.add(quad / 2 * 64 + lane * 4 + byte) >> (quad % 2 * 4) & 15;
        let pair = block.add(QUANT_BYTES + 4 * lane).cast::<i16>();
        let (scale, offset) = (i32::from(pair.read_unaligned()), i32::from(pair.add(1).read_unaligned()));
        unit * (scale * (i32::from(q) - 8) + 8 * offset) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_smallest_power_of_two_that_will_do() {
        for largest in [f32::powi(2.0, -27), 0.003, 1.0, 32_767.0, 32_768.0, 65_504.0] {
            let unit = unit(largest);
            assert_eq!(unit.to_bits() & 0x007f_ffff, 0, "{unit} for {largest}");
            assert!(largest <= MOST * unit && largest > MOST * unit / 2.0, "{unit} for {largest}");
        }
        assert_eq!(unit(0.0).to_bits(), 0);
        assert!(unit(f32::NAN).is_nan());
    }

    #[test]
    fn no_block_overflows() {
        // Both halves at their largest, and the borrow.
        let (dot, sum) = (i64::from(8 * 127 * 32), i64::from(8 * 127 * 32 + 1));
        assert!((MOST as i64) * (dot + sum) <= i64::from(i32::MAX));
    }
}
