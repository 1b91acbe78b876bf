//! exp, sigmoid and tanh on sixteen lanes.

use crate::simd::Lanes;

/// `e^x` within 2 units in the last place; exactly 1 at 0, exactly 0 below -87.3, and at most e^88.
///
/// Cephes' `expf`: split off the power of two, then a polynomial on [-ln 2 / 2, ln 2 / 2].
///
/// # Safety
/// The level's instructions.
#[inline(always)]
pub(crate) unsafe fn exp<S: Lanes>(x: S::F) -> S::F {
    // SAFETY: the caller has the level's instructions.
    unsafe {
        let (lowest, highest) = (S::splat(-87.3), S::splat(88.0));
        // Compared in the order that lets NaN through.
        let clamped = S::select_less(highest, x, highest, x);
        let clamped = S::select_less(clamped, lowest, lowest, clamped);
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts: the first has few bits, so that n times it is exact.
        let r = S::fma(n, S::splat(-0.693_359_4), clamped);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::fma(p, r, S::splat(coefficient));
        }
        let p = S::add(S::fma(S::mul(r, r), p, r), S::splat(1.0));
        S::select_less(x, lowest, S::splat(0.0), S::times_power_of_two(p, n))
    }
}

/// `e^x` for x up to 0, within 2e-7 of the result and 1.1e-7 absolutely for x above -30; exactly 1 at 0, exactly 0 below -86.
/// Half the instructions of [`exp`]: what the softmax of attention takes most of its time for.
///
/// The power of two is rounded by adding 1.5 * 2^23, so that it stands in the low bits ready to be added to the exponent; the
/// polynomial of degree 5 was fitted for the least largest relative error, 9e-8, with its constant held at 1.
///
/// # Safety
/// The level's instructions.
#[inline(always)]
pub(crate) unsafe fn exp_below_zero<S: Lanes>(x: S::F) -> S::F {
    const ROUND: f32 = 12_582_912.0;
    // SAFETY: the caller has the level's instructions.
    unsafe {
        let lowest = S::splat(-86.0);
        // In this order NaN comes through.
        let clamped = S::max(lowest, x);
        let shifted = S::fma(clamped, S::splat(std::f32::consts::LOG2_E), S::splat(ROUND));
        let n = S::sub(shifted, S::splat(ROUND));
        let r = S::fma(n, S::splat(-std::f32::consts::LN_2), clamped);
        let mut p = S::splat(8.290_272e-3);
        for coefficient in [4.189_816e-2, 1.666_763_9e-1, 4.999_914_8e-1, 9.999_997e-1, 1.0] {
            p = S::fma(p, r, S::splat(coefficient));
        }
        S::select_less(x, lowest, S::splat(0.0), S::add_exponent(p, shifted))
    }
}

/// `x / (1 + e^-x)`
///
/// # Safety
/// The level's instructions.
#[inline(always)]
pub(crate) unsafe fn silu<S: Lanes>(x: S::F) -> S::F {
    // SAFETY: the caller has the level's instructions.
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x)))) }
}

/// `1 - 2 / (e^2x + 1)`
///
/// # Safety
/// The level's instructions.
#[inline(always)]
pub(crate) unsafe fn tanh<S: Lanes>(x: S::F) -> S::F {
    // SAFETY: the caller has the level's instructions.
    unsafe {
        let e = exp::<S>(S::add(x, x));
        S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(e, S::splat(1.0))))
    }
}

/// GELU by its tanh approximation.
///
/// # Safety
/// The level's instructions.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<S: Lanes>(x: S::F) -> S::F {
    // SAFETY: the caller has the level's instructions.
    unsafe {
        let cubic = S::fma(S::mul(S::mul(x, x), x), S::splat(0.044_715), x);
        let inner = S::mul(S::splat(0.797_884_6), cubic);
        let half = S::mul(S::splat(0.5), x);
        S::fma(half, tanh::<S>(inner), half)
    }
}
