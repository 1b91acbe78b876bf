//! Models as data: checkpoints, weight formats, families, and the scalar reference that says what is right.
#![deny(unsafe_code)]

pub mod bytes;
pub mod checkpoint;
pub mod config;
pub mod dummy;
pub mod error;
pub mod family;
pub mod format;
pub mod gguf;
pub mod model;
pub mod reference;
pub mod safetensors;
pub mod spec;
pub mod summary;
pub mod tensors;
pub mod weights;

pub use checkpoint::Checkpoint;
pub use error::ModelError;
pub use model::Model;
