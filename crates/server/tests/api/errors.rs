//! What is wrong gets a clear 4xx in OpenAI's shape, and the next request is served.

use crate::server::{Running, Setup, chat_body};
use hyper::Method;
use powertrain_server::ServerConfig;
use powertrain_step::mock::Fault;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

async fn assert_serves(server: &Running) {
    let answer = server.post(CHAT, &chat_body("still there?", json!({"max_tokens": 3}))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let server = Setup { max_model_len: 64, ..Setup::default() }.start().await;
    let long = "x".repeat(100);
    let cases: [(&str, Value, u16, &str); 14] = [
        (CHAT, json!({}), 400, "messages: is missing"),
        (
            CHAT,
            chat_body("x", json!({"max_tokens": -1, "temperature": 9e9})),
            400,
            "max_tokens: -1 is below 1; temperature: 9000000000.0 is above 100",
        ),
        (
            CHAT,
            chat_body("x", json!({"model": "gpt-4"})),
            404,
            "the model `gpt-4` does not exist here; this server has toy, org/toy",
        ),
        (
            CHAT,
            chat_body(&long, json!({})),
            400,
            "the prompt has 119 tokens; --max-model-len 64 must hold it and at least one generated token",
        ),
        (
            CHAT,
            chat_body("x", json!({"max_tokens": 50})),
            400,
            "max_tokens: 50 with a prompt of 20 tokens is more than --max-model-len 64; ask for at most 44",
        ),
        (
            CHAT,
            chat_body("x", json!({"logit_bias": {"900": 1}})),
            400,
            "logit_bias: token id 900 is not below the vocabulary's 260",
        ),
        (
            CHAT,
            chat_body("x", json!({"chat_template_kwargs": {"messages": 1}})),
            400,
            "chat_template_kwargs: must not set \"messages\": it has a field of its own",
        ),
        (
            COMPLETIONS,
            json!({"prompt": [1, 2, 999]}),
            400,
            "prompt: token id 999 at position 2 of the prompt is not in the vocabulary; ids are 0 to 259",
        ),
        (
            COMPLETIONS,
            json!({"prompt": [[1, 2], [3, 999]]}),
            400,
            "prompt[1]: token id 999 at position 1 of the prompt is not in the vocabulary; ids are 0 to 259",
        ),
        (
            COMPLETIONS,
            json!({"prompt": ["x", "y", long]}),
            400,
            "prompt[2]: the prompt has 100 tokens; --max-model-len 64 must hold it and at least one generated token",
        ),
        (COMPLETIONS, json!({"prompt": ""}), 400, "prompt: the prompt is empty; it needs at least one token"),
        (COMPLETIONS, json!({"prompt": "x", "max_tokens": -5}), 400, "max_tokens: -5 is below 0"),
        ("/detokenize", json!({"tokens": [300]}), 400, "tokens: token id 300 is not below the vocabulary's 260"),
        ("/tokenize", json!({"prompt": 4}), 400, "prompt: 4 is not a string"),
    ];
    let mut client = server.client().await;
    for (path, body, status, message) in cases {
        assert_eq!(client.post(path, &body).await.error(), (status, message.to_owned()), "{path} {body}");
    }
    assert_serves(&server).await;
    server.assert_idle_and_whole().await;
}

#[tokio::test]
async fn broken_http_is_answered_in_the_same_shape() {
    let server = Setup::default().start().await;
    let mut client = server.client().await;
    for body in ["", "{", "garbage", "[1]", "\u{0}\u{1}", "{\"messages\": [}"] {
        let (status, message) = client.post_bytes(CHAT, body).await.error();
        assert_eq!(status, 400);
        assert!(message.starts_with("the body is not a JSON object: "), "{message}");
    }
    let nested = "[".repeat(200_000);
    assert_eq!(client.post_bytes(CHAT, nested).await.status, 400);
    assert_eq!(client.get("/v2/nothing").await.error(), (404, "no such route: GET /v2/nothing".into()));
    let (status, message) = client.get("/v1/models/%ff").await.error();
    assert_eq!((status, message.starts_with("model: Invalid URL")), (400, true), "{message}");
    assert_eq!(client.get(CHAT).await.error(), (405, format!("{CHAT} does not take GET")));
    let options = client.method(Method::OPTIONS, CHAT).await;
    assert_eq!((options.status, options.headers["allow"].to_str().expect("text")), (405, "POST"));
    let head = client.method(Method::HEAD, "/health").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    let mut form = server.client().await.with("content-type", "application/x-www-form-urlencoded");
    let expected = "content-type is application/x-www-form-urlencoded; send the body as application/json";
    assert_eq!(form.post_bytes(CHAT, "{}").await.error(), (415, expected.into()));
    assert_serves(&server).await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_not_cut_off() {
    let server = Setup::default().start().await;
    let mut client = server.client().await;
    let huge = chat_body(&"x".repeat(10 << 20), json!({}));
    let limit = ServerConfig::default().request_bytes_max;
    let message = format!("the body is larger than the {limit} bytes this server takes; send less at once");
    assert_eq!(client.post(CHAT, &huge).await.error(), (413, message));
    // On the same connection.
    assert_eq!(client.post(CHAT, &chat_body("x", json!({"max_tokens": 1}))).await.status, 200);
}

#[tokio::test]
async fn keys_are_asked_for_everywhere_but_at_the_probes() {
    let mut setup = Setup::default();
    setup.config.api_keys = vec!["sesame".into(), "other".into()];
    let server = setup.start().await;
    for path in ["/", "/v1/models", "/metrics", "/v1/engine", "/nowhere", "/version"] {
        let answer = server.get(path).await;
        assert_eq!(answer.error().0, 401, "{path}");
        let scheme = answer.headers["www-authenticate"].to_str().expect("text");
        assert!(scheme.starts_with(if path == "/" { "Basic" } else { "Bearer" }));
    }
    let body = chat_body("x", json!({"max_tokens": 1}));
    assert_eq!(server.post(CHAT, &body).await.error().0, 401);
    let mut wrong = server.client().await.with("authorization", "Bearer sesam");
    assert_eq!(wrong.post(CHAT, &body).await.error(), (401, "the API key is not one of this server's".into()));
    assert_eq!((server.get("/health").await.status, server.get("/ready").await.status), (200, 200));
    for key in ["sesame", "other"] {
        let mut client = server.client().await.with("authorization", &format!("Bearer {key}"));
        assert_eq!(client.post(CHAT, &body).await.status, 200);
    }
}

#[tokio::test]
async fn a_model_without_a_template_still_completes() {
    let server = Setup { template: false, ..Setup::default() }.start().await;
    let (status, message) = server.post(CHAT, &chat_body("x", json!({}))).await.error();
    assert_eq!(status, 400);
    assert!(message.contains("has no chat template"), "{message}");
    assert_eq!(server.post(COMPLETIONS, &json!({"prompt": "x"})).await.status, 200);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let server = Setup { max_num_seqs: 1, max_queue: 1, gated: true, ..Setup::default() }.start().await;
    let gate = server.gate.clone().expect("gated");
    let body = chat_body("x", json!({"max_tokens": 1000, "stream": true}));
    let running = server.client().await.stream(CHAT, &body).await;
    let waiting = server.stepping(server.client().await.stream(CHAT, &body)).await;
    let refused = server.stepping(server.post(CHAT, &chat_body("y", json!({"max_tokens": 1})))).await;
    assert_eq!(refused.status, 429);
    assert!(refused.headers["retry-after"].to_str().expect("text").parse::<u64>().expect("seconds") >= 1);
    assert!(refused.error().1.contains("--max-queue"), "{}", refused.text());
    gate.open();
    for stream in [running, waiting] {
        assert_eq!(stream.rest().await.last().expect("chunks")["choices"][0]["finish_reason"], "length");
    }
    assert_serves(&server).await;
}

#[tokio::test]
async fn a_deadline_ends_a_request_and_only_it() {
    let server = Setup { gated: true, ..Setup::default() }.start().await;
    let other = server.client().await.stream(CHAT, &chat_body("x", json!({"max_tokens": 4, "stream": true}))).await;
    let mut hasty = server.client().await.with("x-request-timeout-ms", "1");
    let late = server.stepping(hasty.post(CHAT, &chat_body("y", json!({"max_tokens": 1900})))).await;
    assert_eq!(late.error().0, 504);
    assert_eq!(late.headers["x-should-retry"], "false");
    server.gate.clone().expect("gated").open();
    assert_eq!(other.rest().await.last().expect("chunks")["choices"][0]["finish_reason"], "length");
    let mut odd = server.client().await.with("x-request-timeout-ms", "soon");
    let message = "X-Request-Timeout-Ms: not a number from 1 to 604800000";
    assert_eq!(odd.post(CHAT, &chat_body("x", json!({}))).await.error(), (400, message.into()));
    server.assert_idle_and_whole().await;
}

#[tokio::test]
async fn a_failed_step_is_a_500_and_a_failed_row_hits_nobody_else() {
    let failing = |executor: powertrain_step::mock::MockExecutor| {
        executor.with_faults(|plan| if plan.step == 1 { Fault::Collect } else { Fault::None })
    };
    let server = Setup { executor: failing, ..Setup::default() }.start().await;
    let (status, message) = server.post(CHAT, &chat_body("x", json!({"max_tokens": 3}))).await.error();
    assert_eq!((status, message.contains("asked to fail")), (500, true), "{message}");
    assert_serves(&server).await;
    server.assert_idle_and_whole().await;
}

#[tokio::test]
async fn a_failure_in_a_stream_is_an_error_chunk() {
    let failing = |executor: powertrain_step::mock::MockExecutor| {
        executor.with_faults(|plan| if plan.step == 6 { Fault::Row(0) } else { Fault::None })
    };
    let server = Setup { executor: failing, ..Setup::default() }.start().await;
    let body = chat_body("x", json!({"max_tokens": 30, "stream": true}));
    let chunks = server.client().await.stream(CHAT, &body).await.rest().await;
    let error = &chunks.last().expect("chunks")["error"];
    assert_eq!(error["code"], "engine_error");
    assert!(error["message"].as_str().expect("text").contains("non-finite logits"), "{error}");
    server.assert_idle_and_whole().await;
}

#[tokio::test]
async fn other_origins_may_call_only_when_allowed() {
    let server = Setup::default().start().await;
    let mut page = server.client().await.with("origin", "https://example.com");
    assert!(page.get("/v1/models").await.headers.get("access-control-allow-origin").is_none());
    let mut setup = Setup::default();
    setup.config.allowed_origins = vec!["https://example.com".into()];
    setup.config.api_keys = vec!["k".into()];
    let server = setup.start().await;
    let mut page = server
        .client()
        .await
        .with("origin", "https://example.com")
        .with("access-control-request-method", "POST")
        .with("access-control-request-headers", "authorization");
    let preflight = page.method(Method::OPTIONS, CHAT).await;
    assert_eq!(
        (preflight.status, preflight.headers["access-control-allow-origin"].to_str().expect("text")),
        (200, "https://example.com")
    );
    assert_eq!(preflight.headers["access-control-allow-headers"], "authorization");
    let mut other = server.client().await.with("origin", "https://evil.example");
    assert!(other.get("/v1/models").await.headers.get("access-control-allow-origin").is_none());
}
