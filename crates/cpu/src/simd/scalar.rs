//! The lanes in plain Rust: what every other level must equal, and what runs where none of them does.

use super::{LANES, Lanes};

/// No SIMD instructions named; the compiler may find some.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

#[inline(always)]
fn each_i32(f: impl Fn(usize) -> i32) -> [i32; LANES] {
    std::array::from_fn(f)
}

// SAFETY (all functions): pointers are used as the trait's contract allows; nothing else here is unsafe.
impl Lanes for Scalar {
    type F = [f32; LANES];
    type I = [i32; LANES];
    const TILE: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        // SAFETY: the trait's contract.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        // SAFETY: the trait's contract.
        let halves = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each(|i| f16_to_f32(halves[i]))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F {
        // SAFETY: the trait's contract.
        let halves = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each(|i| f32::from_bits(u32::from(halves[i]) << 16))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn select_less(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        each(|i| x[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn times_power_of_two(x: Self::F, n: Self::F) -> Self::F {
        each(|i| x[i] * f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn add_exponent(x: Self::F, by: Self::F) -> Self::F {
        each(|i| f32::from_bits(x[i].to_bits().wrapping_add(by[i].to_bits() << 23)))
    }
    #[inline(always)]
    unsafe fn reduce_add(x: Self::F) -> f32 {
        let mut sums = x;
        for step in [8, 4, 2, 1] {
            for i in 0..step {
                sums[i] += sums[i + step];
            }
        }
        sums[0]
    }
    #[inline(always)]
    unsafe fn reduce_max(x: Self::F) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |m, v| if m > v { m } else { v })
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load_line(from: *const u8) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { from.cast::<[i32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { from.cast::<[i8; LANES]>().read_unaligned() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        each(|i| x[i] as f32)
    }
    #[inline(always)]
    unsafe fn shift_right_and<const SHIFT: u32>(x: Self::I, mask: i32) -> Self::I {
        each_i32(|i| ((x[i] as u32) >> SHIFT) as i32 & mask)
    }
    #[inline(always)]
    unsafe fn shift_left_and<const SHIFT: u32>(x: Self::I, mask: i32) -> Self::I {
        each_i32(|i| (x[i] << SHIFT) & mask)
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        each_i32(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn bits_to_f32(x: Self::I) -> Self::F {
        each(|i| f32::from_bits(x[i] as u32))
    }
    #[inline(always)]
    unsafe fn max_magnitude_bits(so_far: Self::I, x: Self::F) -> Self::I {
        each_i32(|i| so_far[i].max((x[i].to_bits() & 0x7fff_ffff) as i32))
    }
    #[inline(always)]
    unsafe fn reduce_max_i32(x: Self::I) -> i32 {
        x.into_iter().fold(i32::MIN, i32::max)
    }
    #[inline(always)]
    unsafe fn quantize(x: Self::F, to: *mut i8) -> i32 {
        let bytes: [i8; LANES] = std::array::from_fn(|i| x[i].round_ties_even() as i8);
        // SAFETY: the trait's contract.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(bytes) };
        bytes.iter().map(|&byte| i32::from(byte)).sum()
    }

    #[inline(always)]
    unsafe fn quantize_u7(x: [Self::F; 4], to: *mut u8) {
        for (vector, x) in x.into_iter().enumerate() {
            for (i, value) in x.into_iter().enumerate() {
                // SAFETY: the trait's contract.
                unsafe { *to.add(i / 4 * LANES + vector * 4 + i % 4) = value.round_ties_even() as u8 & 127 };
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_u7(sum: Self::I, line: Self::I, x: *const u8) -> Self::I {
        // SAFETY: the trait's contract.
        let x = unsafe { x.cast::<[u8; 4]>().read_unaligned() };
        each_i32(|i| {
            let w = line[i].to_le_bytes();
            sum[i] + (0..4).map(|j| i32::from(w[j] as i8) * i32::from(x[j])).sum::<i32>()
        })
    }
    #[inline(always)]
    unsafe fn dot_u6(sum: Self::I, line: Self::I, x: *const i8) -> Self::I {
        // SAFETY: the trait's contract.
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() };
        each_i32(|i| sum[i] + dot(line[i], x, 0))
    }
    #[inline(always)]
    unsafe fn products_i16(pairs: Self::I, x: Self::I) -> Self::I {
        let product = |a: i32, b: i32| i32::from(a as i16) * i32::from(b as i16);
        each_i32(|i| product(pairs[i], x[i]) + product(pairs[i] >> 16, x[i] >> 16))
    }
    #[inline(always)]
    unsafe fn start_i8(_zero: i32) -> Self::I {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn dot_i8(sum: Self::I, line: Self::I, x: *const i8) -> Self::I {
        // SAFETY: the trait's contract.
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() };
        each_i32(|i| sum[i] + dot(line[i], x, 128))
    }
}

#[inline(always)]
fn dot(weights: i32, x: [i8; 4], zero: i32) -> i32 {
    let w = weights.to_le_bytes();
    (0..4).map(|i| (i32::from(w[i]) - zero) * i32::from(x[i])).sum()
}

/// The value of an IEEE half.
pub(crate) fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = u32::from(half & 0x7fff);
    let bits = match magnitude >> 10 {
        // Subnormal or zero: magnitude * 2^-24.
        0 => (magnitude as f32 * f32::from_bits(0x3380_0000)).to_bits(),
        31 => 0x7f80_0000 | ((magnitude & 0x3ff) << 13) | if magnitude & 0x3ff != 0 { 0x0040_0000 } else { 0 },
        _ => (magnitude << 13) + 0x3800_0000,
    };
    f32::from_bits(sign | bits)
}

/// The nearest IEEE half, ties to even; infinity past 65,519.
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let sign = ((x.to_bits() >> 16) & 0x8000) as u16;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let half = if magnitude > 0x7f80_0000 {
        0x7e00 | ((magnitude >> 13) & 0x1ff) as u16
    } else if magnitude >= 0x477f_f000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Below 2^-14: adding 0.5 leaves the multiple of 2^-24, rounded by the FPU, in the low bits.
        ((f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000) as u16
    } else {
        let rebased = magnitude - 0x3800_0000;
        ((rebased + 0xfff + ((rebased >> 13) & 1)) >> 13) as u16
    };
    sign | half
}

/// The nearest bfloat16, ties to even.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_round_trip() {
        for half in 0..=u16::MAX {
            let value = f16_to_f32(half);
            if value.is_nan() {
                assert!(f16_to_f32(f32_to_f16(value)).is_nan());
            } else {
                assert_eq!(f32_to_f16(value), half, "{half:#06x} = {value}");
            }
        }
    }

    #[test]
    fn halves_round_to_nearest_even() {
        for (value, half) in [
            (1.0 + 1.0 / 2048.0, 0x3c00),
            (1.0 + 3.0 / 2048.0, 0x3c02),
            (65_519.0, 0x7bff),
            (65_520.0, 0x7c00),
            (2.0f32.powi(-25), 0),
            (2.0f32.powi(-25) * 1.01, 1),
            (-f32::INFINITY, 0xfc00),
        ] {
            assert_eq!(f32_to_f16(value), half, "{value}");
        }
    }

    #[test]
    fn bfloat16_rounds_to_nearest_even() {
        for (bits, bf16) in [(0x3f80_8000, 0x3f80), (0x3f81_8000, 0x3f82), (0x3f80_8001, 0x3f81)] {
            assert_eq!(f32_to_bf16(f32::from_bits(bits)), bf16);
        }
    }
}
