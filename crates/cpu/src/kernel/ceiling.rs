//! What the machine can do at most: loops that only read, only dot, only multiply and add. The benchmarks compare with them.

use crate::simd::{LANES, Lanes};

/// Independent chains: more than the latency of any instruction here.
pub(crate) const CHAINS: usize = 8;

/// Reads `lines` lines of 64 bytes.
///
/// # Safety
/// The level's instructions; the lines exist; `out` has room for 16 elements.
#[inline(always)]
pub(crate) unsafe fn read<S: Lanes>(from: *const u8, lines: usize, out: *mut f32) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut seen = [S::splat_i32(0); 4];
        for line in 0..lines {
            let bits = S::bits_to_f32(S::load_line(from.add(64 * line)));
            seen[line % 4] = S::max_magnitude_bits(seen[line % 4], bits);
        }
        for seen in seen {
            S::store(out, S::add(S::load(out), S::bits_to_f32(seen)));
        }
    }
}

/// [`CHAINS`] times `rounds` dots of 64 bytes, each with 4 activation bytes from the cache, as in the matrix kernel.
///
/// # Safety
/// The level's instructions; `x` holds `4 * CHAINS` bytes; `out` has room for 16 elements.
#[inline(always)]
pub(crate) unsafe fn dots<S: Lanes>(x: *const i8, rounds: usize, out: *mut f32) {
    // SAFETY: the caller's promises.
    unsafe {
        let weights = S::load_line(std::hint::black_box([3u8; 64]).as_ptr());
        let mut sums = [S::splat_i32(0); CHAINS];
        for _ in 0..rounds {
            let x = std::hint::black_box(x);
            for chain in 0..CHAINS {
                sums[chain] = S::dot_u6(sums[chain], weights, x.add(4 * chain));
            }
        }
        for sum in sums {
            S::store(out, S::add(S::load(out), S::to_f32(sum)));
        }
    }
}

/// [`CHAINS`] times `rounds` dots of 32 bf16 pairs, each with 2 activations from the cache.
///
/// # Safety
/// The level's instructions; `x` holds `2 * CHAINS` elements; `out` has room for 16.
#[inline(always)]
pub(crate) unsafe fn bf16_dots<S: Lanes>(x: *const u16, rounds: usize, out: *mut f32) {
    // SAFETY: the caller's promises.
    unsafe {
        let weights = S::load_line(std::hint::black_box([0x3fu8; 64]).as_ptr());
        let mut sums = [S::splat(0.0); CHAINS];
        for _ in 0..rounds {
            let x = std::hint::black_box(x);
            for chain in 0..CHAINS {
                sums[chain] = S::dot_bf16(sums[chain], weights, x.add(2 * chain));
            }
        }
        for sum in sums {
            S::store(out, S::add(S::load(out), sum));
        }
    }
}

/// [`CHAINS`] times `rounds` fused multiply-adds of 16 lanes.
///
/// # Safety
/// The level's instructions; `x` holds [`CHAINS`] elements; `out` has room for 16 elements.
#[inline(always)]
pub(crate) unsafe fn multiply_adds<S: Lanes>(x: *const f32, rounds: usize, out: *mut f32) {
    // SAFETY: the caller's promises.
    unsafe {
        let weights = S::load(std::hint::black_box([0.5f32; LANES]).as_ptr());
        let mut sums = [S::splat(0.0); CHAINS];
        for _ in 0..rounds {
            let x = std::hint::black_box(x);
            for chain in 0..CHAINS {
                sums[chain] = S::fma(weights, S::splat(*x.add(chain)), sums[chain]);
            }
        }
        for sum in sums {
            S::store(out, S::add(S::load(out), sum));
        }
    }
}
