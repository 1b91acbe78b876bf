//! The kernels, each written once over [`Lanes`](crate::simd::Lanes), and the table of them compiled for one level.

pub(crate) mod attention;
pub(crate) mod ceiling;
pub(crate) mod encode;
pub(crate) mod exponential;
pub(crate) mod fixed_point;
pub(crate) mod float;
pub(crate) mod integer;
pub(crate) mod rows;
#[cfg(test)]
mod tests;

use crate::{
    activations::{Activations, QuantBlock, TILE_ROWS},
    kv::{KvDtype, KvLayout},
    simd::{Lanes, SimdLevel},
};
use attention::{AttentionWork, NewKeyValue, Partial, QueryRows};
use encode::GateRows;
use fixed_point::FixedPointPanel;
use integer::IntegerPanel;
use rows::{Gate, HeadNorm, Rotation, RowNorm};

/// What happens to 16 finished output elements of a row.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue {
    /// 16 biases to add, or null.
    pub(crate) bias: *const f32,
    /// Add to what is there (the residual stream) instead of overwriting it.
    pub(crate) accumulate: bool,
}

impl Epilogue {
    pub(crate) const STORE: Self = Self { bias: std::ptr::null(), accumulate: false };

    /// # Safety
    /// The level's instructions; `out` has `rows.len()` rows of 16 elements, `stride` apart; `bias` is null or has 16.
    #[inline(always)]
    unsafe fn write<S: Lanes>(self, rows: &[S::F], out: *mut f32, stride: usize) {
        for (m, &row) in rows.iter().enumerate() {
            // SAFETY: the caller's promises.
            unsafe {
                let to = out.add(m * stride);
                let mut value = row;
                if !self.bias.is_null() {
                    value = S::add(value, S::load(self.bias));
                }
                if self.accumulate {
                    value = S::add(S::load(to), value);
                }
                S::store(to, value);
            }
        }
    }
}

/// Which weights a kernel asks memory for while it multiplies others, and in which of its tiles.
///
/// A core has 24 lines on their way at most. One tile of 8 rows has time for about as many, so where there are more, tiles take turns with the
/// blocks: 171 to 180 G multiply-adds/s for 32 rows of Q4_1 from memory, as fast as from the caches.
#[derive(Clone, Copy)]
struct Ahead {
    /// Tiles that take turns, a power of two.
    turns: usize,
    /// How far ahead.
    bytes: usize,
}

/// How far ahead a single tile asks: memory answers after the time of 4 KB at 8 rows, and of 8 KB at 4. Asked 2 KB ahead, a fifth
/// is lost with 4 rows, a twelfth with 8.
const AHEAD_BYTES: usize = 8192;
/// Rows from which a tile asks for weights ahead. With one or two rows the machine's own prefetchers do better; with more there is time to ask.
const ASKING_ROWS: usize = 4;

impl Ahead {
    /// For `rows` rows, each multiplied with panels of so many bytes.
    fn of(rows: usize, panel_bytes: usize) -> Self {
        // Tiles of few rows do not ask: see `asks`.
        match rows / TILE_ROWS + usize::from(rows % TILE_ROWS >= ASKING_ROWS) {
            0 | 1 => Self { turns: 1, bytes: AHEAD_BYTES },
            2 | 3 => Self { turns: 2, bytes: panel_bytes },
            _ => Self { turns: 4, bytes: panel_bytes },
        }
    }

    /// Whether a tile of `count` rows from `row` on asks while it multiplies a block.
    #[inline(always)]
    fn asks(self, row: usize, count: usize, block: usize) -> bool {
        count >= ASKING_ROWS && row.is_multiple_of(TILE_ROWS) && row / TILE_ROWS == block & (self.turns - 1)
    }
}

/// What a matrix kernel makes of some rows at a time.
trait Tiles<S: Lanes>: Copy {
    /// 16 output columns of rows `row..row + M`, which one tile of activations holds.
    ///
    /// # Safety
    /// The level's instructions, and what the kernel says.
    unsafe fn tile<const M: usize>(self, row: usize) -> [S::F; M];
}

/// Computes `rows` rows, as many at a time as the registers hold.
///
/// # Safety
/// As [`Tiles::tile`] for all the rows; `out` has them, `stride` apart, of 16 elements that no other thread touches.
#[inline(always)]
unsafe fn each_tile<S: Lanes>(tiles: impl Tiles<S>, rows: usize, out: *mut f32, stride: usize, epilogue: Epilogue) {
    let mut row = 0;
    while row < rows {
        let count = (rows - row).min(TILE_ROWS - row % TILE_ROWS).min(S::TILE);
        // SAFETY: the caller's promises.
        unsafe {
            let out = out.add(row * stride);
            for m in 0..count {
                S::prefetch_to_write(out.add(m * stride));
            }
            macro_rules! tile {
                ($m:literal) => {
                    epilogue.write::<S>(&tiles.tile::<$m>(row)[..count], out, stride)
                };
            }
            // A tile may be computed wider than it is filled: the rows past `count` exist in memory and are dropped.
            match count {
                1 => tile!(1),
                2 => tile!(2),
                3 | 4 if S::TILE >= 4 => tile!(4),
                5 | 6 if S::TILE >= 8 => tile!(6),
                _ if S::TILE >= 8 => tile!(8),
                _ => unreachable!("a tile holds at most S::TILE rows"),
            }
        }
        row += count;
    }
}

/// The kernels compiled for one level. Each is unsafe as its generic original says; the level's instructions are there,
/// because [`Kernels::of`] checks.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub(crate) level: SimdLevel,
    pub(crate) has_bf16_dot: bool,
    pub(crate) multiply_integer: unsafe fn(IntegerPanel, *const QuantBlock, usize, *mut f32, usize, Epilogue),
    pub(crate) multiply_fixed_point: unsafe fn(FixedPointPanel, *const QuantBlock, usize, *mut f32, usize, Epilogue),
    pub(crate) multiply_bf16: unsafe fn(*const u16, usize, *const u16, usize, *mut f32, usize, Epilogue),
    pub(crate) multiply_f32: unsafe fn(*const f32, usize, *const f32, usize, *mut f32, usize, Epilogue),
    pub(crate) expand_integer: unsafe fn(IntegerPanel, *mut f32),
    pub(crate) expand_bf16: unsafe fn(*const u16, usize, *mut f32),
    pub(crate) expand_f16: unsafe fn(*const u16, usize, *mut f32),
    pub(crate) encode_row: unsafe fn(Activations, usize, *const f32),
    pub(crate) encode_blocks: unsafe fn(Activations, usize, std::ops::Range<usize>, *const f32),
    pub(crate) encode_gated: unsafe fn(Gate, GateRows, Activations),
    pub(crate) norm: unsafe fn(RowNorm, *const f32, *mut f32),
    pub(crate) gate: unsafe fn(Gate, *const f32, *const f32, *mut f32, usize),
    pub(crate) add: unsafe fn(*mut f32, *const f32, usize),
    pub(crate) rotate_head: unsafe fn(Rotation, Option<HeadNorm>, *mut f32),
    pub(crate) soft_cap: unsafe fn(*mut f32, usize, f32),
    pub(crate) load_queries: unsafe fn(QueryRows, KvDtype, *mut f32),
    pub(crate) store_key_value: unsafe fn(&KvLayout, *mut u8, NewKeyValue),
    pub(crate) attend: unsafe fn(&AttentionWork, std::ops::Range<usize>, Partial),
    pub(crate) merge: unsafe fn(&AttentionWork, Partial, Partial),
    pub(crate) finish: unsafe fn(&AttentionWork, Partial, *mut f32, usize),
    pub(crate) read: unsafe fn(*const u8, usize, *mut f32),
    pub(crate) dots: unsafe fn(*const i8, usize, *mut f32),
    pub(crate) bf16_dots: unsafe fn(*const u16, usize, *mut f32),
    pub(crate) multiply_adds: unsafe fn(*const f32, usize, *mut f32),
}

macro_rules! table {
    ($level:expr, $lanes:ty $(, #[$features:meta])?) => {{
        type S = $lanes;
        table!(@functions $(#[$features])?
            multiply_integer = integer::multiply(p: IntegerPanel, x: *const QuantBlock, rows: usize, out: *mut f32, stride: usize, e: Epilogue);
            multiply_fixed_point = fixed_point::multiply(p: FixedPointPanel, x: *const QuantBlock, rows: usize, out: *mut f32, stride: usize, e: Epilogue);
            multiply_bf16 = float::multiply_bf16(p: *const u16, pairs: usize, x: *const u16, rows: usize, out: *mut f32, stride: usize, e: Epilogue);
            multiply_f32 = float::multiply_f32(p: *const f32, columns: usize, x: *const f32, rows: usize, out: *mut f32, stride: usize, e: Epilogue);
            expand_integer = integer::expand(p: IntegerPanel, out: *mut f32);
            expand_bf16 = float::expand_bf16(p: *const u16, pairs: usize, out: *mut f32);
            expand_f16 = float::expand_f16(p: *const u16, columns: usize, out: *mut f32);
            encode_row = encode::encode_row(x: Activations, row: usize, from: *const f32);
            encode_blocks = encode::encode_blocks(x: Activations, row: usize, blocks: std::ops::Range<usize>, from: *const f32);
            encode_gated = encode::encode_gated(gate: Gate, rows: GateRows, to: Activations);
            norm = rows::norm(norm: RowNorm, from: *const f32, to: *mut f32);
            gate = rows::gate(gate: Gate, gates: *const f32, ups: *const f32, out: *mut f32, len: usize);
            add = rows::add(to: *mut f32, from: *const f32, len: usize);
            rotate_head = rows::rotate_head(rotation: Rotation, norm: Option<HeadNorm>, head: *mut f32);
            soft_cap = rows::soft_cap(x: *mut f32, len: usize, cap: f32);
            load_queries = attention::load_queries(rows: QueryRows, dtype: KvDtype, to: *mut f32);
            store_key_value = attention::store(kv: &KvLayout, layer: *mut u8, new: NewKeyValue);
            attend = attention::attend(work: &AttentionWork, span: std::ops::Range<usize>, out: Partial);
            merge = attention::merge(work: &AttentionWork, into: Partial, from: Partial);
            finish = attention::finish(work: &AttentionWork, total: Partial, out: *mut f32, stride: usize);
            read = ceiling::read(from: *const u8, lines: usize, out: *mut f32);
            dots = ceiling::dots(x: *const i8, rounds: usize, out: *mut f32);
            bf16_dots = ceiling::bf16_dots(x: *const u16, rounds: usize, out: *mut f32);
            multiply_adds = ceiling::multiply_adds(x: *const f32, rounds: usize, out: *mut f32);
        );
        Kernels {
            level: $level,
            has_bf16_dot: <S as Lanes>::HAS_BF16_DOT,
            multiply_integer, multiply_fixed_point, multiply_bf16, multiply_f32, expand_integer, expand_bf16, expand_f16, encode_row,
            encode_blocks, encode_gated, norm, gate, add, rotate_head, soft_cap, load_queries, store_key_value, attend, merge, finish, read, dots, bf16_dots,
            multiply_adds,
        }
    }};
    (@functions $(#[$features:meta])?) => {};
    (@functions #[$features:meta] $name:ident = $module:ident::$original:ident($($arg:ident: $type:ty),*); $($rest:tt)*) => {
        #[$features]
        unsafe fn $name($($arg: $type),*) {
            // SAFETY: the caller's promises, and the features are enabled here.
            unsafe { $module::$original::<S>($($arg),*) }
        }
        table!(@functions #[$features] $($rest)*);
    };
    (@functions $name:ident = $module:ident::$original:ident($($arg:ident: $type:ty),*); $($rest:tt)*) => {
        unsafe fn $name($($arg: $type),*) {
            // SAFETY: the caller's promises.
            unsafe { $module::$original::<S>($($arg),*) }
        }
        table!(@functions $($rest)*);
    };
}

impl Kernels {
    /// The kernels of a level, when this machine has it.
    pub(crate) fn of(level: SimdLevel) -> Option<Self> {
        if !level.is_available() {
            return None;
        }
        Some(match level {
            SimdLevel::Scalar => table!(level, crate::simd::scalar::Scalar),
            #[cfg(target_arch = "aarch64")]
            SimdLevel::Neon => {
                table!(level, crate::simd::neon::Neon, #[target_feature(enable = "neon,dotprod")])
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => {
                table!(level, crate::simd::avx2::Avx2, #[target_feature(enable = "avx2,fma,f16c")])
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => avx512(level),
            // All but these are the same, and compiling them again would only cost time.
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512Bf16 => Self {
                multiply_bf16: multiply_bf16_avx512,
                bf16_dots: bf16_dots_avx512,
                has_bf16_dot: true,
                ..avx512(level)
            },
            #[allow(unreachable_patterns, reason = "which levels exist differs by target")]
            _ => return None,
        })
    }
}

#[cfg(target_arch = "x86_64")]
fn avx512(level: SimdLevel) -> Kernels {
    table!(
        level,
        crate::simd::avx512::Avx512<false>,
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    )
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
unsafe fn multiply_bf16_avx512(
    panel: *const u16,
    pairs: usize,
    x: *const u16,
    rows: usize,
    out: *mut f32,
    stride: usize,
    epilogue: Epilogue,
) {
    // SAFETY: the caller's promises, and the features are enabled here.
    unsafe {
        float::multiply_bf16::<crate::simd::avx512::Avx512<true>>(panel, pairs, x, rows, out, stride, epilogue);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
unsafe fn bf16_dots_avx512(x: *const u16, rounds: usize, out: *mut f32) {
    // SAFETY: the caller's promises, and the features are enabled here.
    unsafe { ceiling::bf16_dots::<crate::simd::avx512::Avx512<true>>(x, rounds, out) }
}
