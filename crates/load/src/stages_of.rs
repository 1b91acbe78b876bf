//! A level's requests by what they have in common: the stage they were due in, the turn they were.

use crate::{
    definitions::Objectives,
    record::{Nanos, RequestRecord},
    result::{StageResult, TurnResult},
    run::LevelRun,
    schedule::Load,
    summary::Summary,
};

/// The requests due in each stage of a load; nothing for loads without stages.
pub(crate) fn stage_results(load: &Load, run: &LevelRun, objectives: &Objectives) -> Vec<StageResult> {
    let Some(stages) = load.stages() else { return Vec::new() };
    let mut begin: Nanos = 0;
    let results = stages.list().iter().map(|stage| {
        let end = begin + stage.duration.as_nanos() as Nanos;
        let due_in_it = |record: &RequestRecord| {
            let due = record.scheduled.saturating_sub(run.origin);
            (begin..end).contains(&due)
        };
        let summary = summary_of(&run.records, objectives, due_in_it);
        let (from_s, to_s) = (begin as f64 / 1e9, end as f64 / 1e9);
        begin = end;
        StageResult { from_s, to_s, from: stage.from, to: stage.to, summary }
    });
    results.collect()
}

/// The requests of each turn; nothing where there is only one.
pub(crate) fn turn_results(records: &[RequestRecord], objectives: &Objectives) -> Vec<TurnResult> {
    let last = records.iter().map(|record| record.turn).max().unwrap_or(0);
    if last == 0 {
        return Vec::new();
    }
    let results = (0..=last).map(|turn| {
        let summary = summary_of(records, objectives, |record| record.turn == turn);
        TurnResult { turn, summary }
    });
    results.collect()
}

fn summary_of(
    records: &[RequestRecord],
    objectives: &Objectives,
    belongs: impl Fn(&RequestRecord) -> bool,
) -> Option<Summary> {
    let chosen: Vec<RequestRecord> = records.iter().filter(|record| belongs(record)).cloned().collect();
    Summary::of(&chosen, objectives)
}
