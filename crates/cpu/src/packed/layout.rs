//! [`IntegerLayout`]: how quantised weights stand in a panel, and where.

use crate::simd::LANES;
#[cfg(test)]
use crate::simd::scalar::f16_to_f32;

/// Blocks of 32 columns that share factors, where a layout has them.
pub(crate) const FACTOR_BLOCKS: usize = 8;
/// The factors of scales and of minima, f16, of 16 rows each.
pub(crate) const FACTOR_BYTES: usize = 2 * 2 * LANES;

/// How the integers of a panel are laid out. [`packed`](crate::packed) describes it in whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IntegerLayout {
    /// 4, 5, 6 or 8.
    pub(crate) bits: u32,
    /// Columns that share a scale: 16 or 32.
    pub(crate) group: usize,
    /// Whether values are `scale * q + minimum` instead of `scale * (q - zero_point)`.
    pub(crate) minima: bool,
    /// Whether scales and minima are signed bytes, multiplied by factors that 256 columns share, instead of f16.
    pub(crate) factored: bool,
}

impl IntegerLayout {
    /// What is subtracted from a stored quant.
    pub(crate) fn zero_point(self) -> i32 {
        if self.minima { 0 } else { 1 << (self.bits - 1) }
    }

    /// Bytes of a block's quants.
    pub(crate) fn quant_bytes(self) -> usize {
        32 * LANES * self.bits as usize / 8
    }

    /// Bytes of one scale.
    pub(crate) fn scale_bytes(self) -> usize {
        if self.factored { 1 } else { 2 }
    }

    /// Bytes of a group's scales and minima.
    pub(crate) fn group_bytes(self) -> usize {
        LANES * self.scale_bytes() * if self.minima { 2 } else { 1 }
    }

    /// Bytes of a block, factors not counted.
    pub(crate) fn block_bytes(self) -> usize {
        self.quant_bytes() + 32 / self.group * self.group_bytes()
    }

    /// Bytes of all blocks of a panel.
    pub(crate) fn panel_bytes(self, columns: usize) -> usize {
        let blocks = columns / 32;
        blocks * self.block_bytes() + if self.factored { blocks.div_ceil(FACTOR_BLOCKS) * FACTOR_BYTES } else { 0 }
    }

    /// Where in its panel a block begins.
    #[cfg(test)]
    fn block_offset(self, block: usize) -> usize {
        block * self.block_bytes() + if self.factored { (block / FACTOR_BLOCKS + 1) * FACTOR_BYTES } else { 0 }
    }

    /// The weight at a column of the panel's row `lane`: what packing is tested by.
    ///
    /// # Safety
    /// `panel` points to a whole panel that has the column.
    #[cfg(test)]
    pub(crate) unsafe fn weight(self, panel: *const u8, lane: usize, column: usize) -> f32 {
        let (block, in_block) = (column / 32, column % 32);
        let (quad, byte) = (in_block / 4, in_block % 4);
        // SAFETY: all offsets stay inside the block, and that inside the panel.
        unsafe {
            let start = self.block_offset(block);
            let quants = panel.add(start + lane * 4 + byte);
            let nibble = || *quants.add(quad / 2 * 64) >> (quad % 2 * 4) & 15;
            let q = match self.bits {
                4 => nibble(),
                5 => nibble() | (*quants.add(4 * 64) >> quad & 1) << 4,
                6 => nibble() | (*quants.add((4 + quad / 4) * 64) >> (quad % 4 * 2) & 3) << 4,
                _ => *quants.add(quad * 64),
            };
            let group = panel.add(start + self.quant_bytes() + in_block / self.group * self.group_bytes());
            let factors = panel.add(start - block % FACTOR_BLOCKS * self.block_bytes());
            let scale = |index: usize| {
                if !self.factored {
                    return f16_to_f32(group.cast::<u16>().add(index).read_unaligned());
                }
                let factor = factors.sub(FACTOR_BYTES).cast::<u16>().add(index).read_unaligned();
                f16_to_f32(factor) * f32::from(*group.cast::<i8>().add(index))
            };
            let minimum = if self.minima { scale(LANES + lane) } else { 0.0 };
            scale(lane).mul_add(f32::from(q) - self.zero_point() as f32, minimum)
        }
    }
}
