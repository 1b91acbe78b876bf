//! The lanes as two 256-bit registers: AVX2, FMA and F16C (Haswell, Zen and later).

use super::{LANES, Lanes};
use std::arch::x86_64::*;

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

macro_rules! both {
    ($op:ident($($arg:expr),*)) => {
        // SAFETY: the trait's contract.
        unsafe { [$op($($arg[0]),*), $op($($arg[1]),*)] }
    };
}

// SAFETY (all functions): the trait's contract gives the instructions and the pointers' validity; loads and stores are
// the unaligned ones.
#[allow(unused_unsafe, reason = "which intrinsics are safe inside a function with the feature differs by release")]
impl Lanes for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    const TILE: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        // SAFETY: the trait's contract.
        unsafe {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()))] }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    unsafe fn select_less(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { each!(0, 1 => |i| _mm256_blendv_ps(no[i], yes[i], _mm256_cmp_ps::<_CMP_LT_OQ>(a[i], b[i]))) }
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe {
            [
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x[0]),
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn times_power_of_two(x: Self::F, n: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe {
            each!(0, 1 => |i| {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n[i]), _mm256_set1_epi32(127));
                _mm256_mul_ps(x[i], _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
            })
        }
    }
    #[inline(always)]
    unsafe fn add_exponent(x: Self::F, by: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe {
            each!(0, 1 => |i| {
                let shifted = _mm256_slli_epi32::<23>(_mm256_castps_si256(by[i]));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x[i]), shifted))
            })
        }
    }
    #[inline(always)]
    unsafe fn reduce_add(x: Self::F) -> f32 {
        // SAFETY: the trait's contract.
        unsafe {
            let eight = _mm256_add_ps(x[0], x[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(x: Self::F) -> f32 {
        // SAFETY: the trait's contract.
        unsafe {
            let eight = _mm256_max_ps(x[0], x[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load_line(from: *const u8) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { each!(0, 8 => |at| _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(at).cast()))) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        both!(_mm256_cvtepi32_ps(x))
    }
    #[inline(always)]
    unsafe fn shift_right_and<const SHIFT: u32>(x: Self::I, mask: i32) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe {
            let (mask, shift) = (_mm256_set1_epi32(mask), _mm_cvtsi32_si128(SHIFT as i32));
            each!(0, 1 => |i| _mm256_and_si256(_mm256_srl_epi32(x[i], shift), mask))
        }
    }
    #[inline(always)]
    unsafe fn shift_left_and<const SHIFT: u32>(x: Self::I, mask: i32) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe {
            let (mask, shift) = (_mm256_set1_epi32(mask), _mm_cvtsi32_si128(SHIFT as i32));
            each!(0, 1 => |i| _mm256_and_si256(_mm256_sll_epi32(x[i], shift), mask))
        }
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_or_si256(a, b))
    }
    #[inline(always)]
    unsafe fn bits_to_f32(x: Self::I) -> Self::F {
        both!(_mm256_castsi256_ps(x))
    }
    #[inline(always)]
    unsafe fn max_magnitude_bits(so_far: Self::I, x: Self::F) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe {
            let magnitude = _mm256_set1_epi32(0x7fff_ffff);
            each!(0, 1 => |i| _mm256_max_epi32(so_far[i], _mm256_and_si256(_mm256_castps_si256(x[i]), magnitude)))
        }
    }
    #[inline(always)]
    unsafe fn reduce_max_i32(x: Self::I) -> i32 {
        // SAFETY: the trait's contract.
        unsafe {
            let eight = _mm256_max_epi32(x[0], x[1]);
            let four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
            _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32::<1>(two)))
        }
    }
    #[inline(always)]
    unsafe fn quantize(x: Self::F, to: *mut i8) -> i32 {
        // SAFETY: the trait's contract; 16 bytes are written.
        unsafe {
            let [low, high] = [_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1])];
            // packs works within 128-bit halves; the permutation restores the order.
            let words = _mm256_permute4x64_epi64::<0b1101_1000>(_mm256_packs_epi32(low, high));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), bytes);
            let sums = _mm_sad_epu8(_mm_xor_si128(bytes, _mm_set1_epi8(-128)), _mm_setzero_si128());
            _mm_cvtsi128_si32(sums) + _mm_extract_epi16::<4>(sums) - (LANES as i32) * 128
        }
    }

    #[inline(always)]
    unsafe fn quantize_u7(x: [Self::F; 4], to: *mut u8) {
        // SAFETY: the trait's contract; 64 bytes are written. Packing works within 128-bit halves, which is the order wanted, and
        // saturates: what NaN becomes to 0.
        unsafe {
            let [a, b, c, d] = x;
            for part in 0..2 {
                let first = _mm256_packus_epi32(_mm256_cvtps_epi32(a[part]), _mm256_cvtps_epi32(b[part]));
                let second = _mm256_packus_epi32(_mm256_cvtps_epi32(c[part]), _mm256_cvtps_epi32(d[part]));
                _mm256_storeu_si256(to.add(32 * part).cast(), _mm256_packus_epi16(first, second));
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_u7(sum: Self::I, line: Self::I, x: *const u8) -> Self::I {
        // SAFETY: the trait's contract; 4 bytes are read. Pair sums stay within 2 * 127 * 128 = 32,512.
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            let ones = _mm256_set1_epi16(1);
            each!(0, 1 => |i| _mm256_add_epi32(sum[i], _mm256_madd_epi16(_mm256_maddubs_epi16(x, line[i]), ones)))
        }
    }
    #[inline(always)]
    unsafe fn dot_u6(sum: Self::I, line: Self::I, x: *const i8) -> Self::I {
        // SAFETY: the trait's contract; 4 bytes are read. Pair sums stay within 2 * 63 * 127.
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            let ones = _mm256_set1_epi16(1);
            each!(0, 1 => |i| _mm256_add_epi32(sum[i], _mm256_madd_epi16(_mm256_maddubs_epi16(line[i], x), ones)))
        }
    }
    #[inline(always)]
    unsafe fn products_i16(pairs: Self::I, x: Self::I) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { each!(0, 1 => |i| _mm256_madd_epi16(pairs[i], x[i])) }
    }
    #[inline(always)]
    unsafe fn start_i8(_zero: i32) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn dot_i8(sum: Self::I, line: Self::I, x: *const i8) -> Self::I {
        // SAFETY: the trait's contract; 4 bytes are read. |w| <= 128 times x with w's sign: pair sums stay within
        // 2 * 128 * 127 = 32,512, so nothing saturates.
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            let (ones, flip) = (_mm256_set1_epi16(1), _mm256_set1_epi8(-128));
            each!(0, 1 => |i| {
                let w = _mm256_xor_si256(line[i], flip);
                let products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                _mm256_add_epi32(sum[i], _mm256_madd_epi16(products, ones))
            })
        }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: prefetching never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_to_write(to: *mut f32) {
        // SAFETY: prefetching never faults, and where there is no such instruction it does nothing.
        unsafe { std::arch::asm!("prefetchw [{}]", in(reg) to, options(nostack, preserves_flags, readonly)) };
    }
}
