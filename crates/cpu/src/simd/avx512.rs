//! The lanes as one 512-bit register: AVX-512 F, BW, VL, DQ and VNNI (Ice Lake, Zen 4 and later).

use super::{LANES, Lanes};
use std::arch::x86_64::*;

/// AVX-512 with VNNI, and with BF16 or not.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>;

// SAFETY (all functions): the trait's contract gives the instructions and the pointers' validity; loads and stores are
// the unaligned ones.
#[allow(unused_unsafe, reason = "which intrinsics are safe inside a function with the feature differs by release")]
impl<const BF16: bool> Lanes for Avx512<BF16> {
    type F = __m512;
    type I = __m512i;
    const TILE: usize = 8;
    const HAS_BF16_DOT: bool = BF16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        // SAFETY: the trait's contract.
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn select_less(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    unsafe fn times_power_of_two(x: Self::F, n: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_scalef_ps(x, n) }
    }
    #[inline(always)]
    unsafe fn add_exponent(x: Self::F, by: Self::F) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe {
            let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(by));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), shifted))
        }
    }
    #[inline(always)]
    unsafe fn reduce_add(x: Self::F) -> f32 {
        // SAFETY: the trait's contract.
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(x: Self::F) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_reduce_max_ps(x) }
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn load_line(from: *const u8) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn shift_right_and<const SHIFT: u32>(x: Self::I, mask: i32) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { _mm512_and_si512(_mm512_srli_epi32::<SHIFT>(x), _mm512_set1_epi32(mask)) }
    }
    #[inline(always)]
    unsafe fn shift_left_and<const SHIFT: u32>(x: Self::I, mask: i32) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { _mm512_and_si512(_mm512_slli_epi32::<SHIFT>(x), _mm512_set1_epi32(mask)) }
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn bits_to_f32(x: Self::I) -> Self::F {
        // SAFETY: the trait's contract.
        unsafe { _mm512_castsi512_ps(x) }
    }
    #[inline(always)]
    unsafe fn max_magnitude_bits(so_far: Self::I, x: Self::F) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { _mm512_max_epi32(so_far, _mm512_castps_si512(_mm512_abs_ps(x))) }
    }
    #[inline(always)]
    unsafe fn reduce_max_i32(x: Self::I) -> i32 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_reduce_max_epi32(x) }
    }
    #[inline(always)]
    unsafe fn quantize(x: Self::F, to: *mut i8) -> i32 {
        // SAFETY: the trait's contract; 16 bytes are written.
        unsafe {
            let wide = _mm512_cvtps_epi32(x);
            let bytes = _mm512_cvtsepi32_epi8(wide);
            _mm_storeu_si128(to.cast(), bytes);
            // |x - -128| per byte summed over each half: the sum of the bytes plus 16 * 128.
            let sums = _mm_sad_epu8(_mm_xor_si128(bytes, _mm_set1_epi8(-128)), _mm_setzero_si128());
            _mm_cvtsi128_si32(sums) + _mm_extract_epi16::<4>(sums) - (LANES as i32) * 128
        }
    }

    #[inline(always)]
    unsafe fn quantize_u7(x: [Self::F; 4], to: *mut u8) {
        // SAFETY: the trait's contract; 64 bytes are written. Packing works within quarters, which is the order wanted, and
        // saturates: what NaN becomes to 0.
        unsafe {
            let first = _mm512_packus_epi32(_mm512_cvtps_epi32(x[0]), _mm512_cvtps_epi32(x[1]));
            let second = _mm512_packus_epi32(_mm512_cvtps_epi32(x[2]), _mm512_cvtps_epi32(x[3]));
            _mm512_storeu_si512(to.cast(), _mm512_packus_epi16(first, second));
        }
    }

    #[inline(always)]
    unsafe fn dot_u7(sum: Self::I, line: Self::I, x: *const u8) -> Self::I {
        // SAFETY: the trait's contract; 4 bytes are read.
        unsafe { _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(x.cast::<i32>().read_unaligned()), line) }
    }
    #[inline(always)]
    unsafe fn dot_u6(sum: Self::I, line: Self::I, x: *const i8) -> Self::I {
        // SAFETY: the trait's contract; 4 bytes are read.
        unsafe { _mm512_dpbusd_epi32(sum, line, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn products_i16(pairs: Self::I, x: Self::I) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { _mm512_madd_epi16(pairs, x) }
    }
    #[inline(always)]
    unsafe fn start_i8(zero: i32) -> Self::I {
        // SAFETY: the trait's contract.
        unsafe { _mm512_slli_epi32::<4>(_mm512_set1_epi32(zero)) }
    }
    #[inline(always)]
    unsafe fn dot_i8(sum: Self::I, line: Self::I, x: *const i8) -> Self::I {
        // SAFETY: the trait's contract; 4 bytes are read.
        unsafe { _mm512_dpbusd_epi32(sum, line, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn dot_bf16(sum: Self::F, line: Self::I, x: *const u16) -> Self::F {
        assert!(BF16, "this level has no bf16 dot product");
        // SAFETY: the trait's contract; 4 bytes are read, and the vectors are only seen as other types of their size.
        unsafe {
            let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512i, __m512bh>(line),
                std::mem::transmute::<__m512i, __m512bh>(x),
            )
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
