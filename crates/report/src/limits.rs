//! What the numbers do not say, as far as the files show it.

use crate::{
    analysis::{Analysis, Assessed},
    figure::Marks,
    metric::METRICS,
    sentence::{Sentence, quoted, say},
};

/// Every limit that the inputs show.
pub(crate) fn limits(analysis: &Analysis) -> Vec<Sentence> {
    let mut limits = Vec::new();
    let sides = [&analysis.before, &analysis.after];
    let marks = sides.iter().flat_map(|side| side.side.runs.iter().flat_map(|measured| &measured.run.levels));
    let marks = marks.fold(Marks::default(), |marks, level| marks.and(level.marks));
    if marks.client_limited {
        limits.push(say!["Numbers marked † come from levels in which the client, not the server, may have been the limit; the appendix says why."]);
    }
    if marks.interrupted {
        limits.push(say!["Numbers marked ‡ come from levels that were interrupted."]);
    }
    if marks.estimated {
        limits.push(say![
            "Numbers marked ≈ rest on tokens counted by chunks, because the server did not count them, or counted 0."
        ]);
    }
    for side in sides {
        of_side(side, &mut limits);
    }
    if let Some(comparison) = &analysis.comparison {
        let cautions = comparison.json.pointer("/cautions").and_then(serde_json::Value::as_array);
        for caution in cautions.into_iter().flatten().filter_map(serde_json::Value::as_str) {
            limits.push(say!["The comparison cautions: ", quoted(caution), "."]);
        }
    }
    if sides.iter().any(|side| is_local(side)) {
        limits.push(say!["Client and server ran on one machine and shared its processors; a server on a machine of its own can be faster."]);
    }
    if marks_missing_tail(analysis) {
        limits.push(say!["A dash stands where the number of requests does not support a percentile with a 95 % interval, or where nothing was measured."]);
    }
    if sides.iter().all(|side| side.memory.is_none()) {
        limits.push(say!["Memory was not measured."]);
    }
    limits.push(say!["Requests of one run share a server and a moment; what another day or another machine would give is not known from these files."]);
    if !analysis.scenario.content.hardware.is_empty() {
        limits.push(say!["Costs assume that every machine of the scenario has the measured speed, and that the client's traffic resembles the measured work; prices are the client's."]);
    }
    limits
}

fn of_side(side: &Assessed, limits: &mut Vec<Sentence>) {
    for measured in &side.side.runs {
        let name = || quoted(format!("{} ({})", side.side.name, measured.run.document.id));
        if !measured.run.is_complete() {
            limits.push(say!["The run ", name(), " did not run to its end."]);
        }
        if measured.run.levels.is_empty() {
            limits.push(say!["The run ", name(), " has no level."]);
        }
        match &measured.events {
            Err(reason) => limits.push(say![
                "The raw events of ",
                name(),
                " are missing, so its distributions are not drawn: ",
                quoted(reason.clone()),
                "."
            ]),
            Ok(events) if events.unread > 0 => {
                limits.push(say!["The raw events of ", name(), " have lines that are no requests; they are left out."]);
            }
            Ok(_) => {}
        }
    }
    if let Err(reason) = side.split {
        limits.push(say!["The cost of ", quoted(&*side.side.name), " is not split: ", reason, "."]);
    }
}

/// A server at an address of the client's own machine.
fn is_local(side: &Assessed) -> bool {
    let urls = side.side.runs.iter().filter_map(|measured| measured.run.document.text("/url"));
    let host =
        |url: &str| url.split("//").nth(1).unwrap_or(url).split(['/', ':']).next().unwrap_or_default().to_owned();
    urls.map(host).any(|host| host == "localhost" || host.starts_with("127.") || host == "[")
}

fn marks_missing_tail(analysis: &Analysis) -> bool {
    let sides = [&analysis.before, &analysis.after];
    let mut levels = sides.iter().flat_map(|side| side.side.runs.iter().flat_map(|measured| &measured.run.levels));
    // The appendix has them all.
    levels.any(|level| METRICS.iter().any(|metric| level.metric(metric).is_none()))
}
