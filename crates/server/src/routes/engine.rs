//! `GET /v1/engine`: what runs here, and where it stands. `GET /version`, as vLLM has it.

use crate::{model::EngineReport, reply, state::App};
use axum::{extract::State, response::Response};
use powertrain_step::Graphs;
use serde::Serialize;
use std::sync::atomic::Ordering::Relaxed;

#[derive(Serialize)]
struct Engine<'a> {
    #[serde(flatten)]
    report: &'a EngineReport,
    now: Now,
}

/// The moment's numbers.
#[derive(Serialize)]
struct Now {
    requests_running: u64,
    requests_waiting: u64,
    kv_blocks_used: u64,
    kv_blocks_total: u64,
    prefix_tokens_queried: u64,
    prefix_tokens_hit: u64,
    preemptions: u64,
    steps: u64,
    /// Absent where none are.
    #[serde(skip_serializing_if = "Option::is_none")]
    graphs: Option<GraphsNow>,
}

/// Steps captured to be launched in one call.
#[derive(Serialize)]
struct GraphsNow {
    planned: u64,
    captured: u64,
    prompts: u64,
    bytes: u64,
    seconds: f64,
    shapes_timed: u64,
}

impl GraphsNow {
    fn of(graphs: &Graphs) -> Self {
        Self {
            planned: graphs.planned.load(Relaxed),
            captured: graphs.captured.load(Relaxed),
            prompts: graphs.prompts.load(Relaxed),
            bytes: graphs.bytes.load(Relaxed),
            seconds: graphs.microseconds.load(Relaxed) as f64 / 1e6,
            shapes_timed: graphs.shapes_timed.load(Relaxed),
        }
    }
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

pub(crate) async fn show(State(app): State<App>) -> Response {
    let snapshot = app.engine.snapshot();
    reply::json(&Engine {
        report: &app.report,
        now: Now {
            requests_running: snapshot.running,
            requests_waiting: snapshot.waiting,
            kv_blocks_used: snapshot.kv_blocks_used,
            kv_blocks_total: snapshot.kv_blocks_total,
            prefix_tokens_queried: snapshot.prefix_tokens_queried,
            prefix_tokens_hit: snapshot.prefix_tokens_hit,
            preemptions: snapshot.preemptions,
            steps: snapshot.steps,
            graphs: app.engine.facts().graphs.as_deref().map(GraphsNow::of),
        },
    })
}

pub(crate) async fn version() -> Response {
    reply::json(&Version { version: env!("CARGO_PKG_VERSION") })
}
