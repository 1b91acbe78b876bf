//! A sweep's results in rows: a configuration under a load, repeats taken together.

use crate::{
    configuration::Configuration,
    failure::ServerFailure,
    folder::{Cell, Folder, FolderError, Started},
    matrix::{Matrix, MatrixError},
    startup::StartUp,
    workload::Workload,
};
use powertrain_load::{Summary, csv::cell, result::RunResult, table::load_name};
use serde::Serialize;
use std::fmt::Write;

/// The version of the JSON.
pub const FORMAT: &str = "powertrain-sweep-table/1";

/// All rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// [`FORMAT`].
    pub format: &'static str,
    /// Names of parameters, in the order of their first server.
    pub parameters: Vec<String>,
    /// A row for each load of a configuration; one without load for a configuration that has none.
    pub rows: Vec<Row>,
}

/// One row.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// The configuration's name.
    pub configuration: String,
    /// The server's.
    pub server: String,
    /// Parameters by name.
    pub parameters: Vec<(String, String)>,
    /// Seconds from start to ready; of the first start.
    pub ready_s: Option<f64>,
    /// Memory, as the server told; of the first start.
    pub startup: StartUp,
    /// Why there are no numbers, or not all.
    pub failure: Option<ServerFailure>,
    /// The workload's name.
    pub workload: Option<String>,
    /// The load in words.
    pub load: Option<String>,
    /// The numbers.
    pub numbers: Option<Numbers>,
}

/// Numbers of a load: means over repeats; times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Numbers {
    /// Repeats that have the load.
    pub repeats: u32,
    /// Completed requests of all repeats.
    pub completed: u64,
    /// Of those sent, failed or cut off.
    pub failed_share: f64,
    /// Completed requests per second.
    pub requests_per_s: f64,
    /// Their output tokens per second.
    pub output_tokens_per_s: f64,
    /// Half the range of that rate over the repeats, as a share of it; none of a single run.
    pub spread: Option<f64>,
    /// Share of requests that met the objectives.
    pub good_share: Option<f64>,
    /// Requests per second that met them.
    pub good_per_s: Option<f64>,
    /// Median TTFT.
    pub ttft_p50: Option<f64>,
    /// 95th percentile.
    pub ttft_p95: Option<f64>,
    /// Mean TTFT.
    pub ttft_mean: Option<f64>,
    /// Median gap between chunks.
    pub itl_p50: Option<f64>,
    /// 95th percentile.
    pub itl_p95: Option<f64>,
    /// Mean time per output token.
    pub tpot_mean: Option<f64>,
    /// Mean of whole requests.
    pub e2e_mean: Option<f64>,
    /// 95th percentile.
    pub e2e_p95: Option<f64>,
    /// Mean length of completed answers, in tokens.
    pub answer_tokens: Option<f64>,
    /// That length as a share of the mean limit: lengths are drawn anew in each run, shares can be compared.
    pub answer_share: Option<f64>,
    /// In some run the client may have been the limit.
    pub client_limited: bool,
}

impl Table {
    /// Reads what a folder holds of a matrix, as far as it is measured.
    ///
    /// # Errors
    /// When matrix or files cannot be read.
    pub fn read(matrix: &Matrix, folder: &Folder) -> Result<Self, TableError> {
        let configurations = matrix.configurations()?;
        let mut parameters: Vec<String> = Vec::new();
        for (name, _) in configurations.iter().flat_map(|configuration| &configuration.parameters) {
            if !parameters.contains(name) {
                parameters.push(name.clone());
            }
        }
        let mut rows = Vec::new();
        for configuration in &configurations {
            rows.extend(configuration_rows(matrix, folder, configuration)?);
        }
        Ok(Self { format: FORMAT, parameters, rows })
    }
}

/// Why a table cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The matrix.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

fn configuration_rows(matrix: &Matrix, folder: &Folder, configuration: &Configuration) -> Result<Vec<Row>, TableError> {
    let mut bare = Row {
        configuration: configuration.name.clone(),
        server: configuration.server.clone(),
        parameters: configuration.parameters.clone(),
        ..Row::default()
    };
    for repeat in (0..matrix.repeats).rev() {
        match folder.start(configuration, repeat)?.map(|start| start.started) {
            Some(Started::Ready { ready_s, startup }) => (bare.ready_s, bare.startup) = (Some(ready_s), startup),
            Some(Started::Failed(failure)) => bare.failure = Some(failure),
            None => {}
        }
    }
    let mut rows = Vec::new();
    for workload in &matrix.workload {
        let mut results = Vec::new();
        let mut failure = bare.failure.clone();
        for repeat in 0..matrix.repeats {
            let cell = Cell { configuration, workload, limits: matrix.objectives.as_ref(), repeat };
            match folder.cell(&cell)? {
                Some(kept) if kept.failure.is_some() => failure = kept.failure,
                Some(_) => results.extend(folder.result(&cell)?),
                None => {}
            }
        }
        if results.is_empty() && failure.is_some() && bare.failure.is_none() {
            rows.push(Row { workload: Some(workload.name.clone()), failure: failure.clone(), ..bare.clone() });
        }
        rows.extend(load_rows(&bare, workload, &results, failure.as_ref()));
    }
    if rows.is_empty() && (bare.failure.is_some() || bare.ready_s.is_some()) {
        rows.push(bare);
    }
    Ok(rows)
}

fn load_rows(bare: &Row, workload: &Workload, results: &[RunResult], failure: Option<&ServerFailure>) -> Vec<Row> {
    let mut loads: Vec<(String, Vec<(&Summary, bool)>)> = Vec::new();
    for level in results.iter().flat_map(|result| &result.levels) {
        let Some(summary) = &level.summary else { continue };
        let (name, found) = (load_name(&level.load), (summary, !level.client.client_limited.is_empty()));
        match loads.iter_mut().find(|(other, _)| *other == name) {
            Some((_, all)) => all.push(found),
            None => loads.push((name, vec![found])),
        }
    }
    let row = |(load, runs): (String, Vec<(&Summary, bool)>)| Row {
        workload: Some(workload.name.clone()),
        load: Some(load),
        numbers: Some(Numbers::of(&runs)),
        failure: failure.cloned(),
        ..bare.clone()
    };
    loads.into_iter().map(row).collect()
}

impl Numbers {
    /// Of the repeats of one load; the flag says that the client may have been the limit.
    pub fn of(runs: &[(&Summary, bool)]) -> Self {
        let count = runs.len() as f64;
        let mean = |number: &dyn Fn(&Summary) -> Option<f64>| -> Option<f64> {
            let numbers: Option<Vec<f64>> = runs.iter().map(|(summary, _)| number(summary)).collect();
            numbers.map(|numbers| numbers.iter().sum::<f64>() / count)
        };
        let average = |name: &str| mean(&|summary| summary.latency.get(name).map(|found| found.mean));
        let percentile = |name: &str, percentile: &str| {
            mean(&|summary| Some(summary.latency.get(name)?.percentiles.get(percentile)?.as_ref()?.value))
        };
        let total = |number: fn(&Summary) -> u64| runs.iter().map(|(summary, _)| number(summary)).sum::<u64>();
        let rates = || runs.iter().map(|(summary, _)| summary.throughput.output_tokens_per_s);
        let output_tokens_per_s = rates().sum::<f64>() / count;
        let half_range = (rates().fold(f64::MIN, f64::max) - rates().fold(f64::MAX, f64::min)) / 2.0;
        Self {
            repeats: runs.len() as u32,
            completed: total(|summary| summary.requests.completed),
            failed_share: total(|summary| summary.requests.failed + summary.requests.cut_off) as f64
                / total(|summary| summary.requests.sent).max(1) as f64,
            requests_per_s: mean(&|summary| Some(summary.throughput.requests_per_s)).unwrap_or(0.0),
            output_tokens_per_s,
            spread: (runs.len() > 1 && output_tokens_per_s > 0.0).then(|| half_range / output_tokens_per_s),
            good_share: mean(&|summary| summary.goodput.map(|goodput| goodput.share)),
            good_per_s: mean(&|summary| summary.goodput.map(|goodput| goodput.requests_per_s)),
            ttft_p50: percentile("ttft_ms", "p50"),
            ttft_p95: percentile("ttft_ms", "p95"),
            ttft_mean: average("ttft_ms"),
            itl_p50: percentile("itl_ms", "p50"),
            itl_p95: percentile("itl_ms", "p95"),
            tpot_mean: average("tpot_ms"),
            e2e_mean: average("e2e_ms"),
            e2e_p95: percentile("e2e_ms", "p95"),
            answer_tokens: mean(&|summary| summary.outputs.mean),
            answer_share: mean(&|summary| {
                Some(summary.outputs.mean? / summary.outputs.limit_mean).filter(|share| share.is_finite())
            }),
            client_limited: runs.iter().any(|(_, limited)| *limited),
        }
    }
}

/// What a column shows.
type Field = fn(&Row) -> Option<String>;

/// Columns after the parameters: name in Markdown, name in CSV, content.
const COLUMNS: &[(&str, &str, Field)] = &[
    ("weights GiB", "weights_gib", |row| row.startup.weights_gib.map(short)),
    ("KV GiB", "kv_gib", |row| row.startup.kv_gib.map(short)),
    ("KV tokens", "kv_tokens", |row| row.startup.kv_tokens.map(|tokens| tokens.to_string())),
    ("max concurrency", "max_concurrency", |row| row.startup.max_concurrency.map(short)),
    ("ready s", "ready_s", |row| row.ready_s.map(short)),
    ("workload", "workload", |row| row.workload.clone()),
    ("load", "load", |row| row.load.clone()),
    ("runs", "runs", |row| row.numbers.as_ref().map(|numbers| numbers.repeats.to_string())),
    ("requests", "completed", |row| row.numbers.as_ref().map(|numbers| numbers.completed.to_string())),
    ("req/s", "requests_per_s", |row| row.numbers.as_ref().map(|numbers| short(numbers.requests_per_s))),
    ("output tok/s", "output_tokens_per_s", |row| {
        row.numbers.as_ref().map(|numbers| short(numbers.output_tokens_per_s))
    }),
    ("answer tokens", "answer_tokens", |row| row.numbers.as_ref()?.answer_tokens.map(short)),
    ("TTFT p50 ms", "ttft_p50_ms", |row| row.numbers.as_ref()?.ttft_p50.map(short)),
    ("TTFT p95 ms", "ttft_p95_ms", |row| row.numbers.as_ref()?.ttft_p95.map(short)),
    ("ITL p50 ms", "itl_p50_ms", |row| row.numbers.as_ref()?.itl_p50.map(short)),
    ("ITL p95 ms", "itl_p95_ms", |row| row.numbers.as_ref()?.itl_p95.map(short)),
    ("TPOT mean ms", "tpot_mean_ms", |row| row.numbers.as_ref()?.tpot_mean.map(short)),
    ("E2E mean ms", "e2e_mean_ms", |row| row.numbers.as_ref()?.e2e_mean.map(short)),
    ("E2E p95 ms", "e2e_p95_ms", |row| row.numbers.as_ref()?.e2e_p95.map(short)),
    ("good", "good_share", |row| row.numbers.as_ref()?.good_share.map(|share| format!("{:.1} %", share * 100.0))),
    ("note", "note", |row| Some(row.note())),
];

impl Row {
    /// What to know beside the numbers.
    pub fn note(&self) -> String {
        let mut notes = Vec::new();
        if let Some(failure) = &self.failure {
            notes.push(format!("{}: {}", failure.kind.name(), failure.reason));
        }
        if let Some(numbers) = &self.numbers {
            if numbers.failed_share > 0.0 {
                notes.push(format!("{:.1} % of requests failed", numbers.failed_share * 100.0));
            }
            if numbers.client_limited {
                notes.push("client-limited".to_owned());
            }
        }
        notes.join("; ")
    }
}

impl Table {
    /// For people.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // A column that nobody fills is left out.
        let columns: Vec<_> = COLUMNS
            .iter()
            .filter(|(_, _, field)| self.rows.iter().any(|row| field(row).is_some_and(|cell| !cell.is_empty())))
            .collect();
        let names = ["server"].into_iter().chain(self.parameters.iter().map(String::as_str));
        let names: Vec<&str> = names.chain(columns.iter().map(|(name, _, _)| *name)).collect();
        // Writing to a String cannot fail.
        _ = writeln!(text, "| {} |\n|{}", names.join(" | "), " --- |".repeat(names.len()));
        for row in &self.rows {
            let mut cells = self.beginning(row);
            cells.extend(columns.iter().map(|(_, _, field)| field(row).unwrap_or_default()));
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect();
            _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        text
    }

    /// For programs.
    pub fn csv(&self) -> String {
        let names = ["server"].into_iter().chain(self.parameters.iter().map(String::as_str));
        let names = names.chain(COLUMNS.iter().map(|(_, name, _)| *name));
        let mut text = names.map(cell).collect::<Vec<_>>().join(",") + "\n";
        for row in &self.rows {
            let mut cells = self.beginning(row);
            cells.extend(COLUMNS.iter().map(|(_, _, field)| field(row).unwrap_or_default()));
            text.push_str(&cells.iter().map(|text| cell(text)).collect::<Vec<_>>().join(","));
            text.push('\n');
        }
        text
    }

    /// Server and parameters.
    fn beginning(&self, row: &Row) -> Vec<String> {
        let value = |name: &String| {
            let found = row.parameters.iter().find(|(other, _)| other == name);
            found.map_or(String::new(), |(_, value)| value.clone())
        };
        std::iter::once(row.server.clone()).chain(self.parameters.iter().map(value)).collect()
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
