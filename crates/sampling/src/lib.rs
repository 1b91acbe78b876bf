//! How the next token is chosen from logits.
//!
//! Pure functions: logits, the row's history and its parameters in; one token and its log-probabilities out. Every
//! executor samples where its logits are; this crate holds the parameters they share and the scalar sampler that is both
//! the CPU's and the oracle for devices.
//!
//! - [`SamplingParams`]: what a sequence asked for; [`History`]: which tokens it has seen, kept up to date by `push`.
//! - [`Sampler`]: one token from one row of logits; owns its scratch memory and allocates nothing per token.
//! - [`argmax`] and [`logprobs_of`]: the two halves of it that are useful alone.
//! - [`random`]: the definition of the draw, for a device to repeat.
#![forbid(unsafe_code)]

mod exponential;
mod history;
mod logprobs;
pub mod random;
mod sampler;
mod select;
mod survivors;

pub use history::History;
pub use logprobs::{WHOLE_VOCABULARY, logprobs_of};
pub use sampler::{NonFinite, Sampler, argmax};

/// Index into a model's vocabulary.
pub type TokenId = u32;

/// What decides the choice of each token of one sequence.
///
/// Order of application: logit bias, the suppression before `min_tokens`, penalties (repetition, then frequency and
/// presence), temperature, top-k, top-p, min-p,
/// then the draw. Log-probabilities are those of the raw logits (before all of it), as OpenAI and vLLM report them.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 means greedy: the highest logit, the lowest id among equals. Otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep only the k highest logits, and those equal to the k-th; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of highest tokens whose probability (of what top-k left) reaches this, and those equal to the
    /// last of it; 1.0 keeps all.
    pub top_p: f32,
    /// Drop tokens less probable than this fraction of the most probable one; 0.0 drops none.
    pub min_p: f32,
    /// Subtracted once from the logit of every token already generated (OpenAI).
    pub presence_penalty: f32,
    /// Subtracted per earlier occurrence among the generated tokens (OpenAI).
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or output (CTRL, arXiv:1909.05858); 1.0 is off.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Seed of the counter-based generator: the draw depends on (seed, position of the new token, token id) alone, never
    /// on the batch.
    pub seed: u64,
    /// How many of the most probable tokens to report beside the chosen one; `None` reports no log-probability at all.
    pub logprobs: Option<u8>,
    /// While fewer tokens than this were generated, the tokens of `suppressed` cannot be chosen.
    pub min_tokens: u32,
    /// The tokens held back before `min_tokens`: end-of-sequence and stop ids.
    pub suppressed: Vec<TokenId>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
            min_tokens: 0,
            suppressed: Vec::new(),
        }
    }
}

/// The log-probability of one token at one position, and of the most probable ones there.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token that was chosen (or stood there, in a prompt).
    pub token: TokenId,
    /// Its natural log-probability.
    pub logprob: f32,
    /// Its place among all tokens by probability, from 1.
    pub rank: u32,
    /// The most probable tokens, most probable first.
    pub top: Vec<(TokenId, f32)>,
}

/// One sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Its id.
    pub token: TokenId,
    /// Present when the row asked for log-probabilities.
    pub logprobs: Option<TokenLogprobs>,
}
