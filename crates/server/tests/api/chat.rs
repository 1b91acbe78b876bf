//! `/v1/chat/completions`.

use crate::{
    client::streamed_text,
    server::{IM_END, IM_START, Setup, chat_body},
};
use serde_json::{Value, json};

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn an_answer_is_what_the_model_says() {
    let server = Setup::default().start().await;
    let prompt = server.chat_ids("hello");
    let answer = server.post(PATH, &chat_body("hello", json!({"max_tokens": 20}))).await.ok();
    assert!(answer["id"].as_str().expect("an id").starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "toy");
    assert!(answer["created"].is_u64() && answer["system_fingerprint"].is_string());
    assert_eq!(
        answer["choices"],
        json!([{
            "index": 0,
            "message": {"role": "assistant", "content": server.expected(&prompt, 7, 20), "refusal": null},
            "logprobs": null,
            "finish_reason": "length",
            "stop_reason": null,
        }])
    );
    let usage = json!({
        "prompt_tokens": prompt.len(), "completion_tokens": 20, "total_tokens": prompt.len() + 20,
        "prompt_tokens_details": {"cached_tokens": 0},
    });
    assert_eq!(answer["usage"], usage);
    // The same again: what fills whole blocks of the prompt is cached now.
    let again = server.post(PATH, &chat_body("hello", json!({"max_tokens": 20}))).await.ok();
    assert_eq!(again["choices"], answer["choices"]);
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], (prompt.len() - 1) / 16 * 16);
    // Another tenant does not share it.
    let salted = server.post(PATH, &chat_body("hello", json!({"max_tokens": 20, "cache_salt": "other"}))).await.ok();
    assert_eq!(salted["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

#[tokio::test]
async fn a_stream_says_the_same_in_order() {
    let server = Setup::default().start().await;
    let prompt = server.chat_ids("hello");
    let body = chat_body(
        "hello",
        json!({"max_completion_tokens": 30, "stream": true, "stream_options": {"include_usage": true}}),
    );
    let chunks = server.client().await.stream(PATH, &body).await.rest().await;
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(streamed_text(&chunks, 0), server.expected(&prompt, 7, 30));
    let [.., finish, usage] = chunks.as_slice() else { panic!("too few chunks") };
    assert_eq!(finish["choices"][0]["delta"], json!({}));
    assert_eq!(finish["choices"][0]["finish_reason"], "length");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 30);
    for chunk in &chunks[..chunks.len() - 1] {
        assert_eq!(
            (&chunk["object"], &chunk["id"], &chunk["usage"]),
            (&json!("chat.completion.chunk"), &chunks[0]["id"], &Value::Null)
        );
        assert!(chunk.as_object().expect("an object").contains_key("usage"));
    }
}

#[tokio::test]
async fn usage_can_be_in_every_chunk_or_in_none() {
    let server = Setup::default().start().await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = chat_body("hello", json!({"max_tokens": 5, "stream": true, "stream_options": options}));
    let chunks = server.client().await.stream(PATH, &body).await.rest().await;
    let counts: Vec<u64> =
        chunks.iter().map(|chunk| chunk["usage"]["completion_tokens"].as_u64().expect("a count")).collect();
    assert!(counts.is_sorted() && counts.first() == Some(&0) && counts.last() == Some(&5), "{counts:?}");
    let body = chat_body("hello", json!({"max_tokens": 5, "stream": true}));
    let chunks = server.client().await.stream(PATH, &body).await.rest().await;
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn choice_i_is_drawn_with_seed_plus_i() {
    let server = Setup::default().start().await;
    let prompt = server.chat_ids("hello");
    let answer = server.post(PATH, &chat_body("hello", json!({"max_tokens": 12, "n": 3}))).await.ok();
    for index in 0..3 {
        let expected = server.expected(&prompt, 7 + index, 12);
        assert_eq!(answer["choices"][index as usize]["message"]["content"], expected);
    }
    assert_eq!(answer["usage"]["prompt_tokens"], prompt.len());
    assert_eq!(answer["usage"]["completion_tokens"], 36);
    let body = chat_body("hello", json!({"max_tokens": 12, "n": 3, "stream": true}));
    let chunks = server.client().await.stream(PATH, &body).await.rest().await;
    for index in 0..3 {
        assert_eq!(streamed_text(&chunks, index), server.expected(&prompt, 7 + index, 12));
    }
}

#[tokio::test]
async fn without_a_seed_every_answer_is_another() {
    let server = Setup::default().start().await;
    let mut body = chat_body("hello", json!({"max_tokens": 40}));
    body.as_object_mut().expect("an object").remove("seed");
    let mut texts = Vec::new();
    for _ in 0..2 {
        texts.push(server.post(PATH, &body).await.ok()["choices"][0]["message"]["content"].clone());
    }
    assert_ne!(texts[0], texts[1]);
}

#[tokio::test]
async fn a_stop_string_ends_the_text_before_it_and_the_work() {
    let server = Setup::default().start().await;
    let prompt = server.chat_ids("hello");
    let whole = server.expected(&prompt, 7, 500);
    let stop = &whole[40..43];
    let before = &whole[..whole.find(stop).expect("it is in there")];
    for (more, text) in [
        (json!({"stop": stop}), before.to_owned()),
        (json!({"stop": ["never there", stop]}), before.to_owned()),
        (json!({"stop": stop, "include_stop_str_in_output": true}), format!("{before}{stop}")),
    ] {
        let mut body = chat_body("hello", more);
        body["max_tokens"] = json!(1900);
        let answer = server.post(PATH, &body).await.ok();
        assert_eq!(answer["choices"][0]["message"]["content"], text);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["choices"][0]["stop_reason"], stop);
        assert_eq!(answer["usage"]["completion_tokens"], before.len() + 3);
        body["stream"] = json!(true);
        let chunks = server.client().await.stream(PATH, &body).await.rest().await;
        assert_eq!(streamed_text(&chunks, 0), text);
        server.assert_idle_and_whole().await;
    }
}

#[tokio::test]
async fn a_stop_token_ends_the_text_and_is_not_shown() {
    let server = Setup::default().start().await;
    let prompt = server.chat_ids("hello");
    let whole = server.expected(&prompt, 7, 60);
    let id = server.ids(&whole[30..31])[0];
    let before = &whole[..whole.find(&whole[30..31]).expect("it is in there")];
    let answer = server.post(PATH, &chat_body("hello", json!({"stop_token_ids": [id]}))).await.ok();
    assert_eq!(answer["choices"][0]["message"]["content"], before);
    assert_eq!(answer["choices"][0]["stop_reason"], id);
    let shown = json!({"stop_token_ids": [id], "include_stop_str_in_output": true});
    let answer = server.post(PATH, &chat_body("hello", shown)).await.ok();
    assert_eq!(answer["choices"][0]["message"]["content"], format!("{before}{}", &whole[30..31]));
}

#[tokio::test]
async fn logprobs_are_beside_their_text() {
    let server = Setup::default().start().await;
    let prompt = server.chat_ids("hello");
    let text = server.expected(&prompt, 7, 6);
    let more =
        json!({"max_tokens": 6, "logprobs": true, "top_logprobs": 1, "return_token_ids": true, "prompt_logprobs": 0});
    let answer = server.post(PATH, &chat_body("hello", more)).await.ok();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().expect("a list");
    assert_eq!(content.iter().map(|token| token["token"].as_str().expect("text")).collect::<String>(), text);
    assert_eq!(content[0]["bytes"], json!(text.as_bytes()[..1]));
    assert_eq!(content[0]["logprob"], content[0]["top_logprobs"][0]["logprob"]);
    assert_eq!(answer["choices"][0]["token_ids"], json!(server.ids(&text)));
    assert_eq!(answer["prompt_token_ids"], json!(prompt));
    let prompt_logprobs = answer["prompt_logprobs"].as_array().expect("a list");
    assert_eq!(prompt_logprobs.len(), prompt.len());
    assert_eq!(prompt_logprobs[0], Value::Null);
    assert_eq!(prompt_logprobs[1][prompt[1].to_string()]["rank"], 1);
    let more = json!({"max_tokens": 6, "logprobs": true, "stream": true, "return_tokens_as_token_ids": true});
    let chunks = server.client().await.stream(PATH, &chat_body("hello", more)).await.rest().await;
    let tokens: Vec<&str> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .map(|token| token["token"].as_str().expect("text"))
        .collect();
    let expected: Vec<String> = server.ids(&text).iter().map(|id| format!("token_id:{id}")).collect();
    assert_eq!(tokens, expected);
}

#[tokio::test]
async fn tokenize_and_detokenize_show_what_the_model_reads() {
    let server = Setup::default().start().await;
    let messages = json!([{"role": "user", "content": "hi"}]);
    let answer = server.post("/tokenize", &json!({"messages": messages, "return_token_strs": true})).await.ok();
    assert_eq!(answer["tokens"], json!(server.chat_ids("hi")));
    assert_eq!(answer["token_strs"][0], "<|im_start|>");
    assert_eq!((&answer["count"], &answer["max_model_len"]), (&json!(server.chat_ids("hi").len()), &json!(2048)));
    let text = server.post("/tokenize", &json!({"prompt": "a<|im_end|>é"})).await.ok();
    assert_eq!(text["tokens"].as_array().expect("ids").len(), 4);
    assert_eq!(text["tokens"][1], IM_END);
    let back = server.post("/detokenize", &json!({"tokens": text["tokens"]})).await.ok();
    assert_eq!(back, json!({"prompt": "a<|im_end|>é"}));
    let odd = json!({"messages": [{"role": "user", "content": "h"}], "add_generation_prompt": false, "continue_final_message": true});
    let open = server.post("/tokenize", &odd).await.ok();
    let tail = open["tokens"].as_array().expect("ids");
    assert_eq!((tail.first(), tail.last()), (Some(&json!(IM_START)), Some(&json!(server.ids("h")[0]))));
}

#[tokio::test]
async fn tool_calls_without_content_are_rendered_beside_an_empty_text() {
    let server = Setup::default().start().await;
    let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let expected = server.ids("<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n");
    for message in [
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "assistant", "tool_calls": [call]}),
    ] {
        let answer = server.post("/tokenize", &json!({"messages": [message]})).await.ok();
        assert_eq!(answer["tokens"], json!(expected));
        let open = json!({"messages": [message], "add_generation_prompt": false, "continue_final_message": true});
        let (status, error) = server.post("/tokenize", &open).await.error();
        assert_eq!((status, error.contains("no text content to continue")), (400, true), "{error}");
    }
}

#[tokio::test]
async fn a_long_conversation_goes_through_the_pool() {
    let server = Setup { max_model_len: 8000, ..Setup::default() }.start().await;
    let long = "x".repeat(6000);
    let answer = server.post(PATH, &chat_body(&long, json!({"max_tokens": 4}))).await.ok();
    assert_eq!(answer["choices"][0]["message"]["content"], server.expected(&server.chat_ids(&long), 7, 4));
}
