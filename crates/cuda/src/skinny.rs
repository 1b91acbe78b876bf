//! Products of up to [`SKINNY_ROWS`] rows by skinny.cu: how a matrix is divided among blocks, and the launch.

use crate::{
    driver::{DevicePointer, Shape, Stream},
    error::CudaError,
    kernels::{Kernels, SKINNY_COLUMNS, SKINNY_DEPTH, SKINNY_STAGES_MAX, SKINNY_STATIC_BYTES, Skinny, launch},
    product::{Output, Product},
    tensor_map::TensorMap,
};

/// Rows of x that skinny.cu takes.
pub(crate) const SKINNY_ROWS: usize = 128;
/// Rows of x up to which a stored product has its norm computed on the way. Beyond, the squares take the consumers' time, and the attention
/// kernels compute the factor beside their own loads.
const NORM_ROWS: usize = 16;
/// A matrix below this is streamed in about ten microseconds.
const SMALL_BYTES: usize = 32 << 20;
/// Blocks of a cluster at most: what every device that has clusters grants.
const SPLITS_MAX: usize = 8;
/// Shared memory that a multiprocessor keeps of each block's.
const RESERVED_BYTES: usize = 1024;
/// Room to begin the ring on a multiple of this.
const ALIGNMENT_BYTES: usize = 1024;

/// How a matrix is divided among blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    /// Warpgroups of a block, 64 rows of weights each: 1 or 2.
    pub(crate) groups: usize,
    /// Blocks of a cluster, which divide the columns of the weights: 1, 2, 4 or 8.
    pub(crate) splits: usize,
}

impl Tiling {
    /// What may be fastest for a matrix of `n` rows and `k` columns: about as many blocks as there are multiprocessors, or twice as many. The
    /// first is the best guess.
    pub(crate) fn candidates(multiprocessors: usize, n: usize, k: usize) -> Vec<Self> {
        let mut candidates = Vec::new();
        for groups in [1, 2] {
            let tiles = n.div_ceil(64 * groups);
            for blocks in [multiprocessors, 2 * multiprocessors] {
                let splits = 1 << (blocks / tiles).clamp(1, SPLITS_MAX.min(k.div_ceil(SKINNY_DEPTH))).ilog2();
                if !candidates.contains(&Self { groups, splits }) {
                    candidates.push(Self { groups, splits });
                }
            }
        }
        // Wide tiles read x less often; narrow ones leave less to sum across blocks.
        candidates.sort_by_key(|tiling| (tiling.splits, std::cmp::Reverse(tiling.groups)));
        candidates
    }
}

/// Whether skinny.cu can compute a product: its epilogue takes four columns of the result at a time, or eight gates and eight ups.
pub(crate) fn takes(p: &Product<'_>) -> bool {
    let whole = match p.output {
        Output::Gated { .. } => p.matrix.rows.is_multiple_of(16) && p.bias == 0,
        Output::Store | Output::Residual | Output::Logits => p.matrix.rows.is_multiple_of(4),
    };
    whole && p.m <= SKINNY_ROWS && p.matrix.columns.is_multiple_of(8)
}

/// Whether a product may be chosen by its own time. Whole steps of Llama-3.1-8B at 8 and at 48 and more rows were slower by up to 3 % with this
/// kernel for all products though each was faster, those of Qwen2.5-1.5B above 64 rows by 1 %.
pub(crate) fn pays(p: &Product<'_>) -> bool {
    let small = p.matrix.rows * p.matrix.columns * 2 < SMALL_BYTES;
    match p.m {
        9..=32 => true,
        ..=64 => small,
        _ => false,
    }
}

/// Whether [`run`] is to leave the norm's factor to the reader of the result.
pub(crate) fn leaves_norm(p: &Product<'_>) -> bool {
    p.folded_norm().is_some() && p.output == Output::Store && p.m > NORM_ROWS
}

/// Launches a product of `x[m, columns]`, with the factor of x's norm where `epsilon` is given. `shared_memory_max` is what one block may have.
pub(crate) fn run(
    kernels: &Kernels,
    stream: &Stream,
    p: &Product<'_>,
    x: DevicePointer,
    epsilon: Option<f32>,
    tiling: Tiling,
    shared_memory_max: usize,
) -> Result<(), CudaError> {
    let (n, k) = (p.matrix.rows, p.matrix.columns);
    let Tiling { groups, splits } = tiling;
    let wide = SKINNY_COLUMNS.iter().position(|&columns| p.m <= columns).expect("`takes` bounds the rows");
    let weights = TensorMap::matrix(p.matrix.buffer.pointer(), n, k, 64 * groups)?;
    let x = TensorMap::matrix(x, p.m, k, p.m)?;
    // Half of a multiprocessor, so that the next kernel's blocks find room; no more stages than steps.
    let stage_bytes = (64 * groups + SKINNY_COLUMNS[wide]) * SKINNY_DEPTH * 2;
    let half = (shared_memory_max + RESERVED_BYTES) / 2 - RESERVED_BYTES - SKINNY_STATIC_BYTES;
    let steps = k.div_ceil(SKINNY_DEPTH).div_ceil(splits);
    let stages = ((half - ALIGNMENT_BYTES) / stage_bytes).min(steps).min(SKINNY_STAGES_MAX);
    // The partial sums take the ring's place.
    let sums_bytes = p.m * (64 * groups + 4) * 4;
    let (mode, gelu) = p.output.mode();
    let arguments = Skinny {
        bias: p.bias,
        out: p.out,
        epsilon: epsilon.unwrap_or(0.0),
        softcap: p.softcap,
        m: p.m as i32,
        n: n as i32,
        k: k as i32,
        stages: stages as i32,
        splits: splits as i32,
        mode,
        gelu,
        normalise: i32::from(epsilon.is_some()),
    };
    let shape = Shape {
        grid: ((n.div_ceil(64 * groups) * splits) as u32, 1, 1),
        threads: 128 * groups as u32 + 32,
        shared_bytes: ((stages * stage_bytes).max(sums_bytes) + ALIGNMENT_BYTES) as u32,
        cluster: splits as u32,
        overlap: true,
    };
    launch!(stream, kernels.skinny[wide][groups - 1], shape, weights, x, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_fill_the_device_without_more_splits_than_a_cluster_or_the_columns_hold() {
        for (n, k) in [(48, 48), (1536, 1536), (1536, 8960), (17920, 1536), (4096, 14336), (151_936, 1536)] {
            let candidates = Tiling::candidates(132, n, k);
            assert!(!candidates.is_empty());
            for tiling in candidates {
                let blocks = n.div_ceil(64 * tiling.groups) * tiling.splits;
                assert!(tiling.splits == 1 || blocks <= 264, "{n} x {k}: {tiling:?}");
                assert!(
                    tiling.splits <= SPLITS_MAX && tiling.splits <= k.div_ceil(SKINNY_DEPTH),
                    "{n} x {k}: {tiling:?}"
                );
            }
        }
    }
}
