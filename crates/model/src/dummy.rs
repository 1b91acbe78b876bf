//! [`DummyWeights`]: random weights of the right shape, for capacity and speed work without a checkpoint.

use crate::spec::DecoderSpec;
use crate::weights::{LayerSlot, Slot, TensorView, WeightFormat};
use std::collections::HashMap;
use std::sync::OnceLock;

/// Weights made from a spec alone: bf16, the same in every run. A tensor is made when it is first asked for and kept, so an
/// executor that fills its own memory (see [`Model::is_dummy`](crate::Model::is_dummy)) costs none here.
///
/// Matrices are uniform with variance 1 / columns, which keeps the scale of what passes through; norms multiply by 1;
/// biases are 0. So activations stay finite through any number of layers.
#[derive(Debug)]
pub struct DummyWeights {
    tensors: HashMap<Slot, DummyTensor>,
}

#[derive(Debug)]
struct DummyTensor {
    rows: usize,
    columns: usize,
    fill: Fill,
    data: OnceLock<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
enum Fill {
    Constant(f32),
    /// Uniform from -limit to limit.
    Random {
        seed: u64,
        limit: f32,
    },
}

impl DummyWeights {
    /// The encoding of every tensor.
    pub const FORMAT: WeightFormat = WeightFormat::BF16;

    /// Weights for every slot of the spec; none is made yet.
    pub fn new(spec: &DecoderSpec) -> Self {
        let tensor = |(index, slot): (usize, Slot)| {
            let (rows, columns) = spec.shape(slot);
            let fill = match constant(spec, slot) {
                Some(value) => Fill::Constant(value),
                None => Fill::Random { seed: index as u64, limit: (3.0 / columns as f32).sqrt() },
            };
            (slot, DummyTensor { rows, columns, fill, data: OnceLock::new() })
        };
        Self { tensors: spec.slots().enumerate().map(tensor).collect() }
    }

    /// The tensor of a slot, made now if it was not before; `None` for a slot the spec does not have.
    pub fn tensor(&self, slot: Slot) -> Option<TensorView<'_>> {
        let tensor = self.tensors.get(&slot)?;
        let data = tensor.data.get_or_init(|| tensor.fill.bf16(tensor.rows * tensor.columns));
        Some(TensorView { format: Self::FORMAT, rows: tensor.rows, columns: tensor.columns, data })
    }
}

/// The value of all elements of a norm or bias; `None` for a matrix.
fn constant(spec: &DecoderSpec, slot: Slot) -> Option<f32> {
    let Slot::Layer(index, layer_slot) = slot else {
        return (slot == Slot::FinalNorm).then_some(1.0 - spec.final_norm.weight_offset);
    };
    let layer = &spec.layers[index];
    let norm = match layer_slot {
        LayerSlot::AttentionNorm => Some(layer.attention_norm),
        LayerSlot::PostAttentionNorm => layer.post_attention_norm,
        LayerSlot::FeedForwardNorm => Some(layer.feed_forward_norm),
        LayerSlot::PostFeedForwardNorm => layer.post_feed_forward_norm,
        LayerSlot::QueryNorm | LayerSlot::KeyNorm => layer.attention.qk_norm,
        LayerSlot::QueryBias | LayerSlot::KeyBias | LayerSlot::ValueBias | LayerSlot::OutputBias => return Some(0.0),
        LayerSlot::Query | LayerSlot::Key | LayerSlot::Value | LayerSlot::Output => None,
        LayerSlot::Gate | LayerSlot::Up | LayerSlot::Down => None,
    };
    norm.map(|norm| 1.0 - norm.weight_offset)
}

impl Fill {
    fn bf16(self, elements: usize) -> Vec<u8> {
        match self {
            Self::Constant(value) => bf16(value).repeat(elements),
            Self::Random { seed, limit } => {
                let mut data = vec![0; 2 * elements];
                for (index, four) in data.chunks_mut(8).enumerate() {
                    // Four elements from the 64 bits of one number.
                    let random = splitmix(seed, index as u64).to_le_bytes();
                    for (element, bits) in four.as_chunks_mut().0.iter_mut().zip(random.as_chunks().0) {
                        let unit = (f32::from(i16::from_le_bytes(*bits)) + 0.5) / 32768.0;
                        *element = bf16(unit * limit);
                    }
                }
                data
            }
        }
    }
}

/// The upper half of an f32: rounded towards zero.
fn bf16(value: f32) -> [u8; 2] {
    let [_, _, low, high] = value.to_le_bytes();
    [low, high]
}

/// SplitMix64 (Steele, Lea, Flood 2014), the number at `index` of the stream of `seed`.
fn splitmix(seed: u64, index: u64) -> u64 {
    let mut x = (seed << 48).wrapping_add(index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
