//! A run as the table that many scripts know: a line per level, the classic columns first and by their names, then what they
//! lack: the 95 % interval of each mean and percentile, and the load in words.

use crate::{
    files::write_whole,
    result::{LevelResult, LoadResult, RunResult},
    summary::{LatencySummary, Summary},
    table::load_name,
};
use std::{io, path::Path};

/// The distributions of the table, and the percentiles of each.
const LATENCIES: [(&str, &[&str]); 4] = [
    ("ttft_ms", &["p50", "p95", "p99"]),
    ("itl_ms", &["p50", "p95", "p99"]),
    ("tpot_ms", &["p50", "p95"]),
    ("e2e_ms", &["p50", "p95"]),
];

/// A name and its value; empty is a number that was not measured or that the count does not support.
type Field = (String, String);

/// Writes the table.
///
/// # Errors
/// When the file cannot be written.
pub fn write_csv(path: &Path, result: &RunResult) -> io::Result<()> {
    write_whole(path, csv(result).as_bytes())
}

fn csv(result: &RunResult) -> String {
    let mut text = String::new();
    let mut line = |cells: Vec<String>| {
        text.push_str(&cells.join(","));
        text.push('\n');
    };
    line(row("", None).into_iter().map(|(name, _)| name).collect());
    for level in &result.levels {
        line(row(&result.config, Some(level)).into_iter().map(|(_, value)| value).collect());
    }
    text
}

/// A level's fields; without one, their names.
fn row(config: &str, level: Option<&LevelResult>) -> Vec<Field> {
    let (clients, rate) = match level.map(|level| &level.load) {
        Some(LoadResult::Closed { concurrency }) => (concurrency.to_string(), String::new()),
        Some(LoadResult::Open { rate, .. }) => (String::new(), rate.to_string()),
        _ => (String::new(), String::new()),
    };
    let summary = level.and_then(|level| level.summary.as_ref());
    let count = |count: fn(&Summary) -> u64| summary.map_or(String::new(), |summary| count(summary).to_string());
    let rate_of = |rate: fn(&Summary) -> Option<f64>| number(summary.and_then(rate));
    let mut row = vec![
        field("config", cell(config)),
        field("concurrency", clients),
        field("request_rate", rate),
        field("completed", count(|summary| summary.requests.completed)),
        field("failed", count(|summary| summary.requests.failed)),
        field("cut_off", count(|summary| summary.requests.cut_off)),
        field("requests_per_s", rate_of(|summary| Some(summary.throughput.requests_per_s))),
        field("output_tokens_per_s", rate_of(|summary| Some(summary.throughput.output_tokens_per_s))),
        field("total_tokens_per_s", rate_of(|summary| summary.throughput.total_tokens_per_s)),
    ];
    let mut intervals = Vec::new();
    for (name, percentiles) in LATENCIES {
        let latency = summary.and_then(|summary| summary.latency.get(name));
        let stem = name.trim_end_matches("_ms");
        let mut add = |statistic: &str, value: Option<f64>, interval: Option<(f64, f64)>| {
            row.push(field(&format!("{stem}_{statistic}_ms"), number(value)));
            let ends = [("low", interval.map(|ends| ends.0)), ("high", interval.map(|ends| ends.1))];
            intervals.extend(ends.map(|(end, value)| field(&format!("{stem}_{statistic}_{end}_ms"), number(value))));
        };
        add("mean", latency.map(|latency| latency.mean), latency.and_then(|latency| latency.mean_interval));
        for percentile in percentiles {
            let found = latency.and_then(|latency: &LatencySummary| latency.percentiles.get(*percentile)?.as_ref());
            add(percentile, found.map(|found| found.value), found.map(|found| (found.low, found.high)));
        }
    }
    let told = |told: fn(&LevelResult) -> String| level.map_or(String::new(), told);
    let memory = level.and_then(|level| level.gpus.iter().filter_map(|gpu| gpu.memory_used_max_mib).reduce(f64::max));
    row.push(field("gpu_memory_mib", number(memory)));
    row.push(field("client_limited", told(|level| (!level.client.client_limited.is_empty()).to_string())));
    row.extend(intervals);
    row.push(field("load", told(|level| cell(&load_name(&level.load)))));
    row.push(field("interrupted", told(|level| level.interrupted.to_string())));
    row
}

fn field(name: &str, value: String) -> Field {
    (name.to_owned(), value)
}

fn number(value: Option<f64>) -> String {
    value.map_or(String::new(), |value| format!("{value:.3}"))
}

/// A text as a cell. One that a spreadsheet would take for a formula gets an apostrophe before it: texts come from servers, too.
/// Numbers stay as they are.
pub fn cell(text: &str) -> String {
    let is_number = || text.parse::<f64>().is_ok_and(f64::is_finite);
    let text = match text.trim_start().chars().next() {
        Some('=' | '+' | '-' | '@') if !is_number() => format!("'{text}"),
        _ => text.to_owned(),
    };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spreadsheet_computes_nothing_from_a_text() {
        for (text, expected) in [
            ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
            ("+1+1", "'+1+1"),
            ("-2+3", "'-2+3"),
            ("@SUM(A1)", "'@SUM(A1)"),
            (" =1", "' =1"),
            ("=HYPERLINK(\"a\",\"b\")", "\"'=HYPERLINK(\"\"a\"\",\"\"b\"\")\""),
            ("-inf", "'-inf"),
            // What is a number remains one.
            ("-1", "-1"),
            ("+0.5", "+0.5"),
            ("-1e-3", "-1e-3"),
            ("a=b, c-d", "\"a=b, c-d\""),
            ("", ""),
        ] {
            assert_eq!(cell(text), expected);
        }
    }
}
