//! `/metrics`.

use crate::server::{Setup, chat_body};
use serde_json::json;
use std::collections::BTreeMap;

/// Values by name and labels.
fn values(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

#[tokio::test]
async fn dashboards_of_vllm_find_their_names() {
    let server = Setup::default().start().await;
    let prompt = server.chat_ids("hello").len() as f64;
    for _ in 0..2 {
        server.post("/v1/chat/completions", &chat_body("hello", json!({"max_tokens": 10}))).await.ok();
    }
    server.post("/v1/chat/completions", &json!({})).await;
    let answer = server.get("/metrics").await;
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = answer.text();
    let values = values(&text);
    let labels = "engine=\"0\",model_name=\"toy\"";
    for (name, expected) in [
        ("num_requests_running", 0.0),
        ("num_requests_waiting", 0.0),
        ("kv_cache_usage_perc", 0.0),
        ("num_preemptions_total", 0.0),
        ("prompt_tokens_total", 2.0 * prompt),
        ("generation_tokens_total", 20.0),
        ("prefix_cache_queries_total", 2.0 * prompt),
        ("prefix_cache_hits_total", ((prompt - 1.0) / 16.0).floor() * 16.0),
        ("time_to_first_token_seconds_count", 2.0),
        ("inter_token_latency_seconds_count", 18.0),
        ("request_time_per_output_token_seconds_count", 2.0),
        ("e2e_request_latency_seconds_count", 2.0),
        ("request_queue_time_seconds_count", 2.0),
        ("request_prefill_time_seconds_count", 2.0),
        ("request_decode_time_seconds_count", 2.0),
        ("request_inference_time_seconds_count", 2.0),
        ("request_prompt_tokens_sum", 2.0 * prompt),
        ("request_generation_tokens_sum", 20.0),
    ] {
        for prefix in ["powertrain_", "vllm:"] {
            assert_eq!(values.get(&format!("{prefix}{name}{{{labels}}}")), Some(&expected), "{prefix}{name} in {text}");
        }
    }
    assert_eq!(values["vllm:request_success_total{engine=\"0\",finished_reason=\"length\",model_name=\"toy\"}"], 2.0);
    assert_eq!(
        values["vllm:cache_config_info{block_size=\"16\",cache_dtype=\"f32\",engine=\"0\",model_name=\"toy\",num_gpu_blocks=\"512\"}"],
        1.0
    );
    assert_eq!(values["powertrain_http_responses_total{engine=\"0\",model_name=\"toy\",status=\"400\"}"], 1.0);
    for (family, kind) in [
        ("num_requests_running", "gauge"),
        ("prompt_tokens_total", "counter"),
        ("time_to_first_token_seconds", "histogram"),
    ] {
        assert!(text.contains(&format!("# TYPE vllm:{family} {kind}")), "{family}");
    }
    let buckets = |name: &str| {
        let start = format!("vllm:{name}_bucket{{");
        text.lines().filter(|line| line.starts_with(&start)).count()
    };
    // vLLM's boundaries, and infinity.
    assert_eq!(
        (
            buckets("time_to_first_token_seconds"),
            buckets("inter_token_latency_seconds"),
            buckets("e2e_request_latency_seconds")
        ),
        (23, 20, 22)
    );
    assert!(text.contains("le=\"2560\""));
}
