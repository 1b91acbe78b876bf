//! Which way is fastest: measured, and remembered beyond this process.

use super::{GATED_ROWS, Matmul, Way};
use crate::{
    cublaslt::{Lt, LtKey, LtKind},
    driver::{Event, Stream},
    error::CudaError,
    kernels::Kernels,
    product::{Output, Product},
    skinny,
    tuned::Tuned,
};
use std::{cell::RefCell, collections::HashMap};

/// What a kernel costs that does not overlap with its neighbours, beside one that does. With 3 us, Llama-3.1-8B at 64 rows took own kernels for
/// products that cuBLASLt computes 1 to 2 us faster; with 0, Qwen2.5-1.5B at 16 rows lost 0.1 ms a step.
const CHAIN_BREAK_MS: f32 = 0.001;

impl Matmul {
    /// Times cuBLASLt's algorithms for these products and keeps the fastest of each shape, then that against our own kernels where they
    /// can. `products` of one shape are taken in turn, so that their weights come from memory as they do in a step.
    /// Overwrites the products' outputs.
    pub(crate) fn tune(&self, kernels: &Kernels, stream: &Stream, products: &[Product<'_>]) -> Result<(), CudaError> {
        let Some(lt) = self.lt.as_ref().filter(|_| !self.deterministic) else { return Ok(()) };
        for ((key, output), same) in by_shape(products) {
            let ways = self.ways(same[0]);
            if self.recall(lt, key, output, &ways)? {
                continue;
            }
            let out = match key.kind {
                LtKind::F32 => same[0].out,
                LtKind::Element | LtKind::ElementAdd => self.gate_up.pointer(),
            };
            let operands: Vec<_> = same.iter().map(|p| (p.matrix.buffer.pointer(), p.x)).collect();
            lt.tune(stream, key, &operands, out)?;
            let mut best = (f32::INFINITY, Way::Library);
            for way in ways {
                let alone = time(stream, &same, |p| self.run_as(way, kernels, stream, p))?;
                // Among kernels that start before their neighbours end, another costs more than it does alone.
                let breaks = !matches!(way, Way::Streaming | Way::Skinny(_));
                let milliseconds = alone + if breaks { CHAIN_BREAK_MS * timed(same.len()) as f32 } else { 0.0 };
                if milliseconds < best.0 {
                    best = (milliseconds, way);
                }
            }
            self.fastest.borrow_mut().insert((key, output), best.1);
            self.timed.set(self.timed.get() + 1);
            if let Some(algorithm) = lt.choice(key) {
                self.kept.borrow_mut().set(format!("{key:?} {output:?}"), format!("{algorithm} {:?}", best.1));
            }
        }
        Ok(())
    }

    /// Takes over what is known of these products' shapes, and times nothing. Whether all are known.
    pub(crate) fn recall_all(&self, products: &[Product<'_>]) -> Result<bool, CudaError> {
        let Some(lt) = self.lt.as_ref().filter(|_| !self.deterministic) else { return Ok(true) };
        let mut all = true;
        for ((key, output), same) in by_shape(products) {
            all &= self.recall(lt, key, output, &self.ways(same[0]))?;
        }
        Ok(all)
    }

    /// What may be fastest for a product.
    fn ways(&self, p: &Product<'_>) -> Vec<Way> {
        let mut ways = vec![Way::Library];
        if self.streams(p) {
            ways.push(Way::Streaming);
        }
        if matches!(p.output, Output::Gated { .. }) && p.m >= GATED_ROWS {
            ways.push(Way::Fused);
        }
        if self.skinny && skinny::takes(p) && skinny::pays(p) {
            ways.extend(self.tilings(p).into_iter().map(Way::Skinny));
        }
        ways
    }

    /// Takes over what an earlier process or an earlier tuning found for a shape, if that is one of `ways`.
    fn recall(&self, lt: &Lt, key: LtKey, output: Output, ways: &[Way]) -> Result<bool, CudaError> {
        let kept = self.kept.borrow();
        let choice = kept.get(&format!("{key:?} {output:?}")).and_then(|choice| choice.split_once(' '));
        let Some((algorithm, name)) = choice else { return Ok(false) };
        let Some(&way) = ways.iter().find(|way| format!("{way:?}") == name) else { return Ok(false) };
        if self.fastest.borrow().get(&(key, output)) == Some(&way) {
            return Ok(true);
        }
        let adopted = lt.adopt(key, algorithm)?;
        if adopted {
            self.fastest.borrow_mut().insert((key, output), way);
        }
        Ok(adopted)
    }

    /// Finds choices in these, and adds to them.
    pub(crate) fn keep_choices(&mut self, kept: Tuned) {
        self.kept = RefCell::new(kept);
    }

    /// Shapes whose kernels were timed.
    pub(crate) fn shapes_timed(&self) -> u64 {
        self.timed.get()
    }

    /// What an earlier start kept under a name of its own.
    pub(crate) fn kept(&self, name: &str) -> Option<String> {
        self.kept.borrow().get(name).map(str::to_owned)
    }

    /// Keeps a text for later starts, until [`save_choices`](Self::save_choices) writes it. Without tabs and line ends.
    pub(crate) fn keep(&self, name: String, text: String) {
        self.kept.borrow_mut().set(name, text);
    }

    /// Writes what tuning found since the last time.
    pub(crate) fn save_choices(&self) {
        self.kept.borrow_mut().save();
    }
}

/// How many launches [`time`] takes for `products` products.
fn timed(products: usize) -> usize {
    products.max(8)
}

/// Products of one shape together.
fn by_shape<'a, 'p>(products: &'a [Product<'p>]) -> HashMap<(LtKey, Output), Vec<&'a Product<'p>>> {
    let mut by_shape: HashMap<_, Vec<_>> = HashMap::new();
    for p in products {
        by_shape.entry((p.key(), p.output)).or_default().push(p);
    }
    by_shape
}

/// Milliseconds of a graph of these products, each written at least once.
pub(crate) fn time(
    stream: &Stream,
    products: &[&Product<'_>],
    run: impl Fn(&Product<'_>) -> Result<(), CudaError>,
) -> Result<f32, CudaError> {
    let graph = stream.capture(|| products.iter().cycle().take(timed(products.len())).try_for_each(|p| run(p)))?;
    let (begin, end) = (Event::create()?, Event::create()?);
    let mut fastest = f32::INFINITY;
    for _ in 0..5 {
        begin.record(stream)?;
        graph.launch(stream)?;
        end.record(stream)?;
        end.wait()?;
        fastest = fastest.min(end.milliseconds_since(&begin)?);
    }
    Ok(fastest)
}
