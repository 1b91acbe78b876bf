//! cuBLASLt: products of matrices in bf16 or f16, with the algorithm chosen per shape by measurement or by the library's own guess.

use crate::{
    driver::{Buffer, Context, DevicePointer, Event, Graph, Stream},
    element::Element,
    error::CudaError,
};
use cudarc::cublaslt::sys as lt;
use std::{cell::RefCell, collections::HashMap, ffi::c_void};

const LT_WORKSPACE_BYTES: usize = 64 << 20;
/// Algorithms timed per shape.
const LT_CANDIDATES: usize = 16;
/// Those within this of the fastest are timed again, in turns: so many of them, so often.
const NEARLY: f32 = 1.05;
const FINALISTS: usize = 3;
const FINAL_ROUNDS: usize = 4;
/// What a node of a graph that is no kernel costs the host, roughly.
const NODE_MS: f32 = 0.001;
const MULTIPLY: &str = "cublasLtMatmul";
/// Weights that are read in turn while algorithms are timed, unless there are fewer: three times the second-level cache of an H100.
pub(crate) const COLD_BYTES: usize = 150 << 20;

/// Rows whose proposals a fixed algorithm is taken from: of fewer, many rows are slow; of more, few are.
const FIXED_ROWS: usize = 64;
/// Rows that it must take, and the workspace that it may want for them: a counter of tiles, but no parts of sums.
const COUNTER_BYTES: usize = 256;
const FIXED_MUST_TAKE: [usize; 6] = [1, 8, 40, 256, 1024, 8192];

/// What the choice of an algorithm depends on: `x[m, k] . w[n, k]^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LtKey {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) kind: LtKind,
}

impl LtKey {
    /// What is known of the shape that this one follows: of those with some more rows of the same matrix, which come in as many tiles or nearly so,
    /// the one with the fewest. No more than half again as many rows.
    pub(crate) fn followed<T>(&self, known: impl Iterator<Item = (LtKey, T)>) -> Option<T> {
        let rows = self.m..=self.m + self.m / 2;
        let near = known.filter(|(other, _)| LtKey { m: self.m, ..*other } == *self && rows.contains(&other.m));
        near.min_by_key(|(other, _)| other.m).map(|(_, what)| what)
    }
}

/// Type of the result, and whether it is added to what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LtKind {
    Element,
    ElementAdd,
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
    element: Element,
    handle: lt::cublasLtHandle_t,
    description: lt::cublasLtMatmulDesc_t,
    preference: lt::cublasLtMatmulPreference_t,
    /// For one row no workspace, and no reduction over parts of k: one sum per element, from the first column to the last.
    whole_sums: lt::cublasLtMatmulPreference_t,
    workspace: Buffer,
    plans: RefCell<HashMap<LtKey, LtPlan>>,
    /// The one algorithm of a matrix, by the key whose `m` is 0.
    fixed: RefCell<HashMap<LtKey, lt::cublasLtMatmulAlgo_t>>,
}

// SAFETY: library handles, used by one thread at a time.
unsafe impl Send for Lt {}

fn check_lt(call: &'static str, status: lt::cublasStatus_t) -> Result<(), CudaError> {
    match status {
        lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        other => Err(CudaError::Call { call, reason: format!("{other:?}") }),
    }
}

/// What proposals may use.
fn preference(workspace_bytes: u64, reductions: Option<u32>) -> Result<lt::cublasLtMatmulPreference_t, CudaError> {
    use lt::cublasLtMatmulPreferenceAttributes_t::{
        CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
    };
    let mut preference = std::ptr::null_mut();
    // SAFETY: out-pointer to a local; attributes are given with their sizes.
    unsafe {
        check_lt("cublasLtMatmulPreferenceCreate", lt::cublasLtMatmulPreferenceCreate(&mut preference))?;
        let bytes = std::ptr::from_ref(&workspace_bytes).cast();
        let status =
            lt::cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes, 8);
        check_lt("cublasLtMatmulPreferenceSetAttribute", status)?;
        if let Some(mask) = reductions {
            let status = lt::cublasLtMatmulPreferenceSetAttribute(
                preference,
                CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                std::ptr::from_ref(&mask).cast(),
                4,
            );
            check_lt("cublasLtMatmulPreferenceSetAttribute", status)?;
        }
    }
    Ok(preference)
}

impl Lt {
    pub(crate) fn new(context: &Context, element: Element) -> Result<Self, CudaError> {
        let (mut handle, mut description) = (std::ptr::null_mut(), std::ptr::null_mut());
        let transposed = 1i32;
        use lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
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
        }
        let none = lt::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
        // Parts of a sum may be beyond f16 where the whole is not: they stay in f32.
        let in_f32 = lt::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let preference = self::preference(LT_WORKSPACE_BYTES as u64, (element == Element::F16).then_some(in_f32))?;
        let whole_sums = self::preference(0, Some(none))?;
        let workspace = Buffer::allocate(context, LT_WORKSPACE_BYTES, "cuBLASLt workspace")?;
        Ok(Self {
            element,
            handle,
            description,
            preference,
            whole_sums,
            workspace,
            plans: RefCell::default(),
            fixed: RefCell::default(),
        })
    }

    /// The layouts of a shape and the algorithms the library proposes for it, best guess first.
    fn propose(
        &self,
        key: LtKey,
        preference: lt::cublasLtMatmulPreference_t,
        count: usize,
    ) -> Result<(LtPlan, Vec<lt::cublasLtMatmulAlgo_t>), CudaError> {
        let element = match self.element {
            Element::Bf16 => lt::cudaDataType::CUDA_R_16BF,
            Element::F16 => lt::cudaDataType::CUDA_R_16F,
        };
        let result_type = if key.kind == LtKind::F32 { lt::cudaDataType::CUDA_R_32F } else { element };
        let layout = |kind, rows: usize, columns: usize| {
            let mut layout = std::ptr::null_mut();
            // SAFETY: out-pointer to a local.
            let status =
                unsafe { lt::cublasLtMatrixLayoutCreate(&mut layout, kind, rows as u64, columns as u64, rows as i64) };
            check_lt("cublasLtMatrixLayoutCreate", status).map(|()| layout)
        };
        // Column-major as the library sees it: w is [k, n] transposed, x is [k, m], y is [n, m].
        let (w, x, y) =
            (layout(element, key.k, key.n)?, layout(element, key.k, key.m)?, layout(result_type, key.n, key.m)?);
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
                preference,
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

    /// The plan of a shape that was not timed: by what was fastest with some more rows of the same matrix, which come in as many tiles or nearly so; else by
    /// the library's first proposal.
    fn expect(&self, key: LtKey) -> Result<LtPlan, CudaError> {
        let (mut plan, _) = self.propose(key, self.preference, 1)?;
        if let Some(algorithm) = self.followed(&self.plans.borrow(), key, &plan) {
            plan.algorithm = algorithm;
        }
        Ok(plan)
    }

    /// The algorithm that was fastest for the shape that this one follows.
    fn followed(&self, plans: &HashMap<LtKey, LtPlan>, key: LtKey, plan: &LtPlan) -> Option<lt::cublasLtMatmulAlgo_t> {
        let timed = plans.iter().filter(|(_, other)| other.tuned).map(|(&shape, other)| (shape, other.algorithm));
        key.followed(timed).filter(|algorithm| self.takes(plan, algorithm, LT_WORKSPACE_BYTES))
    }

    /// The plan of a shape by the one algorithm that serves its matrix with any number of rows: the library's first proposal for
    /// [`FIXED_ROWS`] rows that sums each element's columns in one go and takes few and many rows. No time is measured, so that the choice is the
    /// same at every start.
    fn fix(&self, key: LtKey) -> Result<LtPlan, CudaError> {
        let (mut plan, _) = self.propose(key, self.whole_sums, 1)?;
        let matrix = LtKey { m: 0, ..key };
        if let Some(&algorithm) = self.fixed.borrow().get(&matrix) {
            plan.algorithm = algorithm;
            return Ok(plan);
        }
        let (_, proposals) = self.propose(LtKey { m: FIXED_ROWS, ..key }, self.whole_sums, 64)?;
        let mut shapes = Vec::new();
        for m in FIXED_MUST_TAKE {
            shapes.push(self.propose(LtKey { m, ..key }, self.whole_sums, 1)?.0);
        }
        let serves = |algorithm: &lt::cublasLtMatmulAlgo_t| {
            shapes.iter().all(|shape| self.takes(shape, algorithm, COUNTER_BYTES))
        };
        let Some(algorithm) = proposals.into_iter().find(serves) else {
            return Err(CudaError::Unsupported(format!(
                "--deterministic: cuBLASLt has no algorithm that takes any number of rows of a matrix of {} rows and {} columns",
                key.n, key.k
            )));
        };
        plan.algorithm = algorithm;
        self.fixed.borrow_mut().insert(matrix, algorithm);
        Ok(plan)
    }

    /// Whether an algorithm computes a shape with no more than so much of the workspace.
    fn takes(&self, shape: &LtPlan, algorithm: &lt::cublasLtMatmulAlgo_t, workspace_bytes: usize) -> bool {
        // SAFETY: a result of plain data, for which zeros are valid; it is written by the call.
        let mut result: lt::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        // SAFETY: our own handles, and an algorithm of the same types.
        let status = unsafe {
            lt::cublasLtMatmulAlgoCheck(
                self.handle,
                self.description,
                shape.w,
                shape.x,
                shape.y,
                shape.y,
                algorithm,
                &mut result,
            )
        };
        status == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS && result.workspaceSize <= workspace_bytes
    }

    /// `out = x . weights^T`, or added to it; `fixed` by the same algorithm whatever the number of rows.
    pub(crate) fn run(
        &self,
        stream: &Stream,
        key: LtKey,
        fixed: bool,
        weights: DevicePointer,
        x: DevicePointer,
        out: DevicePointer,
    ) -> Result<(), CudaError> {
        if !self.plans.borrow().contains_key(&key) {
            let plan = match fixed {
                true => self.fix(key)?,
                false => self.expect(key)?,
            };
            self.plans.borrow_mut().insert(key, plan);
        }
        let plans = self.plans.borrow();
        let plan = &plans[&key];
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
        let beta = if key.kind == LtKind::ElementAdd { 1f32 } else { 0f32 };
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
        check_lt(MULTIPLY, status)
    }

    /// The algorithm of a shape that was tuned, as text.
    pub(crate) fn choice(&self, key: LtKey) -> Option<String> {
        let plans = self.plans.borrow();
        let plan = plans.get(&key).filter(|plan| plan.tuned)?;
        Some(plan.algorithm.data.map(|word| format!("{word:016x}")).join("."))
    }

    /// Takes the algorithm that [`choice`](Self::choice) told. `false`, and nothing changes, when it is none that this library takes for the shape.
    pub(crate) fn adopt(&self, key: LtKey, choice: &str) -> Result<bool, CudaError> {
        let words: Vec<u64> = choice.split('.').map_while(|word| u64::from_str_radix(word, 16).ok()).collect();
        let Ok(data) = words.try_into() else { return Ok(false) };
        let (mut plan, _) = self.propose(key, self.preference, 1)?;
        plan.algorithm = lt::cublasLtMatmulAlgo_t { data };
        let serves = self.takes(&plan, &plan.algorithm, LT_WORKSPACE_BYTES);
        if serves {
            plan.tuned = true;
            self.keep(key, plan);
        }
        Ok(serves)
    }

    /// Version, as the library says it.
    pub(crate) fn version() -> usize {
        // SAFETY: called on a library that is loaded: there is a handle.
        unsafe { lt::cublasLtGetVersion() }
    }

    /// Times the library's proposals for a shape on these weights and inputs, then in turns those that are nearly the fastest, and keeps the one that is.
    /// Overwrites `out`.
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
        // As many weights as do not fit the second-level cache: in a step they come from memory.
        let launches = COLD_BYTES.div_ceil(2 * key.n * key.k).clamp(4, operands.len().max(4));
        let (mut plan, algorithms) = self.propose(key, self.preference, LT_CANDIDATES)?;
        let (begin, end) = (Event::create()?, Event::create()?);
        let timed = |graph: &Graph| -> Result<f32, CudaError> {
            begin.record(stream)?;
            graph.launch(stream)?;
            end.record(stream)?;
            end.wait()?;
            // What sets counters of its own first takes the host longer to launch.
            Ok(end.milliseconds_since(&begin)? + NODE_MS * graph.others() as f32)
        };
        let mut candidates = Vec::new();
        for algorithm in algorithms {
            // As graphs, which is how they run, and since the host takes as long to launch a small product as the device to compute it.
            let graph = match stream.capture(|| {
                let mut operands = operands.iter().cycle().take(launches);
                operands.try_for_each(|&(weights, x)| self.multiply(stream, key, &plan, &algorithm, weights, x, out))
            }) {
                // Proposed, and refused when it is to run.
                Err(CudaError::Call { call: MULTIPLY, .. }) => continue,
                graph => graph?,
            };
            let mut fastest = f32::INFINITY;
            for _ in 0..ROUNDS {
                fastest = fastest.min(timed(&graph)?);
            }
            candidates.push((fastest, algorithm, graph));
            // The others' graphs are given back: memory for graphs is short.
            candidates.sort_by(|a, b| a.0.total_cmp(&b.0));
            let near = candidates.iter().take_while(|candidate| candidate.0 <= candidates[0].0 * NEARLY).count();
            candidates.truncate(near.min(FINALISTS));
        }
        // The first ones ran on another clock than the last.
        if candidates.len() > 1 {
            candidates.iter_mut().for_each(|candidate| candidate.0 = f32::INFINITY);
            for _ in 0..FINAL_ROUNDS {
                for (fastest, _, graph) in &mut candidates {
                    *fastest = fastest.min(timed(graph)?);
                }
            }
        }
        if let Some((_, algorithm, _)) = candidates.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)) {
            plan.algorithm = algorithm;
        }
        plan.tuned = true;
        self.keep(key, plan);
        Ok(())
    }

    /// Keeps the plan of a shape that is known, and has those that were expected of the same matrix follow it.
    fn keep(&self, key: LtKey, plan: LtPlan) {
        let mut plans = self.plans.borrow_mut();
        plans.insert(key, plan);
        let expected =
            |(other, plan): (&LtKey, &LtPlan)| (!plan.tuned && LtKey { m: key.m, ..*other } == key).then_some(*other);
        let expected: Vec<LtKey> = plans.iter().filter_map(expected).collect();
        for other in expected {
            let algorithm = self.followed(&plans, other, &plans[&other]);
            if let (Some(algorithm), Some(plan)) = (algorithm, plans.get_mut(&other)) {
                plan.algorithm = algorithm;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_follows_the_nearest_that_has_some_more_rows() {
        let shape = |m| LtKey { m, n: 1536, k: 8960, kind: LtKind::ElementAdd };
        let known = |rows: &[usize]| rows.iter().map(|&m| (shape(m), m)).collect::<Vec<_>>();
        let followed = |m, rows| shape(m).followed(known(rows).into_iter());
        assert_eq!(followed(96, &[64, 128, 112]), Some(112));
        assert_eq!(followed(96, &[256, 144, 128]), Some(128));
        assert_eq!(followed(96, &[96, 112]), Some(96), "its own");
        assert_eq!(followed(96, &[64, 145, 256]), None, "more than half again as many");
        assert_eq!(followed(96, &[95]), None);
        assert_eq!(followed(1, &[2]), None);
        let others = [
            LtKey { n: 2048, ..shape(112) },
            LtKey { k: 1536, ..shape(112) },
            LtKey { kind: LtKind::F32, ..shape(112) },
        ];
        assert_eq!(shape(96).followed(others.map(|other| (other, ())).into_iter()), None, "another matrix or result");
    }
}
