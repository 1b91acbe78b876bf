//! What a CPU executor is built with, and why it may not be.

use crate::{kv::KvDtype, simd::SimdLevel};
use std::str::FromStr;

/// How activations enter the products with quantised weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// 8 bits with a scale per 32: fast; perplexity within half a percent of f32. (bf16 weights take bf16 activations where the
    /// machine multiplies those, f32 else; f16 and f32 weights take f32.)
    #[default]
    Int8,
    /// f32 everywhere: the reference mode.
    F32,
}

impl Activations {
    /// The name a flag takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::F32 => "f32",
        }
    }
}

impl FromStr for Activations {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Int8, Self::F32]
            .into_iter()
            .find(|activations| activations.name() == name)
            .ok_or_else(|| format!("unknown kind of activations {name:?}; there are int8, f32"))
    }
}

/// The choices that are not the model's nor the scheduler's.
#[derive(Clone, Debug, Default)]
pub struct CpuConfig {
    /// Threads that compute, the engine's own among them; `None` takes the cores this process may use.
    pub threads: Option<usize>,
    /// Pin thread i to the i-th core this process may use. The engine's thread, which is thread 0, is never pinned.
    pub pin_threads: bool,
    /// Element type of the KV cache.
    pub kv_dtype: KvDtype,
    /// Bytes for the KV cache; `None` takes what `max_num_seqs` sequences of `max_model_len` need, but at most 1 GiB.
    pub kv_cache_bytes: Option<u64>,
    /// How activations enter the products.
    pub activations: Activations,
    /// Instructions to use; `None` takes the widest there are.
    pub simd: Option<SimdLevel>,
}

/// Why an executor cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// The level was forced, and the machine lacks it.
    #[error("--simd {level}: this machine does not have it; leave --simd out for the widest it has ({widest})")]
    SimdUnavailable {
        /// What was asked for.
        level: SimdLevel,
        /// What there is.
        widest: SimdLevel,
    },
    /// The block size does not fit the layout of the KV cache.
    #[error("--block-size {block_size}: on the CPU it must be a multiple of 16, at most 4096; take 16")]
    BlockSize {
        /// What was asked for.
        block_size: u32,
    },
    /// The threads cannot run where they should.
    #[error("--numa {nodes}: {reason}; leave --numa out to run wherever the system lets threads run")]
    Numa {
        /// The nodes asked for.
        nodes: String,
        /// Why not.
        reason: String,
    },
    /// A number that must be positive is not.
    #[error("{flag} is 0; it must be at least 1")]
    Zero {
        /// Which.
        flag: &'static str,
    },
    /// More threads than can be meant.
    #[error("--threads {threads}: at most {limit} are supported")]
    TooManyThreads {
        /// What was asked for.
        threads: usize,
        /// The most there can be.
        limit: usize,
    },
    /// Longer than the model can be.
    #[error("--max-model-len {asked} exceeds the {model} positions the model was made for; lower it")]
    MaxModelLen {
        /// What was asked for.
        asked: u32,
        /// The model's own limit.
        model: usize,
    },
    /// The KV cache cannot hold one sequence of the longest length.
    #[error(
        "the KV cache of {given} bytes holds {holds} positions, one sequence of --max-model-len {max_model_len} needs {needed} bytes: raise --kv-cache-memory to that, or lower --max-model-len to {holds}"
    )]
    KvCacheTooSmall {
        /// Bytes allowed.
        given: u64,
        /// Positions they hold.
        holds: u64,
        /// What was asked for.
        max_model_len: u32,
        /// Bytes one longest sequence takes.
        needed: u64,
    },
    /// The model lacks a tensor its spec names.
    #[error("the model has no tensor for {slot}")]
    MissingTensor {
        /// Its place.
        slot: String,
    },
    /// A tensor has another shape than its spec says.
    #[error("the tensor for {slot} is {found_rows} x {found_columns}, the model's spec says {rows} x {columns}")]
    Shape {
        /// Its place.
        slot: String,
        /// Rows found.
        found_rows: usize,
        /// Columns found.
        found_columns: usize,
        /// Rows wanted.
        rows: usize,
        /// Columns wanted.
        columns: usize,
    },
    /// A size the kernels do not take.
    #[error("layer {layer}: {what}")]
    Unsupported {
        /// Which layer.
        layer: usize,
        /// What about it.
        what: String,
    },
    /// The system refused a thread.
    #[error("cannot start thread {index} of {threads}: {reason}; lower --threads")]
    Thread {
        /// Which.
        index: usize,
        /// Of how many.
        threads: usize,
        /// The system's reason.
        reason: String,
    },
}
