//! Models as data: checkpoints, weight formats, families, and the scalar reference that says what is right.
#![deny(unsafe_code)]

pub mod spec;
pub mod weights;
