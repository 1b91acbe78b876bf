//! Sixteen lanes, whatever the machine: the one vocabulary all kernels are written in.
//!
//! A kernel is generic over [`Lanes`] and is compiled once per level inside a function that enables the level's
//! instructions (see [`Kernels`](crate::kernel::Kernels)). Every operation here has one defined result, bit for bit the same
//! on every level: fused multiply-add rounds once, integer dots are exact, reductions add in one fixed tree. So a
//! kernel's result does not depend on the level, and [`scalar`] is the reference for all others.
//!
//! Quantised weights come in *lines*: 64 bytes holding, for each of 16 output rows, 4 consecutive input columns. A dot
//! instruction multiplies a line with 4 activation bytes repeated in all lanes.

/// An array of what `$body` is for each `$i`. Not by `map`: its closure lacks the level's features and stays a call, or the intrinsics in it
/// do, which made AVX2's dots ninety times slower.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! each {
    ($($number:literal),+ => |$i:ident| $body:expr) => {
        [$({
            let $i = $number;
            $body
        }),+]
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod level;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;

pub use level::SimdLevel;

/// Lanes of a vector, output rows of a weight panel, positions of a key tile.
pub(crate) const LANES: usize = 16;

/// 0, 1, … 15.
pub(crate) static IOTA: [f32; LANES] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// Sixteen lanes of f32 and of i32.
///
/// # Safety
/// All functions require the level's instructions; those taking pointers, that the named number of elements may be
/// read or written there (no alignment is needed).
pub(crate) trait Lanes: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32, or 64 bytes.
    type I: Copy;
    /// Activation rows a register tile holds: what the registers have room for.
    const TILE: usize;
    /// Whether [`dot_bf16`](Lanes::dot_bf16) exists.
    const HAS_BF16_DOT: bool = false;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, x: Self::F);
    /// Sixteen IEEE halves.
    unsafe fn load_f16(from: *const u16) -> Self::F;
    /// Sixteen bfloat16.
    unsafe fn load_bf16(from: *const u16) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b` per lane: b where one is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b` per lane: b where one is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? yes : no` per lane.
    unsafe fn select_less(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// To the nearest integer, halves to even.
    unsafe fn round(x: Self::F) -> Self::F;
    /// `x * 2^n` for integers n in -126..=127.
    unsafe fn times_power_of_two(x: Self::F, n: Self::F) -> Self::F;
    /// `x * 2^n` by adding to x's exponent, n being the low bits of `by` as an integer; the result must be a normal number.
    unsafe fn add_exponent(x: Self::F, by: Self::F) -> Self::F;
    /// Lanes i and i+8 first, then +4, +2, +1.
    unsafe fn reduce_add(x: Self::F) -> f32;
    unsafe fn reduce_max(x: Self::F) -> f32;

    unsafe fn splat_i32(x: i32) -> Self::I;
    /// 64 bytes.
    unsafe fn load_line(from: *const u8) -> Self::I;
    /// Sixteen signed bytes.
    unsafe fn load_i8(from: *const i8) -> Self::I;
    /// Exact up to 2^24 in magnitude; halves to even.
    unsafe fn to_f32(x: Self::I) -> Self::F;
    /// `(x >> SHIFT) & mask` in each 32-bit lane.
    unsafe fn shift_right_and<const SHIFT: u32>(x: Self::I, mask: i32) -> Self::I;
    /// `(x << SHIFT) & mask` in each 32-bit lane.
    unsafe fn shift_left_and<const SHIFT: u32>(x: Self::I, mask: i32) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    /// The same 32 bits as f32.
    unsafe fn bits_to_f32(x: Self::I) -> Self::F;
    /// Lane-wise maximum of the bit patterns of `|x|`: that of the magnitudes, and NaN above all.
    unsafe fn max_magnitude_bits(so_far: Self::I, x: Self::F) -> Self::I;
    unsafe fn reduce_max_i32(x: Self::I) -> i32;
    /// Rounds (halves to even) sixteen values of magnitude up to 127 to bytes; returns their sum. NaN gives any bytes.
    unsafe fn quantize(x: Self::F, to: *mut i8) -> i32;

    /// Rounds (halves to even) four times sixteen values from 0 to 127 to bytes: for each four lanes those of the first, of the second and
    /// so on. NaN gives any bytes up to 127.
    unsafe fn quantize_u7(x: [Self::F; 4], to: *mut u8);

    /// Adds to each lane the dot of its 4 signed bytes with the 4 at `x`, which are at most 127.
    unsafe fn dot_u7(sum: Self::I, line: Self::I, x: *const u8) -> Self::I;
    /// Adds to each lane the dot of its 4 bytes, each 0 to 63, with the 4 at `x`, whose magnitudes are at most 127.
    unsafe fn dot_u6(sum: Self::I, line: Self::I, x: *const i8) -> Self::I;
    /// In each lane the dot of its two signed 16-bit halves with those of `x`; of either side no half is -2^15.
    unsafe fn products_i16(pairs: Self::I, x: Self::I) -> Self::I;
    /// The sum to start [`dot_i8`](Lanes::dot_i8) from, where `zero` is -8 times the sum of the activations to come.
    unsafe fn start_i8(zero: i32) -> Self::I;
    /// Adds to each lane the dot of its 4 bytes less 128 with the 4 at `x`, whose magnitudes are at most 127.
    unsafe fn dot_i8(sum: Self::I, line: Self::I, x: *const i8) -> Self::I;

    /// Adds to each lane the dot of its 2 bfloat16 with the 2 at `x`, by the machine's own rounding. Only where
    /// [`HAS_BF16_DOT`](Lanes::HAS_BF16_DOT).
    #[inline(always)]
    unsafe fn dot_bf16(_sum: Self::F, _line: Self::I, _x: *const u16) -> Self::F {
        unreachable!("this level has no bf16 dot product")
    }

    /// Hints that the cache line at `from`, which need not exist, will be read; brings it into the second cache.
    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}
    /// Asks for the line at `to`, which will be written.
    ///
    /// # Safety
    /// The level's instructions. (The memory need not exist.)
    #[inline(always)]
    unsafe fn prefetch_to_write(_to: *mut f32) {}
}
