//! The executor for CPUs: any [`DecoderSpec`](powertrain_model::spec::DecoderSpec) on the cores of this machine.
//!
//! Weights are repacked at load into panels the dot-product instructions want; activations are quantised once and read by
//! all; rows of a step share every weight read, so a batch of decodes and a prefill are the same few kernels. Kernels are
//! written once over sixteen abstract lanes and compiled for AVX-512, AVX2, NEON and plain Rust.
//!
//! **Invariant:** the result of a row is bit-identical whatever else is in the step, however its positions are chunked, and
//! whatever the number of threads.

mod activations;
mod batch;
mod config;
mod executor;
mod forward;
#[expect(clippy::needless_range_loop, reason = "one number indexes several arrays of registers")]
mod kernel;
mod kv;
#[doc(hidden)]
pub mod measure;
mod memory;
mod numa;
mod packed;
mod pool;
mod profile;
mod simd;
mod weights;
mod workspace;

pub use config::{Activations, CpuConfig, CpuError};
pub use executor::{BuildTimes, CpuExecutor};
pub use kv::KvDtype;
pub use numa::{Numa, bind as bind_numa};
pub use profile::{Phase, PhaseTime, ProfileClock, ThreadProfile};
pub use simd::SimdLevel;
