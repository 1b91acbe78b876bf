//! Quality, so that "faster" is never shown without "and as good".
//!
//! In reading order: [`Likelihood`] is what perplexity is computed from, [`Divergence`] how far one model's predictions are
//! from another's, [`questions`] have exact answers, [`Endpoint`] asks any OpenAI-compatible server for either. Intervals
//! hold the truth with 95 % probability, with windows or questions as what was sampled.
#![forbid(unsafe_code)]

mod divergence;
mod endpoint;
mod likelihood;
pub mod questions;

pub use divergence::{Divergence, Position};
pub use endpoint::{Endpoint, EndpointError, EndpointPerplexity, Scoring, WindowsOf, perplexity};
pub use likelihood::Likelihood;

/// The version of every measure's JSON.
pub const FORMAT: &str = "powertrain-eval/1";
