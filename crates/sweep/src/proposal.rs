//! Two configurations that follow from a sweep: one for latency, one for throughput, as files that can be run.

use crate::{
    configuration::Configuration,
    matrix::{Matrix, MatrixError},
    table::{Numbers, Row, Table},
};
use serde::Serialize;
use std::fmt::Write;

/// Differences below this share are taken as none, unless repeats show more.
pub const ALIKE: f64 = 0.02;
/// More failed requests than this share exclude a configuration.
pub const FAILED_SHARE_MAX: f64 = 0.01;

/// Answers shorter than this part of the longest at the same load are less work: what gives them is faster for that alone.
pub const ANSWER_SHARE_MIN: f64 = 0.9;

/// What a proposal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Short answers times under the lightest load.
    Latency,
    /// Most output tokens per second.
    Throughput,
}

/// A proposal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proposal {
    /// For what.
    pub goal: Goal,
    /// Which configuration.
    pub configuration: String,
    /// The rule and how it was applied, in sentences.
    pub because: Vec<String>,
}

/// The rule, for documents and files.
pub fn rule(goal: Goal) -> String {
    let eligible = format!(
        "Among configurations that have every workload, at most {:.0} % of requests failed, answers at least {:.0} % as long as \
         the longest, and the objectives (if any) met",
        FAILED_SHARE_MAX * 100.0,
        ANSWER_SHARE_MIN * 100.0
    );
    match goal {
        Goal::Latency => format!(
            "{eligible} at the lightest load of each workload: the lowest mean E2E there for answers of one length (geometric mean over workloads). Within \
             {:.0} %, or the spread of repeats where that is more, the one with the higher throughput.",
            ALIKE * 100.0
        ),
        Goal::Throughput => format!(
            "{eligible} at some load of each workload: the most output tokens per second there (geometric mean over workloads). \
             Within {:.0} %, or the spread of repeats where that is more, the one with the lower mean TTFT at that load.",
            ALIKE * 100.0
        ),
    }
}

/// A configuration with its two scores.
struct Candidate<'a> {
    name: &'a str,
    /// What is compared first: higher is better.
    score: f64,
    /// What decides among equals: higher is better.
    second: f64,
    spread: f64,
    shown: String,
}

/// The proposals that the table supports: none when no configuration is eligible.
pub fn proposals(matrix: &Matrix, table: &Table) -> Vec<Proposal> {
    [Goal::Latency, Goal::Throughput].into_iter().filter_map(|goal| propose(goal, matrix, table)).collect()
}

fn propose(goal: Goal, matrix: &Matrix, table: &Table) -> Option<Proposal> {
    let mut names: Vec<&str> = table.rows.iter().map(|row| row.configuration.as_str()).collect();
    names.dedup();
    let (mut candidates, mut briefer) = (Vec::new(), Vec::new());
    for name in &names {
        match candidate(goal, matrix, table, name) {
            Ok(candidate) => candidates.push(candidate),
            Err(NotEligible::Briefer(why)) => briefer.push(format!("Left out: {name}: {why}.")),
            Err(NotEligible::Other) => {}
        }
    }
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    let best = candidates.first()?;
    let alike = |other: &Candidate<'_>| other.score >= best.score * (1.0 - ALIKE.max(best.spread).max(other.spread));
    let equals: Vec<&Candidate<'_>> = candidates.iter().filter(|other| alike(other)).collect();
    let chosen = equals.iter().copied().reduce(|a, b| if b.second > a.second { b } else { a })?;
    let mut because = vec![rule(goal), format!("Chosen: {} with {}.", chosen.name, chosen.shown)];
    let list = |all: Vec<&&Candidate<'_>>| {
        all.iter().map(|other| format!("{} ({})", other.name, other.shown)).collect::<Vec<_>>().join("; ")
    };
    let others: Vec<_> = equals.iter().filter(|other| other.name != chosen.name).collect();
    if !others.is_empty() {
        because.push(format!("Not told apart from the best: {}.", list(others)));
    } else if let Some(second) = candidates.iter().find(|other| other.name != chosen.name) {
        because.push(format!("Next: {} with {}.", second.name, second.shown));
    }
    because.extend(briefer);
    let excluded = names.len() - candidates.len();
    if excluded > 0 {
        because.push(format!("{excluded} of {} configurations were not eligible.", names.len()));
    }
    if matrix.repeats == 1 {
        because.push(format!(
            "Single runs: how much runs differ by themselves is unknown, {:.0} % is an assumption; repeats tell.",
            ALIKE * 100.0
        ));
    }
    Some(Proposal { goal, configuration: chosen.name.to_owned(), because })
}

/// Why a configuration is no candidate.
enum NotEligible {
    /// Its answers are less work, in words.
    Briefer(String),
    /// What its rows say: not measured, failed, or the objectives missed.
    Other,
}

/// The longest answers of any configuration at a load of a workload, as a share of their limit.
fn longest_share(table: &Table, workload: &str, load: &str) -> Option<f64> {
    let of_load = |row: &&Row| {
        row.workload.as_deref() == Some(workload) && row.load.as_deref() == Some(load) && row.failure.is_none()
    };
    table.rows.iter().filter(of_load).filter_map(|row| row.numbers.as_ref()?.answer_share).reduce(f64::max)
}

/// Whether answers are so much shorter than the longest that they are other work, in words.
pub(crate) fn briefer(tokens: Option<f64>, share: Option<f64>, longest: Option<f64>, load: &str) -> Option<String> {
    let (share, longest) = (share?, longest?);
    (share < ANSWER_SHARE_MIN * longest).then(|| {
        format!(
            "its answers at {load} have {:.1} tokens on average, {:.0} % of what was asked, where others give {:.0} %: less work",
            tokens.unwrap_or(0.0),
            share * 100.0,
            longest * 100.0
        )
    })
}

fn candidate<'a>(goal: Goal, matrix: &Matrix, table: &Table, name: &'a str) -> Result<Candidate<'a>, NotEligible> {
    let (mut score, mut second, mut spread) = (1.0, 1.0, 0.0_f64);
    let mut shown = Vec::new();
    for workload in &matrix.workload {
        let rows: Vec<&Row> = table
            .rows
            .iter()
            .filter(|row| row.configuration == name && row.workload.as_ref() == Some(&workload.name))
            .collect();
        // All of it or nothing: a workload that broke off is no result.
        let loads = workload.concurrency.len() + workload.request_rate.len();
        let measured: Vec<(&str, &Numbers)> =
            rows.iter().filter_map(|row| Some((row.load.as_deref()?, row.numbers.as_ref()?))).collect();
        if measured.len() < loads || rows.iter().any(|row| row.failure.is_some()) {
            return Err(NotEligible::Other);
        }
        let eligible = |numbers: &Numbers| {
            let attainment = matrix.objectives.map_or(0.0, |limits| limits.attainment);
            numbers.failed_share <= FAILED_SHARE_MAX
                && numbers.output_tokens_per_s > 0.0
                && numbers.good_share.is_none_or(|share| share >= attainment)
        };
        let most = measured
            .iter()
            .filter(|(_, numbers)| eligible(numbers))
            .max_by(|a, b| a.1.output_tokens_per_s.total_cmp(&b.1.output_tokens_per_s))
            .ok_or(NotEligible::Other)?;
        // Rows stand in the file's order; the lightest load is the smallest number there.
        let lightest = measured[lightest(workload)];
        let power = 1.0 / matrix.workload.len() as f64;
        let (load, judged) = if goal == Goal::Latency { lightest } else { *most };
        let longest = longest_share(table, &workload.name, load);
        let place = format!("{load} of {}", workload.name);
        if let Some(why) = briefer(judged.answer_tokens, judged.answer_share, longest, &place) {
            return Err(NotEligible::Briefer(why));
        }
        match goal {
            Goal::Latency => {
                let measured = judged.e2e_mean.filter(|_| eligible(judged)).ok_or(NotEligible::Other)?;
                let e2e = measured + missing_ms(judged, longest);
                score *= e2e.recip().powf(power);
                second *= most.1.output_tokens_per_s.powf(power);
                let equal = if e2e - measured >= 0.05 {
                    format!(
                        " ({measured:.1} as measured, and its TPOT for the tokens that the longest answers have more)"
                    )
                } else {
                    String::new()
                };
                shown.push(format!("{e2e:.1} ms mean E2E{equal} at {place}"));
            }
            Goal::Throughput => {
                score *= most.1.output_tokens_per_s.powf(power);
                second *= most.1.ttft_mean.unwrap_or(f64::INFINITY).recip().powf(power);
                let rate = most.1.output_tokens_per_s;
                shown.push(format!("{rate:.1} output tok/s at {place}"));
            }
        }
        spread = spread.max(most.1.spread.unwrap_or(0.0));
    }
    Ok(Candidate { name, score, second, spread, shown: shown.join(", ") })
}

/// How much longer answers as long as the longest would have taken, by their own time per token.
fn missing_ms(numbers: &Numbers, longest: Option<f64>) -> f64 {
    let missing = || {
        let (tokens, share) = (numbers.answer_tokens?, numbers.answer_share?);
        Some(numbers.tpot_mean? * tokens * (longest? / share - 1.0))
    };
    missing().filter(|time| time.is_finite()).unwrap_or(0.0)
}

fn lightest(workload: &crate::Workload) -> usize {
    let loads =
        workload.concurrency.iter().map(|&clients| f64::from(clients)).chain(workload.request_rate.iter().copied());
    loads.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(place, _)| place)
}

/// A configuration as files that can be run: a matrix of this one alone, and a shell script.
pub struct Files {
    /// For `sweep`, `compare --interleave` and `tune`.
    pub toml: String,
    /// For `sh`.
    pub shell: String,
}

/// The files of a configuration; `because` stands at their top.
///
/// # Errors
/// When the matrix cannot be written.
pub fn files(matrix: &Matrix, configuration: &Configuration, because: &[String]) -> Result<Files, MatrixError> {
    let mut comment = String::new();
    for line in because {
        // Writing to a String cannot fail.
        _ = writeln!(comment, "# {}", line.replace(['\n', '\r'], " "));
    }
    let single = Matrix { server: vec![configuration.plan.clone()], ..matrix.clone() };
    let toml = toml::to_string(&single).map_err(|error| MatrixError::Value(error.to_string()))?;
    let port = configuration.plan.port.unwrap_or(8000);
    let line = configuration.shell_line(port);
    // `exec` takes no assignments before the program.
    let exec = if configuration.plan.env.is_empty() { "exec" } else { "exec env" };
    Ok(Files { toml: format!("{comment}\n{toml}"), shell: format!("#!/bin/sh\n{comment}{exec} {line}\n") })
}
