//! Products with weight matrices: which kernel computes which, and the norms, activations and sums fused with them.
//!
//! Up to [`GEMV_ROWS`] rows the weight-streaming kernel can do it all in one launch. Above, cuBLASLt multiplies and small kernels
//! stand around it; where both can, [`Matmul::tune`] measures which is faster. Without cuBLASLt the streaming kernel takes the rows in groups: slow, and said at start.

use crate::{
    driver::{Buffer, Context, DevicePointer, Event, Shape, Stream},
    error::CudaError,
    kernels::{GEMV_STAGE_BYTES, GEMV_STAGES_MAX, GEMV_STATIC_BYTES, Gemv, Kernels, launch, shape},
};
use cudarc::cublaslt::sys as lt;
use std::{
    cell::RefCell,
    collections::{HashMap, HashSet, hash_map::Entry},
    ffi::c_void,
};

/// Rows the streaming kernel takes.
pub(crate) const GEMV_ROWS: usize = 16;
/// Dynamic shared memory of a block of the streaming kernel so that two fit a multiprocessor.
const GEMV_BESIDE_BYTES: usize = 100 << 10;
/// Blocks of 512 columns up to which a tile is short (gemv.cu's DIRECT_BLOCKS), and the stages such products get.
const GEMV_SHORT_BLOCKS: usize = 3;
const GEMV_SHORT_STAGES: usize = 5;
const LT_WORKSPACE_BYTES: usize = 64 << 20;
/// Algorithms timed per shape.
const LT_CANDIDATES: usize = 16;

/// A weight matrix, `[rows, columns]` in bf16.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) buffer: Buffer,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// Where a product goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    /// bf16 `[m, rows]`.
    Store,
    /// Added to bf16 `[m, rows]`.
    Residual,
    /// The matrix alternates eight gate rows and eight up rows; `activation(gate) * up` as bf16 `[m, rows / 2]`.
    Gated {
        /// GELU (tanh) instead of SiLU.
        gelu: bool,
    },
    /// f32 `[m, rows]`.
    Logits,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct LtKey {
    m: usize,
    n: usize,
    k: usize,
    kind: LtKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum LtKind {
    Bf16,
    Bf16Add,
    F32,
}

struct LtPlan {
    x: lt::cublasLtMatrixLayout_t,
    w: lt::cublasLtMatrixLayout_t,
    y: lt::cublasLtMatrixLayout_t,
    algorithm: lt::cublasLtMatmulAlgo_t,
    tuned: bool,
}

struct Lt {
    handle: lt::cublasLtHandle_t,
    description: lt::cublasLtMatmulDesc_t,
    preference: lt::cublasLtMatmulPreference_t,
    workspace: Buffer,
    plans: RefCell<HashMap<LtKey, LtPlan>>,
}

// SAFETY: library handles, used by one thread at a time.
unsafe impl Send for Lt {}

/// The products' kernels and scratch memory.
pub(crate) struct Matmul {
    lt: Option<Lt>,
    /// bf16 `[tokens, widest input]`: normalised inputs.
    normed: Buffer,
    /// bf16 `[tokens, widest output]`: gate and up before the activation, and whatever tuning writes.
    gate_up: Buffer,
    multiprocessors: u32,
    shared_memory_max: usize,
    /// Stages of the ring at most.
    pub(crate) stages_max: usize,
    /// Shapes for which cuBLASLt was measured to be faster, though the streaming kernel takes them.
    library_wins: RefCell<HashSet<(LtKey, Output)>>,
}

impl Matmul {
    pub(crate) fn new(
        context: &Context,
        tokens: usize,
        hidden_size: usize,
        widest_output: usize,
    ) -> Result<Self, CudaError> {
        let alone = Self::without_library(context, tokens, hidden_size, widest_output)?;
        let lt = if crate::libraries::cublaslt_present() { Some(Lt::new(context)?) } else { None };
        Ok(Self { lt, ..alone })
    }

    /// As where there is no cuBLASLt.
    pub(crate) fn without_library(
        context: &Context,
        tokens: usize,
        hidden_size: usize,
        widest_output: usize,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            lt: None,
            normed: Buffer::allocate(context, tokens * hidden_size * 2, "workspace")?,
            gate_up: Buffer::allocate(context, tokens * widest_output * 2, "workspace")?,
            multiprocessors: context.multiprocessors,
            shared_memory_max: context.shared_memory_max,
            stages_max: GEMV_STAGES_MAX,
            library_wins: RefCell::default(),
        })
    }

    /// `cuBLASLt 13.1.0`, or what stands in for it.
    pub(crate) fn library(&self) -> String {
        match &self.lt {
            // SAFETY: the library is loaded.
            Some(_) => format!("cuBLASLt {}", unsafe { lt::cublasLtGetVersion() }),
            None => "no cuBLASLt: own kernel only, slow above 8 rows".into(),
        }
    }

    /// Puts a product on the stream.
    pub(crate) fn run(&self, kernels: &Kernels, stream: &Stream, p: &Product<'_>) -> Result<(), CudaError> {
        if self.streams(p) && !self.library_wins.borrow().contains(&(p.key(), p.output)) {
            return self.gemv(kernels, stream, p);
        }
        match &self.lt {
            Some(lt) => self.with_library(lt, kernels, stream, p),
            None => self.in_groups(kernels, stream, p),
        }
    }

    /// Times cuBLASLt's algorithms for these products and keeps the fastest of each shape, then that against the streaming kernel
    /// where both can. `products` of one shape are taken in turn, so that their weights come from memory as they do in a step.
    /// Overwrites the products' outputs.
    pub(crate) fn tune(&self, kernels: &Kernels, stream: &Stream, products: &[Product<'_>]) -> Result<(), CudaError> {
        let Some(lt) = &self.lt else { return Ok(()) };
        let mut by_shape: HashMap<(LtKey, Output), Vec<&Product<'_>>> = HashMap::new();
        for p in products {
            by_shape.entry((p.key(), p.output)).or_default().push(p);
        }
        for ((key, output), same) in by_shape {
            let out = match key.kind {
                LtKind::F32 => same[0].out,
                LtKind::Bf16 | LtKind::Bf16Add => self.gate_up.pointer(),
            };
            lt.tune(stream, key, &same, out)?;
            if self.streams(same[0]) {
                let library = time(stream, &same, |p| self.with_library(lt, kernels, stream, p))?;
                let streaming = time(stream, &same, |p| self.gemv(kernels, stream, p))?;
                if library < streaming {
                    self.library_wins.borrow_mut().insert((key, output));
                }
            }
        }
        Ok(())
    }

    /// Whether the streaming kernel takes a product.
    fn streams(&self, p: &Product<'_>) -> bool {
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
        stages = stages.min(tiles_each * column_blocks).min(self.stages_max);
        let direct = p.m <= 8
            && tiles_each == 1
            && column_blocks <= stages.min(GEMV_SHORT_BLOCKS)
            && norm_weight == 0
            && p.x_rows == 0;
        let function = kernels.gemv[if direct { 2 } else { usize::from(p.m > 8) }];
        let (mode, gelu) = match p.output {
            Output::Store => (0, 0),
            Output::Residual => (1, 0),
            Output::Gated { gelu } => (2, i32::from(gelu)),
            Output::Logits => (3, 0),
        };
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
            overlap: true,
        };
        launch!(stream, function, shape, arguments)
    }

    /// The rows in groups of what the streaming kernel takes.
    fn in_groups(&self, kernels: &Kernels, stream: &Stream, p: &Product<'_>) -> Result<(), CudaError> {
        let group =
            [16, 8, 4, 2, 1].into_iter().find(|&m| self.gemv_stages(m, p.matrix.columns).is_some()).unwrap_or(1);
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
            self.gemv(kernels, stream, &part)?;
        }
        Ok(())
    }

    fn with_library(&self, lt: &Lt, kernels: &Kernels, stream: &Stream, p: &Product<'_>) -> Result<(), CudaError> {
        let (n, m) = (p.matrix.rows, p.m as u32);
        let mut x = p.x;
        if let Some(norm) = p.norm {
            normalise(
                kernels,
                stream,
                p.x,
                norm.weight,
                norm.epsilon,
                self.normed.pointer(),
                p.x_rows,
                p.matrix.columns,
                m,
            )?;
            x = self.normed.pointer();
        }
        let w = p.matrix.buffer.pointer();
        match p.output {
            Output::Store => lt.run(stream, p.key(), w, x, p.out)?,
            Output::Residual => lt.run(stream, p.key(), w, x, p.out)?,
            Output::Logits => {
                lt.run(stream, p.key(), w, x, p.out)?;
                if p.softcap > 0.0 {
                    let count = (p.m * n) as u64;
                    launch!(stream, kernels.softcap_logits, shape((1024, 1, 1), 256), p.out, count, p.softcap)?;
                }
            }
            Output::Gated { gelu } => {
                let gate_up = self.gate_up.pointer();
                lt.run(stream, p.key(), w, x, gate_up)?;
                let (width, gelu) = ((n / 2) as i32, i32::from(gelu));
                let grid = ((n as u32 / 16).div_ceil(256), m, 1);
                launch!(stream, kernels.gated_activation, shape(grid, 256), gate_up, p.out, width, gelu)?;
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
    fn key(&self) -> LtKey {
        let kind = match self.output {
            Output::Store | Output::Gated { .. } => LtKind::Bf16,
            Output::Residual => LtKind::Bf16Add,
            Output::Logits => LtKind::F32,
        };
        LtKey { m: self.m, n: self.matrix.rows, k: self.matrix.columns, kind }
    }
}

/// Threads of `add_norm` for a row: each holds up to 32 elements.
pub(crate) fn norm_threads(width: usize) -> u32 {
    ((width / 8).next_multiple_of(32) as u32).clamp(32, 512)
}

/// `out[i] = rmsnorm(residual[rows[i]]) * weight`.
#[expect(clippy::too_many_arguments, reason = "a kernel's parameters")]
fn normalise(
    kernels: &Kernels,
    stream: &Stream,
    residual: DevicePointer,
    weight: DevicePointer,
    epsilon: f32,
    out: DevicePointer,
    rows: DevicePointer,
    width: usize,
    m: u32,
) -> Result<(), CudaError> {
    let (none, no_epsilon, width_i32): (DevicePointer, f32, i32) = (0, 0.0, width as i32);
    let shape = shape((m, 1, 1), norm_threads(width));
    let function = kernels.add_norm[usize::from(width > 4096)];
    launch!(stream, function, shape, residual, none, none, no_epsilon, weight, epsilon, out, rows, width_i32)
}

/// Milliseconds of a graph of these products, each written at least once.
fn time(
    stream: &Stream,
    products: &[&Product<'_>],
    run: impl Fn(&Product<'_>) -> Result<(), CudaError>,
) -> Result<f32, CudaError> {
    let graph = stream.capture(|| products.iter().cycle().take(products.len().max(8)).try_for_each(|p| run(p)))?;
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

fn check_lt(call: &'static str, status: lt::cublasStatus_t) -> Result<(), CudaError> {
    match status {
        lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        other => Err(CudaError::Call { call, reason: format!("{other:?}") }),
    }
}

impl Lt {
    fn new(context: &Context) -> Result<Self, CudaError> {
        let (mut handle, mut description, mut preference) =
            (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        let (transposed, workspace_bytes) = (1i32, LT_WORKSPACE_BYTES as u64);
        use lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        use lt::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: out-pointers to locals; attributes are given with their sizes.
        unsafe {
            check_lt("cublasLtCreate", lt::cublasLtCreate(&mut handle))?;
            check_lt(
                "cublasLtMatmulDescCreate",
                lt::cublasLtMatmulDescCreate(
                    &mut description,
                    lt::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    lt::cudaDataType::CUDA_R_32F,
                ),
            )?;
            check_lt(
                "cublasLtMatmulDescSetAttribute",
                lt::cublasLtMatmulDescSetAttribute(
                    description,
                    CUBLASLT_MATMUL_DESC_TRANSA,
                    std::ptr::from_ref(&transposed).cast(),
                    4,
                ),
            )?;
            check_lt("cublasLtMatmulPreferenceCreate", lt::cublasLtMatmulPreferenceCreate(&mut preference))?;
            check_lt(
                "cublasLtMatmulPreferenceSetAttribute",
                lt::cublasLtMatmulPreferenceSetAttribute(
                    preference,
                    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                    std::ptr::from_ref(&workspace_bytes).cast(),
                    8,
                ),
            )?;
        }
        let workspace = Buffer::allocate(context, LT_WORKSPACE_BYTES, "cuBLASLt workspace")?;
        Ok(Self { handle, description, preference, workspace, plans: RefCell::default() })
    }

    /// The layouts of a shape and the algorithms the library proposes for it, best guess first.
    fn propose(&self, key: LtKey, count: usize) -> Result<(LtPlan, Vec<lt::cublasLtMatmulAlgo_t>), CudaError> {
        let bf16 = lt::cudaDataType::CUDA_R_16BF;
        let result_type = if key.kind == LtKind::F32 { lt::cudaDataType::CUDA_R_32F } else { bf16 };
        let layout = |kind, rows: usize, columns: usize| {
            let mut layout = std::ptr::null_mut();
            // SAFETY: out-pointer to a local.
            let status =
                unsafe { lt::cublasLtMatrixLayoutCreate(&mut layout, kind, rows as u64, columns as u64, rows as i64) };
            check_lt("cublasLtMatrixLayoutCreate", status).map(|()| layout)
        };
        // Column-major as the library sees it: w is [k, n] transposed, x is [k, m], y is [n, m].
        let (w, x, y) = (layout(bf16, key.k, key.n)?, layout(bf16, key.k, key.m)?, layout(result_type, key.n, key.m)?);
        let mut results: Vec<lt::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(count);
        let mut found = 0;
        // SAFETY: there is room for `count` results, and `found` of them are written.
        unsafe {
            let status = lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                self.description,
                w,
                x,
                y,
                y,
                self.preference,
                count as i32,
                results.as_mut_ptr(),
                &mut found,
            );
            check_lt("cublasLtMatmulAlgoGetHeuristic", status)?;
            results.set_len(found as usize);
        }
        let algorithms: Vec<_> = results.iter().map(|result| result.algo).collect();
        let Some(&algorithm) = algorithms.first() else {
            return Err(CudaError::Unsupported(format!("cuBLASLt has no algorithm for {key:?}")));
        };
        Ok((LtPlan { x, w, y, algorithm, tuned: false }, algorithms))
    }

    fn run(
        &self,
        stream: &Stream,
        key: LtKey,
        weights: DevicePointer,
        x: DevicePointer,
        out: DevicePointer,
    ) -> Result<(), CudaError> {
        let mut plans = self.plans.borrow_mut();
        let plan = match plans.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.propose(key, 1)?.0),
        };
        self.multiply(stream, key, plan, &plan.algorithm, weights, x, out)
    }

    #[expect(clippy::too_many_arguments, reason = "a product's operands")]
    fn multiply(
        &self,
        stream: &Stream,
        key: LtKey,
        plan: &LtPlan,
        algorithm: &lt::cublasLtMatmulAlgo_t,
        weights: DevicePointer,
        x: DevicePointer,
        out: DevicePointer,
    ) -> Result<(), CudaError> {
        let one = 1f32;
        let beta = if key.kind == LtKind::Bf16Add { 1f32 } else { 0f32 };
        // SAFETY: the pointers are device buffers of the layouts' sizes; scalars are f32 as the description says.
        let status = unsafe {
            lt::cublasLtMatmul(
                self.handle,
                self.description,
                std::ptr::from_ref(&one).cast(),
                weights as *const c_void,
                plan.w,
                x as *const c_void,
                plan.x,
                std::ptr::from_ref(&beta).cast(),
                out as *const c_void,
                plan.y,
                out as *mut c_void,
                plan.y,
                algorithm,
                self.workspace.pointer() as *mut c_void,
                LT_WORKSPACE_BYTES,
                stream.0.cast(),
            )
        };
        check_lt("cublasLtMatmul", status)
    }

    fn tune(
        &self,
        stream: &Stream,
        key: LtKey,
        products: &[&Product<'_>],
        out: DevicePointer,
    ) -> Result<(), CudaError> {
        if self.plans.borrow().get(&key).is_some_and(|plan| plan.tuned) {
            return Ok(());
        }
        const ROUNDS: usize = 3;
        let launches = products.len().clamp(4, 8);
        let (mut plan, algorithms) = self.propose(key, LT_CANDIDATES)?;
        let (begin, end) = (Event::create()?, Event::create()?);
        let mut best = f32::INFINITY;
        for algorithm in algorithms {
            let mut fastest = f32::INFINITY;
            for _ in 0..ROUNDS {
                begin.record(stream)?;
                for product in products.iter().cycle().take(launches) {
                    let weights = product.matrix.buffer.pointer();
                    self.multiply(stream, key, &plan, &algorithm, weights, product.x, out)?;
                }
                end.record(stream)?;
                end.wait()?;
                fastest = fastest.min(end.milliseconds_since(&begin)?);
            }
            if fastest < best {
                best = fastest;
                plan.algorithm = algorithm;
            }
        }
        plan.tuned = true;
        self.plans.borrow_mut().insert(key, plan);
        Ok(())
    }
}
