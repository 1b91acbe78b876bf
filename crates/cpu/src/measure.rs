//! The kernels alone, measured on one thread against what the machine can do at most. For `benches/kernels.rs`.

mod rows;

use crate::{
    activations::{ActivationBuffers, Encoding, Encodings},
    kernel::{
        Epilogue, Kernels,
        attention::{AttentionWork, NextWork, Partial, QueryRows, query_elements},
        ceiling::CHAINS,
        fixed_point::FixedPointPanel,
        integer::IntegerPanel,
    },
    kv::{KvCache, KvDtype, KvLayout},
    memory::Buffer,
    packed::{PackedMatrix, PanelKind},
    profile::thread_seconds,
    simd::{LANES, SimdLevel},
};
use powertrain_model::weights::WeightFormat;

/// One measured kernel.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Which, and at what size.
    pub name: String,
    /// Billions of bytes per second: of weights or KV cache read, or of a row's elements read and written.
    pub gigabytes: f64,
    /// Billions of operations per second, a multiply-add counting as two; 0 where there are none to speak of.
    pub giga_operations: f64,
    /// The share of what this machine can do at most that it reaches, of memory's speed or of the arithmetic's, whichever is more;
    /// `None` for ceilings themselves and for what works in the caches.
    pub of_ceiling: Option<f64>,
}

/// Input width of the measured matrices: SmolLM2's.
const COLUMNS: usize = 576;
/// Far larger than any cache.
const STREAM_BYTES: usize = 96 << 20;

/// What bounds a kernel's arithmetic.
#[derive(Clone, Copy)]
enum Bound {
    Dots,
    Bf16Dots,
    MultiplyAdds,
}

/// The machine's ceilings, in the units of [`Measured`].
struct Ceilings {
    read: f64,
    dots: f64,
    /// 0 where the level has none: nothing is bound by them there.
    bf16_dots: f64,
    multiply_adds: f64,
}

impl Ceilings {
    /// A kernel that took `seconds` for so many bytes and multiply-adds.
    fn judge(&self, name: String, bound: Bound, bytes: usize, multiply_adds: usize, seconds: f64) -> Measured {
        let gigabytes = bytes as f64 / 1e9 / seconds;
        let giga_operations = 2.0 * multiply_adds as f64 / 1e9 / seconds;
        let most = match bound {
            Bound::Dots => self.dots,
            Bound::Bf16Dots => self.bf16_dots,
            Bound::MultiplyAdds => self.multiply_adds,
        };
        let of_ceiling = Some((gigabytes / self.read).max(giga_operations / most));
        Measured { name, gigabytes, giga_operations, of_ceiling }
    }
}

/// Which kernels to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Matrices times rows.
    Matrices,
    /// Attention.
    Attention,
    /// What happens to single rows.
    Rows,
}

impl Group {
    /// All.
    pub const ALL: [Self; 3] = [Self::Matrices, Self::Attention, Self::Rows];

    /// The word that names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Matrices => "matrices",
            Self::Attention => "attention",
            Self::Rows => "rows",
        }
    }
}

/// Ceilings first, then the kernels of some groups; each is the best of some runs. `None` when the machine lacks the level.
pub fn kernels(level: SimdLevel, groups: &[Group]) -> Option<Vec<Measured>> {
    let kernels = Kernels::of(level)?;
    let ceilings = ceilings(&kernels);
    let ceiling = |name: &str, gigabytes, giga_operations| Measured {
        name: format!("ceiling: {name}"),
        gigabytes,
        giga_operations,
        of_ceiling: None,
    };
    let mut all = vec![
        ceiling("read from memory", ceilings.read, 0.0),
        ceiling("8-bit dots", 0.0, ceilings.dots),
        ceiling("bf16 dots", 0.0, ceilings.bf16_dots),
        ceiling("f32 multiply-adds", 0.0, ceilings.multiply_adds),
    ];
    if groups.contains(&Group::Matrices) {
        all.extend(matrices(&kernels, &ceilings));
    }
    if groups.contains(&Group::Attention) {
        for (dtype, tokens) in
            [(KvDtype::Int8, 1), (KvDtype::F16, 1), (KvDtype::Bf16, 1), (KvDtype::Int8, 16), (KvDtype::F16, 16)]
        {
            // More than any cache holds, then what the L2 cache does.
            for (context, kv_heads) in [(4096, 180), (512, 3)] {
                all.push(attention(&kernels, &ceilings, dtype, tokens, context, kv_heads));
            }
        }
    }
    if groups.contains(&Group::Rows) {
        all.extend(rows::measure(&kernels));
    }
    Some(all)
}

fn matrices(kernels: &Kernels, ceilings: &Ceilings) -> Vec<Measured> {
    use WeightFormat::{BF16, F16, F32, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let mut all = Vec::new();
    for format in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
        for rows in [1, 4, 8, 32, 256] {
            all.push(integer_matrix(kernels, ceilings, format, rows));
        }
    }
    for format in [BF16, F16, F32] {
        for rows in [1, 8, 256] {
            all.push(float_matrix(kernels, ceilings, format, rows));
        }
    }
    all
}

/// Seconds of the fastest of some runs.
fn best(mut run: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..7 {
        let start = thread_seconds();
        run();
        best = best.min(thread_seconds() - start);
    }
    best
}

fn ceilings(kernels: &Kernels) -> Ceilings {
    const ROUNDS: usize = 1 << 20;
    let memory = filled(STREAM_BYTES);
    let out = Buffer::<f32>::zeroed(LANES);
    // SAFETY: (all four) the table's level is there; the memory is as large as said.
    let read = best(|| unsafe { (kernels.read)(memory.as_mut_ptr(), STREAM_BYTES / 64, out.as_mut_ptr()) });
    let bytes = [1i8; 4 * CHAINS];
    // SAFETY: as above.
    let dots = best(|| unsafe { (kernels.dots)(bytes.as_ptr(), ROUNDS, out.as_mut_ptr()) });
    let halves = [0x3f80u16; 2 * CHAINS];
    // SAFETY: as above.
    let bf16_dots = || best(|| unsafe { (kernels.bf16_dots)(halves.as_ptr(), ROUNDS, out.as_mut_ptr()) });
    let floats = [0.5f32; CHAINS];
    // SAFETY: as above.
    let adds = best(|| unsafe { (kernels.multiply_adds)(floats.as_ptr(), ROUNDS, out.as_mut_ptr()) });
    let instructions = (ROUNDS * CHAINS) as f64 / 1e9;
    Ceilings {
        read: STREAM_BYTES as f64 / 1e9 / read,
        dots: instructions * 128.0 / dots,
        bf16_dots: if kernels.has_bf16_dot { instructions * 64.0 / bf16_dots() } else { 0.0 },
        multiply_adds: instructions * 32.0 / adds,
    }
}

/// Memory whose pages exist.
fn filled(bytes: usize) -> Buffer<u8> {
    let memory = Buffer::<u8>::zeroed(bytes);
    // SAFETY: as large as said. Small numbers are harmless whatever they are read as.
    unsafe { memory.as_mut_ptr().write_bytes(1, bytes) };
    memory
}

/// An integer matrix, for few rows one too large for the caches, times `rows` rows.
fn integer_matrix(kernels: &Kernels, ceilings: &Ceilings, format: WeightFormat, rows: usize) -> Measured {
    let kind = PanelKind::for_int8(format);
    let panels = STREAM_BYTES / PackedMatrix::describe(kind, LANES, COLUMNS, Encoding::Int8).panel_bytes();
    let panels = if rows > 32 { panels / 16 } else { panels };
    let mut matrix = PackedMatrix::describe(kind, panels * LANES, COLUMNS, Encoding::Int8);
    let memory = filled(matrix.bytes());
    matrix.data = memory.as_mut_ptr();
    let buffers = ActivationBuffers::new(rows, COLUMNS, Encodings::of([Encoding::Int8]));
    let x = buffers.rows_of(COLUMNS, Encodings::of([Encoding::Int8]));
    let row: Vec<f32> = (0..COLUMNS).map(|i| (i % 17) as f32 - 8.0).collect();
    let out = Buffer::<f32>::zeroed(rows * LANES);
    for index in 0..rows {
        // SAFETY: the table's level is there; the buffers have these rows.
        unsafe { (kernels.encode_row)(x, index, row.as_ptr()) };
    }
    let seconds = best(|| {
        for panel in 0..panels {
            let (data, blocks, to) = (matrix.panel(panel).cast_const(), COLUMNS / 32, out.as_mut_ptr());
            // SAFETY: as above; the panel is whole.
            unsafe {
                if let PanelKind::Integer(layout) = kind {
                    let panel = IntegerPanel { data, layout, blocks };
                    (kernels.multiply_integer)(panel, x.int8, rows, to, LANES, Epilogue::STORE);
                } else {
                    let panel = FixedPointPanel { data, blocks };
                    (kernels.multiply_fixed_point)(panel, x.int8, rows, to, LANES, Epilogue::STORE);
                }
            }
        }
    });
    let name = format!("{format} matrix x {rows} rows");
    ceilings.judge(name, Bound::Dots, matrix.bytes(), matrix.rows * COLUMNS * rows, seconds)
}

/// As [`integer_matrix`], of floats. 16 bits are read as bf16 dots where the level has them, else expanded.
fn float_matrix(kernels: &Kernels, ceilings: &Ceilings, format: WeightFormat, rows: usize) -> Measured {
    let kind = PanelKind::of(format);
    let encoding = if kind == PanelKind::Bf16 && kernels.has_bf16_dot { Encoding::Bf16 } else { Encoding::F32 };
    let panels = STREAM_BYTES / PackedMatrix::describe(kind, LANES, COLUMNS, encoding).panel_bytes();
    let panels = if rows > 32 { panels / 16 } else { panels };
    let mut matrix = PackedMatrix::describe(kind, panels * LANES, COLUMNS, encoding);
    let memory = filled(matrix.bytes());
    matrix.data = memory.as_mut_ptr();
    let encodings = Encodings::of([encoding]);
    let buffers = ActivationBuffers::new(rows, COLUMNS, encodings);
    let x = buffers.rows_of(COLUMNS, encodings);
    let row: Vec<f32> = (0..COLUMNS).map(|i| (i % 17) as f32 - 8.0).collect();
    let (out, expanded) = (Buffer::<f32>::zeroed(rows * LANES), Buffer::<f32>::zeroed(COLUMNS * LANES));
    for index in 0..rows {
        // SAFETY: the table's level is there; the buffers have these rows.
        unsafe { (kernels.encode_row)(x, index, row.as_ptr()) };
    }
    let (to, wide) = (out.as_mut_ptr(), expanded.as_mut_ptr());
    let seconds = best(|| {
        for panel in 0..panels {
            let data = matrix.panel(panel).cast_const();
            // SAFETY: as above; the panel is whole, and the expanded one has room for it.
            unsafe {
                if encoding == Encoding::Bf16 {
                    (kernels.multiply_bf16)(data.cast(), COLUMNS / 2, x.bf16, rows, to, LANES, Epilogue::STORE);
                    continue;
                }
                match kind {
                    PanelKind::F16 => (kernels.expand_f16)(data.cast(), COLUMNS, wide),
                    PanelKind::Bf16 => (kernels.expand_bf16)(data.cast(), COLUMNS / 2, wide),
                    _ => {}
                }
                let weights = if kind == PanelKind::F32 { data.cast() } else { wide.cast_const() };
                (kernels.multiply_f32)(weights, COLUMNS, x.f32, rows, to, LANES, Epilogue::STORE);
            }
        }
    });
    let bound = if encoding == Encoding::Bf16 { Bound::Bf16Dots } else { Bound::MultiplyAdds };
    let name = format!("{format} matrix x {rows} rows");
    ceilings.judge(name, bound, matrix.bytes(), matrix.rows * COLUMNS * rows, seconds)
}

/// SmolLM2's attention over `context` positions, for every one of some KV heads.
fn attention(
    kernels: &Kernels,
    ceilings: &Ceilings,
    dtype: KvDtype,
    tokens: usize,
    context: usize,
    kv_heads: usize,
) -> Measured {
    const GROUP: usize = 3;
    let kv = KvLayout { dtype, block_size: 16, kv_heads, head_dim: 64 };
    let cache = KvCache::new(std::iter::once(kv), context / kv.block_size);
    let rounds = (STREAM_BYTES / cache.bytes()).clamp(1, 32);
    let layer = cache.layer(0).1;
    // SAFETY: as large as said; zero bytes are zeros, but pages must exist.
    unsafe { layer.write_bytes(0, cache.bytes()) };
    let blocks: Vec<u32> = (0..(context / kv.block_size) as u32).collect();
    let vectors = tokens * GROUP;
    let rows = vec![0.1f32; vectors * kv.head_dim];
    let queries = Buffer::<f32>::zeroed(query_elements(vectors, kv.head_dim));
    let elements = Partial::elements(vectors, kv.value_width());
    let (part, total) = (Buffer::<f32>::zeroed(elements), Buffer::<f32>::zeroed(elements));
    // SAFETY: the buffers were sized for these vectors.
    unsafe {
        let (from, stride) = (rows.as_ptr(), GROUP * kv.head_dim);
        let rows = QueryRows { from, stride, tokens, group: GROUP, head_dim: kv.head_dim };
        (kernels.load_queries)(rows, dtype, queries.as_mut_ptr());
    }
    let seconds = best(|| {
        for kv_head in (0..rounds).flat_map(|_| 0..kv.kv_heads) {
            let mut work = AttentionWork {
                queries: queries.as_mut_ptr(),
                group: GROUP,
                tokens,
                first_position: context - tokens,
                window: usize::MAX,
                scale: 0.125,
                softcap: None,
                kv,
                layer,
                kv_head,
                blocks: blocks.as_ptr(),
                next: None,
            };
            // SAFETY: the table's level is there; cache, table and partials are whole.
            unsafe {
                let part = Partial::at(part.as_mut_ptr(), vectors, kv.value_width());
                let total = Partial::at(total.as_mut_ptr(), vectors, kv.value_width());
                total.clear(vectors, kv.value_width());
                for span in work.spans() {
                    let end = work.span(span).end;
                    let (kv_head, start) = if end < context { (kv_head, end) } else { (kv_head + 1, 0) };
                    let next = NextWork { blocks: blocks.as_ptr(), kv_head, positions: start..context };
                    work.next = (kv_head < kv.kv_heads).then_some(next);
                    (kernels.attend)(&work, work.span(span), part);
                    (kernels.merge)(&work, total, part);
                }
            }
        }
    });
    let name = format!("attention over {context}, {} x {tokens} tokens", dtype.name());
    let bound = if dtype == KvDtype::Int8 { Bound::Dots } else { Bound::MultiplyAdds };
    let multiply_adds = rounds * kv.kv_heads * context * vectors * kv.head_dim * 2;
    ceilings.judge(name, bound, rounds * cache.bytes(), multiply_adds, seconds)
}
