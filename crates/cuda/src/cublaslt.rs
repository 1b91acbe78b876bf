//! cuBLASLt: products of bf16 matrices, with the algorithm chosen per shape by measurement or by the library's own guess.

use crate::{
    driver::{Buffer, Context, DevicePointer, Event, Stream},
    error::CudaError,
};
use cudarc::cublaslt::sys as lt;
use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
};

const LT_WORKSPACE_BYTES: usize = 64 << 20;
/// Algorithms timed per shape.
const LT_CANDIDATES: usize = 16;

/// What the choice of an algorithm depends on: `x[m, k] . w[n, k]^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LtKey {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) kind: LtKind,
}

/// Type of the result, and whether it is added to what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LtKind {
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

/// The library, opened.
pub(crate) struct Lt {
    handle: lt::cublasLtHandle_t,
    description: lt::cublasLtMatmulDesc_t,
    preference: lt::cublasLtMatmulPreference_t,
    workspace: Buffer,
    plans: RefCell<HashMap<LtKey, LtPlan>>,
}

// SAFETY: library handles, used by one thread at a time.
unsafe impl Send for Lt {}

fn check_lt(call: &'static str, status: lt::cublasStatus_t) -> Result<(), CudaError> {
    match status {
        lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        other => Err(CudaError::Call { call, reason: format!("{other:?}") }),
    }
}

impl Lt {
    pub(crate) fn new(context: &Context) -> Result<Self, CudaError> {
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

    /// `out = x . weights^T`, or added to it.
    pub(crate) fn run(
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

    /// Version, as the library says it.
    pub(crate) fn version() -> usize {
        // SAFETY: called on a library that is loaded: there is a handle.
        unsafe { lt::cublasLtGetVersion() }
    }

    /// Times the library's proposals for a shape on these weights and inputs, in turn, and keeps the fastest. Overwrites `out`.
    pub(crate) fn tune(
        &self,
        stream: &Stream,
        key: LtKey,
        operands: &[(DevicePointer, DevicePointer)],
        out: DevicePointer,
    ) -> Result<(), CudaError> {
        if self.plans.borrow().get(&key).is_some_and(|plan| plan.tuned) {
            return Ok(());
        }
        const ROUNDS: usize = 3;
        let launches = operands.len().clamp(4, 8);
        let (mut plan, algorithms) = self.propose(key, LT_CANDIDATES)?;
        let (begin, end) = (Event::create()?, Event::create()?);
        let mut best = f32::INFINITY;
        for algorithm in algorithms {
            let mut fastest = f32::INFINITY;
            for _ in 0..ROUNDS {
                begin.record(stream)?;
                for &(weights, x) in operands.iter().cycle().take(launches) {
                    self.multiply(stream, key, &plan, &algorithm, weights, x, out)?;
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
