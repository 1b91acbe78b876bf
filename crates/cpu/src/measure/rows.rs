//! The kernels of single rows, at SmolLM2's widths, in the caches.

use super::{COLUMNS, Measured, best};
use crate::{
    activations::{ActivationBuffers, Encoding, Encodings, TILE_ROWS},
    kernel::{
        Kernels,
        attention::{NewKeyValue, QueryRows, query_elements},
        encode::GateRows,
        rows::{Gate, Rotation, RowNorm},
    },
    kv::{KvCache, KvDtype, KvLayout},
    memory::Buffer,
    simd::LANES,
};
use powertrain_model::spec::Activation;

const HIDDEN: usize = 1536;
const HEAD: usize = 64;
const REPEATS: usize = 4096;

/// Nanoseconds say more of these than a share of a ceiling; both sides of an element's way are counted in the bytes.
pub(super) fn measure(kernels: &Kernels) -> Vec<Measured> {
    let row = Buffer::<f32>::zeroed(HIDDEN);
    let (to, ups) = (Buffer::<f32>::zeroed(HIDDEN), Buffer::<f32>::zeroed(HIDDEN));
    for i in 0..HIDDEN {
        // SAFETY: inside the buffers. Rotated by an eighth again and again, a head keeps its length.
        unsafe {
            *row.as_mut_ptr().add(i) = (i % 23) as f32 * 0.1 - 1.1;
            *ups.as_mut_ptr().add(i) = std::f32::consts::FRAC_1_SQRT_2;
        }
    }
    let (from, to, ups) = (row.as_mut_ptr(), to.as_mut_ptr(), ups.as_mut_ptr());
    let int8 = Encodings::of([Encoding::Int8]);
    let buffers = ActivationBuffers::new(TILE_ROWS, HIDDEN, int8);
    let (norm, rotation) =
        (RowNorm { weight: from, len: COLUMNS, epsilon: 1e-5 }, Rotation { cosines: ups, sines: ups, pairs: HEAD / 2 });
    let kv = KvLayout { dtype: KvDtype::Int8, block_size: LANES, kv_heads: 1, head_dim: HEAD };
    let cache = KvCache::new(std::iter::once(kv), 1);
    let queries = Buffer::<f32>::zeroed(query_elements(9, HEAD));
    let heads = QueryRows { from, stride: COLUMNS, tokens: 1, group: 9, head_dim: HEAD };
    let new = |at: usize| NewKeyValue { block: 0, in_block: at % LANES, head: 0, key: from, value: from };
    // SAFETY: (all) the table's level is there; every buffer holds the rows named, of HIDDEN elements at most.
    unsafe {
        vec![
            timed("norm of 576", COLUMNS * 8, |_| (kernels.norm)(norm, from, to)),
            timed("8-bit encoding of 576", COLUMNS * 5, |i| {
                (kernels.encode_row)(buffers.rows_of(COLUMNS, int8), i % TILE_ROWS, from);
            }),
            timed("gate of 1536", HIDDEN * 12, |_| {
                (kernels.gate)(Gate(Activation::Silu), from, ups, to, HIDDEN);
            }),
            timed("gate of 8 x 32, encoded", TILE_ROWS * 32 * 9, |_| {
                let rows = GateRows { gates: from, ups, count: TILE_ROWS, first_row: 0, block: 0 };
                (kernels.encode_gated)(Gate(Activation::Silu), rows, buffers.rows_of(HIDDEN, int8));
            }),
            timed("rotation of a head of 64", HEAD * 8, |_| (kernels.rotate_head)(rotation, None, to)),
            timed("8-bit key and value of a head of 64", HEAD * 10, |i| {
                (kernels.store_key_value)(&kv, cache.layer(0).1, new(i));
            }),
            timed("8-bit queries, 9 heads of 64", HEAD * 9 * 6, |_| {
                (kernels.load_queries)(heads, KvDtype::Int8, queries.as_mut_ptr());
            }),
        ]
    }
}

/// `bytes`: read and written by one call.
fn timed(name: &str, bytes: usize, mut call: impl FnMut(usize)) -> Measured {
    let seconds = best(|| (0..REPEATS).for_each(&mut call)) / REPEATS as f64;
    Measured {
        name: format!("{name}, {:.0} ns", seconds * 1e9),
        gigabytes: bytes as f64 / 1e9 / seconds,
        giga_operations: 0.0,
        of_ceiling: None,
    }
}
