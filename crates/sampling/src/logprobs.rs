//! Log-probabilities of raw logits.

use crate::{
    TokenId, TokenLogprobs,
    exponential::sum_exp,
    sampler::{NonFinite, highest_logit},
    select::{Scored, highest},
};

/// In place of a number of most probable tokens: every token of the vocabulary, in the order of ids.
pub const WHOLE_VOCABULARY: u8 = u8::MAX;

/// The log-probability and rank of `token`, and the `top` most probable tokens (lower ids first among equals),
/// or all of them ([`WHOLE_VOCABULARY`]).
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
    let top = if top == WHOLE_VOCABULARY {
        (0..).zip(logits).map(|(id, &logit)| (id, logprob(logit))).collect()
    } else {
        highest(logits, usize::from(top), best);
        best.iter().map(|&(logit, id)| (id, logprob(logit))).collect()
    };
    TokenLogprobs { token, logprob: logprob(own), rank: above + 1, top }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_vocabulary_comes_in_the_order_of_ids() {
        let logits: Vec<f32> = (0..300).map(|id| ((id * 7) % 11) as f32).collect();
        let found = logprobs_of(&logits, 5, WHOLE_VOCABULARY).unwrap();
        assert_eq!(found.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), (0..300).collect::<Vec<_>>());
        assert_eq!(found.top[5].1, found.logprob);
        let total: f64 = found.top.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
        // One less is a number of tokens.
        assert_eq!(logprobs_of(&logits, 5, 254).unwrap().top.len(), 254);
    }
}
