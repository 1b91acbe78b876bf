//! Loads that change, traces, conversations and the search for the capacity, against the ground-truth server.

use super::{
    Script, TruthServer,
    cases::{chat, target, work},
    tests::{plan, start, threads},
};
use crate::{
    Event, Level, LevelRun, SearchPlan, Stop, Unit, bench,
    definitions::Objectives,
    openai::Prompt,
    run_level,
    schedule::{Arrivals, Load, Until},
    table::level_table,
    work::{Calibration, Conversations, Lengths, Pause, Prompts, Trace, TraceRequest, Work},
};
use std::{sync::Arc, time::Duration};

const MS: u64 = 1_000_000;
const NO_LIMIT: Until = Until { requests: None, duration: None };

fn run(server: &TruthServer, load: Load, work: Work) -> LevelRun {
    let target = target(&chat(server.address()).unwrap(), server.clock()).unwrap();
    let level = Level { load, until: NO_LIMIT, warmup: 0, first_number: 0 };
    run_level(&Arc::new(target), &Arc::new(work), level, threads(2), &Stop::new()).unwrap()
}

#[test]
fn a_rate_by_stages_is_offered_and_ends_by_itself() {
    let server = start(Script::default());
    let mut plan = plan(&server);
    let stages = "40ms:500,40ms:500-1500".parse().unwrap();
    plan.loads = vec![Load::Rates { stages, arrivals: Arrivals::Constant, in_flight_max: 100 }];
    (plan.until, plan.warmup) = (NO_LIMIT, None);
    let result = bench(&plan, &Stop::new(), |_| {}).unwrap();
    let level = &result.levels[0];
    assert_eq!(level.summary.as_ref().unwrap().requests.completed, 60);
    let sent: Vec<u64> = level.stages.iter().map(|stage| stage.summary.as_ref().unwrap().requests.sent).collect();
    assert_eq!(sent, [20, 40]);
    // A third of the answers, which are alike, in the first 40 ms, whatever time they took.
    let all = level.summary.as_ref().unwrap();
    let first = all.throughput.output_tokens_per_s * all.window_s / 3.0 / 0.04;
    let said = format!(" ms, {first:.1} tokens/s of the stage");
    assert!(level_table(level).contains(&said), "{said} in {}", level_table(level));
    assert_eq!((level.stages[1].from_s, level.stages[1].to_s, level.stages[1].to), (0.04, 0.08, 1500.0));
}

#[test]
fn clients_come_and_go_by_stages() {
    let server = start(Script { gap: Duration::from_millis(1), ..Script::default() });
    let run = run(&server, Load::Clients { stages: "50ms:1,400ms:3,50ms:1".parse().unwrap() }, work());
    let due = |record: &crate::RequestRecord| (record.scheduled - run.origin) / MS;
    let in_flight_at = |at: u64| {
        let at = run.origin + at * MS;
        run.records.iter().filter(|record| record.scheduled <= at && at < record.ended).count()
    };
    assert!((0..50).all(|at| in_flight_at(at) <= 1) && (0..500).all(|at| in_flight_at(at) <= 3));
    assert!((50..450).any(|at| in_flight_at(at) == 3), "three clients at once");
    assert!(run.records.iter().all(|record| due(record) < 500));
}

#[test]
fn a_trace_keeps_its_times_lengths_and_shared_blocks() {
    let request = |at, blocks: &[u64]| TraceRequest {
        at: at * MS,
        input_tokens: 520,
        output_tokens: 3,
        blocks: blocks.to_vec(),
        prompt: None,
    };
    let trace = Trace { requests: vec![request(0, &[7, 8]), request(30, &[7, 9]), request(31, &[])].into() };
    let times = trace.times();
    let words = (0..50).map(|word| format!("w{word}")).collect();
    let calibration = Calibration::Words { words, overhead: 4, verified: true };
    let prompts = Prompts::Trace { trace, calibration };
    let work = Work { prompts, output: Lengths::Fixed(99), conversations: None, seed: 2 };
    let server = start(Script::default());
    let load = Load::Trace { name: "t".to_owned(), times, time_scale: 1.0, in_flight_max: 10 };
    let run = run(&server, load, work.clone());
    let due: Vec<u64> = run.records.iter().map(|record| (record.scheduled - run.origin) / MS).collect();
    assert_eq!(due, [0, 30, 31]);
    assert!(run.records.iter().all(|it| (it.prompt_tokens_asked, it.output_tokens_asked) == (Some(520), 3)));
    assert!(
        run.records.iter().all(|it| it.usage.unwrap().prompt_tokens == 516),
        "as many words as the template leaves"
    );
    let text = |number| match work.item(number).prompt {
        Prompt::Text(text) => text.split(' ').map(str::to_owned).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let (one, two, three) = (text(0), text(1), text(2));
    assert_eq!(one[..512], two[..512]);
    assert_ne!(one[512..], two[512..]);
    assert_ne!(one[..512], three[..512]);
}

#[test]
fn conversations_carry_what_was_said_and_pause_to_think() {
    let server = start(Script::default());
    let think = Duration::from_millis(20);
    let conversations = Some(Conversations { turns: Lengths::Fixed(3), think: Pause::Fixed(think.as_secs_f64()) });
    let work = Work { conversations, ..work() };
    let target = Arc::new(target(&chat(server.address()).unwrap(), server.clock()).unwrap());
    for load in
        [Load::Closed { concurrency: 2 }, Load::Open { rate: 1000.0, arrivals: Arrivals::Poisson, in_flight_max: 10 }]
    {
        let level = Level { load, until: Until { requests: Some(4), ..NO_LIMIT }, warmup: 1, first_number: 0 };
        let run = run_level(&target, &Arc::new(work.clone()), level, threads(1), &Stop::new()).unwrap();
        let turns: Vec<(u64, u32)> = run.records.iter().map(|record| (record.index, record.turn)).collect();
        assert_eq!(turns, (0..5).flat_map(|index| (0..3).map(move |turn| (index, turn))).collect::<Vec<_>>());
        assert!(run.records.iter().all(|record| record.failure.is_none() && record.warmup == (record.index == 0)));
        for pair in run.records.windows(2).filter(|pair| pair[1].turn > 0) {
            assert!(pair[1].scheduled >= pair[0].ended + think.as_nanos() as u64);
            assert!(pair[1].reused_connection);
        }
    }
    let mut messages: Vec<usize> = server.truths().values().flatten().map(|truth| truth.messages).collect();
    messages.sort_unstable();
    assert_eq!(messages, [[1; 10], [3; 10], [5; 10]].concat());
}

#[test]
fn turns_are_told_apart_in_the_result() {
    let server = start(Script::default());
    let mut plan = plan(&server);
    plan.conversations = Some(Conversations { turns: Lengths::Fixed(2), think: Pause::Fixed(0.0) });
    let result = bench(&plan, &Stop::new(), |_| {}).unwrap();
    for level in &result.levels {
        let sent = |turn: usize| level.turns[turn].summary.as_ref().unwrap().requests.sent;
        assert_eq!((level.turns.len(), sent(0), sent(1)), (2, 6, 6));
    }
    assert_eq!(result.work.turns.as_deref(), Some("2"));
    plan.api = crate::openai::Api::Completions;
    assert!(bench(&plan, &Stop::new(), |_| {}).unwrap_err().to_string().contains("--endpoint chat"));
}

#[test]
fn the_capacity_is_searched_with_a_level_for_each_trial() {
    let server = start(Script::default());
    let mut plan = plan(&server);
    let (attainment, arrivals) = (0.9, Arrivals::Poisson);
    let unit = Unit::Concurrency;
    let search = SearchPlan { unit, start: 1.0, max: 4.0, resolution: 0.05, attainment, arrivals, in_flight_max: 10 };
    plan.search = Some(search);
    let mut levels = 0;
    let result =
        bench(&plan, &Stop::new(), |event| levels += usize::from(matches!(event, Event::LevelEnded { .. }))).unwrap();
    let capacity = result.capacity.unwrap();
    let loads: Vec<f64> = capacity.trials.iter().map(|trial| trial.at).collect();
    assert_eq!((loads, capacity.found, capacity.confirmed), (vec![1.0, 2.0, 4.0, 4.0], Some(4.0), true));
    assert_eq!((levels, result.levels.len(), result.complete), (4, 4, true));

    // A search for a rate has the gaps that were asked for.
    let arrivals = Arrivals::Constant;
    plan.search =
        Some(SearchPlan { unit: Unit::Rate, start: 50.0, max: 50.0, arrivals, ..plan.search.clone().unwrap() });
    let levels = bench(&plan, &Stop::new(), |_| {}).unwrap().levels;
    let loads: Vec<_> = levels.iter().map(|level| serde_json::to_value(&level.load).unwrap()).collect();
    assert!(!loads.is_empty() && loads.iter().all(|load| load["arrivals"] == "constant"), "{loads:?}");

    // Nothing is this fast.
    plan.search = plan.search.map(|search| SearchPlan { unit: Unit::Concurrency, start: 1.0, ..search });
    plan.objectives = Objectives { e2e_ms: Some(1e-6), ..Objectives::default() };
    let capacity = bench(&plan, &Stop::new(), |_| {}).unwrap().capacity.unwrap();
    assert_eq!((capacity.found, capacity.trials.len()), (None, 1));
    assert!(capacity.trials[0].why.contains("0.0 % of requests were good"), "{capacity:?}");
    plan.objectives = Objectives::default();
    assert!(bench(&plan, &Stop::new(), |_| {}).unwrap_err().to_string().contains("--goodput"));
}
