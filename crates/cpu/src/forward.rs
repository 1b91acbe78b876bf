//! One step of the model, run by all threads together: each phase is shared out item by item, with a barrier between phases.
//! A layer of one decoding sequence takes five: what is little work for few rows, every thread does for itself.
//!
//! **Batch independence:** no value of a row depends on what other rows are in the step, on how positions are chunked into
//! steps, on the threads, or on how items are shared out. Matrix kernels sum over columns in one fixed order, attention over
//! positions in fixed aligned spans, everything else works on single rows.

mod attend;

use crate::{
    activations::{Activations, Encoding, Encodings, TILE_ROWS},
    batch::{Batch, Row},
    kernel::{
        Epilogue, Kernels,
        encode::GateRows,
        fixed_point::FixedPointPanel,
        integer::IntegerPanel,
        rows::{Gate, RowNorm},
    },
    kv::KvCache,
    packed::{PackedMatrix, PanelKind, fixed_point},
    pool::Team,
    profile::Phase,
    simd::{LANES, scalar::f16_to_f32},
    weights::{LayerWeights, Vector, Weights},
    workspace::{GATE_ROWS, ThreadScratch, Workspace},
};
use powertrain_model::spec::{DecoderSpec, LayerSpec, NormSpec};

/// Activation rows multiplied with a panel at a time: their 8-bit form stays in the L2 cache.
const ROW_BLOCK: usize = 256;
/// Tokens up to which every thread norms and encodes all rows for itself: about half a microsecond a row, less than a barrier.
pub(crate) const FEW_TOKENS: usize = 4;
/// Columns of the feed-forward one item makes: two panels, one block of activations.
const GATE_COLUMNS: usize = 32;

/// Rows a thread has of a step at least, if rows have owners: from one phase to the next what a thread wrote is then what it
/// reads, and not in the other cores' caches. With fewer, threads share out columns, so that a weight is read by one of them.
const OWNED_ROWS: usize = 64;

/// Everything a step reads and writes.
pub(crate) struct Forward<'a> {
    pub(crate) spec: &'a DecoderSpec,
    pub(crate) weights: &'a Weights,
    pub(crate) kernels: &'a Kernels,
    pub(crate) kv: &'a KvCache,
    pub(crate) workspace: &'a Workspace,
    pub(crate) batch: &'a Batch,
    pub(crate) rows: &'a [Option<Row>],
}

/// A matrix, its bias and where its product goes.
#[derive(Clone, Copy)]
struct Product<'a> {
    matrix: &'a PackedMatrix,
    bias: Option<&'a Vector>,
    out: *mut f32,
    stride: usize,
    accumulate: bool,
}

impl Forward<'_> {
    /// All layers; leaves the residual streams of the tokens whose logits are wanted in the workspace's first rows.
    pub(crate) fn run(&self, team: &Team<'_>) {
        let scratch = &self.workspace.threads[team.thread()];
        self.embed(scratch, team);
        team.barrier();
        for (index, (spec, weights)) in self.spec.layers.iter().zip(&self.weights.layers).enumerate() {
            self.project(spec, weights, scratch, team);
            let is_last = index + 1 == self.spec.layers.len();
            let is_cut = is_last && self.wanted() < self.tokens();
            let tiles = if is_cut { &self.batch.wanted_tiles } else { &self.batch.tiles };
            // The rows of the last layer move before they are read, and few are encoded by every thread for itself.
            let encoded =
                (!is_cut && self.tokens() > FEW_TOKENS).then(|| self.attended(spec, weights, self.tokens(), scratch));
            let is_encoded = self.attend(index, spec, weights, tiles, encoded, scratch, team);
            team.barrier();
            let rows = if is_cut { self.wanted() } else { self.tokens() };
            if rows == 0 {
                return;
            }
            if is_cut {
                self.keep_wanted(team);
            }
            let attended = self.attended(spec, weights, rows, scratch);
            if !is_encoded {
                self.encode_attended(attended, is_cut, rows, team);
            }
            self.add_attention(spec, weights, attended, rows, scratch, team);
            self.feed_forward(spec, weights, rows, scratch, team);
        }
    }

    fn tokens(&self) -> usize {
        self.batch.tokens.len()
    }

    /// Tokens whose logits are wanted: of a prompt most often one, and nobody reads what the last layer makes of the others.
    fn wanted(&self) -> usize {
        self.batch.logits.len()
    }

    /// Moves the residuals of the wanted tokens to the first rows. Ends with a barrier.
    fn keep_wanted(&self, team: &Team<'_>) {
        team.share(1, 1, |_| {
            for (row, wanted) in self.batch.logits.iter().enumerate() {
                debug_assert!(row <= wanted.token, "tokens ascend, so no row is overwritten before it moved");
                // SAFETY: one thread alone touches the residuals in this phase; both rows exist.
                unsafe { self.residual(wanted.token).copy_to(self.residual(row), self.workspace.hidden_stride) };
            }
        });
        team.barrier();
    }

    /// Where a matrix's input stands: each thread has its own where rows are few.
    fn input(&self, rows: usize, columns: usize, encodings: Encodings, scratch: &ThreadScratch) -> Activations {
        let buffers = if rows <= FEW_TOKENS { &scratch.input } else { &self.workspace.input };
        buffers.rows_of(columns, encodings)
    }

    /// Runs `work` on all rows of [`input`](Self::input): each thread on all of its own, or shared out and followed by a barrier.
    fn prepare(&self, rows: usize, team: &Team<'_>, work: impl FnMut(usize)) {
        if rows <= FEW_TOKENS {
            (0..rows).for_each(work);
        } else {
            share_rows(rows, team, work);
            team.barrier();
        }
    }

    /// A token's row of the residual stream.
    fn residual(&self, token: usize) -> *mut f32 {
        // SAFETY: the workspace has a row for every token of a step.
        unsafe { self.workspace.residual.as_mut_ptr().add(token * self.workspace.hidden_stride) }
    }

    /// One row of a packed matrix in f32.
    ///
    /// # Safety
    /// `out` has room for the columns; `row` is one of the matrix's.
    unsafe fn unpack_row(&self, matrix: &PackedMatrix, row: usize, out: *mut f32, scratch: &ThreadScratch) {
        let (panel, lane) = (matrix.panel(row / LANES).cast_const(), row % LANES);
        // SAFETY: all offsets stay inside the row's panel; the scratch panel is this thread's and as wide as any matrix's.
        unsafe {
            match matrix.kind {
                PanelKind::F32 => {
                    for column in 0..matrix.columns {
                        *out.add(column) = *panel.cast::<f32>().add(column * LANES + lane);
                    }
                }
                PanelKind::F16 => {
                    for column in 0..matrix.columns {
                        *out.add(column) = f16_to_f32(*panel.cast::<u16>().add(column * LANES + lane));
                    }
                }
                PanelKind::Bf16 => {
                    for column in 0..matrix.columns {
                        let bits = *panel.cast::<u16>().add(column / 2 * 2 * LANES + lane * 2 + column % 2);
                        *out.add(column) = f32::from_bits(u32::from(bits) << 16);
                    }
                }
                PanelKind::FixedPoint => {
                    for column in 0..matrix.columns {
                        *out.add(column) = fixed_point::weight(panel, lane, column);
                    }
                }
                // All sixteen rows by vectors take a fifth of the time of one row number by number.
                PanelKind::Integer(_) => {
                    let expanded = scratch.panel.as_mut_ptr();
                    (self.kernels.expand_integer)(integer_panel(matrix, row / LANES), expanded);
                    for column in 0..matrix.columns {
                        *out.add(column) = *expanded.add(column * LANES + lane);
                    }
                }
            }
        }
    }

    fn embed(&self, scratch: &ThreadScratch, team: &Team<'_>) {
        share_rows(self.tokens(), team, |index| {
            let token = self.batch.tokens[index];
            let row = self.residual(index);
            // SAFETY: this item alone touches the token's rows.
            unsafe {
                self.unpack_row(&self.weights.embedding, token.id as usize, row, scratch);
                if self.spec.embedding_scale != 1.0 {
                    for column in 0..self.spec.hidden_size {
                        *row.add(column) *= self.spec.embedding_scale;
                    }
                }
            }
            self.workspace.ropes.fill(index, token.position);
        });
    }

    /// Queries, keys and values of all tokens. Ends with a barrier.
    fn project(&self, spec: &LayerSpec, weights: &LayerWeights, scratch: &ThreadScratch, team: &Team<'_>) {
        team.enter(Phase::AttentionNorm);
        let workspace = self.workspace;
        let input = self.input(self.tokens(), self.spec.hidden_size, weights.attention_input(), scratch);
        self.norm_rows(&spec.attention_norm, &weights.attention_norm, self.tokens(), input, scratch, team);

        team.enter(Phase::QueryKeyValue);
        let product = |matrix, bias, out, stride| Product { matrix, bias, out, stride, accumulate: false };
        let query = workspace.query.as_mut_ptr();
        let (key, value) = (workspace.key.as_mut_ptr(), workspace.value.as_mut_ptr());
        self.multiply(
            &[
                product(&weights.query, weights.query_bias.as_ref(), query, workspace.query_stride),
                product(&weights.key, weights.key_bias.as_ref(), key, workspace.kv_stride),
                product(&weights.value, weights.value_bias.as_ref(), value, workspace.kv_stride),
            ],
            input,
            self.tokens(),
            scratch,
            team,
        );
        team.barrier();
    }

    /// What the output projection reads.
    fn attended(&self, spec: &LayerSpec, weights: &LayerWeights, rows: usize, scratch: &ThreadScratch) -> Activations {
        let width = spec.attention.heads * spec.attention.head_dim;
        self.input(rows, width, Encodings::of([weights.output.encoding]), scratch)
    }

    /// Encodes the attention's output of all tokens, or `is_cut` of the wanted ones.
    fn encode_attended(&self, to: Activations, is_cut: bool, rows: usize, team: &Team<'_>) {
        team.enter(Phase::AttentionEncoding);
        self.prepare(rows, team, |row| {
            let token = if is_cut { self.batch.logits[row].token } else { row };
            // SAFETY: this item alone writes the row; that of the attention's output ends in zeros.
            unsafe {
                let from = self.workspace.attended.as_mut_ptr().add(token * self.workspace.query_stride);
                (self.kernels.encode_row)(to, row, from);
            }
        });
    }

    /// Adds the attention's output to `rows` residuals. Ends with a barrier.
    fn add_attention(
        &self,
        spec: &LayerSpec,
        weights: &LayerWeights,
        attended: Activations,
        rows: usize,
        scratch: &ThreadScratch,
        team: &Team<'_>,
    ) {
        team.enter(Phase::Output);
        let post_norm = spec.post_attention_norm.as_ref().zip(weights.post_attention_norm.as_ref());
        self.add_branch(&weights.output, weights.output_bias.as_ref(), attended, rows, post_norm, scratch, team);
    }

    /// Ends with a barrier.
    fn feed_forward(
        &self,
        spec: &LayerSpec,
        weights: &LayerWeights,
        rows: usize,
        scratch: &ThreadScratch,
        team: &Team<'_>,
    ) {
        let workspace = self.workspace;
        team.enter(Phase::FeedForwardNorm);
        let input = self.input(rows, self.spec.hidden_size, weights.feed_forward_input(), scratch);
        self.norm_rows(&spec.feed_forward_norm, &weights.feed_forward_norm, rows, input, scratch, team);

        team.enter(Phase::GateAndUp);
        let hidden = workspace.hidden.rows_of(spec.feed_forward.hidden_size, Encodings::of([weights.down.encoding]));
        self.gate_and_up(spec, weights, input, rows, hidden, scratch, team);
        team.barrier();

        team.enter(Phase::Down);
        let post_norm = spec.post_feed_forward_norm.as_ref().zip(weights.post_feed_forward_norm.as_ref());
        self.add_branch(&weights.down, None, hidden, rows, post_norm, scratch, team);
    }

    /// Norms `rows` residuals into `to`, which is [`input`](Self::input).
    fn norm_rows(
        &self,
        spec: &NormSpec,
        weight: &Vector,
        rows: usize,
        to: Activations,
        scratch: &ThreadScratch,
        team: &Team<'_>,
    ) {
        self.prepare(rows, team, |row| self.norm_row(spec, weight, row, to, row, scratch));
    }

    /// Norms one token's residual into row `row` of `to`.
    pub(crate) fn norm_row(
        &self,
        spec: &NormSpec,
        weight: &Vector,
        token: usize,
        to: Activations,
        row: usize,
        scratch: &ThreadScratch,
    ) {
        let norm = RowNorm { weight: weight.as_ptr(), len: self.spec.hidden_size, epsilon: spec.epsilon };
        let normed = scratch.row.as_mut_ptr();
        // SAFETY: the scratch row is this thread's and as wide as any row, its padding to 32 zero where the width needs it; no other
        // thread writes row `row`.
        unsafe {
            (self.kernels.norm)(norm, self.residual(token), normed);
            (self.kernels.encode_row)(to, row, normed);
        }
    }

    /// Adds `matrix * input` to `rows` residuals, normed first where the model says so. Ends with a barrier.
    #[expect(clippy::too_many_arguments, reason = "a branch's matrix, input and norm, with all they need")]
    fn add_branch(
        &self,
        matrix: &PackedMatrix,
        bias: Option<&Vector>,
        input: Activations,
        rows: usize,
        post_norm: Option<(&NormSpec, &Vector)>,
        scratch: &ThreadScratch,
        team: &Team<'_>,
    ) {
        let workspace = self.workspace;
        let stride = workspace.hidden_stride;
        let accumulate = post_norm.is_none();
        let out = if accumulate { workspace.residual.as_mut_ptr() } else { workspace.branch.as_mut_ptr() };
        let product = Product { matrix, bias, out, stride, accumulate };
        self.multiply(&[product], input, rows, scratch, team);
        team.barrier();
        let Some((spec, weight)) = post_norm else { return };
        team.enter(Phase::BranchNorm);
        let norm = RowNorm { weight: weight.as_ptr(), len: self.spec.hidden_size, epsilon: spec.epsilon };
        share_rows(rows, team, |row| {
            // SAFETY: this item alone touches these rows, which are padded with zeros.
            unsafe {
                let branch = workspace.branch.as_mut_ptr().add(row * stride);
                (self.kernels.norm)(norm, branch, branch);
                (self.kernels.add)(self.residual(row), branch, stride);
            }
        });
        team.barrier();
    }

    /// Multiplies some matrices with the same `rows` rows of input.
    fn multiply(
        &self,
        products: &[Product<'_>],
        input: Activations,
        rows: usize,
        scratch: &ThreadScratch,
        team: &Team<'_>,
    ) {
        let panels: usize = products.iter().map(|product| product.matrix.panels()).sum();
        share_blocks(rows, panels, team, |first_row, count, mut panel| {
            for product in products {
                if panel >= product.matrix.panels() {
                    panel -= product.matrix.panels();
                    continue;
                }
                let bias = product.bias.map_or(std::ptr::null(), |bias| bias[panel * LANES..].as_ptr());
                let epilogue = Epilogue { bias, accumulate: product.accumulate };
                // SAFETY: this item alone touches these columns of these rows; strides are padded to whole panels.
                unsafe {
                    let out = product.out.add(first_row * product.stride + panel * LANES);
                    self.multiply_panel(
                        product.matrix,
                        panel,
                        input,
                        first_row,
                        count,
                        out,
                        product.stride,
                        epilogue,
                        scratch,
                    );
                }
                return;
            }
        });
    }

    /// 16 output columns of `count` rows from `first_row` (a multiple of 8) on.
    ///
    /// # Safety
    /// `out` points to 16 columns of the first of `count` rows, `stride` apart, that no other thread touches.
    #[expect(clippy::too_many_arguments, reason = "one call of a kernel, with all it needs")]
    unsafe fn multiply_panel(
        &self,
        matrix: &PackedMatrix,
        panel: usize,
        input: Activations,
        first_row: usize,
        count: usize,
        out: *mut f32,
        stride: usize,
        epilogue: Epilogue,
        scratch: &ThreadScratch,
    ) {
        debug_assert_eq!(matrix.columns, input.columns);
        let (kernels, data, columns) = (self.kernels, matrix.panel(panel), matrix.columns);
        let tile = first_row / TILE_ROWS;
        // SAFETY: the caller's promises; the input holds these rows in the matrix's encoding; the scratch panel is this thread's
        // and holds the widest matrix.
        unsafe {
            match matrix.encoding {
                Encoding::Int8 => {
                    let x = input.int8.add(tile * input.blocks());
                    if matrix.kind == PanelKind::FixedPoint {
                        let panel = FixedPointPanel { data: matrix.panel(panel), blocks: columns / 32 };
                        (kernels.multiply_fixed_point)(panel, x, count, out, stride, epilogue);
                    } else {
                        (kernels.multiply_integer)(integer_panel(matrix, panel), x, count, out, stride, epilogue);
                    }
                }
                Encoding::Bf16 => {
                    let x = input.bf16.add(tile * input.bf16_tile());
                    (kernels.multiply_bf16)(data.cast(), columns.div_ceil(2), x, count, out, stride, epilogue);
                }
                Encoding::F32 => {
                    let x = input.f32.add(tile * input.f32_tile());
                    let expanded = scratch.panel.as_mut_ptr();
                    let weights = match matrix.kind {
                        PanelKind::F32 => data.cast_const().cast(),
                        PanelKind::F16 => {
                            (kernels.expand_f16)(data.cast(), columns, expanded);
                            expanded.cast_const()
                        }
                        PanelKind::Bf16 => {
                            (kernels.expand_bf16)(data.cast(), columns.div_ceil(2), expanded);
                            expanded.cast_const()
                        }
                        PanelKind::FixedPoint => unreachable!("packed for 8-bit activations alone"),
                        PanelKind::Integer(_) => {
                            (kernels.expand_integer)(integer_panel(matrix, panel), expanded);
                            expanded.cast_const()
                        }
                    };
                    (kernels.multiply_f32)(weights, columns, x, count, out, stride, epilogue);
                }
            }
        }
    }

    /// `activation(gate * x) * (up * x)`, straight into the encoding the down projection reads.
    #[expect(clippy::too_many_arguments, reason = "two matrices with their input and output, and all they need")]
    fn gate_and_up(
        &self,
        spec: &LayerSpec,
        weights: &LayerWeights,
        input: Activations,
        rows: usize,
        hidden: Activations,
        scratch: &ThreadScratch,
        team: &Team<'_>,
    ) {
        let kernels = self.kernels;
        let pairs = spec.feed_forward.hidden_size.div_ceil(GATE_COLUMNS);
        let (gates, ups) = (scratch.gates.as_mut_ptr(), scratch.ups.as_mut_ptr());
        share_blocks(rows, pairs, team, |first_row, count, pair| {
            let end = first_row + count;
            let columns = (spec.feed_forward.hidden_size - pair * GATE_COLUMNS).min(GATE_COLUMNS);
            for first_row in (first_row..end).step_by(GATE_ROWS) {
                let count = (end - first_row).min(GATE_ROWS);
                // SAFETY: the scratch is this thread's; this item alone writes these columns of these rows.
                unsafe {
                    for half in 0..columns.div_ceil(LANES) {
                        for (matrix, out) in [(&weights.gate, gates), (&weights.up, ups)] {
                            let (panel, out) = (pair * 2 + half, out.add(half * LANES));
                            let store = Epilogue::STORE;
                            self.multiply_panel(
                                matrix,
                                panel,
                                input,
                                first_row,
                                count,
                                out,
                                GATE_COLUMNS,
                                store,
                                scratch,
                            );
                        }
                    }
                    let gate = Gate(spec.feed_forward.activation);
                    if hidden.encodings.int8 {
                        let rows = GateRows { gates, ups, count, first_row, block: pair };
                        (kernels.encode_gated)(gate, rows, hidden);
                    }
                    if hidden.encodings.f32 || hidden.encodings.bf16 {
                        (kernels.gate)(gate, gates, ups, gates, count * GATE_COLUMNS);
                        for row in 0..count {
                            let from = gates.add(row * GATE_COLUMNS);
                            store_columns(hidden, first_row + row, pair, columns, from);
                        }
                    }
                }
            }
        });
    }

    /// The logits of some tokens, given the indices among `batch.logits`; ends with a barrier.
    pub(crate) fn logits(&self, chunk: std::ops::Range<usize>, scratch: &ThreadScratch, team: &Team<'_>) {
        team.enter(Phase::Logits);
        let workspace = self.workspace;
        let head = &self.weights.head;
        let input = self.input(chunk.len(), self.spec.hidden_size, Encodings::of([head.encoding]), scratch);
        self.prepare(chunk.len(), team, |row| {
            self.norm_row(&self.spec.final_norm, &self.weights.final_norm, chunk.start + row, input, row, scratch);
        });
        let (out, stride) = (workspace.logits.as_mut_ptr(), workspace.logits_stride);
        let product = Product { matrix: head, bias: None, out, stride, accumulate: false };
        self.multiply(&[product], input, chunk.len(), scratch, team);
        team.barrier();
        if let Some(cap) = self.spec.logit_softcap {
            team.share(chunk.len(), 1, |row| {
                // SAFETY: this item alone touches the row.
                unsafe { (self.kernels.soft_cap)(out.add(row * stride), stride, cap) };
            });
            team.barrier();
        }
    }
}

/// Runs `work` on all of some rows. Rows of a tile share lines: where there are enough, a tile is one thread's.
fn share_rows(rows: usize, team: &Team<'_>, mut work: impl FnMut(usize)) {
    if rows >= OWNED_ROWS * team.threads() {
        let tiles = rows.div_ceil(TILE_ROWS);
        team.share_owned(tiles, |tile| (tile * TILE_ROWS..rows.min((tile + 1) * TILE_ROWS)).for_each(&mut work));
    } else {
        team.share(rows, if rows >= TILE_ROWS * team.threads() { TILE_ROWS } else { TILE_ROWS / 2 }, work);
    }
}

/// Runs `work` on blocks of rows, given by their first and their count, times columns: blocks of one thread after the other where
/// rows have owners.
fn share_blocks(rows: usize, columns: usize, team: &Team<'_>, mut work: impl FnMut(usize, usize, usize)) {
    let threads = team.threads();
    let is_owned = rows >= OWNED_ROWS * threads;
    let block = match is_owned {
        true => rows.div_ceil(threads * rows.div_ceil(threads * ROW_BLOCK)).next_multiple_of(TILE_ROWS),
        false => ROW_BLOCK,
    };
    let mut item = |item: usize| {
        let first = item / columns * block;
        work(first, (rows - first).min(block), item % columns);
    };
    let count = rows.div_ceil(block) * columns;
    if is_owned { team.share_owned(count, &mut item) } else { team.share_stretches(count, &mut item) }
}

fn integer_panel(matrix: &PackedMatrix, panel: usize) -> IntegerPanel {
    let PanelKind::Integer(layout) = matrix.kind else { unreachable!("only integer panels are read as such") };
    IntegerPanel { data: matrix.panel(panel), layout, blocks: matrix.columns / 32 }
}

/// Writes the `pair`-th 32 columns (or what there is of them) of a row as f32 and bf16, where the reader wants them.
///
/// # Safety
/// `from` holds 32 elements; no other thread touches these columns of the row.
unsafe fn store_columns(to: Activations, row: usize, pair: usize, columns: usize, from: *const f32) {
    let (tile, place) = (row / TILE_ROWS, row % TILE_ROWS);
    // SAFETY: the caller's promises.
    unsafe {
        if to.encodings.f32 {
            let at = to.f32.add(tile * to.f32_tile() + pair * GATE_COLUMNS * TILE_ROWS + place);
            for column in 0..columns {
                *at.add(column * TILE_ROWS) = *from.add(column);
            }
        }
        if to.encodings.bf16 {
            let at = to.bf16.add(tile * to.bf16_tile() + pair * GATE_COLUMNS * TILE_ROWS + place * 2);
            for column in 0..columns.next_multiple_of(2) {
                let value = if column < columns { *from.add(column) } else { 0.0 };
                *at.add(column / 2 * 2 * TILE_ROWS + column % 2) = crate::simd::scalar::f32_to_bf16(value);
            }
        }
    }
}
