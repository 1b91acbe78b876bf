//! [`KvCache`]: keys and values of all layers, in f32, in blocks of positions.

use crate::spec::DecoderSpec;
use powertrain_step::BlockId;

/// Keys and values by layer, block and position.
#[derive(Debug)]
pub(super) struct KvCache {
    block_size: usize,
    layers: Vec<LayerCache>,
}

#[derive(Debug)]
struct LayerCache {
    /// `kv_heads * head_dim`: elements of one position in each of the two.
    width: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    pub(super) fn new(spec: &DecoderSpec, blocks: usize, block_size: usize) -> Self {
        let layers = spec.layers.iter().map(|layer| {
            let width = layer.attention.kv_heads * layer.attention.head_dim;
            let len = blocks * block_size * width;
            LayerCache { width, keys: vec![0.0; len], values: vec![0.0; len] }
        });
        Self { block_size, layers: layers.collect() }
    }

    /// Bytes of one position over all layers.
    pub(super) fn bytes_per_token(&self) -> u64 {
        self.layers.iter().map(|layer| 2 * 4 * layer.width as u64).sum()
    }

    /// Stores the key and value of one position of the sequence whose blocks are `table`.
    pub(super) fn write(&mut self, layer: usize, table: &[BlockId], position: usize, key: &[f32], value: &[f32]) {
        let at = self.place(layer, table, position);
        let layer = &mut self.layers[layer];
        layer.keys[at..at + layer.width].copy_from_slice(key);
        layer.values[at..at + layer.width].copy_from_slice(value);
    }

    /// Key and value of all KV heads at one position.
    pub(super) fn read(&self, layer: usize, table: &[BlockId], position: usize) -> (&[f32], &[f32]) {
        let at = self.place(layer, table, position);
        let layer = &self.layers[layer];
        (&layer.keys[at..at + layer.width], &layer.values[at..at + layer.width])
    }

    fn place(&self, layer: usize, table: &[BlockId], position: usize) -> usize {
        let block = table[position / self.block_size].0 as usize;
        (block * self.block_size + position % self.block_size) * self.layers[layer].width
    }
}
