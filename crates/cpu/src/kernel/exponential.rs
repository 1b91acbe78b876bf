//! exp, sigmoid and tanh on sixteen lanes.

use crate::simd::Lanes;

/// Where `e^x` is taken for 0.
const LOWEST: f32 = -87.3;

/// `e^x` within 2 units in the last place; exactly 1 at 0, exactly 0 below -87.3, and at most e^88.
///
/// Cephes' `expf`: split off the power of two, then a polynomial on [-ln 2 / 2, ln 2 / 2].
///
/// # Safety
/// The level's instructions.
#[inline(always)]
pub(crate) unsafe fn exp<S: Lanes>(x: S::F) -> S::F {
    // SAFETY: the caller has the level's instructions.
    unsafe { exp_of::<S, 1>([x])[0] }
}

/// As [`exp`], of several at once, step by step: one alone is a chain of dependent instructions, and a core that looks a hundred
/// instructions ahead finds too few others beside it.
///
/// # Safety
/// The level's instructions.
#[inline(always)]
unsafe fn exp_of<S: Lanes, const N: usize>(x: [S::F; N]) -> [S::F; N] {
    // SAFETY: the caller has the level's instructions.
    unsafe {
        let mut p = exp_clamped_of::<S, N>(x);
        for i in 0..N {
            p[i] = S::select_less(x[i], S::splat(LOWEST), S::splat(0.0), p[i]);
        }
        p
    }
}

/// As [`exp_of`], but below -87.3 what it is there, 1.2e-38.
///
/// # Safety
/// The level's instructions.
#[inline(always)]
unsafe fn exp_clamped_of<S: Lanes, const N: usize>(x: [S::F; N]) -> [S::F; N] {
    // SAFETY: the caller has the level's instructions.
    unsafe {
        let (lowest, highest) = (S::splat(LOWEST), S::splat(88.0));
        let (mut n, mut r) = (x, x);
        let mut p = [S::splat(1.987_569_1e-4); N];
        for i in 0..N {
            // In the order that lets NaN through.
            r[i] = S::max(lowest, S::min(highest, x[i]));
        }
        for i in 0..N {
            n[i] = S::round(S::mul(r[i], S::splat(std::f32::consts::LOG2_E)));
        }
        for i in 0..N {
            // ln 2 in two parts: the first has few bits, so that n times it is exact.
            r[i] = S::fma(n[i], S::splat(-0.693_359_4), r[i]);
            r[i] = S::fma(n[i], S::splat(2.121_944_4e-4), r[i]);
        }
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            for i in 0..N {
                p[i] = S::fma(p[i], r[i], S::splat(coefficient));
            }
        }
        for i in 0..N {
            p[i] = S::add(S::fma(S::mul(r[i], r[i]), p[i], r[i]), S::splat(1.0));
            p[i] = S::times_power_of_two(p[i], n[i]);
        }
        p
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
    // SAFETY: the caller has the level's instructions.
    unsafe { exp_below_zero_of::<S, 1>([x])[0] }
}

/// As [`exp_below_zero`], of several at once, step by step as [`exp_of`].
///
/// # Safety
/// The level's instructions.
#[inline(always)]
pub(crate) unsafe fn exp_below_zero_of<S: Lanes, const N: usize>(x: [S::F; N]) -> [S::F; N] {
    const ROUND: f32 = 12_582_912.0;
    // SAFETY: the caller has the level's instructions.
    unsafe {
        let lowest = S::splat(-86.0);
        let (mut clamped, mut shifted, mut r) = (x, x, x);
        let mut p = [S::splat(8.290_272e-3); N];
        for i in 0..N {
            // In this order NaN comes through.
            clamped[i] = S::max(lowest, x[i]);
        }
        for i in 0..N {
            shifted[i] = S::fma(clamped[i], S::splat(std::f32::consts::LOG2_E), S::splat(ROUND));
        }
        for i in 0..N {
            let n = S::sub(shifted[i], S::splat(ROUND));
            r[i] = S::fma(n, S::splat(-std::f32::consts::LN_2), clamped[i]);
        }
        for coefficient in [4.189_816e-2, 1.666_763_9e-1, 4.999_914_8e-1, 9.999_997e-1, 1.0] {
            for i in 0..N {
                p[i] = S::fma(p[i], r[i], S::splat(coefficient));
            }
        }
        for i in 0..N {
            p[i] = S::select_less(x[i], lowest, S::splat(0.0), S::add_exponent(p[i], shifted[i]));
        }
        p
    }
}

/// `x / (1 + e^-x)`
///
/// # Safety
/// The level's instructions.
#[inline(always)]
pub(crate) unsafe fn silu<S: Lanes>(x: S::F) -> S::F {
    // SAFETY: the caller has the level's instructions.
    unsafe { silu_of::<S, 1>([x])[0] }
}

/// As [`silu`], of several at once, step by step.
///
/// # Safety
/// The level's instructions.
#[inline(always)]
pub(crate) unsafe fn silu_of<S: Lanes, const N: usize>(x: [S::F; N]) -> [S::F; N] {
    // SAFETY: the caller has the level's instructions.
    unsafe {
        let mut e = x;
        for i in 0..N {
            e[i] = S::sub(S::splat(0.0), x[i]);
        }
        // Beside 1 the least of them is nothing.
        e = exp_clamped_of::<S, N>(e);
        for i in 0..N {
            e[i] = S::div(x[i], S::add(S::splat(1.0), e[i]));
        }
        e
    }
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
