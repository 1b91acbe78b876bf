//! The kernels by name, with their parameters' types. The layouts here are those of `kernels/*.cu`.

use crate::{
    decode::{Clusters, DecodeKernel},
    driver::{Context, DevicePointer, Function, Module, Shape, Stream},
    element::Element,
    error::CudaError,
    even,
};
use std::ffi::c_void;

/// `State` of common.cuh: the arena of token tables, block tables and sampling parameters.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    pub(crate) words: DevicePointer,
    pub(crate) blocks_at: u64,
    pub(crate) sampling_at: u64,
    pub(crate) max_len: i32,
    pub(crate) max_blocks: i32,
}

/// `Cache` of attention.cuh: one layer's keys and values.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cache {
    pub(crate) keys: DevicePointer,
    pub(crate) values: DevicePointer,
    pub(crate) block_size: i32,
    pub(crate) kv_heads: i32,
}

/// `Heads` of attention.cuh: one layer's attention.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) heads: i32,
    pub(crate) kv_heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) rotary: i32,
    pub(crate) window: i32,
    pub(crate) scale: f32,
    pub(crate) softcap: f32,
    pub(crate) magnitude: f32,
}

/// `Rope` of rope.cuh: what turns a projection into queries, keys and values.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rope {
    pub(crate) bias: DevicePointer,
    pub(crate) query_norm: DevicePointer,
    pub(crate) key_norm: DevicePointer,
    pub(crate) inverse_frequencies: DevicePointer,
    /// The residual `[tokens, width]` when the projections still lack its norm's factor; 0 when they have it.
    pub(crate) residual: DevicePointer,
    pub(crate) width: i32,
    pub(crate) norm_epsilon: f32,
    pub(crate) epsilon: f32,
}

/// `Gemv` of gemv.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemv {
    pub(crate) weights: DevicePointer,
    pub(crate) x: DevicePointer,
    pub(crate) x_rows: DevicePointer,
    pub(crate) norm_weight: DevicePointer,
    pub(crate) bias: DevicePointer,
    pub(crate) out: DevicePointer,
    pub(crate) epsilon: f32,
    pub(crate) softcap: f32,
    pub(crate) m: i32,
    pub(crate) n: i32,
    pub(crate) k: i32,
    pub(crate) stages: i32,
    pub(crate) mode: i32,
    pub(crate) gelu: i32,
    pub(crate) normalise: i32,
}

/// `Skinny` of skinny.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Skinny {
    pub(crate) bias: DevicePointer,
    pub(crate) out: DevicePointer,
    pub(crate) epsilon: f32,
    pub(crate) softcap: f32,
    pub(crate) m: i32,
    pub(crate) n: i32,
    pub(crate) k: i32,
    pub(crate) stages: i32,
    pub(crate) splits: i32,
    pub(crate) mode: i32,
    pub(crate) gelu: i32,
    pub(crate) normalise: i32,
}

/// `Even` of even.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Even {
    pub(crate) out: DevicePointer,
    pub(crate) factors: DevicePointer,
    pub(crate) softcap: f32,
    pub(crate) m: i32,
    pub(crate) n: i32,
    pub(crate) k: i32,
    pub(crate) gelu: i32,
}

/// Rows of weights of the tiles of even.cu, and stages of the rings of its kernels.
pub(crate) const EVEN_TILES: [usize; 2] = [144, 224];
pub(crate) const EVEN_STAGES: [usize; 2] = [6, 5];

/// Rows of x that the kernels of skinny.cu take, columns of a stage, stages at most, and static shared memory, rounded up.
pub(crate) const SKINNY_COLUMNS: [usize; 4] = [16, 32, 64, 128];
pub(crate) const SKINNY_DEPTH: usize = 64;
pub(crate) const SKINNY_STAGES_MAX: usize = 12;
pub(crate) const SKINNY_STATIC_BYTES: usize = 1024;

/// Bytes of one stage of the weight ring, and the most stages (gemv.cu).
pub(crate) const GEMV_STAGE_BYTES: usize = 16 * (512 * 2 + 64);
pub(crate) const GEMV_STAGES_MAX: usize = 12;
/// Static shared memory of `gemv_16`, rounded up.
pub(crate) const GEMV_STATIC_BYTES: usize = 10 * 1024;
/// Words of sampling parameters a row has (common.cuh).
pub(crate) const SAMPLING_WORDS: usize = 16;
/// Most likely tokens the device reports at most, and words of a row's record of them (sample.cu).
pub(crate) const TOP_MAX: u8 = 20;
pub(crate) const RECORD_WORDS: usize = 48;
/// Threads of a block of `rope_write_64` and `rope_write_128` (rope.cu).
pub(crate) const ROPE_WHOLE_THREADS: u32 = 128;
/// Elements of a head past its rotary dimension that `rope_write_4` takes (rope.cuh).
pub(crate) const ROPE_REST_MAX: usize = 128;
/// Queries of one flash tile (flash.cu).
pub(crate) const TILE_QUERIES: u32 = 128;
/// Threads of a block of flash.cu, gated.cu and best.cu: two warpgroups that multiply, one that copies.
pub(crate) const WARPGROUP_THREADS: u32 = 384;
/// Rows of x and of weights of a tile of pairs.cuh; a cluster takes two tiles of rows of x.
pub(crate) const PAIR_TILE: (usize, usize) = (128, 256);
/// Rows of weights of the tiles of gated.cu: one width for all tiles of a product.
pub(crate) const GATED_WIDTHS: [usize; 3] = [PAIR_TILE.1, 224, 192];
/// The parts that it divides the tiles of an incomplete last round into at most, and the rows of the weights' boxes of those.
pub(crate) const PAIR_PARTS_MAX: usize = 4;
pub(crate) const PAIR_PART_BOX: usize = 32;
/// Dynamic shared memory of best.cu: four stages of 64 columns of both operands, room to begin on a multiple of 1024; and of gated.cu, with the result's tile.
pub(crate) const BEST_SHARED_BYTES: u32 = 4 * (128 + 256) * 64 * 2 + 1024;
pub(crate) const GATED_SHARED_BYTES: u32 = BEST_SHARED_BYTES + 128 * 128 * 2;

/// Every kernel, loaded.
#[derive(Debug)]
pub(crate) struct Kernels {
    pub(crate) apply_changes: Function,
    pub(crate) embed: Function,
    /// Widths up to 4096, and up to 16384.
    pub(crate) add_norm: [Function; 2],
    pub(crate) take_rows: Function,
    pub(crate) add_bias: Function,
    pub(crate) norm_factors: Function,
    pub(crate) gated_activation: Function,
    pub(crate) softcap_logits: Function,
    pub(crate) fill_random: Function,
    /// Up to 8 rows, up to 16, and up to 8 of one tile a block.
    pub(crate) gemv: [Function; 3],
    /// By [`GATED_WIDTHS`].
    pub(crate) gated: [Function; GATED_WIDTHS.len()],
    pub(crate) best: Function,
    /// By [`EVEN_TILES`].
    pub(crate) even_gated: [Function; EVEN_TILES.len()],
    pub(crate) even_best: [Function; EVEN_TILES.len()],
    /// By [`SKINNY_COLUMNS`], then by warpgroups.
    pub(crate) skinny: [[Function; 2]; SKINNY_COLUMNS.len()],
    /// Any head, by how many rotated pairs a lane holds: 1, 2, 4.
    pub(crate) rope_write: [Function; 3],
    /// Head size 64, 128, all of it rotated.
    pub(crate) rope_write_whole: [Function; 2],
    /// Head size 64, 128; then by [`DecodeKernel`].
    pub(crate) decode: [[Function; DecodeKernel::SUFFIXES.len()]; 2],
    /// Head size 64, 128: how many clusters of them run at once.
    pub(crate) decode_clusters: [Clusters; 2],
    /// Head size 64, 128.
    pub(crate) flash: [Function; 2],
    pub(crate) attention_plain: Function,
    pub(crate) adjust_logits: Function,
    pub(crate) choose_greedy: Function,
    pub(crate) deliver_best: Function,
    pub(crate) choose_drawn: Function,
    pub(crate) score_chosen: Function,
    _modules: [Module; 10],
}

/// The code of `kernels/NAME.cu` for a type of elements.
macro_rules! cubin {
    ($element:expr, $name:literal) => {
        match $element {
            Element::Bf16 => include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".cubin")).as_slice(),
            Element::F16 => include_bytes!(concat!(env!("OUT_DIR"), "/", $name, "-f16.cubin")).as_slice(),
        }
    };
}

impl Kernels {
    pub(crate) fn load(context: &Context, element: Element) -> Result<Self, CudaError> {
        let step = Module::load(cubin!(element, "step"))?;
        let gemv = Module::load(cubin!(element, "gemv"))?;
        let gated_module = Module::load(cubin!(element, "gated"))?;
        let [wide, narrower, narrow] = GATED_WIDTHS.map(|width| gated_module.function(&format!("gated_{width}")));
        let best = Module::load(cubin!(element, "best"))?;
        let even_module = Module::load(cubin!(element, "even"))?;
        let even = |made: &str| -> Result<[Function; EVEN_TILES.len()], CudaError> {
            let [narrow, wide] = EVEN_TILES.map(|tile| even_module.function(&format!("even_{made}_{tile}")));
            Ok([narrow?, wide?])
        };
        let skinny_module = Module::load(cubin!(element, "skinny"))?;
        let attention = Module::load(cubin!(element, "attention"))?;
        let rope = Module::load(cubin!(element, "rope"))?;
        let flash = Module::load(cubin!(element, "flash"))?;
        let sample = Module::load(include_bytes!(concat!(env!("OUT_DIR"), "/sample.cubin")))?;
        let mut skinny = Vec::new();
        for columns in SKINNY_COLUMNS {
            let function = |groups| skinny_module.function(&format!("skinny_{columns}_{groups}"));
            skinny.push([function(1)?, function(2)?]);
        }
        let (mut decode, mut decode_clusters) = (Vec::new(), Vec::new());
        for head_dim in [64, 128] {
            let [many, few, deep, shallow] =
                DecodeKernel::SUFFIXES.map(|suffix| attention.function(&format!("decode_{head_dim}{suffix}")));
            let functions = [many?, few?, deep?, shallow?];
            functions[DecodeKernel::Deep as usize].allow_shared(DecodeKernel::Deep.shared_bytes(head_dim))?;
            decode_clusters.push(clusters_at_once(&functions, head_dim));
            decode.push(functions);
        }
        let kernels = Self {
            apply_changes: step.function("apply_changes")?,
            embed: step.function("embed")?,
            add_norm: [step.function("add_norm_4096")?, step.function("add_norm_16384")?],
            take_rows: step.function("take_rows")?,
            add_bias: step.function("add_bias")?,
            norm_factors: step.function("norm_factors")?,
            gated_activation: step.function("gated_activation")?,
            softcap_logits: step.function("softcap_logits")?,
            fill_random: step.function("fill_random")?,
            gemv: [gemv.function("gemv_8")?, gemv.function("gemv_16")?, gemv.function("gemv_8_direct")?],
            gated: [wide?, narrower?, narrow?],
            best: best.function("best")?,
            even_gated: even("gated")?,
            even_best: even("best")?,
            skinny: skinny.try_into().expect("one for each of the columns"),
            rope_write: [
                rope.function("rope_write_1")?,
                rope.function("rope_write_2")?,
                rope.function("rope_write_4")?,
            ],
            rope_write_whole: [rope.function("rope_write_64")?, rope.function("rope_write_128")?],
            decode: decode.try_into().expect("one for each head size"),
            decode_clusters: decode_clusters.try_into().expect("one for each head size"),
            flash: [flash.function("flash_64")?, flash.function("flash_128")?],
            attention_plain: attention.function("attention_plain")?,
            adjust_logits: sample.function("adjust_logits")?,
            choose_greedy: sample.function("choose_greedy")?,
            deliver_best: sample.function("deliver_best")?,
            choose_drawn: sample.function("choose_drawn")?,
            score_chosen: sample.function("score_chosen")?,
            _modules: [step, gemv, gated_module, best, even_module, skinny_module, attention, rope, flash, sample],
        };
        for gemv in kernels.gemv {
            gemv.allow_shared(context.shared_memory_max - GEMV_STATIC_BYTES)?;
        }
        for (function, head_dim) in kernels.flash.iter().zip([64, 128]) {
            function.allow_shared(flash_shared_bytes(head_dim) as usize)?;
        }
        for function in kernels.skinny.iter().flatten() {
            function.allow_shared(context.shared_memory_max / 2)?;
        }
        for gated in kernels.gated {
            gated.allow_shared(GATED_SHARED_BYTES as usize)?;
        }
        kernels.best.allow_shared(BEST_SHARED_BYTES as usize)?;
        for (which, (gated, best)) in kernels.even_gated.iter().zip(&kernels.even_best).enumerate() {
            gated.allow_shared(even::shared_bytes(which) as usize)?;
            best.allow_shared(even::shared_bytes(which) as usize)?;
        }
        Ok(kernels)
    }
}

/// How many clusters of each size the device runs at once; of kernels that do not merge in clusters, none.
fn clusters_at_once(functions: &[Function], head_dim: usize) -> Clusters {
    let mut clusters = Clusters::default();
    for kernel in DecodeKernel::ALL.into_iter().filter(|kernel| kernel.merges_in_clusters(head_dim)) {
        for (blocks, at_once) in clusters[kernel as usize].iter_mut().enumerate().skip(2) {
            let shape = Shape {
                shared_bytes: kernel.shared_bytes(head_dim) as u32,
                cluster: blocks as u32,
                ..shape((blocks as u32, 1, 1), 32 * kernel.warps() as u32)
            };
            // Where the driver has no answer, parts are merged through memory.
            *at_once = functions[kernel as usize].clusters_at_once(shape).unwrap_or(0);
        }
    }
    clusters
}

/// Two stages of 128 queries, keys and values; with room to begin on a multiple of 1024.
pub(crate) fn flash_shared_bytes(head_dim: u32) -> u32 {
    2 * 3 * TILE_QUERIES * head_dim * 2 + 1024
}

/// A launch that waits for the previous kernel by itself.
pub(crate) fn shape(grid: (u32, u32, u32), threads: u32) -> Shape {
    Shape { grid, threads, shared_bytes: 0, cluster: 0, overlap: true }
}

/// Launches `function` with the given parameters, each a local of the parameter's type.
macro_rules! launch {
    ($stream:expr, $function:expr, $shape:expr, $($argument:expr),+ $(,)?) => {{
        let mut arguments = [$(std::ptr::from_ref(&$argument).cast_mut().cast::<std::ffi::c_void>()),+];
        // SAFETY: the arguments have the types of the kernel's parameters (kernels/*.cu), and the buffers behind their pointers
        // are sized for the largest step and live as long as the executor.
        unsafe { $function.launch($stream, $shape, &mut arguments) }
    }};
}
pub(crate) use launch;

/// Checked when the crate is compiled: what the kernels assume of these layouts.
const _: () = {
    assert!(size_of::<State>() == 32 && size_of::<Cache>() == 24 && size_of::<Heads>() == 32);
    assert!(size_of::<crate::pairs::Items>() == 12);
    assert!(size_of::<Gemv>() == 88 && size_of::<Rope>() == 56 && size_of::<Skinny>() == 56);
    assert!(size_of::<Even>() == 40);
    assert!(size_of::<*mut c_void>() == size_of::<DevicePointer>());
};

/// Puts random weights of the given half width into memory.
pub(crate) fn fill_random(
    kernels: &Kernels,
    stream: &Stream,
    to: DevicePointer,
    count: u64,
    half_width: f32,
    seed: u32,
) -> Result<(), CudaError> {
    let shape = Shape { grid: (2048, 1, 1), threads: 256, shared_bytes: 0, cluster: 0, overlap: false };
    launch!(stream, kernels.fill_random, shape, to, count, half_width, seed)
}
