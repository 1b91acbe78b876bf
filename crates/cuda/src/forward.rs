//! One pass through the model: which kernels run on which buffers.
//!
//! A layer is, for few rows, five launches: norm + QKV, rope + cache write + attention, output + sum, norm + gate and up +
//! activation, down + sum. Nothing here waits for the device or depends on what a step holds beyond its [`Pass`], so a pass
//! can be captured once and replayed.

mod head;

use crate::{
    CudaError,
    choose::Chooser,
    decode::{self, Division},
    driver::{Buffer, Context, DevicePointer, Shape, Stream},
    kernels::{
        Cache, Heads, Kernels, ROPE_WHOLE_THREADS, Rope, State, TILE_QUERIES, WARPGROUP_THREADS, flash_shared_bytes,
        launch, shape,
    },
    matmul::{Matmul, norm_threads},
    product::{Norm, Output, Product},
    staging::{COUNTS_AT, Layout},
    tensor_map::TensorMap,
    weights::{DeviceWeights, LayerWeights},
};
use powertrain_model::spec::{Activation, AttentionSpec, DecoderSpec, LayerSpec};

/// Weights of the layers by which kernels are chosen: 12 layers of Qwen2.5-1.5B, 3 of Llama-3.1-8B, all of SmolLM2-135M.
const LAYERS_BYTES: usize = 1 << 30;

/// What a pass computes. `layout` says where its arrays are; the counts split its positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pass {
    pub(crate) layout: Layout,
    /// The first positions, each its row's only one, which take split decode attention. Beside prompts this is how many there is room for, and the
    /// staged step says how many there are.
    pub(crate) decodes: usize,
    /// Whether there are prompts, or parts of them.
    pub(crate) prompts: bool,
    /// Whether one of them is far into its sequence ([`FAR_POSITIONS`](decode::FAR_POSITIONS)).
    pub(crate) far: bool,
    /// Whether some row needs its logits, for more than the highest of them: it draws, or the host chooses.
    pub(crate) draws: bool,
    /// Whether some row has its logits changed or reports log-probabilities; then `draws` is set too, so that there are fewer graphs.
    pub(crate) extras: bool,
    /// Whether the last residuals of all positions are wanted, not only those whose tokens are chosen: log-probabilities of prompts.
    pub(crate) keeps_all: bool,
}

impl Pass {
    /// Whether every position is a row's only one.
    pub(crate) fn is_decode(&self) -> bool {
        self.layout.tokens > 0 && !self.prompts
    }

    /// Whether the last layer, once it has written its keys and values, goes on with the chosen positions alone. For a prompt of
    /// Llama-3.1-8B that saves 2.8 % of the multiply-adds; where most positions are chosen the shapes of pure decodes are kept.
    fn narrows(&self) -> bool {
        !self.keeps_all && !self.is_decode() && 2 * self.layout.samples <= self.layout.tokens
    }
}

/// The positions that a layer takes through its products: residuals, and what attention gave them.
#[derive(Clone, Copy, Debug)]
struct Positions {
    residual: DevicePointer,
    attended: DevicePointer,
    count: usize,
}

/// Positions of a box of keys or values (flash.cu, attention.cu): a cache block holds whole boxes.
const CACHE_BOX: usize = 16;

/// What [`Forward::run_class`] runs by number.
pub(crate) const CLASSES: [&str; 10] = [
    "whole step",
    "norm + QKV",
    "rope + attention",
    "output + sum",
    "norm + gate and up + activation",
    "down + sum",
    "norm + head",
    "choose",
    "changes + embed",
    "of attention, rope of prompts",
];

/// Buffers of the largest step.
pub(crate) struct Workspace {
    residual: Buffer,
    /// Queries, keys and values; queries are rotated in place.
    qkv: Buffer,
    attended: Buffer,
    /// Of the chosen positions in the last layer: residuals, and what attention gave them.
    chosen_residual: Buffer,
    chosen_attended: Buffer,
    /// A projection's result before its post-norm.
    delta: Buffer,
    /// Gated activations.
    activated: Buffer,
    pub(crate) chooser: Chooser,
    part_out: Buffer,
    part_ml: Buffer,
    arrivals: Buffer,
}

/// The parts of the executor a pass needs.
pub(crate) struct Forward {
    pub(crate) spec: DecoderSpec,
    pub(crate) kernels: Kernels,
    pub(crate) weights: DeviceWeights,
    pub(crate) matmul: Matmul,
    pub(crate) workspace: Workspace,
    pub(crate) state: State,
    /// The staged step on the device.
    pub(crate) staged: Buffer,
    /// Keys of every layer, then values of every layer.
    pub(crate) cache: Buffer,
    pub(crate) cache_layer_bytes: usize,
    pub(crate) block_size: usize,
    pub(crate) multiprocessors: usize,
}

impl Workspace {
    /// For `tokens` positions in a step (padding included), `samples` rows of logits and `sequences` decoding at once.
    pub(crate) fn allocate(
        context: &Context,
        stream: &Stream,
        spec: &DecoderSpec,
        tokens: usize,
        samples: usize,
        sequences: usize,
    ) -> Result<Self, CudaError> {
        let widest = |width: fn(&LayerSpec) -> usize| spec.layers.iter().map(width).max().unwrap_or(0);
        let buffer = |bytes: usize| {
            let buffer = Buffer::allocate(context, bytes, "the workspace of a step")?;
            buffer.clear(stream).map(|()| buffer)
        };
        let parts = spec
            .layers
            .iter()
            .flat_map(|layer| (1..=sequences).flat_map(move |n| [false, true].map(|far| (n, far, &layer.attention))))
            .map(|(n, far, attention)| n * attention.heads * decode::divide(n, attention, far, None).splits);
        let parts = parts.max().unwrap_or(0);
        let attended_bytes = widest(|l| l.attention.heads * l.attention.head_dim) * 2;
        Ok(Self {
            residual: buffer(tokens * spec.hidden_size * 2)?,
            qkv: buffer(tokens * widest(qkv_width) * 2)?,
            attended: buffer(tokens * attended_bytes)?,
            chosen_residual: buffer(samples * spec.hidden_size * 2)?,
            chosen_attended: buffer(samples * attended_bytes)?,
            delta: buffer(tokens * spec.hidden_size * 2)?,
            activated: buffer(tokens * widest(|l| l.feed_forward.hidden_size) * 2)?,
            chooser: Chooser::allocate(context, stream, samples, spec.vocab_size)?,
            part_out: buffer(parts * widest(|l| l.attention.head_dim) * 4)?,
            part_ml: buffer(parts * 8)?,
            arrivals: buffer(sequences * widest(|l| decode::groups(&l.attention)) * 4)?,
        })
    }
}

/// Elements of queries, keys and values of a position.
pub(crate) fn qkv_width(layer: &LayerSpec) -> usize {
    (layer.attention.heads + 2 * layer.attention.kv_heads) * layer.attention.head_dim
}

impl Forward {
    /// Puts a whole step on the stream: changes, model, choice of tokens. The staged buffer was copied before.
    pub(crate) fn run(&self, stream: &Stream, pass: &Pass) -> Result<(), CudaError> {
        self.apply_changes(stream)?;
        if pass.layout.tokens == 0 {
            return Ok(());
        }
        self.embed(stream, pass)?;
        for index in 0..self.spec.layers.len() {
            self.layer(stream, pass, index)?;
        }
        if pass.layout.samples > 0 {
            let finds_best = self.finds_best(pass);
            self.head(stream, pass, finds_best)?;
            let chosen = self.choose(stream, pass, finds_best);
            if chosen.is_err() {
                // What was found and not delivered must not be joined with what the next step finds.
                self.workspace.chooser.forget_best(stream)?;
            }
            chosen?;
        }
        Ok(())
    }

    /// Carries out the staged changes of the arena.
    pub(crate) fn apply_changes(&self, stream: &Stream) -> Result<(), CudaError> {
        let header = self.staged.pointer();
        // Not overlapped: what stands before it may be a copy.
        let shape = Shape { grid: (32, 1, 1), threads: 256, shared_bytes: 0, cluster: 0, overlap: false };
        launch!(stream, self.kernels.apply_changes, shape, self.state, header)
    }

    /// Logits of the given positions of a step that [keeps all](Pass::keeps_all), from their residuals.
    pub(crate) fn logits(&self, stream: &Stream, rows: DevicePointer, count: usize) -> Result<(), CudaError> {
        let head = self.head_product(self.workspace.residual.pointer(), rows, count);
        self.matmul.run(&self.kernels, stream, &head)
    }

    /// All products of a pass of `pass.layout`, for tuning.
    pub(crate) fn products(&self, pass: &Pass) -> Vec<Product<'_>> {
        let mut products: Vec<_> =
            (0..self.spec.layers.len()).flat_map(|index| self.pass_products(pass, index)).collect();
        if pass.layout.samples > 0 {
            products.push(self.pass_head(pass));
        }
        products
    }

    /// The embedding and the first layers of a pass alone.
    pub(crate) fn run_layers(&self, stream: &Stream, pass: &Pass, layers: usize) -> Result<(), CudaError> {
        self.embed(stream, pass)?;
        (0..layers).try_for_each(|index| self.layer(stream, pass, index))
    }

    /// So many layers that their weights do not fit the second-level cache, and that what stands around them is little.
    pub(crate) fn cold_layers(&self) -> usize {
        let bytes = |layer: &LayerWeights| {
            let matrices = [&layer.qkv, &layer.output, &layer.gate_up, &layer.down];
            matrices.map(|matrix| matrix.rows * matrix.columns * 2).iter().sum::<usize>()
        };
        let cold = self.weights.layers.iter().scan(0, |all, layer| {
            *all += bytes(layer);
            Some(*all)
        });
        (cold.take_while(|&all| all < LAYERS_BYTES).count() + 1).min(self.weights.layers.len())
    }

    /// The launches of one class alone, over all layers, for profiles: see [`CLASSES`].
    pub(crate) fn run_class(&self, stream: &Stream, pass: &Pass, class: usize) -> Result<(), CudaError> {
        match class {
            0 => return self.run(stream, pass),
            6 => {
                self.head(stream, pass, self.finds_best(pass))?;
                return self.workspace.chooser.forget_best(stream);
            }
            7 => return self.choose(stream, pass, self.finds_best(pass)),
            8 => return self.apply_changes(stream).and_then(|()| self.embed(stream, pass)),
            _ => {}
        }
        for index in 0..self.spec.layers.len() {
            let products = self.pass_products(pass, index);
            match class {
                2 => self.attention(stream, pass, index)?,
                9 if pass.layout.tiles > 0 => {
                    let (rope, cache, heads) = self.attention_parameters(pass, index);
                    self.rope_write(stream, pass, self.counts(pass), rope, cache, heads)?;
                }
                9 => {}
                1 => self.matmul.run(&self.kernels, stream, &products[0])?,
                _ => self.matmul.run(&self.kernels, stream, &products[class - 2])?,
            }
        }
        Ok(())
    }

    fn staged_at(&self, word: usize) -> DevicePointer {
        self.staged.pointer() + word as u64 * 4
    }

    fn embed(&self, stream: &Stream, pass: &Pass) -> Result<(), CudaError> {
        let (rows, positions) = (self.staged_at(pass.layout.rows()), self.staged_at(pass.layout.positions()));
        let (table, residual) = (self.weights.embedding.buffer.pointer(), self.workspace.residual.pointer());
        let (width, scale) = (self.spec.hidden_size as i32, self.spec.embedding_scale);
        let vocab = self.spec.vocab_size as u32;
        let shape = shape((pass.layout.tokens as u32, 1, 1), 128);
        launch!(stream, self.kernels.embed, shape, self.state, rows, positions, table, residual, width, scale, vocab)
    }

    fn layer(&self, stream: &Stream, pass: &Pass, index: usize) -> Result<(), CudaError> {
        let (spec, weights) = (&self.spec.layers[index], &self.weights.layers[index]);
        let [qkv, output, gate_up, down] = self.pass_products(pass, index);
        self.matmul.run(&self.kernels, stream, &qkv)?;
        self.attention(stream, pass, index)?;
        let after = self.after_attention(pass, index);
        if after.count == 0 {
            return Ok(());
        }
        if self.ends_narrow(pass, index) {
            self.take_chosen(stream, pass, spec)?;
        }
        self.matmul.run(&self.kernels, stream, &output)?;
        if let (Some(norm), Some(weight)) = (&spec.post_attention_norm, &weights.post_attention_norm) {
            self.add_normalised(stream, weight, norm.epsilon, after)?;
        }
        self.matmul.run(&self.kernels, stream, &gate_up)?;
        self.matmul.run(&self.kernels, stream, &down)?;
        if let (Some(norm), Some(weight)) = (&spec.post_feed_forward_norm, &weights.post_feed_forward_norm) {
            self.add_normalised(stream, weight, norm.epsilon, after)?;
        }
        Ok(())
    }

    fn ends_narrow(&self, pass: &Pass, index: usize) -> bool {
        pass.narrows() && index + 1 == self.spec.layers.len()
    }

    fn all_positions(&self, pass: &Pass) -> Positions {
        let w = &self.workspace;
        Positions { residual: w.residual.pointer(), attended: w.attended.pointer(), count: pass.layout.tokens }
    }

    /// The positions that a layer goes on with after its attention.
    fn after_attention(&self, pass: &Pass, index: usize) -> Positions {
        let w = &self.workspace;
        match self.ends_narrow(pass, index) {
            true => Positions {
                residual: w.chosen_residual.pointer(),
                attended: w.chosen_attended.pointer(),
                count: pass.layout.samples,
            },
            false => self.all_positions(pass),
        }
    }

    /// Copies what the chosen positions have to where the last layer goes on with them.
    fn take_chosen(&self, stream: &Stream, pass: &Pass, spec: &LayerSpec) -> Result<(), CudaError> {
        let (rows, all) = (self.staged_at(pass.layout.sample_tokens()), self.all_positions(pass));
        let w = &self.workspace;
        let (residual, attended) = (w.chosen_residual.pointer(), w.chosen_attended.pointer());
        let (width, attended_width) =
            (self.spec.hidden_size as i32, (spec.attention.heads * spec.attention.head_dim) as i32);
        let shape = shape((pass.layout.samples as u32, 2, 1), 128);
        launch!(
            stream,
            self.kernels.take_rows,
            shape,
            rows,
            all.residual,
            residual,
            width,
            all.attended,
            attended,
            attended_width
        )
    }

    /// QKV, output, gate and up, down of a layer.
    fn pass_products(&self, pass: &Pass, index: usize) -> [Product<'_>; 4] {
        let (spec, weights) = (&self.spec.layers[index], &self.weights.layers[index]);
        let before = self.all_positions(pass);
        let after = self.after_attention(pass, index);
        let w = &self.workspace;
        let plain = Product {
            matrix: &weights.qkv,
            x: after.residual,
            x_rows: 0,
            norm: None,
            bias: 0,
            out: 0,
            output: Output::Store,
            softcap: 0.0,
            m: after.count,
        };
        // A post-norm stands between the projection and the sum.
        let into = |has_post_norm: bool| match has_post_norm {
            true => (w.delta.pointer(), Output::Store),
            false => (after.residual, Output::Residual),
        };
        let (attention_out, attention_output) = into(spec.post_attention_norm.is_some());
        let (down_out, down_output) = into(spec.post_feed_forward_norm.is_some());
        let gelu = spec.feed_forward.activation == Activation::GeluTanh;
        [
            Product {
                x: before.residual,
                norm: Some(Norm { weight: 0, epsilon: spec.attention_norm.epsilon }),
                out: w.qkv.pointer(),
                m: before.count,
                ..plain
            },
            Product {
                matrix: &weights.output,
                x: after.attended,
                bias: weights.output_bias.as_ref().map_or(0, Buffer::pointer),
                out: attention_out,
                output: attention_output,
                ..plain
            },
            Product {
                matrix: &weights.gate_up,
                norm: Some(Norm { weight: 0, epsilon: spec.feed_forward_norm.epsilon }),
                out: w.activated.pointer(),
                output: Output::Gated { gelu },
                ..plain
            },
            Product { matrix: &weights.down, x: w.activated.pointer(), out: down_out, output: down_output, ..plain },
        ]
    }

    /// residual += rmsnorm(delta)
    fn add_normalised(
        &self,
        stream: &Stream,
        weight: &Buffer,
        epsilon: f32,
        positions: Positions,
    ) -> Result<(), CudaError> {
        let (residual, delta) = (positions.residual, self.workspace.delta.pointer());
        let (weight, none, no_epsilon): (_, DevicePointer, f32) = (weight.pointer(), 0, 0.0);
        let width = self.spec.hidden_size as i32;
        let shape = shape((positions.count as u32, 1, 1), norm_threads(self.spec.hidden_size));
        let function = self.kernels.add_norm[usize::from(self.spec.hidden_size > 4096)];
        launch!(stream, function, shape, residual, delta, weight, epsilon, none, no_epsilon, none, none, width)
    }

    fn attention_parameters(&self, pass: &Pass, index: usize) -> (Rope, Cache, Heads) {
        let (spec, weights) = (&self.spec.layers[index].attention, &self.weights.layers[index]);
        let keys = self.cache.pointer() + (index * self.cache_layer_bytes) as u64;
        let cache = Cache {
            keys,
            values: keys + (self.spec.layers.len() * self.cache_layer_bytes) as u64,
            block_size: self.block_size as i32,
            kv_heads: spec.kv_heads as i32,
        };
        let heads = Heads {
            heads: spec.heads as i32,
            kv_heads: spec.kv_heads as i32,
            head_dim: spec.head_dim as i32,
            rotary: 2 * spec.rope.inverse_frequencies.len() as i32,
            window: spec.window.unwrap_or(0).min(i32::MAX as usize) as i32,
            scale: spec.scale,
            softcap: spec.softcap.unwrap_or(0.0),
            magnitude: spec.rope.magnitude,
        };
        let [qkv, ..] = self.pass_products(pass, index);
        let lacks_norm = self.matmul.leaves_norm(&qkv);
        let pointer = |buffer: &Option<Buffer>| buffer.as_ref().map_or(0, Buffer::pointer);
        let rope = Rope {
            bias: pointer(&weights.qkv_bias),
            query_norm: pointer(&weights.query_norm),
            key_norm: pointer(&weights.key_norm),
            inverse_frequencies: weights.inverse_frequencies.pointer(),
            residual: if lacks_norm { self.workspace.residual.pointer() } else { 0 },
            width: self.spec.hidden_size as i32,
            norm_epsilon: self.spec.layers[index].attention_norm.epsilon,
            epsilon: spec.qk_norm.map_or(0.0, |norm| norm.epsilon),
        };
        (rope, cache, heads)
    }

    fn attention(&self, stream: &Stream, pass: &Pass, index: usize) -> Result<(), CudaError> {
        let spec = &self.spec.layers[index].attention;
        let (rope, cache, heads) = self.attention_parameters(pass, index);
        // The fast kernels' lanes hold half a head in pairs and at most half a head past the rotary dimension.
        let fast = matches!(spec.head_dim, 64 | 128) && 2 * heads.rotary >= heads.head_dim;
        if !fast {
            self.rope_write(stream, pass, 0, rope, cache, heads)?;
            return self.attention_plain(stream, pass, cache, heads);
        }
        let clusters = Some(&self.kernels.decode_clusters[usize::from(spec.head_dim == 128)]).filter(|_| !pass.prompts);
        let division = (pass.decodes > 0).then(|| decode::divide(pass.decodes, spec, pass.far, clusters));
        let mut attends_prompts = false;
        if pass.layout.tiles > 0 {
            self.rope_write(stream, pass, self.counts(pass), rope, cache, heads)?;
            // Of a prompt's part that is not its last, the last layer leaves only keys and values.
            attends_prompts = self.after_attention(pass, index).count > 0;
            if attends_prompts {
                let all = self.multiprocessors;
                let blocks = division.map_or(all, |decodes| decodes.kernel.left_to_prompts(all));
                self.flash(stream, pass, spec, (cache, heads), blocks)?;
            }
        }
        // Prompts first: few multiprocessors are enough for them, and decodes, which wait for memory, take the others meanwhile.
        if let Some(division) = division {
            self.decode(stream, pass, spec, division, (rope, cache, heads), attends_prompts)?;
        }
        Ok(())
    }

    /// Where the staged step says how much of what a pass has room for it holds.
    fn counts(&self, pass: &Pass) -> DevicePointer {
        debug_assert!(pass.layout.tiles > 0, "only steps with flash tiles differ in what they hold");
        self.staged_at(COUNTS_AT)
    }

    /// Queries, keys and values of the step's positions, but of the decodes that `counts` (0: none) names: the decode kernel makes its own.
    fn rope_write(
        &self,
        stream: &Stream,
        pass: &Pass,
        counts: DevicePointer,
        rope: Rope,
        cache: Cache,
        heads: Heads,
    ) -> Result<(), CudaError> {
        let all_heads = (heads.heads + 2 * heads.kv_heads) as usize;
        let (rows, positions) = (self.staged_at(pass.layout.rows()), self.staged_at(pass.layout.positions()));
        let qkv = self.workspace.qkv.pointer();
        let (function, threads) = if matches!(heads.head_dim, 64 | 128) && heads.rotary == heads.head_dim {
            (self.kernels.rope_write_whole[usize::from(heads.head_dim == 128)], ROPE_WHOLE_THREADS)
        } else {
            // A lane holds this many of a head's elements in each half.
            let per_lane = heads.head_dim.max(2 * (heads.head_dim - heads.rotary)).unsigned_abs().div_ceil(64);
            let function = self.kernels.rope_write[match per_lane {
                1 => 0,
                2 => 1,
                _ => 2,
            }];
            (function, 32 * all_heads.min(16) as u32)
        };
        let shape = shape((pass.layout.tokens as u32, 1, 1), threads);
        launch!(stream, function, shape, self.state, counts, rows, positions, qkv, rope, cache, heads)
    }

    fn attention_plain(&self, stream: &Stream, pass: &Pass, cache: Cache, heads: Heads) -> Result<(), CudaError> {
        let (rows, positions) = (self.staged_at(pass.layout.rows()), self.staged_at(pass.layout.positions()));
        let (qkv, out) = (self.workspace.qkv.pointer(), self.workspace.attended.pointer());
        let tokens = pass.layout.tokens as i32;
        let shape = shape(((tokens * heads.heads).unsigned_abs().div_ceil(4), 1, 1), 128);
        let function = self.kernels.attention_plain;
        launch!(stream, function, shape, self.state, rows, positions, qkv, out, cache, heads, tokens)
    }

    /// Attention of the decodes; `beside` that of prompts, which was launched just before.
    fn decode(
        &self,
        stream: &Stream,
        pass: &Pass,
        spec: &AttentionSpec,
        Division { kernel, splits, cluster }: Division,
        (rope, cache, heads): (Rope, Cache, Heads),
        beside: bool,
    ) -> Result<(), CudaError> {
        let w = &self.workspace;
        let (rows, positions) = (self.staged_at(pass.layout.rows()), self.staged_at(pass.layout.positions()));
        let (qkv, out) = (w.qkv.pointer(), w.attended.pointer());
        let (part_out, part_ml, arrivals) = (w.part_out.pointer(), w.part_ml.pointer(), w.arrivals.pointer());
        let grid = (splits as u32, decode::groups(spec) as u32, pass.decodes as u32);
        let shape = Shape {
            shared_bytes: kernel.shared_bytes(spec.head_dim) as u32,
            cluster: if cluster { splits as u32 } else { 0 },
            ..shape(grid, 32 * kernel.warps() as u32)
        };
        let slots = self.cache_slots(spec);
        let map =
            TensorMap::keys_and_values([cache.keys, cache.values], slots, spec.kv_heads, spec.head_dim, CACHE_BOX)?;
        let (stages, beside) = (kernel.stages() as i32, i32::from(beside));
        let counts = if pass.prompts { self.counts(pass) } else { 0 };
        let function = self.kernels.decode[usize::from(spec.head_dim == 128)][kernel as usize];
        launch!(
            stream, function, shape, self.state, counts, rows, positions, qkv, out, part_out, part_ml, arrivals, rope,
            cache, heads, map, stages, beside
        )
    }

    /// Positions that a layer's cache has room for.
    fn cache_slots(&self, spec: &AttentionSpec) -> usize {
        self.cache_layer_bytes / (spec.kv_heads * spec.head_dim * 2)
    }

    /// Attention of the prompts, by no more than so many blocks, one a multiprocessor.
    fn flash(
        &self,
        stream: &Stream,
        pass: &Pass,
        spec: &AttentionSpec,
        (cache, heads): (Cache, Heads),
        blocks: usize,
    ) -> Result<(), CudaError> {
        let tiles = self.staged_at(pass.layout.tile_words());
        let out = self.workspace.attended.pointer();
        let all_heads = spec.heads + 2 * spec.kv_heads;
        let queries = TensorMap::heads(
            self.workspace.qkv.pointer(),
            pass.layout.tokens,
            all_heads,
            spec.head_dim,
            TILE_QUERIES as usize,
        )?;
        let map = |of| TensorMap::keys(of, self.cache_slots(spec), spec.kv_heads, spec.head_dim, CACHE_BOX);
        let (keys, values) = (map(cache.keys)?, map(cache.values)?);
        let shape = Shape {
            grid: ((spec.heads * pass.layout.tiles).min(blocks) as u32, 1, 1),
            threads: WARPGROUP_THREADS,
            shared_bytes: flash_shared_bytes(spec.head_dim as u32),
            cluster: 0,
            overlap: true,
        };
        let function = self.kernels.flash[usize::from(spec.head_dim == 128)];
        let (counts, block_size) = (self.counts(pass), cache.block_size);
        launch!(stream, function, shape, queries, keys, values, self.state, counts, tiles, out, block_size, heads)
    }
}
