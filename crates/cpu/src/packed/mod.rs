//! Weight matrices in the layouts the kernels read.
//!
//! Every matrix is cut into *panels* of 16 output rows; all columns of a panel stand together, 16 rows side by side, so that 16
//! outputs are 16 lanes. The block formats of GGML become integers of 4 or 8 bits with a scale per 16 or 32 columns, and a
//! minimum where the format has one; values stay exactly those of the file, but for Q4_1 under 8-bit activations: see [`fixed_point`].
//!
//! A panel of integers is blocks of 32 columns, each its quants, then its scales: one unbroken stream. Quants come in lines of
//! 64 bytes; byte `4 r + i` of a line belongs to row r, and a quad is 4 neighbouring columns, `4 k + i` of quad k. With 8 bits
//! line k is quad k, 128 added. Else line j holds the lowest four bits of quad `2 j` in the low and of quad `2 j + 1` in the high
//! halves of its bytes; a fifth bit of quad k is bit k of one more line's bytes; fifth and sixth bits of quad k are bits
//! `2 (k mod 4)` on of line `k / 4` of two more.
//!
//! Scales come per group of columns: 16 scales, then 16 minima. Where the file has them as f16 they are f16. K-quants have small
//! integers instead and, for 256 columns, f16 factors: these stand before the 8 blocks they are for. So a packed matrix takes no
//! more than the file but for half a line here and there, and no other value is rounded.

mod block;
pub(crate) mod fixed_point;
mod layout;
mod pack;

use crate::{activations::Encoding, simd::LANES};
pub(crate) use layout::{FACTOR_BLOCKS, FACTOR_BYTES, IntegerLayout};
pub(crate) use pack::pack_panel;
use powertrain_model::weights::WeightFormat;

/// What a panel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PanelKind {
    Integer(IntegerLayout),
    /// See [`fixed_point`].
    FixedPoint,
    /// `[columns][16]`
    F32,
    /// `[columns][16]`
    F16,
    /// `[columns / 2][16][2]`
    Bf16,
}

impl PanelKind {
    /// What a stored format becomes for products with 8-bit activations.
    pub(crate) fn for_int8(format: WeightFormat) -> Self {
        match format {
            WeightFormat::Q4_1 => Self::FixedPoint,
            other => Self::of(other),
        }
    }

    /// What a stored format becomes where its values are to be exactly the file's.
    pub(crate) fn of(format: WeightFormat) -> Self {
        let integer = |bits, group, minima, factored| Self::Integer(IntegerLayout { bits, group, minima, factored });
        match format {
            WeightFormat::F32 => Self::F32,
            WeightFormat::F16 => Self::F16,
            WeightFormat::BF16 => Self::Bf16,
            WeightFormat::Q4_0 => integer(4, 32, false, false),
            WeightFormat::Q4_1 => integer(4, 32, true, false),
            WeightFormat::Q5_0 => integer(5, 32, false, false),
            WeightFormat::Q5_1 => integer(5, 32, true, false),
            WeightFormat::Q8_0 => integer(8, 32, false, false),
            WeightFormat::Q2K => integer(4, 16, true, true),
            WeightFormat::Q3K => integer(4, 16, false, true),
            WeightFormat::Q4K => integer(4, 32, true, true),
            WeightFormat::Q5K => integer(5, 32, true, true),
            WeightFormat::Q6K => integer(6, 16, false, true),
        }
    }

    /// Bytes of a panel: whole cache lines.
    fn panel_bytes(self, columns: usize) -> usize {
        let bytes = match self {
            Self::Integer(layout) => layout.panel_bytes(columns),
            Self::FixedPoint => fixed_point::panel_bytes(columns),
            Self::F32 => columns * LANES * 4,
            Self::F16 => columns * LANES * 2,
            Self::Bf16 => columns.next_multiple_of(2) * LANES * 2,
        };
        bytes.next_multiple_of(64)
    }
}

/// A matrix `[rows, columns]` in panels. Points into the memory of [`Weights`](crate::weights::Weights).
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedMatrix {
    pub(crate) kind: PanelKind,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// What its kernel reads.
    pub(crate) encoding: Encoding,
    pub(crate) data: *mut u8,
    panel_bytes: usize,
}

// SAFETY: the memory pointed to is written while the weights are loaded, each panel by one thread, and only read later.
unsafe impl Send for PackedMatrix {}
// SAFETY: as above.
unsafe impl Sync for PackedMatrix {}

impl PackedMatrix {
    /// A matrix that has no memory yet.
    pub(crate) fn describe(kind: PanelKind, rows: usize, columns: usize, encoding: Encoding) -> Self {
        let panel_bytes = kind.panel_bytes(columns);
        Self { kind, rows, columns, encoding, data: std::ptr::null_mut(), panel_bytes }
    }

    /// Panels of 16 rows; the last may be filled up with zeros.
    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Bytes from one panel to the next.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.panel_bytes
    }

    /// Bytes of all panels.
    pub(crate) fn bytes(&self) -> usize {
        self.panels() * self.panel_bytes()
    }

    /// A panel's first byte.
    pub(crate) fn panel(&self, panel: usize) -> *mut u8 {
        debug_assert!(panel < self.panels());
        // SAFETY: the matrix has that panel.
        unsafe { self.data.add(panel * self.panel_bytes()) }
    }
}
