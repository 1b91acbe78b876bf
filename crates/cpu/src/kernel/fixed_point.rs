//! 4-bit weights with fixed-point scales times 8-bit activations: the kernel that decides the speed of Q4_1.
//!
//! The exact integers of a block of 32 columns are scaled as integers. A dot starts from `xs * (2^19 - 8)`, where xs is the sum of
//! the block's activations, and then gains every `q x`: its lower 16 bits end as the dot of `q - 8`, its upper as `8 xs`, less one
//! where the dot is negative. One instruction then makes `scale` times the lower plus `offset` times the upper half. Every output
//! element is, whatever the tile, `for each block: sum = fma(scale_x, (the block's integer), sum)`, times the row's unit; so results
//! do not depend on the batch, and all levels agree bit for bit.
//!
//! Work per panel and 32 columns: 320 bytes of weights; per row 8 dot instructions (512 multiply-adds), one for scale and offset
//! and a fused multiply-add on the same pipes: 8 of 10 slots. Ceilings on Zen 4 at 3.65 GHz, one core: 234 G multiply-adds/s for
//! dots alone, times 8/10 = 187; with a scale and a minimum of f16, as [`integer`](super::integer) has them, 8/11 = 170. The order
//! of instructions decides how near it comes, see the comments inside. With one row the memory decides.

use super::{Ahead, Epilogue, Tiles, each_tile};
use crate::{
    activations::{BLOCK, QuantBlock, TILE_ROWS},
    packed::fixed_point::{BLOCK_BYTES, QUANT_BYTES, UNIT_BYTES},
    simd::Lanes,
};
use std::sync::atomic::{Ordering, compiler_fence};

/// One panel.
#[derive(Clone, Copy)]
pub(crate) struct FixedPointPanel {
    /// As [`packed::fixed_point`](crate::packed::fixed_point) says.
    pub(crate) data: *const u8,
    /// 32-column blocks.
    pub(crate) blocks: usize,
}

/// A panel, and the activations it is multiplied with.
#[derive(Clone, Copy)]
struct Product {
    panel: FixedPointPanel,
    x: *const QuantBlock,
    ahead: Ahead,
}

/// Multiplies `panel` with `rows` rows of `x`, giving 16 columns of `out`.
///
/// # Safety
/// The level's instructions; `panel` as described; `x` holds `ceil(rows / 8)` tiles of `panel.blocks` blocks; `out` has `rows`
/// rows, `stride` apart, of 16 elements that no other thread touches.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Lanes>(
    panel: FixedPointPanel,
    x: *const QuantBlock,
    rows: usize,
    out: *mut f32,
    stride: usize,
    epilogue: Epilogue,
) {
    let ahead = Ahead::of(rows, UNIT_BYTES + panel.blocks * BLOCK_BYTES);
    // SAFETY: the caller's promises.
    unsafe { each_tile::<S>(Product { panel, x, ahead }, rows, out, stride, epilogue) }
}

impl<S: Lanes> Tiles<S> for Product {
    #[inline(always)]
    unsafe fn tile<const M: usize>(self, row: usize) -> [S::F; M] {
        let blocks = self.panel.blocks;
        let first = row % TILE_ROWS;
        // SAFETY: all offsets stay inside the panel and the tile.
        unsafe {
            let x = self.x.add(row / TILE_ROWS * blocks);
            let units = S::load(self.panel.data.cast());
            let mut data = self.panel.data.add(UNIT_BYTES);
            let mut sums = [S::splat(0.0); M];
            for block in 0..blocks {
                if self.ahead.asks(row, M, block) {
                    for line in 0..BLOCK_BYTES / 64 {
                        S::prefetch(data.wrapping_add(self.ahead.bytes + 64 * line));
                    }
                }
                add_block::<S, M>(&mut sums, data, x.add(block), first);
                data = data.add(BLOCK_BYTES);
            }
            for sum in &mut sums {
                *sum = S::mul(*sum, units);
            }
            sums
        }
    }
}

/// Adds one block of the panel times rows `first..first + M` of a tile.
///
/// # Safety
/// The level's instructions; a block at `data` and at `x`; `first + M <= 8`.
#[inline(always)]
unsafe fn add_block<S: Lanes, const M: usize>(
    sums: &mut [S::F; M],
    data: *const u8,
    x: *const QuantBlock,
    first: usize,
) {
    // SAFETY: the caller's promises.
    unsafe {
        // One pointer each, so that every row is at a constant offset.
        let q = (&raw const (*x).q).cast::<i8>().add(first * BLOCK);
        let starts = (&raw const (*x).start).cast::<i32>().add(first);
        let mut dots = [S::splat_i32(0); M];
        for (m, dot) in dots.iter_mut().enumerate() {
            *dot = S::splat_i32(*starts.add(m));
        }
        for pair in 0..4 {
            let line = S::load_line(data.add(64 * pair));
            // Keeps each line's loads with it: the compiler has no registers for those of all lines.
            compiler_fence(Ordering::SeqCst);
            let low = S::shift_right_and::<0>(line, 0x0f0f_0f0f);
            let high = S::shift_right_and::<4>(line, 0x0f0f_0f0f);
            // First all rows' dots with the one, then with the other: side by side the second waits for the first of its row, and
            // 4 % are lost.
            for (m, dot) in dots.iter_mut().enumerate() {
                *dot = S::dot_u6(*dot, low, q.add(BLOCK * m + 8 * pair));
            }
            compiler_fence(Ordering::SeqCst);
            for (m, dot) in dots.iter_mut().enumerate() {
                *dot = S::dot_u6(*dot, high, q.add(BLOCK * m + 8 * pair + 4));
            }
        }
        // Behind the quants, so that a row alone goes through memory in one direction, which prefetchers follow.
        let scales = S::load_line(data.add(QUANT_BYTES));
        for dot in &mut dots {
            *dot = S::products_i16(scales, *dot);
        }
        compiler_fence(Ordering::SeqCst);
        let scales = (&raw const (*x).scale).cast::<f32>().add(first);
        for m in 0..M {
            sums[m] = S::fma(S::to_f32(dots[m]), S::splat(*scales.add(m)), sums[m]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        activations::{ActivationBuffers, Encoding, Encodings},
        kernel::{Kernels, tests::Random},
        memory::Buffer,
        packed::{PackedMatrix, PanelKind, fixed_point, pack_panel},
        simd::{LANES, SimdLevel, scalar::f32_to_f16},
    };
    use powertrain_model::weights::{TensorView, WeightFormat};

    const SEED: u64 = 59;

    /// A packed matrix of 16 rows, and its memory.
    fn packed(file: &[u8], columns: usize) -> (PackedMatrix, Buffer<u8>) {
        let tensor = TensorView { format: WeightFormat::Q4_1, rows: LANES, columns, data: file };
        let mut matrix = PackedMatrix::describe(PanelKind::FixedPoint, LANES, columns, Encoding::Int8);
        let memory = Buffer::<u8>::zeroed(matrix.bytes());
        matrix.data = memory.as_mut_ptr();
        // SAFETY: the matrix has its memory, which is ours alone.
        unsafe { pack_panel(&matrix, 0, tensor, &|row| row) };
        (matrix, memory)
    }

    /// Blocks of Q4_1: scales and minima of either sign, of very different sizes; the quants random, or all `q`.
    fn file(random: &mut Random, columns: usize, q: Option<u8>) -> Vec<u8> {
        let mut file = Vec::new();
        for _ in 0..LANES * columns / 32 {
            let size = [0.01, 0.01, 0.001, 0.0][random.bits() as usize % 4];
            let (scale, minimum) =
                if q.is_some() { (0.01, 0.07) } else { (random.float() * size, random.float() * size) };
            file.extend(f32_to_f16(scale).to_le_bytes());
            file.extend(f32_to_f16(minimum).to_le_bytes());
            file.extend((0..16).map(|_| q.unwrap_or_else(|| random.bits() as u8)));
        }
        file
    }

    /// The product and, beside it, the integers' own value in f64, from the same activations.
    fn check(random: &mut Random, file: &[u8], columns: usize, rows: &[Vec<f32>]) {
        let (matrix, _memory) = packed(file, columns);
        let panel = FixedPointPanel { data: matrix.panel(0), blocks: columns / 32 };
        let encodings = Encodings::of([Encoding::Int8]);
        let stride = LANES + random.bits() as usize % 5;
        let product = |kernels: &Kernels| {
            let buffers = ActivationBuffers::new(rows.len(), columns, encodings);
            let x = buffers.rows_of(columns, encodings);
            let out = Buffer::<f32>::zeroed(rows.len() * stride);
            let to = out.as_mut_ptr();
            // SAFETY: panel, activations and output are as large as said.
            unsafe {
                for (index, row) in rows.iter().enumerate() {
                    (kernels.encode_row)(x, index, row.as_ptr());
                }
                (kernels.multiply_fixed_point)(panel, x.int8, rows.len(), to, stride, Epilogue::STORE);
                let blocks = std::slice::from_raw_parts(x.int8, rows.len().div_ceil(TILE_ROWS) * panel.blocks).to_vec();
                (std::slice::from_raw_parts(to, rows.len() * stride).to_vec(), blocks)
            }
        };
        let (reference, x) = product(&Kernels::of(SimdLevel::Scalar).unwrap());
        for (row, out) in reference.chunks(stride).enumerate() {
            for lane in 0..LANES {
                let (mut exact, mut size) = (0.0, 0.0);
                for column in 0..columns {
                    // SAFETY: the panel has the column.
                    let weight = f64::from(unsafe { fixed_point::weight(matrix.panel(0), lane, column) });
                    let block = &x[row / TILE_ROWS * panel.blocks + column / 32];
                    let at = row % TILE_ROWS;
                    let value = f64::from(block.scale[at]) * f64::from(block.q[at][column % 32]);
                    exact += weight * value;
                    size += weight.abs() * value.abs();
                }
                // The borrow of a negative dot is an 8th of the smallest step of a block's sum: an offset, at most 0.07 / 8.
                let borrows = (0..panel.blocks).map(|b| x[row / TILE_ROWS * panel.blocks + b].scale[row % TILE_ROWS]);
                let most = size * 1e-6 + borrows.map(|scale| f64::from(scale) * 0.02).sum::<f64>();
                let error = (exact - f64::from(out[lane])).abs();
                assert!(error <= most, "row {row} lane {lane}: {}, not {exact}, seed {SEED}", out[lane]);
            }
        }
        for kernels in SimdLevel::ALL.into_iter().filter_map(Kernels::of) {
            let same = product(&kernels).0.iter().zip(&reference).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{columns} columns, {} rows, {}, seed {SEED}", rows.len(), kernels.level);
        }
    }

    #[test]
    fn products_agree_on_all_levels_and_with_the_integers() {
        let mut random = Random(SEED);
        for columns in [32, 96, 576] {
            let file = file(&mut random, columns, None);
            let all: Vec<Vec<f32>> = (0..70).map(|_| (0..columns).map(|_| random.float()).collect()).collect();
            for rows in [1, 2, 3, 4, 5, 7, 8, 9, 13, 31, 70] {
                check(&mut random, &file, columns, &all[..rows]);
            }
        }
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let mut random = Random(SEED);
        for q in [0x00, 0xff] {
            for x in [-1.0, 1.0] {
                let file = file(&mut random, 128, Some(q));
                check(&mut random, &file, 128, &vec![vec![x; 128]; 9]);
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let mut random = Random(SEED);
        let (matrix, _memory) = packed(&file(&mut random, 576, None), 576);
        let panel = FixedPointPanel { data: matrix.panel(0), blocks: 18 };
        let rows: Vec<Vec<f32>> = (0..33).map(|_| (0..576).map(|_| random.float()).collect()).collect();
        for kernels in SimdLevel::ALL.into_iter().filter_map(Kernels::of) {
            let product = |rows: &[Vec<f32>]| {
                let encodings = Encodings::of([Encoding::Int8]);
                let buffers = ActivationBuffers::new(rows.len(), 576, encodings);
                let x = buffers.rows_of(576, encodings);
                let mut out = vec![0.0f32; rows.len() * LANES];
                // SAFETY: panel, activations and output are as large as said.
                unsafe {
                    for (index, row) in rows.iter().enumerate() {
                        (kernels.encode_row)(x, index, row.as_ptr());
                    }
                    let to = out.as_mut_ptr();
                    (kernels.multiply_fixed_point)(panel, x.int8, rows.len(), to, LANES, Epilogue::STORE);
                }
                out
            };
            let together = product(&rows);
            for (row, together) in rows.iter().zip(together.chunks(LANES)) {
                assert_eq!(product(std::slice::from_ref(row)), together, "{}, seed {SEED}", kernels.level);
            }
        }
    }
}
