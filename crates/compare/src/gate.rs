//! A limit for CI: `ttft_p95>+5%` fails when B's TTFT p95 is more than 5 % above A's and that is no chance.

use crate::{
    comparison::{Comparison, Verdict},
    metric::{Metric, UnknownMetric},
};
use serde::Serialize;
use std::{fmt, str::FromStr};

/// A limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    text: String,
    subject: Subject,
    /// Fails above the limit, else below.
    above: bool,
    /// Relative change, or the change of a share.
    limit: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Subject {
    Metric(Metric),
    FailedShare,
}

/// Why a limit cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// Its form.
    #[error(
        "`{0}` is no limit; write METRIC>+5% or METRIC<-5%, e.g. ttft_p95>+5%, output_tokens_per_s<-3%, failed_share>+1%"
    )]
    Form(String),
    /// Its metric.
    #[error(transparent)]
    Metric(#[from] UnknownMetric),
}

/// What a limit says of one comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GateResult {
    /// The limit as given.
    pub gate: String,
    /// For each load.
    pub loads: Vec<(String, GateOutcome)>,
}

/// What it says of one load.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum GateOutcome {
    /// The change is beyond the limit and no chance.
    Failed {
        /// The change.
        change: f64,
    },
    /// The change is within the limit.
    Passed {
        /// The change.
        change: f64,
        /// The smallest change that would have been found, where that is more than the limit: passing says little.
        blind_below: Option<f64>,
    },
    /// The change is beyond the limit, but may be chance.
    NotDetectable {
        /// The change.
        change: f64,
        /// The smallest change that would have been found.
        detectable: Option<f64>,
    },
    /// The change is beyond the limit, and there is nothing to tell chance by: neither repeats nor raw events. Fails: a limit that lets through what it cannot
    /// judge guards nothing.
    Unjudged {
        /// The change.
        change: f64,
    },
    /// Of B's requests none was answered whole, of A's some were.
    NothingCompleted,
    /// One side lacks the number, or its count does not support it.
    Absent,
}

impl Gate {
    /// Judges every load.
    pub fn judge(&self, comparison: &Comparison) -> GateResult {
        let loads = comparison.levels.iter().map(|level| {
            let (change, verdict, detectable) = match self.subject {
                Subject::FailedShare => {
                    let share = |(failed, sent): (u64, u64)| failed as f64 / sent.max(1) as f64;
                    let change = share(level.failed.b) - share(level.failed.a);
                    let (low, high) = level.failed.share_difference;
                    (change, level.failed.verdict, Some((high - change).max(change - low)))
                }
                Subject::Metric(metric) => match level.metrics.iter().find(|found| found.metric == metric) {
                    Some(found) => {
                        (found.change(), found.verdict, found.interval().map(|interval| interval.detectable_change))
                    }
                    None if level.failed.only_b_failed() => return (level.load.clone(), GateOutcome::NothingCompleted),
                    None => return (level.load.clone(), GateOutcome::Absent),
                },
            };
            let beyond = if self.above { change > self.limit } else { change < self.limit };
            let outcome = match (beyond, verdict) {
                (true, Verdict::Better | Verdict::Worse) => GateOutcome::Failed { change },
                (true, Verdict::Unknown) => GateOutcome::Unjudged { change },
                (true, Verdict::NoDetectableDifference) => GateOutcome::NotDetectable { change, detectable },
                (false, _) => {
                    let blind_below = detectable.filter(|&detectable| detectable > self.limit.abs());
                    GateOutcome::Passed { change, blind_below }
                }
            };
            (level.load.clone(), outcome)
        });
        GateResult { gate: self.text.clone(), loads: loads.collect() }
    }
}

impl GateResult {
    /// A load is beyond the limit, and not by what may be chance.
    pub fn failed(&self) -> bool {
        use GateOutcome::{Failed, NothingCompleted, Unjudged};
        self.loads.iter().any(|(_, outcome)| matches!(outcome, Failed { .. } | Unjudged { .. } | NothingCompleted))
    }

    /// No load has the number: the limit guards nothing.
    pub fn guards_nothing(&self) -> bool {
        self.loads.iter().all(|(_, outcome)| *outcome == GateOutcome::Absent)
    }
}

impl fmt::Display for GateOutcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |change: f64| format!("{:+.1} %", change * 100.0);
        match self {
            Self::Failed { change } => write!(formatter, "FAILED: {}", percent(*change)),
            Self::Passed { change, blind_below: None } => write!(formatter, "passed: {}", percent(*change)),
            Self::Passed { change, blind_below: Some(least) } => write!(
                formatter,
                "passed: {}, but changes below {:.1} % would not have been found; more runs see more",
                percent(*change),
                least * 100.0
            ),
            Self::NotDetectable { change, detectable: Some(least) } => write!(
                formatter,
                "not failed: {} is beyond the limit but may be chance (changes from {:.1} % on would have been found); more runs \
                 tell",
                percent(*change),
                least * 100.0
            ),
            Self::NotDetectable { change, detectable: None } => {
                write!(
                    formatter,
                    "not failed: {} is beyond the limit but may be chance; more runs tell",
                    percent(*change)
                )
            }
            Self::Unjudged { change } => write!(
                formatter,
                "FAILED: {} is beyond the limit, and nothing tells whether that is chance (no repeats, no raw events); repeat both sides",
                percent(*change)
            ),
            Self::NothingCompleted => formatter.write_str("FAILED: none of B's requests was answered whole"),
            Self::Absent => formatter.write_str("absent: a side lacks this number, or has too few requests for it"),
        }
    }
}

impl FromStr for Gate {
    type Err = GateError;

    fn from_str(text: &str) -> Result<Self, GateError> {
        let form = || GateError::Form(text.to_owned());
        let place = text.find(['<', '>']).ok_or_else(form)?;
        let (name, rest) = text.split_at(place);
        let number = rest[1..].trim().strip_suffix('%').ok_or_else(form)?;
        let limit: f64 = number.trim().parse().ok().filter(|limit: &f64| limit.is_finite()).ok_or_else(form)?;
        let subject = match name.trim() {
            "failed_share" => Subject::FailedShare,
            name => Subject::Metric(name.parse()?),
        };
        Ok(Self { text: text.to_owned(), subject, above: rest.starts_with('>'), limit: limit / 100.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let gate: Gate = "ttft_p95>+5%".parse().unwrap();
        assert_eq!((gate.above, gate.limit), (true, 0.05));
        let gate: Gate = "output_tokens_per_s < -3 %".parse().unwrap();
        assert_eq!((gate.above, gate.limit), (false, -0.03));
        assert!("failed_share>1%".parse::<Gate>().is_ok());
        for bad in ["ttft_p95", "ttft_p95>5", "ttft_p95>x%", "ttft_p95>inf%"] {
            assert_eq!(bad.parse::<Gate>(), Err(GateError::Form(bad.to_owned())));
        }
        assert!(matches!("ttft>5%".parse::<Gate>(), Err(GateError::Metric(_))));
    }
}
