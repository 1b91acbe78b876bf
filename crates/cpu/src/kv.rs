//! The paged KV cache, laid out for the attention kernel.
//!
//! Per layer, block and KV head: the keys of each 16 positions as a *tile* `[head_dim][16]`, so that 16 scores are 16 lanes
//! and need no sums across lanes; then the values `[block_size][head_dim padded to 16]`. Both stand together: one head's
//! block is one stretch of memory.
//!
//! In 8 bits a head's block is tiles of 16 positions, each: keys `[head_dim / 4][16][4]`, 128 added; values `[4][head_dim padded
//! to 16][4]`, four positions side by side; 16 scales of keys, 16 of values. So every 64 bytes are one operand of an integer
//! dot, and one head's positions are one stretch of memory.

use crate::{
    memory::Buffer,
    simd::{LANES, Lanes, scalar},
};
use powertrain_model::spec::{DecoderSpec, LayerSpec};

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// Exact.
    F32,
    /// IEEE half: 11 bits of precision, overflows past 65,504.
    F16,
    /// 8 bits of precision, the range of f32.
    Bf16,
    /// 8-bit integers with a scale per head and position: half the bytes of f16, and what attention reads fastest.
    #[default]
    Int8,
}

impl KvDtype {
    const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Int8];

    /// Bytes a position takes over all layers of a model.
    pub fn position_bytes(self, spec: &DecoderSpec) -> u64 {
        let layer = |layer: &LayerSpec| {
            let (kv_heads, head_dim) = (layer.attention.kv_heads, layer.attention.head_dim);
            KvLayout { dtype: self, block_size: LANES, kv_heads, head_dim }.block_bytes() as u64
        };
        spec.layers.iter().map(layer).sum::<u64>().div_ceil(LANES as u64)
    }

    /// The name a flag takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl std::str::FromStr for KvDtype {
    type Err = String;

    /// `auto` is the default.
    fn from_str(name: &str) -> Result<Self, String> {
        if name == "auto" {
            return Ok(Self::default());
        }
        Self::ALL
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| format!("unknown KV cache type {name:?}; there are auto, f32, f16, bf16, int8"))
    }
}

/// An element type as the attention kernel sees it.
pub(crate) trait KvElement {
    /// In memory.
    type Stored: Copy;
    /// # Safety
    /// The level's instructions; sixteen elements at `from`.
    unsafe fn load<S: Lanes>(from: *const Self::Stored) -> S::F;
    fn from_f32(x: f32) -> Self::Stored;
}

/// [`KvDtype::F32`]
pub(crate) struct F32;
/// [`KvDtype::F16`]
pub(crate) struct F16;
/// [`KvDtype::Bf16`]
pub(crate) struct Bf16;

impl KvElement for F32 {
    type Stored = f32;
    #[inline(always)]
    unsafe fn load<S: Lanes>(from: *const f32) -> S::F {
        // SAFETY: the caller's promises.
        unsafe { S::load(from) }
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
}

impl KvElement for F16 {
    type Stored = u16;
    #[inline(always)]
    unsafe fn load<S: Lanes>(from: *const u16) -> S::F {
        // SAFETY: the caller's promises.
        unsafe { S::load_f16(from) }
    }
    #[inline(always)]
    fn from_f32(x: f32) -> u16 {
        scalar::f32_to_f16(x)
    }
}

impl KvElement for Bf16 {
    type Stored = u16;
    #[inline(always)]
    unsafe fn load<S: Lanes>(from: *const u16) -> S::F {
        // SAFETY: the caller's promises.
        unsafe { S::load_bf16(from) }
    }
    #[inline(always)]
    fn from_f32(x: f32) -> u16 {
        scalar::f32_to_bf16(x)
    }
}

/// Where things stand within one layer's part of the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvLayout {
    pub(crate) dtype: KvDtype,
    pub(crate) block_size: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl KvLayout {
    /// Width of a value's row.
    pub(crate) fn value_width(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Bytes of a block in this layer.
    pub(crate) fn block_bytes(&self) -> usize {
        let bytes = match self.dtype {
            KvDtype::Int8 => self.block_size / LANES * self.tile_bytes(),
            KvDtype::F32 => self.head_elements() * 4,
            KvDtype::F16 | KvDtype::Bf16 => self.head_elements() * 2,
        };
        self.kv_heads * bytes
    }

    /// In 8 bits: where in a tile the values begin.
    pub(crate) fn values(&self) -> usize {
        self.head_dim.div_ceil(4) * 4 * LANES
    }

    /// In 8 bits: where in a tile the keys' scales stand.
    pub(crate) fn key_scales(&self) -> usize {
        self.values() + self.value_width() * LANES
    }

    /// In 8 bits: where in a tile the values' scales stand.
    pub(crate) fn value_scales(&self) -> usize {
        self.key_scales() + 4 * LANES
    }

    /// In 8 bits: bytes of 16 positions of one head.
    fn tile_bytes(&self) -> usize {
        self.value_scales() + 4 * LANES
    }

    /// In 8 bits: offset, within the layer, of the tile that holds position `in_block` of a block, for one head.
    pub(crate) fn tile_offset(&self, block: usize, head: usize, in_block: usize) -> usize {
        ((block * self.kv_heads + head) * (self.block_size / LANES) + in_block / LANES) * self.tile_bytes()
    }

    /// In floats: elements of the keys of 16 positions.
    fn key_tile(&self) -> usize {
        self.head_dim * LANES
    }

    /// In floats: elements of one head's block, keys, then values.
    fn head_elements(&self) -> usize {
        self.block_size * (self.head_dim + self.value_width())
    }

    /// In floats: element offset, within the layer, of the key tile that holds position `in_block` of a block, for one head.
    pub(crate) fn key_offset(&self, block: usize, head: usize, in_block: usize) -> usize {
        (block * self.kv_heads + head) * self.head_elements() + in_block / LANES * self.key_tile()
    }

    /// In floats: element offset, within the layer, of the value at position `in_block` of a block, for one head.
    pub(crate) fn value_offset(&self, block: usize, head: usize, in_block: usize) -> usize {
        (block * self.kv_heads + head) * self.head_elements()
            + self.block_size * self.head_dim
            + in_block * self.value_width()
    }
}

/// The cache: every layer's blocks in one allocation.
pub(crate) struct KvCache {
    memory: Buffer<u8>,
    layers: Vec<(KvLayout, usize)>,
}

impl KvCache {
    /// `blocks` blocks for each layer.
    pub(crate) fn new(layouts: impl Iterator<Item = KvLayout>, blocks: usize) -> Self {
        let mut bytes = 0;
        let layers = layouts
            .map(|layout| {
                let start = bytes;
                bytes += blocks * layout.block_bytes();
                (layout, start)
            })
            .collect();
        Self { memory: Buffer::zeroed(bytes), layers }
    }

    /// A layer's layout and memory.
    pub(crate) fn layer(&self, layer: usize) -> (KvLayout, *mut u8) {
        let (layout, start) = self.layers[layer];
        // SAFETY: `start` is inside the allocation.
        (layout, unsafe { self.memory.as_mut_ptr().add(start) })
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}
