//! Every level's kernels against the scalar ones, bit for bit, on odd shapes; the scalar ones against plain arithmetic.

use super::*;
use crate::{
    activations::{ActivationBuffers, Encoding, Encodings, TILE_ROWS},
    kv::KvCache,
    memory::Buffer,
    packed::{FACTOR_BLOCKS, FACTOR_BYTES, IntegerLayout, PackedMatrix, PanelKind},
    simd::{LANES, scalar::f32_to_f16},
};
use powertrain_model::{spec::Activation, weights::WeightFormat};

const SEED: u64 = 97;

/// Numbers that are the same in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(super) fn float(&mut self) -> f32 {
        (self.bits() % 2_000_001) as f32 / 1_000_000.0 - 1.0
    }
}

fn levels() -> Vec<Kernels> {
    SimdLevel::ALL.into_iter().filter_map(Kernels::of).collect()
}

fn scalar() -> Kernels {
    Kernels::of(SimdLevel::Scalar).unwrap()
}

/// A panel of random quants with scales around a hundredth.
fn random_panel(random: &mut Random, layout: IntegerLayout, columns: usize) -> Buffer<u8> {
    let bytes = layout.panel_bytes(columns);
    let panel = Buffer::<u8>::zeroed(bytes);
    // SAFETY: the buffer is this long and ours alone.
    let mut out = unsafe { std::slice::from_raw_parts_mut(panel.as_mut_ptr(), bytes) };
    let halves = |out: &mut [u8], random: &mut Random| {
        for half in out.as_chunks_mut::<2>().0 {
            *half = f32_to_f16(random.float() * 0.01).to_le_bytes();
        }
    };
    for block in 0..columns / 32 {
        if layout.factored && block % FACTOR_BLOCKS == 0 {
            let factors = out.split_off_mut(..FACTOR_BYTES).unwrap();
            halves(factors, random);
        }
        let quants = out.split_off_mut(..layout.quant_bytes()).unwrap();
        quants.fill_with(|| random.bits() as u8);
        let scales = out.split_off_mut(..layout.block_bytes() - layout.quant_bytes()).unwrap();
        if layout.factored {
            scales.fill_with(|| (random.bits() % 127) as u8 ^ 0xc0);
        } else {
            halves(scales, random);
        }
    }
    assert!(out.is_empty());
    panel
}

/// The rows in 8 bits, by the scalar kernel.
fn encode(kernels: &Kernels, rows: &[Vec<f32>], columns: usize) -> (ActivationBuffers, Activations) {
    let int8 = Encodings::of([Encoding::Int8]);
    let buffers = ActivationBuffers::new(rows.len(), columns, int8);
    let x = buffers.rows_of(columns, int8);
    for (index, row) in rows.iter().enumerate() {
        // SAFETY: the level is there; the buffers have the rows.
        unsafe { (kernels.encode_row)(x, index, row.as_ptr()) };
    }
    (buffers, x)
}

#[test]
fn integer_products_agree_on_all_levels_and_with_arithmetic() {
    let mut random = Random(SEED);
    for format in WeightFormat::ALL {
        // Q4_1 is multiplied in fixed point: its tests are beside that kernel.
        let PanelKind::Integer(layout) = PanelKind::for_int8(format) else { continue };
        for columns in [32, 576, 640] {
            let panel = random_panel(&mut random, layout, columns);
            let data = panel.as_mut_ptr().cast_const();
            let integer = IntegerPanel { data, layout, blocks: columns / 32 };
            let expanded = Buffer::<f32>::zeroed(columns * LANES);
            // SAFETY: the buffer has room.
            unsafe { (scalar().expand_integer)(integer, expanded.as_mut_ptr()) };
            let all: Vec<Vec<f32>> = (0..70).map(|_| (0..columns).map(|_| random.float()).collect()).collect();
            for rows in [1, 2, 3, 4, 5, 7, 8, 9, 13, 31, 70] {
                let product = |kernels: &Kernels| {
                    let (_buffers, x) = encode(kernels, &all[..rows], columns);
                    let out = Buffer::<f32>::zeroed(rows * LANES);
                    let to = out.as_mut_ptr();
                    // SAFETY: panel, activations and output are as large as said.
                    unsafe {
                        (kernels.multiply_integer)(integer, x.int8, rows, to, LANES, Epilogue::STORE);
                        std::slice::from_raw_parts(to, rows * LANES).to_vec()
                    }
                };
                let reference = product(&scalar());
                for kernels in levels() {
                    let same = product(&kernels).iter().zip(&reference).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{format} {columns} columns, {rows} rows, {}, seed {SEED}", kernels.level);
                }
                // What the dequantised weights give with the exact activations: 8 bits of them are lost.
                for (row, x) in all[..rows].iter().enumerate() {
                    for lane in 0..LANES {
                        // SAFETY: inside the expanded panel.
                        let weight = |column: usize| unsafe { *expanded.as_mut_ptr().add(column * LANES + lane) };
                        let exact: f64 = (0..columns).map(|c| f64::from(weight(c)) * f64::from(x[c])).sum();
                        let size: f64 = (0..columns).map(|c| f64::from(weight(c)).abs()).sum();
                        let error = (exact - f64::from(reference[row * LANES + lane])).abs();
                        assert!(error <= size / 250.0, "{format} row {row} lane {lane}: off by {error} of {size}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_panel_ends_where_its_matrix_says() {
    for format in WeightFormat::ALL {
        let kind = PanelKind::of(format);
        let matrix = PackedMatrix::describe(kind, 17, 576, Encoding::F32);
        assert_eq!(matrix.panels(), 2);
        assert!(matrix.panel_bytes().is_multiple_of(64));
        if let PanelKind::Integer(layout) = kind {
            assert!(matrix.panel_bytes() >= 18 * layout.block_bytes());
        }
    }
}

#[test]
fn rows_of_floats_agree_on_all_levels() {
    let mut random = Random(SEED);
    for len in [16, 48, 576] {
        let x: Vec<f32> = (0..len).map(|_| random.float() * 30.0).collect();
        let weight: Vec<f32> = (0..len).map(|_| random.float()).collect();
        let run = |kernels: &Kernels| {
            let mut all = Vec::new();
            let mut out = vec![0.0f32; len];
            // SAFETY: all hold `len` elements, a multiple of 16.
            unsafe {
                (kernels.norm)(RowNorm { weight: weight.as_ptr(), len, epsilon: 1e-5 }, x.as_ptr(), out.as_mut_ptr());
                all.extend_from_slice(&out);
                for activation in [Activation::Silu, Activation::GeluTanh] {
                    (kernels.gate)(Gate(activation), x.as_ptr(), weight.as_ptr(), out.as_mut_ptr(), len);
                    all.extend_from_slice(&out);
                }
                (kernels.soft_cap)(out.as_mut_ptr(), len, 3.0);
            }
            all.extend_from_slice(&out);
            all.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let reference = run(&scalar());
        for kernels in levels() {
            assert!(run(&kernels) == reference, "{} {len} elements, seed {SEED}", kernels.level);
        }
    }
}

#[test]
fn gates_are_what_their_names_say() {
    let x: Vec<f32> = (-160..160).map(|i| i as f32 / 10.0).collect();
    let ones = vec![1.0f32; x.len()];
    let mut out = vec![0.0f32; x.len()];
    for activation in [Activation::Silu, Activation::GeluTanh] {
        // SAFETY: all hold 320 elements.
        unsafe { (scalar().gate)(Gate(activation), x.as_ptr(), ones.as_ptr(), out.as_mut_ptr(), x.len()) };
        for (&x, &got) in x.iter().zip(&out) {
            let x = f64::from(x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            let wanted = match activation {
                Activation::Silu => x / (1.0 + (-x).exp()),
                Activation::GeluTanh => 0.5 * x * (1.0 + inner.tanh()),
            };
            assert!((f64::from(got) - wanted).abs() < 1e-6 * (1.0 + wanted.abs()), "{activation:?}({x}) = {got}");
        }
    }
}

#[test]
fn gated_rows_are_encoded_as_gate_and_encoding_would() {
    let mut random = Random(SEED);
    for kernels in levels() {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            for (count, first_row) in [(1, 0), (2, 8), (3, 5), (16, 0), (9, 8)] {
                let len = count * 32;
                let mut numbers = || -> Vec<f32> { (0..len).map(|_| random.float() * 9.0).collect() };
                let (gates, ups, mut gated) = (numbers(), numbers(), vec![0.0f32; len]);
                let int8 = Encodings::of([Encoding::Int8]);
                let (got, wanted) = (ActivationBuffers::new(32, 64, int8), ActivationBuffers::new(32, 32, int8));
                let (to, reference) = (got.rows_of(64, int8), wanted.rows_of(32, int8));
                let rows = GateRows { gates: gates.as_ptr(), ups: ups.as_ptr(), count, first_row, block: 1 };
                // SAFETY: the buffers hold 32 rows, of two blocks and of one.
                unsafe {
                    (kernels.encode_gated)(Gate(activation), rows, to);
                    (scalar().gate)(Gate(activation), gates.as_ptr(), ups.as_ptr(), gated.as_mut_ptr(), len);
                    for row in 0..count {
                        (scalar().encode_row)(reference, first_row + row, gated.as_ptr().add(row * 32));
                    }
                    for tile in 0..4 {
                        let (got, wanted) = (&*to.int8.add(2 * tile + 1), &*reference.int8.add(tile));
                        let name = format!("{activation:?}, {count} rows from {first_row}, {}", kernels.level);
                        assert_eq!(got.q, wanted.q, "{name}, seed {SEED}");
                        assert_eq!(got.scale.map(f32::to_bits), wanted.scale.map(f32::to_bits), "{name}");
                        assert_eq!((got.zero, got.zero_first), (wanted.zero, wanted.zero_first), "{name}");
                        assert_eq!(got.sum.map(f32::to_bits), wanted.sum.map(f32::to_bits), "{name}");
                    }
                }
            }
        }
    }
}

#[test]
fn exponentials_are_exact_where_attention_needs_it() {
    use crate::simd::scalar::Scalar;
    let exp = |x: f32| {
        // SAFETY: plain Rust.
        unsafe { exponential::exp::<Scalar>([x; LANES])[0] }
    };
    assert_eq!(exp(0.0).to_bits(), 1.0f32.to_bits());
    assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
    assert!(exp(f32::NAN).is_nan());
    for i in -8700..=8700 {
        let x = i as f32 / 100.0;
        let wanted = f64::from(x).exp();
        assert!((f64::from(exp(x)) - wanted).abs() <= 3e-7 * wanted, "e^{x}");
    }
}

#[test]
fn damage_is_not_rounded_away() {
    for kernels in levels() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 5, 17, 31] {
                let mut row = vec![0.25f32; 32];
                row[place] = bad;
                let (_buffers, x) = encode(&kernels, &[row], 32);
                // SAFETY: the one block of one row.
                let block = unsafe { &*x.int8 };
                assert!(!block.scale[0].is_finite(), "{} {bad} at {place}", kernels.level);
                assert!(block.scale[1..TILE_ROWS].iter().all(|&scale| scale == 0.0));
            }
        }
    }
}

/// One KV head's cache with `context` random positions; the first has keys and values much larger than the others'.
struct Context {
    kv: KvLayout,
    cache: KvCache,
    blocks: Vec<u32>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Context {
    fn new(random: &mut Random, kernels: &Kernels, dtype: KvDtype, head_dim: usize, context: usize) -> Self {
        let kv = KvLayout { dtype, block_size: 16, kv_heads: 2, head_dim };
        let count = context.div_ceil(16);
        let cache = KvCache::new(std::iter::once(kv), count);
        // Backwards: a table is not the identity.
        let blocks: Vec<u32> = (0..count as u32).rev().collect();
        let mut rows = |large: f32| -> Vec<Vec<f32>> {
            let row = |position| if position == 0 { large } else { 1.0 };
            (0..context).map(|at| (0..head_dim).map(|_| random.float() * row(at)).collect()).collect()
        };
        let (keys, values) = (rows(4.0), rows(20.0));
        for position in 0..context {
            let (block, in_block) = (blocks[position / 16] as usize, position % 16);
            let (key, value) = (keys[position].as_ptr(), values[position].as_ptr());
            let new = attention::NewKeyValue { block, in_block, head: 1, key, value };
            // SAFETY: the cache has the block, the vectors their elements.
            unsafe { (kernels.store_key_value)(&kv, cache.layer(0).1, new) };
        }
        Self { kv, cache, blocks, keys, values }
    }

    /// The outputs of the last `tokens` positions' queries, `group` to each.
    fn attend(&self, kernels: &Kernels, queries: &[f32], tokens: usize, group: usize, window: usize) -> Vec<f32> {
        let (vectors, width) = (tokens * group, self.kv.value_width());
        let (head_dim, stride) = (self.kv.head_dim, group * self.kv.head_dim);
        let memory = Buffer::<f32>::zeroed(attention::query_elements(vectors, head_dim));
        let elements = Partial::elements(vectors, width);
        let (part, total) = (Buffer::<f32>::zeroed(elements), Buffer::<f32>::zeroed(elements));
        let out = Buffer::<f32>::zeroed(tokens * stride + LANES);
        let work = AttentionWork {
            queries: memory.as_mut_ptr(),
            group,
            tokens,
            first_position: self.keys.len() - tokens,
            window,
            scale: 0.3,
            softcap: None,
            kv: self.kv,
            layer: self.cache.layer(0).1,
            kv_head: 1,
            blocks: self.blocks.as_ptr(),
            next: None,
        };
        // SAFETY: the buffers were sized for these vectors.
        unsafe {
            let rows = QueryRows { from: queries.as_ptr(), stride, tokens, group, head_dim };
            (kernels.load_queries)(rows, self.kv.dtype, memory.as_mut_ptr());
            let part = Partial::at(part.as_mut_ptr(), vectors, width);
            let total = Partial::at(total.as_mut_ptr(), vectors, width);
            total.clear(vectors, width);
            for span in work.spans() {
                (kernels.attend)(&work, work.span(span), part);
                (kernels.merge)(&work, total, part);
            }
            (kernels.finish)(&work, total, out.as_mut_ptr(), stride);
            std::slice::from_raw_parts(out.as_mut_ptr(), tokens * stride).to_vec()
        }
    }

    /// The same in f64 by the definition, from the rows as they were given.
    fn exact(&self, queries: &[f32], tokens: usize, group: usize, window: usize) -> Vec<f64> {
        let head_dim = self.kv.head_dim;
        let mut out = Vec::new();
        for (vector, query) in queries.chunks_exact(head_dim).enumerate().take(tokens * group) {
            let position = self.keys.len() - tokens + vector / group;
            let seen = (position + 1).saturating_sub(window)..position + 1;
            let score = |key: &Vec<f32>| -> f64 {
                0.3 * key.iter().zip(query).map(|(&k, &q)| f64::from(k) * f64::from(q)).sum::<f64>()
            };
            let scores: Vec<f64> = self.keys[seen.clone()].iter().map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for d in 0..head_dim {
                let values = self.values[seen.clone()].iter().map(|value| f64::from(value[d]));
                out.push(values.zip(&weights).map(|(value, weight)| value * weight).sum::<f64>() / sum);
            }
        }
        out
    }
}

#[test]
fn attention_agrees_on_all_levels_and_with_the_definition() {
    let mut random = Random(SEED);
    for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16, KvDtype::Int8] {
        // What the element type loses of values up to 20.
        let tolerance = match dtype {
            KvDtype::F32 => 1e-5,
            KvDtype::F16 => 0.01,
            KvDtype::Bf16 => 0.08,
            KvDtype::Int8 => 0.1,
        };
        for (head_dim, context, tokens, group, window) in [
            (64, 333, 1, 3, usize::MAX),
            (64, 130, 16, 3, 70),
            (24, 70, 5, 1, usize::MAX),
            (80, 17, 3, 2, 9),
            (6, 40, 2, 4, 33),
        ] {
            let queries: Vec<f32> = (0..tokens * group * head_dim).map(|_| random.float()).collect();
            let state = random.0;
            let run = |kernels: &Kernels| {
                let context = Context::new(&mut Random(state), kernels, dtype, head_dim, context);
                (context.attend(kernels, &queries, tokens, group, window), context)
            };
            let (reference, context) = run(&scalar());
            let name = format!("{} of {head_dim}, {tokens} x {group} queries, seed {SEED}", dtype.name());
            for kernels in levels() {
                let same = run(&kernels).0.iter().zip(&reference).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{name}: {} differs", kernels.level);
            }
            let exact = context.exact(&queries, tokens, group, window);
            assert_eq!(exact.len(), reference.len());
            for (&got, wanted) in reference.iter().zip(exact) {
                let error = (f64::from(got) - wanted).abs();
                assert!(error < tolerance, "{name}: {got} for {wanted}");
            }
        }
    }
}

#[test]
fn a_query_does_not_see_what_others_of_its_call_see() {
    // Alone and as one of sixteen, with its last chunk cut at different places: the same bits.
    let mut random = Random(SEED);
    for dtype in [KvDtype::F16, KvDtype::Int8] {
        for kernels in levels() {
            let context = Context::new(&mut random, &kernels, dtype, 64, 290);
            let queries: Vec<f32> = (0..16 * 3 * 64).map(|_| random.float()).collect();
            let together = context.attend(&kernels, &queries, 16, 3, usize::MAX);
            let alone = context.attend(&kernels, &queries[15 * 192..], 1, 3, usize::MAX);
            let same = together[15 * 192..].iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{} {}, seed {SEED}", dtype.name(), kernels.level);
        }
    }
}

#[test]
fn the_softmax_exponential_is_exact_where_attention_needs_it() {
    use crate::simd::scalar::Scalar;
    let exp = |x: f32| {
        // SAFETY: plain Rust.
        unsafe { exponential::exp_below_zero::<Scalar>([x; LANES])[0] }
    };
    assert_eq!(exp(0.0).to_bits(), 1.0f32.to_bits());
    for nothing in [f32::NEG_INFINITY, -1.0e30, -86.1] {
        assert_eq!(exp(nothing).to_bits(), 0, "e^{nothing}");
    }
    assert!(exp(f32::NAN).is_nan());
    for i in -8600..=0 {
        let x = i as f32 / 100.0;
        let wanted = f64::from(x).exp();
        let error = (f64::from(exp(x)) - wanted).abs();
        assert!(error <= 3e-6 * wanted && error <= 1.2e-7, "e^{x} is off by {error} of {wanted}");
    }
}
