//! A page over a folder of results: what was measured when, as a table to sort, and how each configuration went over time.

use crate::{
    document::{Document, Kind},
    error::Error,
    figure::Figure,
    metric, render,
    run::{Level, Run},
};
use serde::Serialize;
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Folders within folders that are searched.
const DEPTH_MAX: usize = 8;
/// Most files of a page.
const FILES_MAX: usize = 5000;
/// Metrics of the table, and of the trends.
const SHOWN: [&str; 6] =
    ["output_tokens_per_s", "ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p95_ms", "e2e_p50_ms"];

/// A folder of results.
#[derive(Debug)]
pub struct Index {
    folder: PathBuf,
    rows: Vec<Row>,
    /// Files that are not in the table, each with the reason.
    unread: Vec<String>,
    runs: usize,
    files: usize,
}

/// A level of a run.
#[derive(Debug, Serialize)]
struct Row {
    file: String,
    began_at: String,
    config: String,
    model: String,
    server: String,
    load: String,
    load_value: Option<Figure>,
    completed: Option<Figure>,
    failed: Option<Figure>,
    figures: Vec<Option<Figure>>,
    state: String,
}

impl Index {
    /// Reads every result below a folder. Files that are no results of runs are counted; JSON that looks like one and is not
    /// readable is listed, and so is a copy of a run, which would be a point of its trend.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn of(folder: &Path) -> Result<Self, Error> {
        let mut paths = Vec::new();
        collect(folder, DEPTH_MAX, &mut paths)?;
        paths.sort();
        let files = paths.len();
        let (mut rows, mut unread, mut runs) = (Vec::new(), Vec::new(), 0);
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for path in paths.into_iter().take(FILES_MAX) {
            let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
            match Document::open(&name, &path) {
                Ok(document) if document.kind == Kind::Bench => {
                    // To the nanosecond: two runs do not begin at once.
                    let began = document.text("/began_at").unwrap_or(&document.sha256).to_owned();
                    if let Some(first) = seen.get(&began) {
                        unread.push(format!("{name}: the same run as {first}"));
                        continue;
                    }
                    seen.insert(began, name.clone());
                    runs += 1;
                    let run = Run::of(document);
                    if run.levels.is_empty() {
                        unread.push(format!("{name}: a run without a level"));
                    }
                    rows.extend(run.levels.iter().map(|level| row(&name, &run, level)));
                }
                Ok(_) => {}
                // A sweep's own notes, or another tool's.
                Err(Error::UnknownFormat { found, .. }) if !found.contains("powertrain-bench/") => {}
                Err(error) => unread.push(error.to_string()),
            }
        }
        if files > FILES_MAX {
            unread.push(format!("{files} files, only the first {FILES_MAX} were read"));
        }
        rows.sort_by(|a: &Row, b: &Row| (&b.began_at, &a.file).cmp(&(&a.began_at, &b.file)));
        Ok(Self { folder: folder.to_owned(), rows, unread, runs, files })
    }

    /// Results of runs.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// JSON files that were seen.
    pub fn files(&self) -> usize {
        self.files
    }

    /// The page.
    ///
    /// # Errors
    /// When the template does not render.
    pub fn html(&self) -> Result<String, Error> {
        let metrics: Vec<_> = SHOWN.iter().filter_map(|id| metric::by_id(id)).collect();
        let content = json!({
            "folder": self.folder.display().to_string(),
            "metrics": metrics.iter().map(|metric| json!({"name": metric.name, "unit": metric.unit.suffix()})).collect::<Vec<_>>(),
            "rows": self.rows,
            "unread": self.unread,
            "trends": render::script_json(&self.trends()),
        });
        render::html("index.html", &content)
    }

    /// Writes the page.
    ///
    /// # Errors
    /// When it does not render or cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let html = self.html()?;
        fs::write(path, html).map_err(|error| Error::Unwritable { path: path.display().to_string(), error })
    }

    /// Of each configuration, server, model and load with at least two runs: the metrics in the order of time.
    fn trends(&self) -> serde_json::Value {
        let mut groups: BTreeMap<[&str; 4], Vec<&Row>> = BTreeMap::new();
        for row in &self.rows {
            groups.entry([&row.config, &row.server, &row.model, &row.load]).or_default().push(row);
        }
        let trends = groups.into_iter().filter(|(_, rows)| rows.len() >= 2).map(|(names, mut rows)| {
            rows.reverse();
            let values = |place: usize| -> Vec<Option<f64>> {
                rows.iter().map(|row| row.figures[place].as_ref().map(|figure| figure.value)).collect()
            };
            let name = names.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
            json!({
                "name": name,
                "began_at": rows.iter().map(|row| &row.began_at).collect::<Vec<_>>(),
                "values": (0..SHOWN.len()).map(values).collect::<Vec<_>>(),
            })
        });
        let names: Vec<String> = SHOWN
            .iter()
            .filter_map(|id| metric::by_id(id))
            .map(|metric| format!("{} {}", metric.name, metric.unit.suffix()))
            .collect();
        json!({"metrics": names, "trends": trends.collect::<Vec<_>>()})
    }
}

fn row(file: &str, run: &Run, level: &Level) -> Row {
    let text = |pointer: &str| run.document.text(pointer).unwrap_or_default().to_owned();
    let mut state = Vec::new();
    if level.marks.interrupted {
        state.push("interrupted ‡");
    }
    if level.marks.client_limited {
        state.push("client-limited †");
    }
    if !level.has_summary() {
        state.push("no request was measured");
    }
    if !run.is_complete() {
        state.push("the run did not run to its end");
    }
    Row {
        file: file.to_owned(),
        began_at: text("/began_at"),
        config: text("/config"),
        model: text("/model"),
        server: run.server(),
        load: level.load.to_string(),
        load_value: level.load.pointer().and_then(|pointer| level.number(pointer, crate::figure::Unit::Plain)),
        completed: level.count("completed"),
        failed: level.lost(),
        figures: SHOWN.iter().map(|id| level.metric(metric::by_id(id)?)).collect(),
        state: state.join(", "),
    }
}

/// Every JSON file below a folder; links to folders are not followed, so that none leads in a circle.
fn collect(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<(), Error> {
    let unreadable = |error| Error::Unreadable { path: folder.display().to_string(), error };
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(unreadable)?);
        if kind.is_dir() && depth > 0 {
            collect(&path, depth - 1, paths)?;
        } else if !kind.is_dir() && path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    Ok(())
}
