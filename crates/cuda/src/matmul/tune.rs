//! Which way is fastest: measured, and remembered beyond this process.

use super::{GATED_ROWS, Matmul, Way};
use crate::{
    cublaslt::{COLD_BYTES, Lt, LtKey, LtKind},
    driver::{Event, Stream},
    error::CudaError,
    even,
    kernels::Kernels,
    product::{Output, Product},
    skinny,
    tuned::Tuned,
};
use std::cell::RefCell;

/// What a kernel costs that does not overlap with its neighbours, beside one that does. With 3 us, Llama-3.1-8B at 64 rows took own kernels for
/// products that cuBLASLt computes 1 to 2 us faster; with 0, Qwen2.5-1.5B at 16 rows lost 0.1 ms a step.
const CHAIN_BREAK_MS: f32 = 0.001;

/// A way that takes longer by this factor alone is not tried in a step: it hardly wins there, and trying takes time. A guess, not measured.
const NEAR: f32 = 1.25;

/// More rows than these, even.cu is tried: with fewer skinny.cu is near what the bytes take.
const EVEN_FROM: usize = 32;

/// A shape whose way is to be chosen, and its products.
pub(crate) struct Open<'a, 'p> {
    key: LtKey,
    output: Output,
    same: Vec<&'a Product<'p>>,
    /// What may be fastest: at least one.
    ways: Vec<Way>,
}

/// What a shape's ways are by their own times.
#[derive(Debug, PartialEq)]
pub(crate) struct Alone {
    /// Of those that may be chosen by that.
    pub(crate) fastest: Way,
    /// Of all others those that are not so much slower that their neighbours could make up for it.
    pub(crate) near: Vec<Way>,
}

impl Alone {
    /// Of ways and their times; `pays` is whether a way may be chosen by its time.
    fn of(times: &[(Way, f32)], pays: impl Fn(Way) -> bool) -> Self {
        let paying = times.iter().filter(|(way, _)| pays(*way));
        let &(fastest, least) = paying.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(&times[0]);
        let near = times.iter().filter(|&&(way, time)| way != fastest && time <= least * NEAR);
        Self { fastest, near: near.map(|&(way, _)| way).collect() }
    }
}

impl Open<'_, '_> {
    /// Whether one of these products is of this shape.
    pub(crate) fn is_among(&self, products: &[Product<'_>]) -> bool {
        products.iter().any(|p| (p.key(), p.output) == (self.key, self.output))
    }

    /// Whether this is a product of layers, with others around it.
    pub(crate) fn is_in_layers(&self) -> bool {
        self.output != Output::Logits
    }
}

impl Matmul {
    /// Chooses cuBLASLt's algorithms for these products, then that or one of our own kernels, each by its time alone.
    /// Overwrites the products' outputs.
    pub(crate) fn tune(&self, kernels: &Kernels, stream: &Stream, products: &[Product<'_>]) -> Result<(), CudaError> {
        for open in self.open(stream, products)? {
            let way = self.alone(kernels, stream, &open)?.fastest;
            self.settle(&open, way);
        }
        Ok(())
    }

    /// The shapes of these products of which nothing is known, with the fastest of cuBLASLt's algorithms chosen for each. `products` of one
    /// shape are taken in turn, so that their weights come from memory as they do in a step. Overwrites the products' outputs.
    pub(crate) fn open<'a, 'p>(
        &self,
        stream: &Stream,
        products: &'a [Product<'p>],
    ) -> Result<Vec<Open<'a, 'p>>, CudaError> {
        let Some(lt) = self.lt.as_ref().filter(|_| !self.deterministic) else { return Ok(Vec::new()) };
        let mut all = Vec::new();
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
            all.push(Open { key, output, same, ways });
        }
        Ok(all)
    }

    /// Times all ways where nothing stands around the product.
    pub(crate) fn alone(&self, kernels: &Kernels, stream: &Stream, open: &Open) -> Result<Alone, CudaError> {
        let product = open.same[0];
        let cold = COLD_BYTES.div_ceil(2 * product.matrix.rows * product.matrix.columns);
        let same = &open.same[..cold.min(open.same.len())];
        let mut times = Vec::new();
        for &way in &open.ways {
            let alone = match open.ways.len() {
                1 => 0.0,
                _ => time(stream, same, |p| self.run_as(way, kernels, stream, p))?,
            };
            // Among kernels that start before their neighbours end, another costs more than it does alone.
            let breaks = !matches!(way, Way::Streaming | Way::Skinny(_));
            times.push((way, alone + if breaks { CHAIN_BREAK_MS * timed(same.len()) as f32 } else { 0.0 }));
        }
        let pays = |way: Way| !matches!(way, Way::Skinny(_)) || skinny::pays(product);
        Ok(Alone::of(&times, pays))
    }

    /// Computes these products so, until another way is taken.
    pub(crate) fn take(&self, open: &Open, way: Way) {
        self.know(open.key, open.output, way);
    }

    /// Computes these products so from now on, and at later starts.
    pub(crate) fn settle(&self, open: &Open, way: Way) {
        self.take(open, way);
        self.timed.set(self.timed.get() + 1);
        if let Some(algorithm) = self.lt.as_ref().and_then(|lt| lt.choice(open.key)) {
            let shape = format!("{:?} {:?}", open.key, open.output);
            self.kept.borrow_mut().set(shape, format!("{algorithm} {way:?}"));
        }
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
        if p.m > EVEN_FROM && even::takes_gated(p) {
            ways.push(Way::Even);
        }
        if self.skinny && skinny::takes(p) {
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
            self.know(key, output, way);
        }
        Ok(adopted)
    }

    fn know(&self, key: LtKey, output: Output, way: Way) {
        self.fastest.borrow_mut().insert((key, output), way);
        self.followed.borrow_mut().clear();
    }

    /// Of a shape that was not timed: the way that was fastest with some more rows of the same matrix, as cuBLASLt's algorithm follows theirs.
    pub(super) fn followed(&self, p: &Product<'_>) -> Option<Way> {
        let (key, output) = (p.key(), p.output);
        *self.followed.borrow_mut().entry((key, output)).or_insert_with(|| {
            let fastest = self.fastest.borrow();
            let known = fastest.iter().filter(|((_, of), _)| *of == output).map(|(&(shape, _), &way)| (shape, way));
            key.followed(known).filter(|way| self.ways(p).contains(way))
        })
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

/// A shape, and the products of it.
type OfShape<'a, 'p> = ((LtKey, Output), Vec<&'a Product<'p>>);

/// Products of one shape together, in the order of the first of each.
fn by_shape<'a, 'p>(products: &'a [Product<'p>]) -> Vec<OfShape<'a, 'p>> {
    let mut by_shape: Vec<OfShape<'a, 'p>> = Vec::new();
    for p in products {
        let shape = (p.key(), p.output);
        match by_shape.iter_mut().find(|(known, _)| *known == shape) {
            Some((_, same)) => same.push(p),
            None => by_shape.push((shape, vec![p])),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_much_slower_alone_is_not_tried_in_a_step() {
        let skinny = |groups, splits| Way::Skinny(skinny::Tiling { groups, splits });
        let times = [
            (Way::Library, 1.0),
            (Way::Streaming, 1.3),
            (skinny(1, 2), 0.9),
            (skinny(2, 4), 1.2),
            (skinny(1, 8), 1.26),
        ];
        let all = Alone::of(&times, |_| true);
        assert_eq!(all, Alone { fastest: skinny(1, 2), near: vec![Way::Library] });
        let library = Alone::of(&times, |way| !matches!(way, Way::Skinny(_)));
        assert_eq!(library, Alone { fastest: Way::Library, near: vec![skinny(1, 2), skinny(2, 4)] });
        assert_eq!(Alone::of(&times[..1], |_| true), Alone { fastest: Way::Library, near: Vec::new() });
        assert_eq!(Alone::of(&times[2..3], |_| false).fastest, skinny(1, 2), "where none may be chosen, the first is");
    }
}
