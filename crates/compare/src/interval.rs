//! How much of a ratio between two sides is chance.
//!
//! **Between runs** (at least two on each side): runs are resampled, all requests of a run together, so that whatever a
//! start, a warm machine or a neighbour does to a whole run counts as chance. The spread of the logarithm of the resampled
//! numbers, corrected for few runs by `k / (k - 1)`, is its variance; the interval is Student's t with Welch's degrees of
//! freedom. (The plain percentiles of a bootstrap over three runs are far too narrow.) Runs that alternated are resampled
//! in pairs: what drifted slowly then hits both and cancels.
//!
//! **Within runs** (raw events): blocks of requests that ran together are resampled within each run; the interval is that of
//! the resampled ratios' percentiles. It holds for these runs only and says nothing about the next ones.

use crate::{
    metric::Statistic,
    sample::{Measure, draw},
    student,
};
use powertrain_load::Random;
use serde::Serialize;

/// Fewer parts of runs than this cannot be resampled.
const BLOCKS_MIN: usize = 8;
/// The probability with which a difference of the stated size would have been seen.
const POWER: f64 = 0.8;

/// An interval of the ratio B / A, and the smallest change it could show.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end of the ratio.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The smallest relative change (0.05 is 5 %) that would have been found with 80 % probability.
    pub detectable_change: f64,
}

/// How resampling is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resampling {
    /// Probability that an interval holds the truth.
    pub confidence: f64,
    /// How often.
    pub resamples: usize,
    /// Everything random follows from it.
    pub seed: u64,
}

impl Default for Resampling {
    fn default() -> Self {
        Self { confidence: 0.95, resamples: 1000, seed: 1 }
    }
}

/// One interval for each of [`Statistic::ALL`].
pub type Intervals = [Option<Interval>; Statistic::ALL.len()];

/// Between runs; `paired` says that the first runs of both sides belong together, the second ones, and so on.
pub fn between_runs(a: &Measure, b: &Measure, paired: bool, how: Resampling) -> Intervals {
    let (runs_a, runs_b) = (a.runs(), b.runs());
    if runs_a < 2 || runs_b < 2 {
        return [None; Statistic::ALL.len()];
    }
    assert!(!paired || runs_a == runs_b, "pairs need as many runs on both sides, not {runs_a} and {runs_b}");
    let (mut random_a, mut random_b) = (Random::of_item(how.seed, 0), Random::of_item(how.seed, 1));
    let mut logs: [Vec<(f64, f64)>; Statistic::ALL.len()] = Default::default();
    let (mut weights_a, mut weights_b) = (vec![0; runs_a], vec![0; runs_b]);
    for _ in 0..how.resamples {
        draw(&mut weights_a, &mut random_a);
        if paired {
            weights_b.copy_from_slice(&weights_a);
        } else {
            draw(&mut weights_b, &mut random_b);
        }
        let drawn = a.of_runs(&weights_a).into_iter().zip(b.of_runs(&weights_b));
        for (logs, (a, b)) in logs.iter_mut().zip(drawn) {
            logs.push((a.ln(), b.ln()));
        }
    }
    let (numbers_a, numbers_b) = (a.numbers(), b.numbers());
    std::array::from_fn(|place| {
        let few = |runs: usize| runs as f64 / (runs as f64 - 1.0);
        let logs = &logs[place];
        let (variance, degrees) = if paired {
            (variance(logs.iter().map(|(a, b)| b - a)) * few(runs_a), runs_a as f64 - 1.0)
        } else {
            let of_a = variance(logs.iter().map(|log| log.0)) * few(runs_a);
            let of_b = variance(logs.iter().map(|log| log.1)) * few(runs_b);
            (of_a + of_b, welch(of_a, runs_a, of_b, runs_b))
        };
        let center = (numbers_b[place] / numbers_a[place]).ln();
        let error = variance.sqrt();
        let degrees = (degrees.floor() as u32).max(1);
        let reach = student::two_sided(how.confidence, degrees) * error;
        (center.is_finite() && error.is_finite()).then(|| Interval {
            low: (center - reach).exp(),
            high: (center + reach).exp(),
            detectable_change: detectable(error, how.confidence, degrees),
        })
    })
}

/// Within these runs.
pub fn within_runs(a: &Measure, b: &Measure, how: Resampling) -> Intervals {
    if a.blocks() < BLOCKS_MIN || b.blocks() < BLOCKS_MIN {
        return [None; Statistic::ALL.len()];
    }
    let (mut random_a, mut random_b) = (Random::of_item(how.seed, 2), Random::of_item(how.seed, 3));
    let mut logs: [Vec<f64>; Statistic::ALL.len()] = Default::default();
    for _ in 0..how.resamples {
        let (Some(a), Some(b)) = (a.of_drawn_blocks(&mut random_a), b.of_drawn_blocks(&mut random_b)) else {
            return [None; Statistic::ALL.len()];
        };
        for (logs, (a, b)) in logs.iter_mut().zip(a.into_iter().zip(b)) {
            logs.push((b / a).ln());
        }
    }
    let degrees = u32::try_from(a.blocks().min(b.blocks()) - 1).unwrap_or(u32::MAX);
    logs.map(|mut logs| {
        if logs.iter().any(|log| !log.is_finite()) {
            return None;
        }
        logs.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - how.confidence) / 2.0;
        let end = |q| powertrain_load::statistics::interpolated(&logs, q).exp();
        let error = variance(logs.iter().copied()).sqrt();
        Some(Interval {
            low: end(tail),
            high: end(1.0 - tail),
            detectable_change: detectable(error, how.confidence, degrees),
        })
    })
}

/// The change whose logarithm a test at this confidence finds with [`POWER`].
fn detectable(error: f64, confidence: f64, degrees: u32) -> f64 {
    let reach = student::two_sided(confidence, degrees) + student::one_sided(POWER, degrees);
    (reach * error).exp() - 1.0
}

/// Degrees of freedom of a difference whose two sides vary differently (Welch and Satterthwaite).
fn welch(of_a: f64, runs_a: usize, of_b: f64, runs_b: usize) -> f64 {
    let both = (of_a + of_b).powi(2);
    if both == 0.0 {
        return (runs_a + runs_b - 2) as f64;
    }
    both / (of_a.powi(2) / (runs_a as f64 - 1.0) + of_b.powi(2) / (runs_b as f64 - 1.0))
}

fn variance(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / count;
    values.map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    const HOW: Resampling = Resampling { confidence: 0.95, resamples: 200, seed: 3 };

    /// A world in which runs differ by themselves, and requests within a run.
    #[derive(Clone, Copy, Debug)]
    struct World {
        runs: usize,
        requests: usize,
        between: f64,
        within: f64,
        /// Drift shared by the runs of one pair.
        drift: f64,
    }

    /// Log-normal times around 100 ms.
    fn sides(random: &mut Random, world: World, ratio: f64) -> (Measure, Measure) {
        let drifts: Vec<f64> = (0..world.runs).map(|_| world.drift * random.normal()).collect();
        let mut side = |factor: f64| {
            let mut sample = Sample::default();
            for drift in &drifts {
                let own = factor.ln() + drift + world.between * random.normal();
                let value = |random: &mut Random| 100.0 * (own + world.within * random.normal()).exp();
                sample.push_run(&(0..world.requests).map(|_| vec![value(random)]).collect::<Vec<_>>(), 1);
            }
            Measure::Distribution(sample)
        };
        (side(1.0), side(ratio))
    }

    /// How often the interval of each statistic (mean, p50, p90, p95) leaves 1 out, over seeded trials. Shown by `--nocapture`.
    fn found(seed: u64, world: World, ratio: f64, intervals: impl Fn(&Measure, &Measure) -> Intervals) -> [f64; 4] {
        let mut random = Random::new(seed);
        let (trials, mut found) = (400, [0.0; 4]);
        for _ in 0..trials {
            let (a, b) = sides(&mut random, world, ratio);
            let intervals = intervals(&a, &b);
            // Mean, p50, p90, p95.
            for (found, interval) in found.iter_mut().zip(intervals) {
                let interval = interval.unwrap();
                *found += f64::from(u8::from(interval.low > 1.0 || interval.high < 1.0)) / f64::from(trials);
            }
        }
        eprintln!("seed {seed}, {world:?}, ratio {ratio}: {found:.3?} of {trials} trials");
        found
    }

    #[test]
    fn equal_sides_are_called_different_as_rarely_as_stated() {
        let between = |a: &Measure, b: &Measure| between_runs(a, b, false, HOW);
        for (seed, runs, spread) in [(1, 3, 0.05), (2, 5, 0.05), (3, 5, 0.0), (4, 8, 0.1)] {
            let world = World { runs, requests: 40, between: spread, within: 0.3, drift: 0.0 };
            let found = found(seed, world, 1.0, between);
            // 400 trials of 5 % vary by 1.1 % (one standard deviation); above 8.5 % is no chance.
            assert!(found.iter().all(|&share| share < 0.085), "seed {seed}, {runs} runs: {found:?}");
        }
    }

    #[test]
    fn a_known_effect_is_found_and_its_size_was_announced() {
        let between = |a: &Measure, b: &Measure| between_runs(a, b, false, HOW);
        let world = World { runs: 5, requests: 40, between: 0.03, within: 0.3, drift: 0.0 };
        let share = found(5, world, 1.2, between);
        assert!(share[0] > 0.95 && share[1] > 0.85, "{share:?}");
        // Announced as found with 80 %: it is, within what 400 trials tell and the estimate itself varies.
        let mut random = Random::new(6);
        let mut announced: Vec<f64> = (0..50)
            .map(|_| {
                let (a, b) = sides(&mut random, world, 1.0);
                between(&a, &b)[0].unwrap().detectable_change
            })
            .collect();
        announced.sort_unstable_by(f64::total_cmp);
        let share = found(7, world, 1.0 + announced[25], between)[0];
        assert!((0.65..0.95).contains(&share), "{} found with {share}", announced[25]);
    }

    #[test]
    fn pairs_cancel_what_drifts() {
        let world = World { runs: 6, requests: 40, between: 0.01, within: 0.2, drift: 0.2 };
        let alone = found(8, world, 1.15, |a, b| between_runs(a, b, false, HOW))[0];
        let paired = found(8, world, 1.15, |a, b| between_runs(a, b, true, HOW))[0];
        assert!(alone < 0.4 && paired > 0.7, "{alone} {paired}");
        let false_alarms = found(9, world, 1.0, |a, b| between_runs(a, b, true, HOW));
        assert!(false_alarms.iter().all(|&share| share < 0.085), "{false_alarms:?}");
    }

    #[test]
    fn within_runs_holds_for_these_runs_only() {
        let calm = World { runs: 1, requests: 200, between: 0.0, within: 0.3, drift: 0.0 };
        let share = found(10, calm, 1.0, |a, b| within_runs(a, b, HOW));
        assert!(share.iter().all(|&share| share < 0.09), "{share:?}");
        // Runs that differ by themselves look different from within: hence the caution in every report of single runs.
        let moving = World { between: 0.05, ..calm };
        let share = found(11, moving, 1.0, |a, b| within_runs(a, b, HOW));
        assert!(share[0] > 0.3, "{share:?}");
    }

    #[test]
    fn too_little_gives_no_interval() {
        let mut random = Random::new(12);
        let single = World { runs: 1, requests: 5, between: 0.0, within: 0.3, drift: 0.0 };
        let (a, b) = sides(&mut random, single, 1.0);
        assert_eq!(between_runs(&a, &b, false, HOW), [None; 6]);
        assert_eq!(within_runs(&a, &b, HOW), [None; 6]);
    }
}
