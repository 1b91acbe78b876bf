//! What is compared, by the names that tables, JSON and `--fail-if` share.

use std::{fmt, str::FromStr};

/// One number of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Metric {
    /// Completed requests per second.
    RequestsPerSecond,
    /// Their output tokens per second.
    OutputTokensPerSecond,
    /// Their prompt and output tokens per second.
    TotalTokensPerSecond,
    /// Requests per second that met the objectives.
    GoodRequestsPerSecond,
    /// A distribution's number.
    Latency(Latency, Statistic),
}

/// A distribution of the results, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Latency {
    /// Scheduled send to first content.
    Ttft,
    /// Between content chunks.
    Itl,
    /// Per output token after the first.
    Tpot,
    /// Scheduled send to last chunk.
    E2e,
}

/// A number of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Statistic {
    /// Arithmetic mean.
    Mean,
    /// Median.
    P50,
    /// 90th percentile.
    P90,
    /// 95th percentile.
    P95,
    /// 99th percentile.
    P99,
    /// 99.9th percentile.
    P999,
}

impl Latency {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ttft, Self::Itl, Self::Tpot, Self::E2e];

    /// The name without its unit.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Itl => "itl",
            Self::Tpot => "tpot",
            Self::E2e => "e2e",
        }
    }

    /// The name of the distribution in a stored result.
    pub fn stored_name(self) -> String {
        format!("{}_ms", self.name())
    }
}

impl Statistic {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Mean, Self::P50, Self::P90, Self::P95, Self::P99, Self::P999];

    /// As in names: `mean`, `p95`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P95 => "p95",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
        }
    }

    /// The quantile, 0 to 1; none for the mean.
    pub fn quantile(self) -> Option<f64> {
        match self {
            Self::Mean => None,
            Self::P50 => Some(0.5),
            Self::P90 => Some(0.9),
            Self::P95 => Some(0.95),
            Self::P99 => Some(0.99),
            Self::P999 => Some(0.999),
        }
    }
}

impl Metric {
    /// All rates, in the order of tables.
    pub const RATES: [Self; 4] =
        [Self::RequestsPerSecond, Self::OutputTokensPerSecond, Self::TotalTokensPerSecond, Self::GoodRequestsPerSecond];

    /// Every metric, in the order of tables.
    pub fn all() -> impl Iterator<Item = Self> {
        let latencies =
            Latency::ALL.into_iter().flat_map(|latency| Statistic::ALL.map(|number| Self::Latency(latency, number)));
        Self::RATES.into_iter().chain(latencies)
    }

    /// More of it is better.
    pub fn higher_is_better(self) -> bool {
        !matches!(self, Self::Latency(..))
    }

    /// `ms` or `/s`.
    pub fn unit(self) -> &'static str {
        if self.higher_is_better() { "/s" } else { "ms" }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RequestsPerSecond => formatter.write_str("requests_per_s"),
            Self::OutputTokensPerSecond => formatter.write_str("output_tokens_per_s"),
            Self::TotalTokensPerSecond => formatter.write_str("total_tokens_per_s"),
            Self::GoodRequestsPerSecond => formatter.write_str("good_requests_per_s"),
            Self::Latency(latency, number) => write!(formatter, "{}_{}", latency.name(), number.name()),
        }
    }
}

/// A name that no metric has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no metric; there are requests_per_s, output_tokens_per_s, total_tokens_per_s, good_requests_per_s, failed_share, and \
         ttft, itl, tpot, e2e each with _mean, _p50, _p90, _p95, _p99, _p99.9"
)]
pub struct UnknownMetric(pub String);

impl FromStr for Metric {
    type Err = UnknownMetric;

    fn from_str(name: &str) -> Result<Self, UnknownMetric> {
        Self::all().find(|metric| metric.to_string() == name).ok_or_else(|| UnknownMetric(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for metric in Metric::all() {
            assert_eq!(metric.to_string().parse(), Ok(metric));
        }
        assert_eq!("ttft_p99.9".parse(), Ok(Metric::Latency(Latency::Ttft, Statistic::P999)));
        assert!("ttft_p96".parse::<Metric>().unwrap_err().to_string().contains("ttft_p96"));
    }
}
