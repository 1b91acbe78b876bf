//! What does not compare is not compared, and what did not work is said.

use crate::{
    clear_win,
    fixture::{BEGAN_AT, Folder, Level, SCENARIO, run},
};
use powertrain_report::{analysis::Analysis, change::Verdict, metric};
use serde_json::{Value, json};

fn fired(analysis: &Analysis, rule: &str) -> bool {
    analysis.findings.iter().any(|finding| finding.rule == rule)
}

fn near(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 1e-9, "{found}, expected {expected}");
}

/// A run of one level under that load.
fn run_of(load: &Value, tokens_per_s: f64) -> Value {
    let mut run = run(&[Level::of(8, tokens_per_s, 80.0, 5.0)]);
    run["levels"][0]["load"] = load.clone();
    run
}

/// Both sides measured once, the second twice as fast.
fn two(before: &Value, after: &Value) -> Folder {
    let mut folder = Folder::new(SCENARIO);
    folder.result("before", &run_of(before, 300.0), None).result("after", &run_of(after, 600.0), None);
    folder
}

#[test]
fn a_prefill_share_that_reaches_the_whole_splits_nothing() {
    // Mean TTFT 33 ms over 128 tokens, at most 36: 4,000 tok/s come to 2.06 of the time, 1,800 to 0.93 with the whole inside its interval.
    for tokens_per_s in [4000.0, 1800.0] {
        let mut folder = Folder::new(SCENARIO);
        let levels = [Level::of(1, 30.0, 30.0, 1.0), Level::of(16, tokens_per_s, 30.0, 1.0)];
        folder.run("before", &levels).run("after", &levels);
        let (analysis, study) = folder.study();
        assert!(analysis.after.split.as_ref().unwrap_err().contains("reaches the whole"));
        let cost = &analysis.after.costs[0];
        assert!(cost.output_per_million.is_none() && cost.input_per_million.is_none() && cost.demand.is_none());
        near(cost.per_request.value, 0.5 / 3600.0 / (tokens_per_s / 64.0));
        near(cost.per_million.as_ref().unwrap().value, 0.5 / 3600.0 / (3.0 * tokens_per_s) * 1e6);
        // An hour's tokens at the provider's prices of 0.1 and 0.4.
        let hour = 3600.0 * tokens_per_s * (2.0 * 0.1 + 0.4) / 1e6;
        near(cost.break_even_utilisation.as_ref().unwrap().value, 0.5 / hour);
        assert!(study.markdown.contains("a million tokens, prompts and answers together, costs"), "{}", study.markdown);
        assert!(study.markdown.contains("is not split: prompt tokens/s times"), "{}", study.markdown);
        for wrong in ["million output tokens", "NaN", "0.00 EUR"] {
            assert!(!study.markdown.contains(wrong), "{wrong}");
        }
    }
}

#[test]
fn loads_are_the_same_only_by_all_that_defines_them() {
    let open = |arrivals: &str, burstiness: Option<f64>| json!({"kind": "open", "rate": 4.0, "arrivals": arrivals, "burstiness": burstiness, "in_flight_max": 10});
    let stages = |unit: &str, stages: &str, arrivals: &str| json!({"kind": "stages", "unit": unit, "stages": stages, "arrivals": arrivals, "burstiness": null, "in_flight_max": null});
    let trace = |file: &str, time_scale: f64| json!({"kind": "trace", "file": file, "requests": 100, "time_scale": time_scale, "in_flight_max": 10});
    for (before, after) in [
        (stages("rate", "3s:4", "poisson"), stages("rate", "3s:20", "poisson")),
        (stages("rate", "3s:4", "poisson"), stages("rate", "3s:4", "constant")),
        (stages("rate", "3s:4", "poisson"), stages("clients", "3s:4", "poisson")),
        (open("constant", None), open("gamma", Some(0.5))),
        (open("gamma", Some(2.0)), open("gamma", Some(0.5))),
        (trace("a.jsonl", 1.0), trace("b.jsonl", 1.0)),
        (trace("a.jsonl", 1.0), trace("a.jsonl", 2.0)),
        (json!({"kind": "of the future", "x": 1}), json!({"kind": "of the future", "x": 2})),
    ] {
        let (analysis, study) = two(&before, &after).study();
        assert!(analysis.changes.is_empty(), "{before} {after}");
        assert!(!fired(&analysis, "adopt") && study.markdown.contains("was not measured at this load"), "{before}");
        let (analysis, _) = two(&before, &before).study();
        assert_eq!(analysis.changes.len(), 1, "{before}");
    }
    let mut bounded = open("constant", None);
    bounded["in_flight_max"] = 1.into();
    let analysis = two(&open("constant", None), &bounded).analysis();
    assert!(fired(&analysis, "same-work") && !fired(&analysis, "adopt"), "a bound of the load differs");
}

#[test]
fn answers_of_other_lengths_are_other_work() {
    let load = json!({"kind": "closed", "concurrency": 8});
    let with_length = |mean: f64, at_limit: u32, tokens_per_s: f64| {
        let mut run = run_of(&load, tokens_per_s);
        run["levels"][0]["summary"]["outputs"] =
            json!({"limit_mean": 64.0, "mean": mean, "at_limit": at_limit, "total": 100.0 * mean});
        run
    };
    let study = |after: &Value| {
        let mut folder = Folder::new(SCENARIO);
        let levels = [Level::of(8, 300.0, 80.0, 5.0)];
        // With raw events, and so with intervals: there is something to judge.
        let before = with_length(64.0, 100, 300.0);
        folder.result("before", &before, Some(&levels)).result("after", after, Some(&levels));
        folder.study()
    };
    let (analysis, _) = study(&with_length(60.0, 90, 600.0));
    assert!(!fired(&analysis, "same-work") && fired(&analysis, "adopt"), "{:?}", analysis.findings);
    let (analysis, study) = study(&with_length(3.0, 0, 600.0));
    assert!(fired(&analysis, "same-work"));
    for rule in ["adopt", "do-not-adopt", "no-gain"] {
        assert!(!fired(&analysis, rule), "{rule} fired on numbers that do not compare");
    }
    assert!(analysis.changes[0].changes.iter().all(|change| change.verdict == Verdict::OtherWork));
    assert!(!study.html.contains("better beyond the noise,") && !study.html.contains("better beyond the noise."));
    assert!(study.markdown.contains("the two sides did not do the same work"), "{}", study.markdown);
    assert!(study.markdown.contains("at their limit"), "{}", study.markdown);
}

#[test]
fn a_comparison_of_other_runs_is_refused() {
    let levels = |speed: f64| [Level::of(1, 50.0 * speed, 80.0, 5.0), Level::of(8, 300.0 * speed, 80.0, 5.0)];
    let mut folder = Folder::new(SCENARIO);
    folder.run("before", &levels(1.0)).run("after", &levels(2.0));
    let began = |minute: u32| format!("2026-11-22T00:{minute:02}:21.96179972Z");
    let output = json!({"metric": "output_tokens_per_s", "a": 300.0, "b": 600.0, "ratio": 2.0, "basis": "within_runs",
        "within_runs": {"low": 1.9, "high": 2.1}, "verdict": "better"});
    let comparison = |a: Value, b: Value| {
        json!({"format": "powertrain-compare/1", "a": a, "b": b, "cautions": [],
            "levels": [{"load": "closed loop, 8 clients", "metrics": [output]}]})
    };
    let told = |path: &str, began_at: String| json!({"path": path, "runs": 1, "began_at": [began_at]});
    let right = folder.compared(Some(&comparison(told("one.json", began(0)), told("two.json", began(1))))).unwrap();
    let change = right.changes[1].changes.iter().find(|change| change.id == metric::OUTPUT.id).unwrap();
    assert_eq!(change.ratio.as_ref().unwrap().interval, Some((1.9, 2.1)));
    for (a, b) in [(began(0), began(7)), (began(1), began(0))] {
        let error = folder.compared(Some(&comparison(told("one.json", a), told("two.json", b)))).unwrap_err();
        let error = error.to_string();
        for named in ["comparison.json", "one.json", "two.json", "before-1.json", "after-1.json", &began(1)] {
            assert!(error.contains(named), "{named} is not named: {error}");
        }
    }
    // Files of versions that did not tell when runs began: their number and their rates tell.
    let old = |path: &str, runs: u32| json!({"path": path, "runs": runs});
    assert!(folder.compared(Some(&comparison(old("one.json", 1), old("two.json", 1)))).is_ok());
    let error = folder.compared(Some(&comparison(old("one.json", 1), old("two.json", 3)))).unwrap_err().to_string();
    assert!(error.contains("B is of another number of runs"), "{error}");
    let mut other = comparison(old("one.json", 1), old("two.json", 1));
    other["levels"][0]["metrics"][0]["b"] = 601.0.into();
    let error = folder.compared(Some(&other)).unwrap_err().to_string();
    assert!(error.contains("B has another output rate (601.000 against 600.000 tokens/s)"), "{error}");
    other["levels"][0]["load"] = "closed loop, 5 clients".into();
    let error = folder.compared(Some(&other)).unwrap_err().to_string();
    assert!(error.contains("A has none of the loads"), "{error}");
}

#[test]
fn a_comparison_judges_open_loads_too() {
    let load = json!({"kind": "open", "rate": 4.0, "arrivals": "gamma", "burstiness": 2.0, "in_flight_max": 10});
    let output = json!({"metric": "output_tokens_per_s", "a": 300.0, "b": 600.0, "ratio": 2.0, "basis": "within_runs",
        "within_runs": {"low": 1.9, "high": 2.1}, "verdict": "better"});
    let comparison = json!({"format": "powertrain-compare/1", "a": {"path": "a", "runs": 1}, "b": {"path": "b", "runs": 1},
        "levels": [{"load": "open loop, 4 requests/s, gamma of shape 2", "metrics": [output]}]});
    let analysis = two(&load, &load).compared(Some(&comparison)).unwrap();
    let change = analysis.changes[0].changes.iter().find(|change| change.id == metric::OUTPUT.id).unwrap();
    assert_eq!(change.verdict, Verdict::Better);
}

fn perplexity(value: f64) -> Value {
    json!({"perplexity": value, "perplexity_interval": [value * 0.99, value * 1.01], "context": 512, "windows": 10,
        "tokens_scored": 2550, "file": "texts/text.txt"})
}

#[test]
fn moving_is_not_advised_beside_a_reason_not_to() {
    let adopts = |folder: &Folder, reason: &str| {
        let analysis = folder.analysis();
        assert!(fired(&analysis, reason), "{reason} did not fire");
        fired(&analysis, "adopt")
    };
    assert!(fired(&clear_win().analysis(), "adopt"));
    let mut folder = clear_win();
    folder.result("before", &perplexity(20.0), None).result("after", &perplexity(25.0), None);
    assert!(!adopts(&folder, "hold-for-quality"));

    let mut folder = Folder::new(&SCENARIO.replace("ttft_p95_ms = 2000", "ttft_p95_ms = 1"));
    folder.run("before", &[Level::of(8, 300.0, 80.0, 5.0)]).run("after", &[Level::of(8, 600.0, 40.0, 2.5)]);
    assert!(!adopts(&folder, "requirements-missed"));

    let mut folder = Folder::new(SCENARIO);
    let (before, mut after) = ([Level::of(8, 300.0, 80.0, 5.0)], run(&[Level::of(8, 600.0, 40.0, 2.5)]));
    after["work"]["turns"] = "3".into();
    folder.run("before", &before).result("after", &after, Some(&[Level::of(8, 600.0, 40.0, 2.5)]));
    assert!(!adopts(&folder, "same-work"));
}

#[test]
fn a_side_of_which_nothing_completed_is_named_in_the_summary() {
    let good = run(&[Level::of(8, 300.0, 80.0, 5.0)]);
    let mut dead = run(&[Level { failed: 40, ..Level::of(8, 300.0, 80.0, 5.0) }]);
    let summary = &mut dead["levels"][0]["summary"];
    summary["requests"]["completed"] = 0.into();
    summary["requests"]["sent"] = 40.into();
    summary["throughput"] =
        json!({"requests_per_s": 0.0, "output_tokens_per_s": 0.0, "total_tokens_per_s": null, "estimated": false});
    summary["latency"] = json!({});
    let mut unmeasured = dead.clone();
    unmeasured["levels"][0]["summary"] = Value::Null;

    let summary_of = |before: &Value, after: &Value| {
        let mut folder = Folder::new(SCENARIO);
        folder.result("before", before, None).result("after", after, None);
        let markdown = folder.study().1.markdown;
        let (from, to) = (markdown.find("## Summary").unwrap(), markdown.find("## Method").unwrap());
        markdown[from..to].replace('\n', " ")
    };
    let said = "completed: ";
    let both = summary_of(&dead, &dead);
    assert_eq!(both.matches(said).count(), 2, "{both}");
    assert!(both.contains("the server closed the connection"), "{both}");
    assert!(!both.contains("sets no requirements") && both.contains("not shown"), "{both}");
    let after = summary_of(&good, &dead);
    assert!(after.matches(said).count() == 1 && !after.contains("measured on both sides where"), "{after}");
    let before = summary_of(&dead, &good);
    assert!(before.matches(said).count() == 1 && before.contains("generated nothing at this load"), "{before}");
    let nothing = summary_of(&unmeasured, &good);
    assert!(nothing.contains("nothing is known of its speed"), "{nothing}");
    assert!(nothing.contains("the sweet spot of"), "the headline is lost: {nothing}");
}

#[test]
fn perplexities_of_different_texts_are_not_compared() {
    let with = |hash: Option<&str>, field: &str, value: Value| {
        let mut result = perplexity(20.0);
        result["text_sha256"] = hash.into();
        result[field] = value;
        result
    };
    let same_name = |hash| with(hash, "context", 512.into());
    let said = |before: &Value, after: &Value| {
        let mut folder = clear_win();
        folder.result("before", before, None).result("after", after, None);
        let (analysis, study) = folder.study();
        assert_eq!(fired(&analysis, "measure-quality"), !analysis.quality[0].comparable);
        let phrases = ["on the same text", "on a file of the same name"];
        phrases.into_iter().find(|phrase| study.markdown.contains(&format!("Perplexity {phrase} changes by")))
    };
    let text = same_name(Some("ab"));
    assert_eq!(said(&text, &text), Some("on the same text"));
    assert_eq!(said(&text, &with(Some("ab"), "file", "elsewhere/copy.txt".into())), Some("on the same text"));
    assert_eq!(said(&text, &same_name(Some("cd"))), None);
    assert_eq!(said(&same_name(None), &text), Some("on a file of the same name"));
    for (field, value) in [
        ("file", json!("other.txt")),
        ("tokens_scored", json!(2040)),
        ("context", json!(1024)),
        ("windows_of", json!("characters")),
    ] {
        assert_eq!(said(&same_name(None), &with(None, field, value)), None, "{field}");
    }
    assert_eq!(said(&json!({"perplexity": 20.0}), &json!({"perplexity": 19.0})), None);
}

#[test]
fn one_run_given_twice_is_no_repeat() {
    let mut folder = Folder::new(SCENARIO);
    let mut copied = run(&[Level::of(8, 300.0, 80.0, 5.0)]);
    folder.result("before", &copied, None).result("after", &copied, None);
    assert!(folder.compared(None).is_ok(), "a run of each side");
    copied["began_at"] = BEGAN_AT.replace("00:31", "00:45").into();
    folder.result("after", &copied, None).result("after", &copied, None);
    let error = folder.compared(None).unwrap_err().to_string();
    for named in ["--after", "after-2.json", "after-3.json", "T00:45:21", "one run"] {
        assert!(error.contains(named), "{named} is not named: {error}");
    }
}

#[test]
fn what_a_run_offers_twice_stands_apart() {
    let mut folder = Folder::new(SCENARIO);
    folder.run("before", &[Level::of(8, 300.0, 80.0, 5.0), Level::of(8, 100.0, 240.0, 15.0)]);
    folder.run("after", &[Level::of(8, 300.0, 80.0, 5.0), Level::of(8, 300.0, 80.0, 5.0)]);
    let analysis = folder.analysis();
    let output = |load: &str| {
        let changes = analysis.changes.iter().find(|changes| changes.load.to_string() == load);
        let change = changes.unwrap_or_else(|| panic!("{load} is missing")).changes.iter();
        let change = change.clone().find(|change| change.id == "output_tokens_per_s").unwrap();
        (change.before.as_ref().unwrap().value, change.after.as_ref().unwrap().value)
    };
    // Their mean of 200 tokens/s was never measured. The names are those of `compare`.
    assert_eq!(output("8 clients"), (300.0, 300.0));
    assert_eq!(output("closed loop, 8 clients (2)"), (100.0, 300.0));
}

#[test]
fn usage_that_contradicts_its_answer_is_said() {
    let mut folder = Folder::new(SCENARIO);
    let mut zeros = run(&[Level::of(8, 300.0, 80.0, 5.0)]);
    let summary = &mut zeros["levels"][0]["summary"];
    summary["requests"]["usage_contradicted"] = 100.into();
    summary["throughput"]["estimated"] = true.into();
    folder.result("before", &zeros, None).run("after", &[Level::of(8, 300.0, 80.0, 5.0)]);
    let (_, study) = folder.study();
    assert!(
        study.html.contains("the server's usage says 0 tokens of what there was")
            || study.html.contains("the server&#x27;s usage says 0 tokens"),
        "not said"
    );
    assert!(study.html.contains("or counted 0"));
}
