//! Steps as graphs: which kernels they are made of, when these are timed, and when a graph is captured.
//!
//! Pure decodes are of few kinds. What is likely is done before serving, the rest when nothing runs. A decode whose graph is not there yet gets one at
//! once from what is known: capturing takes a few milliseconds, timing its kernels a fraction of a second.
//!
//! Steps with prompts are of many kinds: products of some sizes are timed at start; prompt_graphs.rs says which are captured.

use super::CudaExecutor;
use crate::{
    CudaError,
    driver::{Event, Graph, Stream},
    forward::Pass,
    matmul::Open,
    product::Output,
    shapes::bucket,
    staging::Layout,
};
use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

/// Positions of steps with prompts whose products are timed, the likeliest first.
const PROMPT_SIZES: [usize; 6] = [512, 256, 1024, 384, 768, 640];

/// Where decodes stand while kernels are chosen for their step.
const DECODE_POSITION: u32 = 512;
/// What is less of a gain is noise.
const WORTH_A_CHANGE: f32 = 0.995;
/// What is more by this is no noise.
const CLEARLY_MORE: f32 = 1.03;

/// A pure decode, recorded.
pub(super) struct DecodeGraph {
    graph: Graph,
    /// Whether the kernels of its products are those found fastest, not those expected to be.
    chosen: bool,
}

impl DecodeGraph {
    pub(super) fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        self.graph.launch(stream)
    }
}

/// When the kernels of shapes that come for the first time are timed.
#[derive(Clone, Copy)]
enum Choose {
    /// At once: up to a third of a second.
    Now,
    /// When there is nothing else to do: requests are waiting.
    Later,
}

impl CudaExecutor {
    /// Launches a pass, by its graph if it has or gets one.
    pub(super) fn run(&mut self, pass: &Pass) -> Result<(), CudaError> {
        self.last_pass = Some(*pass);
        if pass.prompts {
            self.run_prompts(pass)
        } else if pass.is_decode() {
            self.run_decode(pass)
        } else {
            self.forward.run(&self.stream, pass)
        }
    }

    /// A pure decode: by its graph, captured when its kind first comes. Nobody waits then for kernels to be timed: the graph is
    /// made of those expected to be fast, and made anew when there is time.
    fn run_decode(&mut self, pass: &Pass) -> Result<(), CudaError> {
        if !self.graphs.contains_key(pass) {
            if self.enforce_eager {
                return self.forward.run(&self.stream, pass);
            }
            self.stream.wait()?;
            if !self.captured(pass, Choose::Later)? {
                return self.forward.run(&self.stream, pass);
            }
            if !self.graphs[pass].chosen {
                self.to_capture.push(*pass);
            }
        }
        self.graphs[pass].launch(&self.stream)
    }

    /// A step with prompts: by its graph if it came often.
    fn run_prompts(&mut self, pass: &Pass) -> Result<(), CudaError> {
        if let Some(graph) = self.prompt_graphs.of(pass) {
            return graph.launch(&self.stream);
        }
        if self.enforce_eager || !self.prompt_graphs.sighted_enough(pass) {
            return self.forward.run(&self.stream, pass);
        }
        match self.record(pass) {
            Ok(graph) => {
                graph.launch(&self.stream)?;
                self.prompt_graphs.keep(*pass, graph);
                if let Some(graphs) = &self.facts.graphs {
                    graphs.prompts.fetch_add(1, Relaxed);
                }
                Ok(())
            }
            Err(error) if self.lost(&error).is_some() => Err(error),
            // Nothing of it was launched.
            Err(error) => {
                tracing::warn!(%error, "steps with prompts are no longer captured: they will be slower");
                self.prompt_graphs.give_up();
                self.forward.run(&self.stream, pass)
            }
        }
    }

    /// Chooses the kernels for a pure decode and records it. Nothing may be running.
    fn capture(&mut self, pass: &Pass, choose: Choose) -> Result<(), CudaError> {
        let began = Instant::now();
        // Another graph of these sizes has the same products.
        let mut chosen = self.graphs.iter().any(|(other, graph)| other.layout == pass.layout && graph.chosen);
        if !chosen {
            chosen = match choose {
                Choose::Now => {
                    let timed = self.forward.matmul.shapes_timed();
                    self.choose_kernels(pass)?;
                    self.forward.matmul.save_choices();
                    // Some of their products may be of these shapes.
                    if self.forward.matmul.shapes_timed() > timed {
                        self.prompt_graphs.forget();
                    }
                    true
                }
                Choose::Later => {
                    let known = self.forward.matmul.recall_all(&self.forward.products(pass))?;
                    known && !self.forward.head_is_open(pass)
                }
            };
        }
        if let Some(graphs) = &self.facts.graphs {
            graphs.microseconds.fetch_add(began.elapsed().as_micros() as u64, Relaxed);
            graphs.shapes_timed.store(self.forward.matmul.shapes_timed(), Relaxed);
        }
        let graph = self.record(pass)?;
        let replaced = self.graphs.insert(*pass, DecodeGraph { graph, chosen }).is_some();
        if let Some(graphs) = &self.facts.graphs {
            graphs.captured.fetch_add(u64::from(!replaced), Relaxed);
        }
        Ok(())
    }

    /// Chooses the kernels for a pure decode's products: those of layers by the time that some layers take with them. What a kernel takes alone does not
    /// tell what its neighbours gain or lose by it, which is as much. Nothing may be running.
    pub(super) fn choose_kernels(&mut self, pass: &Pass) -> Result<(), CudaError> {
        if self.deterministic {
            return Ok(());
        }
        // The idle row's table names its own block throughout.
        let position = DECODE_POSITION.min(self.limits.max_model_len - 1);
        self.stage_idle(pass, |_| position, &[])?;
        self.choose_for_staged(pass)
    }

    /// The same with the rows that are staged, which then have other keys and values.
    pub(super) fn choose_for_staged(&self, pass: &Pass) -> Result<(), CudaError> {
        let (forward, stream) = (&self.forward, &self.stream);
        let products = forward.products(pass);
        let (in_layers, others): (Vec<_>, Vec<_>) =
            forward.matmul.open(stream, &products)?.into_iter().partition(Open::is_in_layers);
        for open in &others {
            forward.matmul.settle(open, forward.matmul.alone(&forward.kernels, stream, open)?.fastest);
        }
        forward.choose_head(stream, pass)?;
        if in_layers.is_empty() {
            return Ok(());
        }
        // From what is fastest alone, one product after another.
        let mut by_themselves = Vec::new();
        for open in &in_layers {
            let alone = forward.matmul.alone(&forward.kernels, stream, open)?;
            forward.matmul.take(open, alone.fastest);
            by_themselves.push(alone);
        }
        let layers = forward.cold_layers();
        let mut least = self.time_layers(pass, layers, f32::INFINITY)?;
        for (open, alone) in in_layers.iter().zip(by_themselves) {
            let mut chosen = alone.fastest;
            for way in alone.near.into_iter().filter(|_| open.is_among(&products[..4 * layers])) {
                forward.matmul.take(open, way);
                let timed = self.time_layers(pass, layers, least);
                match timed {
                    Ok(milliseconds) if milliseconds < least * WORTH_A_CHANGE => (least, chosen) = (milliseconds, way),
                    _ => forward.matmul.take(open, chosen),
                }
                timed?;
            }
            forward.matmul.settle(open, chosen);
        }
        Ok(())
    }

    /// Milliseconds of some layers of a staged pass, measured once where they are clearly more than `least`.
    fn time_layers(&self, pass: &Pass, layers: usize, least: f32) -> Result<f32, CudaError> {
        const ROUNDS: usize = 2;
        const LAUNCHES: usize = 4;
        let graph = self.stream.capture(|| self.forward.run_layers(&self.stream, pass, layers))?;
        let (begin, end) = (Event::create()?, Event::create()?);
        let mut fastest = f32::INFINITY;
        for _ in 0..ROUNDS {
            graph.launch(&self.stream)?;
            begin.record(&self.stream)?;
            (0..LAUNCHES).try_for_each(|_| graph.launch(&self.stream))?;
            end.record(&self.stream)?;
            end.wait()?;
            fastest = fastest.min(end.milliseconds_since(&begin)?);
            if fastest > least * CLEARLY_MORE {
                break;
            }
        }
        Ok(fastest)
    }

    fn record(&self, pass: &Pass) -> Result<Graph, CudaError> {
        let (began, (before, _)) = (Instant::now(), self.context.memory()?);
        let graph = self.stream.capture(|| self.forward.run(&self.stream, pass))?;
        if let Some(graphs) = &self.facts.graphs {
            let (after, _) = self.context.memory()?;
            graphs.bytes.fetch_add(before.saturating_sub(after), Relaxed);
            graphs.microseconds.fetch_add(began.elapsed().as_micros() as u64, Relaxed);
        }
        Ok(graph)
    }

    /// Captures a pure decode, unless the driver has no memory for its graph, even without those of steps with prompts: then this and all later kinds of
    /// steps are launched kernel by kernel.
    fn captured(&mut self, pass: &Pass, choose: Choose) -> Result<bool, CudaError> {
        let mut captured = self.capture(pass, choose);
        if matches!(captured, Err(CudaError::Exhausted { .. })) && self.prompt_graphs.give_up() {
            captured = self.capture(pass, choose);
        }
        match captured {
            Err(error @ CudaError::Exhausted { .. }) => {
                tracing::warn!(%error, graphs = self.graphs.len(), "no further graphs are captured: such steps will be slower");
                self.enforce_eager = true;
                self.to_capture.clear();
                Ok(false)
            }
            captured => captured.map(|()| true),
        }
    }

    /// What is done before the first request: kernels and graphs for `limit`, then what steps cost.
    pub(super) fn prepare_for_serving(&mut self, limit: Duration) -> Result<(), CudaError> {
        let known = self.recall_costs(limit);
        let (for_prompts, for_decodes) = shares(limit);
        if !self.enforce_eager
            && let Err(error) = self.choose_for_prompts(for_prompts)
        {
            if self.lost(&error).is_some() {
                return Err(error);
            }
            tracing::warn!(%error, "kernels for prompts are not chosen: those that are expected to be fast are taken");
        }
        self.prepare_decodes(for_decodes)?;
        if !known && !limit.is_zero() {
            self.measure_costs(limit)?;
        }
        Ok(())
    }

    /// Chooses kernels and captures graphs, the likeliest first, until all are there or `limit` is over; what is left is done while nothing comes.
    fn prepare_decodes(&mut self, limit: Duration) -> Result<(), CudaError> {
        let began = Instant::now();
        while !self.to_capture.is_empty() && began.elapsed() < limit {
            if let Err(error) = self.prepare_next() {
                if self.lost(&error).is_some() {
                    return Err(error);
                }
                // The step that needs it will meet the same error, and report it.
                tracing::warn!(%error, "no decode graphs are prepared");
                self.to_capture.clear();
            }
        }
        self.tell_of_graphs();
        if !self.to_capture.is_empty() {
            let (left, seconds) = (self.to_capture.len(), began.elapsed().as_secs_f64());
            tracing::info!(left, seconds, "the other decode graphs are captured when nothing comes for half a second");
        }
        Ok(())
    }

    /// Chooses cuBLASLt's algorithms for steps with prompts, until `limit` is over: of the sizes that the pace takes most often; those between take after
    /// the next larger one. Gate and up is left to what is expected: alone, on a card that rests, it is found to be the faster by what is the slower in whole
    /// steps. Nothing may be running.
    pub(super) fn choose_for_prompts(&mut self, limit: Duration) -> Result<(), CudaError> {
        let began = Instant::now();
        for tokens in PROMPT_SIZES.into_iter().filter(|&size| size <= self.limits.max_num_batched_tokens as usize) {
            if began.elapsed() >= limit {
                break;
            }
            let layout = Layout { tokens, samples: 0, tiles: 1 };
            let pass =
                Pass { layout, decodes: 0, prompts: true, far: false, draws: false, extras: false, keeps_all: true };
            let mut products = self.forward.products(&pass);
            products.retain(|product| !matches!(product.output, Output::Gated { .. }));
            self.forward.matmul.tune(&self.forward.kernels, &self.stream, &products)?;
        }
        self.forward.matmul.save_choices();
        Ok(())
    }

    /// Chooses the kernels of the next decode that waits for it, and captures it. Nothing may be running.
    pub(super) fn prepare_next(&mut self) -> Result<(), CudaError> {
        let Some(pass) = self.to_capture.pop() else { return Ok(()) };
        if self.graphs.get(&pass).is_some_and(|graph| graph.chosen) {
            return Ok(());
        }
        self.context.enter()?;
        self.captured(&pass, Choose::Now).map(|_| ())
    }

    /// Says once what all graphs took.
    pub(super) fn tell_of_graphs(&self) {
        let Some(graphs) = self.facts.graphs.as_deref().filter(|_| self.to_capture.is_empty() && !self.enforce_eager)
        else {
            return;
        };
        let (count, seconds) = (graphs.captured.load(Relaxed), graphs.microseconds.load(Relaxed) as f64 / 1e6);
        let (mib, timed) = (graphs.bytes.load(Relaxed) >> 20, graphs.shapes_timed.load(Relaxed));
        let others: usize = self.graphs.values().map(|graph| graph.graph.others()).sum();
        tracing::info!(
            count,
            seconds,
            mib,
            shapes_timed = timed,
            nodes_beside_kernels = others,
            "all graphs are captured"
        );
    }
}

/// The pure decodes of up to `sequences` rows, what is to be done first last: powers of two before the rest, greedy before drawn.
pub(super) fn decode_passes(sequences: usize, by_tiles: bool) -> Vec<Pass> {
    let mut sizes: Vec<usize> = (1..=sequences).map(bucket).collect();
    sizes.dedup();
    // Those between follow the next power of two (`LtKey::followed`) until they are timed: those furthest below it first.
    let above = |size: usize| size.next_power_of_two() as f64 / size as f64;
    sizes.sort_by(|&a, &b| {
        let order = a.is_power_of_two().cmp(&b.is_power_of_two()).reverse();
        order.then(above(b).total_cmp(&above(a))).then(a.cmp(&b))
    });
    let pass = |draws| {
        move |&size: &usize| {
            let (tiles, decodes) = if by_tiles { (size, 0) } else { (0, size) };
            Pass {
                layout: Layout { tokens: size, samples: size, tiles },
                decodes,
                prompts: false,
                far: false,
                draws,
                extras: false,
                keeps_all: false,
            }
        }
    };
    sizes.iter().map(pass(false)).chain(sizes.iter().map(pass(true))).rev().collect()
}

/// Of the time to prepare: for products of prompts, and for decodes. The rest is left to what comes after them.
fn shares(limit: Duration) -> (Duration, Duration) {
    (limit / 8, limit / 4 * 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_that_others_follow_are_prepared_first() {
        let mut passes = decode_passes(256, false);
        let sizes: Vec<_> = passes.iter().rev().map(|pass| pass.layout.tokens).collect();
        let each = [1, 2, 4, 8, 16, 32, 64, 128, 256, 10, 80, 160, 12, 24, 48, 96, 192, 14, 112, 224];
        assert_eq!(sizes, [each, each].concat());
        passes.reverse();
        assert!(
            passes[..each.len()].iter().all(|pass| !pass.draws) && passes[each.len()..].iter().all(|pass| pass.draws)
        );
        assert!(passes.iter().all(|pass| pass.decodes == pass.layout.tokens && pass.layout.tiles == 0));
        let by_tiles = decode_passes(3, true);
        assert!(by_tiles.iter().all(|pass| pass.decodes == 0 && pass.layout.tiles == pass.layout.tokens));
        assert_eq!(by_tiles.len(), 6, "1, 2 and 4 rows");
    }

    #[test]
    fn any_time_can_be_shared() {
        assert_eq!(shares(Duration::from_secs(4)), (Duration::from_millis(500), Duration::from_secs(3)));
        assert_eq!(shares(Duration::ZERO), (Duration::ZERO, Duration::ZERO));
        let (prompts, decodes) = shares(Duration::MAX);
        assert!(prompts + decodes <= Duration::MAX);
    }
}
