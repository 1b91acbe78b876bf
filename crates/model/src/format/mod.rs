//! How stored weights are laid out, and the scalar dequantisation that every faster one is compared with.
//!
//! Results equal the PyPI `gguf` package's (`gguf.quants.dequantize`) bit for bit: the same products and sums, in the same
//! order, each rounded to f32.

mod block;
mod k_quants;
mod plain;
mod quants;

use std::fmt;

use crate::weights::WeightFormat;

impl WeightFormat {
    /// Every format, in the order of the enum.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The field's name: `F16`, `Q4_K`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Elements that are stored together: 1 for plain numbers. A row is a multiple of it.
    pub const fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => quants::BLOCK_ELEMENTS,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => k_quants::BLOCK_ELEMENTS,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => quants::Q4_0_BYTES,
            Self::Q4_1 => quants::Q4_1_BYTES,
            Self::Q5_0 => quants::Q5_0_BYTES,
            Self::Q5_1 => quants::Q5_1_BYTES,
            Self::Q8_0 => quants::Q8_0_BYTES,
            Self::Q2K => k_quants::Q2_K_BYTES,
            Self::Q3K => k_quants::Q3_K_BYTES,
            Self::Q4K => k_quants::Q4_K_BYTES,
            Self::Q5K => k_quants::Q5_K_BYTES,
            Self::Q6K => k_quants::Q6_K_BYTES,
        }
    }

    /// Bytes of a row of `columns` elements; `None` if that is no whole number of blocks, or overflows.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        if !columns.is_multiple_of(self.block_elements()) {
            return None;
        }
        (columns / self.block_elements()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Unpacks whole blocks to f32.
///
/// # Panics
/// If `stored` is no whole number of blocks, or `out` has not exactly their number of elements.
pub fn dequantize(format: WeightFormat, stored: &[u8], out: &mut [f32]) {
    assert_eq!(
        format.row_bytes(out.len()),
        Some(stored.len()),
        "{format}: {} elements do not take {} bytes",
        out.len(),
        stored.len()
    );
    match format {
        WeightFormat::F32 => plain::f32(stored, out),
        WeightFormat::F16 => plain::f16(stored, out),
        WeightFormat::BF16 => plain::bf16(stored, out),
        WeightFormat::Q4_0 => quants::q4_0(stored, out),
        WeightFormat::Q4_1 => quants::q4_1(stored, out),
        WeightFormat::Q5_0 => quants::q5_0(stored, out),
        WeightFormat::Q5_1 => quants::q5_1(stored, out),
        WeightFormat::Q8_0 => quants::q8_0(stored, out),
        WeightFormat::Q2K => k_quants::q2_k(stored, out),
        WeightFormat::Q3K => k_quants::q3_k(stored, out),
        WeightFormat::Q4K => k_quants::q4_k(stored, out),
        WeightFormat::Q5K => k_quants::q5_k(stored, out),
        WeightFormat::Q6K => k_quants::q6_k(stored, out),
    }
}
