//! The search for the highest load under which the objectives are still met.
//!
//! 1. Double from the start until a trial fails, the limit is reached, or (where the start fails) halve until one passes.
//! 2. Bisect between the highest load that passed below all failures and the lowest that failed, until the two are within
//!    the resolution.
//! 3. Confirm: run the found load again with other prompts. If it fails, that load counts as failed and the search goes on
//!    below it; if it passes, that is the capacity.
//!
//! Nothing says that a server must fail at every load above one at which it fails. The search never takes a load as passed
//! because a higher one did, and says so when trials contradict each other.

use crate::schedule::Arrivals;
use serde::{Deserialize, Serialize};

/// Most trials, confirmations included.
const TRIALS_MAX: usize = 40;
/// Most times a found load may fail its confirmation.
const CONFIRMATIONS_MAX: usize = 4;

/// What is searched, and between which ends.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchPlan {
    /// Clients of a closed loop, or the rate of an open one.
    pub unit: Unit,
    /// The first trial.
    pub start: f64,
    /// The highest that is tried.
    pub max: f64,
    /// The search ends when the lowest failed is within this share of the highest passed.
    pub resolution: f64,
    /// Share of the requests that must be good.
    pub attainment: f64,
    /// Of rates: the gaps between requests.
    pub arrivals: Arrivals,
    /// Of rates: most requests in flight.
    pub in_flight_max: u32,
}

/// What a load is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Clients.
    Concurrency,
    /// Requests per second.
    Rate,
}

/// One run at one load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The load.
    pub at: f64,
    /// The objectives were met.
    pub passed: bool,
    /// A run of a load that had passed before.
    pub confirmation: bool,
    /// Why it failed; empty where it passed.
    pub why: String,
    /// Its place in the result's levels.
    pub level: usize,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CapacityResult {
    /// What loads are counted in.
    pub unit: Unit,
    /// Share of the requests that had to be good.
    pub attainment: f64,
    /// The highest load that passed and passed again; null when none did.
    pub found: Option<f64>,
    /// The lowest load above it that failed; null when the limit of the search was reached.
    pub failed_at: Option<f64>,
    /// `found` passed a second run.
    pub confirmed: bool,
    /// No load failed below one that passed.
    pub monotonic: bool,
    /// Every trial, in order.
    pub trials: Vec<Trial>,
}

/// A search under way.
#[derive(Debug)]
pub(crate) struct Search {
    plan: SearchPlan,
    trials: Vec<Trial>,
    confirmed: Option<f64>,
}

/// What to run next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    Try { at: f64, confirmation: bool },
    Done,
}

impl Search {
    pub(crate) fn new(plan: SearchPlan) -> Self {
        Self { plan, trials: Vec::new(), confirmed: None }
    }

    pub(crate) fn next(&self) -> Step {
        let failed_confirmations = self.trials.iter().filter(|trial| trial.confirmation && !trial.passed).count();
        if self.confirmed.is_some() || self.trials.len() >= TRIALS_MAX || failed_confirmations >= CONFIRMATIONS_MAX {
            return Step::Done;
        }
        let attempt = |at: f64| Step::Try { at, confirmation: false };
        match (self.passed(), self.failed()) {
            (None, None) => attempt(self.rounded(self.plan.start.min(self.plan.max))),
            (None, Some(failed)) => {
                let half = self.rounded(failed / 2.0);
                if half < failed && half > self.plan.start / 1024.0 { attempt(half) } else { Step::Done }
            }
            (Some(passed), None) if passed >= self.plan.max => self.confirm(passed),
            (Some(passed), None) => attempt(self.rounded((passed * 2.0).min(self.plan.max))),
            (Some(passed), Some(failed)) => {
                let middle = self.rounded((passed + failed) / 2.0);
                let fine = failed - passed <= passed * self.plan.resolution;
                if fine || middle <= passed || middle >= failed { self.confirm(passed) } else { attempt(middle) }
            }
        }
    }

    pub(crate) fn note(&mut self, trial: Trial) {
        if trial.confirmation && trial.passed {
            self.confirmed = Some(trial.at);
        }
        self.trials.push(trial);
    }

    pub(crate) fn result(self) -> CapacityResult {
        let found = self.confirmed.or_else(|| self.passed());
        let monotonic = !self
            .trials
            .iter()
            .any(|failed| !failed.passed && self.trials.iter().any(|passed| passed.passed && passed.at >= failed.at));
        CapacityResult {
            unit: self.plan.unit,
            attainment: self.plan.attainment,
            found,
            failed_at: self.failed(),
            confirmed: self.confirmed.is_some(),
            monotonic,
            trials: self.trials,
        }
    }

    fn confirm(&self, at: f64) -> Step {
        Step::Try { at, confirmation: true }
    }

    /// The lowest load that ever failed.
    fn failed(&self) -> Option<f64> {
        self.trials.iter().filter(|trial| !trial.passed).map(|trial| trial.at).reduce(f64::min)
    }

    /// The highest that passed below it.
    fn passed(&self) -> Option<f64> {
        let failed = self.failed().unwrap_or(f64::INFINITY);
        self.trials.iter().filter(|trial| trial.passed && trial.at < failed).map(|trial| trial.at).reduce(f64::max)
    }

    /// Clients come whole, at least one.
    fn rounded(&self, load: f64) -> f64 {
        match self.plan.unit {
            Unit::Concurrency => load.floor().max(1.0),
            Unit::Rate => load,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(unit: Unit, start: f64, max: f64, passes: impl Fn(f64, usize) -> bool) -> CapacityResult {
        let mut search = Search::new(SearchPlan {
            unit,
            start,
            max,
            resolution: 0.05,
            attainment: 0.99,
            arrivals: Arrivals::Poisson,
            in_flight_max: 1,
        });
        while let Step::Try { at, confirmation } = search.next() {
            let level = search.trials.len();
            let passed = passes(at, level);
            search.note(Trial { at, passed, confirmation, why: String::new(), level });
        }
        search.result()
    }

    #[test]
    fn an_edge_is_found_confirmed_and_bracketed() {
        for edge in [1.0, 2.0, 7.0, 63.0, 64.0, 400.0, 1000.0] {
            let result = search(Unit::Concurrency, 4.0, 1000.0, |at, _| at <= edge);
            let found = result.found.unwrap();
            assert!(found <= edge && found >= (edge / 1.06).floor(), "{edge}: {found}");
            assert!(result.confirmed && result.monotonic && result.trials.len() <= 16, "{edge}: {result:?}");
            assert_eq!(result.failed_at.is_none(), edge == 1000.0);
        }
        let result = search(Unit::Rate, 1.0, 1e6, |at, _| at <= 3.3);
        assert!((3.1..=3.3).contains(&result.found.unwrap()), "{result:?}");
        let result = search(Unit::Rate, 64.0, 1e6, |at, _| at <= 0.7);
        assert!((0.66..=0.7).contains(&result.found.unwrap()), "{result:?}");
    }

    #[test]
    fn a_server_that_never_meets_the_objectives_has_no_capacity() {
        for (unit, most) in [(Unit::Concurrency, 5), (Unit::Rate, 12)] {
            let result = search(unit, 8.0, 100.0, |_, _| false);
            assert_eq!((result.found, result.confirmed), (None, false));
            assert!(result.trials.len() <= most, "{result:?}");
        }
    }

    #[test]
    fn a_load_that_fails_its_confirmation_is_not_the_capacity() {
        // 16 passes the first time only.
        let result = search(Unit::Concurrency, 1.0, 1000.0, |at, level| at <= 12.0 || (at <= 16.0 && level < 8));
        let found = result.found.unwrap();
        assert!(found <= 12.0 && result.confirmed, "{result:?}");
        assert!(!result.monotonic, "16 passed and failed: {result:?}");
    }

    #[test]
    fn a_dip_is_not_searched_beyond() {
        // Fails between 9 and 20, passes again up to 100: what is found lies below the dip only if a trial saw it.
        let result = search(Unit::Concurrency, 1.0, 1000.0, |at, _| at <= 100.0 && !(9.0..=20.0).contains(&at));
        assert_eq!(result.found, Some(8.0), "{result:?}");
        // Coins: it ends all the same.
        let result = search(Unit::Rate, 1.0, 1e6, |at, level| !(at.to_bits() as usize ^ level).is_multiple_of(3));
        assert!(result.trials.len() <= TRIALS_MAX);
    }
}
