//! The lanes as four 128-bit registers: NEON with the dot product of Armv8.2 (Graviton 2, Apple M1 and later).

use super::{LANES, Lanes, scalar};
use std::arch::aarch64::*;

/// NEON with `dotprod`.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

macro_rules! four {
    ($op:ident($($arg:expr),*)) => {
        // SAFETY: the trait's contract.
        unsafe { [$op($($arg[0]),*), $op($($arg[1]),*), $op($($arg[2]),*), $op($($arg[3]),*)] }
    };
}

// SAFETY (all functions): the trait's contract gives the instructions and the pointers' validity.
#[allow(unused_unsafe, reason = "which intrinsics are safe inside a function with the feature differs by release")]
impl Lanes for Neon {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    const TILE: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { each!(0, 1, 2, 3 => |i| vld1q_f32(from.add(4 * i))) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        for (i, part) in x.into_iter().enumerate() {
            // SAFETY: the trait's contract.
            unsafe { vst1q_f32(to.add(4 * i), part) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        let mut wide = [0.0; LANES];
        for (i, value) in wide.iter_mut().enumerate() {
            // SAFETY: the trait's contract. (The half-precision intrinsics are not stable; this is load-time and scale code.)
            *value = scalar::f16_to_f32(unsafe { from.add(i).read_unaligned() });
        }
        // SAFETY: sixteen were just written.
        unsafe { Self::load(wide.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe {
            each!(0, 1, 2, 3 => |i| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(from.add(4 * i))))))
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        four!(vaddq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        four!(vsubq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        four!(vmulq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        four!(vdivq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        four!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { each!(0, 1, 2, 3 => |i| vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { each!(0, 1, 2, 3 => |i| vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn select_less(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { each!(0, 1, 2, 3 => |i| vbslq_f32(vcltq_f32(a[i], b[i]), yes[i], no[i])) }
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        four!(vrndnq_f32(x))
    }
    #[inline(always)]
    unsafe fn times_power_of_two(x: Self::F, n: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe {
            each!(0, 1, 2, 3 => |i| {
                let exponent = vaddq_s32(vcvtnq_s32_f32(n[i]), vdupq_n_s32(127));
                vmulq_f32(x[i], vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
            })
        }
    }
    #[inline(always)]
    unsafe fn add_exponent(x: Self::F, by: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe {
            each!(0, 1, 2, 3 => |i| {
                let shifted = vshlq_n_s32::<23>(vreinterpretq_s32_f32(by[i]));
                vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x[i]), shifted))
            })
        }
    }
    #[inline(always)]
    unsafe fn reduce_add(x: Self::F) -> f32 {
        // SAFETY: the trait's contract.
        unsafe {
            let four = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(x: Self::F) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(x[0], x[1]), vmaxq_f32(x[2], x[3]))) }
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load_line(from: *const u8) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { each!(0, 1, 2, 3 => |i| vreinterpretq_s32_u8(vld1q_u8(from.add(16 * i)))) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe {
            let [low, high] = each!(0, 8 => |at| vmovl_s8(vld1_s8(from.add(at))));
            let wide = |half| vmovl_s16(half);
            [wide(vget_low_s16(low)), wide(vget_high_s16(low)), wide(vget_low_s16(high)), wide(vget_high_s16(high))]
        }
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        four!(vcvtq_f32_s32(x))
    }
    #[inline(always)]
    unsafe fn shift_right_and<const SHIFT: u32>(x: Self::I, mask: i32) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe {
            let (right, mask) = (vdupq_n_s32(-(SHIFT as i32)), vdupq_n_s32(mask));
            each!(0, 1, 2, 3 => |i| vandq_s32(vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x[i]), right)), mask))
        }
    }
    #[inline(always)]
    unsafe fn shift_left_and<const SHIFT: u32>(x: Self::I, mask: i32) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe {
            let (left, mask) = (vdupq_n_s32(SHIFT as i32), vdupq_n_s32(mask));
            each!(0, 1, 2, 3 => |i| vandq_s32(vshlq_s32(x[i], left), mask))
        }
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { each!(0, 1, 2, 3 => |i| vorrq_s32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn bits_to_f32(x: Self::I) -> Self::F {
        four!(vreinterpretq_f32_s32(x))
    }
    #[inline(always)]
    unsafe fn max_magnitude_bits(so_far: Self::I, x: Self::F) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { each!(0, 1, 2, 3 => |i| vmaxq_s32(so_far[i], vreinterpretq_s32_f32(vabsq_f32(x[i])))) }
    }
    #[inline(always)]
    unsafe fn reduce_max_i32(x: Self::I) -> i32 {
        // SAFETY: the trait's contract.
        unsafe { vmaxvq_s32(vmaxq_s32(vmaxq_s32(x[0], x[1]), vmaxq_s32(x[2], x[3]))) }
    }
    #[inline(always)]
    unsafe fn quantize(x: Self::F, to: *mut i8) -> i32 {
        // SAFETY: the trait's contract; 16 bytes are written.
        unsafe {
            let narrow = each!(0, 1, 2, 3 => |i| vqmovn_s32(vcvtnq_s32_f32(x[i])));
            let low = vqmovn_s16(vcombine_s16(narrow[0], narrow[1]));
            let high = vqmovn_s16(vcombine_s16(narrow[2], narrow[3]));
            let bytes = vcombine_s8(low, high);
            vst1q_s8(to, bytes);
            i32::from(vaddlvq_s8(bytes))
        }
    }

    #[inline(always)]
    unsafe fn quantize_u7(x: [Self::F; 4], to: *mut u8) {
        // SAFETY: the trait's contract; 64 bytes are written.
        unsafe {
            let [a, b, c, d] = x;
            for part in 0..4 {
                let x = [a[part], b[part], c[part], d[part]];
                let words = each!(0, 1, 2, 3 => |i| vqmovun_s32(vcvtnq_s32_f32(x[i])));
                let (first, second) = (vcombine_u16(words[0], words[1]), vcombine_u16(words[2], words[3]));
                vst1q_u8(to.add(16 * part), vcombine_u8(vmovn_u16(first), vmovn_u16(second)));
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_u7(sum: Self::I, line: Self::I, x: *const u8) -> Self::I {
        // SAFETY: the trait's contract; 4 bytes are read, and up to 127 they are the same signed.
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
            each!(0, 1, 2, 3 => |i| signed_dot(sum[i], vreinterpretq_s8_s32(line[i]), x))
        }
    }
    #[inline(always)]
    unsafe fn dot_u6(sum: Self::I, line: Self::I, x: *const i8) -> Self::I {
        // SAFETY: the trait's contract; 4 bytes are read.
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
            each!(0, 1, 2, 3 => |i| signed_dot(sum[i], vreinterpretq_s8_s32(line[i]), x))
        }
    }
    #[inline(always)]
    unsafe fn products_i16(pairs: Self::I, x: Self::I) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe {
            each!(0, 1, 2, 3 => |i| {
                let (pairs, x) = (vreinterpretq_s16_s32(pairs[i]), vreinterpretq_s16_s32(x[i]));
                let low = vmull_s16(vget_low_s16(pairs), vget_low_s16(x));
                vpaddq_s32(low, vmull_high_s16(pairs, x))
            })
        }
    }
    #[inline(always)]
    unsafe fn start_i8(_zero: i32) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { [vdupq_n_s32(0); 4] }
    }
    #[inline(always)]
    unsafe fn dot_i8(sum: Self::I, line: Self::I, x: *const i8) -> Self::I {
        // SAFETY: the trait's contract; 4 bytes are read.
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
            let flip = vdupq_n_s8(-128);
            each!(0, 1, 2, 3 => |i| signed_dot(sum[i], veorq_s8(vreinterpretq_s8_s32(line[i]), flip), x))
        }
    }
}

/// `sdot`: each lane of `sum` gains the dot of its four bytes. Written as assembly because the intrinsic is not stable.
#[inline(always)]
unsafe fn signed_dot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the level requires `dotprod`; the instruction touches registers alone.
    unsafe {
        std::arch::asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
