//! `/v1/completions`.

use crate::{
    client::streamed_text,
    server::{IM_START, Setup},
};
use serde_json::{Value, json};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn prompts_are_text_or_ids_alone_or_many() {
    let server = Setup::default().start().await;
    let (first, second) = (server.ids("one"), server.ids("another"));
    let single = server.post(PATH, &json!({"prompt": "one", "seed": 1})).await.ok();
    assert!(single["id"].as_str().expect("an id").starts_with("cmpl-"));
    assert_eq!(single["object"], "text_completion");
    // OpenAI's default is 16 tokens.
    assert_eq!(single["choices"][0]["text"], server.expected(&first, 1, 16));
    assert_eq!(single["choices"][0]["finish_reason"], "length");
    let by_ids = server.post(PATH, &json!({"prompt": first, "seed": 1})).await.ok();
    assert_eq!(by_ids["choices"], single["choices"]);
    let body = json!({"prompt": ["one", second], "seed": 1, "n": 2, "max_tokens": 5});
    let many = server.post(PATH, &body).await.ok();
    for (index, (prompt, seed)) in [(&first, 1), (&first, 2), (&second, 1), (&second, 2)].into_iter().enumerate() {
        assert_eq!(many["choices"][index]["index"], index);
        assert_eq!(many["choices"][index]["text"], server.expected(prompt, seed, 5));
    }
    assert_eq!(many["usage"]["prompt_tokens"], 10);
    assert_eq!(many["usage"]["completion_tokens"], 20);
    let mut body = body;
    body["stream"] = json!(true);
    let chunks = server.client().await.stream(PATH, &body).await.rest().await;
    for (index, (prompt, seed)) in [(&first, 1), (&first, 2), (&second, 1), (&second, 2)].into_iter().enumerate() {
        assert_eq!(streamed_text(&chunks, index as u64), server.expected(prompt, seed, 5));
        let ends = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
        assert_eq!(ends.filter(|choice| choice["finish_reason"] == "length").count(), 1);
    }
}

#[tokio::test]
async fn equal_prompts_differ_without_a_seed_and_agree_with_one() {
    let server = Setup::default().start().await;
    let mut body = json!({"prompt": ["one", "one", "one"], "max_tokens": 40});
    let free = server.post(PATH, &body).await.ok();
    body["seed"] = json!(1);
    let seeded = server.post(PATH, &body).await.ok();
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        assert_ne!(free["choices"][one]["text"], free["choices"][other]["text"]);
        assert_eq!(seeded["choices"][one]["text"], seeded["choices"][other]["text"]);
    }
}

#[tokio::test]
async fn an_echoed_prompt_comes_first() {
    let server = Setup::default().start().await;
    let prompt = server.ids("one");
    let generated = server.expected(&prompt, 1, 4);
    let body = json!({"prompt": "one", "seed": 1, "max_tokens": 4, "echo": true});
    assert_eq!(server.post(PATH, &body).await.ok()["choices"][0]["text"], format!("one{generated}"));
    let mut stream = body.clone();
    stream["stream"] = json!(true);
    let chunks = server.client().await.stream(PATH, &stream).await.rest().await;
    assert_eq!(streamed_text(&chunks, 0), format!("one{generated}"));
    let mut scored = body.clone();
    scored["logprobs"] = json!(1);
    scored["n"] = json!(2);
    let answer = server.post(PATH, &scored).await.ok();
    for (choice, seed) in [(0, 1), (1, 2)] {
        let text = format!("one{}", server.expected(&prompt, seed, 4));
        let logprobs = &answer["choices"][choice]["logprobs"];
        let tokens: String =
            logprobs["tokens"].as_array().expect("a list").iter().map(|t| t.as_str().expect("text")).collect();
        assert_eq!(tokens, text);
        assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3, 4, 5, 6]));
        // The mock's logarithms name their positions.
        assert_eq!(logprobs["token_logprobs"], json!([null, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0]));
        assert_eq!(logprobs["top_logprobs"][0], json!(null));
        assert_eq!(logprobs["top_logprobs"][1], json!({"n": -1.0}));
    }
}

#[tokio::test]
async fn many_echoes_are_more_than_one_write() {
    let server = Setup::default().start().await;
    let prompts = ["a".repeat(50), "b".repeat(50)];
    let body = json!({"prompt": prompts, "n": 100, "max_tokens": 0, "echo": true, "stream": true});
    let chunks = server.client().await.stream(PATH, &body).await.rest().await;
    let echoed: Vec<_> = chunks.iter().filter(|chunk| chunk["choices"][0]["text"] != "").collect();
    assert_eq!(echoed.len(), 200);
    for (index, chunk) in echoed.into_iter().enumerate() {
        assert_eq!(
            (&chunk["choices"][0]["index"], &chunk["choices"][0]["text"]),
            (&json!(index), &json!(prompts[index / 100]))
        );
    }
    for index in 0..200 {
        assert_eq!(streamed_text(&chunks, index), prompts[index as usize / 100]);
    }
}

#[tokio::test]
async fn offsets_are_those_of_the_text_that_is_shown() {
    let server = Setup::default().start().await;
    let control = [&[IM_START][..], &server.ids("one")].concat();
    let name = "<|im_start|>".len();
    for (prompt, more, text, offsets) in [
        (json!("aéb"), json!({}), "aéb", [0, 1, 1, 2, 3, 4]),
        (json!(control), json!({}), "one", [0, 0, 1, 2, 3, 4]),
        (
            json!(control),
            json!({"skip_special_tokens": false}),
            "<|im_start|>one",
            [0, name, name + 1, name + 2, name + 3, name + 4],
        ),
        (json!("<|im_start|>one"), json!({}), "<|im_start|>one", [0, name, name + 1, name + 2, name + 3, name + 4]),
        (json!("four"), json!({"return_tokens_as_token_ids": true}), "four", [0, 1, 2, 3, 4, 5]),
    ] {
        let mut body = json!({"prompt": prompt, "max_tokens": 2, "echo": true, "logprobs": 1, "seed": 1});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let choice = server.post(PATH, &body).await.ok()["choices"][0].clone();
        assert!(choice["text"].as_str().expect("text").starts_with(text), "{choice}");
        assert_eq!(choice["logprobs"]["text_offset"], json!(offsets), "{body}");
    }
    let parts = json!({"prompt": "aéb", "max_tokens": 0, "echo": true, "logprobs": 1});
    let logprobs = server.post(PATH, &parts).await.ok()["choices"][0]["logprobs"].clone();
    assert_eq!(logprobs["tokens"], json!(["a", r"bytes:\xc3", r"bytes:\xa9", "b"]));
    assert_eq!(logprobs["top_logprobs"][1], json!({r"bytes:\xc3": -1.0}));
}

#[tokio::test]
async fn tokens_that_a_stop_string_cut_off_start_at_the_end() {
    let server = Setup::default().start().await;
    let whole = server.expected(&server.ids("one"), 1, 60);
    let stop = &whole[40..43];
    let end = whole.find(stop).expect("it is in there");
    let offsets: Vec<usize> = (0..end + stop.len()).map(|start| start.min(end)).collect();
    let mut body = json!({"prompt": "one", "seed": 1, "max_tokens": 60, "logprobs": 1, "stop": stop});
    let choice = server.post(PATH, &body).await.ok()["choices"][0].clone();
    assert_eq!((&choice["text"], &choice["logprobs"]["text_offset"]), (&json!(whole[..end]), &json!(offsets)));
    body["stream"] = json!(true);
    let chunks = server.client().await.stream(PATH, &body).await.rest().await;
    let lists = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"].as_array());
    assert_eq!(json!(lists.flatten().collect::<Vec<_>>()), json!(offsets));
}

#[tokio::test]
async fn each_list_has_as_many_alternatives_as_were_asked_for_it() {
    let server = Setup::default().start().await;
    for (logprobs, prompt_logprobs) in [(1, 3), (4, 0)] {
        let body = json!({"prompt": "one", "max_tokens": 1, "echo": true, "logprobs": logprobs, "prompt_logprobs": prompt_logprobs});
        let choice = server.post(PATH, &body).await.ok()["choices"][0].clone();
        let counts = |list: &Value| -> Vec<usize> {
            let places = list.as_array().expect("a list")[1..].iter();
            places.map(|place| place.as_object().expect("alternatives").len()).collect()
        };
        assert_eq!(counts(&choice["logprobs"]["top_logprobs"]), [logprobs; 3]);
        assert_eq!(counts(&choice["prompt_logprobs"]), [prompt_logprobs.max(1); 2]);
    }
}

#[tokio::test]
async fn a_prompt_can_be_scored_without_generating() {
    let server = Setup::default().start().await;
    let body = json!({"prompt": ["one", "two!"], "max_tokens": 0, "echo": true, "logprobs": 0});
    let answer = server.post(PATH, &body).await.ok();
    assert_eq!(answer["choices"][0]["text"], "one");
    assert_eq!(answer["choices"][1]["text"], "two!");
    assert_eq!(answer["choices"][1]["logprobs"]["token_logprobs"], json!([null, -1.0, -2.0, -3.0]));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn streamed_logprobs_count_on() {
    let server = Setup::default().start().await;
    for as_ids in [false, true] {
        let body = json!({"prompt": "one", "seed": 1, "max_tokens": 8, "logprobs": 1, "stream": true,
            "return_tokens_as_token_ids": as_ids});
        let chunks = server.client().await.stream(PATH, &body).await.rest().await;
        let offsets: Vec<u64> = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"].as_array())
            .flatten()
            .map(|offset| offset.as_u64().expect("a count"))
            .collect();
        assert_eq!(offsets, (0..8).collect::<Vec<u64>>());
    }
}
