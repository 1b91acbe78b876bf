//! Quality, so that "faster" is never shown without "and as good".
//!
//! In reading order: [`Likelihood`] is what perplexity is computed from, [`Divergence`] how far one model's predictions are
//! from another's, [`questions`] have exact answers, [`Endpoint`] asks any OpenAI-compatible server: for [`perplexity`], and for a
//! [`divergence`] from what two servers tell of their most probable tokens ([`TopDivergence`]). Intervals
//! hold the truth with 95 % probability, with windows or questions as what was sampled.
#![forbid(unsafe_code)]

mod alternatives;
mod divergence;
mod endpoint;
mod likelihood;
mod perplexity;
pub mod questions;
mod text;
mod top;
mod windows;

pub use alternatives::{Asking, EndpointDivergence, divergence};
pub use divergence::{Divergence, Position};
pub use endpoint::{Endpoint, EndpointError};
pub use likelihood::Likelihood;
pub use perplexity::{EndpointPerplexity, Scoring, perplexity};
pub use text::text_sha256;
pub use top::{Alternatives, Token, TopDivergence};
pub use windows::WindowsOf;

/// The version of every measure's JSON.
pub const FORMAT: &str = "powertrain-eval/1";
