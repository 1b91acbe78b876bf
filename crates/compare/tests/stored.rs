//! From stored files to verdicts: results made from known distributions, written as `bench` writes them, read and compared.

use powertrain_compare::{Basis, Comparison, Gate, Metric, Settings, Side, Verdict, table};
use powertrain_load::{
    Chunk, ClientHealth, Failure, FailureClass, Machine, MetricsChange, Random, RequestRecord, Subject, Summary, Usage,
    definitions::Objectives,
    events::EventsFile,
    files::{events_path, write_result},
    result::{FORMAT, LevelResult, LoadResult, RunResult, WorkResult},
};
use serde_json::json;
use std::{fs, path::Path};

/// A server in four numbers.
#[derive(Clone, Copy)]
struct Server {
    ttft_ms: f64,
    gap_ms: f64,
    /// How runs differ, as a share.
    spread: f64,
    /// Share of requests that fail.
    failing: f64,
}

const SERVER: Server = Server { ttft_ms: 50.0, gap_ms: 10.0, spread: 0.02, failing: 0.0 };
const REQUESTS: u64 = 80;
const TOKENS: u32 = 20;

/// Two clients, one after the other's requests.
fn records(random: &mut Random, server: Server) -> Vec<RequestRecord> {
    let run = 1.0 + server.spread * random.normal();
    let mut free = [0_u64; 2];
    let nanos = |ms: f64| (ms * 1e6) as u64;
    (0..REQUESTS)
        .map(|index| {
            let client = usize::from(free[1] < free[0]);
            let scheduled = free[client];
            let mut at = scheduled + nanos(server.ttft_ms * run * (0.2 * random.normal()).exp());
            let fails = random.uniform() < server.failing;
            let mut chunks = Vec::new();
            for _ in 0..if fails { 0 } else { TOKENS } {
                chunks.push(Chunk { at, characters: 4, tokens: Some(1) });
                at += nanos(server.gap_ms * run * (0.1 * random.normal()).exp());
            }
            free[client] = at;
            RequestRecord {
                index,
                scheduled,
                started: scheduled,
                sent: Some(scheduled),
                first_event: chunks.first().map(|chunk| chunk.at),
                last_event: chunks.last().map(|chunk| chunk.at),
                chunks,
                ended: at,
                status: Some(200),
                usage: Some(Usage { prompt_tokens: 5, completion_tokens: TOKENS, cached_tokens: None }),
                streamed: true,
                output_tokens_asked: TOKENS,
                failure: fails.then(|| Failure { class: FailureClass::Status, message: "500".to_owned() }),
                ..RequestRecord::default()
            }
        })
        .collect()
}

/// Writes one run as `bench --output` does.
fn write(path: &Path, began: u32, engine: &str, records: &[RequestRecord], with_events: bool) {
    let events = events_path(path);
    let level = LevelResult {
        load: LoadResult::Closed { concurrency: 2 },
        interrupted: false,
        wall_s: 1.0,
        summary: Summary::of(records, &Objectives::default()),
        client: ClientHealth::default(),
        metrics: MetricsChange::default(),
        load_average_after: None,
        stages: Vec::new(),
        turns: Vec::new(),
        gauges: Default::default(),
        gpus: Vec::new(),
    };
    let result = RunResult {
        format: FORMAT.to_owned(),
        began_at: format!("2026-01-01T00:{began:02}:00Z"),
        powertrain: "0.0.0".to_owned(),
        command: ["powertrain", "bench", "http://x", "--concurrency", "2"].map(str::to_owned).to_vec(),
        config: String::new(),
        complete: true,
        url: "http://x".to_owned(),
        model: "m".to_owned(),
        server: Subject { engine: json!({"version": engine, "now": {"steps": began}}), ..Subject::default() },
        work: WorkResult {
            seed: u64::from(began),
            prompts: "synthetic words".to_owned(),
            input_tokens: Some("5".to_owned()),
            overhead_tokens: Some(0),
            calibrated: Some(true),
            prefix_tokens: 0,
            prefix_groups: 1,
            output_tokens: "20".to_owned(),
            streamed: true,
            turns: None,
            think_s: None,
            request: json!({}),
        },
        machine: Machine::default(),
        levels: vec![level],
        events_file: events.file_name().map(|name| name.to_string_lossy().into_owned()),
        series_file: None,
        gpus: Default::default(),
        capacity: None,
        definitions: Default::default(),
    };
    if with_events {
        let mut file = EventsFile::create(&events).unwrap();
        file.write_level(0, records).unwrap();
        file.finish().unwrap();
    }
    write_result(path, &result).unwrap();
}

/// Both sides with so many runs each, in turns A B B A ….
fn compared(seed: u64, a: Server, b: Server, runs: u32, with_events: bool) -> Comparison {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed);
    for (name, server, is_b) in [("a", a, false), ("b", b, true)] {
        let side = folder.path().join(name);
        fs::create_dir(&side).unwrap();
        // Other files of the folder are left alone.
        fs::write(side.join("notes.json"), "{\"format\": \"other\"}").unwrap();
        for run in 0..runs {
            let second = (run % 2 == 0) == is_b;
            let path = side.join(format!("{run}.json"));
            write(&path, 2 * run + u32::from(second), name, &records(&mut random, server), with_events);
        }
    }
    let side = |name: &str| Side::open(&folder.path().join(name)).unwrap();
    Comparison::of(&side("a"), &side("b"), Settings { resamples: 300, ..Settings::default() })
}

fn verdict(comparison: &Comparison, metric: &str) -> Verdict {
    let metric: Metric = metric.parse().unwrap();
    let found = comparison.levels[0].metrics.iter().find(|found| found.metric == metric);
    found.unwrap_or_else(|| panic!("no {metric}")).verdict
}

#[test]
fn a_slower_first_token_is_found_and_nothing_else() {
    let comparison = compared(1, SERVER, Server { ttft_ms: 65.0, ..SERVER }, 4, true);
    assert!(comparison.paired);
    assert_eq!(verdict(&comparison, "ttft_p50"), Verdict::Worse);
    assert_eq!(verdict(&comparison, "ttft_p95"), Verdict::Worse);
    assert_eq!(verdict(&comparison, "itl_p50"), Verdict::NoDetectableDifference);
    assert_eq!(verdict(&comparison, "tpot_mean"), Verdict::NoDetectableDifference);
    let text = table::text(&comparison);
    assert!(text.contains("ttft_p95 ms") && text.contains("worse") && text.contains("in pairs"), "{text}");
}

#[test]
fn faster_tokens_are_better_in_time_and_rate() {
    let comparison = compared(2, SERVER, Server { gap_ms: 7.0, ..SERVER }, 3, true);
    for metric in ["requests_per_s", "output_tokens_per_s", "itl_p50", "tpot_mean", "e2e_p90"] {
        assert_eq!(verdict(&comparison, metric), Verdict::Better, "{metric}");
    }
    let found = comparison.levels[0].metrics.iter().find(|found| found.metric.to_string() == "itl_mean").unwrap();
    assert!((found.ratio - 0.7).abs() < 0.05, "{}", found.ratio);
}

#[test]
fn equal_servers_are_rarely_called_different() {
    let (mut wrong, mut all) = (0, 0);
    for seed in 0..25 {
        let comparison = compared(100 + seed, SERVER, SERVER, 3, false);
        all += comparison.levels[0].metrics.len();
        let different = |verdict| matches!(verdict, Verdict::Better | Verdict::Worse);
        wrong += comparison.levels[0].metrics.iter().filter(|found| different(found.verdict)).count();
    }
    // Metrics of one trial go together, so that the share varies more than independent ones would.
    let share = wrong as f64 / all as f64;
    assert!(share < 0.12, "{wrong} of {all}");
}

#[test]
fn one_run_of_each_holds_for_these_runs_only() {
    let comparison = compared(3, SERVER, Server { ttft_ms: 80.0, ..SERVER }, 1, true);
    let found = comparison.levels[0].metrics.iter().find(|found| found.metric.to_string() == "ttft_mean").unwrap();
    assert_eq!((found.basis, found.verdict), (Basis::WithinRuns, Verdict::Worse));
    assert!(comparison.cautions.iter().any(|caution| caution.contains("one run of a side")));
    // And without raw events nothing can be said.
    let comparison = compared(3, SERVER, Server { ttft_ms: 80.0, ..SERVER }, 1, false);
    assert_eq!(verdict(&comparison, "ttft_mean"), Verdict::Unknown);
}

#[test]
fn failures_and_other_differences_are_told() {
    let comparison = compared(4, SERVER, Server { failing: 0.2, ..SERVER }, 2, true);
    assert_eq!(comparison.levels[0].failed.verdict, Verdict::Worse);
    // The engine's own number differs; counters of the moment and seeds are no difference.
    let named: Vec<&str> = comparison.differences.iter().map(|difference| difference.what.as_str()).collect();
    assert_eq!(named, ["server.engine.version"]);
    let json = serde_json::to_value(&comparison).unwrap();
    assert_eq!(json["levels"][0]["failed"]["verdict"], "worse");
    assert_eq!(json["levels"][0]["metrics"][0]["metric"], "requests_per_s");
}

#[test]
fn gates_fail_on_what_is_beyond_and_no_chance() {
    let judge = |comparison: &Comparison, gate: &str| gate.parse::<Gate>().unwrap().judge(comparison);
    let slower = compared(5, SERVER, Server { ttft_ms: 65.0, ..SERVER }, 4, true);
    assert!(judge(&slower, "ttft_p50>+5%").failed());
    assert!(!judge(&slower, "ttft_p50>+60%").failed());
    assert!(!judge(&slower, "ttft_p50<-5%").failed());
    assert!(judge(&slower, "ttft_p99.9>+5%").guards_nothing());
    // A change that may be chance does not fail, and says so.
    let noisy = Server { spread: 0.3, ..SERVER };
    let equal = compared(6, noisy, noisy, 3, true);
    let found = judge(&equal, "ttft_mean>-50%");
    assert!(!found.failed());
    let text = found.loads[0].1.to_string();
    assert!(text.contains("may be chance") && text.contains("would have been found"), "{text}");
}

#[test]
fn gates_fail_on_a_dead_server_and_on_what_they_cannot_judge() {
    let judge = |comparison: &Comparison, gate: &str| gate.parse::<Gate>().unwrap().judge(comparison);
    let dead = Server { failing: 1.0, ..SERVER };
    for (runs, with_events) in [(2, true), (1, true), (1, false)] {
        let comparison = compared(7, SERVER, dead, runs, with_events);
        for gate in ["output_tokens_per_s<-3%", "requests_per_s<-3%", "ttft_p50>+5%", "failed_share>+1%"] {
            let found = judge(&comparison, gate);
            assert!(found.failed(), "{runs} runs, events {with_events}, {gate}: {}", found.loads[0].1);
        }
    }
    // Nothing failed in some hundred requests: that does not show one more in a hundred.
    let blind = |limit: &str| judge(&compared(7, SERVER, SERVER, 1, true), limit).loads[0].1.to_string();
    assert!(blind("failed_share>+1%").contains("would not have been found"), "{}", blind("failed_share>+1%"));
    assert!(!blind("failed_share>+50%").contains("would not have been found"), "{}", blind("failed_share>+50%"));
    // A rate of single runs has an interval from their events.
    let slower = compared(8, SERVER, Server { gap_ms: 20.0, ..SERVER }, 1, true);
    assert_eq!(verdict(&slower, "requests_per_s"), Verdict::Worse);
    assert!(judge(&slower, "requests_per_s<-3%").failed());
    // Without them nothing tells chance: that is no pass.
    let blind = compared(8, SERVER, Server { gap_ms: 20.0, ..SERVER }, 1, false);
    let found = judge(&blind, "e2e_p50>+5%");
    assert!(found.failed() && found.loads[0].1.to_string().contains("nothing tells"), "{}", found.loads[0].1);
    assert!(!judge(&blind, "e2e_p50>+500%").failed());
}

#[test]
fn copies_foreign_events_and_other_answers_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let mut random = Random::new(9);
    for side in [&a, &b] {
        fs::create_dir(side).unwrap();
    }
    write(&a.join("0.json"), 0, "a", &records(&mut random, SERVER), true);
    fs::copy(a.join("0.json"), a.join("1.json")).unwrap();
    let mut short = records(&mut random, SERVER);
    for record in &mut short {
        record.chunks.truncate(3);
        record.usage = Some(Usage { prompt_tokens: 5, completion_tokens: 3, cached_tokens: None });
    }
    short[0].chunks.clear();
    write(&b.join("0.json"), 1, "b", &short, true);
    let events = b.join("0.events.jsonl");
    let text = fs::read_to_string(&events).unwrap();
    fs::write(&events, text.lines().take(30).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let sides = [Side::open(&a).unwrap(), Side::open(&b).unwrap()];
    assert_eq!(sides[0].runs.len(), 1);
    let comparison = Comparison::of(&sides[0], &sides[1], Settings::default());
    let cautions = comparison.cautions.join("\n");
    for told in [
        "copy of another run",
        "is not of this run",
        "A's answers have 20.0 tokens in the mean, B's",
        "1 of 80 answers of B had no content",
    ] {
        assert!(cautions.contains(told), "{told}: {cautions}");
    }
    let itself = Comparison::of(&sides[0], &sides[0], Settings::default()).cautions.join("\n");
    assert!(itself.contains("1 of the runs are on both sides") && !cautions.contains("on both sides"), "{itself}");
}

#[test]
fn what_is_no_result_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &Path| Side::open(path).unwrap_err().to_string();
    assert!(error(folder.path()).contains("no file in it is the result of a run"));
    let path = folder.path().join("x.json");
    fs::write(&path, "{\"format\": \"powertrain-bench/9\"}").unwrap();
    assert!(error(&path).contains("powertrain-bench/9"));
    assert!(error(&folder.path().join("absent")).contains("absent"));
    // A result may name raw events elsewhere; only those beside it are read.
    write(&path, 0, "a", &records(&mut Random::new(1), SERVER), true);
    let text = fs::read_to_string(&path).unwrap().replace("\"x.events.jsonl\"", "\"../../elsewhere/x.events.jsonl\"");
    fs::write(&path, text).unwrap();
    assert!(Side::open(&path).unwrap().runs[0].events.is_some());
}
