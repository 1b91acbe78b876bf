//! The paged KV cache, laid out for the attention kernel.
//!
//! Per layer, block and KV head: the keys of each 16 positions as a *tile* `[head_dim][16]`, so that 16 scores are 16 lanes
//! and need no sums across lanes; then the values `[block_size][head_dim padded to 16]`. Both stand together: one head's
//! block is one stretch of memory.

use crate::{
    memory::Buffer,
    simd::{LANES, Lanes, scalar},
};

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// Exact.
    F32,
    /// IEEE half: 11 bits of precision, overflows past 65,504.
    #[default]
    F16,
    /// 8 bits of precision, the range of f32.
    Bf16,
}

impl KvDtype {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name a flag takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

impl std::str::FromStr for KvDtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::F32, Self::F16, Self::Bf16]
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| format!("unknown KV cache type {name:?}; there are f32, f16, bf16"))
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

    /// Elements of the keys of 16 positions.
    pub(crate) fn key_tile(&self) -> usize {
        self.head_dim * LANES
    }

    /// Elements of one head's block: keys, then values.
    pub(crate) fn head_elements(&self) -> usize {
        self.block_size * (self.head_dim + self.value_width())
    }

    /// Bytes of a block in this layer.
    pub(crate) fn block_bytes(&self) -> usize {
        self.kv_heads * self.head_elements() * self.dtype.bytes()
    }

    /// Element offset, within the layer, of the key tile that holds position `in_block` of a block, for one head.
    pub(crate) fn key_offset(&self, block: usize, head: usize, in_block: usize) -> usize {
        (block * self.kv_heads + head) * self.head_elements() + in_block / LANES * self.key_tile()
    }

    /// Element offset, within the layer, of the value at position `in_block` of a block, for one head.
    pub(crate) fn value_offset(&self, block: usize, head: usize, in_block: usize) -> usize {
        (block * self.kv_heads + head) * self.head_elements()
            + self.block_size * self.head_dim
            + in_block * self.value_width()
    }

    /// Stores one position's key and value of one head.
    ///
    /// # Safety
    /// `layer` is this layer's part of the cache and has `block`; `key` and `value` hold `head_dim` elements; no other thread
    /// touches the position.
    pub(crate) unsafe fn store(
        &self,
        layer: *mut u8,
        block: usize,
        head: usize,
        in_block: usize,
        key: *const f32,
        value: *const f32,
    ) {
        // SAFETY: the caller's promises.
        unsafe {
            match self.dtype {
                KvDtype::F32 => self.store_as::<F32>(layer, block, head, in_block, key, value),
                KvDtype::F16 => self.store_as::<F16>(layer, block, head, in_block, key, value),
                KvDtype::Bf16 => self.store_as::<Bf16>(layer, block, head, in_block, key, value),
            }
        }
    }

    /// # Safety
    /// As [`store`](Self::store).
    unsafe fn store_as<E: KvElement>(
        &self,
        layer: *mut u8,
        block: usize,
        head: usize,
        in_block: usize,
        key: *const f32,
        value: *const f32,
    ) {
        // SAFETY: the caller's promises; offsets stay inside the block.
        unsafe {
            let layer = layer.cast::<E::Stored>();
            let keys = layer.add(self.key_offset(block, head, in_block) + in_block % LANES);
            let values = layer.add(self.value_offset(block, head, in_block));
            for d in 0..self.head_dim {
                *keys.add(d * LANES) = E::from_f32(*key.add(d));
                *values.add(d) = E::from_f32(*value.add(d));
            }
        }
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
