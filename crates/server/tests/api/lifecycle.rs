//! Start, probes, stop.

use crate::{
    client::{Client, streamed_text},
    server::{Running, Setup, chat_body},
};
use powertrain_engine::Drained;
use powertrain_server::{BindError, Server, ServerConfig};
use powertrain_step::{
    DeviceMemory,
    mock::{Fault, MockExecutor},
};
use serde_json::{Value, json};
use std::time::Duration;

const MEMORY: DeviceMemory = DeviceMemory { total: 80 << 30, others: 5, workspace: 6, reserved: 7 };
const FAR: Duration = Duration::from_secs(3600);
const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_taken_port_is_said_so() {
    let server = Setup::default().start().await;
    let port = server.address.port();
    let error = Server::bind(ServerConfig { port, ..ServerConfig::default() }).await.expect_err("taken");
    let message = format!("port {port} on 127.0.0.1 is taken; stop what listens there or choose another with --port");
    assert_eq!(error.to_string(), message);
    let origin = ServerConfig { port: 0, allowed_origins: vec!["example.com".into()], ..ServerConfig::default() };
    assert!(matches!(Server::bind(origin).await, Err(BindError::Origin { .. })));
    let nowhere = ServerConfig { host: "192.0.2.1".into(), port: 0, ..ServerConfig::default() };
    assert!(matches!(Server::bind(nowhere).await, Err(BindError::Other { .. })));
}

#[tokio::test]
async fn a_server_says_what_it_is() {
    let server = Setup::default().start().await;
    let models = server.get("/v1/models").await.ok();
    assert_eq!(models["data"][1]["id"], "org/toy");
    assert_eq!(models["data"][0]["max_model_len"], 2048);
    assert_eq!(server.get("/v1/models/org/toy").await.ok()["id"], "org/toy");
    assert_eq!(server.get("/v1/models/other").await.error().0, 404);
    let engine = server.get("/v1/engine").await.ok();
    for (field, value) in [
        ("model", json!("toy.gguf")),
        ("max_model_len", json!(2048)),
        ("kv_cache_tokens", json!(8192)),
        ("max_concurrency_at_max_model_len", json!(4.0)),
        ("kv_bytes_per_token", json!(8)),
        ("load_seconds", json!(0.5)),
        ("load_stages", json!([{"name": "weights", "seconds": 0.25}])),
        ("workspace_bytes", json!(4096)),
    ] {
        assert_eq!(engine[field], value, "{field}");
    }
    assert!(engine.get("device_memory").is_none() && engine["now"].get("graphs").is_none());
    assert_eq!(server.get("/version").await.ok()["version"], env!("CARGO_PKG_VERSION"));
    let page = server.get("/").await;
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    assert!(page.text().starts_with("<!doctype html>") && !page.text().contains("https://"));
}

#[tokio::test]
async fn a_server_on_a_gpu_says_who_has_its_memory() {
    let server = Setup { executor: |executor| executor.on_device(MEMORY), ..Setup::default() }.start().await;
    let engine = server.get("/v1/engine").await.ok();
    assert_eq!(engine["device_memory"], json!({"total_bytes": 80_u64 << 30, "others_bytes": 5, "reserved_bytes": 7}));
    let graphs = json!({"planned": 40, "captured": 3, "prompts": 5, "bytes": 0, "seconds": 1.5, "shapes_timed": 0});
    assert_eq!(engine["now"]["graphs"], graphs);
}

#[tokio::test]
async fn request_ids_go_in_and_out() {
    let server = Setup::default().start().await;
    let mut named = server.client().await.with("x-request-id", "my-id-1");
    assert_eq!(named.get("/health").await.headers["x-request-id"], "my-id-1");
    assert_eq!(named.get("/nowhere").await.headers["x-request-id"], "my-id-1");
    let made = server.get("/health").await;
    assert_eq!(made.headers["x-request-id"].len(), 32);
    let mut long = server.client().await.with("x-request-id", &"x".repeat(500));
    assert_eq!(long.get("/health").await.headers["x-request-id"].len(), 32);
}

#[tokio::test]
async fn a_drain_lets_running_requests_finish_and_takes_no_new_ones() {
    let mut server = Setup { gated: true, ..Setup::default() }.start().await;
    let gate = server.gate.clone().expect("gated");
    let expected = server.expected(&server.chat_ids("x"), 7, 10);
    let stream = server.client().await.stream(CHAT, &chat_body("x", json!({"max_tokens": 10, "stream": true}))).await;
    let mut probe = server.client().await;
    assert_eq!(probe.get("/ready").await.status, 200);
    server.signal();
    while probe.get("/ready").await.status == 200 {}
    let ready = probe.get("/ready").await;
    assert_eq!(ready.error(), (503, "the server is shutting down".into()));
    let refused = Client::connect(server.address).await.post(CHAT, &chat_body("y", json!({}))).await;
    assert_eq!(refused.error().0, 503);
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(probe.get("/health").await.status, 200);
    gate.open();
    assert_eq!(streamed_text(&stream.rest().await, 0), expected);
    drop(probe);
    assert_eq!(server.ended().await, Drained::Stopped { cut_short: 0 });
}

#[tokio::test]
async fn what_does_not_finish_in_time_ends_with_an_error() {
    let mut setup = Setup { gated: true, ..Setup::default() };
    setup.config.shutdown_timeout = Duration::ZERO;
    let mut server = setup.start().await;
    let gate = server.gate.clone().expect("gated");
    let mut stream =
        server.client().await.stream(CHAT, &chat_body("x", json!({"max_tokens": 1000, "stream": true}))).await;
    assert_eq!(stream.chunk().await["choices"][0]["delta"]["role"], "assistant");
    gate.allow(3);
    assert!(stream.chunk().await["choices"][0]["delta"]["content"].is_string());
    let mut whole = server.client().await;
    let body = chat_body("y", json!({"max_tokens": 1000}));
    let whole = tokio::spawn(async move { whole.post(CHAT, &body).await });
    server.signal();
    let mut probe = server.client().await;
    while probe.get("/ready").await.status == 200 {}
    let last: Value = server.stepping(stream.rest()).await.pop().expect("chunks");
    assert_eq!(last["error"]["code"], "shutting_down");
    gate.open();
    assert_eq!(whole.await.expect("no panic").error().0, 503);
    drop(probe);
    assert!(matches!(server.ended().await, Drained::Stopped { cut_short: 1.. }));
}

#[tokio::test]
async fn a_dead_engine_says_why_and_the_server_ends() {
    let causes: [fn(MockExecutor) -> MockExecutor; 3] = [
        |executor| executor.with_faults(|_| Fault::Panic),
        |executor| executor.with_faults(|_| Fault::LostAtLaunch),
        |executor| executor.with_faults(|plan| if plan.step == 4 { Fault::LostAtCollect } else { Fault::None }),
    ];
    for (executor, why) in causes.into_iter().zip(["asked to panic", "mock is lost", "mock is lost"]) {
        let mut setup = Setup { executor, ..Setup::default() };
        setup.config.death_notice = FAR;
        check_death(setup.start().await, why).await;
    }
}

#[tokio::test]
async fn a_step_beyond_its_limit_says_so_and_the_server_ends() {
    let mut setup = Setup { gated: true, step_timeout: Some(Duration::from_millis(20)), ..Setup::default() };
    setup.config.death_notice = FAR;
    check_death(setup.start().await, "--step-timeout is 0.02 s").await;
}

/// Its first request kills the engine.
async fn check_death(mut server: Running, why: &str) {
    let mut probe = server.client().await;
    assert_eq!(probe.get("/health").await.status, 200);
    let body = chat_body("x", json!({"max_tokens": 50}));
    let (status, message) = server.post(CHAT, &body).await.error();
    assert_eq!((status, message.contains(why)), (500, true), "{message}");
    for path in ["/health", "/ready"] {
        let (status, message) = probe.get(path).await.error();
        assert_eq!((status, message.contains(why)), (503, true), "{path}: {message}");
    }
    let (status, message) = server.post(CHAT, &body).await.error();
    assert_eq!((status, message.contains(why)), (503, true), "{message}");
    server.signal();
    drop(probe);
    assert!(matches!(server.ended().await, Drained::Dead { reason } if reason.contains(why)));
}

#[tokio::test]
async fn a_server_whose_engine_died_ends_by_itself() {
    let mut setup = Setup { executor: |executor| executor.with_faults(|_| Fault::LostAtLaunch), ..Setup::default() };
    setup.config.death_notice = Duration::ZERO;
    let server = setup.start().await;
    let (engine, address) = (server.engine.clone(), server.address);
    // The answer may or may not come before the connection is closed.
    let asking =
        tokio::spawn(async move { Client::connect(address).await.post(CHAT, &chat_body("x", json!({}))).await });
    engine.death().await;
    assert!(matches!(server.ended().await, Drained::Dead { .. }));
    drop(asking);
}
