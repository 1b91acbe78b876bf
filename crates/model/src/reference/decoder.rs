//! [`Decoder`]: the arithmetic of a [`DecoderSpec`], one position at a time, as plain as it can be written.
//!
//! Activations are f32; sums are kept in f64, so that what a backend differs by is the backend's own rounding.

use super::cache::KvCache;
use crate::format::dequantize;
use crate::model::Model;
use crate::spec::*;
use crate::weights::{LayerSlot, Slot};
use powertrain_step::{BlockId, TokenId};
use std::collections::HashMap;

/// A model with its weights in f32.
#[derive(Debug)]
pub(super) struct Decoder {
    spec: DecoderSpec,
    weights: HashMap<Slot, Matrix>,
}

/// `[rows, columns]`, rows contiguous; a vector is one row.
#[derive(Debug)]
struct Matrix {
    columns: usize,
    elements: Vec<f32>,
}

impl Decoder {
    /// Unpacks every tensor.
    pub(super) fn new(model: &Model) -> Self {
        let spec = model.spec();
        let load = |slot: Slot| {
            let view = model.tensor(slot).expect("every slot was checked when the model was opened");
            assert_eq!((view.rows, view.columns), spec.shape(slot), "shape of {slot:?}");
            let mut elements = vec![0.0; view.rows * view.columns];
            dequantize(view.format, view.data, &mut elements);
            (slot, Matrix { columns: view.columns, elements })
        };
        Self { spec: spec.clone(), weights: spec.slots().map(load).collect() }
    }

    pub(super) fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    pub(super) fn weights_bytes(&self) -> u64 {
        self.weights.values().map(|matrix| 4 * matrix.elements.len() as u64).sum()
    }

    /// Computes one position of the sequence whose blocks are `table`, given that all before it are in the cache: leaves its
    /// keys and values there and returns its state after the final norm, `[hidden_size]`.
    pub(super) fn position(&self, cache: &mut KvCache, table: &[BlockId], token: TokenId, position: usize) -> Vec<f32> {
        let mut x = self.weight(Slot::Embedding).row(token as usize).to_vec();
        x.iter_mut().for_each(|x| *x *= self.spec.embedding_scale);
        for (index, layer) in self.spec.layers.iter().enumerate() {
            let slot = |slot| Slot::Layer(index, slot);
            let normed = self.norm(&x, slot(LayerSlot::AttentionNorm), layer.attention_norm);
            let mut y = self.attention(cache, table, index, &normed, position);
            if let Some(norm) = layer.post_attention_norm {
                y = self.norm(&y, slot(LayerSlot::PostAttentionNorm), norm);
            }
            add(&mut x, &y);
            let normed = self.norm(&x, slot(LayerSlot::FeedForwardNorm), layer.feed_forward_norm);
            let mut y = self.feed_forward(index, &normed);
            if let Some(norm) = layer.post_feed_forward_norm {
                y = self.norm(&y, slot(LayerSlot::PostFeedForwardNorm), norm);
            }
            add(&mut x, &y);
        }
        self.norm(&x, Slot::FinalNorm, self.spec.final_norm)
    }

    /// The logits of a state that [`position`](Self::position) returned, `[vocab_size]`.
    pub(super) fn logits(&self, state: &[f32]) -> Vec<f32> {
        let head = if self.spec.tied_head { Slot::Embedding } else { Slot::Head };
        let mut logits = self.weight(head).times(state);
        if let Some(cap) = self.spec.logit_softcap {
            logits.iter_mut().for_each(|logit| *logit = softcap(*logit, cap));
        }
        logits
    }

    fn attention(&self, cache: &mut KvCache, table: &[BlockId], index: usize, x: &[f32], position: usize) -> Vec<f32> {
        let attention = &self.spec.layers[index].attention;
        let slot = |slot| Slot::Layer(index, slot);
        let mut query = self.linear(x, slot(LayerSlot::Query), slot(LayerSlot::QueryBias));
        let mut key = self.linear(x, slot(LayerSlot::Key), slot(LayerSlot::KeyBias));
        let value = self.linear(x, slot(LayerSlot::Value), slot(LayerSlot::ValueBias));
        for head in query.chunks_exact_mut(attention.head_dim) {
            self.norm_and_rotate(head, slot(LayerSlot::QueryNorm), attention, position);
        }
        for head in key.chunks_exact_mut(attention.head_dim) {
            self.norm_and_rotate(head, slot(LayerSlot::KeyNorm), attention, position);
        }
        cache.write(index, table, position, &key, &value);

        let first = attention.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let heads_per_kv_head = attention.heads / attention.kv_heads;
        let mut output = Vec::with_capacity(query.len());
        for (head, query) in query.chunks_exact(attention.head_dim).enumerate() {
            let kv_start = head / heads_per_kv_head * attention.head_dim;
            let kv_head = kv_start..kv_start + attention.head_dim;
            let score = |seen: usize| {
                let (key, _) = cache.read(index, table, seen);
                let score = dot(query, &key[kv_head.clone()]) * attention.scale;
                attention.softcap.map_or(score, |cap| softcap(score, cap))
            };
            let weights = softmax((first..=position).map(score).collect());
            let mut sum = vec![0.0f64; attention.head_dim];
            for (seen, weight) in (first..=position).zip(weights) {
                let (_, value) = cache.read(index, table, seen);
                for (sum, value) in sum.iter_mut().zip(&value[kv_head.clone()]) {
                    *sum += weight * f64::from(*value);
                }
            }
            output.extend(sum.iter().map(|sum| *sum as f32));
        }
        self.linear(&output, slot(LayerSlot::Output), slot(LayerSlot::OutputBias))
    }

    fn feed_forward(&self, index: usize, x: &[f32]) -> Vec<f32> {
        let activation = self.spec.layers[index].feed_forward.activation;
        let weight = |slot| self.weight(Slot::Layer(index, slot));
        let gate = weight(LayerSlot::Gate).times(x);
        let up = weight(LayerSlot::Up).times(x);
        let gated: Vec<f32> = gate.iter().zip(&up).map(|(gate, up)| activate(*gate, activation) * up).collect();
        weight(LayerSlot::Down).times(&gated)
    }

    /// One head of Q or K, from projection to score.
    fn norm_and_rotate(&self, head: &mut [f32], norm_slot: Slot, attention: &AttentionSpec, position: usize) {
        if let Some(norm) = attention.qk_norm {
            let normed = self.norm(head, norm_slot, norm);
            head.copy_from_slice(&normed);
        }
        rotate(head, &attention.rope, position);
    }

    /// `W x`, plus the bias where the spec has one.
    fn linear(&self, x: &[f32], weight: Slot, bias: Slot) -> Vec<f32> {
        let mut y = self.weight(weight).times(x);
        if let Some(bias) = self.weights.get(&bias) {
            add(&mut y, &bias.elements);
        }
        y
    }

    fn norm(&self, x: &[f32], weight: Slot, norm: NormSpec) -> Vec<f32> {
        let NormKind::Rms = norm.kind;
        let squares: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let inverse_root = (squares / x.len() as f64 + f64::from(norm.epsilon)).sqrt().recip();
        let weights = &self.weight(weight).elements;
        let scaled = |(x, w): (&f32, &f32)| (f64::from(*x) * inverse_root) as f32 * (w + norm.weight_offset);
        x.iter().zip(weights).map(scaled).collect()
    }

    fn weight(&self, slot: Slot) -> &Matrix {
        &self.weights[&slot]
    }
}

impl Matrix {
    fn row(&self, row: usize) -> &[f32] {
        &self.elements[row * self.columns..][..self.columns]
    }

    fn times(&self, x: &[f32]) -> Vec<f32> {
        assert_eq!(x.len(), self.columns, "a matrix of {} columns times a vector", self.columns);
        self.elements.chunks_exact(self.columns).map(|row| dot(row, x)).collect()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn softcap(x: f32, cap: f32) -> f32 {
    cap * (x / cap).tanh()
}

fn softmax(scores: Vec<f32>) -> Vec<f64> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = scores.into_iter().map(|score| f64::from(score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// Rotates a head's pairs by `position` times their frequencies. The angle is rounded to f32, as transformers does.
fn rotate(head: &mut [f32], rope: &RopeSpec, position: usize) {
    let pairs = rope.inverse_frequencies.len();
    for (pair, frequency) in rope.inverse_frequencies.iter().enumerate() {
        let (a, b) = match rope.pairing {
            RopePairing::Halves => (pair, pair + pairs),
            RopePairing::Adjacent => (2 * pair, 2 * pair + 1),
        };
        let (sin, cos) = (position as f32 * frequency).sin_cos();
        let (sin, cos) = (sin * rope.magnitude, cos * rope.magnitude);
        (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
    }
}

fn activate(x: f32, activation: Activation) -> f32 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            const ROOT_2_OVER_PI: f32 = 0.797_884_6;
            0.5 * x * (1.0 + (ROOT_2_OVER_PI * (x + 0.044715 * x * x * x)).tanh())
        }
    }
}
