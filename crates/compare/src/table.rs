//! A comparison as text for people.

use crate::{
    comparison::{Basis, Comparison, LevelComparison, MetricComparison, SideSummary, Verdict},
    interval::Interval,
};
use std::fmt::Write;

/// The whole text.
pub fn text(comparison: &Comparison) -> String {
    let mut text = String::new();
    for (name, side) in [("A", &comparison.a), ("B", &comparison.b)] {
        // Writing to a String cannot fail.
        _ = writeln!(text, "{name}: {}", side_name(side));
    }
    for caution in &comparison.cautions {
        _ = writeln!(text, "caution: {caution}");
    }
    for level in &comparison.levels {
        text.push_str(&level_text(level, comparison));
    }
    text.push_str(&differences_text(comparison));
    text.push_str(&explanation(comparison));
    text
}

fn side_name(side: &SideSummary) -> String {
    let runs = if side.runs == 1 { "1 run".to_owned() } else { format!("{} runs", side.runs) };
    let config = if side.config.is_empty() { String::new() } else { format!(" ({})", side.config) };
    format!("{}{config}, {runs}", side.path)
}

fn level_text(level: &LevelComparison, comparison: &Comparison) -> String {
    let design = if comparison.paired { ", in pairs" } else { "" };
    let mut text = format!("\n{}: {} and {} runs{design}\n", level.load, level.runs_a, level.runs_b);
    let header = ["metric", "A", "B", "change", "from run to run", "within these runs", "seen from", "verdict"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(level.metrics.iter().map(metric_row));
    let failed = &level.failed;
    let share = |(failed, sent): (u64, u64)| format!("{failed}/{sent}");
    let points = |(low, high): (f64, f64)| format!("{:+.1} … {:+.1} points", low * 100.0, high * 100.0);
    rows.push([
        "failed or cut off".to_owned(),
        share(failed.a),
        share(failed.b),
        String::new(),
        String::new(),
        points(failed.share_difference),
        String::new(),
        failed.verdict.name().to_owned(),
    ]);
    text.push_str(&aligned(&rows));
    text
}

fn metric_row(found: &MetricComparison) -> [String; 8] {
    let interval = |interval: Option<Interval>| {
        interval.map_or("-".to_owned(), |interval| {
            format!("{:+.1} … {:+.1} %", (interval.low - 1.0) * 100.0, (interval.high - 1.0) * 100.0)
        })
    };
    let caution = if found.basis == Basis::WithinRuns && found.verdict != Verdict::Unknown { " *" } else { "" };
    [
        format!("{} {}", found.metric, if found.metric.higher_is_better() { "" } else { "ms" }).trim_end().to_owned(),
        number(found.a),
        number(found.b),
        format!("{:+.1} %", found.change() * 100.0),
        interval(found.between_runs),
        interval(found.within_runs),
        found.interval().map_or("-".to_owned(), |interval| format!("{:.1} %", interval.detectable_change * 100.0)),
        format!("{}{caution}", found.verdict.name()),
    ]
}

fn differences_text(comparison: &Comparison) -> String {
    if comparison.differences.is_empty() {
        return "\nnothing else differed, as far as the results tell\n".to_owned();
    }
    let mut text = "\nwhat else differed\n".to_owned();
    for difference in &comparison.differences {
        let note = if difference.is_work { "   <- the work itself" } else { "" };
        _ = writeln!(text, "  {}: A {} | B {}{note}", difference.what, difference.a, difference.b);
    }
    text
}

fn explanation(comparison: &Comparison) -> String {
    let percent = comparison.confidence * 100.0;
    let verdicts: usize = comparison.levels.iter().map(|level| level.metrics.len() + 1).sum();
    let mut text = format!(
        "\nIntervals hold the true change of B from A with {percent} % probability. From run to run: whole runs are resampled; within \
         these runs: requests that ran together are. A verdict stands on the first where there are two runs of each side. \
         \"Seen from\": the smallest change that would have been found with 80 % probability. Of {verdicts} verdicts on equal \
         sides about {:.1} would be wrong.\n",
        verdicts as f64 * (1.0 - comparison.confidence)
    );
    if comparison.levels.iter().flat_map(|level| &level.metrics).any(|found| found.basis == Basis::WithinRuns) {
        text.push_str("* holds for these runs only\n");
    }
    text
}

/// Three to four digits that count.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        middle if middle >= 100.0 => format!("{value:.1}"),
        small if small >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Columns: the first and the last to the left, numbers to the right.
fn aligned<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column == 0 || column == COLUMNS - 1 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        _ = writeln!(text, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}
