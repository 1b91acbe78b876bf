//! Products with weight matrices: which kernel computes which, and the norms, activations and sums fused with them.
//!
//! Up to [`GEMV_ROWS`] rows the weight-streaming kernel can do it all in one launch, up to [`SKINNY_ROWS`] skinny.cu. Above, cuBLASLt multiplies
//! and small kernels stand around it; where several can, [`Matmul::tune`] measures which is fastest. Without cuBLASLt our own kernels take
//! the rows in groups: slow for prompts, and said at start.

use crate::{
    cublaslt::{Lt, LtKey, LtKind},
    driver::{Buffer, Context, DevicePointer, Event, Shape, Stream},
    element::Element,
    error::CudaError,
    kernels::{
        GATED_SHARED_BYTES, GATED_TILE, GEMV_STAGE_BYTES, GEMV_STAGES_MAX, GEMV_STATIC_BYTES, Gemv, Kernels,
        WARPGROUP_THREADS, launch, shape,
    },
    skinny::{self, SKINNY_ROWS, Tiling},
    tensor_map::TensorMap,
    tuned::Tuned,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

/// Rows the streaming kernel takes.
pub(crate) const GEMV_ROWS: usize = 16;
/// Rows from which gated.cu may pay.
const GATED_ROWS: usize = 160;
/// Dynamic shared memory of a block of the streaming kernel so that two fit a multiprocessor.
const GEMV_BESIDE_BYTES: usize = 100 << 10;
/// Blocks of 512 columns up to which a tile is short (gemv.cu's DIRECT_BLOCKS), and the stages such products get.
const GEMV_SHORT_BLOCKS: usize = 3;
const GEMV_SHORT_STAGES: usize = 5;
/// What a kernel costs that does not overlap with its neighbours, beside one that does. With 3 us, Llama-3.1-8B at 64 rows took own kernels for
/// products that cuBLASLt computes 1 to 2 us faster; with 0, Qwen2.5-1.5B at 16 rows lost 0.1 ms a step.
const CHAIN_BREAK_MS: f32 = 0.001;
/// Rows a block of the kernel for norms' factors takes.
const FACTOR_ROWS: usize = 8;
/// Blocks of the activation kernel aimed at.
const ACTIVATION_BLOCKS: u32 = 1056;

/// A weight matrix, `[rows, columns]` of elements.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) buffer: Buffer,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// Where a product goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    /// Elements `[m, rows]`.
    Store,
    /// Added to elements `[m, rows]`.
    Residual,
    /// The matrix alternates eight gate rows and eight up rows; `activation(gate) * up` as elements `[m, rows / 2]`.
    Gated {
        /// GELU (tanh) instead of SiLU.
        gelu: bool,
    },
    /// f32 `[m, rows]`.
    Logits,
}

impl Output {
    /// As gemv.cu and skinny.cu number it (common.cuh), and whether the activation is GELU.
    pub(crate) fn mode(self) -> (i32, i32) {
        match self {
            Self::Store => (0, 0),
            Self::Residual => (1, 0),
            Self::Gated { gelu } => (2, i32::from(gelu)),
            Self::Logits => (3, 0),
        }
    }
}

/// An RMS norm in front of a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    /// f32 `[columns]`; 0 when the matrix's columns have been multiplied by it.
    pub(crate) weight: DevicePointer,
    pub(crate) epsilon: f32,
}

/// One product: `x[m, columns] . matrix^T`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) x: DevicePointer,
    /// Which rows of `x`, as i32; 0 takes them in order. Only with `norm`.
    pub(crate) x_rows: DevicePointer,
    /// An RMS norm of `x`.
    pub(crate) norm: Option<Norm>,
    /// f32 `[rows]`, or 0.
    pub(crate) bias: DevicePointer,
    pub(crate) out: DevicePointer,
    pub(crate) output: Output,
    /// Soft cap of logits; 0.0 is none.
    pub(crate) softcap: f32,
    pub(crate) m: usize,
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// gemv.cu, whatever stands around the product included.
    Streaming,
    /// skinny.cu, likewise, but for a norm whose weights are not in the matrix.
    Skinny(Tiling),
    /// cuBLASLt and small kernels.
    Library,
    /// gated.cu behind a kernel for the norm or its factors.
    Fused,
}

/// The products' kernels and scratch memory.
pub(crate) struct Matmul {
    lt: Option<Lt>,
    pub(crate) element: Element,
    /// Elements `[tokens, widest input]`: normalised inputs.
    normed: Buffer,
    /// Elements `[tokens, widest output]`: gate and up before the activation, and whatever tuning writes.
    gate_up: Buffer,
    multiprocessors: u32,
    shared_memory_max: usize,
    /// Overrides how products are computed, for checks.
    pub(crate) forced: Option<Way>,
    /// Whether skinny.cu is among the choices; `false` for comparisons.
    pub(crate) skinny: bool,
    /// Every product of a matrix by one algorithm, whatever the number of rows.
    pub(crate) deterministic: bool,
    /// What was measured to be fastest, by shape.
    fastest: RefCell<HashMap<(LtKey, Output), Way>>,
    /// The same, beyond this process.
    kept: RefCell<Tuned>,
    /// How many of them this process timed.
    timed: Cell<u64>,
}

impl Matmul {
    pub(crate) fn new(
        context: &Context,
        element: Element,
        tokens: usize,
        hidden_size: usize,
        widest_output: usize,
    ) -> Result<Self, CudaError> {
        let alone = Self::without_library(context, element, tokens, hidden_size, widest_output)?;
        let lt = if crate::libraries::cublaslt_present() { Some(Lt::new(context, element)?) } else { None };
        Ok(Self { lt, ..alone })
    }

    /// As where there is no cuBLASLt.
    pub(crate) fn without_library(
        context: &Context,
        element: Element,
        tokens: usize,
        hidden_size: usize,
        widest_output: usize,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            lt: None,
            element,
            normed: Buffer::allocate(context, tokens * hidden_size * 2, "workspace")?,
            gate_up: Buffer::allocate(context, tokens * widest_output * 2, "workspace")?,
            multiprocessors: context.multiprocessors,
            shared_memory_max: context.shared_memory_max,
            forced: None,
            skinny: true,
            deterministic: false,
            fastest: RefCell::default(),
            kept: RefCell::default(),
            timed: Cell::new(0),
        })
    }

    /// Sets all bytes of the memory for what stands between kernels. Nothing depends on them: checks put NaN there (0xff) to show it.
    pub(crate) fn fill_scratch(&self, stream: &Stream, byte: u8) -> Result<(), CudaError> {
        self.normed.fill(stream, byte)?;
        self.gate_up.fill(stream, byte)
    }

    /// `cuBLASLt 13.1.0`, or what stands in for it.
    pub(crate) fn library(&self) -> String {
        match &self.lt {
            Some(_) => format!("cuBLASLt {}", Lt::version()),
            None => "no cuBLASLt: own kernels only, slow for prompts".into(),
        }
    }

    /// Puts a product on the stream.
    pub(crate) fn run(&self, kernels: &Kernels, stream: &Stream, p: &Product<'_>) -> Result<(), CudaError> {
        self.run_as(self.way(p), kernels, stream, p)
    }

    /// Whether [`run`](Self::run) leaves the norm's factor for the reader of the result to apply: `out = x . matrix^T` of the raw x.
    pub(crate) fn leaves_norm(&self, p: &Product<'_>) -> bool {
        if !self.element.holds_unnormalised() {
            return false;
        }
        match self.way(p) {
            Way::Streaming | Way::Fused => false,
            Way::Skinny(_) => skinny::leaves_norm(p),
            Way::Library if self.lt.is_some() => p.folded_norm().is_some() && p.output == Output::Store,
            Way::Library => in_skinny_groups(p) && skinny::leaves_norm(p),
        }
    }

    /// What was measured to be fastest, or what is expected to be.
    fn way(&self, p: &Product<'_>) -> Way {
        if self.deterministic {
            return Way::Library;
        }
        if let Some(way) = self.forced {
            return way;
        }
        if let Some(&way) = self.fastest.borrow().get(&(p.key(), p.output)) {
            return way;
        }
        if self.streams(p) {
            Way::Streaming
        } else if self.expects_fused(p) {
            Way::Fused
        } else {
            Way::Library
        }
    }

    fn run_as(&self, way: Way, kernels: &Kernels, stream: &Stream, p: &Product<'_>) -> Result<(), CudaError> {
        match (way, p.output, &self.lt) {
            (Way::Streaming, ..) => self.gemv(kernels, stream, p),
            (Way::Skinny(tiling), ..) => self.skinny(kernels, stream, p, tiling, self.skinny_leaves_norm(p)),
            (Way::Fused, Output::Gated { gelu }, _) => self.gated(kernels, stream, p, gelu),
            (_, _, Some(lt)) => self.with_library(lt, kernels, stream, p),
            (_, _, None) => self.in_groups(kernels, stream, p),
        }
    }

    /// Whether gated.cu is expected to be faster than cuBLASLt and the activation kernel: by how full its waves of tiles are, and by what
    /// the activation's pass costs beside the product. Fitted to 39 measured shapes (docs/benchmarks/h100-raw/gated.txt): right on 37; on 192
    /// and 256 rows of Llama-3.1-8B it leaves 5 and 11 %, which tuning finds where it runs.
    fn expects_fused(&self, p: &Product<'_>) -> bool {
        let (n, k) = (p.matrix.rows, p.matrix.columns);
        let clusters = (self.multiprocessors / 2) as usize;
        let tiles = p.m.div_ceil(2 * GATED_TILE.0) * n.div_ceil(GATED_TILE.1);
        let places = tiles.next_multiple_of(clusters) * 2 * GATED_TILE.0 * GATED_TILE.1;
        let filled = (p.m * n) as f64 / places as f64;
        matches!(p.output, Output::Gated { .. }) && p.m >= GATED_ROWS && filled * (1.0 + 500.0 / k as f64) >= 1.05
    }

    /// Times cuBLASLt's algorithms for these products and keeps the fastest of each shape, then that against our own kernels where they
    /// can. `products` of one shape are taken in turn, so that their weights come from memory as they do in a step.
    /// Overwrites the products' outputs.
    pub(crate) fn tune(&self, kernels: &Kernels, stream: &Stream, products: &[Product<'_>]) -> Result<(), CudaError> {
        let Some(lt) = self.lt.as_ref().filter(|_| !self.deterministic) else { return Ok(()) };
        for ((key, output), same) in by_shape(products) {
            let ways = self.ways(same[0]);
            if self.recall(lt, key, output, &ways)? {
                continue;
            }
            let out = match key.kind {
                LtKind::F32 => same[0].out,
                LtKind::Element | LtKind::ElementAdd => self.gate_up.pointer(),
            };
            let operands: Vec<_> = same.iter().map(|p| (p.matrix.buffer.pointer(), p.x)).collect();
            lt.tune(stream, key, &operands, out)?;
            let mut best = (f32::INFINITY, Way::Library);
            for way in ways {
                let alone = time(stream, &same, |p| self.run_as(way, kernels, stream, p))?;
                // Among kernels that start before their neighbours end, another costs more than it does alone.
                let breaks = !matches!(way, Way::Streaming | Way::Skinny(_));
                let milliseconds = alone + if breaks { CHAIN_BREAK_MS * timed(same.len()) as f32 } else { 0.0 };
                if milliseconds < best.0 {
                    best = (milliseconds, way);
                }
            }
            self.fastest.borrow_mut().insert((key, output), best.1);
            self.timed.set(self.timed.get() + 1);
            if let Some(algorithm) = lt.choice(key) {
                self.kept.borrow_mut().set(format!("{key:?} {output:?}"), format!("{algorithm} {:?}", best.1));
            }
        }
        Ok(())
    }

    /// Takes over what is known of these products' shapes, and times nothing. Whether all are known.
    pub(crate) fn recall_all(&self, products: &[Product<'_>]) -> Result<bool, CudaError> {
        let Some(lt) = self.lt.as_ref().filter(|_| !self.deterministic) else { return Ok(true) };
        let mut all = true;
        for ((key, output), same) in by_shape(products) {
            all &= self.recall(lt, key, output, &self.ways(same[0]))?;
        }
        Ok(all)
    }

    /// What may be fastest for a product.
    fn ways(&self, p: &Product<'_>) -> Vec<Way> {
        let mut ways = vec![Way::Library];
        if self.streams(p) {
            ways.push(Way::Streaming);
        }
        if matches!(p.output, Output::Gated { .. }) && p.m >= GATED_ROWS {
            ways.push(Way::Fused);
        }
        if self.skinny && skinny::takes(p) && skinny::pays(p) {
            ways.extend(self.tilings(p).into_iter().map(Way::Skinny));
        }
        ways
    }

    /// Takes over what an earlier process or an earlier tuning found for a shape, if that is one of `ways`.
    fn recall(&self, lt: &Lt, key: LtKey, output: Output, ways: &[Way]) -> Result<bool, CudaError> {
        let kept = self.kept.borrow();
        let choice = kept.get(&format!("{key:?} {output:?}")).and_then(|choice| choice.split_once(' '));
        let Some((algorithm, name)) = choice else { return Ok(false) };
        let Some(&way) = ways.iter().find(|way| format!("{way:?}") == name) else { return Ok(false) };
        if self.fastest.borrow().get(&(key, output)) == Some(&way) {
            return Ok(true);
        }
        let adopted = lt.adopt(key, algorithm)?;
        if adopted {
            self.fastest.borrow_mut().insert((key, output), way);
        }
        Ok(adopted)
    }

    /// Finds choices in these, and adds to them.
    pub(crate) fn keep_choices(&mut self, kept: Tuned) {
        self.kept = RefCell::new(kept);
    }

    /// Shapes whose kernels were timed.
    pub(crate) fn shapes_timed(&self) -> u64 {
        self.timed.get()
    }

    /// Writes what tuning found since the last time.
    pub(crate) fn save_choices(&self) {
        self.kept.borrow_mut().save();
    }

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

    fn gemv(&self, kernels: &Kernels, stream: &Stream, p: &Product<'_>) -> Result<(), CudaError> {
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

    fn skinny(
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

    fn skinny_leaves_norm(&self, p: &Product<'_>) -> bool {
        self.element.holds_unnormalised() && skinny::leaves_norm(p)
    }

    /// The ways to divide a matrix among skinny.cu's blocks, best guess first.
    pub(crate) fn tilings(&self, p: &Product<'_>) -> Vec<Tiling> {
        Tiling::candidates(self.multiprocessors as usize, p.matrix.rows, p.matrix.columns)
    }

    /// The rows in groups of what our own kernels take.
    fn in_groups(&self, kernels: &Kernels, stream: &Stream, p: &Product<'_>) -> Result<(), CudaError> {
        let streamed = [16, 8, 4, 2, 1].into_iter().find(|&m| self.gemv_stages(m, p.matrix.columns).is_some());
        let skinny = in_skinny_groups(p);
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

    /// Gate and up with the activation in one kernel.
    fn gated(&self, kernels: &Kernels, stream: &Stream, p: &Product<'_>, gelu: bool) -> Result<(), CudaError> {
        let (n, k) = (p.matrix.rows, p.matrix.columns);
        // A norm whose weights are in the matrix is a factor per row, which the kernel applies to its sums.
        let (x, factors) = match p.norm {
            Some(Norm { weight: 0, epsilon }) if p.x_rows == 0 => {
                let factors = self.normed.pointer();
                let (rows, width) = (p.m as i32, k as i32);
                let shape = shape((p.m.div_ceil(FACTOR_ROWS) as u32, 1, 1), 32 * FACTOR_ROWS as u32);
                launch!(stream, kernels.norm_factors, shape, p.x, factors, rows, width, epsilon)?;
                (p.x, factors)
            }
            _ => (self.normalised(kernels, stream, p)?, 0),
        };
        let x = TensorMap::matrix(x, p.m, k, GATED_TILE.0)?;
        let weights = TensorMap::matrix(p.matrix.buffer.pointer(), n, k, GATED_TILE.1 / 2)?;
        let out = TensorMap::matrix(p.out, p.m, n / 2, GATED_TILE.0 / 2)?;
        let tiles = p.m.div_ceil(2 * GATED_TILE.0) * n.div_ceil(GATED_TILE.1);
        let clusters = tiles.min(self.multiprocessors as usize / 2) as u32;
        let shape = Shape {
            grid: (2 * clusters, 1, 1),
            threads: WARPGROUP_THREADS,
            shared_bytes: GATED_SHARED_BYTES,
            cluster: 0,
            overlap: true,
        };
        let (m, n, k, gelu) = (p.m as i32, n as i32, k as i32, i32::from(gelu));
        launch!(stream, kernels.gated, shape, x, weights, out, factors, m, n, k, gelu)
    }

    /// The product's input behind its norm, which takes a kernel where there is one.
    fn normalised(&self, kernels: &Kernels, stream: &Stream, p: &Product<'_>) -> Result<DevicePointer, CudaError> {
        let Some(norm) = p.norm else { return Ok(p.x) };
        let (none, no_epsilon, width): (DevicePointer, f32, i32) = (0, 0.0, p.matrix.columns as i32);
        let (x, rows, out) = (p.x, p.x_rows, self.normed.pointer());
        let shape = shape((p.m as u32, 1, 1), norm_threads(p.matrix.columns));
        let function = kernels.add_norm[usize::from(p.matrix.columns > 4096)];
        let Norm { weight, epsilon } = norm;
        launch!(stream, function, shape, x, none, none, no_epsilon, weight, epsilon, out, rows, width)?;
        Ok(out)
    }

    fn with_library(&self, lt: &Lt, kernels: &Kernels, stream: &Stream, p: &Product<'_>) -> Result<(), CudaError> {
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

impl Product<'_> {
    /// A norm that is no more than a factor per row: its weights are in the matrix, and rows are taken in order.
    pub(crate) fn folded_norm(&self) -> Option<Norm> {
        self.norm.filter(|norm| norm.weight == 0 && self.x_rows == 0)
    }

    fn key(&self) -> LtKey {
        let kind = match self.output {
            Output::Store | Output::Gated { .. } => LtKind::Element,
            Output::Residual => LtKind::ElementAdd,
            Output::Logits => LtKind::F32,
        };
        LtKey { m: self.m, n: self.matrix.rows, k: self.matrix.columns, kind }
    }
}

/// Whether skinny.cu takes a product's rows in groups where there is no cuBLASLt.
fn in_skinny_groups(p: &Product<'_>) -> bool {
    skinny::takes(&Product { m: SKINNY_ROWS, ..*p })
}

/// Threads of `add_norm` for a row: each holds up to 32 elements.
pub(crate) fn norm_threads(width: usize) -> u32 {
    ((width / 8).next_multiple_of(32) as u32).clamp(32, 512)
}

/// How many launches [`time`] takes for `products` products.
fn timed(products: usize) -> usize {
    products.max(8)
}

/// Products of one shape together.
fn by_shape<'a, 'p>(products: &'a [Product<'p>]) -> HashMap<(LtKey, Output), Vec<&'a Product<'p>>> {
    let mut by_shape: HashMap<_, Vec<_>> = HashMap::new();
    for p in products {
        by_shape.entry((p.key(), p.output)).or_default().push(p);
    }
    by_shape
}

/// Milliseconds of a graph of these products, each written at least once.
pub(crate) fn time(
    stream: &Stream,
    products: &[&Product<'_>],
    run: impl Fn(&Product<'_>) -> Result<(), CudaError>,
) -> Result<f32, CudaError> {
    let graph = stream.capture(|| products.iter().cycle().take(timed(products.len())).try_for_each(|p| run(p)))?;
    let (begin, end) = (Event::create()?, Event::create()?);
    let mut fastest = f32::INFINITY;
    for _ in 0..5 {
        begin.record(stream)?;
        graph.launch(stream)?;
        end.record(stream)?;
        end.wait()?;
        fastest = fastest.min(end.milliseconds_since(&begin)?);
    }
    Ok(fastest)
}
