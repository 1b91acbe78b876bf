//! How far two models' predictions are apart, from the few most probable tokens that servers tell.
//!
//! The tokens that both name are compared one by one, all others together. By the log-sum inequality that gives a lower bound of
//! the Kullback-Leibler divergence; there is no upper one, since the other model may find a token that nobody named as
//! improbable as it likes. The total variation is bounded from both sides.

use crate::Likelihood;
use powertrain_compare::mean_interval;

/// Logarithms are told with few digits: less probability than this is taken as rounding.
const ROUNDING: f64 = 1e-6;

/// A token as a server names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// By its number in the vocabulary.
    Id(u32),
    /// By its text, where servers give no more; two tokens may share one.
    Text(String),
}

/// The most probable tokens at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternatives {
    /// With natural log-probabilities, the most probable first.
    named: Vec<(Token, f64)>,
    /// No token that is not named is more probable.
    floor: f64,
}

impl Alternatives {
    /// Of what a server named: at least its `top` most probable tokens, and perhaps others. None of nothing, or of what are no
    /// log-probabilities.
    pub fn new(mut named: Vec<(Token, f64)>, top: usize) -> Option<Self> {
        if named.iter().any(|(_, logprob)| logprob.is_nan() || *logprob > ROUNDING) {
            return None;
        }
        named.sort_by(|a, b| b.1.total_cmp(&a.1));
        named.dedup_by(|a, b| a.0 == b.0);
        let floor = named.get(top.min(named.len()).checked_sub(1)?)?.1;
        Some(Self { named, floor })
    }

    /// The most probable token.
    pub fn first(&self) -> &Token {
        &self.named[0].0
    }

    fn logprob(&self, token: &Token) -> Option<f64> {
        self.named.iter().find(|(other, _)| other == token).map(|(_, logprob)| *logprob)
    }

    /// Probability of the tokens that are not named.
    fn rest(&self) -> f64 {
        (1.0 - self.named.iter().map(|(_, logprob)| logprob.exp()).sum::<f64>()).max(0.0)
    }
}

/// Sums over positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopDivergence {
    /// The reference's likelihood of the text, where the servers tell it.
    pub likelihood_reference: Likelihood,
    /// The other's.
    pub likelihood_other: Likelihood,
    positions: Vec<Position>,
    /// Positions of each window.
    windows: Vec<usize>,
}

/// What one position came to.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Position {
    agreed: bool,
    /// In nats.
    divergence_least: f64,
    variation: (f64, f64),
    /// The reference's probability outside of what it named.
    rest: f64,
}

impl TopDivergence {
    /// Adds a window: the reference's alternatives and the other's, position by position.
    pub fn push_window<'a>(&mut self, positions: impl Iterator<Item = (&'a Alternatives, &'a Alternatives)>) {
        let before = self.positions.len();
        self.positions.extend(positions.map(|(reference, other)| position(reference, other)));
        let count = self.positions.len() - before;
        if count > 0 {
            self.windows.push(count);
        }
    }

    /// Positions compared.
    pub fn positions(&self) -> usize {
        self.positions.len()
    }

    /// Windows compared.
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// Share of positions at which both find the same token most probable, and its interval.
    pub fn top1_agreement(&self) -> (f64, Option<(f64, f64)>) {
        let (mean, interval) = self.mean(|position| f64::from(u8::from(position.agreed)));
        (mean, interval.map(|(low, high)| (low.max(0.0), high.min(1.0))))
    }

    /// Mean of the lower bounds of the divergence of the other from the reference, in nats, and its interval.
    pub fn divergence_least(&self) -> (f64, Option<(f64, f64)>) {
        let (mean, interval) = self.mean(|position| position.divergence_least);
        (mean, interval.map(|(low, high)| (low.max(0.0), high)))
    }

    /// Quantile `q` of those lower bounds.
    pub fn divergence_least_quantile(&self, q: f64) -> f64 {
        self.quantile(q, |position| position.divergence_least)
    }

    /// Means of the lower and of the upper bounds of the total variation.
    pub fn total_variation(&self) -> (f64, f64) {
        (self.mean(|position| position.variation.0).0, self.mean(|position| position.variation.1).0)
    }

    /// Mean of the reference's probability outside of the tokens it named.
    pub fn rest(&self) -> f64 {
        self.mean(|position| position.rest).0
    }

    /// Quantile `q` of that probability.
    pub fn rest_quantile(&self, q: f64) -> f64 {
        self.quantile(q, |position| position.rest)
    }

    /// Over positions; the interval by the spread between windows.
    fn mean(&self, value: impl Fn(&Position) -> f64) -> (f64, Option<(f64, f64)>) {
        let mean = |positions: &[Position]| positions.iter().map(&value).sum::<f64>() / positions.len() as f64;
        let mut rest = self.positions.as_slice();
        let means: Vec<f64> = self
            .windows
            .iter()
            .map(|&count| {
                let (window, after) = rest.split_at(count);
                rest = after;
                mean(window)
            })
            .collect();
        (mean(&self.positions), mean_interval(&means, 0.95))
    }

    fn quantile(&self, q: f64, value: impl Fn(&Position) -> f64) -> f64 {
        let mut sorted: Vec<f64> = self.positions.iter().map(value).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        powertrain_load::statistics::interpolated(&sorted, q)
    }
}

fn position(reference: &Alternatives, other: &Alternatives) -> Position {
    // Sums over tokens that both name: divergence, absolute difference, and probability left for all others.
    let (mut divergence, mut apart, mut left, mut left_other) = (0.0, 0.0, 1.0, 1.0);
    // Tokens that only the reference names: how many, and their probability.
    let (mut alone, mut alone_count) = (0.0, 0.0);
    for (token, logprob) in &reference.named {
        let p = logprob.exp();
        match other.logprob(token) {
            Some(logprob_other) => {
                let q = logprob_other.exp();
                divergence += p * (logprob - logprob_other);
                apart += (p - q).abs();
                (left, left_other) = (left - p, left_other - q);
            }
            None => (alone, alone_count) = (alone + p, alone_count + 1.0),
        }
    }
    let (left, left_other) = (left.max(0.0), left_other.max(0.0));
    // The other gives each of those at most its floor; the split of its rest that diverges least is the reference's own.
    let own_split = if left > 0.0 { left_other * alone / left } else { 0.0 };
    let alone_other = own_split.min(alone_count * other.floor.exp());
    divergence += term(alone, alone_other) + term((left - alone).max(0.0), left_other - alone_other);
    Position {
        agreed: reference.first() == other.first(),
        divergence_least: divergence.max(0.0),
        variation: ((apart + (left - left_other).abs()) / 2.0, ((apart + left + left_other) / 2.0).min(1.0)),
        rest: reference.rest(),
    }
}

/// `p ln (p / q)`, where what is left by rounding is nothing.
fn term(p: f64, q: f64) -> f64 {
    if p <= ROUNDING { 0.0 } else { p * (p / q.max(ROUNDING)).ln() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use powertrain_load::Random;

    fn top(probabilities: &[f64], count: usize) -> Alternatives {
        let named = probabilities.iter().enumerate().map(|(id, p)| (Token::Id(id as u32), p.ln()));
        let mut named: Vec<_> = named.collect();
        named.sort_by(|a, b| b.1.total_cmp(&a.1));
        named.truncate(count);
        Alternatives::new(named, count).unwrap()
    }

    fn divergence(p: &[f64], q: &[f64]) -> f64 {
        p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum()
    }

    #[test]
    fn all_of_the_vocabulary_gives_the_divergence_itself() {
        let (p, q) = ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]);
        let found = position(&top(&p, 3), &top(&q, 3));
        assert!((found.divergence_least - divergence(&p, &q)).abs() < 1e-6);
        assert!((found.variation.0 - 0.25).abs() < 1e-9 && (found.variation.1 - 0.25).abs() < 1e-9);
        assert!(!found.agreed && found.rest < 1e-9);
    }

    /// Random distributions of 50 tokens, from alike to unlike, of which a server names some: the truth lies within the bounds,
    /// and the more is named the closer they are.
    #[test]
    fn bounds_hold_the_truth() {
        let mut random = Random::new(5);
        let mut gap = [0.0; 3];
        for trial in 0..300 {
            let mut draw = |scale: f64| -> Vec<f64> { (0..50).map(|_| scale * random.normal()).collect() };
            let (base, change) = (draw(2.0), draw(f64::from(trial % 5) * 0.5));
            let softmax = |logits: Vec<f64>| {
                let sum: f64 = logits.iter().map(|x| x.exp()).sum();
                logits.into_iter().map(|x| x.exp() / sum).collect::<Vec<f64>>()
            };
            let p = softmax(base.clone());
            let q = softmax(base.iter().zip(&change).map(|(a, b)| a + b).collect());
            let truth = divergence(&p, &q);
            let variation = p.iter().zip(&q).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0;
            for (place, count) in [3, 10, 40].into_iter().enumerate() {
                let found = position(&top(&p, count), &top(&q, count));
                assert!(found.divergence_least <= truth + 1e-5, "{count}: {} of {truth}", found.divergence_least);
                let (low, high) = found.variation;
                assert!(low <= variation + 1e-9 && variation <= high + 1e-9, "{count}: {low} {variation} {high}");
                gap[place] += truth - found.divergence_least;
            }
        }
        assert!(gap[0] > 1.5 * gap[1] && gap[1] > 10.0 * gap[2], "{gap:?}");
    }

    #[test]
    fn what_the_other_does_not_name_is_at_most_its_floor() {
        // Nothing in common: the other gives the reference's two at most 0.1 each.
        let named =
            |ids: [u32; 2], p: f64| Alternatives::new(ids.map(|id| (Token::Id(id), p.ln())).to_vec(), 2).unwrap();
        let found = position(&named([1, 2], 0.45), &named([3, 4], 0.1));
        let expected = 0.9 * (0.9_f64 / 0.2).ln() + 0.1 * (0.1_f64 / 0.8).ln();
        assert!((found.divergence_least - expected).abs() < 1e-9, "{}", found.divergence_least);
        // A token named beyond the top, as a prompt's own is, does not lower the floor.
        let own = vec![(Token::Id(3), 0.5_f64.ln()), (Token::Id(4), 0.3_f64.ln()), (Token::Id(9), 0.001_f64.ln())];
        assert_eq!(Alternatives::new(own, 2).unwrap().floor, 0.3_f64.ln());
    }

    #[test]
    fn what_is_no_probability_is_refused() {
        assert_eq!(Alternatives::new(Vec::new(), 5), None);
        assert_eq!(Alternatives::new(vec![(Token::Id(1), f64::NAN)], 5), None);
        assert_eq!(Alternatives::new(vec![(Token::Id(1), 0.5)], 5), None);
    }

    #[test]
    fn windows_are_summed() {
        let (p, q) = (top(&[0.7, 0.2, 0.1], 3), top(&[0.2, 0.7, 0.1], 3));
        let mut found = TopDivergence::default();
        found.push_window([(&p, &p), (&p, &q)].into_iter());
        found.push_window([(&p, &p), (&p, &p)].into_iter());
        found.push_window(std::iter::empty());
        assert_eq!((found.windows(), found.positions(), found.top1_agreement().0), (2, 4, 0.75));
        let one = 0.5 * (0.7_f64 / 0.2).ln();
        assert!((found.divergence_least().0 - one / 4.0).abs() < 1e-6 && found.divergence_least().1.is_some());
        assert!((found.divergence_least_quantile(1.0) - one).abs() < 1e-6);
    }
}
