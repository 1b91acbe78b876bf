//! What happens to single rows between the matrices: norms, rotation, gates, sums. A few operations an element; together
//! a few percent of a step.

use super::exponential::{gelu_tanh, silu, tanh};
use crate::simd::{LANES, Lanes};
use powertrain_model::spec::Activation;

/// RMS norm of a row: `x / sqrt(mean(x^2) + epsilon) * weight`.
#[derive(Clone, Copy)]
pub(crate) struct RowNorm {
    /// Padded with zeros to a multiple of 16, offset added.
    pub(crate) weight: *const f32,
    pub(crate) len: usize,
    pub(crate) epsilon: f32,
}

/// # Safety
/// The level's instructions; `from` and `to`, which may be one, hold `norm.len` elements, padded with zeros to a multiple of 16.
#[inline(always)]
pub(crate) unsafe fn norm<S: Lanes>(norm: RowNorm, from: *const f32, to: *mut f32) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut squares = [S::splat(0.0); 4];
        for i in (0..norm.len).step_by(LANES) {
            let x = S::load(from.add(i));
            let sum = &mut squares[i / LANES % 4];
            *sum = S::fma(x, x, *sum);
        }
        let squares = S::add(S::add(squares[0], squares[1]), S::add(squares[2], squares[3]));
        let mean = S::reduce_add(squares) / norm.len as f32;
        let inverse = S::splat(1.0 / (mean + norm.epsilon).sqrt());
        for i in (0..norm.len).step_by(LANES) {
            let x = S::mul(S::load(from.add(i)), inverse);
            S::store(to.add(i), S::mul(x, S::load(norm.weight.add(i))));
        }
    }
}

/// The activation of a gated feed-forward.
#[derive(Clone, Copy)]
pub(crate) struct Gate(pub(crate) Activation);

/// `out = activation(gates) * ups`, `len` a multiple of 16.
///
/// # Safety
/// The level's instructions; all hold `len` elements; `out` may be one of the inputs.
#[inline(always)]
pub(crate) unsafe fn gate<S: Lanes>(gate: Gate, gates: *const f32, ups: *const f32, out: *mut f32, len: usize) {
    for i in (0..len).step_by(LANES) {
        // SAFETY: the caller's promises.
        unsafe {
            let (g, up) = (S::load(gates.add(i)), S::load(ups.add(i)));
            let activated = match gate.0 {
                Activation::Silu => silu::<S>(g),
                Activation::GeluTanh => gelu_tanh::<S>(g),
            };
            S::store(out.add(i), S::mul(activated, up));
        }
    }
}

/// `to += from`, `len` a multiple of 16.
///
/// # Safety
/// The level's instructions; both hold `len` elements.
#[inline(always)]
pub(crate) unsafe fn add<S: Lanes>(to: *mut f32, from: *const f32, len: usize) {
    for i in (0..len).step_by(LANES) {
        // SAFETY: the caller's promises.
        unsafe { S::store(to.add(i), S::add(S::load(to.add(i)), S::load(from.add(i)))) };
    }
}

/// `x = cap * tanh(x / cap)`, `len` a multiple of 16.
///
/// # Safety
/// The level's instructions; `x` holds `len` elements.
#[inline(always)]
pub(crate) unsafe fn soft_cap<S: Lanes>(x: *mut f32, len: usize, cap: f32) {
    for i in (0..len).step_by(LANES) {
        // SAFETY: the caller's promises.
        unsafe {
            let scaled = S::mul(S::load(x.add(i)), S::splat(1.0 / cap));
            S::store(x.add(i), S::mul(S::splat(cap), tanh::<S>(scaled)));
        }
    }
}

/// The rotary embedding at one position: element i turns with element i + `pairs`. (Adjacent pairing became this one when
/// the rows of Q and K were packed.)
#[derive(Clone, Copy)]
pub(crate) struct Rotation {
    /// Per pair, the cosine times the magnitude.
    pub(crate) cosines: *const f32,
    /// Per pair, the sine times the magnitude.
    pub(crate) sines: *const f32,
    pub(crate) pairs: usize,
}

/// RMS norm of one head before its rotation.
#[derive(Clone, Copy)]
pub(crate) struct HeadNorm {
    pub(crate) weight: *const f32,
    pub(crate) len: usize,
    pub(crate) epsilon: f32,
}

/// Norms and rotates one head in place.
///
/// # Safety
/// The level's instructions; `head` holds the head, not padded, and 16 elements of `norm.weight` may be read past its end.
#[inline(always)]
pub(crate) unsafe fn rotate_head<S: Lanes>(rotation: Rotation, norm: Option<HeadNorm>, head: *mut f32) {
    // SAFETY: the caller's promises.
    unsafe {
        if let Some(norm) = norm {
            let mut squares = S::splat(0.0);
            let whole = norm.len / LANES * LANES;
            for i in (0..whole).step_by(LANES) {
                let x = S::load(head.add(i));
                squares = S::fma(x, x, squares);
            }
            let mut sum = S::reduce_add(squares);
            for i in whole..norm.len {
                sum += *head.add(i) * *head.add(i);
            }
            let inverse = 1.0 / (sum / norm.len as f32 + norm.epsilon).sqrt();
            for i in 0..norm.len {
                *head.add(i) = *head.add(i) * inverse * *norm.weight.add(i);
            }
        }
        let pairs = rotation.pairs;
        let whole = pairs / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            let (a, b) = (S::load(head.add(i)), S::load(head.add(i + pairs)));
            let (cos, sin) = (S::load(rotation.cosines.add(i)), S::load(rotation.sines.add(i)));
            S::store(head.add(i), S::sub(S::mul(a, cos), S::mul(b, sin)));
            S::store(head.add(i + pairs), S::add(S::mul(b, cos), S::mul(a, sin)));
        }
        for i in whole..pairs {
            let (a, b) = (*head.add(i), *head.add(i + pairs));
            let (cos, sin) = (*rotation.cosines.add(i), *rotation.sines.add(i));
            *head.add(i) = a * cos - b * sin;
            *head.add(i + pairs) = b * cos + a * sin;
        }
    }
}
