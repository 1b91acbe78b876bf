//! A small model with random weights in any stored format.

use super::Random;
use powertrain_cpu::{CpuConfig, CpuError, CpuExecutor};
use powertrain_model::{
    format::dequantize,
    spec::*,
    weights::{LayerSlot, Slot, TensorView, WeightFormat},
};
use powertrain_step::StepLimits;
use std::collections::HashMap;

/// One model; matrices are in `format`, vectors in f32.
pub struct Synthetic {
    pub format: WeightFormat,
    spec: DecoderSpec,
    tensors: HashMap<Slot, (WeightFormat, Vec<u8>)>,
}

impl Synthetic {
    /// One for each format. Widths that are no multiple of a tile: 3 query heads, 40 or 256 wide heads' sums, 70 rows of vocabulary.
    pub fn all_formats(seed: u64) -> Vec<Self> {
        WeightFormat::ALL.into_iter().map(|format| Self::new(format, seed)).collect()
    }

    pub fn vocab_size(&self) -> usize {
        self.spec.vocab_size
    }

    pub fn is_bf16(&self) -> bool {
        self.format == WeightFormat::BF16
    }

    fn new(format: WeightFormat, seed: u64) -> Self {
        // A row is a whole number of blocks.
        let unit = format.block_elements().max(8);
        let (hidden, wide) = if unit == 256 { (256, 512) } else { (unit.max(32) * 3, unit * 5) };
        let (heads, kv_heads, head_dim) = if unit == 256 { (4, 2, 64) } else { (6, 2, hidden / 6) };
        let norm = NormSpec { kind: NormKind::Rms, epsilon: 1e-5, weight_offset: 0.0 };
        let rotary = head_dim / 2;
        let layer = |window| LayerSpec {
            attention_norm: norm,
            attention: AttentionSpec {
                heads,
                kv_heads,
                head_dim,
                qkv_bias: true,
                output_bias: false,
                qk_norm: None,
                rope: RopeSpec {
                    pairing: RopePairing::Adjacent,
                    inverse_frequencies: (0..rotary / 2).map(|i| 1.0 / (i as f32 + 1.0)).collect(),
                    magnitude: 1.0,
                },
                window,
                softcap: Some(20.0),
                scale: (head_dim as f32).powf(-0.5),
            },
            post_attention_norm: None,
            feed_forward_norm: norm,
            feed_forward: FeedForwardSpec { hidden_size: wide, activation: Activation::Silu },
            post_feed_forward_norm: Some(norm),
        };
        let spec = DecoderSpec {
            architecture: "synthetic".to_owned(),
            vocab_size: 70,
            hidden_size: hidden,
            context_len: 1024,
            embedding_scale: 1.5,
            layers: vec![layer(None), layer(Some(50))],
            final_norm: norm,
            tied_head: false,
            logit_softcap: Some(30.0),
        };
        let mut random = Random(seed ^ format as u64);
        let tensors = spec
            .slots()
            .map(|slot| {
                let (rows, columns) = spec.shape(slot);
                let matrix = rows > 1;
                let bytes = match (matrix, slot) {
                    (true, _) => random_matrix(&mut random, format, rows, columns),
                    (_, Slot::Layer(_, LayerSlot::QueryBias | LayerSlot::KeyBias | LayerSlot::ValueBias)) => {
                        (0..columns).flat_map(|_| (random.float() * 0.1).to_le_bytes()).collect()
                    }
                    _ => (0..columns).flat_map(|_| (1.0 + random.float() * 0.3).to_le_bytes()).collect(),
                };
                (slot, (if matrix { format } else { WeightFormat::F32 }, bytes))
            })
            .collect();
        Self { format, spec, tensors }
    }

    /// The same weights as f32.
    pub fn dequantized(&self) -> Self {
        let tensors = self
            .tensors
            .iter()
            .map(|(&slot, (format, bytes))| {
                let (rows, columns) = self.spec.shape(slot);
                let mut values = vec![0.0; rows * columns];
                for (row, out) in bytes.chunks_exact(bytes.len() / rows).zip(values.chunks_exact_mut(columns)) {
                    dequantize(*format, row, out);
                }
                (slot, (WeightFormat::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect()))
            })
            .collect();
        Self { format: WeightFormat::F32, spec: self.spec.clone(), tensors }
    }

    /// The same model with NaN in the embedding of `token`; f32 alone.
    pub fn damaged(mut self, token: usize) -> Self {
        assert_eq!(self.format, WeightFormat::F32);
        let hidden_size = self.spec.hidden_size;
        let (_, bytes) = self.tensors.get_mut(&Slot::Embedding).unwrap();
        bytes[token * hidden_size * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        self
    }

    pub fn open(&self, limits: StepLimits, config: CpuConfig) -> Result<CpuExecutor, CpuError> {
        let tensor = |slot: Slot| {
            let (format, data) = self.tensors.get(&slot)?;
            let (rows, columns) = self.spec.shape(slot);
            Some(TensorView { format: *format, rows, columns, data })
        };
        CpuExecutor::from_tensors(&self.spec, &tensor, limits, config)
    }
}

/// Random bits, but with scales that keep values near 1 / sqrt(columns).
fn random_matrix(random: &mut Random, format: WeightFormat, rows: usize, columns: usize) -> Vec<u8> {
    let size = 1.0 / (columns as f32).sqrt();
    let count = rows * columns / format.block_elements();
    let mut bytes = Vec::new();
    for _ in 0..count {
        let mut block: Vec<u8> = (0..format.block_bytes()).map(|_| random.next() as u8).collect();
        // Positions of f16 scales in the block, and how much smaller than the values they are.
        let (halves, divisor): (&[usize], f32) = match format {
            WeightFormat::F32 => {
                block = (random.float() * size).to_le_bytes().to_vec();
                (&[], 1.0)
            }
            WeightFormat::F16 => (&[0], 1.0),
            WeightFormat::BF16 => {
                block = ((random.float() * size).to_bits() >> 16).to_le_bytes()[..2].to_vec();
                (&[], 1.0)
            }
            WeightFormat::Q4_0 => (&[0], 8.0),
            WeightFormat::Q4_1 => (&[0, 2], 8.0),
            WeightFormat::Q5_0 => (&[0], 16.0),
            WeightFormat::Q5_1 => (&[0, 2], 16.0),
            WeightFormat::Q8_0 => (&[0], 128.0),
            WeightFormat::Q2K => (&[80, 82], 30.0),
            WeightFormat::Q3K => (&[108], 100.0),
            WeightFormat::Q4K => (&[0, 2], 500.0),
            WeightFormat::Q5K => (&[0, 2], 1000.0),
            WeightFormat::Q6K => (&[208], 2000.0),
        };
        for &at in halves {
            block[at..at + 2].copy_from_slice(&half_bits(random.float() * size / divisor).to_le_bytes());
        }
        bytes.extend(block);
    }
    bytes
}

/// An IEEE half near `x`, rounded towards zero; zero below the normal range.
fn half_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let exponent = (bits >> 23 & 255) as i32 - 127 + 15;
    if exponent <= 0 { 0 } else { (bits >> 16 & 0x8000) as u16 | (exponent as u16) << 10 | (bits >> 13 & 0x3ff) as u16 }
}
