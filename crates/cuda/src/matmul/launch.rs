//! How each way is launched: its grid, its shared memory, and the kernels that stand around it.

use super::Matmul;
use crate::{
    cublaslt::Lt,
    driver::{DevicePointer, Shape, Stream},
    error::CudaError,
    even::{self, Made},
    kernels::{
        GATED_SHARED_BYTES, GATED_WIDTHS, GEMV_STAGE_BYTES, GEMV_STAGES_MAX, GEMV_STATIC_BYTES, Gemv, Kernels,
        PAIR_PART_BOX, PAIR_PARTS_MAX, PAIR_TILE, launch, shape,
    },
    pairs::{self, Items},
    product::{Norm, Output, Product},
    skinny::{self, SKINNY_ROWS, Tiling},
    tensor_map::TensorMap,
};

/// Rows the streaming kernel takes.
pub(super) const GEMV_ROWS: usize = 16;
/// Dynamic shared memory of a block of the streaming kernel so that two fit a multiprocessor.
const GEMV_BESIDE_BYTES: usize = 100 << 10;
/// Blocks of 512 columns up to which a tile is short (gemv.cu's DIRECT_BLOCKS), and the stages such products get.
const GEMV_SHORT_BLOCKS: usize = 3;
const GEMV_SHORT_STAGES: usize = 5;
/// Rows a block of the kernel for norms' factors takes.
const FACTOR_ROWS: usize = 8;
/// Blocks of the activation kernel aimed at.
const ACTIVATION_BLOCKS: u32 = 1056;

impl Matmul {
    /// Whether the streaming kernel takes a product.
    pub(crate) fn streams(&self, p: &Product<'_>) -> bool {
        p.m <= GEMV_ROWS && self.gemv_stages(p.m, p.matrix.columns).is_some()
    }

    /// Stages of the ring that fit beside `m` rows of x; `None` when too few would.
    fn gemv_stages(&self, m: usize, columns: usize) -> Option<usize> {
        let x_bytes = m * ((columns * 2).next_multiple_of(128) + 64);
        let free = (self.shared_memory_max - GEMV_STATIC_BYTES).checked_sub(x_bytes)?;
        let stages = (free / GEMV_STAGE_BYTES).min(GEMV_STAGES_MAX);
        (stages >= 3).then_some(stages)
    }

    pub(super) fn gemv(&self, kernels: &Kernels, stream: &Stream, p: &Product<'_>) -> Result<(), CudaError> {
        let Some(mut stages) = self.gemv_stages(p.m, p.matrix.columns) else {
            return Err(CudaError::Unsupported(format!(
                "a matrix of {} columns does not fit shared memory",
                p.matrix.columns
            )));
        };
        let (norm_weight, epsilon) = p.norm.map_or((0, 0.0), |norm| (norm.weight, norm.epsilon));
        // No more than a block fills: small products leave room for the next kernel's blocks beside them.
        let tiles = p.matrix.rows.div_ceil(16) as u32;
        let x_bytes = p.m * ((p.matrix.columns * 2).next_multiple_of(128) + 64);
        let column_blocks = p.matrix.columns.div_ceil(512);
        // Short tiles: two blocks on a multiprocessor hide each other's ends.
        let beside =
            column_blocks <= GEMV_SHORT_BLOCKS && GEMV_SHORT_STAGES * GEMV_STAGE_BYTES + x_bytes <= GEMV_BESIDE_BYTES;
        if beside {
            stages = stages.min(GEMV_SHORT_STAGES);
        }
        let grid = tiles.min(self.multiprocessors * if beside { 2 } else { 1 });
        let tiles_each = tiles.div_ceil(grid) as usize;
        stages = stages.min(tiles_each * column_blocks);
        let direct = p.m <= 8
            && tiles_each == 1
            && column_blocks <= stages.min(GEMV_SHORT_BLOCKS)
            && norm_weight == 0
            && p.x_rows == 0;
        let function = kernels.gemv[if direct { 2 } else { usize::from(p.m > 8) }];
        let (mode, gelu) = p.output.mode();
        let arguments = Gemv {
            weights: p.matrix.buffer.pointer(),
            x: p.x,
            x_rows: p.x_rows,
            norm_weight,
            bias: p.bias,
            out: p.out,
            epsilon,
            softcap: p.softcap,
            m: p.m as i32,
            n: p.matrix.rows as i32,
            k: p.matrix.columns as i32,
            stages: stages as i32,
            mode,
            gelu,
            normalise: i32::from(p.norm.is_some() && norm_weight == 0),
        };
        let shape = Shape {
            grid: (grid, 1, 1),
            threads: 288,
            shared_bytes: (stages * GEMV_STAGE_BYTES + x_bytes) as u32,
            cluster: 0,
            overlap: true,
        };
        launch!(stream, function, shape, arguments)
    }

    pub(super) fn skinny(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        p: &Product<'_>,
        tiling: Tiling,
        leaves_norm: bool,
    ) -> Result<(), CudaError> {
        let folded = p.folded_norm();
        let x = if folded.is_some() { p.x } else { self.normalised(kernels, stream, p)? };
        let epsilon = folded.filter(|_| !leaves_norm).map(|norm| norm.epsilon);
        skinny::run(kernels, stream, p, x, epsilon, tiling, self.shared_memory_max)
    }

    pub(super) fn skinny_leaves_norm(&self, p: &Product<'_>) -> bool {
        self.element.holds_unnormalised() && skinny::leaves_norm(p)
    }

    /// The ways to divide a matrix among skinny.cu's blocks, best guess first.
    pub(crate) fn tilings(&self, p: &Product<'_>) -> Vec<Tiling> {
        Tiling::candidates(self.multiprocessors as usize, p.matrix.rows, p.matrix.columns)
    }

    /// The rows in groups of what our own kernels take.
    pub(super) fn in_groups(&self, kernels: &Kernels, stream: &Stream, p: &Product<'_>) -> Result<(), CudaError> {
        let streamed = [16, 8, 4, 2, 1].into_iter().find(|&m| self.gemv_stages(m, p.matrix.columns).is_some());
        // How skinny.cu applies a norm depends on the number of rows.
        let skinny = !self.deterministic && in_skinny_groups(p);
        let group = if skinny { SKINNY_ROWS } else { streamed.unwrap_or(1) };
        let out_bytes = match p.output {
            Output::Store | Output::Residual => p.matrix.rows * 2,
            Output::Gated { .. } => p.matrix.rows,
            Output::Logits => p.matrix.rows * 4,
        };
        for first in (0..p.m).step_by(group) {
            let part = Product {
                m: group.min(p.m - first),
                x: if p.x_rows == 0 { p.x + (first * p.matrix.columns * 2) as u64 } else { p.x },
                x_rows: if p.x_rows == 0 { 0 } else { p.x_rows + first as u64 * 4 },
                out: p.out + (first * out_bytes) as u64,
                ..*p
            };
            match skinny {
                true => self.skinny(kernels, stream, &part, self.tilings(p)[0], self.skinny_leaves_norm(p))?,
                false => self.gemv(kernels, stream, &part)?,
            }
        }
        Ok(())
    }

    /// Gate and up of few rows with the activation in one kernel.
    pub(super) fn even_gated(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        p: &Product<'_>,
        gelu: bool,
    ) -> Result<(), CudaError> {
        let (x, factors) = self.with_factors(kernels, stream, p)?;
        let made = Made::Gated { gelu, factors };
        even::run(kernels, stream, p, (x, p.out), made, self.multiprocessors as usize)
    }

    /// Gate and up with the activation in one kernel.
    pub(super) fn gated(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        p: &Product<'_>,
        gelu: bool,
    ) -> Result<(), CudaError> {
        let (n, k) = (p.matrix.rows, p.matrix.columns);
        let (x, factors) = self.with_factors(kernels, stream, p)?;
        let weights = p.matrix.buffer.pointer();
        let pairs = (self.multiprocessors / 2) as usize;
        let (which, items) = match self.gated_width {
            Some(which) => (which, Items::of_width(p.m, n, which, pairs)),
            None => Items::of_gated(p.m, n, k, pairs),
        };
        let x = TensorMap::matrix(x, p.m, k, PAIR_TILE.0)?;
        let whole = TensorMap::matrix(weights, n, k, GATED_WIDTHS[which] / 2)?;
        let part = TensorMap::matrix(weights, n, k, PAIR_PART_BOX)?;
        let out = TensorMap::matrix(p.out, p.m, n / 2, PAIR_TILE.0 / 2)?;
        let out_columns = PAIR_TILE.1 / 2 / PAIR_PARTS_MAX;
        let out_part = TensorMap::matrix_in(p.out, p.m, n / 2, [PAIR_TILE.0 / 2, out_columns])?;
        let shape = pairs::shape(items, pairs, GATED_SHARED_BYTES);
        let (m, n, k, gelu) = (p.m as i32, n as i32, k as i32, i32::from(gelu));
        launch!(stream, kernels.gated[which], shape, x, whole, part, out, out_part, factors, m, n, k, items, gelu)
    }

    /// The product's input and its norm's factors, which the product is to apply to its sums. Where the norm's weights are not in the matrix, the
    /// input is behind it and the factors are 0: none.
    fn with_factors(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        p: &Product<'_>,
    ) -> Result<(DevicePointer, DevicePointer), CudaError> {
        let Some(Norm { epsilon, .. }) = p.folded_norm() else { return Ok((self.normalised(kernels, stream, p)?, 0)) };
        let factors = self.normed.pointer();
        let (rows, width) = (p.m as i32, p.matrix.columns as i32);
        let shape = shape((p.m.div_ceil(FACTOR_ROWS) as u32, 1, 1), 32 * FACTOR_ROWS as u32);
        launch!(stream, kernels.norm_factors, shape, p.x, factors, rows, width, epsilon)?;
        Ok((p.x, factors))
    }

    /// The product's input behind its norm, which takes a kernel where there is one.
    pub(super) fn normalised(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        p: &Product<'_>,
    ) -> Result<DevicePointer, CudaError> {
        let Some(norm) = p.norm else { return Ok(p.x) };
        let (none, no_epsilon, width): (DevicePointer, f32, i32) = (0, 0.0, p.matrix.columns as i32);
        let (x, rows, out) = (p.x, p.x_rows, self.normed.pointer());
        let shape = shape((p.m as u32, 1, 1), norm_threads(p.matrix.columns));
        let function = kernels.add_norm[usize::from(p.matrix.columns > 4096)];
        let Norm { weight, epsilon } = norm;
        launch!(stream, function, shape, x, none, none, no_epsilon, weight, epsilon, out, rows, width)?;
        Ok(out)
    }

    pub(super) fn with_library(
        &self,
        lt: &Lt,
        kernels: &Kernels,
        stream: &Stream,
        p: &Product<'_>,
    ) -> Result<(), CudaError> {
        let (n, m) = (p.matrix.rows, p.m as u32);
        // A norm whose weights are in the matrix is a factor per row: who reads the result next can apply it.
        let later = match p.output {
            Output::Store | Output::Gated { .. } => p.folded_norm().filter(|_| self.element.holds_unnormalised()),
            Output::Residual | Output::Logits => None,
        };
        let x = if later.is_some() { p.x } else { self.normalised(kernels, stream, p)? };
        let w = p.matrix.buffer.pointer();
        match p.output {
            Output::Store => lt.run(stream, p.key(), self.deterministic, w, x, p.out)?,
            Output::Residual => lt.run(stream, p.key(), self.deterministic, w, x, p.out)?,
            Output::Logits => {
                lt.run(stream, p.key(), self.deterministic, w, x, p.out)?;
                if p.softcap > 0.0 {
                    let count = (p.m * n) as u64;
                    launch!(stream, kernels.softcap_logits, shape((1024, 1, 1), 256), p.out, count, p.softcap)?;
                }
            }
            Output::Gated { gelu } => {
                let gate_up = self.gate_up.pointer();
                lt.run(stream, p.key(), self.deterministic, w, x, gate_up)?;
                let (width, gelu) = ((n / 2) as i32, i32::from(gelu));
                let (residual, epsilon) = later.map_or((0, 0.0), |norm| (p.x, norm.epsilon));
                let columns = p.matrix.columns as i32;
                // Few rows: as many blocks as the device holds at once; each reads the row's residual.
                let blocks = (n as u32 / 16).div_ceil(256);
                let grid = (blocks.min((ACTIVATION_BLOCKS / m).max(1)), m, 1);
                launch!(
                    stream,
                    kernels.gated_activation,
                    shape(grid, 256),
                    gate_up,
                    p.out,
                    width,
                    gelu,
                    residual,
                    columns,
                    epsilon
                )?;
            }
        }
        if p.bias != 0 {
            let width = n as i32;
            launch!(stream, kernels.add_bias, shape((m, 1, 1), 256), p.out, p.bias, width)?;
        }
        Ok(())
    }
}

/// Whether skinny.cu takes a product's rows in groups where there is no cuBLASLt.
pub(super) fn in_skinny_groups(p: &Product<'_>) -> bool {
    skinny::takes(&Product { m: SKINNY_ROWS, ..*p })
}

/// Threads of `add_norm` for a row: each holds up to 32 elements.
pub(crate) fn norm_threads(width: usize) -> u32 {
    ((width / 8).next_multiple_of(32) as u32).clamp(32, 512)
}
