//! What else was not alike on the two sides: flags, versions, the machine, clocks. A verdict names a difference, not its cause.

use crate::side::{Run, Side};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What is measured, or is different in every run: no cause of a difference.
const MEASURED: &[&str] = &[
    "format",
    "began_at",
    "command",
    "definitions",
    "events_file",
    "series_file",
    "complete",
    "capacity",
    "work.seed",
    "machine.load_average",
    "server.engine.now",
    "server.engine.load_seconds",
    "server.engine.load_stages",
    "server.engine.step_costs",
];
/// Of a level, what may explain its numbers; all else there is a number to explain.
const EXPLAINING: &[&str] = &["client", "gpus", "machine"];
/// Of the client, likewise.
const OF_THE_CLIENT: &[&str] = &["priority", "receive_times", "threads"];
/// Of a GPU, what follows from the load or from how long it was looked at.
const OF_THE_LOAD: &[&str] = &["samples", "utilisation_mean", "power_mean_w", "energy_j"];
/// Facts that are numbers of the moment, such as a cache sized by what memory was free; those that differ by less than
/// [`ALIKE`] are alike.
const OF_THE_MOMENT: &[&str] = &["levels.", "server.engine.kv_", "server.engine.max_concurrency"];
const ALIKE: f64 = 0.03;
/// Longest value that is shown.
const SHOWN_CHARACTERS: usize = 120;
/// Most different values of one side that are shown.
const SHOWN_VALUES: usize = 4;

/// One thing that was not alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Where it stands in the results.
    pub what: String,
    /// A's value, or values.
    pub a: String,
    /// B's.
    pub b: String,
    /// The two sides were asked different things: verdicts compare more than the servers.
    pub is_work: bool,
}

/// All of them, the work's first.
pub fn differences(a: &Side, b: &Side) -> Vec<Difference> {
    let (facts_a, facts_b) = (facts(a), facts(b));
    let names: BTreeSet<&String> = facts_a.keys().chain(facts_b.keys()).collect();
    let mut all: Vec<Difference> = names
        .into_iter()
        .filter_map(|name| {
            let (of_a, of_b) = (facts_a.get(name), facts_b.get(name));
            let of_the_moment = OF_THE_MOMENT.iter().any(|beginning| name.starts_with(beginning));
            let alike = of_a == of_b || of_a.zip(of_b).is_some_and(|(a, b)| of_the_moment && near(a, b));
            (!alike).then(|| Difference {
                what: name.clone(),
                a: shown(of_a),
                b: shown(of_b),
                is_work: name.starts_with("work."),
            })
        })
        .collect();
    all.sort_by_key(|difference| !difference.is_work);
    all
}

/// Every fact of a side by its path, with the values its runs have.
fn facts(side: &Side) -> BTreeMap<String, BTreeSet<String>> {
    let mut facts = BTreeMap::new();
    for run in &side.runs {
        let mut add = |path: &str, value: &Value| {
            facts.entry(path.to_owned()).or_insert_with(BTreeSet::new).insert(text(value));
        };
        walk("", &run.json, &mut add);
        for flag in flags(run) {
            add(&format!("flag {}", flag.0), &Value::String(flag.1));
        }
    }
    facts
}

/// Walks over what may explain a difference.
fn walk(path: &str, value: &Value, add: &mut impl FnMut(&str, &Value)) {
    if MEASURED.contains(&path) {
        return;
    }
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                // `created` is the moment of the question in many servers.
                let explains = match path {
                    "levels" => EXPLAINING.contains(&name.as_str()),
                    "levels.client" => OF_THE_CLIENT.contains(&name.as_str()),
                    path if path.starts_with("levels.") => !OF_THE_LOAD.contains(&name.as_str()),
                    _ => true,
                };
                if name != "created" && explains {
                    walk(&below(name), field, add);
                }
            }
        }
        // Levels are taken together: their values form a set.
        Value::Array(levels) if path == "levels" => levels.iter().for_each(|level| walk(path, level, add)),
        Value::Array(items) if items.iter().any(|item| item.is_object()) => {
            items.iter().enumerate().for_each(|(number, item)| walk(&below(&number.to_string()), item, add));
        }
        Value::String(url) if path == "url" => add(path, &Value::String(without_local_port(url))),
        _ => add(path, value),
    }
}

/// Servers of a sweep have whatever port was free.
fn without_local_port(url: &str) -> String {
    match url.strip_prefix("http://127.0.0.1:").and_then(|rest| rest.find('/').map(|end| &rest[end..])) {
        Some(path) => format!("http://127.0.0.1{path}"),
        None => url.to_owned(),
    }
}

/// The command's flags with their values; addresses and files are different by nature and left out.
fn flags(run: &Run) -> Vec<(String, String)> {
    const NOT_OF_THE_WORK: &[&str] = &["--output", "-o", "--csv", "--config", "--seed"];
    let mut flags: Vec<(String, String)> = Vec::new();
    for word in run.result.command.iter().skip(2) {
        match word.strip_prefix("--").and_then(|rest| rest.split_once('=')) {
            Some((name, value)) => flags.push((format!("--{name}"), value.to_owned())),
            None if word.starts_with('-') => flags.push((word.clone(), String::new())),
            None => {
                if let Some((_, value)) = flags.last_mut() {
                    *value = if value.is_empty() { word.clone() } else { format!("{value} {word}") };
                }
            }
        }
    }
    flags.retain(|(name, _)| !NOT_OF_THE_WORK.contains(&name.as_str()));
    flags
}

/// Numbers whose means hardly differ.
fn near(a: &BTreeSet<String>, b: &BTreeSet<String>) -> bool {
    let mean = |values: &BTreeSet<String>| {
        let numbers: Option<Vec<f64>> = values.iter().map(|value| value.parse().ok()).collect();
        let numbers = numbers?;
        Some(numbers.iter().sum::<f64>() / numbers.len() as f64)
    };
    let (Some(a), Some(b)) = (mean(a), mean(b)) else { return false };
    (a - b).abs() <= ALIKE * a.abs().max(b.abs())
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn shown(values: Option<&BTreeSet<String>>) -> String {
    let Some(values) = values else { return "absent".to_owned() };
    let mut shown: Vec<String> = values.iter().take(SHOWN_VALUES).map(|value| shortened(value)).collect();
    if values.len() > SHOWN_VALUES {
        shown.push(format!("{} more", values.len() - SHOWN_VALUES));
    }
    shown.join(", ")
}

fn shortened(value: &str) -> String {
    if value.chars().count() <= SHOWN_CHARACTERS {
        return value.to_owned();
    }
    let kept: String = value.chars().take(SHOWN_CHARACTERS).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_this_machine_are_no_difference() {
        assert_eq!(without_local_port("http://127.0.0.1:4711/v1/x"), "http://127.0.0.1/v1/x");
        assert_eq!(without_local_port("http://10.0.0.1:4711/v1/x"), "http://10.0.0.1:4711/v1/x");
    }

    #[test]
    fn what_follows_from_the_load_is_no_cause() {
        let engine = serde_json::json!({
            "prefill_pace": "auto",
            "load_seconds": 1.5,
            "step_costs": {"beside": [{"decodes": 8, "alone_seconds": 0.005, "prompts": []}]},
        });
        let run = serde_json::json!({"model": "m", "server": {"engine": engine}, "levels": [{
            "gauges": {"kv_cache_usage": {"samples": 3, "mean": 0.1}},
            "gpus": [{"samples": 26, "power_mean_w": 467.0, "sm_clock_min_mhz": 1350.0, "throttled": {"sw_power_cap": 0.7}}],
        }]});
        let mut found = Vec::new();
        walk("", &run, &mut |path, _| found.push(path.to_owned()));
        found.sort();
        assert_eq!(
            found,
            [
                "levels.gpus.0.sm_clock_min_mhz",
                "levels.gpus.0.throttled.sw_power_cap",
                "model",
                "server.engine.prefill_pace"
            ]
        );
    }

    #[test]
    fn nearly_equal_numbers_are_alike() {
        let set = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<BTreeSet<_>>();
        assert!(near(&set(&["1410", "1400"]), &set(&["1390"])));
        assert!(!near(&set(&["1410"]), &set(&["1200"])));
        assert!(!near(&set(&["on"]), &set(&["off"])));
    }
}
