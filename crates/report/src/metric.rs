//! What a level of a run is judged by: each number's name, its place in the result, and which way is better.

use crate::figure::Unit;

/// One number of a level.
#[derive(Debug)]
pub struct Metric {
    /// Key in a scenario's requirements and in the raw-data tables.
    pub id: &'static str,
    /// For people.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// Which way is better.
    pub better: Better,
    /// Its place below the level.
    pub pointer: &'static str,
    /// The places of its interval's ends below the level, where the result carries one.
    pub interval: Option<(&'static str, &'static str)>,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// More of it.
    Higher,
    /// Less of it.
    Lower,
}

/// The place of a percentile of a distribution, and those of its interval.
macro_rules! percentile {
    ($id:literal, $name:literal, $distribution:literal, $percentile:literal) => {
        Metric {
            id: $id,
            name: $name,
            unit: Unit::Milliseconds,
            better: Better::Lower,
            pointer: concat!("/summary/latency/", $distribution, "/percentiles/", $percentile, "/value"),
            interval: Some((
                concat!("/summary/latency/", $distribution, "/percentiles/", $percentile, "/low"),
                concat!("/summary/latency/", $distribution, "/percentiles/", $percentile, "/high"),
            )),
        }
    };
}

/// Output tokens per second.
pub const OUTPUT: &Metric = &METRICS[0];
/// TTFT, median and 95th percentile.
pub const TTFT: (&Metric, &Metric) = (&METRICS[3], &METRICS[4]);
/// Gaps between chunks, median and 95th percentile.
pub const ITL: (&Metric, &Metric) = (&METRICS[6], &METRICS[7]);
/// Time per output token, median.
pub const TPOT: &Metric = &METRICS[9];
/// Whole requests, median and 95th percentile.
pub const E2E: (&Metric, &Metric) = (&METRICS[11], &METRICS[12]);

/// All of them, in the order in which they are shown.
pub const METRICS: &[Metric] = &[
    rate("output_tokens_per_s", "Output throughput", Unit::TokensPerSecond, "/summary/throughput/output_tokens_per_s"),
    rate(
        "total_tokens_per_s",
        "Input and output throughput",
        Unit::TokensPerSecond,
        "/summary/throughput/total_tokens_per_s",
    ),
    rate("requests_per_s", "Completed requests", Unit::RequestsPerSecond, "/summary/throughput/requests_per_s"),
    percentile!("ttft_p50_ms", "TTFT p50", "ttft_ms", "p50"),
    percentile!("ttft_p95_ms", "TTFT p95", "ttft_ms", "p95"),
    percentile!("ttft_p99_ms", "TTFT p99", "ttft_ms", "p99"),
    percentile!("itl_p50_ms", "ITL p50", "itl_ms", "p50"),
    percentile!("itl_p95_ms", "ITL p95", "itl_ms", "p95"),
    percentile!("itl_p99_ms", "ITL p99", "itl_ms", "p99"),
    percentile!("tpot_p50_ms", "TPOT p50", "tpot_ms", "p50"),
    percentile!("tpot_p95_ms", "TPOT p95", "tpot_ms", "p95"),
    percentile!("e2e_p50_ms", "E2E p50", "e2e_ms", "p50"),
    percentile!("e2e_p95_ms", "E2E p95", "e2e_ms", "p95"),
    percentile!("e2e_p99_ms", "E2E p99", "e2e_ms", "p99"),
    rate("goodput_requests_per_s", "Goodput", Unit::RequestsPerSecond, "/summary/goodput/requests_per_s"),
];

const fn rate(id: &'static str, name: &'static str, unit: Unit, pointer: &'static str) -> Metric {
    Metric { id, name, unit, better: Better::Higher, pointer, interval: None }
}

/// The metric of that id.
pub fn by_id(id: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_ones_are_what_they_are_called() {
        let ids = [OUTPUT, TTFT.0, TTFT.1, ITL.0, ITL.1, TPOT, E2E.0, E2E.1].map(|metric| metric.id);
        assert_eq!(
            ids,
            [
                "output_tokens_per_s",
                "ttft_p50_ms",
                "ttft_p95_ms",
                "itl_p50_ms",
                "itl_p95_ms",
                "tpot_p50_ms",
                "e2e_p50_ms",
                "e2e_p95_ms"
            ]
        );
        assert!(by_id("ttft_p95_ms").is_some_and(|metric| metric.pointer.ends_with("ttft_ms/percentiles/p95/value")));
    }
}
