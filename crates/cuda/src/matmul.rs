//! Products with weight matrices: which kernel computes which, and the norms, activations and sums fused with them.
//!
//! Up to `GEMV_ROWS` rows the weight-streaming kernel can do it all in one launch, up to `SKINNY_ROWS` skinny.cu. Above, cuBLASLt multiplies
//! and small kernels stand around it; where several can, `matmul/tune.rs` measures which is fastest alone, and executor/graphs.rs in which decodes are. Without cuBLASLt our own kernels take
//! the rows in groups: slow for prompts, and said at start.
//!
//! What a product is stands in `product.rs`. Here is which way it takes; how the fastest is found and kept, in `matmul/tune.rs`; how each is
//! launched, in `matmul/launch.rs`; the head of greedy steps in `matmul/best.rs`.

mod best;
mod launch;
mod tune;

pub(crate) use launch::norm_threads;
pub(crate) use tune::{Open, time};

use crate::{
    cublaslt::{Lt, LtKey},
    driver::{Buffer, Context, Stream},
    element::Element,
    error::CudaError,
    kernels::{Kernels, PAIR_TILE},
    pairs::Items,
    product::{Output, Product},
    skinny::{self, Tiling},
    tuned::Tuned,
};
use launch::in_skinny_groups;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

/// Rows from which gated.cu may pay.
const GATED_ROWS: usize = 160;

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
    /// even.cu, likewise.
    Even,
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
    /// Overrides whether greedy heads write logits, for checks.
    pub(crate) best_forced: Option<bool>,
    /// Which of the widths of gated.cu's tiles it takes, for checks.
    pub(crate) gated_width: Option<usize>,
    /// Whether skinny.cu is among the choices; `false` for comparisons.
    pub(crate) skinny: bool,
    /// Every product of a matrix by one algorithm, whatever the number of rows.
    pub(crate) deterministic: bool,
    /// What was measured to be fastest, by shape.
    fastest: RefCell<HashMap<(LtKey, Output), Way>>,
    /// Of shapes that were not timed, what others' times say of them, as long as nothing is added to those.
    followed: RefCell<HashMap<(LtKey, Output), Option<Way>>>,
    /// What was measured to be fastest, beyond this process.
    kept: RefCell<Tuned>,
    /// How many of them this process timed.
    timed: Cell<u64>,
    /// Whether finding the best at once was measured to be faster than logits and the choice among them, by the shape of the head.
    best_pays: RefCell<HashMap<LtKey, bool>>,
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
            best_forced: None,
            gated_width: None,
            skinny: true,
            deterministic: false,
            fastest: RefCell::default(),
            followed: RefCell::default(),
            kept: RefCell::default(),
            timed: Cell::new(0),
            best_pays: RefCell::default(),
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
            Way::Streaming | Way::Fused | Way::Even => false,
            Way::Skinny(_) => skinny::leaves_norm(p),
            Way::Library if self.lt.is_some() => p.folded_norm().is_some() && p.output == Output::Store,
            Way::Library => !self.deterministic && in_skinny_groups(p) && skinny::leaves_norm(p),
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
        if let Some(way) = self.followed(p) {
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
            (Way::Even, Output::Gated { gelu }, _) => self.even_gated(kernels, stream, p, gelu),
            (Way::Fused, Output::Gated { gelu }, _) => self.gated(kernels, stream, p, gelu),
            (_, _, Some(lt)) => self.with_library(lt, kernels, stream, p),
            (_, _, None) => self.in_groups(kernels, stream, p),
        }
    }

    /// Whether gated.cu is expected to be faster than cuBLASLt and the activation kernel: by how full its waves of tiles are, and by what
    /// the activation's pass costs beside the product. Of 48 measured shapes (docs/benchmarks/h100-raw/gated.txt) it is wrong on seven: on 192 and 256
    /// rows of Llama-3.1-8B it leaves 4 and 10 %, which tuning finds where it runs; on five it loses up to 4 %.
    fn expects_fused(&self, p: &Product<'_>) -> bool {
        let (n, k) = (p.matrix.rows, p.matrix.columns);
        let pairs = (self.multiprocessors / 2) as usize;
        let places = Items::of(p.m, n, pairs).rounds(pairs) * (pairs * 2 * PAIR_TILE.0 * PAIR_TILE.1) as f64;
        let filled = (p.m * n) as f64 / places;
        matches!(p.output, Output::Gated { .. }) && p.m >= GATED_ROWS && filled * (1.0 + 500.0 / k as f64) >= 1.05
    }
}
