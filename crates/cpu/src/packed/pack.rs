//! From the file's rows to panels.

use super::{
    IntegerLayout, PackedMatrix, PanelKind,
    block::{Quads, factors, unpack_32, unpack_256},
    fixed_point,
    layout::{FACTOR_BLOCKS, FACTOR_BYTES},
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
            PanelKind::FixedPoint => {
                let blocks = row.chunks_exact(WeightFormat::Q4_1.block_bytes());
                fixed_point::pack_row(blocks.map(|block| unpack_32(WeightFormat::Q4_1, block)), lane, out);
            }
            PanelKind::F32 => pack_units::<4>(row, lane, out),
            PanelKind::F16 => pack_units::<2>(row, lane, out),
            PanelKind::Bf16 => {
                // A unit is a pair of columns; the last may want its second.
                pack_units::<4>(row, lane, out);
                if let [low, high] = *row.as_chunks::<4>().1 {
                    put(out, row.len() / 4 * 4 * LANES + lane * 4, [low, high]);
                }
            }
        }
    }
}

/// Spreads a row over its lane, some bytes at a time.
fn pack_units<const BYTES: usize>(row: &[u8], lane: usize, out: &mut [u8]) {
    for (index, &unit) in row.as_chunks::<BYTES>().0.iter().enumerate() {
        put(out, (index * LANES + lane) * BYTES, unit);
    }
}

fn pack_integers(format: WeightFormat, layout: IntegerLayout, row: &[u8], lane: usize, out: &mut [u8]) {
    // One loop per format, so that the format is known inside it.
    macro_rules! with {
        ($pack:ident, $format:ident) => {
            $pack(WeightFormat::$format, layout, row, lane, out)
        };
    }
    match format {
        WeightFormat::Q4_0 => with!(pack_blocks, Q4_0),
        WeightFormat::Q4_1 => with!(pack_blocks, Q4_1),
        WeightFormat::Q5_0 => with!(pack_blocks, Q5_0),
        WeightFormat::Q5_1 => with!(pack_blocks, Q5_1),
        WeightFormat::Q8_0 => with!(pack_blocks, Q8_0),
        WeightFormat::Q2K => with!(pack_factored, Q2K),
        WeightFormat::Q3K => with!(pack_factored, Q3K),
        WeightFormat::Q4K => with!(pack_factored, Q4K),
        WeightFormat::Q5K => with!(pack_factored, Q5K),
        WeightFormat::Q6K => with!(pack_factored, Q6K),
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => unreachable!("{format:?} is not made of blocks"),
    }
}

#[inline(always)]
fn pack_blocks(format: WeightFormat, layout: IntegerLayout, row: &[u8], lane: usize, out: &mut [u8]) {
    let blocks = row.chunks_exact(format.block_bytes());
    for (block, out) in blocks.zip(out.chunks_exact_mut(layout.block_bytes())) {
        let (quads, scale, minimum) = unpack_32(format, block);
        put_quads(layout, quads, lane, out);
        let scales = layout.quant_bytes();
        put(out, scales + 2 * lane, scale.to_le_bytes());
        if layout.minima {
            put(out, scales + 2 * (LANES + lane), minimum.to_le_bytes());
        }
    }
}

#[inline(always)]
fn pack_factored(format: WeightFormat, layout: IntegerLayout, row: &[u8], lane: usize, out: &mut [u8]) {
    let blocks = row.chunks_exact(format.block_bytes());
    for (block, out) in blocks.zip(out.chunks_exact_mut(FACTOR_BYTES + FACTOR_BLOCKS * layout.block_bytes())) {
        let (out_factors, out) = out.split_at_mut(FACTOR_BYTES);
        let (scale, minimum) = factors(format, block);
        put(out_factors, 2 * lane, scale.to_le_bytes());
        put(out_factors, 2 * (LANES + lane), minimum.to_le_bytes());
        for (slice, out) in out.chunks_exact_mut(layout.block_bytes()).enumerate() {
            let (quads, scales, minima) = unpack_256(format, block, slice);
            put_quads(layout, quads, lane, out);
            for group in 0..32 / layout.group {
                let at = layout.quant_bytes() + group * layout.group_bytes() + lane;
                out[at] = scales[group] as u8;
                if layout.minima {
                    out[at + LANES] = minima[group] as u8;
                }
            }
        }
    }
}

/// A block's quants of one lane: see [`packed`](super).
#[inline(always)]
fn put_quads(layout: IntegerLayout, quads: Quads, lane: usize, out: &mut [u8]) {
    let mut line = |index: usize, four: u32| put(out, index * 64 + lane * 4, four.to_le_bytes());
    if layout.bits == 8 {
        quads.into_iter().enumerate().for_each(|(index, quad)| line(index, quad));
        return;
    }
    for (index, &[low, high]) in quads.as_chunks::<2>().0.iter().enumerate() {
        line(index, low & 0x0f0f_0f0f | (high & 0x0f0f_0f0f) << 4);
    }
    // What is above the four bits, the quads beside each other in every byte.
    let above = |quads: &[u32], mask: u32, width: usize| {
        quads.iter().enumerate().fold(0, |line, (index, quad)| line | (quad >> 4 & mask) << (index * width))
    };
    match layout.bits {
        5 => line(4, above(&quads, 0x0101_0101, 1)),
        6 => {
            line(4, above(&quads[..4], 0x0303_0303, 2));
            line(5, above(&quads[4..], 0x0303_0303, 2));
        }
        _ => {}
    }
}

#[inline(always)]
pub(super) fn put<const BYTES: usize>(out: &mut [u8], at: usize, bytes: [u8; BYTES]) {
    out[at..at + BYTES].copy_from_slice(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{activations::Encoding, memory::Buffer};
    use powertrain_model::format::dequantize;

    /// Scales that are numbers: random bytes would be NaN here and there.
    fn tame(format: WeightFormat, row: &mut [u8]) {
        let halves: &[usize] = match format {
            WeightFormat::Q4_0 | WeightFormat::Q5_0 | WeightFormat::Q8_0 => &[0],
            WeightFormat::Q4_1 | WeightFormat::Q5_1 | WeightFormat::Q4K | WeightFormat::Q5K => &[0, 2],
            WeightFormat::Q2K => &[80, 82],
            WeightFormat::Q3K => &[108],
            WeightFormat::Q6K => &[208],
            _ => &[],
        };
        for block in row.chunks_exact_mut(format.block_bytes()) {
            // Below 2 in magnitude, either sign.
            halves.iter().for_each(|&at| block[at + 1] &= 0xbf);
        }
    }

    #[test]
    fn packed_weights_are_the_files() {
        const SEED: u64 = 41;
        let mut state = SEED;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let kinds =
            WeightFormat::ALL.map(|format| [(format, PanelKind::of(format)), (format, PanelKind::for_int8(format))]);
        for (format, kind) in kinds.into_iter().flatten() {
            if !matches!(kind, PanelKind::Integer(_) | PanelKind::FixedPoint) {
                continue;
            }
            let (rows, columns) = (LANES + 3, 512);
            let row_bytes = format.row_bytes(columns).unwrap();
            let mut data: Vec<u8> = (0..rows * row_bytes).map(|_| random()).collect();
            tame(format, &mut data);
            let tensor = TensorView { format, rows, columns, data: &data };
            let mut matrix = PackedMatrix::describe(kind, rows, columns, Encoding::Int8);
            let memory = Buffer::<u8>::zeroed(matrix.bytes());
            matrix.data = memory.as_mut_ptr();
            // Rows in reverse, to see that the source is asked.
            for panel in 0..matrix.panels() {
                // SAFETY: the matrix has its memory, which is ours alone.
                unsafe { pack_panel(&matrix, panel, tensor, &|row| rows - 1 - row) };
            }
            let mut expected = vec![0.0; columns];
            for row in 0..rows {
                dequantize(format, &data[(rows - 1 - row) * row_bytes..][..row_bytes], &mut expected);
                for (column, &expected) in expected.iter().enumerate() {
                    let panel = matrix.panel(row / LANES).cast_const();
                    // SAFETY: the panel has the column.
                    let (weight, most) = unsafe {
                        match kind {
                            // Only the last rounding may differ: of a product and a sum, or of both at once.
                            PanelKind::Integer(layout) => {
                                (layout.weight(panel, row % LANES, column), 1e-5 * (1.0 + expected.abs()))
                            }
                            // Eight units of 2^-13: scales and minima are below 2.
                            _ => (fixed_point::weight(panel, row % LANES, column), 8.0 / 8192.0),
                        }
                    };
                    let error = (weight - expected).abs();
                    let close = error <= most;
                    assert!(close, "{format} [{row}, {column}]: {weight}, not {expected}, seed {SEED}");
                }
            }
        }
    }
}
