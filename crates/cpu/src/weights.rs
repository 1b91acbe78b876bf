//! A model's weights as this executor holds them.

use crate::{
    activations::{Encoding, Encodings},
    config::{Activations, CpuError},
    kernel::Kernels,
    memory::Buffer,
    packed::{PackedMatrix, PanelKind, pack_panel},
    simd::LANES,
};
use powertrain_model::{
    format::dequantize,
    spec::{DecoderSpec, LayerSpec, NormSpec, RopePairing},
    weights::{LayerSlot, Slot, TensorView},
};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Finds the tensor of a slot.
pub(crate) type Tensors<'a> = dyn Fn(Slot) -> Option<TensorView<'a>> + 'a;

/// A vector in f32, padded with zeros to a multiple of 16.
pub(crate) type Vector = Vec<f32>;

/// All weights.
pub(crate) struct Weights {
    /// Every matrix.
    memory: Buffer<u8>,
    pub(crate) embedding: PackedMatrix,
    pub(crate) head: PackedMatrix,
    pub(crate) final_norm: Vector,
    pub(crate) layers: Vec<LayerWeights>,
}

/// One layer's.
pub(crate) struct LayerWeights {
    pub(crate) attention_norm: Vector,
    pub(crate) query: PackedMatrix,
    pub(crate) key: PackedMatrix,
    pub(crate) value: PackedMatrix,
    pub(crate) output: PackedMatrix,
    pub(crate) query_bias: Option<Vector>,
    pub(crate) key_bias: Option<Vector>,
    pub(crate) value_bias: Option<Vector>,
    pub(crate) output_bias: Option<Vector>,
    pub(crate) query_norm: Option<Vector>,
    pub(crate) key_norm: Option<Vector>,
    pub(crate) post_attention_norm: Option<Vector>,
    pub(crate) feed_forward_norm: Vector,
    pub(crate) gate: PackedMatrix,
    pub(crate) up: PackedMatrix,
    pub(crate) down: PackedMatrix,
    pub(crate) post_feed_forward_norm: Option<Vector>,
}

impl LayerWeights {
    /// What the readers of the normed residual before attention want.
    pub(crate) fn attention_input(&self) -> Encodings {
        Encodings::of([self.query.encoding, self.key.encoding, self.value.encoding])
    }

    /// What the readers of the normed residual before the feed-forward want.
    pub(crate) fn feed_forward_input(&self) -> Encodings {
        Encodings::of([self.gate.encoding, self.up.encoding])
    }
}

impl Weights {
    /// Packs all tensors, on `threads` threads.
    pub(crate) fn load<'a>(
        spec: &DecoderSpec,
        tensors: &Tensors<'a>,
        kernels: &Kernels,
        activations: Activations,
        threads: usize,
    ) -> Result<Self, CpuError> {
        let mut loader = Loader { spec, tensors, kernels, activations, jobs: Vec::new(), bytes: 0 };
        let embedding = loader.matrix(Slot::Embedding, None)?;
        let head = if spec.tied_head { embedding } else { loader.matrix(Slot::Head, None)? };
        let final_norm = loader.norm(Slot::FinalNorm, &spec.final_norm)?;
        let layers: Vec<PendingLayer> =
            (0..spec.layers.len()).map(|index| loader.layer(index)).collect::<Result<_, _>>()?;
        let memory = Buffer::zeroed(loader.bytes);
        loader.pack(&memory, threads);
        let packed = |pending: Pending| loader.jobs[pending.0].matrix;
        Ok(Self {
            embedding: packed(embedding),
            head: packed(head),
            final_norm,
            layers: layers.into_iter().map(|layer| layer.finish(&packed)).collect(),
            memory,
        })
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

/// A matrix to be packed: its index among the loader's jobs.
#[derive(Clone, Copy)]
struct Pending(usize);

struct PackJob<'a> {
    matrix: PackedMatrix,
    offset: usize,
    tensor: TensorView<'a>,
    /// Rows within a head change places: head size and rotary dimension.
    reorder: Option<(usize, usize)>,
}

struct Loader<'s, 'a> {
    spec: &'s DecoderSpec,
    tensors: &'s Tensors<'a>,
    kernels: &'s Kernels,
    activations: Activations,
    jobs: Vec<PackJob<'a>>,
    bytes: usize,
}

/// A layer whose matrices have no memory yet.
struct PendingLayer {
    vectors: Box<dyn FnOnce([PackedMatrix; 7]) -> LayerWeights>,
    matrices: [Pending; 7],
}

impl PendingLayer {
    fn finish(self, packed: &dyn Fn(Pending) -> PackedMatrix) -> LayerWeights {
        (self.vectors)(self.matrices.map(packed))
    }
}

impl<'a> Loader<'_, 'a> {
    fn tensor(&self, slot: Slot) -> Result<TensorView<'a>, CpuError> {
        let view = (self.tensors)(slot).ok_or_else(|| CpuError::MissingTensor { slot: format!("{slot:?}") })?;
        let (rows, columns) = self.spec.shape(slot);
        let stored = view.format.row_bytes(view.columns).and_then(|bytes| bytes.checked_mul(view.rows));
        if (view.rows, view.columns) != (rows, columns) || stored != Some(view.data.len()) {
            return Err(CpuError::Shape {
                slot: format!("{slot:?}"),
                found_rows: view.rows,
                found_columns: view.columns,
                rows,
                columns,
            });
        }
        Ok(view)
    }

    fn matrix(&mut self, slot: Slot, reorder: Option<(usize, usize)>) -> Result<Pending, CpuError> {
        let tensor = self.tensor(slot)?;
        let kind = match self.activations {
            Activations::Int8 => PanelKind::for_int8(tensor.format),
            Activations::F32 => PanelKind::of(tensor.format),
        };
        let encoding = match (self.activations, kind) {
            (Activations::Int8, PanelKind::Integer(_) | PanelKind::FixedPoint) => Encoding::Int8,
            (Activations::Int8, PanelKind::Bf16) if self.kernels.has_bf16_dot => Encoding::Bf16,
            _ => Encoding::F32,
        };
        let matrix = PackedMatrix::describe(kind, tensor.rows, tensor.columns, encoding);
        self.jobs.push(PackJob { matrix, offset: self.bytes, tensor, reorder });
        self.bytes += matrix.bytes();
        Ok(Pending(self.jobs.len() - 1))
    }

    fn vector(&self, slot: Slot, reorder: Option<(usize, usize)>) -> Result<Vector, CpuError> {
        let tensor = self.tensor(slot)?;
        let mut stored = vec![0.0; tensor.columns];
        dequantize(tensor.format, tensor.data, &mut stored);
        let mut vector = vec![0.0; tensor.columns.next_multiple_of(LANES)];
        for (index, value) in vector[..tensor.columns].iter_mut().enumerate() {
            *value = stored[source_row(index, reorder)];
        }
        Ok(vector)
    }

    fn norm(&self, slot: Slot, norm: &NormSpec) -> Result<Vector, CpuError> {
        self.norm_reordered(slot, norm, None)
    }

    fn norm_reordered(&self, slot: Slot, norm: &NormSpec, reorder: Option<(usize, usize)>) -> Result<Vector, CpuError> {
        let mut vector = self.vector(slot, reorder)?;
        let len = self.spec.shape(slot).1;
        vector[..len].iter_mut().for_each(|weight| *weight += norm.weight_offset);
        Ok(vector)
    }

    fn layer(&mut self, index: usize) -> Result<PendingLayer, CpuError> {
        use LayerSlot::*;
        let spec: &LayerSpec = &self.spec.layers[index];
        let attention = &spec.attention;
        let rotary_dim = 2 * attention.rope.inverse_frequencies.len();
        let reorder = (attention.rope.pairing == RopePairing::Adjacent).then_some((attention.head_dim, rotary_dim));
        let at = |slot| Slot::Layer(index, slot);
        let matrices = [
            self.matrix(at(Query), reorder)?,
            self.matrix(at(Key), reorder)?,
            self.matrix(at(Value), None)?,
            self.matrix(at(Output), None)?,
            self.matrix(at(Gate), None)?,
            self.matrix(at(Up), None)?,
            self.matrix(at(Down), None)?,
        ];
        let bias = |present: bool, slot, reorder| present.then(|| self.vector(at(slot), reorder)).transpose();
        let query_bias = bias(attention.qkv_bias, QueryBias, reorder)?;
        let key_bias = bias(attention.qkv_bias, KeyBias, reorder)?;
        let value_bias = bias(attention.qkv_bias, ValueBias, None)?;
        let output_bias = bias(attention.output_bias, OutputBias, None)?;
        let optional = |norm: &Option<NormSpec>, slot, reorder| {
            norm.as_ref().map(|norm| self.norm_reordered(at(slot), norm, reorder)).transpose()
        };
        let query_norm = optional(&attention.qk_norm, QueryNorm, reorder)?;
        let key_norm = optional(&attention.qk_norm, KeyNorm, reorder)?;
        let post_attention_norm = optional(&spec.post_attention_norm, PostAttentionNorm, None)?;
        let post_feed_forward_norm = optional(&spec.post_feed_forward_norm, PostFeedForwardNorm, None)?;
        let attention_norm = self.norm(at(AttentionNorm), &spec.attention_norm)?;
        let feed_forward_norm = self.norm(at(FeedForwardNorm), &spec.feed_forward_norm)?;
        let vectors = Box::new(move |[query, key, value, output, gate, up, down]: [PackedMatrix; 7]| LayerWeights {
            attention_norm,
            query,
            key,
            value,
            output,
            query_bias,
            key_bias,
            value_bias,
            output_bias,
            query_norm,
            key_norm,
            post_attention_norm,
            feed_forward_norm,
            gate,
            up,
            down,
            post_feed_forward_norm,
        });
        Ok(PendingLayer { vectors, matrices })
    }

    fn pack(&mut self, memory: &Buffer<u8>, threads: usize) {
        for job in &mut self.jobs {
            // SAFETY: the memory was sized as the sum of all matrices.
            job.matrix.data = unsafe { memory.as_mut_ptr().add(job.offset) };
        }
        /// Panels a thread takes at a time.
        const TOGETHER: usize = 8;
        let jobs = &self.jobs;
        let parts: Vec<(usize, usize)> = jobs
            .iter()
            .enumerate()
            .flat_map(|(index, job)| (0..job.matrix.panels()).step_by(TOGETHER).map(move |panel| (index, panel)))
            .collect();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(&(index, first)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                let job = &jobs[index];
                for panel in first..(first + TOGETHER).min(job.matrix.panels()) {
                    // SAFETY: the matrix has its memory, zeroed; each part is taken once.
                    unsafe { pack_panel(&job.matrix, panel, job.tensor, &|row| source_row(row, job.reorder)) };
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
    }
}

/// Which stored row (of Q or K) stands at `row`: with a reordering, pairs (2i, 2i + 1) become (i, i + half).
fn source_row(row: usize, reorder: Option<(usize, usize)>) -> usize {
    let Some((head_dim, rotary_dim)) = reorder else { return row };
    let (head, in_head) = (row / head_dim * head_dim, row % head_dim);
    let half = rotary_dim / 2;
    head + match in_head {
        i if i < half => 2 * i,
        i if i < rotary_dim => 2 * (i - half) + 1,
        i => i,
    }
}
