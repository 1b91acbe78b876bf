//! How probable a model found a text, window by window.

use powertrain_compare::mean_interval;

/// Scored windows: tokens, and the sum of their negative natural log-probabilities.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Likelihood {
    /// One for each window.
    pub windows: Vec<(u64, f64)>,
}

impl Likelihood {
    /// Adds a window by its tokens' log-probabilities; none of no tokens.
    pub fn push(&mut self, logprobs: &[f64]) {
        if !logprobs.is_empty() {
            self.windows.push((logprobs.len() as u64, -logprobs.iter().sum::<f64>()));
        }
    }

    /// Tokens of all windows.
    pub fn tokens(&self) -> u64 {
        self.windows.iter().map(|window| window.0).sum()
    }

    /// Sum over all tokens.
    pub fn negative_log_likelihood(&self) -> f64 {
        self.windows.iter().map(|window| window.1).sum()
    }

    /// `exp` of the mean negative log-likelihood of a token; none without tokens.
    pub fn perplexity(&self) -> Option<f64> {
        (self.tokens() > 0).then(|| (self.negative_log_likelihood() / self.tokens() as f64).exp())
    }

    /// Its 95 % interval over texts like this one, by the spread between windows; needs two.
    pub fn interval(&self) -> Option<(f64, f64)> {
        // Windows are of almost one length: the mean over windows is that over tokens.
        let means: Vec<f64> = self.windows.iter().map(|&(tokens, sum)| sum / tokens as f64).collect();
        mean_interval(&means, 0.95).map(|(low, high)| (low.exp(), high.exp()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_of_even_chances_is_their_number() {
        let mut likelihood = Likelihood::default();
        assert_eq!((likelihood.perplexity(), likelihood.interval()), (None, None));
        for _ in 0..3 {
            likelihood.push(&[(1.0_f64 / 8.0).ln(); 10]);
        }
        likelihood.push(&[]);
        assert_eq!((likelihood.windows.len(), likelihood.tokens()), (3, 30));
        assert!((likelihood.perplexity().unwrap() - 8.0).abs() < 1e-9);
        let (low, high) = likelihood.interval().unwrap();
        assert!((low - 8.0).abs() < 1e-6 && (high - 8.0).abs() < 1e-6);
        likelihood.push(&[(1.0_f64 / 16.0).ln(); 10]);
        let (low, high) = likelihood.interval().unwrap();
        assert!(low < likelihood.perplexity().unwrap() && likelihood.perplexity().unwrap() < high);
    }
}
