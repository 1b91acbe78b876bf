//! Causal attention of a few queries over the pages of one KV head, in the manner of FlashAttention (arXiv:2205.14135) and
//! Flash-Decoding: softmax on the fly, long contexts in independent spans that are merged afterwards.
//!
//! **Batch independence:** a query meets the keys in spans of [`SPAN`] positions, aligned to absolute positions. A span it does not
//! see changes its state by not one bit (`e^0 = 1`, `e^-inf = 0`). So it does not matter which queries share a call, nor
//! whether spans run here one after the other or on several threads.
//!
//! `float.rs` and `integer.rs` are the two ways through a span; how spans are merged is here.

mod float;
mod integer;

use super::exponential::exp_below_zero;
use crate::{
    kv::{Bf16, F16, F32, KvDtype, KvLayout},
    simd::{LANES, Lanes},
};
use std::ops::Range;

/// Positions summed before they are merged into the rest: what one thread takes of a long context.
pub(crate) const SPAN: usize = 256;
/// Query vectors in registers together.
pub(crate) const QUERIES: usize = 6;
/// Below every score; finite, so that differences of it are.
const NOTHING: f32 = -1.0e30;

/// Some positions' queries for one KV head.
pub(crate) struct AttentionWork {
    /// From [`load_queries`].
    pub(crate) queries: *const f32,
    /// Query heads that share the KV head.
    pub(crate) group: usize,
    /// Positions; query vector v is head `v % group` of position `v / group`.
    pub(crate) tokens: usize,
    /// Position of the first.
    pub(crate) first_position: usize,
    /// Positions each sees, itself included; `usize::MAX` for all.
    pub(crate) window: usize,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    pub(crate) kv: KvLayout,
    /// This layer's part of the cache.
    pub(crate) layer: *const u8,
    pub(crate) kv_head: usize,
    /// The sequence's block table.
    pub(crate) blocks: *const u32,
    /// What this thread attends after this call, in the same layer: its first span is asked for meanwhile, because blocks stand
    /// anywhere in memory, where the machine does not guess.
    pub(crate) next: Option<NextWork>,
}

/// One KV head's positions of a sequence.
#[derive(Clone)]
pub(crate) struct NextWork {
    pub(crate) blocks: *const u32,
    pub(crate) kv_head: usize,
    pub(crate) positions: Range<usize>,
}

impl AttentionWork {
    /// Query vectors.
    pub(crate) fn vectors(&self) -> usize {
        self.tokens * self.group
    }

    /// The spans any of its queries sees.
    pub(crate) fn spans(&self) -> Range<usize> {
        let oldest = (self.first_position + 1).saturating_sub(self.window);
        oldest / SPAN..(self.first_position + self.tokens).div_ceil(SPAN)
    }

    /// The positions of one span, cut off where the queries end.
    pub(crate) fn span(&self, span: usize) -> Range<usize> {
        span * SPAN..((span + 1) * SPAN).min(self.first_position + self.tokens)
    }

    fn position(&self, vector: usize) -> usize {
        self.first_position + vector / self.group
    }

    /// The first position a vector sees.
    fn oldest(&self, vector: usize) -> usize {
        (self.position(vector) + 1).saturating_sub(self.window)
    }
}

/// The state of an unfinished softmax, per query vector.
#[derive(Clone, Copy)]
pub(crate) struct Partial {
    /// The highest score.
    pub(crate) max: *mut f32,
    /// Sum of `e^(score - max)`.
    pub(crate) sum: *mut f32,
    /// The values weighted so, rows of [`KvLayout::value_width`].
    pub(crate) output: *mut f32,
}

impl Partial {
    /// Elements a partial of `vectors` takes.
    pub(crate) fn elements(vectors: usize, value_width: usize) -> usize {
        (vectors * (value_width + 2)).next_multiple_of(LANES)
    }

    /// Lays a partial out in memory of that many elements.
    ///
    /// # Safety
    /// `at` has room for them.
    pub(crate) unsafe fn at(at: *mut f32, vectors: usize, value_width: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { output: at, max: at.add(vectors * value_width), sum: at.add(vectors * (value_width + 1)) } }
    }

    /// Nothing seen yet.
    ///
    /// # Safety
    /// It has room for `vectors`.
    pub(crate) unsafe fn clear(self, vectors: usize, value_width: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            for v in 0..vectors {
                *self.max.add(v) = NOTHING;
                *self.sum.add(v) = 0.0;
            }
            self.output.write_bytes(0, vectors * value_width);
        }
    }
}

/// Queries as the projection left them: rows `stride` apart, the group's heads side by side in each.
#[derive(Clone, Copy)]
pub(crate) struct QueryRows {
    pub(crate) from: *const f32,
    pub(crate) stride: usize,
    pub(crate) tokens: usize,
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
}

impl QueryRows {
    fn vectors(&self) -> usize {
        self.tokens * self.group
    }

    /// # Safety
    /// The rows have that vector.
    unsafe fn vector(&self, v: usize) -> *const f32 {
        // SAFETY: the caller's promise.
        unsafe { self.from.add(v / self.group * self.stride + v % self.group * self.head_dim) }
    }
}

/// f32 elements of memory [`load_queries`] needs for so many vectors, whatever the cache holds.
pub(crate) fn query_elements(vectors: usize, head_dim: usize) -> usize {
    vectors.div_ceil(QUERIES) * (QUERIES * head_dim).max(integer::group_bytes(head_dim) / 4)
}

/// Prepares queries for [`attend`] over a cache of `dtype`: for floats they are interleaved, `[head_dim][6]` per six vectors.
///
/// # Safety
/// The level's instructions; the rows are there; `to` has room for [`query_elements`], all of them numbers already.
#[inline(always)]
pub(crate) unsafe fn load_queries<S: Lanes>(rows: QueryRows, dtype: KvDtype, to: *mut f32) {
    if dtype == KvDtype::Int8 {
        // SAFETY: the caller's promises.
        return unsafe { integer::load_queries::<S>(rows, to.cast()) };
    }
    for v in 0..rows.vectors() {
        // SAFETY: the caller's promises.
        unsafe {
            let (from, to) = (rows.vector(v), to.add(v / QUERIES * QUERIES * rows.head_dim + v % QUERIES));
            for d in 0..rows.head_dim {
                *to.add(d * QUERIES) = *from.add(d);
            }
        }
    }
}

/// One position's key and value of one head, and where they go.
#[derive(Clone, Copy)]
pub(crate) struct NewKeyValue {
    pub(crate) block: usize,
    pub(crate) in_block: usize,
    pub(crate) head: usize,
    pub(crate) key: *const f32,
    pub(crate) value: *const f32,
}

/// Stores a key and a value in the cache.
///
/// # Safety
/// The level's instructions; `layer` is the layer's part of the cache and has the block; key and value hold `head_dim`
/// elements; no other thread touches the position.
#[inline(always)]
pub(crate) unsafe fn store<S: Lanes>(kv: &KvLayout, layer: *mut u8, new: NewKeyValue) {
    // SAFETY: the caller's promises.
    unsafe {
        match kv.dtype {
            KvDtype::F32 => float::store::<F32>(kv, layer, new),
            KvDtype::F16 => float::store::<F16>(kv, layer, new),
            KvDtype::Bf16 => float::store::<Bf16>(kv, layer, new),
            KvDtype::Int8 => {
                let tile = layer.add(kv.tile_offset(new.block, new.head, new.in_block));
                integer::store::<S>(kv, tile, new.in_block % LANES, new.key, new.value);
            }
        }
    }
}

/// Attention over the positions `span` alone, into `out`.
///
/// # Safety
/// The level's instructions; `work`'s pointers are valid, all its positions up to `span.end` stand in the cache; `span` is one of
/// [`AttentionWork::span`]; `out` has room for the vectors.
#[inline(always)]
pub(crate) unsafe fn attend<S: Lanes>(work: &AttentionWork, span: Range<usize>, out: Partial) {
    // SAFETY: the caller's promises.
    unsafe {
        match work.kv.dtype {
            KvDtype::F32 => float::attend::<S, F32>(work, span, out),
            KvDtype::F16 => float::attend::<S, F16>(work, span, out),
            KvDtype::Bf16 => float::attend::<S, Bf16>(work, span, out),
            KvDtype::Int8 => integer::attend::<S>(work, span, out),
        }
    }
}

/// # Safety
/// The level's instructions.
#[inline(always)]
unsafe fn exp_one<S: Lanes>(x: f32) -> f32 {
    // SAFETY: the level's instructions; all lanes are equal, so their maximum is each.
    unsafe { S::reduce_max(exp_below_zero::<S>(S::splat(x))) }
}

/// Merges a later span's partial into `into`.
///
/// # Safety
/// The level's instructions; both have the work's vectors.
#[inline(always)]
pub(crate) unsafe fn merge<S: Lanes>(work: &AttentionWork, into: Partial, from: Partial) {
    let width = work.kv.value_width();
    for v in 0..work.vectors() {
        // SAFETY: the caller's promises.
        unsafe {
            let (old, new) = (*into.max.add(v), *from.max.add(v));
            let max = if new > old { new } else { old };
            let (keep, add) = (exp_one::<S>(old - max), exp_one::<S>(new - max));
            *into.max.add(v) = max;
            *into.sum.add(v) = *into.sum.add(v) * keep + *from.sum.add(v) * add;
            for d in (0..width).step_by(LANES) {
                let (at, added) = (into.output.add(v * width + d), S::load(from.output.add(v * width + d)));
                S::store(at, S::fma(S::load(at), S::splat(keep), S::mul(added, S::splat(add))));
            }
        }
    }
}

/// Divides by the sums and writes rows `stride` apart, the group's heads side by side in each.
///
/// # Safety
/// The level's instructions; `total` has the work's vectors; `out` has room.
#[inline(always)]
pub(crate) unsafe fn finish<S: Lanes>(work: &AttentionWork, total: Partial, out: *mut f32, stride: usize) {
    let (head_dim, width) = (work.kv.head_dim, work.kv.value_width());
    for v in 0..work.vectors() {
        // SAFETY: the caller's promises; only whole 16s are stored as such.
        unsafe {
            let to = out.add(v / work.group * stride + v % work.group * head_dim);
            let from = total.output.add(v * width);
            let inverse = 1.0 / *total.sum.add(v);
            let whole = head_dim / LANES * LANES;
            for d in (0..whole).step_by(LANES) {
                S::store(to.add(d), S::mul(S::load(from.add(d)), S::splat(inverse)));
            }
            for d in whole..head_dim {
                *to.add(d) = *from.add(d) * inverse;
            }
        }
    }
}
