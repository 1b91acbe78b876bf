//! The executor for NVIDIA GPUs.
//!
//! Built with the feature `cuda` it binds to the driver and to cuBLASLt when it is asked to start, never before: the same binary runs on
//! machines without either. Kernels are the `.cu` files beside this crate, compiled by its build script and embedded.
//!
//! - [`probe`] says whether one could be built; [`load`] builds an executor for a model.
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

mod element;
mod error;
#[cfg(any(feature = "cuda", test))]
mod memory;
#[cfg(any(feature = "cuda", test))]
mod tuned;

#[cfg(feature = "cuda")]
mod choose;
#[cfg(feature = "cuda")]
mod cublaslt;
#[cfg(feature = "cuda")]
mod decode;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod even;
#[cfg(feature = "cuda")]
mod executor;
#[cfg(feature = "cuda")]
mod forward;
#[cfg(feature = "cuda")]
mod kernels;
#[cfg(feature = "cuda")]
mod libraries;
#[cfg(feature = "cuda")]
mod matmul;
#[cfg(feature = "cuda")]
mod pairs;
#[cfg(feature = "cuda")]
mod product;
#[cfg(feature = "cuda")]
mod results;
#[cfg(feature = "cuda")]
mod row_sampling;
#[cfg(feature = "cuda")]
mod shapes;
#[cfg(feature = "cuda")]
mod skinny;
#[cfg(feature = "cuda")]
mod staging;
#[cfg(feature = "cuda")]
mod tensor_map;
#[cfg(feature = "cuda")]
mod weights;

#[cfg(feature = "cuda")]
pub mod check;

pub use element::Element;
pub use error::CudaError;

use powertrain_model::Model;
use powertrain_step::{Executor, StepLimits};
use std::{path::PathBuf, time::Duration};

/// What the user may set.
#[derive(Clone, Debug, PartialEq)]
pub struct CudaOptions {
    /// Which device (`--device cuda:N`).
    pub ordinal: u32,
    /// Share of the device's memory to use in all (`--gpu-memory-utilization`), above 0, at most 1.
    pub gpu_memory_utilization: f32,
    /// Bytes of KV cache instead of what that share leaves (`--kv-cache-memory`).
    pub kv_cache_bytes: Option<u64>,
    /// What to compute with (`--dtype`); `None`: what the model's weights are stored in, as [`Element::of`] has it.
    pub element: Option<Element>,
    /// Launch every kernel of every step (`--enforce-eager`): slower, easier to debug.
    pub enforce_eager: bool,
    /// One algorithm per weight matrix and one attention kernel for all steps (`--deterministic`), so that what a request gets does not depend
    /// on what is computed beside it, on how its prompt is cut into steps, or on what of it was cached.
    pub deterministic: bool,
    /// Folder in which what tuning finds is kept; `None`: nowhere.
    pub kernel_choices: Option<PathBuf>,
    /// How long loading may take longer to choose kernels and capture decode graphs; what is left then is done while nothing comes. What steps cost is
    /// measured after that, for as long again at most, and for no longer than 1.75 s.
    pub prepare_at_start: Duration,
    /// A kind of steps with prompts is captured as a graph when it comes for this time.
    pub capture_prompts_at: u32,
    /// Words of changes to the tables of tokens and blocks that a step brings with it, more than 3; what is more goes ahead, in pieces.
    pub step_change_words: usize,
    /// Whether greedy steps find the highest logits without writing logits; `None`: where it is the faster.
    pub greedy_without_logits: Option<bool>,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            ordinal: 0,
            gpu_memory_utilization: 0.9,
            kv_cache_bytes: None,
            element: None,
            enforce_eager: false,
            deterministic: false,
            kernel_choices: None,
            prepare_at_start: Duration::from_secs(4),
            // Capturing takes as long as some ten launches by a graph save: a load whose steps never repeat for long loses next to nothing.
            capture_prompts_at: 8,
            step_change_words: 4 << 20,
            greedy_without_logits: None,
        }
    }
}

/// Whether an executor could be built on a device: code, kernels, driver and the device itself are there.
///
/// # Errors
/// What is missing.
#[cfg(feature = "cuda")]
pub fn probe(ordinal: u32) -> Result<(), CudaError> {
    let context = driver::Context::open(ordinal)?;
    kernels::Kernels::load(&context, Element::Bf16).map(|_| ())
}

/// Whether an executor could be built on a device: not in this build.
///
/// # Errors
/// Always [`CudaError::NotBuilt`].
#[cfg(not(feature = "cuda"))]
pub fn probe(_ordinal: u32) -> Result<(), CudaError> {
    Err(CudaError::NotBuilt)
}

/// Loads a model onto a device; dummy weights are made there.
///
/// # Errors
/// When the binary, the driver, the device or its memory cannot; the message says which number to change.
#[cfg(feature = "cuda")]
pub fn load(model: &Model, limits: &StepLimits, options: &CudaOptions) -> Result<Box<dyn Executor>, CudaError> {
    Ok(Box::new(executor::CudaExecutor::load(model, limits, options)?))
}

/// Loads a model onto a device: not in this build.
///
/// # Errors
/// Always [`CudaError::NotBuilt`].
#[cfg(not(feature = "cuda"))]
pub fn load(_model: &Model, _limits: &StepLimits, _options: &CudaOptions) -> Result<Box<dyn Executor>, CudaError> {
    Err(CudaError::NotBuilt)
}
