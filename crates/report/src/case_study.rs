//! The case study: what an [`Analysis`] says, in the order in which it is read, as one page and as Markdown.

use crate::{
    analysis::{Analysis, Assessed},
    change,
    change::Verdict,
    chart, comparison, cost,
    drawings::{self, Drawing},
    error::Error,
    explore,
    figure::{Figure, Unit},
    limits,
    metric::{self, METRICS},
    render, requirement,
    run::{Level, WORK},
    scenario::Scenario,
    sentence::{Sentence, quoted, say},
    sweet_spot, telemetry,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The page's file.
pub const PAGE: &str = "case-study.html";
/// The same as Markdown.
pub const MARKDOWN: &str = "case-study.md";
/// The charts of the Markdown.
pub const CHARTS: &str = "charts";

/// The metrics of the tables before and after; all others are in the appendix.
const COMPARED: [&str; 6] =
    ["output_tokens_per_s", "ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p95_ms", "e2e_p50_ms"];

/// A whole case study, rendered.
#[derive(Debug)]
pub struct CaseStudy {
    /// The page.
    pub html: String,
    /// The Markdown.
    pub markdown: String,
    /// Its charts.
    pub drawings: Vec<Drawing>,
}

/// A number of the summary.
#[derive(Serialize)]
struct Tile {
    label: Sentence,
    before: Option<Figure>,
    after: Option<Figure>,
    ratio: Option<Figure>,
    verdict: Option<&'static str>,
    class: &'static str,
}

/// A metric's part of the table before and after.
#[derive(Serialize)]
struct Compared {
    name: &'static str,
    unit: &'static str,
    rows: Vec<ComparedRow>,
}

#[derive(Serialize)]
struct ComparedRow {
    load: String,
    load_figure: Option<Figure>,
    before: Option<Figure>,
    after: Option<Figure>,
    ratio: Option<Figure>,
    verdict: &'static str,
    class: &'static str,
}

/// A level in the appendix.
#[derive(Serialize)]
struct LevelRow {
    document: String,
    side: String,
    load: String,
    counts: Vec<Option<Figure>>,
    figures: Vec<Option<Figure>>,
    state: Vec<String>,
    failures: Vec<(String, Option<Figure>, String)>,
}

/// A file in the appendix.
#[derive(Serialize)]
struct FileRow {
    id: String,
    path: String,
    sha256: String,
    began_at: String,
    command: Option<String>,
    json: String,
}

/// Counts of the appendix, by their names in the result.
const COUNTS: [&str; 5] = ["sent", "completed", "failed", "cut_off", "interrupted"];

/// Renders a case study; `command` is the command line that makes it.
///
/// # Errors
/// When a template does not render.
pub fn render(analysis: &Analysis, command: &str) -> Result<CaseStudy, Error> {
    let drawings = drawings::drawings(analysis);
    let content = json!({
        "client": json!({
            "company": analysis.scenario.content.client.company,
            "use_case": analysis.scenario.content.client.use_case,
            "situation": analysis.scenario.content.client.situation,
            "currency": analysis.scenario.content.client.currency,
        }),
        "before": analysis.before.side.name,
        "after": analysis.after.side.name,
        "measured_on": measured_on(analysis),
        "lead": lead(analysis),
        "tiles": tiles(analysis),
        "findings": analysis.findings,
        "checks": sides(analysis).map(|side| checks(&analysis.scenario, side)),
        "subjects": sides(analysis).map(subject),
        "definitions": definitions(analysis),
        "change_rule": if analysis.comparison.is_some() { comparison::RULE } else { change::RULE },
        "spot_rule": sweet_spot::RULE,
        "split_rule": cost::SPLIT_RULE,
        "compared": compared(analysis),
        "quality": analysis.quality,
        "memory": sides(analysis).map(|side| &side.memory),
        "gpus": sides(analysis).iter().flat_map(|side| telemetry::rows(side)).collect::<Vec<_>>(),
        "sweeps": analysis.configurations(),
        "costs": costs(analysis),
        "splits": sides(analysis).map(|side| match &side.split {
            Ok(split) => json!({ "side": side.side.name, "split": split }),
            Err(reason) => json!({ "side": side.side.name, "reason": reason }),
        }),
        "own_or_rent": analysis.own_or_rent,
        "savings": savings(analysis),
        "api": analysis.scenario.content.api.as_ref().map(|api| api.name.clone()),
        "limits": limits::limits(analysis),
        "command": command,
        "levels": levels(analysis),
        "counts": COUNTS.map(|name| name.replace('_', " ")),
        "metrics": METRICS.iter().map(|metric| json!({ "name": metric.name, "unit": metric.unit.suffix() })).collect::<Vec<_>>(),
        "files": files(analysis),
        "drawings": drawings,
        "explore": render::script_json(&explore::data(analysis)),
    });
    Ok(CaseStudy {
        html: render::html("case_study.html", &content)?,
        markdown: render::markdown("case_study.md", &content)?,
        drawings,
    })
}

impl CaseStudy {
    /// Writes the page, the Markdown and its charts into a folder, which is made where there is none; gives the files.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>, Error> {
        let charts = folder.join(CHARTS);
        let unwritable = |path: &Path, error| Error::Unwritable { path: path.display().to_string(), error };
        fs::create_dir_all(&charts).map_err(|error| unwritable(&charts, error))?;
        let pages = [(folder.join(PAGE), self.html.clone()), (folder.join(MARKDOWN), self.markdown.clone())];
        let drawings = self
            .drawings
            .iter()
            .map(|drawing| (charts.join(format!("{}.svg", drawing.id)), chart::standalone(&drawing.svg)));
        let mut written = Vec::new();
        for (path, text) in pages.into_iter().chain(drawings) {
            fs::write(&path, text).map_err(|error| unwritable(&path, error))?;
            written.push(path);
        }
        Ok(written)
    }
}

fn sides(analysis: &Analysis) -> [&Assessed; 2] {
    [&analysis.before, &analysis.after]
}

/// The days on which the runs began.
fn measured_on(analysis: &Analysis) -> String {
    let began = sides(analysis)
        .into_iter()
        .flat_map(|side| &side.side.runs)
        .filter_map(|measured| measured.run.document.text("/began_at"));
    let mut days: Vec<&str> = began.map(|at| at.split('T').next().unwrap_or(at)).collect();
    days.sort_unstable();
    days.dedup();
    match days.as_slice() {
        [] => String::new(),
        [day] => (*day).to_owned(),
        [first, .., last] => format!("{first} to {last}"),
    }
}

/// What came of it, in a few sentences.
fn lead(analysis: &Analysis) -> Vec<Sentence> {
    let mut sentences: Vec<Sentence> = sides(analysis).into_iter().filter_map(nothing_completed).collect();
    sentences.extend(headline(analysis));
    if let Some(row) = analysis.quality.iter().find(|row| row.comparable) {
        if let Some(change) = &row.change {
            let worth = match row.verdict {
                Verdict::NotJudged | Verdict::OtherWork => {
                    "; whether that is noise is not known, for a side has no interval"
                }
                verdict => verdict_words(verdict),
            };
            let comma = if row.verdict == Verdict::NotJudged { "" } else { ", " };
            sentences.push(say![row.name, " ", row.material, " changes by ", change, comma, worth, "."]);
        }
    } else {
        sentences.push(say!["Whether the answers are as good was not measured on both sides."]);
    }
    if let Some((hardware, was, is, what)) = token_costs(analysis) {
        sentences.push(say![
            "On ",
            quoted(hardware),
            " a million ",
            what,
            " costs ",
            is,
            " ",
            quoted(currency(analysis)),
            " instead of ",
            was,
            "."
        ]);
    }
    sentences
}

/// That none of a side's requests completed, where that is so.
fn nothing_completed(side: &Assessed) -> Option<Sentence> {
    let levels = || side.side.runs.iter().flat_map(|measured| &measured.run.levels);
    let counts = |name: &str| -> Vec<Figure> { levels().filter_map(|level| level.count(name)).collect() };
    if counts("completed").iter().any(|count| count.value > 0.0) {
        return None;
    }
    let name = quoted(&*side.side.name);
    let sum = |counts: Vec<Figure>| {
        let value = counts.iter().map(|count| count.value).sum();
        Figure::computed(value, Unit::Count, "sum over levels", &counts.iter().collect::<Vec<_>>())
    };
    let sent = counts("sent");
    if sent.is_empty() {
        return Some(say!["No request of ", name, " was measured: nothing is known of its speed."]);
    }
    let lost = sum(levels().filter_map(Level::lost).collect());
    let mut sentence =
        say!["No request of ", name, " completed: ", &lost, " of ", &sum(sent), " failed or were cut off"];
    if let Some((class, _, example)) = levels().flat_map(Level::failures).next() {
        sentence.extend(say![" (", quoted(class), ": ", quoted(example), ")"]);
    }
    sentence.extend(say!["."]);
    Some(sentence)
}

/// Output throughput of both sides at the second's sweet spot, or of the second alone; none where it completed nothing, which is said
/// already.
fn headline(analysis: &Analysis) -> Option<Sentence> {
    let (before, after) = (quoted(&*analysis.before.side.name), quoted(&*analysis.after.side.name));
    let Some(spot) = &analysis.after.spot else {
        return nothing_completed(&analysis.after)
            .is_none()
            .then(|| say![after, " has no sweet spot: none of its loads ran to its end with hardly any failures."]);
    };
    let mut sentence = say!["With ", quoted(spot.load.to_string()), ", the sweet spot of ", after, ", it generates "];
    let changes = analysis.changes_at_spot();
    let change = changes.and_then(|changes| changes.changes.iter().find(|change| change.id == metric::OUTPUT.id));
    let numbers = change
        .and_then(|change| Some((change, change.before.as_ref()?, change.after.as_ref()?, change.ratio.as_ref()?)));
    sentence.extend(match numbers {
        Some((change, was, is, ratio)) => {
            say![is, " where ", before, " generates ", was, ": ", ratio, ", ", verdict_words(change.verdict), "."]
        }
        None if changes.is_some() => say![&spot.throughput, "; ", before, " generated nothing at this load."],
        None => say![&spot.throughput, "; ", before, " was not measured at this load."],
    });
    Some(sentence)
}

/// A million tokens on the scenario's first machine, before and after: of answers, or of any kind where a side's time is not split.
fn token_costs(analysis: &Analysis) -> Option<(&str, &Figure, &Figure, &'static str)> {
    let (was, is) = (analysis.before.costs.first()?, analysis.after.costs.first()?);
    let (was_of, is_of, what) = match (&was.output_per_million, &is.output_per_million) {
        (Some(was), Some(is)) => (was, is, "output tokens"),
        _ => (was.per_million.as_ref()?, is.per_million.as_ref()?, "tokens, prompts and answers together,"),
    };
    Some((&is.hardware, was_of, is_of, what))
}

fn currency(analysis: &Analysis) -> String {
    analysis.scenario.content.client.currency.clone()
}

fn verdict_words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better beyond the noise",
        Verdict::Worse => "worse beyond the noise",
        Verdict::NoDifference => "which is no detectable difference",
        Verdict::NotJudged => "not judged, for want of intervals",
        Verdict::OtherWork => "which compares nothing, for the two sides did not do the same work",
    }
}

fn tiles(analysis: &Analysis) -> Vec<Tile> {
    let mut tiles = Vec::new();
    if let Some(changes) = analysis.changes_at_spot() {
        let by_id = |id: &str| changes.changes.iter().find(|change| change.id == id);
        let both = |id: &str| by_id(id).filter(|change| change.before.is_some() && change.after.is_some());
        let chosen = [
            both(metric::OUTPUT.id),
            both(metric::TTFT.1.id).or_else(|| both(metric::TTFT.0.id)),
            both(metric::ITL.1.id).or_else(|| both(metric::ITL.0.id)),
        ];
        for change in chosen.into_iter().flatten() {
            tiles.push(Tile {
                label: say![change.name],
                before: change.before.clone(),
                after: change.after.clone(),
                ratio: change.ratio.clone(),
                verdict: Some(change.verdict.words()),
                class: change.verdict.class(),
            });
        }
    }
    if let Some((_, was, is, what)) = token_costs(analysis) {
        let ratio = (was.value > 0.0)
            .then(|| Figure::computed(is.value / was.value, Unit::Ratio, "after / before", &[is, was]));
        tiles.push(Tile {
            label: say![quoted(currency(analysis)), " per million ", what.trim_end_matches(',')],
            before: Some(was.clone()),
            after: Some(is.clone()),
            ratio,
            verdict: None,
            class: "plain",
        });
    }
    tiles
}

/// The requirements at a side's sweet spot; where it has none, no requirement is shown to be met.
fn checks(scenario: &Scenario, side: &Assessed) -> Value {
    let none = requirement::checks(scenario, &side.side, None);
    json!({
        "side": side.side.name,
        "load": side.spot.as_ref().map(|spot| spot.load.to_string()),
        "load_figure": side.spot.as_ref().and_then(|spot| spot.load_figure.clone()),
        "meets": side.spot.as_ref().is_some_and(|spot| spot.meets_requirements),
        "checks": side.spot.as_ref().map_or(&none, |spot| &spot.checks),
    })
}

/// What ran, by the first run of a side.
fn subject(side: &Assessed) -> Value {
    let run = &side.side.runs[0].run;
    let document = &run.document;
    let words = |pointer: &str| document.json.pointer(pointer).map(plain).unwrap_or_default();
    let asked = |name: &str| words(&format!("{WORK}/{name}"));
    let machine = [words("/machine/cpu"), words("/machine/kernel")]
        .iter()
        .filter(|text| !text.is_empty())
        .cloned()
        .collect::<Vec<_>>()
        .join(", kernel ");
    json!({
        "side": side.side.name,
        "server": run.server(),
        "model": words("/model"),
        "url": words("/url"),
        "engine": engine(&document.json),
        "machine": machine,
        "cpus": document.number("/machine/cpus", Unit::Count),
        "memory_gib": document.number("/machine/memory_gib", Unit::Plain),
        "input": asked("input_tokens"),
        "output": asked("output_tokens"),
        "prompts": asked("prompts"),
        "request": asked("request"),
        "streamed": document.is_set(&format!("{WORK}/streamed")),
        "runs": runs(side),
        "tool": words("/powertrain"),
    })
}

/// How many runs a side has.
fn runs(side: &Assessed) -> Figure {
    let first = |measured: &crate::side::Measured| Figure::read(1.0, Unit::Count, &measured.run.document.id, "/format");
    let runs: Vec<Figure> = side.side.runs.iter().map(first).collect();
    Figure::computed(runs.len() as f64, Unit::Count, "runs given", &runs.iter().collect::<Vec<_>>())
}

/// What the server says of itself, flattened to a line.
fn engine(json: &Value) -> String {
    let Some(engine) = json.pointer("/server/engine").and_then(Value::as_object) else { return String::new() };
    let flat = engine.iter().filter(|(_, value)| !value.is_object() && !value.is_array() && !value.is_null());
    flat.map(|(name, value)| format!("{name} {}", plain(value))).collect::<Vec<_>>().join(", ")
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// The definitions that the first result carries, of the metrics that are shown.
fn definitions(analysis: &Analysis) -> Vec<(String, String)> {
    let json = &analysis.after.side.runs[0].run.document.json;
    let all = json.pointer("/definitions").and_then(Value::as_object);
    all.into_iter().flatten().map(|(name, text)| (name.clone(), plain(text))).collect()
}

fn compared(analysis: &Analysis) -> Vec<Compared> {
    let metrics = COMPARED.iter().filter_map(|id| metric::by_id(id));
    let all = metrics.map(|metric| {
        let rows = analysis.changes.iter().filter_map(|changes| {
            let change = changes.changes.iter().find(|change| change.id == metric.id)?;
            Some(ComparedRow {
                load: changes.load.to_string(),
                load_figure: changes.load_figure.clone(),
                before: change.before.clone(),
                after: change.after.clone(),
                ratio: change.ratio.clone(),
                verdict: change.verdict.words(),
                class: change.verdict.class(),
            })
        });
        Compared { name: metric.name, unit: metric.unit.suffix(), rows: rows.collect() }
    });
    all.filter(|compared| !compared.rows.is_empty()).collect()
}

/// Each machine of the scenario, both sides.
fn costs(analysis: &Analysis) -> Vec<Value> {
    let of = |name: &str, side: &Assessed| side.costs.iter().find(|cost| cost.hardware == name).cloned();
    let all = analysis.scenario.content.hardware.iter().filter_map(|hardware| {
        let (before, after) = (of(&hardware.name, &analysis.before), of(&hardware.name, &analysis.after));
        let any = before.as_ref().or(after.as_ref())?;
        Some(json!({ "name": hardware.name, "kind": any.kind, "per_hour": any.per_hour, "before": before, "after": after }))
    });
    all.collect()
}

/// What the change saves a month on each machine, and when it has paid for itself.
fn savings(analysis: &Analysis) -> Vec<Sentence> {
    let mut sentences = Vec::new();
    let once = analysis.scenario.number("/budget/change_once", Unit::Money);
    for after in &analysis.after.costs {
        let before = analysis.before.costs.iter().find(|cost| cost.hardware == after.hardware);
        let Some((was, is)) = before.and_then(|before| before.demand.as_ref()).zip(after.demand.as_ref()) else {
            continue;
        };
        let saved = Figure::computed(
            was.per_month.value - is.per_month.value,
            Unit::Money,
            "before − after",
            &[&was.per_month, &is.per_month],
        );
        if saved.value <= 0.0 {
            sentences.push(say!["On ", quoted(&*after.hardware), " the change saves nothing a month at this demand."]);
            continue;
        }
        let mut sentence = say![
            "On ",
            quoted(&*after.hardware),
            " the change saves ",
            &saved,
            " ",
            quoted(currency(analysis)),
            " a month"
        ];
        if let Some((once, months)) =
            once.as_ref().and_then(|once| Some((once, cost::payback_months(once.value, saved.value)?)))
        {
            let months = Figure::computed(months, Unit::Months, "cost of the change / saved a month", &[once, &saved]);
            sentence.extend(say!["; its own cost of ", once, " is back after ", &months]);
        }
        sentence.extend(say!["."]);
        sentences.push(sentence);
    }
    sentences
}

fn levels(analysis: &Analysis) -> Vec<LevelRow> {
    let row = |side: &Assessed, level: &Level| LevelRow {
        document: level.document_id().to_owned(),
        side: side.side.name.clone(),
        load: level.load.to_string(),
        counts: COUNTS.iter().map(|name| level.count(name)).collect(),
        figures: METRICS.iter().map(|metric| level.metric(metric)).collect(),
        state: state(level),
        failures: level.failures(),
    };
    let of = |side: &'_ Assessed| -> Vec<LevelRow> {
        side.side.runs.iter().flat_map(|measured| &measured.run.levels).map(|level| row(side, level)).collect()
    };
    sides(analysis).into_iter().flat_map(of).collect()
}

/// What is to be known of a level.
fn state(level: &Level) -> Vec<String> {
    let mut state = Vec::new();
    if !level.has_summary() {
        state.push("no request was measured".to_owned());
    }
    if level.marks.interrupted {
        state.push("interrupted ‡".to_owned());
    }
    state.extend(level.client_limits().into_iter().map(|reason| format!("client-limited †: {reason}")));
    if level.marks.estimated {
        state.push("tokens counted by chunks ≈".to_owned());
    }
    if level.count("usage_contradicted").is_some_and(|answers| answers.value > 0.0) {
        state.push("the server's usage says 0 tokens of what there was".to_owned());
    }
    state
}

fn files(analysis: &Analysis) -> Vec<FileRow> {
    let row = |document: &crate::document::Document| FileRow {
        id: document.id.clone(),
        path: document.path.clone(),
        sha256: document.sha256.clone(),
        began_at: document.text("/began_at").unwrap_or_default().to_owned(),
        command: document.command(),
        json: render::script_json(&without_counters(&document.json)),
    };
    analysis.documents().into_iter().map(row).collect()
}

/// A result without the server's own counters, which are most of its bytes.
fn without_counters(json: &Value) -> Value {
    let mut json = json.clone();
    for level in json.get_mut("levels").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(metrics) = level.get_mut("metrics").and_then(Value::as_object_mut) {
            metrics.remove("changed");
        }
    }
    json
}
