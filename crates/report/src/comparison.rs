//! The verdicts of `powertrain compare`: it resamples raw events and knows runs that alternated, so where its result is
//! given, its word counts and not that of overlapping intervals.

use crate::{
    change::{Change, Changes, Verdict},
    document::Document,
    figure::Unit,
    run::Load,
};
use serde_json::Value;

/// The rule, as the report states it.
pub const RULE: &str = "Verdicts and the intervals of ratios are those of powertrain compare: runs are resampled, in pairs where they \
alternated, and a difference counts when the 95 % interval of the ratio leaves out no change. Where a side has one run, its requests \
are resampled instead, which says nothing about other runs.";

/// Replaces ratios and verdicts by those of the comparison, wherever it has the same load and metric.
pub fn take_verdicts(comparison: &Document, changes: &mut [Changes]) {
    let levels = comparison.json.get("levels").and_then(Value::as_array);
    for (index, level) in levels.into_iter().flatten().enumerate() {
        let load = level.get("load").and_then(Value::as_str).unwrap_or_default();
        let Some(changes) = changes.iter_mut().find(|changes| name(&changes.load).as_deref() == Some(load)) else {
            continue;
        };
        let metrics = level.get("metrics").and_then(Value::as_array);
        for (place, metric) in metrics.into_iter().flatten().enumerate() {
            let id = metric.get("metric").and_then(Value::as_str).unwrap_or_default();
            let pointer = format!("/levels/{index}/metrics/{place}");
            if let Some(change) = changes.changes.iter_mut().find(|change| compared_as(change.id) == id) {
                take_verdict(comparison, &pointer, metric, change);
            }
        }
    }
}

fn take_verdict(comparison: &Document, pointer: &str, metric: &Value, change: &mut Change) {
    let verdict = match metric.get("verdict").and_then(Value::as_str) {
        Some("better") => Verdict::Better,
        Some("worse") => Verdict::Worse,
        Some("no_detectable_difference") => Verdict::NoDifference,
        _ => return,
    };
    let Some(ratio) = comparison.number(&format!("{pointer}/ratio"), Unit::Ratio) else { return };
    let basis = if metric.get("basis").and_then(Value::as_str) == Some("between_runs") {
        "between_runs"
    } else {
        "within_runs"
    };
    let end = |end: &str| metric.pointer(&format!("/{basis}/{end}")).and_then(Value::as_f64);
    let marks = change.ratio.as_ref().map(|ratio| ratio.marks).unwrap_or_default();
    change.ratio = Some(ratio.within(end("low").zip(end("high"))).marked(marks));
    change.verdict = verdict;
}

/// A load in the words of `compare`.
fn name(load: &Load) -> Option<String> {
    match load {
        Load::Closed(1.0) => Some("closed loop, 1 client".to_owned()),
        Load::Closed(clients) => Some(format!("closed loop, {clients} clients")),
        // Its words depend on how requests arrive, which this report does not tell apart.
        Load::Open(_) | Load::Other(_) => None,
    }
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
    use crate::{document::Kind, figure::Figure, metric};
    use serde_json::json;

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
