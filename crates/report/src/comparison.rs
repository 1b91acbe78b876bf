//! The verdicts of `powertrain compare`: it resamples raw events and knows runs that alternated, so where its result is
//! given, its word counts and not that of overlapping intervals.

use crate::{
    change::{Change, Changes, Verdict},
    document::Document,
    error::Error,
    figure::{Figure, Marks, Unit},
    metric,
    side::{Measured, Point, Side},
};
use serde_json::Value;

/// The rule, as the report states it.
pub const RULE: &str = "Verdicts and the intervals of ratios are those of powertrain compare: runs are resampled, in pairs where they \
alternated, and a difference counts when the 95 % interval of the ratio leaves out no change. Where a side has one run, its requests \
are resampled instead, which says nothing about other runs. A percentile without an interval is that of all runs' requests together, where \
no single run has enough. Nothing is judged where the sides did not do the same work.";

/// Largest part by which a number may differ from the comparison's, which was computed from the same files.
const SAME: f64 = 1e-6;

/// Checks that the comparison's A and B are these sides: by when their runs began; in a file that does not tell, by how many they
/// are and by their throughput at each load.
///
/// # Errors
/// Names both pairs, and what does not fit.
pub fn check_sides(comparison: &Document, before: &Side, after: &Side) -> Result<(), Error> {
    let sides = [("a", "A", before), ("b", "B", after)];
    let Some(reason) = sides.iter().find_map(|(key, name, side)| mismatch(comparison, key, name, side)) else {
        return Ok(());
    };
    let side_of = |key: &str| {
        let path = comparison.text(&format!("/{key}/path")).unwrap_or("not named").to_owned();
        let began = began_at(comparison, key).map(|began| format!(" (began {})", began.join(", ")));
        path + &began.unwrap_or_default()
    };
    let given = |side: &Side| {
        let run = |measured: &Measured| {
            let document = &measured.run.document;
            let began = document.text("/began_at").map(|began| format!(" (began {began})"));
            document.path.clone() + &began.unwrap_or_default()
        };
        side.runs.iter().map(run).collect::<Vec<_>>().join(", ")
    };
    Err(Error::OtherComparison {
        path: comparison.path.clone(),
        compared: format!("A {} with B {}", side_of("a"), side_of("b")),
        given: format!("--before {} and --after {}", given(before), given(after)),
        reason,
    })
}

/// When the runs of a side of the comparison began, ascending; none where it does not tell.
fn began_at(comparison: &Document, key: &str) -> Option<Vec<String>> {
    let began = comparison.json.pointer(&format!("/{key}/began_at"))?.as_array()?;
    let mut began: Vec<String> = began.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    began.sort_unstable();
    Some(began)
}

/// Why a side of the comparison is not this one.
fn mismatch(comparison: &Document, key: &str, name: &str, side: &Side) -> Option<String> {
    if let Some(compared) = began_at(comparison, key) {
        let documents = side.runs.iter().map(|measured| &measured.run.document);
        let mut given: Vec<&str> = documents.map(|document| document.text("/began_at").unwrap_or_default()).collect();
        given.sort_unstable();
        return (compared != given).then(|| format!("{name} is of runs that began at other times"));
    }
    let runs = comparison.json.pointer(&format!("/{key}/runs")).and_then(Value::as_u64);
    if runs.is_some_and(|runs| runs != side.runs.len() as u64) {
        return Some(format!("{name} is of another number of runs"));
    }
    let levels = comparison.json.get("levels").and_then(Value::as_array);
    let mut found = 0;
    let other_rate = levels.into_iter().flatten().find_map(|level| {
        let load = level.get("load").and_then(Value::as_str)?;
        let metrics = level.get("metrics").and_then(Value::as_array)?;
        let of_output = |metric: &&Value| metric.get("metric").and_then(Value::as_str) == Some(metric::OUTPUT.id);
        let compared = metrics.iter().find(of_output)?.get(key).and_then(Value::as_f64)?;
        let point = side.points.iter().find(|point| point.load.in_full() == load)?;
        found += 1;
        let given = pooled_output(side, point)?;
        ((given / compared - 1.0).abs() > SAME)
            .then(|| format!("at {load} {name} has another output rate ({compared:.3} against {given:.3} tokens/s)"))
    });
    let has_levels = comparison.length("/levels") > 0;
    other_rate.or_else(|| (has_levels && found == 0).then(|| format!("{name} has none of the loads of these runs")))
}

/// Output tokens per second over the time of all runs, as `compare` has it.
fn pooled_output(side: &Side, point: &Point) -> Option<f64> {
    let mut sum = (0.0, 0.0);
    for level in side.levels(point) {
        let rate = level.metric(metric::OUTPUT)?.value;
        let window = level.number("/summary/window_s", Unit::Seconds)?.value;
        sum = (sum.0 + rate * window, sum.1 + window);
    }
    (sum.1 > 0.0).then(|| sum.0 / sum.1)
}

/// Replaces ratios and verdicts by those of the comparison, wherever it has the same load and metric.
pub fn take_verdicts(comparison: &Document, changes: &mut [Changes]) {
    let levels = comparison.json.get("levels").and_then(Value::as_array);
    for (index, level) in levels.into_iter().flatten().enumerate() {
        let load = level.get("load").and_then(Value::as_str).unwrap_or_default();
        let Some(changes) = changes.iter_mut().find(|changes| changes.load.in_full() == load) else {
            continue;
        };
        let marks = |of: fn(&Change) -> Option<&Figure>| {
            changes.changes.iter().filter_map(of).fold(Marks::default(), |marks, figure| marks.and(figure.marks))
        };
        let marks = (marks(|change| change.before.as_ref()), marks(|change| change.after.as_ref()));
        let metrics = level.get("metrics").and_then(Value::as_array);
        for (place, metric) in metrics.into_iter().flatten().enumerate() {
            let id = metric.get("metric").and_then(Value::as_str).unwrap_or_default();
            let pointer = format!("/levels/{index}/metrics/{place}");
            if let Some(change) = changes.changes.iter_mut().find(|change| compared_as(change.id) == id)
                && take_verdict(comparison, &pointer, metric, change)
            {
                take_numbers(comparison, &pointer, change, marks);
            }
        }
    }
}

/// A ratio stands beside what it is of: of several runs the comparison has what all their requests together give, the report alone the mean of the runs.
fn take_numbers(comparison: &Document, pointer: &str, change: &mut Change, marks: (Marks, Marks)) {
    let Some(metric) = metric::by_id(change.id) else { return };
    let pooled = |side: &str, marks| Some(comparison.number(&format!("{pointer}/{side}"), metric.unit)?.marked(marks));
    change.before = pooled("a", marks.0).or_else(|| change.before.take());
    change.after = pooled("b", marks.1).or_else(|| change.after.take());
}

/// Whether the comparison had a ratio.
fn take_verdict(comparison: &Document, pointer: &str, metric: &Value, change: &mut Change) -> bool {
    let verdict = match metric.get("verdict").and_then(Value::as_str) {
        Some("better") => Verdict::Better,
        Some("worse") => Verdict::Worse,
        Some("no_detectable_difference") => Verdict::NoDifference,
        _ => return false,
    };
    let Some(ratio) = comparison.number(&format!("{pointer}/ratio"), Unit::Ratio) else { return false };
    let basis = if metric.get("basis").and_then(Value::as_str) == Some("between_runs") {
        "between_runs"
    } else {
        "within_runs"
    };
    let end = |end: &str| metric.pointer(&format!("/{basis}/{end}")).and_then(Value::as_f64);
    let marks = change.ratio.as_ref().map(|ratio| ratio.marks).unwrap_or_default();
    change.ratio = Some(ratio.within(end("low").zip(end("high"))).marked(marks));
    // It gives its verdicts beside a list of what was not alike; here they would stand alone.
    if change.verdict != Verdict::OtherWork {
        change.verdict = verdict;
    }
    true
}

/// A metric's name in `compare`.
fn compared_as(id: &str) -> &str {
    match id {
        "goodput_requests_per_s" => "good_requests_per_s",
        id => id.strip_suffix("_ms").unwrap_or(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{document::Kind, run::Load};
    use serde_json::json;

    #[test]
    fn a_ratio_has_the_numbers_it_is_of() {
        let json = json!({"levels": [{"load": "closed loop, 8 clients", "metrics": [
            {"metric": "ttft_p95", "a": 200.0, "b": 100.0, "ratio": 0.5, "basis": "none", "verdict": "better"},
            {"metric": "ttft_p50", "a": 1.0, "b": 2.0, "ratio": 2.0, "basis": "none", "verdict": "worse"},
        ]}]});
        let comparison =
            Document { id: "C".into(), path: "c.json".into(), sha256: String::new(), kind: Kind::Compare, json };
        let marks = Marks { client_limited: true, ..Marks::default() };
        let figure = |value| Some(Figure::read(value, Unit::Milliseconds, "B1", "/a").marked(marks));
        let change = |id, before, after| Change::between(metric::by_id(id).unwrap(), before, after);
        let mut changes = [Changes {
            load: Load::Closed(8.0),
            load_figure: None,
            changes: vec![change("ttft_p95_ms", None, figure(101.0)), change("ttft_p50_ms", figure(1.5), figure(2.5))],
        }];
        take_verdicts(&comparison, &mut changes);
        let [p95, p50] = changes[0].changes.as_slice() else { panic!("two") };
        let before = p95.before.as_ref().unwrap();
        assert_eq!((before.value, before.unit, before.marks.client_limited), (200.0, Unit::Milliseconds, true));
        assert_eq!(before.origin.leaves.first().unwrap(), "C#/levels/0/metrics/0/a");
        // Where a side has a number itself, too.
        assert_eq!((p95.after.as_ref().unwrap().value, p50.before.as_ref().unwrap().value), (100.0, 1.0));
        assert_eq!(p50.after.as_ref().unwrap().value / p50.before.as_ref().unwrap().value, 2.0);
    }

    #[test]
    fn its_word_counts_where_it_has_one() {
        let json = json!({"levels": [{"load": "closed loop, 8 clients", "metrics": [
            {"metric": "ttft_p95", "ratio": 0.8, "basis": "between_runs", "between_runs": {"low": 0.7, "high": 0.9}, "verdict": "better"},
            {"metric": "ttft_p50", "ratio": 0.9, "basis": "none", "verdict": "unknown"},
        ]}]});
        let comparison =
            Document { id: "C".into(), path: "c.json".into(), sha256: String::new(), kind: Kind::Compare, json };
        let figure = |value| Some(Figure::read(value, Unit::Milliseconds, "B1", "/a"));
        let change = |id| Change::between(metric::by_id(id).unwrap(), figure(100.0), figure(81.0));
        let mut changes = [Changes {
            load: Load::Closed(8.0),
            load_figure: None,
            changes: vec![change("ttft_p95_ms"), change("ttft_p50_ms")],
        }];
        take_verdicts(&comparison, &mut changes);
        let [p95, p50] = changes[0].changes.as_slice() else { panic!("two") };
        assert_eq!(p95.verdict, Verdict::Better);
        let ratio = p95.ratio.as_ref().unwrap();
        assert_eq!((ratio.value, ratio.interval), (0.8, Some((0.7, 0.9))));
        assert_eq!(ratio.origin.leaves.first().unwrap(), "C#/levels/0/metrics/0/ratio");
        assert_eq!((p50.verdict, p50.ratio.as_ref().unwrap().value), (Verdict::NotJudged, 0.81));
    }
}
