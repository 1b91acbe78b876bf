//! The client's limits, and whether a level meets them.

use crate::{
    figure::{Figure, Unit},
    metric::{self, Better},
    scenario::{FAILED_SHARE, PERPLEXITY_INCREASE, Scenario},
    side::{Point, Side},
};
use serde::Serialize;

/// A limit on a level, beside what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What is limited.
    pub name: &'static str,
    /// `at most` or `at least`.
    pub direction: &'static str,
    /// By the scenario.
    pub limit: Figure,
    /// What was measured; none where the result has no such number, as when the count does not support a percentile.
    pub found: Option<Figure>,
    /// Whether it is met.
    pub verdict: Met,
}

/// Whether a limit is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Met {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// It was not measured, so it is not shown to be.
    Unknown,
}

/// Judges a level of a side by every limit that a level can meet; without a level, each limit is not shown to be met.
pub fn checks(scenario: &Scenario, side: &Side, point: Option<&Point>) -> Vec<Check> {
    let requirements = scenario.content.requirements.keys().filter(|id| *id != PERPLEXITY_INCREASE);
    let check = |id: &String| {
        let pointer = format!("/requirements/{id}");
        if id == FAILED_SHARE {
            let found = point.and_then(|point| side.number(point, |level| level.failed_share()));
            return Some(judged(
                "Failed and cut-off requests",
                Better::Lower,
                scenario.number(&pointer, Unit::Share)?,
                found,
            ));
        }
        let metric = metric::by_id(id)?;
        let limit = scenario.number(&pointer, metric.unit)?;
        let found = point.and_then(|point| side.metric(point, metric));
        Some(judged(metric.name, metric.better, limit, found))
    };
    requirements.filter_map(check).collect()
}

/// A limit and what was found.
pub fn judged(name: &'static str, better: Better, limit: Figure, found: Option<Figure>) -> Check {
    let verdict = match (&found, better) {
        (None, _) => Met::Unknown,
        (Some(found), Better::Lower) if found.value <= limit.value => Met::Yes,
        (Some(found), Better::Higher) if found.value >= limit.value => Met::Yes,
        _ => Met::No,
    };
    let direction = if better == Better::Lower { "at most" } else { "at least" };
    Check { name, direction, limit, found, verdict }
}
