//! Before against after: a ratio, and whether it is more than noise.

use crate::{
    figure::{Figure, Unit},
    metric::{Better, METRICS, Metric},
    run::Load,
    same_work,
    side::Side,
};
use serde::Serialize;

/// The rule, as the report states it.
pub const RULE: &str = "A difference counts when the two 95 % intervals do not overlap; otherwise it is inside the noise and called no \
detectable difference. Several runs of one load become their mean, with Student's t interval between runs; a single run has the \
intervals that its result carries, and for throughput the interval from the differences between ten slices of its time. A number \
without an interval is not judged, and nothing is where the sides did not do the same work.";

/// One number of one load on both sides.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// The metric's name.
    pub name: &'static str,
    /// The metric's id.
    pub id: &'static str,
    /// The first side's number.
    pub before: Option<Figure>,
    /// The second side's.
    pub after: Option<Figure>,
    /// After / before.
    pub ratio: Option<Figure>,
    /// What the difference is worth.
    pub verdict: Verdict,
}

/// What a difference is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Better beyond the noise.
    Better,
    /// Worse beyond the noise.
    Worse,
    /// The intervals overlap.
    NoDifference,
    /// A side has no number, or no interval.
    NotJudged,
    /// The sides did not do the same work.
    OtherWork,
}

/// All changes of one load.
#[derive(Clone, Debug, Serialize)]
pub struct Changes {
    /// The load, in words.
    #[serde(skip)]
    pub load: Load,
    /// Its number.
    pub load_figure: Option<Figure>,
    /// In the order of [`METRICS`]; metrics that neither side has are left out.
    pub changes: Vec<Change>,
}

impl Change {
    /// Compares two numbers.
    pub fn between(metric: &'static Metric, before: Option<Figure>, after: Option<Figure>) -> Self {
        let ratio = match (&before, &after) {
            (Some(before), Some(after)) if before.value > 0.0 => {
                Some(Figure::computed(after.value / before.value, Unit::Ratio, "after / before", &[before, after]))
            }
            _ => None,
        };
        let verdict = verdict(before.as_ref(), after.as_ref(), metric.better);
        Self { name: metric.name, id: metric.id, before, after, ratio, verdict }
    }
}

/// Compares every load that both sides have; where the work was not the same, nothing is judged.
pub fn changes(before: &Side, after: &Side) -> Vec<Changes> {
    let asked_alike = same_work::asked(before, after).is_none();
    let compare = |point: &crate::side::Point| {
        let other = after.point(&point.load)?;
        let changes = METRICS
            .iter()
            .map(|metric| Change::between(metric, before.metric(point, metric), after.metric(other, metric)));
        let mut changes: Vec<Change> =
            changes.filter(|change| change.before.is_some() || change.after.is_some()).collect();
        if !asked_alike || same_work::at(before, after, &point.load).is_some() {
            changes.iter_mut().for_each(|change| change.verdict = Verdict::OtherWork);
        }
        Some(Changes { load: point.load.clone(), load_figure: before.load_figure(point), changes })
    };
    before.points.iter().filter_map(compare).collect()
}

/// Whether two numbers differ beyond their intervals.
pub fn verdict(before: Option<&Figure>, after: Option<&Figure>, better: Better) -> Verdict {
    let interval = |figure: Option<&Figure>| figure.and_then(|figure| figure.interval);
    let (Some(before), Some(after)) = (interval(before), interval(after)) else { return Verdict::NotJudged };
    let (lower, higher) = match better {
        Better::Higher => (Verdict::Worse, Verdict::Better),
        Better::Lower => (Verdict::Better, Verdict::Worse),
    };
    if after.1 < before.0 {
        lower
    } else if after.0 > before.1 {
        higher
    } else {
        Verdict::NoDifference
    }
}

impl Verdict {
    /// Its class in the page.
    pub fn class(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NoDifference => "same",
            Self::NotJudged | Self::OtherWork => "unknown",
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NoDifference => "no detectable difference",
            Self::NotJudged => "not judged",
            Self::OtherWork => "not the same work",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_intervals_that_do_not_overlap_are_a_difference() {
        let figure = |value: f64, reach: f64| {
            Figure::read(value, Unit::Milliseconds, "B1", "/a").within(Some((value - reach, value + reach)))
        };
        for (before, after, better, expected) in [
            (figure(100.0, 5.0), figure(80.0, 5.0), Better::Lower, Verdict::Better),
            (figure(100.0, 5.0), figure(80.0, 5.0), Better::Higher, Verdict::Worse),
            (figure(100.0, 15.0), figure(80.0, 5.0), Better::Lower, Verdict::NoDifference),
            (figure(80.0, 5.0), figure(100.0, 5.0), Better::Higher, Verdict::Better),
            (
                figure(80.0, 5.0),
                Figure::read(100.0, Unit::Milliseconds, "A1", "/a"),
                Better::Higher,
                Verdict::NotJudged,
            ),
        ] {
            assert_eq!(verdict(Some(&before), Some(&after), better), expected, "{before:?} {after:?}");
        }
    }
}
