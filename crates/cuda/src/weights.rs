//! A model's weights on the device, as its kernels like them.
//!
//! Matrices are bf16 or f16 ([`Element`]); norms and biases f32, norm offsets added. The weights of a norm in front of a matrix are multiplied into its
//! columns before they are rounded (but for a tied head, whose matrix is also the embedding). Q, K and V are one matrix, gate and up another, alternating by eight
//! rows so that a tile of sixteen holds both halves of eight outputs. Where rope pairs neighbours (GGUF of the llama architecture),
//! the rows of Q and K are reordered once so that the device rotates halves only.

use crate::{
    driver::{Buffer, Context, Stream},
    element::Element,
    error::CudaError,
    kernels::{Kernels, fill_random},
    product::Matrix,
};
use powertrain_model::{
    Model,
    format::dequantize,
    spec::{AttentionSpec, DecoderSpec, LayerSpec, NormSpec, RopePairing},
    weights::{LayerSlot, Slot, TensorView},
};

/// All of a model's tensors.
#[derive(Debug)]
pub(crate) struct DeviceWeights {
    pub(crate) embedding: Matrix,
    /// `None` when it is the embedding.
    pub(crate) head: Option<Matrix>,
    /// Of a tied head; otherwise it is in the head.
    pub(crate) final_norm: Option<Buffer>,
    pub(crate) layers: Vec<LayerWeights>,
}

/// One layer's tensors.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub(crate) qkv: Matrix,
    pub(crate) qkv_bias: Option<Buffer>,
    pub(crate) query_norm: Option<Buffer>,
    pub(crate) key_norm: Option<Buffer>,
    pub(crate) output: Matrix,
    pub(crate) output_bias: Option<Buffer>,
    pub(crate) post_attention_norm: Option<Buffer>,
    pub(crate) gate_up: Matrix,
    pub(crate) down: Matrix,
    pub(crate) post_feed_forward_norm: Option<Buffer>,
    /// Radians per position of each rotated pair.
    pub(crate) inverse_frequencies: Buffer,
}

impl DeviceWeights {
    pub(crate) fn load(
        context: &Context,
        kernels: &Kernels,
        stream: &Stream,
        model: &Model,
        element: Element,
    ) -> Result<Self, CudaError> {
        let spec = model.spec();
        let mut loader = Loader { context, kernels, stream, spec, model, element, seed: 0 };
        let embedding = loader.matrix(&[Part::all(Slot::Embedding)], Order::Stacked, None)?;
        let final_norm = loader.norm_values(Slot::FinalNorm, &spec.final_norm, None)?;
        let (head, final_norm) = match spec.tied_head {
            true => (None, Some(Buffer::of(context, &final_norm, "the weights")?)),
            false => (Some(loader.matrix(&[Part::all(Slot::Head)], Order::Stacked, Some(&final_norm))?), None),
        };
        let layers = (0..spec.layers.len()).map(|index| loader.layer(index)).collect::<Result<_, _>>()?;
        stream.wait()?;
        Ok(Self { embedding, head, final_norm, layers })
    }

    /// [`bytes`](Self::bytes) of a model that is still to be loaded.
    pub(crate) fn expected_bytes(spec: &DecoderSpec) -> u64 {
        let table = spec.vocab_size * spec.hidden_size * if spec.tied_head { 1 } else { 2 };
        let layer = |layer: &LayerSpec| {
            let attention = &layer.attention;
            let rows = (2 * attention.heads + 2 * attention.kv_heads) * attention.head_dim;
            (rows + 3 * layer.feed_forward.hidden_size) * spec.hidden_size
        };
        2 * (table + spec.layers.iter().map(layer).sum::<usize>()) as u64
    }

    pub(crate) fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of matrices; what a decode step reads.
    pub(crate) fn bytes(&self) -> u64 {
        let layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.output, &l.gate_up, &l.down]);
        let matrices = layers.chain([&self.embedding]).chain(&self.head);
        matrices.map(|matrix| matrix.buffer.bytes() as u64).sum()
    }
}

/// One stored tensor's part in a matrix: its slot, and the order its rows are taken in (`None` as stored).
struct Part {
    slot: Slot,
    order: Option<Vec<usize>>,
}

impl Part {
    fn all(slot: Slot) -> Self {
        Self { slot, order: None }
    }
}

/// How parts make a matrix.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// One after the other.
    Stacked,
    /// Eight rows of each in turn.
    Alternating,
}

struct Loader<'a> {
    context: &'a Context,
    kernels: &'a Kernels,
    stream: &'a Stream,
    spec: &'a DecoderSpec,
    model: &'a Model,
    element: Element,
    seed: u32,
}

impl Loader<'_> {
    fn layer(&mut self, index: usize) -> Result<LayerWeights, CudaError> {
        use LayerSlot::*;
        let layer = &self.spec.layers[index];
        let attention = &layer.attention;
        let slot = |slot| Slot::Layer(index, slot);
        let (query_order, key_order) =
            (row_order(attention, attention.heads), row_order(attention, attention.kv_heads));
        let head_order = row_order(attention, 1);
        let attention_norm = self.norm_values(slot(AttentionNorm), &layer.attention_norm, None)?;
        let feed_forward_norm = self.norm_values(slot(FeedForwardNorm), &layer.feed_forward_norm, None)?;
        let qkv = self.matrix(
            &[
                Part { slot: slot(Query), order: query_order.clone() },
                Part { slot: slot(Key), order: key_order.clone() },
                Part::all(slot(Value)),
            ],
            Order::Stacked,
            Some(&attention_norm),
        )?;
        let qkv_bias = match attention.qkv_bias {
            true => Some(self.vector(&[
                Part { slot: slot(QueryBias), order: query_order },
                Part { slot: slot(KeyBias), order: key_order },
                Part::all(slot(ValueBias)),
            ])?),
            false => None,
        };
        let head_norm = |this: &mut Self, which| match &attention.qk_norm {
            Some(norm) => this.norm(slot(which), norm, head_order.clone()).map(Some),
            None => Ok(None),
        };
        let (query_norm, key_norm) = (head_norm(self, QueryNorm)?, head_norm(self, KeyNorm)?);
        let optional_norm = |this: &mut Self, which, norm: &Option<NormSpec>| match norm {
            Some(norm) => this.norm(slot(which), norm, None).map(Some),
            None => Ok(None),
        };
        Ok(LayerWeights {
            qkv,
            qkv_bias,
            query_norm,
            key_norm,
            output: self.matrix(&[Part::all(slot(Output))], Order::Stacked, None)?,
            output_bias: match attention.output_bias {
                true => Some(self.vector(&[Part::all(slot(OutputBias))])?),
                false => None,
            },
            post_attention_norm: optional_norm(self, PostAttentionNorm, &layer.post_attention_norm)?,
            gate_up: self.matrix(
                &[Part::all(slot(Gate)), Part::all(slot(Up))],
                Order::Alternating,
                Some(&feed_forward_norm),
            )?,
            down: self.matrix(&[Part::all(slot(Down))], Order::Stacked, None)?,
            post_feed_forward_norm: optional_norm(self, PostFeedForwardNorm, &layer.post_feed_forward_norm)?,
            inverse_frequencies: Buffer::of(self.context, &attention.rope.inverse_frequencies, "rope")?,
        })
    }

    fn tensor(&self, slot: Slot) -> Result<Option<TensorView<'_>>, CudaError> {
        if self.model.is_dummy() {
            return Ok(None);
        }
        self.model.tensor(slot).map(Some).ok_or_else(|| CudaError::MissingTensor(format!("{slot:?}")))
    }

    /// `column_factors` multiply the columns; dummy weights have none but 1.
    fn matrix(&mut self, parts: &[Part], order: Order, column_factors: Option<&[f32]>) -> Result<Matrix, CudaError> {
        let shapes: Vec<_> = parts.iter().map(|part| self.spec.shape(part.slot)).collect();
        let (rows, columns) = (shapes.iter().map(|shape| shape.0).sum::<usize>(), shapes[0].1);
        let buffer = Buffer::allocate(self.context, rows * columns * 2, "the weights")?;
        if self.model.is_dummy() {
            self.seed += 1;
            // Variance 1 / columns, as the model's own dummy weights: activations keep their scale.
            let half_width = (3.0 / columns as f32).sqrt();
            let (to, count) = (buffer.pointer(), (rows * columns) as u64);
            fill_random(self.kernels, self.stream, to, count, half_width, self.seed)?;
        } else {
            // For each row of the matrix: which part's, and which of that part's rows.
            let mut sources = Vec::with_capacity(rows);
            for (index, part) in parts.iter().enumerate() {
                sources.extend((0..shapes[index].0).map(|row| (index, part.order.as_ref().map_or(row, |o| o[row]))));
            }
            if order == Order::Alternating {
                let half = rows / 2;
                sources = (0..rows).map(|row| sources[row / 16 * 8 + row % 8 + row % 16 / 8 * half]).collect();
            }
            let views = parts
                .iter()
                .map(|part| self.tensor(part.slot).map(|view| view.expect("stored weights have views")))
                .collect::<Result<Vec<_>, _>>()?;
            let Some(elements) = to_elements(&views, &sources, columns, column_factors, self.element) else {
                return Err(CudaError::Unsupported(format!(
                    "{:?} holds a weight beyond float16's 65504: use --dtype bfloat16",
                    parts[0].slot
                )));
            };
            buffer.write(0, &elements)?;
        }
        Ok(Matrix { buffer, rows, columns })
    }

    /// A vector of f32, parts after one another. Dummy biases are zero.
    fn vector(&mut self, parts: &[Part]) -> Result<Buffer, CudaError> {
        let mut values = Vec::new();
        for part in parts {
            let length = self.spec.shape(part.slot).1;
            let stored = match self.tensor(part.slot)? {
                None => vec![0.0; length],
                Some(view) => {
                    let mut stored = vec![0.0; length];
                    dequantize(view.format, view.data, &mut stored);
                    stored
                }
            };
            match &part.order {
                None => values.extend(stored),
                Some(order) => values.extend(order.iter().map(|&i| stored[i])),
            }
        }
        Buffer::of(self.context, &values, "the weights")
    }

    /// A norm's weights with its offset. Dummy norms are 1.
    fn norm_values(&self, slot: Slot, norm: &NormSpec, order: Option<Vec<usize>>) -> Result<Vec<f32>, CudaError> {
        let length = self.spec.shape(slot).1;
        let mut values = vec![1.0 - norm.weight_offset; length];
        if let Some(view) = self.tensor(slot)? {
            dequantize(view.format, view.data, &mut values);
        }
        let at = |i: usize| values[order.as_ref().map_or(i, |o| o[i])] + norm.weight_offset;
        Ok((0..length).map(at).collect())
    }

    fn norm(&self, slot: Slot, norm: &NormSpec, order: Option<Vec<usize>>) -> Result<Buffer, CudaError> {
        Buffer::of(self.context, &self.norm_values(slot, norm, order)?, "the weights")
    }
}

/// The order of `heads` heads' rows that turns neighbouring rope pairs into halves; `None` when they are halves already.
fn row_order(attention: &AttentionSpec, heads: usize) -> Option<Vec<usize>> {
    if attention.rope.pairing == RopePairing::Halves {
        return None;
    }
    let (size, half) = (attention.head_dim, attention.rope.inverse_frequencies.len());
    let within = |i: usize| match i {
        i if i < half => 2 * i,
        i if i < 2 * half => 2 * (i - half) + 1,
        i => i,
    };
    Some((0..heads * size).map(|row| row / size * size + within(row % size)).collect())
}

/// The chosen rows as elements, on all cores; `None` when a finite weight, with its norm's factor, is more than f16 holds.
fn to_elements(
    views: &[TensorView<'_>],
    sources: &[(usize, usize)],
    columns: usize,
    column_factors: Option<&[f32]>,
    element: Element,
) -> Option<Vec<u16>> {
    let mut out = vec![0u16; sources.len() * columns];
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let rows_each = sources.len().div_ceil(workers).max(1);
    let fits = std::thread::scope(|scope| {
        let mut threads = Vec::with_capacity(workers);
        for (sources, out) in sources.chunks(rows_each).zip(out.chunks_mut(rows_each * columns)) {
            threads.push(scope.spawn(move || {
                let (mut row, mut fits) = (vec![0.0f32; columns], true);
                for (&(view, index), out) in sources.iter().zip(out.chunks_mut(columns)) {
                    let view = &views[view];
                    let bytes = view.data.len() / view.rows;
                    dequantize(view.format, &view.data[index * bytes..(index + 1) * bytes], &mut row);
                    if let Some(factors) = column_factors {
                        row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
                    }
                    for (out, &value) in out.iter_mut().zip(&row) {
                        *out = element.bits(value);
                    }
                    fits &= element.holds(&row);
                }
                fits
            }));
        }
        threads.into_iter().all(|thread| thread.join().expect("rounding weights does not panic"))
    });
    fits.then_some(out)
}
