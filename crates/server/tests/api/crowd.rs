//! Many clients at once, some of which leave.

use crate::{
    client::streamed_text,
    server::{Setup, chat_body},
};
use serde_json::json;
use std::sync::Arc;

const CHAT: &str = "/v1/chat/completions";

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

#[tokio::test]
async fn thirty_of_a_hundred_leave_and_the_others_are_right() {
    let seed: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(11);
    eprintln!("SEED={seed}");
    let mut random = Random(seed);
    let server = Arc::new(Setup::default().start().await);
    let mut clients = Vec::new();
    for index in 0..100 {
        let (words, tokens) = (random.below(30) as usize, 20 + random.below(200));
        let leaves_after = (index % 10 < 3).then(|| 1 + random.below(15));
        let server = Arc::clone(&server);
        clients.push(tokio::spawn(async move {
            let content = format!("client {} says {}", index % 7, "la ".repeat(words));
            let prompt = server.chat_ids(&content);
            let body = chat_body(&content, json!({"max_tokens": tokens, "stream": true, "seed": index}));
            let mut events = server.client().await.stream(CHAT, &body).await;
            match leaves_after {
                Some(chunks) => {
                    for _ in 0..chunks {
                        events.chunk().await;
                    }
                }
                None => {
                    let chunks = events.rest().await;
                    let expected = server.expected(&prompt, index, tokens as usize);
                    assert_eq!(streamed_text(&chunks, 0), expected, "client {index}");
                }
            }
        }));
    }
    for client in clients {
        client.await.expect("no client failed");
    }
    server.assert_idle_and_whole().await;
    let metrics = server.get("/metrics").await.text();
    let ended = |reason: &str| {
        let wanted = format!("finished_reason=\"{reason}\"");
        let line =
            metrics.lines().find(|line| line.starts_with("vllm:request_success_total{") && line.contains(&wanted));
        line.and_then(|line| line.rsplit(' ').next()).expect("a value").parse::<u64>().expect("a count")
    };
    // One that left may have been through already.
    assert!(ended("abort") <= 30 && ended("length") >= 70 && ended("abort") + ended("length") == 100, "{metrics}");
}

#[tokio::test]
async fn leaving_a_queue_or_an_unstreamed_answer_cancels_too() {
    let server = Setup { max_num_seqs: 1, gated: true, ..Setup::default() }.start().await;
    let running =
        server.client().await.stream(CHAT, &chat_body("a", json!({"max_tokens": 1000, "stream": true}))).await;
    let body = chat_body("b", json!({"max_tokens": 1000, "stream": true}));
    let waiting = server.stepping(server.client().await.stream(CHAT, &body)).await;
    let mut client = server.client().await;
    let body = chat_body("c", json!({"max_tokens": 1000, "n": 3}));
    let whole = tokio::spawn(async move { client.post(CHAT, &body).await });
    let all_wait = async {
        while server.engine.snapshot().waiting < 4 {
            tokio::task::yield_now().await;
        }
    };
    server.stepping(all_wait).await;
    drop((running, waiting));
    whole.abort();
    server.stepping(server.assert_idle_and_whole()).await;
    let snapshot = server.engine.snapshot();
    assert_eq!(snapshot.ended.cancelled, 5, "{snapshot:?}");
}
