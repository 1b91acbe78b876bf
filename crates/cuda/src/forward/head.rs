//! The end of a pass: the head of the positions whose tokens are chosen, and the choice.

use super::{Forward, Pass};
use crate::{
    CudaError,
    choose::Samples,
    driver::{Buffer, DevicePointer, Stream},
    matmul::time,
    product::{Norm, Output, Product},
};

impl Forward {
    /// Whether a pass finds the highest logits without writing any.
    pub(super) fn finds_best(&self, pass: &Pass) -> bool {
        !pass.draws && self.matmul.finds_best(&self.pass_head(pass))
    }

    /// Logits of the chosen positions, or the highest of each.
    pub(super) fn head(&self, stream: &Stream, pass: &Pass, finds_best: bool) -> Result<(), CudaError> {
        let head = self.pass_head(pass);
        match finds_best {
            true => self.matmul.best(&self.kernels, stream, &head, self.workspace.chooser.best()),
            false => self.matmul.run(&self.kernels, stream, &head),
        }
    }

    /// Whether it is still to be measured which of the two a greedy pass of these sizes is to take.
    pub(crate) fn head_is_open(&self, pass: &Pass) -> bool {
        pass.layout.samples > 0 && self.matmul.best_is_open(&self.pass_head(pass))
    }

    /// Measures which of the two a greedy pass of these sizes is to take, unless that is known. Its step must be staged, and its logits' product timed.
    pub(crate) fn choose_head(&self, stream: &Stream, pass: &Pass) -> Result<(), CudaError> {
        if !self.head_is_open(pass) {
            return Ok(());
        }
        let head = self.pass_head(pass);
        let greedy = Pass { draws: false, extras: false, ..*pass };
        let timed = |finds_best: bool| {
            time(stream, &[&head], |_| {
                self.head(stream, &greedy, finds_best)?;
                self.choose(stream, &greedy, finds_best)
            })
        };
        let pays = timed(true)? < timed(false)?;
        self.matmul.settle_best(&head, pays);
        Ok(())
    }

    /// The head for the positions whose tokens a pass chooses.
    pub(super) fn pass_head(&self, pass: &Pass) -> Product<'_> {
        let last = self.after_attention(pass, self.spec.layers.len() - 1);
        let rows = if pass.narrows() { 0 } else { self.staged_at(pass.layout.sample_tokens()) };
        self.head_product(last.residual, rows, pass.layout.samples)
    }

    pub(super) fn head_product(&self, x: DevicePointer, rows: DevicePointer, m: usize) -> Product<'_> {
        Product {
            matrix: self.weights.head(),
            x,
            x_rows: rows,
            norm: Some(Norm {
                weight: self.weights.final_norm.as_ref().map_or(0, Buffer::pointer),
                epsilon: self.spec.final_norm.epsilon,
            }),
            bias: 0,
            out: self.workspace.chooser.logits.pointer(),
            output: Output::Logits,
            softcap: self.spec.logit_softcap.unwrap_or(0.0),
            m,
        }
    }

    /// Tokens from what [`head`](Self::head) left.
    pub(super) fn choose(&self, stream: &Stream, pass: &Pass, finds_best: bool) -> Result<(), CudaError> {
        let samples = Samples {
            state: self.state,
            staged: self.staged.pointer(),
            layout: pass.layout,
            draws: pass.draws,
            extras: pass.extras,
        };
        match finds_best {
            true => self.workspace.chooser.deliver_best(&self.kernels, stream, &samples),
            false => self.workspace.chooser.run(&self.kernels, stream, &samples),
        }
    }
}
