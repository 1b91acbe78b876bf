//! The head of steps whose rows are all greedy: the highest logit of each row and its token, without logits. Few rows by
//! even.cu, more by best.cu.

use super::{Matmul, launch::GEMV_ROWS};
use crate::{
    driver::{DevicePointer, Stream},
    error::CudaError,
    even::{self, Made},
    kernels::{BEST_SHARED_BYTES, Kernels, PAIR_PART_BOX, PAIR_TILE, launch},
    pairs::{Items, shape},
    product::Product,
    tensor_map::TensorMap,
};

impl Matmul {
    /// Whether it can stand for a product of logits and the choice of the highest.
    fn takes_best(&self, p: &Product<'_>) -> bool {
        !self.deterministic && p.bias == 0 && p.matrix.columns.is_multiple_of(8)
    }

    /// Whether it does: as measured, or as expected.
    pub(crate) fn finds_best(&self, p: &Product<'_>) -> bool {
        self.takes_best(p) && self.best_forced.or_else(|| self.best_pays(p)).unwrap_or(p.m > GEMV_ROWS)
    }

    /// Whether that is still to be measured.
    pub(crate) fn best_is_open(&self, p: &Product<'_>) -> bool {
        self.takes_best(p) && self.best_forced.is_none() && self.best_pays(p).is_none()
    }

    /// Whether it was the faster, now or at an earlier start.
    fn best_pays(&self, p: &Product<'_>) -> Option<bool> {
        let known = self.best_pays.borrow().get(&p.key()).copied();
        known.or_else(|| self.kept(&best_name(p)).and_then(|pays| pays.parse().ok()))
    }

    /// Computes products of this shape so from now on, and at later starts.
    pub(crate) fn settle_best(&self, p: &Product<'_>, pays: bool) {
        self.best_pays.borrow_mut().insert(p.key(), pays);
        self.timed.set(self.timed.get() + 1);
        self.keep(best_name(p), pays.to_string());
    }

    /// Joins the highest logit of each row and its token with what is at `best` (best.cuh), zero before: one number a row. `p` is the product of
    /// the logits, whose `out` is not used.
    pub(crate) fn best(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        p: &Product<'_>,
        best: DevicePointer,
    ) -> Result<(), CudaError> {
        let (n, k) = (p.matrix.rows, p.matrix.columns);
        let x = self.normalised(kernels, stream, p)?;
        if even::takes(p) {
            return even::run(kernels, stream, p, (x, best), Made::Best, self.multiprocessors as usize);
        }
        let x = TensorMap::matrix(x, p.m, k, PAIR_TILE.0)?;
        let weights = p.matrix.buffer.pointer();
        let whole = TensorMap::matrix(weights, n, k, PAIR_TILE.1 / 2)?;
        let part = TensorMap::matrix(weights, n, k, PAIR_PART_BOX)?;
        let pairs = (self.multiprocessors / 2) as usize;
        let items = Items::of(p.m, n, pairs);
        let shape = shape(items, pairs, BEST_SHARED_BYTES);
        let (m, n, k, softcap) = (p.m as i32, n as i32, k as i32, p.softcap);
        launch!(stream, kernels.best, shape, x, whole, part, best, m, n, k, items, softcap)
    }
}

/// Under what later starts find the choice.
fn best_name(p: &Product<'_>) -> String {
    format!("best of {:?}", p.key())
}
