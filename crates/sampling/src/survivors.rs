//! Which tokens compete: top-k, top-p and min-p, each expressed as the lowest logit that stays.

use crate::{
    SamplingParams,
    exponential::{exp_nonpositive, sum_exp},
    select::{Scored, descending, highest},
};

/// Bins of the top-p search; each is `BIN_WIDTH` wide in `logit / temperature` below the highest.
const BINS: usize = 1024;
const BINS_PER_UNIT: f32 = 32.0;

/// A trained model's nucleus is usually smaller than this; then no bin is needed.
const NEAR_TOP: usize = 256;

/// Memory of the search, reused from token to token.
#[derive(Debug)]
pub(crate) struct SurvivorScratch {
    best: Vec<Scored>,
    mass: Box<[f64; BINS]>,
    count: Box<[u32; BINS]>,
}

impl Default for SurvivorScratch {
    fn default() -> Self {
        Self { best: Vec::new(), mass: Box::new([0.0; BINS]), count: Box::new([0; BINS]) }
    }
}

/// The lowest logit that may be drawn: tokens with a logit of at least this compete. `max` is the highest logit, finite;
/// the temperature is above 0.
pub(crate) fn lowest_survivor(logits: &[f32], max: f32, params: &SamplingParams, scratch: &mut SurvivorScratch) -> f32 {
    let mut floor = f32::NEG_INFINITY;
    if params.top_k > 0 && (params.top_k as usize) < logits.len() {
        highest(logits, params.top_k as usize, &mut scratch.best);
        floor = scratch.best[scratch.best.len() - 1].0;
    }
    if params.top_p < 1.0 {
        floor = floor.max(top_p_floor(logits, max, floor, params, scratch));
    }
    if params.min_p > 0.0 {
        floor = floor.max(min_p_floor(max, params));
    }
    // The most probable token always stays, whatever rounding or a min_p above 1 says.
    floor.min(max)
}

/// The lowest logit among the smallest set of highest tokens that holds `top_p` of the probability of those at or above `floor`.
///
/// First among the few highest. When they do not hold enough, one pass puts the mass into bins by distance from the highest logit; only the bin in which the sum crosses is sorted.
fn top_p_floor(logits: &[f32], max: f32, floor: f32, params: &SamplingParams, scratch: &mut SurvivorScratch) -> f32 {
    let inverse_temperature = 1.0 / params.temperature;
    if floor == f32::NEG_INFINITY {
        let wanted = f64::from(params.top_p) * sum_exp(logits, max, inverse_temperature);
        highest(logits, NEAR_TOP, &mut scratch.best);
        let mut reached = 0.0;
        for &(logit, _) in &scratch.best {
            reached += f64::from(exp_nonpositive((logit - max) * inverse_temperature));
            if reached >= wanted {
                return logit;
            }
        }
    }
    let bin_of = |logit: f32| {
        // Saturating: everything far below falls into the last bin. Monotonic in the logit.
        (((max - logit) * inverse_temperature * BINS_PER_UNIT) as usize).min(BINS - 1)
    };
    scratch.mass.fill(0.0);
    scratch.count.fill(0);
    for &logit in logits {
        if logit >= floor {
            let bin = bin_of(logit);
            scratch.mass[bin] += f64::from(exp_nonpositive((logit - max) * inverse_temperature));
            scratch.count[bin] += 1;
        }
    }
    let wanted = f64::from(params.top_p) * scratch.mass.iter().sum::<f64>();
    let mut reached = 0.0;
    let mut crossing = 0;
    for (bin, &mass) in scratch.mass.iter().enumerate() {
        if scratch.count[bin] > 0 {
            crossing = bin;
            if reached + mass >= wanted {
                break;
            }
        }
        reached += mass;
    }
    scratch.best.clear();
    for (index, &logit) in logits.iter().enumerate() {
        if logit >= floor && bin_of(logit) == crossing {
            scratch.best.push((logit, index as u32));
        }
    }
    scratch.best.sort_unstable_by(descending);
    for &(logit, _) in &scratch.best {
        reached += f64::from(exp_nonpositive((logit - max) * inverse_temperature));
        if reached >= wanted {
            return logit;
        }
    }
    floor
}

/// `p >= min_p * p_max` in logits: `logit >= max + temperature * ln(min_p)`, rounded up to f32.
fn min_p_floor(max: f32, params: &SamplingParams) -> f32 {
    let exact = f64::from(max) + f64::from(params.temperature) * f64::from(params.min_p).ln();
    let rounded = exact as f32;
    if f64::from(rounded) < exact { rounded.next_up() } else { rounded }
}
