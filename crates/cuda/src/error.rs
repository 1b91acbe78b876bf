//! Why the CUDA executor could not start or run.

/// Why the CUDA executor could not be built.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The binary has no CUDA code.
    #[error("this binary was built without CUDA; build with --features cuda, or use --device cpu")]
    NotBuilt,
    /// The binary was built where there was no nvcc.
    #[error("this binary holds no CUDA kernels: no nvcc was found when it was built; see crates/cuda/build.rs")]
    NoKernels,
    /// No `libcuda.so.1`.
    #[error("no NVIDIA driver: libcuda.so.1 cannot be loaded; install the driver, or use --device cpu")]
    NoDriver,
    /// The ordinal is past the end.
    #[error("--device cuda:{ordinal} asked for, this machine has {count} CUDA device(s)")]
    NoDevice {
        /// The number asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// The GPU is older than the kernels.
    #[error(
        "{name} has compute capability {major}.{minor}; the kernels of this build need 9.0 (Hopper); use --device cpu"
    )]
    TooOld {
        /// The GPU.
        name: String,
        /// Its compute capability.
        major: i32,
        /// Its compute capability.
        minor: i32,
    },
    /// A driver or library call failed.
    #[error("{call} failed: {reason}")]
    Call {
        /// The function.
        call: &'static str,
        /// CUDA's own words.
        reason: String,
    },
    /// A call failed, and with it the context: sticky errors (an illegal address, a failed launch, an uncorrectable memory error) and lost
    /// devices. No later call can succeed.
    #[error("{call} failed: {reason}")]
    Lost {
        /// The function.
        call: &'static str,
        /// CUDA's own words.
        reason: String,
    },
    /// The driver found no memory for something whose size it knows alone: a graph, page-locked host memory.
    #[error(
        "{call} failed: the GPU or page-locked host memory is full; free it, or lower --gpu-memory-utilization, so that the KV cache leaves more to the driver"
    )]
    Exhausted {
        /// The function.
        call: &'static str,
    },
    /// The device's memory does not hold what was asked for.
    #[error("{what} needs {needed_mib} MiB of GPU memory, {free_mib} MiB are free; {remedy}")]
    OutOfMemory {
        /// What was to be allocated.
        what: &'static str,
        /// Its size.
        needed_mib: u64,
        /// What there is.
        free_mib: u64,
        /// Which number to change.
        remedy: String,
    },
    /// The model has something the kernels do not take.
    #[error("the CUDA executor cannot run this model: {0}; use --device cpu")]
    Unsupported(String),
    /// A setting that cannot work.
    #[error("{0}")]
    Setting(String),
    /// A tensor is not there.
    #[error("the checkpoint has no tensor for {0}")]
    MissingTensor(String),
}
