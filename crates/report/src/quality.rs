//! Quality: so that "faster" is never shown without "and as good".

use crate::{
    change::{Verdict, verdict},
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
        name: "KL divergence (mean, at least)",
        pointer: "/kl_divergence_least_mean",
        interval: Some(("/kl_divergence_least_mean_interval/0", "/kl_divergence_least_mean_interval/1")),
        unit: Unit::Plain,
        better: Better::Lower,
        alike: &["/reference", "/top"],
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
    /// What the change is worth, by the rule of overlapping intervals; not judged where the sides are not comparable.
    #[serde(skip)]
    pub verdict: Verdict,
    /// The verdict in words.
    #[serde(rename = "verdict")]
    pub words: &'static str,
    /// The verdict's class in the page.
    pub class: &'static str,
    /// What it was measured on, on either side.
    pub on: String,
    /// Both sides were measured on the same, as far as their files tell.
    pub comparable: bool,
    /// How far they tell: `on the same text`, `on a file of the same name`, …
    #[serde(skip)]
    pub material: &'static str,
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
    let material = before.zip(after).and_then(|(before, after)| {
        let alike = measure.alike.iter().all(|pointer| before.json.pointer(pointer) == after.json.pointer(pointer));
        alike.then(|| same_material(before, after))?
    });
    let comparable = material.is_some();
    let (before, after) = (figure(before), figure(after));
    let change = match (&before, &after) {
        (Some(before), Some(after)) if comparable && before.value > 0.0 => {
            let value = after.value / before.value - 1.0;
            Some(Figure::computed(value, Unit::Change, "(after − before) / before", &[after, before]))
        }
        _ => None,
    };
    let better = if measure.better == Better::Lower { "lower" } else { "higher" };
    let verdict =
        if comparable { verdict(before.as_ref(), after.as_ref(), measure.better) } else { Verdict::NotJudged };
    let (words, class) = (verdict.words(), verdict.class());
    let (name, on, material) = (measure.name, subject(any), material.unwrap_or_default());
    Some(Row { name, better, before, after, change, verdict, words, class, on, comparable, material })
}

/// How it is known that two evaluations were made on the same text or questions; none where they were not, or nothing tells.
fn same_material(before: &Document, after: &Document) -> Option<&'static str> {
    // A field that only one of them has tells nothing.
    let differs = |pointer: &str| {
        let of = |document: &Document| document.json.pointer(pointer).filter(|value| !value.is_null()).cloned();
        let (before, after) = (of(before), of(after));
        before.zip(after).is_some_and(|(before, after)| before != after)
    };
    // Windows of characters are of nobody's tokens.
    let of_characters = |document: &Document| document.text("/windows_of") == Some("characters");
    let any_differs = ["/tokens_scored", "/text_sha256", "/windows_of"].into_iter().any(differs);
    if any_differs || of_characters(before) || of_characters(after) {
        return None;
    }
    if before.text("/text_sha256").is_some() && after.text("/text_sha256").is_some() {
        return Some("on the same text");
    }
    let (name, other) = (subject(before), subject(after));
    match (name == other, before.json.get("questions").is_some(), name.is_empty()) {
        (false, ..) => None,
        (_, true, _) => Some("on as many questions of the same name"),
        (_, _, false) => Some("on a file of the same name"),
        // Nothing tells what the text was.
        (_, _, true) => None,
    }
}

/// What an evaluation was made on: its text or its questions.
fn subject(document: &Document) -> String {
    let file = document.text("/file").or_else(|| document.text("/text")).unwrap_or_default();
    file.rsplit(['/', '\\']).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Kind;
    use serde_json::json;

    fn questions(accuracy: f64, interval: Option<[f64; 2]>, questions: u32) -> Document {
        Document {
            id: "B1".into(),
            path: "questions.json".into(),
            sha256: String::new(),
            kind: Kind::Eval,
            json: json!({ "accuracy": accuracy, "accuracy_interval": interval, "questions": questions }),
        }
    }

    #[test]
    fn a_change_of_quality_inside_the_noise_is_called_so() {
        let accuracy = MEASURES.iter().find(|measure| measure.pointer == "/accuracy").unwrap();
        for (after, expected) in [
            (questions(0.33, Some([0.23, 0.46]), 60), Verdict::NoDifference),
            (questions(0.10, Some([0.04, 0.20]), 60), Verdict::Worse),
            (questions(0.90, Some([0.80, 0.96]), 60), Verdict::Better),
            (questions(0.33, None, 60), Verdict::NotJudged),
            (questions(0.10, Some([0.04, 0.20]), 30), Verdict::NotJudged),
        ] {
            let row = row(accuracy, &[questions(0.37, Some([0.26, 0.49]), 60)], &[after]);
            assert_eq!(row.expect("both sides have it").verdict, expected);
        }
    }
}
