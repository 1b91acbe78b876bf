//! The client against the ground-truth server: what it records is what happened. Speed is no subject here: `bench self`
//! measures that.

use super::{
    Ending, Script, TruthServer,
    cases::{chat, target, work},
    errors::{Errors, OneClock},
};
use crate::{
    ClientThreads, Clock, Event, Level, LevelRun, Outcome, Plan, Priority, PromptPlan, RequestRecord, Stop, Summary,
    bench,
    csv::write_csv,
    definitions::{self, Objectives},
    events::EventsFile,
    exchange::Target,
    files::{self, SeriesFile},
    http::Trust,
    openai::Api,
    result::RunResult,
    run_level,
    schedule::{Arrivals, Load, Until},
    table::level_table,
    work::Lengths,
};
use std::{sync::Arc, time::Duration};

/// Longer than any test.
pub(super) const FOREVER: Duration = Duration::from_secs(24 * 3600);

pub(super) fn closed(concurrency: u32, requests: u64) -> Level {
    let until = Until { requests: Some(requests), duration: None };
    Level { load: Load::Closed { concurrency }, until, warmup: 0, first_number: 0 }
}

/// Threads as those of any other program: what is shown does not hang on priority.
pub(super) fn threads(count: usize) -> ClientThreads {
    ClientThreads { count: Some(count), priority: Priority::Normal }
}

pub(super) fn run(server: &TruthServer, level: Level, change: impl FnOnce(&mut Target)) -> (LevelRun, Errors) {
    let (clock, stop) = (server.clock(), Stop::new());
    let mut target = target(&chat(server.address()).unwrap(), clock).unwrap();
    change(&mut target);
    let run = run_level(&Arc::new(target), &Arc::new(work()), level, threads(2), &stop).unwrap();
    let errors = Errors::of(&run.records, &work(), &server.truths(), OneClock::Yes);
    (run, errors)
}

pub(super) fn start(script: Script) -> TruthServer {
    TruthServer::start(script, Clock::start()).unwrap()
}

pub(super) fn summary(run: &LevelRun) -> Summary {
    Summary::of(&run.records, &Objectives::default()).unwrap()
}

#[test]
fn every_chunk_is_recorded_after_it_was_written_however_the_bytes_are_split() {
    for write_bytes in [None, Some(1), Some(7), Some(100)] {
        let server = start(Script { chunks: 6, tokens_per_chunk: 3, write_bytes, ..Script::default() });
        let (run, errors) = run(&server, closed(3, 12), |_| {});
        assert_eq!((errors.unmatched, errors.before_written), (0, 0), "writes of {write_bytes:?}");
        let summary = summary(&run);
        assert_eq!(summary.requests.completed, 12);
        // Each client opens one connection; a quick one may leave nothing for the others.
        assert!((1..=3).contains(&summary.requests.new_connections));
        assert_eq!((summary.outputs.total, summary.chunks.count), (12 * 18, 12 * 6));
        assert_eq!((summary.prompts.exact, summary.prompts.compared), (12, 12));
        for record in &run.records {
            assert!(record.scheduled <= record.started && Some(record.started) <= record.sent);
            assert!(record.sent <= record.first_byte && record.first_byte <= record.first_event);
            assert!(record.first_event <= Some(record.chunks[0].at), "the role comes before the content");
            assert!(record.chunks.is_sorted_by_key(|chunk| chunk.at) && record.last_event <= Some(record.ended));
            assert_eq!(record.finish_reason.as_deref(), Some("length"));
        }
    }
}

#[test]
fn endings_are_told_apart() {
    let check = |ending, outcome, class, chunks| {
        let server = start(Script { ending, ..Script::default() });
        let (run, _) = run(&server, closed(2, 4), |_| {});
        assert_eq!(run.records.len(), 4, "{ending:?}: nothing is sent twice");
        for record in &run.records {
            let found = record.failure.as_ref().map(|failure| failure.class.name());
            assert_eq!((record.outcome(), found, record.chunks.len()), (outcome, class, chunks), "{ending:?}");
            assert_eq!(definitions::e2e(record).is_some(), outcome == Outcome::Completed);
        }
    };
    check(Ending::Complete, Outcome::Completed, None, 4);
    check(Ending::Closed(2), Outcome::CutOff, Some("closed"), 2);
    check(Ending::Closed(0), Outcome::Failed, Some("closed"), 0);
    check(Ending::Early(2), Outcome::CutOff, Some("ended_early"), 2);
    check(Ending::Error(2), Outcome::CutOff, Some("server_error"), 2);
    check(Ending::Status(503), Outcome::Failed, Some("status"), 0);
}

#[test]
fn refused_connections_are_results() {
    let address = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let target = Arc::new(target(&chat(address).unwrap(), Clock::start()).unwrap());
    let run = run_level(&target, &Arc::new(work()), closed(2, 10), threads(1), &Stop::new()).unwrap();
    let summary = summary(&run);
    assert_eq!((summary.requests.sent, summary.requests.failed), (10, 10));
    assert_eq!(summary.failures["refused"].count, 10);
    assert!(summary.latency.is_empty());
    assert!(
        summary.throughput.output_tokens_per_s.is_sign_positive() && summary.throughput.total_tokens_per_s.is_none()
    );
}

#[test]
fn without_keep_alive_each_request_has_its_connection() {
    let server = start(Script::default());
    let (run, _) = run(&server, closed(3, 9), |target| target.no_keep_alive = true);
    assert_eq!(summary(&run).requests.new_connections, 9);
}

#[test]
fn whole_answers_have_no_first_token() {
    let server = start(Script::default());
    let (run, _) = run(&server, closed(1, 3), |target| target.options.stream = false);
    let summary = summary(&run);
    assert_eq!(summary.requests.completed, 3);
    assert!(summary.latency.contains_key("e2e_ms") && !summary.latency.contains_key("ttft_ms"));
    assert_eq!(summary.outputs.total, 12);
}

#[test]
fn tokens_without_usage_are_estimated_and_say_so() {
    let server = start(Script { usage: false, tokens_per_chunk: 2, ..Script::default() });
    let (run, _) = run(&server, closed(1, 2), |_| {});
    let summary = summary(&run);
    assert!(summary.throughput.estimated);
    assert_eq!((summary.outputs.total, summary.chunks.tokens_per_chunk), (8, None));
}

#[test]
fn a_usage_of_zeros_beside_content_is_not_believed_and_marked() {
    let server = start(Script { tokens_per_chunk: 0, ..Script::default() });
    let mut plan = plan(&server);
    let run = |plan: &Plan| bench(plan, &Stop::new(), |_| {}).unwrap().levels.remove(0);
    let level = run(&plan);
    let summary = level.summary.as_ref().unwrap();
    let completed = summary.requests.completed;
    assert!(completed > 0 && summary.requests.usage_contradicted == completed, "{:?}", summary.requests);
    assert!(summary.throughput.estimated && summary.throughput.output_tokens_per_s > 0.0);
    assert_eq!((summary.outputs.mean, summary.chunks.tokens_per_chunk), (Some(4.0), None));
    let text = level_table(&level);
    assert!(text.contains(&format!("USAGE WRONG   {completed} of {completed} answers say 0 tokens")), "{text}");

    let sound = start(Script::default());
    plan.url = chat(sound.address()).unwrap();
    let level = run(&plan);
    assert_eq!(level.summary.as_ref().unwrap().requests.usage_contradicted, 0);
    assert!(!level_table(&level).contains("USAGE"));
}

#[test]
fn an_open_loop_keeps_its_schedule_when_the_server_does_not() {
    let server = start(Script { gap: Duration::from_millis(5), ..Script::default() });
    let load = Load::Open { rate: 1000.0, arrivals: Arrivals::Constant, in_flight_max: 1 };
    let level = Level { load, until: Until { requests: Some(8), duration: None }, warmup: 2, first_number: 0 };
    let target = Arc::new(target(&chat(server.address()).unwrap(), server.clock()).unwrap());
    let run = run_level(&target, &Arc::new(work()), level, threads(1), &Stop::new()).unwrap();
    let due: Vec<u64> = run.records.iter().map(|record| record.scheduled - run.records[0].scheduled).collect();
    assert_eq!(due, (0..10).map(|place| place * 1_000_000).collect::<Vec<_>>());
    assert_eq!(run.records.iter().filter(|record| record.warmup).count(), 2);
    // With one request in flight each waits for the one before, and the wait is part of its latency.
    for pair in run.records.windows(2) {
        assert!(pair[1].started >= pair[0].ended);
        let waited = pair[1].started - pair[1].scheduled;
        assert!(definitions::ttft(&pair[1]).unwrap() > waited);
    }
}

#[test]
fn an_interrupted_run_keeps_what_was_measured() {
    let server = start(Script { stall: Some((2, FOREVER)), ..Script::default() });
    let target = Arc::new(target(&chat(server.address()).unwrap(), server.clock()).unwrap());
    let stop = Stop::new();
    let run = std::thread::scope(|scope| {
        let (target, stop) = (&target, &stop);
        let run = scope.spawn(move || run_level(target, &Arc::new(work()), closed(4, 100), threads(2), stop).unwrap());
        while target.live.counts().chunks < 8 {
            std::thread::yield_now();
        }
        stop.request();
        run.join().unwrap()
    });
    assert!(run.interrupted);
    assert_eq!(run.records.len(), 4);
    assert!(run.records.iter().all(|record| record.outcome() == Outcome::Interrupted && record.chunks.len() == 2));
    let summary = summary(&run);
    assert_eq!((summary.requests.interrupted, summary.requests.failed), (4, 0));
}

#[test]
fn a_request_that_takes_too_long_is_given_up() {
    let server = start(Script { stall: Some((2, FOREVER)), ..Script::default() });
    let (run, _) = run(&server, closed(1, 2), |target| target.timeout = Duration::from_millis(200));
    let found: Vec<_> = run.records.iter().map(|record| record.failure.as_ref().unwrap().class.name()).collect();
    assert_eq!(found, ["timed_out", "timed_out"]);
}

pub(super) fn plan(server: &TruthServer) -> Plan {
    Plan {
        url: format!("http://{}", server.address()).parse().unwrap(),
        api: Api::Chat,
        model: Some("truth".to_owned()),
        headers: Vec::new(),
        stream: true,
        usage_per_chunk: false,
        ignore_eos: false,
        temperature: Some(0.0),
        extra_body: serde_json::Map::new(),
        prompts: PromptPlan::Synthetic {
            input: Lengths::Uniform(5, 30),
            token_ids: None,
            prefix_tokens: 0,
            prefix_groups: 1,
        },
        conversations: None,
        output: Lengths::Fixed(4),
        seed: 7,
        loads: vec![Load::Closed { concurrency: 1 }, Load::Closed { concurrency: 3 }],
        search: None,
        until: Until { requests: Some(6), duration: None },
        warmup: Some(2),
        threads: threads(1),
        timeout: Duration::from_secs(60),
        connect_timeout: Duration::from_secs(10),
        trust: Trust::Machine,
        no_keep_alive: false,
        look_every: Some(Duration::from_millis(5)),
        objectives: Objectives { ttft_ms: Some(1e9), ..Objectives::default() },
        config: "a, b".to_owned(),
        command: Vec::new(),
    }
}

#[test]
fn a_run_measures_every_level_and_its_files_say_the_same() {
    let server = start(Script::default());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    let mut events = EventsFile::create(&files::events_path(&path)).unwrap();
    let mut samples = SeriesFile::create(&files::series_path(&path)).unwrap();
    let mut records: Vec<RequestRecord> = Vec::new();
    let mut level = 0;
    let result = bench(&plan(&server), &Stop::new(), |event| {
        if let Event::LevelEnded { records: ended, series, .. } = event {
            events.write_level(level, ended).unwrap();
            samples.write_level(level, series).unwrap();
            records.extend_from_slice(ended);
            level += 1;
        }
    })
    .unwrap();
    events.finish().unwrap();
    samples.finish().unwrap();

    assert!(result.complete);
    // The server counts words, so calibration finds no overhead and every length is exact.
    assert_eq!((result.work.calibrated, result.work.overhead_tokens), (Some(true), Some(0)));
    for level in &result.levels {
        let summary = level.summary.as_ref().unwrap();
        assert_eq!((summary.requests.completed, summary.requests.warmup), (6, 2));
        assert_eq!((summary.prompts.exact, summary.prompts.compared), (6, 6));
        assert_eq!(summary.goodput.unwrap().good, 6);
    }

    files::write_result(&path, &result).unwrap();
    let read: RunResult = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    // Floating-point numbers may come back off by their last bit.
    assert_eq!(
        (read.format, read.server, read.work),
        (result.format.clone(), result.server.clone(), result.work.clone())
    );
    for (read, level) in read.levels.iter().zip(&result.levels) {
        let (read, level) = (read.summary.as_ref().unwrap(), level.summary.as_ref().unwrap());
        assert_eq!((read.requests, &read.failures), (level.requests, &level.failures));
        assert!((read.latency["e2e_ms"].mean / level.latency["e2e_ms"].mean - 1.0).abs() < 1e-12);
    }
    let text = std::fs::read_to_string(files::events_path(&path)).unwrap();
    assert_eq!(text.lines().count(), records.len());
    for (line, record) in text.lines().zip(&records) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let gaps: u64 = line["chunk_gaps_us"].as_array().unwrap().iter().map(|gap| gap.as_u64().unwrap()).sum();
        let last = record.chunks.last().unwrap().at;
        assert_eq!(gaps, last / 1000 - record.scheduled / 1000, "gaps add up to the last chunk");
        assert_eq!(line["usage"]["completion_tokens"], 4);
    }
    // One look at the beginning of each level and one at its end, at least.
    let samples = std::fs::read_to_string(files::series_path(&path)).unwrap();
    let samples: Vec<serde_json::Value> = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for level in 0..2 {
        let mut of_level = samples.iter().filter(|sample| sample["level"] == level && sample["source"] == "client");
        assert!(of_level.clone().count() >= 2);
        assert_eq!(of_level.next_back().unwrap()["values"]["completed"], 8.0);
    }
    let csv = folder.path().join("run.csv");
    write_csv(&csv, &result).unwrap();
    let csv = std::fs::read_to_string(csv).unwrap();
    let rows: Vec<&str> = csv.lines().collect();
    // Scripts that know the classic columns find them first, and where they were.
    let classic = "config,concurrency,request_rate,completed,failed,cut_off,requests_per_s,output_tokens_per_s,\
                   total_tokens_per_s,ttft_mean_ms,ttft_p50_ms,ttft_p95_ms,ttft_p99_ms,itl_mean_ms,itl_p50_ms,itl_p95_ms,\
                   itl_p99_ms,tpot_mean_ms,tpot_p50_ms,tpot_p95_ms,e2e_mean_ms,e2e_p50_ms,e2e_p95_ms,gpu_memory_mib,\
                   client_limited,ttft_mean_low_ms,ttft_mean_high_ms,";
    assert!(rows[0].starts_with(classic), "{}", rows[0]);
    assert_eq!(rows.len(), 3);
    // The configuration and the load are quoted and have a comma each.
    let cells =
        |row: &str| row.replace("a, b", "").replace("loop, ", "").split(',').map(str::to_owned).collect::<Vec<_>>();
    let cell = |row: &str, name: &str| -> f64 {
        let place = rows[0].split(',').position(|column| column == name).unwrap();
        cells(row)[place].parse().unwrap()
    };
    let itl = &result.levels[0].summary.as_ref().unwrap().latency["itl_ms"];
    let (low, high) = itl.mean_interval.unwrap();
    assert!(
        (cell(rows[1], "itl_mean_low_ms") - low).abs() < 0.001
            && (cell(rows[1], "itl_mean_high_ms") - high).abs() < 0.001
    );
    assert!(rows[2].starts_with("\"a, b\",3,,6,0,0,"), "{}", rows[2]);
    assert_eq!(cells(rows[2]).len(), cells(rows[0]).len());
    assert!(
        std::fs::read_dir(folder.path())
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().ends_with(".partial") })
    );
}

#[test]
fn no_interval_of_a_time_begins_below_zero() {
    let record = |ms: u64| RequestRecord {
        chunks: vec![crate::Chunk { at: ms * 1_000_000, characters: 1, tokens: None }],
        last_event: Some(ms * 1_000_000),
        ended: ms * 1_000_000,
        streamed: true,
        ..RequestRecord::default()
    };
    let summary = Summary::of(&[record(10), record(20), record(500)], &Objectives::default()).unwrap();
    let (low, high) = summary.latency["ttft_ms"].mean_interval.unwrap();
    assert!(low == 0.0 && high > 500.0, "{low} to {high}");
}
