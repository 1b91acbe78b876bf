//! Activations as the matrix kernels read them.
//!
//! Rows stand in *tiles* of eight, interleaved so that a register tile reads all its rows at constant offsets from one
//! pointer. A row's values do not depend on which tile or place it has.

use crate::{memory::Buffer, simd::LANES};

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 8;
/// Columns quantised together.
pub(crate) const BLOCK: usize = 32;

/// 32 columns of 8 rows in 8 bits: `x ≈ scale * q`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct QuantBlock {
    /// -127..=127.
    pub(crate) q: [[i8; BLOCK]; TILE_ROWS],
    /// A 127th of the largest magnitude.
    pub(crate) scale: [f32; TILE_ROWS],
    /// `scale` times the sum of `q`: what a weight's minimum is multiplied with.
    pub(crate) sum: [f32; TILE_ROWS],
    /// What a dot with fixed-point scales starts from: the sum of `q` times 2^19 - 8.
    pub(crate) start: [i32; TILE_ROWS],
    /// -8 times the sum of `q`: what a zero point of 8 adds.
    pub(crate) zero: [i32; TILE_ROWS],
    /// The same of the first 16 columns.
    pub(crate) zero_first: [i32; TILE_ROWS],
}

/// How a matrix wants its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// [`QuantBlock`]s, for quantised weights.
    Int8,
    /// `[columns / 2][8][2]`, for the bf16 dot product.
    Bf16,
    /// `[columns][8]`
    F32,
}

/// The set of encodings the readers of one activation want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Encodings {
    /// Some reader wants [`Encoding::Int8`].
    pub(crate) int8: bool,
    /// Some reader wants [`Encoding::Bf16`].
    pub(crate) bf16: bool,
    /// Some reader wants [`Encoding::F32`].
    pub(crate) f32: bool,
}

impl Encodings {
    pub(crate) fn of(encodings: impl IntoIterator<Item = Encoding>) -> Self {
        encodings.into_iter().fold(Self::default(), |mut all, encoding| {
            match encoding {
                Encoding::Int8 => all.int8 = true,
                Encoding::Bf16 => all.bf16 = true,
                Encoding::F32 => all.f32 = true,
            }
            all
        })
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self { int8: self.int8 | other.int8, bf16: self.bf16 | other.bf16, f32: self.f32 | other.f32 }
    }
}

/// Encoded rows, in every encoding their readers want. Cheap to copy: it points into [`ActivationBuffers`].
#[derive(Clone, Copy)]
pub(crate) struct Activations {
    pub(crate) columns: usize,
    pub(crate) encodings: Encodings,
    pub(crate) int8: *mut QuantBlock,
    pub(crate) bf16: *mut u16,
    pub(crate) f32: *mut f32,
}

impl Activations {
    /// 32-column blocks of a row.
    pub(crate) fn blocks(&self) -> usize {
        self.columns.div_ceil(BLOCK)
    }

    /// Elements of a bf16 tile.
    pub(crate) fn bf16_tile(&self) -> usize {
        self.columns.next_multiple_of(2) * TILE_ROWS
    }

    /// Elements of an f32 tile.
    pub(crate) fn f32_tile(&self) -> usize {
        self.columns * TILE_ROWS
    }
}

/// Memory for the encoded rows of a step, reused by one activation after the other.
pub(crate) struct ActivationBuffers {
    int8: Buffer<QuantBlock>,
    bf16: Buffer<u16>,
    f32: Buffer<f32>,
}

impl ActivationBuffers {
    /// For `rows` rows of up to `columns` columns.
    pub(crate) fn new(rows: usize, columns: usize, encodings: Encodings) -> Self {
        let tiles = rows.div_ceil(TILE_ROWS);
        let columns = columns.next_multiple_of(BLOCK.max(LANES));
        let size = |wanted: bool, elements: usize| if wanted { tiles * elements } else { 0 };
        Self {
            int8: Buffer::zeroed(size(encodings.int8, columns / BLOCK)),
            bf16: Buffer::zeroed(size(encodings.bf16, columns * TILE_ROWS)),
            f32: Buffer::zeroed(size(encodings.f32, columns * TILE_ROWS)),
        }
    }

    /// The same memory seen as rows of `columns`.
    pub(crate) fn rows_of(&self, columns: usize, encodings: Encodings) -> Activations {
        Activations {
            columns,
            encodings,
            int8: self.int8.as_mut_ptr(),
            bf16: self.bf16.as_mut_ptr(),
            f32: self.f32.as_mut_ptr(),
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.int8.bytes() + self.bf16.bytes() + self.f32.bytes()
    }
}
