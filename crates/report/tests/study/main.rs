//! Whole case studies from made-up results: every number has its origin, the page is sound, and what went wrong is said.

mod comparable;
mod fixture;
mod page;

use fixture::{Folder, Level, SCENARIO, gpu, random_levels, run, sweep_table};
use page::{Element, Part, parts};
use powertrain_load::Random;
use powertrain_report::{
    analysis::{Analysis, Assessed},
    change,
    change::Verdict,
    comparison, cost,
    index::Index,
    metric, rules,
    run::Load,
    sweet_spot, telemetry,
};
use serde_json::{Value, json};
use std::fs;

const CLIENTS: [u32; 4] = [1, 4, 8, 16];

/// Twice as fast, everything else alike.
fn clear_win() -> Folder {
    let mut folder = Folder::new(SCENARIO);
    let levels = |speed: f64| {
        CLIENTS.map(|clients| {
            Level::of(
                clients,
                50.0 * speed * f64::from(clients).sqrt(),
                80.0 * f64::from(clients) / speed,
                12.0 / speed,
            )
        })
    };
    folder.run("before", &levels(1.0)).run("after", &levels(2.0));
    folder
}

/// The number at `DOCUMENT#/pointer`, or that of a file of raw events, which holds many.
fn resolve<'a>(analysis: &'a Analysis, leaf: &str) -> Option<&'a Value> {
    let (document, pointer) = leaf.split_once('#')?;
    let id = document.strip_suffix(".events").unwrap_or(document);
    let found = analysis.documents().into_iter().find(|known| known.id == id)?;
    if document.ends_with(".events") { Some(&found.json) } else { found.json.pointer(pointer) }
}

fn check_origins(analysis: &Analysis, element: &Element) {
    let from = element.attribute("data-from");
    assert!(!from.is_empty(), "a number without an origin: {element:?}");
    let leaves: Vec<&Value> =
        from.split(' ').map(|leaf| resolve(analysis, leaf).unwrap_or_else(|| panic!("{leaf} leads nowhere"))).collect();
    if element.name == "data" && element.attribute("data-rule").is_empty() {
        let [only] = leaves.as_slice() else { panic!("one number, {} origins: {element:?}", leaves.len()) };
        let shown: f64 = element.attribute("value").parse().unwrap();
        assert_eq!(only.as_f64(), Some(shown), "{element:?}");
    }
}

/// Words with digits that are part of the language, not of the data.
fn is_term(word: &str) -> bool {
    let stated: Vec<&str> = rules::RULES
        .iter()
        .map(|rule| rule.when)
        .chain(metric::METRICS.iter().map(|metric| metric.name))
        .chain([change::RULE, comparison::RULE, sweet_spot::RULE, cost::SPLIT_RULE, "95 %. SHA-256"])
        .flat_map(str::split_whitespace)
        .collect();
    let word = word.trim_matches(|c: char| "(),.;:".contains(c));
    let is_percentile = word.strip_prefix('p').is_some_and(|rest| rest.parse::<f64>().is_ok());
    is_percentile || stated.iter().any(|known| known.trim_matches(|c: char| "(),.;:".contains(c)) == word)
}

/// Text that is a number's own, or a word of the input's, or no text for people.
fn may_have_digits(stack: &[Element]) -> bool {
    stack.iter().any(|element| {
        ["data", "code", "pre", "script", "style", "time", "svg", "title"].contains(&element.name.as_str())
            || element.attribute("class").split(' ').any(|class| class == "q")
    })
}

#[test]
fn every_number_traces_to_a_file() {
    for seed in 0..12 {
        let mut random = Random::new(seed);
        let mut folder = Folder::new(SCENARIO);
        for _ in 0..=seed % 3 {
            let with_gpu = |mut levels: Vec<Level>| {
                let reasons = if seed % 2 == 0 { json!({"sw_power_cap": 0.25}) } else { json!({}) };
                levels.iter_mut().for_each(|level| level.gpus = gpu(400.0 + f64::from(level.clients), &reasons));
                levels
            };
            folder.run("before", &with_gpu(random_levels(&mut random, &CLIENTS)));
            folder.run("after", &with_gpu(random_levels(&mut random, &CLIENTS[1..])));
        }
        folder.sweep(&sweep_table());
        let eval = json!({"perplexity": 20.0 + random.uniform(), "context": 512, "windows": 10, "tokens_scored": 2550, "file": "text.txt"});
        folder.result("before", &eval, None).result("after", &eval, None);
        folder.result("after", &json!({"format": "powertrain-memory/1", "peak_mib": 300.5}), None);
        let (analysis, study) = folder.study();
        let mut numbers = 0;
        for part in parts(&study.html) {
            match part {
                Part::Begin(element) => {
                    if element.name == "data" || element.attributes.contains_key("data-from") {
                        check_origins(&analysis, &element);
                        numbers += 1;
                    }
                }
                Part::Text(stack, text) if !may_have_digits(&stack) => {
                    for word in text.split_whitespace().filter(|word| word.contains(|c: char| c.is_ascii_digit())) {
                        assert!(is_term(word), "seed {seed}: {word:?} has no origin, in {text:?}");
                    }
                }
                Part::Text(..) => {}
            }
        }
        assert!(numbers > 100, "seed {seed}: only {numbers} numbers");
    }
}

#[test]
fn the_page_needs_no_network_and_holds_whatever_it_is_given() {
    let (_, study) = clear_win().study();
    let mut scripts = 0;
    for part in parts(&study.html) {
        match part {
            Part::Begin(element) => {
                for name in ["src", "href", "action", "poster", "srcset", "xlink:href", "onclick", "onload"] {
                    assert!(!element.attributes.contains_key(name), "{element:?}");
                }
                assert!(!["link", "img", "iframe", "object", "base"].contains(&element.name.as_str()), "{element:?}");
                scripts += usize::from(element.name == "script");
            }
            Part::Text(stack, text) if stack.last().is_some_and(|element| element.name == "style") => {
                assert!(!text.contains("url(") && !text.contains("@import"), "a style that loads");
            }
            Part::Text(stack, text) => {
                if stack.last().is_some_and(|element| element.attribute("type") == "application/json") {
                    serde_json::from_str::<Value>(&text).unwrap();
                }
            }
        }
    }
    // The user's own script is text: two of ours, the chart data and the four files.
    assert_eq!(scripts, 2 + 1 + 3);
    assert!(study.html.contains("default-src &#x27;none&#x27;") || study.html.contains("default-src 'none'"));
    assert!(study.html.contains("The MIT License"), "uPlot's licence must stand in the page");
    for drawing in &study.drawings {
        parts(&powertrain_report::chart::standalone(&drawing.svg));
    }
    assert!(!study.markdown.contains("<script") && !study.markdown.contains("<b>"), "markup of the user's in Markdown");
}

#[test]
fn a_clear_win_is_called_one_and_the_noise_is_not() {
    let fired = |analysis: &Analysis| -> Vec<&str> { analysis.findings.iter().map(|finding| finding.rule).collect() };
    let (analysis, study) = clear_win().study();
    assert!(fired(&analysis).contains(&"adopt"), "{:?}", fired(&analysis));
    assert!(fired(&analysis).contains(&"measure-quality"));
    assert!(study.html.contains("better beyond the noise"));

    let mut folder = Folder::new(SCENARIO);
    let level = |factor: f64| Level { spread: 0.1, ..Level::of(8, 300.0 * factor, 200.0, 20.0) };
    let run = |folder: &mut Folder, side: &str, factors: [f64; 3]| {
        factors.into_iter().for_each(|factor| {
            folder.run(side, &[level(factor)]);
        });
    };
    run(&mut folder, "before", [0.95, 1.0, 1.05]);
    run(&mut folder, "after", [0.97, 1.02, 1.07]);
    let (analysis, study) = folder.study();
    let output = analysis.changes[0].changes.iter().find(|change| change.id == metric::OUTPUT.id).unwrap();
    assert_eq!(output.verdict, Verdict::NoDifference);
    assert!(fired(&analysis).contains(&"no-gain") && !fired(&analysis).contains(&"adopt"), "{:?}", fired(&analysis));
    assert!(study.markdown.contains("no detectable difference"));
}

#[test]
fn the_sweet_spot_follows_its_rule() {
    let spot = |levels: &[Level]| {
        let mut folder = Folder::new(SCENARIO);
        folder.run("before", levels).run("after", levels);
        let spot = folder.analysis().after.spot;
        spot.map(|spot| (spot.load, spot.meets_requirements))
    };
    let mut levels =
        vec![Level::of(1, 100.0, 50.0, 5.0), Level::of(4, 290.0, 90.0, 9.0), Level::of(8, 300.0, 300.0, 20.0)];
    // 290 is within 5 % of 300 and needs half of the clients.
    assert_eq!(spot(&levels), Some((Load::Closed(4.0), true)));
    // TTFT p95 is 1.7 times the median: 2550 ms misses the limit of 2000.
    levels[1].ttft_ms = 1500.0;
    levels[2].ttft_ms = 1500.0;
    assert_eq!(spot(&levels), Some((Load::Closed(1.0), true)));
    // No level meets it: the knee, and it is said.
    levels[0].ttft_ms = 1500.0;
    assert_eq!(spot(&levels), Some((Load::Closed(4.0), false)));
    // Levels that fail or were interrupted are no place to work at.
    levels[1].failed = 30;
    levels[2].interrupted = true;
    assert_eq!(spot(&levels), Some((Load::Closed(1.0), false)));
    levels[0].failed = 30;
    assert_eq!(spot(&levels), None);
}

#[test]
fn what_went_wrong_is_said_wherever_its_numbers_stand() {
    let mut folder = Folder::new(SCENARIO);
    let limited = Level { client_limited: true, ..Level::of(8, 300.0, 300.0, 20.0) };
    let failing = Level { failed: 30, ..Level::of(16, 310.0, 900.0, 40.0) };
    let interrupted = Level { interrupted: true, ..Level::of(4, 290.0, 90.0, 9.0) };
    folder.run("before", &[Level::of(1, 100.0, 50.0, 5.0), interrupted, limited, failing]);
    let mut broken = run(&[Level::of(1, 100.0, 50.0, 5.0), Level::of(8, 90.0, 50.0, 5.0)]);
    broken["levels"][1]["summary"] = Value::Null;
    broken["levels"][1]["load"] = json!({"kind": "of the future"});
    folder.result("after", &broken, None);
    let (analysis, study) = folder.study();
    let text: String = parts(&study.html)
        .into_iter()
        .filter_map(|part| match part {
            Part::Text(stack, text)
                if !stack.iter().any(|element| ["script", "style"].contains(&element.name.as_str())) =>
            {
                Some(text)
            }
            _ => None,
        })
        .collect();
    for expected in [
        "marked †",
        "marked ‡",
        "did not run to its end",
        "the event loops' lag is 9.0 ms",
        "the server closed the connection",
        "no request was measured",
        "names no file of raw events",
        "of the future",
    ] {
        assert!(text.contains(expected), "{expected:?} is missing");
    }
    for rule in ["repeat-limited", "repeat-interrupted", "find-failures"] {
        assert!(analysis.findings.iter().any(|finding| finding.rule == rule), "{rule} did not fire");
    }
    // Each number of a marked level has its mark behind it.
    let page = parts(&study.html);
    let mut marked = 0;
    for (place, part) in page.iter().enumerate() {
        let Part::Begin(element) = part else { continue };
        let from = element.attribute("data-from");
        let sign = if from.contains("B1#/levels/2/summary") {
            "†"
        } else if from.contains("B1#/levels/1/summary") {
            "‡"
        } else {
            continue;
        };
        if element.name != "data" {
            continue;
        }
        let next = page[place + 1..].iter().find_map(|part| match part {
            Part::Begin(element) if element.name != "small" => Some(element),
            _ => None,
        });
        assert!(next.is_some_and(|next| next.attribute("class") == "mark"), "{element:?} lacks {sign}");
        marked += 1;
    }
    assert!(marked >= 10, "only {marked} marked numbers");
}

#[test]
fn costs_are_those_of_a_hand_computation() {
    let mut folder = Folder::new(SCENARIO);
    // One client: mean TTFT 88 ms over 128 tokens. Four: 600 tok/s in, 300 out.
    let levels = [Level::of(1, 100.0, 80.0, 5.0), Level::of(4, 300.0, 90.0, 9.0)];
    folder.run("before", &levels).run("after", &levels);
    let analysis = folder.analysis();
    let split = analysis.after.split.as_ref().unwrap();
    let near =
        |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-6, "{found}, expected {expected}");
    // 600 × 0.088 / 128.
    near(split.prefill_share.value, 0.4125);
    let rented = &analysis.after.costs[0];
    // 0.5 an hour: 0.4125 of it for 2.16 M tokens, 0.5875 for 1.08 M.
    let [input, output] =
        [&rented.input_per_million, &rented.output_per_million].map(|cost| cost.as_ref().unwrap().value);
    near(input, 0.5 * 0.4125 / 2.16);
    near(output, 0.5 * 0.5875 / 1.08);
    // 50,000 × (128 × 0.4125 / 600 + 64 × 0.5875 / 300) = 10,666.67 s a day; × 2.5 / 0.7 is 0.44 machines.
    let demand = rented.demand.as_ref().unwrap();
    near(demand.machines.value, 1.0);
    near(demand.utilisation.value, 10_666.666_667 / 86_400.0);
    near(demand.per_month.value, 365.0);
    near(demand.output_per_million.value, output / demand.utilisation.value);
    // The provider: 2.16 × 0.1 + 1.08 × 0.4 an hour.
    near(rented.break_even_utilisation.as_ref().unwrap().value, 0.5 / 0.648);
    let owned = &analysis.after.costs[1];
    near(owned.per_hour.value, 4000.0 / 26_280.0 + 0.2 * 1.3 * 0.3 + 50.0 / 730.0);
    let months = analysis.own_or_rent[0].2.as_ref().unwrap();
    near(months.value, 4000.0 / ((0.5 - 0.078) * 730.0 - 50.0));
}

#[test]
fn an_index_lists_runs_and_what_it_could_not_read() {
    let mut folder = clear_win();
    folder.run("after", &[Level { interrupted: true, ..Level::of(1, 100.0, 50.0, 5.0) }]);
    let path = folder.folder.path();
    fs::create_dir(path.join("deeper")).unwrap();
    fs::write(path.join("deeper/broken.json"), "{\"format\": ").unwrap();
    fs::write(path.join("deeper/other.json"), "{\"format\": \"powertrain-bench/9\"}").unwrap();
    fs::copy(path.join("after-2.json"), path.join("deeper/copy.json")).unwrap();
    fs::write(path.join("deeper/0.cell.json"), "{\"format\": \"powertrain-sweep/1\"}").unwrap();
    fs::write(path.join("package.json"), "{}").unwrap();
    let index = Index::of(path).unwrap();
    assert_eq!((index.runs(), index.files()), (3, 8));
    let html = index.html().unwrap();
    let parts = parts(&html);
    let text: String = parts
        .iter()
        .filter_map(|part| if let Part::Text(_, text) = part { Some(text.as_str()) } else { None })
        .collect();
    for expected in [
        "after-2.json",
        "interrupted ‡",
        "broken.json: not JSON",
        "deeper/copy.json: the same run as after-2.json",
        "format \"powertrain-bench/9\"",
        "the run did not run to its end",
    ] {
        assert!(text.contains(expected), "{expected:?} is missing");
    }
    assert!(!text.contains("cell.json") && !text.contains("package.json"), "what is no run is no complaint");
    let rows = parts.iter().filter(|part| matches!(part, Part::Begin(element) if element.name == "tr")).count();
    assert_eq!(rows, 1 + 9);
    let trends = parts.iter().find_map(|part| match part {
        Part::Text(stack, text) if stack.last().is_some_and(|element| element.attribute("id") == "trend-data") => {
            Some(text)
        }
        _ => None,
    });
    let trends: Value = serde_json::from_str(trends.unwrap()).unwrap();
    assert_eq!(trends["trends"][0]["values"][0].as_array().unwrap().len(), 3);
}

#[test]
fn what_cannot_be_used_is_named() {
    let folder = clear_win();
    let path = |name: &str| folder.folder.path().join(name);
    let failed = |before: &str, after: &str| {
        let error = Analysis::of(&path("scenario.toml"), &[path(before)], &[path(after)], None, &[]).unwrap_err();
        error.to_string()
    };
    fs::write(path("eval.json"), "{\"perplexity\": 20.0}").unwrap();
    fs::write(path("future.json"), "{\"format\": \"powertrain-bench/2\"}").unwrap();
    assert!(failed("absent.json", "after-1.json").contains("absent.json: cannot be read"));
    assert!(failed("before-1.json", "eval.json").contains("--after has no result of `powertrain bench`"));
    assert!(failed("future.json", "after-1.json").contains("a report reads powertrain-bench/1"));
    let comparison = Analysis::of(
        &path("scenario.toml"),
        &[path("before-1.json")],
        &[path("after-1.json")],
        Some(&path("eval.json")),
        &[],
    );
    assert!(comparison.unwrap_err().to_string().contains("powertrain compare --json"));
}

#[test]
fn what_gpus_did_stands_in_the_study() {
    let mut folder = Folder::new(SCENARIO);
    let level = |clients, tokens_per_s, gpus| Level { gpus, ..Level::of(clients, tokens_per_s, 80.0, 5.0) };
    let held = json!({"sw_power_cap": 0.5});
    folder.run("before", &[level(1, 100.0, gpu(200.0, &held)), level(8, 500.0, gpu(600.0, &json!({})))]);
    folder.run("after", &[level(1, 100.0, json!([])), level(8, 1000.0, gpu(650.0, &held))]);
    // A second run in which nothing held the clocks back.
    folder.run("after", &[level(8, 1000.0, gpu(550.0, &json!({})))]);
    let (analysis, study) = folder.study();
    let (before, after) = (telemetry::rows(&analysis.before), telemetry::rows(&analysis.after));
    assert_eq!((before.len(), after.len()), (2, 1));
    assert_eq!(before[0].gpu, "0: NVIDIA H100 80GB HBM3");
    assert_eq!((after[0].power.as_ref().unwrap().value, after[0].power_limit.as_ref().unwrap().value), (600.0, 700.0));
    assert_eq!((after[0].throttled[0].0.as_str(), after[0].throttled[0].1.value), ("sw power cap", 0.25));
    let energy = |side: &Assessed, place: usize| telemetry::energy_per_token(side, &side.side.points[place]);
    assert_eq!(energy(&analysis.before, 0).unwrap().value, 2.0);
    assert_eq!(energy(&analysis.after, 0), None);
    assert_eq!(energy(&analysis.after, 1).unwrap().value, 0.6);
    assert!(study.drawings.iter().any(|drawing| drawing.id == "energy"));
    assert!(study.markdown.contains("sw power cap 50.0"), "{}", study.markdown);
    assert!(!clear_win().study().1.html.contains("id=\"gpus\""), "a section of nothing");
}

#[test]
fn a_sweep_is_a_table_with_its_failures_and_proposals() {
    let mut folder = clear_win();
    folder.sweep(&sweep_table());
    let (analysis, study) = folder.study();
    let [sweep] = &analysis.configurations()[..] else { panic!("one sweep") };
    assert!(sweep.columns.contains(&("KV tokens", "")) && !sweep.columns.iter().any(|column| column.0 == "ITL p50"));
    assert_eq!(
        (&sweep.rows[0].proposed[..], &sweep.rows[1].parameters[..]),
        (&["latency".to_owned()][..], &["8192".to_owned()][..])
    );
    assert!(sweep.rows[1].figures.iter().all(Option::is_none));
    let output = sweep.rows[0].figures.iter().flatten().find(|figure| figure.value == 2218.5).unwrap();
    assert_eq!((output.with_unit().as_str(), output.marks.sign().as_str()), ("2,218\u{202f}tok/s", "†"));
    assert!(study.markdown.contains("out of memory: ended with code 2: &lt;0 MiB> are free"), "{}", study.markdown);
    assert!(study.html.contains("proposed for latency"));
    // Only a sweep's table is one.
    let path = |name: &str| folder.folder.path().join(name);
    let wrong = Analysis::of(
        &path("scenario.toml"),
        &[path("before-1.json")],
        &[path("after-1.json")],
        None,
        &[path("after-1.json")],
    );
    assert!(wrong.unwrap_err().to_string().contains("--sweep takes"));
}
