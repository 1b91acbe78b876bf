//! Whether the two sides did the same work. Where they did not, a ratio of their numbers says nothing of the servers.

use crate::{
    figure::{Figure, Unit},
    run::{Level, Load, WORK},
    sentence::{Sentence, quoted, say},
    side::Side,
};
use serde_json::Value;
use std::collections::BTreeSet;

/// Fields below [`WORK`] that say what was asked; others follow from the server.
const ASKED: [&str; 9] = [
    "input_tokens",
    "output_tokens",
    "streamed",
    "prompts",
    "prefix_tokens",
    "prefix_groups",
    "turns",
    "think_s",
    "request",
];
/// Answers of a mean length below this part of the other side's are other work.
const LENGTH_RATIO_MIN: f64 = 0.8;

/// What was asked of one side and not of the other, in words; none where both were asked the same.
pub(crate) fn asked(before: &Side, after: &Side) -> Option<Sentence> {
    let mut found = Sentence::default();
    for name in ASKED {
        let of = |side: &Side| shown(side.runs.iter().map(|measured| field(&measured.run.document.json, name)));
        let (before, after) = (of(before), of(after));
        if before != after {
            found.extend(say![quoted(name), ": ", quoted(before), " against ", quoted(after), ". "]);
        }
    }
    (!found.0.is_empty()).then_some(found)
}

/// What was other work at one load of both sides, in words: a bound of the load, or the lengths of the answers.
pub(crate) fn at(before: &Side, after: &Side, load: &Load) -> Option<Sentence> {
    let (point_before, point_after) = (before.point(load)?, after.point(load)?);
    let mut found = Sentence::default();
    let offered = |side: &Side, point| shown(side.levels(point).into_iter().map(Level::offered));
    let (offered_before, offered_after) = (offered(before, point_before), offered(after, point_after));
    if offered_before != offered_after {
        found.extend(say!["load: ", quoted(offered_before), " against ", quoted(offered_after), ". "]);
    }
    let mean = |side: &Side, point| side.number(point, |level| level.number("/summary/outputs/mean", Unit::Plain));
    if let (Some(length_before), Some(length_after)) = (mean(before, point_before), mean(after, point_after)) {
        let (shorter, longer) =
            (length_before.value.min(length_after.value), length_before.value.max(length_after.value));
        if shorter < LENGTH_RATIO_MIN * longer {
            found.extend(say![quoted(load.to_string()), ": the answers have ", &length_before, " tokens on average"]);
            found.extend(at_limit(before, point_before));
            found.extend(say![" against ", &length_after]);
            found.extend(at_limit(after, point_after));
            found.extend(say![". "]);
        }
    }
    (!found.0.is_empty()).then_some(found)
}

/// ` (3 of 40 at their limit)`; nothing where the result does not tell.
fn at_limit(side: &Side, point: &crate::side::Point) -> Sentence {
    let levels = side.levels(point);
    let sum = |pointer: &str| -> Option<Figure> {
        let counts: Vec<Figure> =
            levels.iter().map(|level| level.number(pointer, Unit::Count)).collect::<Option<_>>()?;
        let value = counts.iter().map(|count| count.value).sum();
        Some(Figure::computed(value, Unit::Count, "sum over runs", &counts.iter().collect::<Vec<_>>()))
    };
    match (sum("/summary/outputs/at_limit"), sum("/summary/requests/completed")) {
        (Some(full), Some(completed)) => say![" (", &full, " of ", &completed, " at their limit)"],
        _ => Sentence::default(),
    }
}

/// A field of the work; absent, null and zero are alike.
fn field(json: &Value, name: &str) -> Value {
    let mut asked = json.pointer(&format!("{WORK}/{name}")).cloned().unwrap_or_default();
    // A server calls its model what it likes.
    if let Some(fields) = asked.as_object_mut() {
        fields.remove("model");
    }
    if asked.as_f64() == Some(0.0) { Value::Null } else { asked }
}

/// The different values of a side's runs.
fn shown(values: impl Iterator<Item = Value>) -> String {
    let values: BTreeSet<String> = values.map(|value| value.to_string()).collect();
    values.into_iter().collect::<Vec<_>>().join(", ")
}
