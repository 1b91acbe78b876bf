//! Percentiles and means, each with its count and, where the count supports it, a 95 % interval.
//!
//! A percentile is the linear interpolation between order statistics at rank `q (n - 1)`, as numpy's default.
//! Its interval is distribution-free: the order statistics between which the true quantile lies with 95 % probability,
//! by the binomial distribution. Gaps of one request resemble each other, so a pooled sample knows less than its count
//! says: the variance of the share of values below the percentile is taken between requests (clusters), and the binomial
//! runs on the effective count `q (1 - q) / variance` (Korn and Graubard, "Confidence intervals for proportions with
//! small expected number of positive counts estimated from survey data", Survey Methodology 24, 1998).
//! A percentile beyond which too few values lie for such an interval, or values of too few requests, is not reported.

/// Mass left out on each side of an interval.
const TAIL: f64 = 0.025;
/// Requests that must have a value at or beyond a percentile: as many as values of independent ones would.
const TAIL_REQUESTS_MIN: usize = 4;
/// Two-sided 95 % point of the normal distribution.
const NORMAL_95: f64 = 1.959_963_985;

/// The percentiles of every distribution, in percent.
pub const PERCENTILES: [f64; 5] = [50.0, 90.0, 95.0, 99.0, 99.9];

/// A sample of one measure: values grouped by the request they come from.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    values: Vec<f64>,
    /// The request of each value, counted from 0.
    clusters: Vec<u32>,
    cluster_count: u32,
}

/// A number and the interval that holds the true one with 95 % probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The sample's own.
    pub value: f64,
    /// Lower and upper end.
    pub interval: (f64, f64),
}

/// A sample in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// How many values.
    pub count: usize,
    /// How many requests they come from.
    pub requests: u32,
    /// Arithmetic mean; its interval needs two requests.
    pub mean: f64,
    /// By Student's t between requests.
    pub mean_interval: Option<(f64, f64)>,
    /// Of the values around the mean, over `count - 1`; 0 for a single value.
    pub standard_deviation: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// One for each of [`PERCENTILES`]; none where the sample is too small for it.
    pub percentiles: [Option<Estimate>; PERCENTILES.len()],
}

impl Sample {
    /// Adds the values of one more request; a request without values adds nothing.
    pub fn push_request(&mut self, values: impl IntoIterator<Item = f64>) {
        let before = self.values.len();
        self.values.extend(values);
        if self.values.len() > before {
            self.clusters.resize(self.values.len(), self.cluster_count);
            self.cluster_count += 1;
        }
    }

    /// The sample in numbers; none when it is empty.
    pub fn distribution(self) -> Option<Distribution> {
        let Self { values, clusters, cluster_count } = self;
        if values.is_empty() {
            return None;
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let mean_variance = cluster_variance(&clusters, cluster_count, |index| values[index] - mean);
        let mean_interval = mean_variance.map(|variance| {
            let reach = student_95(cluster_count - 1) * variance.sqrt();
            (mean - reach, mean + reach)
        });
        let mut sorted = values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let percentiles = PERCENTILES.map(|percent| {
            let q = percent / 100.0;
            let value = interpolated(&sorted, q);
            let beyond = (0..values.len()).filter(|&index| values[index] >= value).map(|index| clusters[index]);
            if distinct(beyond) < TAIL_REQUESTS_MIN {
                return None;
            }
            let share = values.iter().filter(|&&other| other <= value).count() as f64 / count;
            let residual = |index: usize| f64::from(values[index] <= value) - share;
            let variance = cluster_variance(&clusters, cluster_count, residual)?;
            let count = effective_count(count, q, variance, cluster_count);
            let (low, high) = quantile_interval(count, q)?;
            Some(Estimate { value, interval: (interpolated(&sorted, low), interpolated(&sorted, high)) })
        });
        Some(Distribution {
            count: sorted.len(),
            requests: cluster_count,
            mean,
            mean_interval,
            standard_deviation: (squares / (count - 1.0).max(1.0)).sqrt(),
            min: sorted[0],
            max: sorted[sorted.len() - 1],
            percentiles,
        })
    }
}

/// The quantile `q` (0 to 1) of ascending values, by linear interpolation at rank `q (n - 1)`.
///
/// # Panics
/// On an empty slice.
pub fn interpolated(sorted: &[f64], q: f64) -> f64 {
    let rank = q.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = rank.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (rank - below as f64)
}

/// How many different clusters an ascending sequence holds.
fn distinct(clusters: impl Iterator<Item = u32>) -> usize {
    let (count, _) =
        clusters.fold((0, None), |(count, last), cluster| (count + usize::from(last != Some(cluster)), Some(cluster)));
    count
}

/// The variance of a mean of residuals, from the sums per cluster; none with fewer than two clusters.
fn cluster_variance(clusters: &[u32], cluster_count: u32, residual: impl Fn(usize) -> f64) -> Option<f64> {
    if cluster_count < 2 {
        return None;
    }
    // Values of one cluster are neighbours: its sum is complete when the number changes.
    let (mut squares, mut sum, mut current) = (0.0, 0.0, clusters[0]);
    for (index, &cluster) in clusters.iter().enumerate() {
        if cluster != current {
            squares += f64::powi(sum, 2);
            (sum, current) = (0.0, cluster);
        }
        sum += residual(index);
    }
    squares += sum.powi(2);
    let (count, groups) = (clusters.len() as f64, f64::from(cluster_count));
    Some(squares / (count * count) * groups / (groups - 1.0))
}

/// How many independent values the sample is worth for the quantile `q`: never more than it has.
fn effective_count(count: f64, q: f64, variance: f64, clusters: u32) -> f64 {
    let independent = q * (1.0 - q) / count;
    // Single-valued requests are independent by assumption: their spread needs no estimate.
    if f64::from(clusters) == count || variance <= independent {
        return count;
    }
    // The variance itself is an estimate from few clusters; Student's t pays for that.
    let correction = (NORMAL_95 / student_95(clusters - 1)).powi(2);
    (count * independent / variance * correction).clamp(1.0, count)
}

/// The ends of the 95 % interval of the quantile `q`, as quantiles of a sample of `count`; none when the sample has too
/// few values on either side.
fn quantile_interval(count: f64, q: f64) -> Option<(f64, f64)> {
    let count = count.floor() as u64;
    // P(order statistic k <= quantile) = P(at least k of n values lie below it), values below ~ Binomial(n, q).
    // The largest rank with P(X < k) <= TAIL below, the smallest with P(X >= k) <= TAIL above, counted from 1.
    let (mut low, mut high) = (0, None);
    let mut below = 0.0;
    // Ten standard deviations below the middle nothing has weight.
    let middle = count as f64 * q;
    let start = (middle - 10.0 * (middle * (1.0 - q)).sqrt() - 10.0).max(0.0) as u64;
    for rank in start..=count {
        // Here `below` = P(X < rank).
        if below <= TAIL {
            low = rank;
        }
        if 1.0 - below <= TAIL {
            high = Some(rank);
            break;
        }
        below += binomial(count, rank, q);
    }
    let high = high.filter(|&high| high <= count)?;
    let scale = (count - 1).max(1) as f64;
    (low >= 1).then(|| ((low - 1) as f64 / scale, (high - 1) as f64 / scale))
}

/// P(X = k) for X ~ Binomial(n, q), through logarithms: n may be millions.
fn binomial(n: u64, k: u64, q: f64) -> f64 {
    let choose = ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k);
    (choose + k as f64 * q.ln() + (n - k) as f64 * (1.0 - q).ln()).exp()
}

/// ln(n!), by Stirling's series from 16 on (error below 1e-12).
fn ln_factorial(n: u64) -> f64 {
    if n < 16 {
        return (2..=n).map(|factor| (factor as f64).ln()).sum();
    }
    let x = n as f64;
    let series = 1.0 / (12.0 * x) - 1.0 / (360.0 * x.powi(3)) + 1.0 / (1260.0 * x.powi(5));
    x * x.ln() - x + 0.5 * (std::f64::consts::TAU * x).ln() + series
}

/// The two-sided 95 % point of Student's t, by Hill's expansion around the normal (error below 1 % from 3 degrees on);
/// exact for 1 and 2.
pub fn student_95(degrees: u32) -> f64 {
    match degrees {
        0 => f64::INFINITY,
        1 => 12.706_204_736,
        2 => 4.302_652_730,
        _ => {
            let (z, n) = (NORMAL_95, f64::from(degrees));
            let z3 = z.powi(3);
            let z5 = z.powi(5);
            let z7 = z.powi(7);
            z + (z3 + z) / (4.0 * n)
                + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * n * n)
                + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * n.powi(3))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn single(values: impl IntoIterator<Item = f64>) -> Distribution {
        let mut sample = Sample::default();
        values.into_iter().for_each(|value| sample.push_request([value]));
        sample.distribution().unwrap()
    }

    #[test]
    fn percentiles_are_those_of_numpy() {
        // numpy.percentile([15, 20, 35, 40, 50], [0, 5, 25, 40, 90, 100])
        let values = [15.0, 20.0, 35.0, 40.0, 50.0];
        let expected = [(0.0, 15.0), (0.05, 16.0), (0.25, 20.0), (0.4, 29.0), (0.9, 46.0), (1.0, 50.0)];
        for (q, value) in expected {
            assert!((interpolated(&values, q) - value).abs() < 1e-9, "{q}: {}", interpolated(&values, q));
        }
        assert_eq!(interpolated(&[7.0], 0.99), 7.0);
    }

    #[test]
    fn a_percentile_needs_enough_values() {
        // The least n with q^n <= 0.025: 36 for p90, 72 for p95, 368 for p99, 3688 for p99.9; 6 for the median.
        for (q, least) in [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368), (0.999, 3688)] {
            assert_eq!(quantile_interval(f64::from(least - 1), q), None, "{q}");
            assert!(quantile_interval(f64::from(least), q).is_some(), "{q}");
        }
        let small = single((0..40).map(f64::from));
        assert_eq!(small.percentiles.map(|estimate| estimate.is_some()), [true, true, false, false, false]);
        assert_eq!(single([3.0]).mean_interval, None);
        assert_eq!(single([3.0]).standard_deviation, 0.0);
    }

    #[test]
    fn intervals_are_the_binomial_order_statistics() {
        // In exact fractions: for n = 100 the median lies between the 40th and the 61st value with 96.5 %.
        let ends = quantile_interval(100.0, 0.5).unwrap();
        assert_eq!((ends.0 * 99.0, ends.1 * 99.0), (39.0, 60.0));
        // For n = 1000, p99: between the 983rd and the 997th.
        let ends = quantile_interval(1000.0, 0.99).unwrap();
        assert_eq!(((ends.0 * 999.0).round(), (ends.1 * 999.0).round()), (982.0, 996.0));
    }

    #[test]
    fn student_and_factorials_agree_with_tables() {
        for (degrees, expected) in
            [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)]
        {
            let error = student_95(degrees) / expected - 1.0;
            assert!(error.abs() < 0.01, "{degrees}: {}", student_95(degrees));
        }
        let exact: f64 = (2..=20).map(|factor| f64::from(factor).ln()).sum();
        assert!((ln_factorial(20) - exact).abs() < 1e-10);
    }

    /// How often the interval of a percentile holds the true quantile of uniform values, over many samples.
    fn coverage(seed: u64, requests: usize, per_request: usize, shared: f64, percentile: usize) -> f64 {
        let mut random = Random::new(seed);
        let q = PERCENTILES[percentile] / 100.0;
        let (mut held, trials) = (0, 400);
        for _ in 0..trials {
            let mut sample = Sample::default();
            for _ in 0..requests {
                let own = random.uniform();
                // With probability `shared` a value is its request's own: the margin stays uniform.
                let values: Vec<f64> =
                    (0..per_request).map(|_| if random.uniform() < shared { own } else { random.uniform() }).collect();
                sample.push_request(values);
            }
            let (low, high) = sample.distribution().unwrap().percentiles[percentile].unwrap().interval;
            held += usize::from(low <= q && q <= high);
        }
        held as f64 / f64::from(trials)
    }

    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        for (seed, requests, per_request, shared, percentile) in
            [(1, 200, 1, 0.0, 0), (2, 200, 1, 0.0, 1), (3, 60, 50, 0.0, 2), (4, 60, 50, 0.5, 0), (5, 60, 50, 0.9, 0)]
        {
            let covered = coverage(seed, requests, per_request, shared, percentile);
            assert!((0.91..=1.0).contains(&covered), "seed {seed}: {covered}");
        }
    }

    #[test]
    fn alike_values_of_a_request_count_as_few() {
        let sample = |per_request: usize| {
            let mut random = Random::new(9);
            let mut sample = Sample::default();
            for _ in 0..50 {
                let own = random.uniform();
                sample.push_request(std::iter::repeat_n(own, per_request));
            }
            sample.distribution().unwrap()
        };
        let (once, often) = (sample(1), sample(100));
        assert_eq!((often.count, often.requests), (5000, 50));
        // A hundred copies of each value add no knowledge: the interval may not shrink, and p99 stays out of reach.
        let width = |distribution: &Distribution| {
            let (low, high) = distribution.percentiles[0].unwrap().interval;
            high - low
        };
        assert!(width(&often) > 0.8 * width(&once), "{} {}", width(&often), width(&once));
        assert_eq!(often.percentiles[3], None);
    }
}
