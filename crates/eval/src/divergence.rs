//! How far one model's predictions are from another's on the same text, over the whole vocabulary.

use crate::Likelihood;
use powertrain_compare::mean_interval;

/// Two models' log-probabilities of every token at one position.
#[derive(Clone, Copy, Debug)]
pub struct Position<'a> {
    /// The reference's, by token id.
    pub reference: &'a [f32],
    /// The other's.
    pub other: &'a [f32],
    /// The token that stands there.
    pub token: u32,
}

/// Sums over positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Divergence {
    /// The reference's.
    pub likelihood_reference: Likelihood,
    /// The other's.
    pub likelihood_other: Likelihood,
    /// Each position's Kullback-Leibler divergence of the other from the reference, in nats.
    divergences: Vec<f64>,
    /// Positions of each window that are in `divergences`, and how many of them agree.
    windows: Vec<(usize, u64)>,
    /// Positions at which the other excludes what the reference does not: their divergence is infinite, and they are left
    /// out of its mean.
    pub infinite: u64,
}

impl Divergence {
    /// Adds a window.
    ///
    /// # Panics
    /// When the two have vocabularies of different size.
    pub fn push_window<'a>(&mut self, positions: impl Iterator<Item = Position<'a>>) {
        let (mut reference, mut other, mut agreed, mut count) = (Vec::new(), Vec::new(), 0, 0);
        for position in positions {
            assert_eq!(position.reference.len(), position.other.len(), "vocabularies of different size");
            let divergence = divergence(position.reference, position.other);
            if divergence.is_finite() {
                self.divergences.push(divergence);
            } else {
                self.infinite += 1;
            }
            count += 1;
            agreed += u64::from(highest(position.reference) == highest(position.other));
            reference.push(f64::from(position.reference[position.token as usize]));
            other.push(f64::from(position.other[position.token as usize]));
        }
        if count > 0 {
            self.windows.push((count, agreed));
            self.likelihood_reference.push(&reference);
            self.likelihood_other.push(&other);
        }
    }

    /// Positions compared.
    pub fn positions(&self) -> usize {
        self.windows.iter().map(|window| window.0).sum()
    }

    /// Windows compared.
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// Share of positions at which both find the same token most probable; the lower id among equals.
    pub fn top1_agreement(&self) -> f64 {
        self.windows.iter().map(|window| window.1).sum::<u64>() as f64 / self.positions() as f64
    }

    /// Its interval, by the spread between windows.
    pub fn top1_agreement_interval(&self) -> Option<(f64, f64)> {
        let shares: Vec<f64> = self.windows.iter().map(|&(count, agreed)| agreed as f64 / count as f64).collect();
        mean_interval(&shares, 0.95).map(|(low, high)| (low.max(0.0), high.min(1.0)))
    }

    /// Mean divergence, in nats.
    pub fn mean(&self) -> f64 {
        self.divergences.iter().sum::<f64>() / self.divergences.len() as f64
    }

    /// Its interval, by the spread between windows; none where a window has infinite ones.
    pub fn mean_interval(&self) -> Option<(f64, f64)> {
        if self.infinite > 0 {
            return None;
        }
        let mut rest = self.divergences.as_slice();
        let means: Vec<f64> = self
            .windows
            .iter()
            .map(|&(count, _)| {
                let (window, after) = rest.split_at(count);
                rest = after;
                window.iter().sum::<f64>() / count as f64
            })
            .collect();
        mean_interval(&means, 0.95).map(|(low, high)| (low.max(0.0), high))
    }

    /// The quantile `q` of the positions' divergences, in nats.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let mut sorted = self.divergences.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let rank = q.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
        let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
        Some(below + (above - below) * rank.fract())
    }
}

/// The sum of `p (ln p - ln q)` over the vocabulary, in f64. Rounding of the logarithms can leave it a little below zero.
fn divergence(reference: &[f32], other: &[f32]) -> f64 {
    let terms = reference.iter().zip(other).filter(|(p, _)| **p > f32::NEG_INFINITY);
    terms.map(|(&p, &q)| f64::from(p).exp() * (f64::from(p) - f64::from(q))).sum()
}

fn highest(logprobs: &[f32]) -> usize {
    let mut best = 0;
    for (id, &logprob) in logprobs.iter().enumerate() {
        if logprob > logprobs[best] {
            best = id;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn divergence_is_that_of_the_definition() {
        let (p, q) = (logs(&[0.5, 0.25, 0.25]), logs(&[0.25, 0.5, 0.25]));
        // 0.5 ln 2 - 0.25 ln 2
        let expected = 0.25 * std::f64::consts::LN_2;
        assert!((divergence(&p, &q) - expected).abs() < 1e-6);
        assert_eq!(divergence(&p, &p), 0.0);
        assert_eq!(divergence(&p, &logs(&[0.5, 0.5, 0.0])), f64::INFINITY);
        // What the reference excludes does not count.
        assert!((divergence(&logs(&[1.0, 0.0]), &logs(&[0.5, 0.5])) - std::f64::consts::LN_2).abs() < 1e-6);
    }

    #[test]
    fn windows_are_summed() {
        let (p, q) = (logs(&[0.5, 0.3, 0.2]), logs(&[0.3, 0.5, 0.2]));
        let position = |other| Position { reference: &p, other, token: 0 };
        let mut found = Divergence::default();
        found.push_window([position(&p), position(&q)].into_iter());
        found.push_window([position(&p), position(&p)].into_iter());
        found.push_window(std::iter::empty());
        assert_eq!((found.windows(), found.positions(), found.top1_agreement()), (2, 4, 0.75));
        let one = divergence(&p, &q);
        assert!((found.mean() - one / 4.0).abs() < 1e-12);
        assert_eq!(found.quantile(1.0), Some(one));
        assert!(found.mean_interval().is_some() && found.top1_agreement_interval().is_some());
        assert!((found.likelihood_reference.perplexity().unwrap() - 2.0).abs() < 1e-6);
        assert!(found.likelihood_other.perplexity().unwrap() > 2.0);
        let none = logs(&[0.0, 0.5, 0.5]);
        found.push_window([position(&none)].into_iter());
        assert_eq!((found.infinite, found.mean_interval()), (1, None));
    }
}
