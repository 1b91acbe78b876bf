//! From the file's rows to panels.

use super::{
    IntegerLayout, PackedMatrix, PanelKind,
    block::{Block, Scale, unpack},
};
use crate::simd::LANES;
use powertrain_model::weights::{TensorView, WeightFormat};

/// Writes panel `panel` of `matrix` from `tensor`; output row r takes the stored row `source(r)`. The panel's memory is zeros.
///
/// # Safety
/// The matrix has its memory, and no other thread touches this panel.
pub(crate) unsafe fn pack_panel(
    matrix: &PackedMatrix,
    panel: usize,
    tensor: TensorView<'_>,
    source: &dyn Fn(usize) -> usize,
) {
    let first = panel * LANES;
    let rows = (matrix.rows - first).min(LANES);
    // SAFETY: the panel is this long, and ours.
    let out = unsafe { std::slice::from_raw_parts_mut(matrix.panel(panel), matrix.panel_bytes()) };
    let row_bytes = tensor.data.len() / tensor.rows;
    for lane in 0..rows {
        let row = &tensor.data[source(first + lane) * row_bytes..][..row_bytes];
        match matrix.kind {
            PanelKind::Integer(layout) => pack_integers(tensor.format, layout, row, lane, out),
            PanelKind::F32 => pack_plain::<4>(row, lane, out),
            PanelKind::F16 => pack_plain::<2>(row, lane, out),
            PanelKind::Bf16 => {
                for (column, bytes) in row.as_chunks::<2>().0.iter().enumerate() {
                    let at = (column / 2 * 2 * LANES + lane * 2 + column % 2) * 2;
                    out[at..at + 2].copy_from_slice(bytes);
                }
            }
        }
    }
}

fn pack_plain<const BYTES: usize>(row: &[u8], lane: usize, out: &mut [u8]) {
    for (column, bytes) in row.as_chunks::<BYTES>().0.iter().enumerate() {
        let at = (column * LANES + lane) * BYTES;
        out[at..at + BYTES].copy_from_slice(bytes);
    }
}

fn pack_integers(format: WeightFormat, layout: IntegerLayout, row: &[u8], lane: usize, out: &mut [u8]) {
    // One loop per format, so that the format is known inside it.
    macro_rules! formats {
        ($($format:ident),*) => {
            match format {
                $(WeightFormat::$format => pack_row(layout, lane, out, |i| unpack(WeightFormat::$format, row, i)),)*
                other => unreachable!("{other:?} is not made of blocks"),
            }
        };
    }
    formats!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K)
}

#[inline(always)]
fn pack_row(layout: IntegerLayout, lane: usize, out: &mut [u8], block: impl Fn(usize) -> Block) {
    let each = layout.scale_bytes();
    for (index, out) in out.chunks_exact_mut(layout.block_bytes()).enumerate() {
        let block = block(index);
        let (quants, scales) = out.split_at_mut(layout.quant_bytes());
        let (quads, _) = block.q.as_chunks::<4>();
        if layout.bits == 4 {
            for (line, pair) in quads.as_chunks::<2>().0.iter().enumerate() {
                let packed = u32::from_le_bytes(pair[0]) | u32::from_le_bytes(pair[1]) << 4;
                quants[line * 64 + lane * 4..][..4].copy_from_slice(&packed.to_le_bytes());
            }
        } else {
            for (line, quad) in quads.iter().enumerate() {
                quants[line * 64 + lane * 4..][..4].copy_from_slice(quad);
            }
        }
        for (group, scales) in scales.chunks_exact_mut(layout.group_bytes()).enumerate() {
            write_scale(block.scales[group], &mut scales[lane * each..][..each]);
            if layout.minima {
                write_scale(block.minima[group], &mut scales[(LANES + lane) * each..][..each]);
            }
        }
    }
}

#[inline(always)]
fn write_scale(scale: Scale, to: &mut [u8]) {
    match scale {
        Scale::F16(bits) => to.copy_from_slice(&bits.to_le_bytes()),
        Scale::F32(value) => to.copy_from_slice(&value.to_le_bytes()),
    }
}
