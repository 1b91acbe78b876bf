//! The sweet spot: the load at which a side is best used, by a stated rule.

use crate::{
    figure::Figure,
    metric,
    requirement::{self, Check, Met},
    run::Load,
    scenario::Scenario,
    side::{Point, Side},
};

/// A level with a greater share of failed and cut-off requests is no place to work at.
pub const FAILED_SHARE_MAX: f64 = 0.01;
/// Throughput that close to the highest is as good as the highest.
pub const THROUGHPUT_TOLERANCE: f64 = 0.05;

/// The rule, as the report states it.
pub const RULE: &str = "Of the levels that ran to their end, lost at most 1 % of their requests and are shown to meet every \
requirement, take the highest output throughput; of all levels within 5 % of it, the sweet spot is the one with the least load. \
Where no level is shown to meet the requirements, the same rule without them marks the knee.";

/// Where a side is best used.
#[derive(Clone, Debug)]
pub struct SweetSpot {
    /// The load.
    pub load: Load,
    /// Its number, as the result has it.
    pub load_figure: Option<Figure>,
    /// Output tokens per second there.
    pub throughput: Figure,
    /// What the requirements come to there.
    pub checks: Vec<Check>,
    /// Every requirement is shown to be met; true where there is none.
    pub meets_requirements: bool,
}

/// Finds the sweet spot of a side; none when no level ran to its end with hardly any failures.
pub fn find(scenario: &Scenario, side: &Side) -> Option<SweetSpot> {
    let candidates: Vec<(&Point, Figure, Vec<Check>)> = side
        .points
        .iter()
        .filter(|point| !side.marks(point).interrupted)
        .filter(|point| {
            let failed = side.number(point, |level| level.failed_share());
            failed.is_some_and(|failed| failed.value <= FAILED_SHARE_MAX)
        })
        .filter_map(|point| {
            Some((point, side.metric(point, metric::OUTPUT)?, requirement::checks(scenario, side, Some(point))))
        })
        .collect();
    let meets = |checks: &[Check]| checks.iter().all(|check| check.verdict == Met::Yes);
    let best = |required: bool| {
        let allowed = || candidates.iter().filter(|(_, _, checks)| !required || meets(checks));
        let highest = allowed().map(|(_, throughput, _)| throughput.value).max_by(f64::total_cmp)?;
        allowed().find(|(_, throughput, _)| throughput.value >= highest * (1.0 - THROUGHPUT_TOLERANCE))
    };
    let (point, throughput, checks) = best(true).or_else(|| best(false))?;
    Some(SweetSpot {
        load: point.load.clone(),
        load_figure: side.load_figure(point),
        throughput: throughput.clone(),
        meets_requirements: meets(checks),
        checks: checks.clone(),
    })
}
