//! Products of up to [`EVEN_ROWS`] rows by even.cu: how a matrix is divided among multiprocessors, and the launch.

use crate::{
    driver::{DevicePointer, Shape, Stream},
    error::CudaError,
    kernels::{EVEN_STAGES, EVEN_TILES, Even, Kernels, launch},
    product::{Output, Product},
    tensor_map::{BOX_COLUMNS, TensorMap},
};

/// Rows of x that even.cu takes.
pub(crate) const EVEN_ROWS: usize = 128;
/// Threads of a block.
const THREADS: u32 = 288;

/// Which of [`EVEN_TILES`] gives no multiprocessor more rows than need be.
pub(crate) fn tile_of(multiprocessors: usize, n: usize) -> usize {
    let rows_each = |tile: usize| n.div_ceil(tile).div_ceil(multiprocessors) * tile;
    (0..EVEN_TILES.len()).min_by_key(|&which| rows_each(EVEN_TILES[which])).expect("there are tiles")
}

/// Whether even.cu can compute gate and up of a product.
pub(crate) fn takes_gated(p: &Product<'_>) -> bool {
    matches!(p.output, Output::Gated { .. }) && p.matrix.rows.is_multiple_of(16) && p.bias == 0 && takes(p)
}

/// Whether its copies can bring the operands.
pub(crate) fn takes(p: &Product<'_>) -> bool {
    p.m <= EVEN_ROWS && p.matrix.columns.is_multiple_of(8)
}

/// What even.cu is to make of the products.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Made {
    /// Gate and up with the activation; `factors` of x's norm, or 0.
    Gated { gelu: bool, factors: DevicePointer },
    /// The highest of each row and its column, joined with what is there.
    Best,
}

/// Launches products of `x[m, columns]`, by at most so many blocks at once.
pub(crate) fn run(
    kernels: &Kernels,
    stream: &Stream,
    p: &Product<'_>,
    (x, out): (DevicePointer, DevicePointer),
    made: Made,
    multiprocessors: usize,
) -> Result<(), CudaError> {
    let (n, k) = (p.matrix.rows, p.matrix.columns);
    let which = tile_of(multiprocessors, n);
    let tile = EVEN_TILES[which];
    let weights = TensorMap::matrix(p.matrix.buffer.pointer(), n, k, tile)?;
    let x = TensorMap::matrix(x, p.m, k, p.m)?;
    let (functions, gelu, factors) = match made {
        Made::Gated { gelu, factors } => (&kernels.even_gated, gelu, factors),
        Made::Best => (&kernels.even_best, false, 0),
    };
    let arguments =
        Even { out, factors, softcap: p.softcap, m: p.m as i32, n: n as i32, k: k as i32, gelu: i32::from(gelu) };
    let shape = Shape {
        grid: (n.div_ceil(tile).min(multiprocessors) as u32, 1, 1),
        threads: THREADS,
        shared_bytes: shared_bytes(which),
        cluster: 0,
        overlap: true,
    };
    launch!(stream, functions[which], shape, x, weights, arguments)
}

/// Dynamic shared memory of a kernel: its ring, and room to begin on a multiple of 1024.
pub(crate) fn shared_bytes(which: usize) -> u32 {
    let stage = (EVEN_ROWS + EVEN_TILES[which]) * BOX_COLUMNS * 2;
    (EVEN_STAGES[which] * stage + 1024) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_chosen_so_that_multiprocessors_have_as_many() {
        let tile = |n| EVEN_TILES[tile_of(132, n)];
        // Gate and up of Qwen2.5-1.5B: 125 of 132 have one. Of Llama-3.1-8B 128 have one of 224, where 68 of 132 would have two of 144.
        assert_eq!((tile(17_920), tile(28_672)), (144, 224));
        // Heads: eight of 144 each, and seven.
        assert_eq!((tile(151_936), tile(128_256)), (144, 144));
    }
}
