//! Bodies as clients send them, and what the server makes of them.

use powertrain_protocol::{
    ApiError, ChatRequest, CompletionRequest, DetokenizeRequest, Prompt, StreamOptions, TokenizeInput, TokenizeRequest,
};

fn chat(body: &str) -> ChatRequest {
    ChatRequest::parse(body.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

fn completion(body: &str) -> CompletionRequest {
    CompletionRequest::parse(body.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

/// The error message for a chat body whose only message is fine and which has these further fields.
fn chat_problem(fields: &str) -> String {
    let body = format!(r#"{{"messages": [{{"role": "user", "content": "hi"}}], {fields}}}"#);
    ChatRequest::parse(body.as_bytes()).map_or_else(|error| error.to_string(), |_| "accepted".to_owned())
}

fn completion_problem(body: &str) -> String {
    CompletionRequest::parse(body.as_bytes()).map_or_else(|error| error.to_string(), |_| "accepted".to_owned())
}

#[test]
fn a_plain_chat_has_the_usual_defaults() {
    let request = chat(r#"{"model": "m", "messages": [{"role": "user", "content": "hi"}]}"#);
    assert_eq!(request.messages[0].content.as_deref(), Some("hi"));
    let generation = &request.generation;
    assert_eq!((generation.model.as_deref(), generation.n, generation.max_tokens), (Some("m"), 1, None));
    assert!(generation.skip_special_tokens && !generation.stream && !generation.ignore_eos);
    assert!(request.add_generation_prompt && !request.continue_final_message && request.logprobs.is_none());
}

#[test]
fn a_chat_with_everything() {
    let request = chat(
        r#"{"messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
             "function": {"name": "f", "arguments": "{\"x\": 1}"}}]}, {"role": "tool", "content": "2", "tool_call_id": "1"},
            {"role": "user", "content": "go", "name": "eve"}],
            "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0.5, "top_k": -1, "top_p": 0.9, "min_p": 0.1,
            "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.1, "logit_bias": {"5": -100, "7": 3},
            "seed": -1, "n": 2, "stop": "END", "stop_token_ids": [1, 2], "include_stop_str_in_output": true,
            "ignore_eos": true, "min_tokens": 3, "skip_special_tokens": false, "stream": true,
            "stream_options": {"include_usage": true, "continuous_usage_stats": true}, "priority": -3, "cache_salt": "t",
            "logprobs": true, "top_logprobs": 3, "user": "u", "metadata": {"a": "b"}, "parallel_tool_calls": true,
            "tools": [], "response_format": {"type": "text"}, "unheard_of": {"x": 1}, "reasoning_effort": "low",
            "chat_template_kwargs": {"enable_thinking": false}, "best_of": 2}"#,
    );
    assert_eq!(request.messages[0].role, "system");
    assert_eq!(request.messages[0].content.as_deref(), Some("a\nb"));
    let calls = request.messages[1].tool_calls.as_ref().expect("kept");
    assert_eq!(calls[0]["function"]["name"], "f");
    let generation = &request.generation;
    assert_eq!(generation.max_tokens, Some(7));
    assert_eq!(generation.top_k, Some(0));
    assert_eq!(generation.logit_bias, [(5, -100.0), (7, 3.0)]);
    assert_eq!(generation.seed, Some(u64::MAX));
    assert_eq!(generation.stop, ["END"]);
    assert_eq!(generation.stream_options, StreamOptions { include_usage: true, continuous_usage_stats: true });
    assert_eq!((generation.priority, generation.cache_salt.as_deref()), (-3, Some("t")));
    assert_eq!(request.logprobs, Some(3));
    assert_eq!(request.chat_template_kwargs.len(), 2);
}

#[test]
fn chat_problems_are_named() {
    for (fields, message) in [
        (r#""temperature": -1, "max_tokens": -5"#, "max_tokens: -5 is below 1; temperature: -1 is below 0"),
        (r#""n": 0"#, "n: 0 is below 1"),
        (r#""stop": [""]"#, "stop[0]: is empty"),
        (
            r#""logit_bias": {"2": 900, "x": 1}"#,
            "logit_bias.2: 900 is above 100; logit_bias.x: the key is not a token id",
        ),
        (
            r#""stream_options": {"include_usage": 1}"#,
            "stream_options: only allowed with stream: true; stream_options.include_usage: 1 is not a boolean",
        ),
        (r#""top_logprobs": 2"#, "top_logprobs: needs logprobs: true"),
        (r#""min_tokens": 9, "max_tokens": 3"#, "min_tokens: 9 is above max_tokens 3"),
        (r#""prompt_logprobs": 1, "stream": true"#, "prompt_logprobs: not available with stream: true"),
        (
            r#""continue_final_message": true, "add_generation_prompt": true"#,
            "continue_final_message: cannot be true together with add_generation_prompt",
        ),
        (r#""cache_salt": """#, "cache_salt: 0 bytes; between 1 and 256"),
    ] {
        assert_eq!(chat_problem(fields), message);
    }
}

#[test]
fn what_would_change_the_answer_is_refused() {
    let tool = r#"[{"type": "function", "function": {"name": "f"}}]"#;
    for (fields, message) in [
        (
            format!(r#""tools": {tool}"#),
            "tools: tool calls are not supported yet; leave them out or send tool_choice: \"none\"",
        ),
        (
            format!(r#""tools": {tool}, "tool_choice": "auto""#),
            "tools: tool calls are not supported yet; leave them out or send tool_choice: \"none\"",
        ),
        (
            format!(r#""tools": {tool}, "tool_choice": "required""#),
            "tool_choice: tool calls are not supported yet; only \"none\" is",
        ),
        (format!(r#""tools": {tool}, "tool_choice": "none""#), "accepted"),
        (r#""tool_choice": "auto""#.into(), "accepted"),
        (
            r#""response_format": {"type": "json_schema", "json_schema": {}}"#.into(),
            "response_format.type: json_schema is not supported yet; only text is",
        ),
        (r#""best_of": 3, "n": 2"#.into(), "best_of: 3 is above n 2; choosing among more than n is not supported"),
        (r#""best_of": 1, "n": 2"#.into(), "best_of: 1 is below n 2; leave it out or send n"),
        (r#""best_of": 2, "n": 2"#.into(), "accepted"),
        (r#""best_of": 2, "n": 0"#.into(), "n: 0 is below 1"),
        (r#""guided_json": {"type": "object"}"#.into(), "guided_json: structured output is not supported yet"),
        (r#""guided_json": null, "use_beam_search": false, "modalities": ["text"]"#.into(), "accepted"),
        (r#""modalities": ["text", "audio"]"#.into(), "modalities: only [\"text\"] is supported"),
    ] {
        assert_eq!(chat_problem(&fields), message, "{fields}");
    }
}

#[test]
fn message_problems_are_placed() {
    for (messages, message) in [
        ("null", "messages: is missing"),
        ("[]", "messages: is empty; at least one message is needed"),
        ("7", "messages: 7 is not an array"),
        (
            r#"[1, {"content": "x"}, {"role": "robot", "content": 3}]"#,
            "messages[0]: 1 is not an object; messages[1].role: is missing; messages[2].role: \"robot\" is not one of system, \
          developer, user, assistant, tool; messages[2].content: 3 is not a string or an array of parts",
        ),
        (r#"[{"role": "user"}]"#, "messages[0].content: is missing"),
        (
            r#"[{"role": "user", "content": [{"type": "image_url", "image_url": {}}, {"type": "text"}]}]"#,
            "messages[0].content[0].type: image_url is not supported; this server reads text; messages[0].content[1].text: is missing",
        ),
    ] {
        let error = ChatRequest::parse(format!(r#"{{"messages": {messages}}}"#).as_bytes()).expect_err(messages);
        assert_eq!(error.to_string(), message);
        assert_eq!(error.status(), 400);
    }
}

#[test]
fn completion_prompts_in_all_shapes() {
    let text = |text: &str| Prompt::Text(text.to_owned());
    for (prompt, expected) in [
        (r#""a""#, vec![text("a")]),
        (r#"["a", "b"]"#, vec![text("a"), text("b")]),
        ("[1, 2]", vec![Prompt::Tokens(vec![1, 2])]),
        ("[[1], [2, 3]]", vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]),
    ] {
        let request = completion(&format!(r#"{{"prompt": {prompt}}}"#));
        assert_eq!(request.prompts, expected);
        assert_eq!(request.generation.max_tokens, None);
    }
}

#[test]
fn completion_problems_are_named() {
    for (body, message) in [
        ("{}", "prompt: is missing"),
        (r#"{"prompt": []}"#, "prompt: is empty"),
        (r#"{"prompt": 1}"#, "prompt: 1 is not a string or an array"),
        (r#"{"prompt": [1, "a"]}"#, "prompt[1]: \"a\" is not a token id"),
        (r#"{"prompt": ["a", null]}"#, "prompt[1]: null is not a string or an array of token ids"),
        (r#"{"prompt": [[4294967296]]}"#, "prompt[0][0]: 4294967296 is not a token id"),
        (r#"{"prompt": "a", "max_tokens": -1}"#, "max_tokens: -1 is below 0"),
        (r#"{"prompt": "a", "logprobs": 21}"#, "logprobs: 21 is above 20"),
        (r#"{"prompt": "a", "suffix": "b"}"#, "suffix: insertion is not supported"),
        (
            r#"{"prompt": ["a", "b", "c", "d", "e", "f", "g", "h", "i"], "n": 128}"#,
            "prompt: prompts times n make 1152 sequences; at most 1024",
        ),
    ] {
        assert_eq!(completion_problem(body), message);
    }
}

#[test]
fn tokenize_takes_text_or_messages() {
    let text = TokenizeRequest::parse(br#"{"prompt": "a", "add_special_tokens": false}"#).expect("fine");
    assert_eq!((text.input, text.add_special_tokens), (TokenizeInput::Text("a".into()), Some(false)));
    let chat = TokenizeRequest::parse(br#"{"messages": [{"role": "user", "content": "a"}]}"#).expect("fine");
    assert!(matches!(chat.input, TokenizeInput::Chat { add_generation_prompt: true, .. }));
    let message = |body: &[u8]| TokenizeRequest::parse(body).expect_err("bad").to_string();
    assert_eq!(message(b"{}"), "messages: is missing");
    assert_eq!(message(br#"{"prompt": 1}"#), "prompt: 1 is not a string");
    let both = br#"{"prompt": "a", "messages": [{"role": "user", "content": "a"}]}"#;
    assert_eq!(message(both), "messages: cannot be given beside prompt; send one of them");
    let detokenize = |body: &[u8]| DetokenizeRequest::parse(body).map(|request| request.tokens);
    assert_eq!(detokenize(br#"{"tokens": [1, 2]}"#), Ok(vec![1, 2]));
    assert_eq!(detokenize(b"{}"), Err(ApiError::field("tokens", "is missing")));
}

/// Random damage to a good body never panics and is either accepted or refused with a message.
#[test]
fn damaged_bodies_are_refused_or_read() {
    let seed: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed);
    eprintln!("SEED={seed}");
    let mut state = seed;
    let mut random = move |below: usize| {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    };
    let good: &[u8] = br#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"prompt":[[1,2],"b"],"stop":["x"],"logit_bias":{"1":2},"n":2,"stream":true,"stream_options":{"include_usage":true},"tokens":[1]}"#;
    let pieces: [&[u8]; 8] = [b"null", b"-1", b"1e400", b"[]", b"{}", b"\"", b"\xff", b"true"];
    for _ in 0..20_000 {
        let mut body = good.to_vec();
        for _ in 0..=random(3) {
            let at = random(body.len());
            let end = (at + random(6)).min(body.len());
            body.splice(at..end, pieces[random(pieces.len())].iter().copied());
        }
        let errors = [
            ChatRequest::parse(&body).err(),
            CompletionRequest::parse(&body).err(),
            TokenizeRequest::parse(&body).err(),
            DetokenizeRequest::parse(&body).err(),
        ];
        for error in errors.into_iter().flatten() {
            assert_eq!(error.status(), 400);
            assert!(!error.to_string().is_empty());
        }
    }
}
