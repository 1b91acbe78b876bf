//! Quality: so that "faster" is never shown without "and as good".

use crate::{
    document::Document,
    figure::{Figure, Unit},
    metric::Better,
    side::Side,
};
use serde::Serialize;

/// A rise of perplexity by more than this part of it is a loss of quality, unless the scenario sets another limit.
pub const PERPLEXITY_INCREASE_MAX: f64 = 0.01;

/// A number that an evaluation may hold.
struct Measure {
    name: &'static str,
    pointer: &'static str,
    /// Ends of its 95 % interval.
    interval: Option<(&'static str, &'static str)>,
    unit: Unit,
    better: Better,
    /// Fields that must be alike for two of them to be compared.
    alike: &'static [&'static str],
}

/// In the order in which they are shown.
const MEASURES: &[Measure] = &[
    Measure {
        name: "Perplexity",
        pointer: "/perplexity",
        interval: Some(("/perplexity_interval/0", "/perplexity_interval/1")),
        unit: Unit::Plain,
        better: Better::Lower,
        alike: &["/context", "/windows"],
    },
    Measure {
        name: "Top-1 agreement",
        pointer: "/top1_agreement",
        interval: Some(("/top1_agreement_interval/0", "/top1_agreement_interval/1")),
        unit: Unit::Share,
        better: Better::Higher,
        alike: &["/reference"],
    },
    Measure {
        name: "KL divergence (mean)",
        pointer: "/kl_divergence_mean",
        interval: Some(("/kl_divergence_mean_interval/0", "/kl_divergence_mean_interval/1")),
        unit: Unit::Plain,
        better: Better::Lower,
        alike: &["/reference"],
    },
    Measure {
        name: "Right answers",
        pointer: "/accuracy",
        interval: Some(("/accuracy_interval/0", "/accuracy_interval/1")),
        unit: Unit::Share,
        better: Better::Higher,
        alike: &["/questions"],
    },
];

/// A measure on both sides.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The measure.
    pub name: &'static str,
    /// `lower` or `higher` is better.
    pub better: &'static str,
    /// What was measured before.
    pub before: Option<Figure>,
    /// What was measured after.
    pub after: Option<Figure>,
    /// (after − before) / before.
    pub change: Option<Figure>,
    /// What it was measured on, on either side.
    pub on: String,
    /// Both sides were measured on the same.
    pub comparable: bool,
}

/// Every measure that a side has.
pub fn rows(before: &Side, after: &Side) -> Vec<Row> {
    MEASURES.iter().filter_map(|measure| row(measure, &before.evals, &after.evals)).collect()
}

fn row(measure: &Measure, before: &[Document], after: &[Document]) -> Option<Row> {
    let holds = |document: &&Document| document.number(measure.pointer, measure.unit).is_some();
    let (before, after) = (before.iter().find(holds), after.iter().find(holds));
    let any = after.or(before)?;
    let figure = |document: Option<&Document>| {
        let document = document?;
        let interval = measure.interval.and_then(|(low, high)| {
            let end = |pointer| Some(document.number(pointer, measure.unit)?.value);
            Some((end(low)?, end(high)?))
        });
        Some(document.number(measure.pointer, measure.unit)?.within(interval))
    };
    let comparable = match (before, after) {
        (Some(before), Some(after)) => {
            measure.alike.iter().all(|pointer| before.json.pointer(pointer) == after.json.pointer(pointer))
        }
        _ => false,
    };
    let (before, after) = (figure(before), figure(after));
    let change = match (&before, &after) {
        (Some(before), Some(after)) if comparable && before.value > 0.0 => {
            let value = after.value / before.value - 1.0;
            Some(Figure::computed(value, Unit::Change, "(after − before) / before", &[after, before]))
        }
        _ => None,
    };
    let better = if measure.better == Better::Lower { "lower" } else { "higher" };
    Some(Row { name: measure.name, better, before, after, change, on: subject(any), comparable })
}

/// What an evaluation was made on: its text or its questions.
fn subject(document: &Document) -> String {
    let file = document.text("/file").or_else(|| document.text("/text")).unwrap_or_default();
    file.rsplit(['/', '\\']).next().unwrap_or_default().to_owned()
}
