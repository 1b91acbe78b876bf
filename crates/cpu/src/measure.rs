//! The kernels alone, measured on one thread against what the machine can do at most. For `benches/kernels.rs`.

use crate::{
    activations::{ActivationBuffers, Encoding, Encodings},
    kernel::{
        Epilogue, Kernels,
        attention::{AttentionWork, Partial, load_queries, query_elements},
        ceiling::CHAINS,
        integer::IntegerPanel,
    },
    kv::{KvCache, KvDtype, KvLayout},
    memory::Buffer,
    packed::{PackedMatrix, PanelKind},
    simd::{LANES, SimdLevel},
};
use powertrain_model::weights::WeightFormat;

/// One measured kernel.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Which, and at what size.
    pub name: String,
    /// Bytes of weights or KV cache read per second, in billions.
    pub gigabytes: f64,
    /// Multiply-adds per second, in billions; 0 where there are none to speak of.
    pub giga_multiply_adds: f64,
}

/// Input width of the measured matrices: SmolLM2's.
const COLUMNS: usize = 576;
/// Far larger than any cache.
const STREAM_BYTES: usize = 96 << 20;

/// Ceilings first, then the kernels; each is the best of some runs. `None` when the machine lacks the level.
pub fn kernels(level: SimdLevel) -> Option<Vec<Measured>> {
    let kernels = Kernels::of(level)?;
    let mut all = ceilings(&kernels);
    for format in [WeightFormat::Q4_1, WeightFormat::Q8_0, WeightFormat::Q4K, WeightFormat::Q6K] {
        for rows in [1, 4, 8, 32, 256] {
            all.push(matrix(&kernels, format, rows));
        }
    }
    for (dtype, tokens) in [(KvDtype::F16, 1), (KvDtype::Bf16, 1), (KvDtype::F16, 16)] {
        all.push(attention(&kernels, dtype, tokens));
    }
    Some(all)
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

/// Seconds this thread has run: time that others had the core does not count.
#[cfg(unix)]
fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(unix))]
fn thread_seconds() -> f64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed().as_secs_f64()
}

fn ceilings(kernels: &Kernels) -> Vec<Measured> {
    const ROUNDS: usize = 1 << 20;
    let memory = filled(STREAM_BYTES);
    let out = Buffer::<f32>::zeroed(LANES);
    // SAFETY: (all three) the table's level is there; the memory is as large as said.
    let read = best(|| unsafe { (kernels.read)(memory.as_mut_ptr(), STREAM_BYTES / 64, out.as_mut_ptr()) });
    let bytes = [1i8; 4 * CHAINS];
    // SAFETY: as above.
    let dots = best(|| unsafe { (kernels.dots)(bytes.as_ptr(), ROUNDS, out.as_mut_ptr()) });
    let floats = [0.5f32; CHAINS];
    // SAFETY: as above.
    let adds = best(|| unsafe { (kernels.multiply_adds)(floats.as_ptr(), ROUNDS, out.as_mut_ptr()) });
    let instructions = (ROUNDS * CHAINS) as f64 / 1e9;
    let measured = |name: &str, gigabytes, giga_multiply_adds| Measured {
        name: format!("ceiling: {name}"),
        gigabytes,
        giga_multiply_adds,
    };
    vec![
        measured("read from memory", STREAM_BYTES as f64 / 1e9 / read, 0.0),
        measured("8-bit dots", 0.0, instructions * 64.0 / dots),
        measured("f32 multiply-adds", 0.0, instructions * 16.0 / adds),
    ]
}

/// Memory whose pages exist.
fn filled(bytes: usize) -> Buffer<u8> {
    let memory = Buffer::<u8>::zeroed(bytes);
    // SAFETY: as large as said. Small numbers are harmless whatever they are read as.
    unsafe { memory.as_mut_ptr().write_bytes(1, bytes) };
    memory
}

/// A matrix too large for the caches times `rows` rows.
fn matrix(kernels: &Kernels, format: WeightFormat, rows: usize) -> Measured {
    let kind = PanelKind::of(format);
    let PanelKind::Integer(layout) = kind else { unreachable!("only block formats are measured") };
    let panels = STREAM_BYTES / PackedMatrix::describe(kind, LANES, COLUMNS, Encoding::Int8).panel_bytes();
    let panels = if rows > 8 { panels / 16 } else { panels };
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
            let data = matrix.panel(panel).cast_const();
            let panel = IntegerPanel { data, layout, blocks: COLUMNS / 32 };
            // SAFETY: as above; the panel is whole.
            unsafe { (kernels.multiply_integer)(panel, x.int8, rows, out.as_mut_ptr(), LANES, Epilogue::STORE) };
        }
    });
    Measured {
        name: format!("{format} matrix x {rows} rows"),
        gigabytes: matrix.bytes() as f64 / 1e9 / seconds,
        giga_multiply_adds: (matrix.rows * COLUMNS * rows) as f64 / 1e9 / seconds,
    }
}

/// SmolLM2's attention over a context of 4096, for every KV head of 30 layers' worth of cache.
fn attention(kernels: &Kernels, dtype: KvDtype, tokens: usize) -> Measured {
    const CONTEXT: usize = 4096;
    const GROUP: usize = 3;
    let kv = KvLayout { dtype, block_size: 16, kv_heads: 45, head_dim: 64 };
    let cache = KvCache::new(std::iter::once(kv), CONTEXT / kv.block_size);
    let layer = cache.layer(0).1;
    // SAFETY: as large as said; zero bytes are zeros, but pages must exist.
    unsafe { layer.write_bytes(0, cache.bytes()) };
    let blocks: Vec<u32> = (0..(CONTEXT / kv.block_size) as u32).collect();
    let vectors = tokens * GROUP;
    let rows = vec![0.1f32; vectors * kv.head_dim];
    let queries = Buffer::<f32>::zeroed(query_elements(vectors, kv.head_dim));
    let elements = Partial::elements(vectors, kv.value_width());
    let (part, total) = (Buffer::<f32>::zeroed(elements), Buffer::<f32>::zeroed(elements));
    // SAFETY: the buffers were sized for these vectors.
    unsafe {
        load_queries(rows.as_ptr(), GROUP * kv.head_dim, tokens, GROUP, kv.head_dim, queries.as_mut_ptr());
    }
    let seconds = best(|| {
        for kv_head in 0..kv.kv_heads {
            let work = AttentionWork {
                queries: queries.as_mut_ptr(),
                group: GROUP,
                tokens,
                first_position: CONTEXT - tokens,
                window: usize::MAX,
                scale: 0.125,
                softcap: None,
                kv,
                layer,
                kv_head,
                blocks: blocks.as_ptr(),
            };
            // SAFETY: the table's level is there; cache, table and partials are whole.
            unsafe {
                let part = Partial::at(part.as_mut_ptr(), vectors, kv.value_width());
                let total = Partial::at(total.as_mut_ptr(), vectors, kv.value_width());
                total.clear(vectors, kv.value_width());
                for span in work.spans() {
                    (kernels.attend)(&work, work.span(span), part);
                    (kernels.merge)(&work, total, part);
                }
            }
        }
    });
    Measured {
        name: format!("attention over {CONTEXT}, {} x {tokens} tokens", dtype.name()),
        gigabytes: cache.bytes() as f64 / 1e9 / seconds,
        giga_multiply_adds: (kv.kv_heads * CONTEXT * vectors * kv.head_dim * 2) as f64 / 1e9 / seconds,
    }
}
