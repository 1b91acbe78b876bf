//! A product with a weight matrix: what is multiplied, what stands before it, and what becomes of the result.

use crate::{
    cublaslt::{LtKey, LtKind},
    driver::{Buffer, DevicePointer},
};

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
impl Product<'_> {
    /// A norm that is no more than a factor per row: its weights are in the matrix, and rows are taken in order.
    pub(crate) fn folded_norm(&self) -> Option<Norm> {
        self.norm.filter(|norm| norm.weight == 0 && self.x_rows == 0)
    }

    /// Its shape, as cuBLASLt chooses algorithms by it.
    pub(crate) fn key(&self) -> LtKey {
        let kind = match self.output {
            Output::Store | Output::Gated { .. } => LtKind::Element,
            Output::Residual => LtKind::ElementAdd,
            Output::Logits => LtKind::F32,
        };
        LtKey { m: self.m, n: self.matrix.rows, k: self.matrix.columns, kind }
    }
}
