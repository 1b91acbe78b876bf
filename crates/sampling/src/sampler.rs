//! One token from one row of logits.

use crate::{
    History, SampledToken, SamplingParams, TokenId,
    logprobs::logprobs_with,
    random::{LANES, gumbel, gumbel_bound, key, philox_lanes, token_word},
    select::Scored,
    survivors::{SurvivorScratch, lowest_survivor},
};

/// A logit was NaN or +inf, or none was above -inf. (-inf marks a token that cannot come.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("non-finite logits: one is NaN or +inf, or all are -inf")]
pub struct NonFinite;

impl SamplingParams {
    /// Whether the choice depends on which tokens came before, so that their counts must be kept.
    pub fn uses_history(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.repetition_penalty != 1.0
    }

    /// Whether the logits are changed before the choice, `generated` tokens into the output.
    fn changes_logits(&self, generated: u32) -> bool {
        self.uses_history() || !self.logit_bias.is_empty() || self.suppresses(generated)
    }

    fn suppresses(&self, generated: u32) -> bool {
        generated < self.min_tokens && !self.suppressed.is_empty()
    }
}

/// The scalar sampler and its scratch memory; one per thread that samples. Holds nothing of any row.
#[derive(Debug)]
pub struct Sampler {
    adjusted: Vec<f32>,
    survivors: SurvivorScratch,
    best: Vec<Scored>,
}

impl Sampler {
    /// For rows of `vocab_size` logits.
    pub fn new(vocab_size: usize) -> Self {
        Self { adjusted: Vec::with_capacity(vocab_size), survivors: SurvivorScratch::default(), best: Vec::new() }
    }

    /// The token at `position` (0 for the first of the prompt, so the first generated token has the prompt's length), given the
    /// logits of the position before it. `history` holds the tokens before `position`.
    ///
    /// # Errors
    /// [`NonFinite`] when the model's logits are, or when bias and suppression leave no token.
    pub fn sample(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        history: &History,
        position: u32,
    ) -> Result<SampledToken, NonFinite> {
        let raw_max = highest_logit(logits)?;
        let token = if params.changes_logits(history.generated()) {
            let mut adjusted = std::mem::take(&mut self.adjusted);
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            adjust(&mut adjusted, params, history);
            let token = highest_logit(&adjusted).map(|max| self.choose(&adjusted, max, params, position));
            self.adjusted = adjusted;
            token?
        } else {
            self.choose(logits, raw_max, params, position)
        };
        let logprobs = params.logprobs.map(|top| logprobs_with(logits, raw_max, token, top, &mut self.best));
        Ok(SampledToken { token, logprobs })
    }

    fn choose(&mut self, logits: &[f32], max: f32, params: &SamplingParams, position: u32) -> TokenId {
        let first_highest = position_of(logits, max);
        if params.temperature <= 0.0 {
            return first_highest;
        }
        let floor = lowest_survivor(logits, max, params, &mut self.survivors);
        draw(logits, floor, first_highest, params.temperature, params.seed, position)
    }
}

/// The highest logit's token, the lowest id among equals.
///
/// # Errors
/// [`NonFinite`] when a logit is NaN or +inf, or all are -inf.
pub fn argmax(logits: &[f32]) -> Result<TokenId, NonFinite> {
    Ok(position_of(logits, highest_logit(logits)?))
}

/// The highest logit, after checking all.
pub(crate) fn highest_logit(logits: &[f32]) -> Result<f32, NonFinite> {
    const WIDTH: usize = 32;
    let (chunks, rest) = logits.as_chunks::<WIDTH>();
    let mut lanes = [f32::NEG_INFINITY; WIDTH];
    let mut damaged = [0u32; WIDTH];
    for chunk in chunks {
        for lane in 0..WIDTH {
            let x = chunk[lane];
            lanes[lane] = if x > lanes[lane] { x } else { lanes[lane] };
            damaged[lane] |= u32::from(is_damaged(x));
        }
    }
    let mut max = f32::NEG_INFINITY;
    for &x in lanes.iter().chain(rest) {
        max = if x > max { x } else { max };
    }
    if damaged.iter().any(|&d| d != 0) || rest.iter().any(|&x| is_damaged(x)) || max == f32::NEG_INFINITY {
        return Err(NonFinite);
    }
    Ok(max)
}

/// NaN or +inf.
#[inline(always)]
fn is_damaged(x: f32) -> bool {
    x.is_nan() || x == f32::INFINITY
}

/// The first index that holds `value`, which is there.
fn position_of(logits: &[f32], value: f32) -> TokenId {
    const WIDTH: usize = 64;
    for (index, chunk) in logits.chunks(WIDTH).enumerate() {
        if chunk.iter().fold(false, |found, &x| found | (x == value)) {
            let offset = chunk.iter().position(|&x| x == value).unwrap_or(0);
            return (index * WIDTH + offset) as TokenId;
        }
    }
    0
}

/// Bias, suppression and penalties, in this order. Ids outside the vocabulary have no effect.
fn adjust(logits: &mut [f32], params: &SamplingParams, history: &History) {
    for &(token, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if params.suppresses(history.generated()) {
        for &token in &params.suppressed {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    if params.uses_history() {
        for seen in history.seen() {
            let Some(logit) = logits.get_mut(seen.token as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / params.repetition_penalty } else { *logit * params.repetition_penalty };
            if seen.generated > 0 {
                *logit -= params.frequency_penalty * seen.generated as f32 + params.presence_penalty;
            }
        }
    }
}

/// The Gumbel-max draw of [`random`](crate::random) among the logits of at least `floor`.
///
/// Random words are made for all tokens, eight blocks at a time; the logarithms only for those few whose upper bound exceeds the
/// best score so far. The result is exactly that of scoring every token.
fn draw(logits: &[f32], floor: f32, likeliest: TokenId, temperature: f32, seed: u64, position: u32) -> TokenId {
    const WIDTH: usize = 4 * LANES;
    let temperature_exact = f64::from(temperature);
    let score = |token: u32, word: u32| f64::from(logits[token as usize]) / temperature_exact + gumbel(word);
    let mut best = (score(likeliest, token_word(seed, position, likeliest)), likeliest);
    let inverse_temperature = 1.0 / temperature;
    let key = key(seed);
    // A logit of -inf never comes.
    let floor = floor.max(f32::MIN);
    for (index, chunk) in logits.chunks(WIDTH).enumerate() {
        let highest = chunk.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m });
        if highest < floor {
            continue;
        }
        // No Gumbel number exceeds 22.9.
        let reachable = best.0 - 23.0;
        if f64::from(highest) / temperature_exact < reachable {
            continue;
        }
        let words = philox_lanes((index * LANES) as u32, position, key);
        let best_so_far = best.0 as f32;
        let mut padded = [f32::MIN; WIDTH];
        for (slot, &logit) in padded.iter_mut().zip(chunk) {
            *slot = if logit >= floor { logit } else { f32::MIN };
        }
        let mut any = false;
        for block in 0..LANES {
            for word in 0..4 {
                any |= may_win(padded[block * 4 + word], inverse_temperature, words[word][block], best_so_far);
            }
        }
        if !any {
            continue;
        }
        for (offset, &logit) in chunk.iter().enumerate() {
            let word = words[offset % 4][offset / 4];
            if logit >= floor && may_win(logit, inverse_temperature, word, best_so_far) {
                let token = (index * WIDTH + offset) as u32;
                let candidate = (score(token, word), token);
                if candidate.0 > best.0 || (candidate.0 == best.0 && token < best.1) {
                    best = candidate;
                }
            }
        }
    }
    best.1
}

/// Whether the token's score can reach `best`; the slack covers f32 rounding on both sides.
#[inline(always)]
fn may_win(logit: f32, inverse_temperature: f32, word: u32, best: f32) -> bool {
    let scaled = logit * inverse_temperature;
    let bound = scaled + gumbel_bound(word) + 1e-3 + 1e-6 * scaled.abs();
    // Not `bound >= best`: when huge logits make one of them NaN the exact score decides.
    #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN must count as possible")]
    {
        !(bound < best)
    }
}
