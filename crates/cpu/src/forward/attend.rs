//! A layer's attention: rotation, storing of keys and values, and whose spans which thread takes.

use super::{Forward, OWNED_ROWS, share_rows};
use crate::{
    activations::{Activations, BLOCK, Encoding, Encodings, TILE_ROWS},
    batch::{AttentionTile, Token},
    kernel::{
        attention::{AttentionWork, NewKeyValue, NextWork, Partial, QueryRows, SPAN},
        rows::{HeadNorm, Rotation},
    },
    pool::Team,
    profile::Phase,
    simd::LANES,
    weights::{LayerWeights, Vector},
    workspace::ThreadScratch,
};
use powertrain_model::spec::LayerSpec;

impl Forward<'_> {
    /// Norms and rotates the heads of a token that belong to some KV heads, and stores their keys and values in the cache.
    fn rotate_and_store(
        &self,
        index: usize,
        spec: &LayerSpec,
        weights: &LayerWeights,
        token: usize,
        kv_heads: std::ops::Range<usize>,
    ) {
        let (workspace, attention) = (self.workspace, &spec.attention);
        let (head_dim, group) = (attention.head_dim, attention.heads / attention.kv_heads);
        let Token { block, in_block, .. } = self.batch.tokens[token];
        let (cosines, sines) = workspace.ropes.at(workspace.rope_of_layer[index], token);
        let rotation = Rotation { cosines, sines, pairs: attention.rope.inverse_frequencies.len() };
        let head_norm = |weight: &Option<Vector>| {
            let (norm, weight) = attention.qk_norm.as_ref().zip(weight.as_ref())?;
            Some(HeadNorm { weight: weight.as_ptr(), len: head_dim, epsilon: norm.epsilon })
        };
        let (query_norm, key_norm) = (head_norm(&weights.query_norm), head_norm(&weights.key_norm));
        let (layout, layer) = self.kv.layer(index);
        // SAFETY: this item alone touches these heads of the token's rows and their place in the cache.
        unsafe {
            let query = workspace.query.as_mut_ptr().add(token * workspace.query_stride);
            let keys = workspace.key.as_mut_ptr().add(token * workspace.kv_stride);
            let values = workspace.value.as_mut_ptr().add(token * workspace.kv_stride);
            for head in kv_heads {
                for query_head in head * group..(head + 1) * group {
                    (self.kernels.rotate_head)(rotation, query_norm, query.add(query_head * head_dim));
                }
                let (key, value) = (keys.add(head * head_dim), values.add(head * head_dim));
                (self.kernels.rotate_head)(rotation, key_norm, key);
                (self.kernels.store_key_value)(&layout, layer, NewKeyValue { block, in_block, head, key, value });
            }
        }
    }

    fn attention_work(
        &self,
        index: usize,
        spec: &LayerSpec,
        tile: AttentionTile,
        kv_head: usize,
        queries: *const f32,
    ) -> AttentionWork {
        let (layout, layer) = self.kv.layer(index);
        let Some(row) = &self.rows[tile.row] else { unreachable!("the plan was checked") };
        AttentionWork {
            queries,
            group: spec.attention.heads / spec.attention.kv_heads,
            tokens: tile.tokens,
            first_position: tile.first_position,
            window: spec.attention.window.unwrap_or(usize::MAX),
            scale: spec.attention.scale,
            softcap: spec.attention.softcap,
            kv: layout,
            layer,
            kv_head,
            blocks: row.blocks.as_ptr(),
            next: None,
        }
    }

    /// Rotation of every token and attention of those in `tiles`, rows of the heads' outputs. When few sequences decode, the
    /// spans of long ones are shared out among the threads; otherwise whole tiles. Returns whether the rows are in `encoded` instead, as
    /// the output projection reads them: 8 bits are made where a head is finished, while it is in the L1 cache.
    #[expect(clippy::too_many_arguments, reason = "a layer, what is attended and where it goes")]
    pub(super) fn attend(
        &self,
        index: usize,
        spec: &LayerSpec,
        weights: &LayerWeights,
        tiles: &[AttentionTile],
        encoded: Option<Activations>,
        scratch: &ThreadScratch,
        team: &Team<'_>,
    ) -> bool {
        let (workspace, attention) = (self.workspace, &spec.attention);
        let kv_heads = attention.kv_heads;
        let items = tiles.len() * kv_heads;
        let group = attention.heads / kv_heads;
        let queries = scratch.queries.as_mut_ptr();
        let width = attention.head_dim.next_multiple_of(LANES);
        let load = |item: usize| {
            let (tile, kv_head) = (tiles[item / kv_heads], item % kv_heads);
            // SAFETY: the scratch is this thread's and holds the largest tile's queries.
            unsafe {
                let from = workspace.query.as_mut_ptr();
                let from = from.add(tile.first * workspace.query_stride + kv_head * group * attention.head_dim);
                let (stride, head_dim) = (workspace.query_stride, attention.head_dim);
                let rows = QueryRows { from, stride, tokens: tile.tokens, group, head_dim };
                (self.kernels.load_queries)(rows, self.kv.layer(index).0.dtype, queries);
            }
            self.attention_work(index, spec, tile, kv_head, queries)
        };
        let out = |item: usize| {
            let (tile, kv_head) = (tiles[item / kv_heads], item % kv_heads);
            // SAFETY: rows of the step's tokens.
            unsafe {
                let row = workspace.attended.as_mut_ptr().add(tile.first * workspace.query_stride);
                row.add(kv_head * group * attention.head_dim)
            }
        };
        let columns = group * attention.head_dim;
        let encoded =
            encoded.filter(|to| to.encodings == Encodings::of([Encoding::Int8]) && columns.is_multiple_of(BLOCK));
        // Writes a tile's heads to the rows, or, where they are encoded, to memory that stays in the L1 cache and from there.
        let finish = |item: usize, work: &AttentionWork, total: Partial| {
            let (tile, kv_head) = (tiles[item / kv_heads], item % kv_heads);
            let (first, blocks) = (kv_head * columns / BLOCK, columns / BLOCK);
            // SAFETY: this item alone writes these columns of the tile's rows; the scratch is this thread's and holds the largest tile's.
            unsafe {
                let Some(to) = encoded else {
                    return (self.kernels.finish)(work, total, out(item), workspace.query_stride);
                };
                let heads = scratch.attended.as_mut_ptr();
                (self.kernels.finish)(work, total, heads, columns);
                for token in 0..tile.tokens {
                    let from = heads.add(token * columns);
                    (self.kernels.encode_blocks)(to, tile.first + token, first..first + blocks, from);
                }
            }
        };
        // A span that is attended next, if the item has it.
        let ahead = |item: usize, span: usize| {
            let (tile, kv_head) = (tiles[item / kv_heads], item % kv_heads);
            let work = self.attention_work(index, spec, tile, kv_head, queries);
            let positions = span * SPAN..tile.first_position + tile.tokens;
            work.spans().contains(&span).then_some(NextWork { blocks: work.blocks, kv_head, positions })
        };
        let first_span = |item: usize| {
            let (tile, kv_head) = (tiles[item / kv_heads], item % kv_heads);
            self.attention_work(index, spec, tile, kv_head, queries).spans().start
        };
        let longest = tiles.iter().map(|tile| tile.first_position + tile.tokens).max().unwrap_or(0);
        let spans = longest.div_ceil(SPAN);
        let decodes = tiles.len() == self.tokens() && tiles.windows(2).all(|pair| pair[0].row != pair[1].row);
        let split = decodes && team.threads() > 1 && spans > 1 && items <= workspace.split_items;
        // A position that is computed alone needs no other's key of this step: each item rotates and stores its own.
        let fused = decodes && !split;
        if !fused {
            team.enter(Phase::Rotation);
            share_rows(self.tokens(), team, |token| {
                self.rotate_and_store(index, spec, weights, token, 0..kv_heads);
            });
            team.barrier();
        }
        team.enter(Phase::Attention);
        // SAFETY (both branches): partials in scratch are this thread's, those in `split` belong to one item each; they hold the
        // largest tile's vectors. All positions up to the tokens' own stand in the cache.
        if !split {
            let attend = |item: usize, next: Option<usize>| {
                if fused {
                    let (token, kv_head) = (tiles[item / kv_heads].first, item % kv_heads);
                    self.rotate_and_store(index, spec, weights, token, kv_head..kv_head + 1);
                }
                let mut work = load(item);
                let spans = work.spans();
                // SAFETY: as above.
                unsafe {
                    let total = Partial::at(scratch.total.as_mut_ptr(), work.vectors(), width);
                    let part = Partial::at(scratch.part.as_mut_ptr(), work.vectors(), width);
                    for span in spans.clone() {
                        work.next = ahead(item, span + 1).or_else(|| ahead(next?, first_span(next?)));
                        let is_first = span == spans.start;
                        (self.kernels.attend)(&work, work.span(span), if is_first { total } else { part });
                        if !is_first {
                            (self.kernels.merge)(&work, total, part);
                        }
                    }
                    finish(item, &work, total);
                }
            };
            // Whole rows, which stand together in the cache; four of them where there are enough, which share lines once encoded.
            let threads = team.threads();
            match self.tokens() {
                tokens if fused && tokens >= TILE_ROWS * threads => {
                    team.share_ahead(items, TILE_ROWS / 2 * kv_heads, attend)
                }
                _ if fused => team.share_ahead(items, kv_heads, attend),
                tokens if tokens >= OWNED_ROWS * threads => {
                    // Those that decode stand first; what they read is asked for, as above.
                    let alone = tiles.iter().take_while(|tile| tile.tokens == 1).count() * kv_heads;
                    team.share_ahead(alone, kv_heads, attend);
                    team.share_owned(items - alone, |item| attend(alone + item, None));
                }
                _ => team.share_ahead(items, 1, attend),
            }
            return encoded.is_some();
        }
        let elements = Partial::elements(group, width);
        // SAFETY: the workspace has room for `split_items` items of the longest sequence's spans.
        let partial = |item: usize, span: usize| unsafe {
            Partial::at(workspace.split.as_mut_ptr().add((item * spans + span) * elements), group, width)
        };
        let mut loaded = None;
        team.share_ahead(items * spans, 1, |part, next| {
            let (item, span) = (part / spans, part % spans);
            let (tile, kv_head) = (tiles[item / kv_heads], item % kv_heads);
            if loaded != Some(item) {
                load(item);
                loaded = Some(item);
            }
            let mut work = self.attention_work(index, spec, tile, kv_head, queries);
            work.next = next.and_then(|part| ahead(part / spans, part % spans));
            if work.spans().contains(&span) {
                // SAFETY: as above.
                unsafe { (self.kernels.attend)(&work, work.span(span), partial(item, span)) };
            }
        });
        team.barrier();
        team.enter(Phase::Merge);
        team.share(items, 1, |item| {
            let (tile, kv_head) = (tiles[item / kv_heads], item % kv_heads);
            let work = self.attention_work(index, spec, tile, kv_head, queries);
            // SAFETY: as above.
            unsafe {
                let total = Partial::at(scratch.total.as_mut_ptr(), group, width);
                total.clear(group, width);
                for span in work.spans() {
                    (self.kernels.merge)(&work, total, partial(item, span));
                }
                (self.kernels.finish)(&work, total, out(item), workspace.query_stride);
            }
        });
        false
    }
}
