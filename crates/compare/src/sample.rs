//! One side's values of one measure, and the numbers that any weighting of its runs or requests gives.
//!
//! A bootstrap asks the same question of many resamples. Here a resample is a weight for each run or for each block of
//! requests: values are sorted once, and each weighting costs one walk over them.

use crate::metric::Statistic;
use powertrain_load::Random;

/// Numbers of a distribution, in the order of [`Statistic::ALL`].
pub type Numbers = [f64; Statistic::ALL.len()];

/// What a level left of one measure on one side.
#[derive(Clone, Debug)]
pub enum Measure {
    /// Every value, from raw events.
    Distribution(Sample),
    /// A count over a time.
    Rate(Rate),
    /// The runs' own numbers, where there are no raw events: NaN where a run has none.
    Stored(Vec<Numbers>),
}

/// Values of requests; requests that ran at the same time stand in one block, blocks in runs.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Ascending, each with its block.
    values: Vec<(f64, u32)>,
    /// The run of each block.
    run_of_block: Vec<u32>,
    runs: u32,
    requests: u32,
}

/// A rate: its first statistic is the mean, it has no others.
#[derive(Clone, Debug, Default)]
pub struct Rate {
    /// Of each run: what was counted, and the seconds it took.
    pub runs: Vec<(f64, f64)>,
    /// Of each run: what was counted in each of equally long slices of its time; may be empty.
    pub slices: Vec<Vec<f64>>,
}

impl Sample {
    /// Adds a run: the values of each of its requests, in the order in which the requests were due. `block` neighbours are
    /// taken as one, since they shared the server's state.
    pub fn push_run(&mut self, requests: &[Vec<f64>], block: usize) {
        for neighbours in requests.chunks(block.max(1)) {
            let number = self.run_of_block.len() as u32;
            self.run_of_block.push(self.runs);
            self.values.extend(neighbours.iter().flatten().map(|&value| (value, number)));
        }
        self.requests += requests.iter().filter(|values| !values.is_empty()).count() as u32;
        self.runs += 1;
        self.values.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    }

    /// Whether there are enough values beyond a percentile for an interval of it to exist (as `bench` demands), from at
    /// least eight requests.
    pub fn supports(&self, statistic: Statistic) -> bool {
        match statistic.quantile() {
            None => !self.values.is_empty(),
            Some(q) => q.powf(self.values.len() as f64) <= 0.025 && self.requests >= 8,
        }
    }

    /// Numbers of the sample in which each value counts as often as its block's weight.
    fn numbers(&self, weight_of_block: &[u32]) -> Numbers {
        let total: u64 = self.values.iter().map(|&(_, block)| u64::from(weight_of_block[block as usize])).sum();
        if total == 0 {
            return [f64::NAN; Statistic::ALL.len()];
        }
        // Linear interpolation at rank q (n - 1), as everywhere: each quantile is made of the values at two ranks.
        let mut parts = [(u64::MAX, 0, 0.0); 2 * Statistic::ALL.len()];
        for (place, q) in Statistic::ALL.into_iter().enumerate().filter_map(|(at, of)| Some((at, of.quantile()?))) {
            let rank = q * (total - 1) as f64;
            let (below, share) = (rank.floor() as u64, rank.fract());
            parts[2 * place] = (below, place, 1.0 - share);
            parts[2 * place + 1] = (if share > 0.0 { below + 1 } else { u64::MAX }, place, share);
        }
        parts.sort_unstable_by_key(|part| part.0);
        let mut parts = parts.into_iter().peekable();
        let mut numbers = [0.0; Statistic::ALL.len()];
        let (mut seen, mut sum) = (0_u64, 0.0);
        // Millions of values for each of a thousand resamples: nothing else may happen here.
        for &(value, block) in &self.values {
            let weight = weight_of_block[block as usize];
            sum += value * f64::from(weight);
            seen += u64::from(weight);
            while let Some((_, place, share)) = parts.next_if(|part| part.0 < seen) {
                numbers[place] += value * share;
            }
        }
        numbers[0] = sum / total as f64;
        numbers
    }
}

impl Measure {
    /// How many runs it holds.
    pub fn runs(&self) -> usize {
        match self {
            Self::Distribution(sample) => sample.runs as usize,
            Self::Rate(rate) => rate.runs.len(),
            Self::Stored(numbers) => numbers.len(),
        }
    }

    /// Parts that requests or time are resampled by; 0 where there are no raw events.
    pub fn blocks(&self) -> usize {
        match self {
            Self::Distribution(sample) => sample.run_of_block.len(),
            Self::Rate(rate) => rate.slices.iter().map(Vec::len).sum(),
            Self::Stored(_) => 0,
        }
    }

    /// Whether the number may be stated.
    pub fn supports(&self, statistic: Statistic) -> bool {
        match self {
            Self::Distribution(sample) => sample.supports(statistic),
            Self::Rate(rate) => statistic == Statistic::Mean && !rate.runs.is_empty(),
            Self::Stored(runs) => {
                let place = Statistic::ALL.iter().position(|&other| other == statistic).unwrap_or(0);
                !runs.is_empty() && runs.iter().all(|numbers| numbers[place].is_finite())
            }
        }
    }

    /// The numbers as measured.
    pub fn numbers(&self) -> Numbers {
        self.of_runs(&vec![1; self.runs()])
    }

    /// The numbers when each run counts as often as its weight.
    pub fn of_runs(&self, weight_of_run: &[u32]) -> Numbers {
        match self {
            Self::Distribution(sample) => {
                let weights: Vec<u32> = sample.run_of_block.iter().map(|&run| weight_of_run[run as usize]).collect();
                sample.numbers(&weights)
            }
            Self::Rate(rate) => {
                let weighted = |part: fn(&(f64, f64)) -> f64| -> f64 {
                    rate.runs.iter().zip(weight_of_run).map(|(run, &weight)| part(run) * f64::from(weight)).sum()
                };
                only_mean(weighted(|run| run.0) / weighted(|run| run.1))
            }
            Self::Stored(runs) => {
                let total: u32 = weight_of_run.iter().sum();
                std::array::from_fn(|place| {
                    let sum: f64 = runs.iter().zip(weight_of_run).map(|(run, &w)| run[place] * f64::from(w)).sum();
                    sum / f64::from(total)
                })
            }
        }
    }

    /// The numbers of a resample of blocks, as many within each run as it has; none without raw events.
    pub fn of_drawn_blocks(&self, random: &mut Random) -> Option<Numbers> {
        match self {
            Self::Stored(_) => None,
            Self::Distribution(sample) => {
                let mut weights = vec![0; sample.run_of_block.len()];
                let mut first = 0;
                for run in sample.run_of_block.chunk_by(|a, b| a == b) {
                    draw(&mut weights[first..first + run.len()], random);
                    first += run.len();
                }
                Some(sample.numbers(&weights))
            }
            Self::Rate(rate) => {
                let (mut drawn, mut measured) = (0.0, 0.0);
                for slices in &rate.slices {
                    let mut weights = vec![0; slices.len()];
                    draw(&mut weights, random);
                    drawn += slices.iter().zip(&weights).map(|(count, &weight)| count * f64::from(weight)).sum::<f64>();
                    measured += slices.iter().sum::<f64>();
                }
                // Slices leave out how a run began and ended: they tell how the rate varied, the runs tell the rate.
                (measured > 0.0).then(|| only_mean(self.numbers()[0] * drawn / measured))
            }
        }
    }
}

/// Draws as many as there are, with replacement, and counts how often each came.
pub(crate) fn draw(counts: &mut [u32], random: &mut Random) {
    counts.fill(0);
    for _ in 0..counts.len() {
        counts[random.below(counts.len() as u64) as usize] += 1;
    }
}

fn only_mean(mean: f64) -> Numbers {
    let mut numbers = [f64::NAN; Statistic::ALL.len()];
    numbers[0] = mean;
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use powertrain_load::statistics::interpolated;

    #[test]
    fn weights_count_as_copies() {
        let seed = 5;
        let mut random = Random::new(seed);
        let requests: Vec<Vec<f64>> =
            (0..40).map(|number| (0..number % 4).map(|_| random.exponential()).collect()).collect();
        let mut sample = Sample::default();
        sample.push_run(&requests[..25], 3);
        sample.push_run(&requests[25..], 3);
        // Every third block twice, every third not at all.
        let weights: Vec<u32> = (0..sample.run_of_block.len() as u32).map(|block| block % 3).collect();
        let blocks = requests[..25].chunks(3).chain(requests[25..].chunks(3));
        let mut copies: Vec<f64> = blocks
            .zip(&weights)
            .flat_map(|(block, &weight)| std::iter::repeat_n(block, weight as usize).flatten().flatten().copied())
            .collect();
        copies.sort_unstable_by(f64::total_cmp);
        let numbers = sample.numbers(&weights);
        for (statistic, number) in Statistic::ALL.into_iter().zip(numbers) {
            let expected = match statistic.quantile() {
                Some(q) => interpolated(&copies, q),
                None => copies.iter().sum::<f64>() / copies.len() as f64,
            };
            assert!((number - expected).abs() < 1e-12, "seed {seed}, {}: {number} {expected}", statistic.name());
        }
    }

    #[test]
    fn rates_are_sums_over_sums() {
        let rate = Measure::Rate(Rate { runs: vec![(100.0, 10.0), (300.0, 10.0)], slices: vec![vec![10.0; 10]; 2] });
        assert_eq!(rate.numbers()[0], 20.0);
        assert_eq!(rate.of_runs(&[2, 0])[0], 10.0);
        // Even slices: nothing varies.
        assert_eq!(rate.of_drawn_blocks(&mut Random::new(1)).unwrap()[0], 20.0);
        assert!(rate.supports(Statistic::Mean) && !rate.supports(Statistic::P50));
    }

    #[test]
    fn a_percentile_needs_values_beyond_it() {
        let mut sample = Sample::default();
        sample.push_run(&(0..100).map(|n| vec![f64::from(n)]).collect::<Vec<_>>(), 1);
        let supported: Vec<bool> = Statistic::ALL.into_iter().map(|statistic| sample.supports(statistic)).collect();
        assert_eq!(supported, [true, true, true, true, false, false]);
        // Many values of few requests know little.
        let mut few = Sample::default();
        few.push_run(&vec![vec![1.0; 1000]; 5], 1);
        assert!(!few.supports(Statistic::P50));
    }
}
