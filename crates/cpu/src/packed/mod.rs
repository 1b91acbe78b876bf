//! Weight matrices in the layouts the kernels read.
//!
//! Every matrix is cut into *panels* of 16 output rows; all columns of a panel stand together, 16 rows side by side, so that 16
//! outputs are 16 lanes. The block formats of GGML become integers of 4 or 8 bits with a scale per 16 or 32 columns, and a
//! minimum where the format has one; values stay exactly those of the file.
//!
//! A panel of integers is blocks of 32 columns, each its quants, then its scales. Quants come in lines of 64 bytes: byte `4 r + i`
//! belongs to row r. With 8 bits line j holds columns `4 j + i`, 128 added. With 4 bits line j holds columns `8 j + i` in the low
//! and `8 j + 4 + i` in the high halves of its bytes. Scales come per group of columns: 16 scales, then 16 minima; f16 where the
//! file has them so, f32 where they are products (K-quants).

mod block;
mod pack;

use crate::{activations::Encoding, simd::LANES};
pub(crate) use pack::pack_panel;
use powertrain_model::weights::WeightFormat;

/// How the integers of a panel are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IntegerLayout {
    /// 4 or 8.
    pub(crate) bits: u32,
    /// Columns that share a scale: 16 or 32.
    pub(crate) group: usize,
    /// Whether values are `scale * q + minimum` with q from 0 on, instead of `scale * (q - zero_point)`.
    pub(crate) minima: bool,
    /// Whether scales and minima are f32 instead of f16.
    pub(crate) wide_scales: bool,
}

impl IntegerLayout {
    /// What is subtracted from a stored quant.
    pub(crate) fn zero_point(self) -> i32 {
        match (self.bits, self.minima) {
            (4, true) => 0,
            (4, false) => 8,
            _ => 128,
        }
    }

    /// Bytes of a block's quants.
    pub(crate) fn quant_bytes(self) -> usize {
        32 * LANES * self.bits as usize / 8
    }

    /// Bytes of one scale.
    pub(crate) fn scale_bytes(self) -> usize {
        if self.wide_scales { 4 } else { 2 }
    }

    /// Bytes of a group's scales and minima.
    pub(crate) fn group_bytes(self) -> usize {
        LANES * self.scale_bytes() * if self.minima { 2 } else { 1 }
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(self) -> usize {
        self.quant_bytes() + 32 / self.group * self.group_bytes()
    }
}

/// What a panel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PanelKind {
    Integer(IntegerLayout),
    /// `[columns][16]`
    F32,
    /// `[columns][16]`
    F16,
    /// `[columns / 2][16][2]`
    Bf16,
}

impl PanelKind {
    /// What a stored format becomes.
    pub(crate) fn of(format: WeightFormat) -> Self {
        let integer =
            |bits, group, minima, wide_scales| Self::Integer(IntegerLayout { bits, group, minima, wide_scales });
        match format {
            WeightFormat::F32 => Self::F32,
            WeightFormat::F16 => Self::F16,
            WeightFormat::BF16 => Self::Bf16,
            WeightFormat::Q4_0 => integer(4, 32, false, false),
            WeightFormat::Q4_1 => integer(4, 32, true, false),
            WeightFormat::Q5_0 | WeightFormat::Q8_0 => integer(8, 32, false, false),
            WeightFormat::Q5_1 => integer(8, 32, true, false),
            WeightFormat::Q2K => integer(4, 16, true, true),
            WeightFormat::Q3K => integer(4, 16, false, true),
            WeightFormat::Q4K => integer(4, 32, true, true),
            WeightFormat::Q5K => integer(8, 32, true, true),
            WeightFormat::Q6K => integer(8, 16, false, true),
        }
    }

    /// Bytes of a panel: whole cache lines.
    fn panel_bytes(self, columns: usize) -> usize {
        let bytes = match self {
            Self::Integer(layout) => columns / 32 * layout.block_bytes(),
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
