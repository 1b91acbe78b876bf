//! All memory a step writes, sized once for the largest step.

use crate::{
    activations::{ActivationBuffers, Encodings},
    forward::FEW_TOKENS,
    kernel::attention::{Partial, SPAN, query_elements},
    memory::Buffer,
    simd::LANES,
    weights::Weights,
};
use powertrain_model::spec::{DecoderSpec, RopeSpec};
use powertrain_step::StepLimits;

/// Query vectors in one call of the attention kernel, unless a group alone is larger.
const TILE_VECTORS: usize = 48;
/// Positions in one call of the attention kernel.
const TILE_TOKENS: usize = 16;
/// Logits held at once.
const LOGIT_ROWS: usize = 32;
/// Rows whose gates and ups are made before their activation: 16 KiB, half of an L1 cache.
pub(crate) const GATE_ROWS: usize = 64;

/// Memory of one step.
pub(crate) struct Workspace {
    /// `[tokens][hidden_stride]`
    pub(crate) residual: Buffer<f32>,
    pub(crate) hidden_stride: usize,
    /// A branch's output before its norm; empty where no layer norms it.
    pub(crate) branch: Buffer<f32>,
    /// What matrices read: a normed residual, or the attention's output.
    pub(crate) input: ActivationBuffers,
    /// What the down projections read.
    pub(crate) hidden: ActivationBuffers,
    /// `[tokens][query_stride]`
    pub(crate) query: Buffer<f32>,
    pub(crate) query_stride: usize,
    /// `[tokens][kv_stride]`
    pub(crate) key: Buffer<f32>,
    /// `[tokens][kv_stride]`
    pub(crate) value: Buffer<f32>,
    pub(crate) kv_stride: usize,
    /// Attention's output, `[tokens][query_stride]`
    pub(crate) attended: Buffer<f32>,
    pub(crate) ropes: RopeTables,
    /// Which of the tables a layer uses.
    pub(crate) rope_of_layer: Vec<usize>,
    /// Partials of sequences whose spans are shared out.
    pub(crate) split: Buffer<f32>,
    /// How many (sequence, KV head) pairs `split` has room for.
    pub(crate) split_items: usize,
    /// `[logit_rows][logits_stride]`
    pub(crate) logits: Buffer<f32>,
    pub(crate) logits_stride: usize,
    /// Logits held at once.
    pub(crate) logit_rows: usize,
    /// Positions of one attention tile.
    pub(crate) tile_tokens: usize,
    pub(crate) threads: Vec<ThreadScratch>,
}

/// One thread's own memory.
pub(crate) struct ThreadScratch {
    /// A row of any width, padded.
    pub(crate) row: Buffer<f32>,
    /// What matrices read, where rows are few.
    pub(crate) input: ActivationBuffers,
    /// A panel expanded to f32.
    pub(crate) panel: Buffer<f32>,
    pub(crate) gates: Buffer<f32>,
    pub(crate) ups: Buffer<f32>,
    pub(crate) queries: Buffer<f32>,
    pub(crate) part: Buffer<f32>,
    pub(crate) total: Buffer<f32>,
    /// A tile's attention output of one group of heads.
    pub(crate) attended: Buffer<f32>,
}

impl Workspace {
    pub(crate) fn new(spec: &DecoderSpec, weights: &Weights, limits: &StepLimits, threads: usize) -> Self {
        let tokens = limits.max_num_batched_tokens as usize;
        let layers = || spec.layers.iter();
        let most = |of: &dyn Fn(&powertrain_model::spec::LayerSpec) -> usize| layers().map(of).max().unwrap_or(1);
        let query_width = most(&|layer| layer.attention.heads * layer.attention.head_dim);
        let kv_width = most(&|layer| layer.attention.kv_heads * layer.attention.head_dim);
        let hidden_width = most(&|layer| layer.feed_forward.hidden_size);
        let head_dim = most(&|layer| layer.attention.head_dim);
        let kv_heads = most(&|layer| layer.attention.kv_heads);
        let group = most(&|layer| layer.attention.heads / layer.attention.kv_heads);
        let tile_tokens = (TILE_VECTORS / group).clamp(1, TILE_TOKENS);
        let vectors = tile_tokens * group;
        let value_width = head_dim.next_multiple_of(LANES);
        let hidden_stride = spec.hidden_size.next_multiple_of(LANES);
        let query_stride = query_width.next_multiple_of(LANES);
        let kv_stride = kv_width.next_multiple_of(LANES);
        let logits_stride = spec.vocab_size.next_multiple_of(LANES);
        let logit_rows = LOGIT_ROWS.min(tokens);
        let has_post_norm =
            layers().any(|layer| layer.post_attention_norm.is_some() || layer.post_feed_forward_norm.is_some());

        let mut input = Encodings::of([weights.head.encoding]);
        let mut hidden = Encodings::default();
        for layer in &weights.layers {
            input = input.and(layer.attention_input()).and(layer.feed_forward_input());
            input = input.and(Encodings::of([layer.output.encoding]));
            hidden = hidden.and(Encodings::of([layer.down.encoding]));
        }
        let mut ropes: Vec<RopeSpec> = Vec::new();
        let rope_of_layer = layers()
            .map(|layer| {
                let rope = &layer.attention.rope;
                ropes.iter().position(|known| known == rope).unwrap_or_else(|| {
                    ropes.push(rope.clone());
                    ropes.len() - 1
                })
            })
            .collect();
        let split_items = (4 * threads).max(kv_heads);
        let spans = (limits.max_model_len as usize).div_ceil(SPAN);
        let widest = query_width.max(spec.hidden_size).max(hidden_width);
        let scratch = || ThreadScratch {
            row: Buffer::zeroed(widest.next_multiple_of(64)),
            input: ActivationBuffers::new(FEW_TOKENS, query_width.max(spec.hidden_size), input),
            panel: Buffer::zeroed(widest.next_multiple_of(32) * LANES),
            gates: Buffer::zeroed(GATE_ROWS * 32),
            ups: Buffer::zeroed(GATE_ROWS * 32),
            queries: Buffer::zeroed(query_elements(vectors, head_dim)),
            part: Buffer::zeroed(Partial::elements(vectors, value_width)),
            total: Buffer::zeroed(Partial::elements(vectors, value_width)),
            attended: Buffer::zeroed(vectors * head_dim),
        };
        Self {
            residual: Buffer::zeroed(tokens * hidden_stride),
            hidden_stride,
            branch: Buffer::zeroed(if has_post_norm { tokens * hidden_stride } else { 0 }),
            input: ActivationBuffers::new(tokens, query_width.max(spec.hidden_size), input),
            hidden: ActivationBuffers::new(tokens, hidden_width, hidden),
            query: Buffer::zeroed(tokens * query_stride),
            query_stride,
            key: Buffer::zeroed(tokens * kv_stride),
            value: Buffer::zeroed(tokens * kv_stride),
            kv_stride,
            attended: Buffer::zeroed(tokens * query_stride),
            ropes: RopeTables::new(ropes, tokens),
            rope_of_layer,
            split: Buffer::zeroed(split_items * spans * Partial::elements(group, value_width)),
            split_items,
            logits: Buffer::zeroed(logit_rows * logits_stride),
            logits_stride,
            logit_rows,
            tile_tokens,
            threads: (0..threads).map(|_| scratch()).collect(),
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let scratch = |thread: &ThreadScratch| {
            let ThreadScratch { row, input, panel, gates, ups, queries, part, total, attended } = thread;
            let floats = [row, panel, gates, ups, queries, part, total, attended];
            floats.map(Buffer::bytes).iter().sum::<usize>() + input.bytes()
        };
        let shared = [&self.residual, &self.branch, &self.query, &self.key, &self.value, &self.attended]
            .into_iter()
            .chain([&self.split, &self.logits, &self.ropes.memory]);
        shared.map(Buffer::bytes).sum::<usize>()
            + self.input.bytes()
            + self.hidden.bytes()
            + self.threads.iter().map(scratch).sum::<usize>()
    }
}

/// Sines and cosines of the step's positions, for each distinct rope of the model.
pub(crate) struct RopeTables {
    ropes: Vec<RopeSpec>,
    /// Per token and rope: cosines, then sines, each padded to 16.
    memory: Buffer<f32>,
    /// Where each rope's part of a token starts, and at last the whole length.
    offsets: Vec<usize>,
}

impl RopeTables {
    fn new(ropes: Vec<RopeSpec>, tokens: usize) -> Self {
        let mut offsets = vec![0];
        for rope in &ropes {
            let end = offsets[offsets.len() - 1] + 2 * rope.inverse_frequencies.len().next_multiple_of(LANES);
            offsets.push(end);
        }
        let memory = Buffer::zeroed(tokens * offsets[ropes.len()]);
        Self { ropes, memory, offsets }
    }

    /// Computes a token's tables; no other thread touches that token's.
    pub(crate) fn fill(&self, token: usize, position: usize) {
        for (index, rope) in self.ropes.iter().enumerate() {
            let (cosines, sines) = self.pointers(index, token);
            for (pair, &frequency) in rope.inverse_frequencies.iter().enumerate() {
                let (sine, cosine) = (position as f32 * frequency).sin_cos();
                // SAFETY: the tables have room for the pairs, and are this token's.
                unsafe {
                    *cosines.add(pair) = cosine * rope.magnitude;
                    *sines.add(pair) = sine * rope.magnitude;
                }
            }
        }
    }

    /// Cosines and sines of one token by one rope.
    pub(crate) fn at(&self, rope: usize, token: usize) -> (*const f32, *const f32) {
        let (cosines, sines) = self.pointers(rope, token);
        (cosines, sines)
    }

    fn pointers(&self, rope: usize, token: usize) -> (*mut f32, *mut f32) {
        let padded = self.ropes[rope].inverse_frequencies.len().next_multiple_of(LANES);
        // SAFETY: the memory holds every token's tables.
        unsafe {
            let cosines = self.memory.as_mut_ptr().add(token * self.offsets[self.ropes.len()] + self.offsets[rope]);
            (cosines, cosines.add(padded))
        }
    }
}
