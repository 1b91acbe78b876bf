//! The tables of sweeps: each configuration with its memory, its speed, or why it has none, and what was proposed.

use crate::{
    document::Document,
    figure::{Figure, Marks, Unit},
};
use serde::Serialize;
use serde_json::Value;

/// A sweep's table.
#[derive(Clone, Debug, Serialize)]
pub struct Sweep {
    /// The file's id.
    pub id: String,
    /// Names of parameters.
    pub parameters: Vec<String>,
    /// Names and units of the columns that some row fills.
    pub columns: Vec<(&'static str, &'static str)>,
    /// A row for each load of each configuration.
    pub rows: Vec<Row>,
    /// What follows, by the sweep's own rules.
    pub proposals: Vec<Proposal>,
}

/// A configuration under a load.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The server's name.
    pub server: String,
    /// A value for each parameter; empty where the server has none of that name.
    pub parameters: Vec<String>,
    /// The workload and the load.
    pub load: String,
    /// A number for each column.
    pub figures: Vec<Option<Figure>>,
    /// Why there are no numbers, or not all.
    pub note: String,
    /// What it is proposed for.
    pub proposed: Vec<String>,
}

/// A configuration that a sweep proposes.
#[derive(Clone, Debug, Serialize)]
pub struct Proposal {
    /// `latency` or `throughput`.
    pub goal: String,
    /// The configuration.
    pub configuration: String,
    /// The rule, and how it was applied.
    pub because: Vec<String>,
}

/// A column: its name, what it counts, and its place below the row.
const COLUMNS: &[(&str, Unit, &str)] = &[
    ("Weights", Unit::Gibibytes, "/startup/weights_gib"),
    ("KV cache", Unit::Gibibytes, "/startup/kv_gib"),
    ("KV tokens", Unit::Count, "/startup/kv_tokens"),
    ("Maximum concurrency", Unit::Plain, "/startup/max_concurrency"),
    ("Start", Unit::Seconds, "/ready_s"),
    ("Completed", Unit::Count, "/numbers/completed"),
    ("Requests", Unit::RequestsPerSecond, "/numbers/requests_per_s"),
    ("Output", Unit::TokensPerSecond, "/numbers/output_tokens_per_s"),
    ("TTFT p50", Unit::Milliseconds, "/numbers/ttft_p50"),
    ("TTFT p95", Unit::Milliseconds, "/numbers/ttft_p95"),
    ("ITL p50", Unit::Milliseconds, "/numbers/itl_p50"),
    ("ITL p95", Unit::Milliseconds, "/numbers/itl_p95"),
    ("TPOT mean", Unit::Milliseconds, "/numbers/tpot_mean"),
    ("E2E mean", Unit::Milliseconds, "/numbers/e2e_mean"),
    ("Good", Unit::Share, "/numbers/good_share"),
];

/// The table of a sweep's file.
pub fn sweep(document: &Document) -> Sweep {
    let texts = |pointer: &str| -> Vec<String> {
        let found = document.json.pointer(pointer).and_then(Value::as_array);
        found.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let parameters = texts("/parameters");
    let text = |pointer: String| document.text(&pointer).unwrap_or_default().to_owned();
    let proposal = |place: usize| Proposal {
        goal: text(format!("/proposals/{place}/goal")),
        configuration: text(format!("/proposals/{place}/configuration")),
        because: texts(&format!("/proposals/{place}/because")),
    };
    let proposals: Vec<Proposal> = (0..document.length("/proposals")).map(proposal).collect();
    let rows = (0..document.length("/rows")).map(|place| row(document, place, &parameters, &proposals));
    let mut rows: Vec<Row> = rows.collect();
    let filled: Vec<bool> =
        (0..COLUMNS.len()).map(|column| rows.iter().any(|row| row.figures[column].is_some())).collect();
    for row in &mut rows {
        let mut filled = filled.iter();
        row.figures.retain(|_| filled.next().is_some_and(|&filled| filled));
    }
    let columns = COLUMNS.iter().zip(&filled).filter(|(_, filled)| **filled);
    let columns = columns.map(|((name, unit, _), _)| (*name, unit.suffix())).collect();
    Sweep { id: document.id.clone(), parameters, columns, rows, proposals }
}

fn row(document: &Document, place: usize, parameters: &[String], proposals: &[Proposal]) -> Row {
    let at = format!("/rows/{place}");
    let text = |below: &str| document.text(&format!("{at}{below}")).unwrap_or_default().to_owned();
    let pairs = document.json.pointer(&format!("{at}/parameters")).and_then(Value::as_array);
    let value = |name: &String| -> String {
        let pair = pairs.into_iter().flatten().find(|pair| pair.get(0).and_then(Value::as_str) == Some(name));
        pair.and_then(|pair| pair.get(1)?.as_str()).unwrap_or_default().to_owned()
    };
    let marks = Marks { client_limited: document.is_set(&format!("{at}/numbers/client_limited")), ..Marks::default() };
    let figure = |(_, unit, below): &(&str, Unit, &str)| {
        let found = document.number(&format!("{at}{below}"), *unit)?;
        Some(if below.starts_with("/numbers") { found.marked(marks) } else { found })
    };
    let load = [text("/workload"), text("/load")];
    let note = [text("/failure/kind").replace('_', " "), text("/failure/reason")];
    let joined = |parts: &[String], between: &str| {
        parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(between)
    };
    let configuration = text("/configuration");
    let proposed = proposals.iter().filter(|proposal| proposal.configuration == configuration);
    Row {
        server: text("/server"),
        parameters: parameters.iter().map(value).collect(),
        load: joined(&load, ", "),
        figures: COLUMNS.iter().map(figure).collect(),
        note: joined(&note, ": "),
        proposed: proposed.map(|proposal| proposal.goal.clone()).collect(),
    }
}
