//! Log-probabilities of raw logits.

use crate::{
    TokenId, TokenLogprobs,
    exponential::sum_exp,
    sampler::{NonFinite, highest_logit},
    select::{Scored, highest},
};

/// The log-probability and rank of `token`, and the `top` most probable tokens (lower ids first among equals).
///
/// A log-softmax summed in f64. The rank is one more than the number of strictly more probable tokens.
///
/// # Errors
/// [`NonFinite`] when a logit is NaN or +inf, or all are -inf.
///
/// # Panics
/// When `token` is not below `logits.len()`.
pub fn logprobs_of(logits: &[f32], token: TokenId, top: u8) -> Result<TokenLogprobs, NonFinite> {
    let max = highest_logit(logits)?;
    Ok(logprobs_with(logits, max, token, top, &mut Vec::new()))
}

/// [`logprobs_of`] when the highest logit is known and finite.
pub(crate) fn logprobs_with(
    logits: &[f32],
    max: f32,
    token: TokenId,
    top: u8,
    best: &mut Vec<Scored>,
) -> TokenLogprobs {
    let log_sum = f64::from(max) + sum_exp(logits, max, 1.0).ln();
    let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
    let own = logits[token as usize];
    let above = logits.iter().map(|&logit| u32::from(logit > own)).sum::<u32>();
    highest(logits, usize::from(top), best);
    TokenLogprobs {
        token,
        logprob: logprob(own),
        rank: above + 1,
        top: best.iter().map(|&(logit, id)| (id, logprob(logit))).collect(),
    }
}
