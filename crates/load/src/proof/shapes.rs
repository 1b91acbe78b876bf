//! What servers and the proxies before them send, well-formed and not, and what must come of each. Shapes are those of the projects named; texts
//! and identifiers are shortened.

use super::{
    cases::{chat, target, work},
    tests::{closed, threads},
};
use crate::{Clock, RequestRecord, Stop, run_level};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
};

const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n";

/// Answers one request with these bytes, in writes of so many, and closes the connection.
fn answer_once(listener: &TcpListener, answer: &[u8], write_bytes: usize) {
    let (mut stream, _) = listener.accept().unwrap();
    read_request(&mut stream);
    stream.set_nodelay(true).unwrap();
    for part in answer.chunks(write_bytes) {
        // A client that has seen enough may go.
        if stream.write_all(part).is_err() {
            return;
        }
    }
}

fn read_request(stream: &mut TcpStream) {
    let (mut request, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let bytes = stream.read(&mut part).unwrap();
        request.extend_from_slice(&part[..bytes]);
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Request::new(&mut headers);
        if let httparse::Status::Complete(start) = head.parse(&request).unwrap() {
            let length = head.headers.iter().find(|header| header.name == "content-length").unwrap();
            let length: usize = std::str::from_utf8(length.value).unwrap().parse().unwrap();
            if request.len() >= start + length {
                return;
            }
        }
    }
}

/// What the client makes of an answer.
fn record(answer: &[u8], write_bytes: usize) -> RequestRecord {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let target = target(&chat(listener.local_addr().unwrap()).unwrap(), Clock::start()).unwrap();
    let mut run = std::thread::scope(|scope| {
        scope.spawn(|| answer_once(&listener, answer, write_bytes));
        run_level(&Arc::new(target), &Arc::new(work()), closed(1, 1), threads(1), &Stop::new()).unwrap()
    });
    assert_eq!(run.records.len(), 1, "nothing is sent twice");
    run.records.remove(0)
}

/// In words: how it ended, what was counted, and why it failed.
fn told(record: &RequestRecord) -> String {
    let characters: Vec<String> = record.chunks.iter().map(|chunk| chunk.characters.to_string()).collect();
    let mut text = format!("{:?} [{}]", record.outcome(), characters.join(" "));
    if let Some(usage) = record.usage {
        text += &format!(" usage {}+{}", usage.prompt_tokens, usage.completion_tokens);
    }
    if let Some(reason) = &record.finish_reason {
        text += &format!(" {reason}");
    }
    if let Some(failure) = &record.failure {
        text += &format!(" {}: {}", failure.class.name(), failure.message);
    }
    text
}

/// However the bytes are split, the answer comes to the same.
#[track_caller]
fn check(answer: &str, expected: &str) {
    for write_bytes in [usize::MAX, 61, 1] {
        assert_eq!(told(&record(answer.as_bytes(), write_bytes)), expected, "writes of {write_bytes}: {answer}");
    }
}

/// Events as a body in chunks, one of each, ended properly.
fn chunked(events: &[&str]) -> String {
    let chunks: String = events.iter().map(|event| format!("{:x}\r\n{event}\r\n", event.len())).collect();
    format!("{EVENTS}transfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
}

/// An answer of a known length.
fn whole(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn vllms_stream() {
    // vLLM, issue 35705: the last content and the finish reason in one chunk; usage alone with `include_usage`.
    let events = [
        "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
        "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"<think>\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
        "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" .\"},\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null}]}\n\n",
        "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"total_tokens\":11,\"completion_tokens\":2}}\n\n",
        "data: [DONE]\n\n",
    ];
    check(&chunked(&events), "Completed [7 2] usage 9+2 length");
    // vLLM: an error after the first chunks, still with status 200.
    let failed = [
        events[1],
        "data: {\"error\":{\"message\":\"EngineCore encountered an issue\",\"type\":\"InternalServerError\",\"code\":500}}\n\n",
        events[4],
    ];
    check(&chunked(&failed), "CutOff [7] server_error: EngineCore encountered an issue");
}

#[test]
fn sglangs_stream() {
    // SGLang, pull request 9657: every field there, those without content null. Issue 18335: chunks with nothing at all.
    let chunk = |content: &str, reasoning: &str| {
        format!(
            "data: {{\"id\":\"f\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"role\":null,\"content\":{content},\"reasoning_content\":{reasoning},\"tool_calls\":null}},\"logprobs\":null,\"finish_reason\":null,\"matched_stop\":null}}],\"usage\":null}}\n\n"
        )
    };
    let finish = "data: {\"id\":\"f\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":null,\"content\":null,\"reasoning_content\":null,\"tool_calls\":null},\"logprobs\":null,\"finish_reason\":\"stop\",\"matched_stop\":151645}],\"usage\":null}\n\n";
    let (nothing, thought, text) = (chunk("null", "null"), chunk("null", "\"24\""), chunk("\"2+4\"", "null"));
    // Pull request 8417: the finish reason came twice.
    check(&chunked(&[&nothing, &thought, &text, finish, finish, "data: [DONE]\n\n"]), "Completed [2 3] stop");
}

#[test]
fn text_generation_inferences_stream() {
    // TGI, router/src/chat.rs and lib.rs: the role in every chunk, no object, usage alone; keep-alive comments of axum.
    let events = [
        ":\n\n",
        "data: {\"id\":\"\",\"created\":1,\"model\":\"m\",\"system_fingerprint\":\"3.0.0-native\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"Deep\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n",
        "data: {\"id\":\"\",\"created\":1,\"model\":\"m\",\"system_fingerprint\":\"3.0.0-native\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":null}\n\n",
        "data: {\"id\":\"\",\"created\":1,\"model\":\"m\",\"system_fingerprint\":\"3.0.0-native\",\"choices\":[],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":2,\"total_tokens\":6}}\n\n",
        "data: [DONE]\n\n",
    ];
    check(&chunked(&events), "Completed [4] usage 4+2 stop");
    // server.rs: an error in the stream is a text, not an object.
    let failed =
        [events[1], "data: {\"error\":\"Incomplete generation stream\",\"error_type\":\"incomplete_generation\"}\n\n"];
    check(&chunked(&failed), "CutOff [4] server_error: Incomplete generation stream");
    // chat.rs: tool calls as their arguments come.
    let tool = "data: {\"id\":\"\",\"created\":1,\"model\":\"m\",\"system_fingerprint\":\"s\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"tool_calls\":[{\"index\":0,\"id\":\"0\",\"type\":\"function\",\"function\":{\"name\":\"weather\",\"arguments\":\"{\"}}]},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n";
    check(&chunked(&[tool, events[2], events[4]]), "Completed [8] stop");
}

#[test]
fn tensorrt_llms_stream() {
    // TensorRT-LLM, serve/postprocess_handlers.py: a space before the end of an event's line, no null fields, empty texts beside tool calls.
    let events = [
        "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"}}]} \n\n",
        "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\",\"reasoning_content\":\"So\"}}]}\n\n",
        "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\",\"reasoning_content\":\"\",\"tool_calls\":[{\"id\":\"t\",\"index\":0,\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},\"avg_decoded_tokens_per_iter\":1.0}]}\n\n",
        "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\",\"reasoning_content\":\"\"},\"finish_reason\":\"tool_calls\"}]}\n\n",
        "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"total_tokens\":6,\"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":2}}}\n\n",
        "data: [DONE]\n\n",
    ];
    check(&chunked(&events), "Completed [2 3] usage 3+3 tool_calls");
    assert_eq!(record(chunked(&events).as_bytes(), 61).usage.unwrap().cached_tokens, Some(2));
}

#[test]
fn ollamas_stream() {
    // Ollama, openai/openai.go: the role in every chunk, `reasoning` for thoughts, an empty text beside the finish reason.
    let chunk = |delta: &str, finish: &str| {
        format!(
            "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{{\"index\":0,\"delta\":{{\"role\":\"assistant\",{delta}}},\"finish_reason\":{finish}}}]}}\n\n"
        )
    };
    let (thought, text) =
        (chunk("\"content\":\"\",\"reasoning\":\"Okay\"", "null"), chunk("\"content\":\"Hi\"", "null"));
    let usage = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"total_tokens\":10}}\n\n";
    let end = chunk("\"content\":\"\"", "\"stop\"");
    check(&chunked(&[&thought, &text, &end, usage, "data: [DONE]\n\n"]), "Completed [4 2] usage 7+3 stop");
}

#[test]
fn llama_cpps_stream() {
    // llama.cpp, issue 12137 and pull request 15444: content null in the first chunk, usage beside the finish reason and later alone, timings
    // wherever.
    let events = [
        "data: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null}}],\"created\":1,\"id\":\"c\",\"model\":\"m\",\"system_fingerprint\":\"b6351-5d804a49\",\"object\":\"chat.completion.chunk\"}\n\n",
        "data: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"content\":\"Hello\"}}],\"created\":1,\"id\":\"c\",\"model\":\"m\",\"system_fingerprint\":\"b6351-5d804a49\",\"object\":\"chat.completion.chunk\"}\n\n",
        "data: {\"choices\":[{\"finish_reason\":\"length\",\"index\":0,\"delta\":{}}],\"created\":1,\"id\":\"c\",\"model\":\"m\",\"system_fingerprint\":\"b4764-7ad0779f\",\"object\":\"chat.completion.chunk\",\"usage\":{\"completion_tokens\":1,\"prompt_tokens\":43,\"total_tokens\":44},\"timings\":{\"prompt_n\":43,\"prompt_ms\":246.082,\"predicted_n\":1,\"predicted_ms\":0.028}}\n\n",
        "data: {\"choices\":[],\"created\":1,\"id\":\"c\",\"model\":\"m\",\"system_fingerprint\":\"b6351-5d804a49\",\"object\":\"chat.completion.chunk\",\"usage\":{\"completion_tokens\":1,\"prompt_tokens\":43,\"total_tokens\":44},\"timings\":{\"prompt_n\":43,\"prompt_ms\":246.082,\"predicted_n\":1,\"predicted_ms\":0.028}}\n\n",
        "data: [DONE]\n\n",
    ];
    check(&chunked(&[events[0], events[1], events[2], events[4]]), "Completed [5] usage 43+1 length");
    check(&chunked(&events), "Completed [5] usage 43+1 length");
    // Its older servers wrote errors into a field of their own, which is none of an event's: the stream just ends.
    let failed = [events[1], "error: {\"code\":500,\"message\":\"context is full\",\"type\":\"server_error\"}\n\n"];
    check(
        &chunked(&failed),
        "CutOff [5] ended_early: the stream ended without its end mark or a finish reason; its last line: error: \
         {\"code\":500,\"message\":\"context is full\",\"type\":\"server_error\"}",
    );
}

const CHUNK: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"ab\"},\"finish_reason\":null}]}\n\n";
const FINISH: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";

#[test]
fn events_in_every_form_the_standard_allows() {
    let lines = "data: {\"choices\":[{\"index\":0,\r\ndata: \"delta\":{\"content\":\"ab\"},\r\ndata:\"finish_reason\":null}]}\r\n\r\n";
    check(&chunked(&[": ping\r\n\r\n", lines, "event: message\r\nid: 1\r\ndata: [DONE] \r\n\r\n"]), "Completed [2]");
    let long = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "é".repeat(1 << 20));
    let answer = chunked(&[&long, FINISH]);
    assert_eq!(told(&record(answer.as_bytes(), usize::MAX)), format!("Completed [{}] stop", 1 << 20));
    let longer = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "x".repeat(5 << 20));
    let answer = chunked(&[CHUNK, &longer, FINISH]);
    assert_eq!(told(&record(answer.as_bytes(), usize::MAX)), "CutOff [2] malformed: an event is longer than 4 MiB");
    let empty = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"}}]}\n\n";
    check(&chunked(&[empty, CHUNK, empty, FINISH]), "Completed [2] stop");
    check(
        &chunked(&["data: nothing\n\n"]),
        "Failed [] malformed: an event that is no chunk (expected ident at line 1 column 2): nothing",
    );
}

#[test]
fn streams_that_end_too_early() {
    let no_mark = "the stream ended without its end mark or a finish reason";
    check(&chunked(&[CHUNK, FINISH]), "Completed [2] stop");
    check(&chunked(&[CHUNK]), &format!("CutOff [2] ended_early: {no_mark}"));
    // In the middle of a chunk of the body, and where the body ends with the connection.
    let cut = format!("{EVENTS}transfer-encoding: chunked\r\n\r\n{:x}\r\n{CHUNK}\r\n40\r\ndata: {{\"cho", CHUNK.len());
    check(&cut, "CutOff [2] closed: the server closed the connection");
    check(&format!("{EVENTS}\r\n{CHUNK}{FINISH}data: [DONE]\n\n"), "Completed [2] stop");
    check(&format!("{EVENTS}\r\n{CHUNK}"), &format!("CutOff [2] closed: {no_mark}"));
    check(
        &format!("{EVENTS}content-length: 9999\r\n\r\n{CHUNK}"),
        "CutOff [2] closed: the server closed the connection",
    );
    check("", "Failed [] closed: the server closed the connection");
}

#[test]
fn framing_that_is_broken() {
    let broken =
        |size: &str| format!("{EVENTS}transfer-encoding: chunked\r\n\r\n{:x}\r\n{CHUNK}\r\n{size}\r\n", CHUNK.len());
    check(&broken("zz"), "CutOff [2] malformed: a chunk's size is no hexadecimal number");
    check(&broken("1\r\nab"), "CutOff [2] malformed: a chunk is longer than its size");
    check("SSH-2.0-OpenSSH_9.2\r\n", "Failed [] malformed: not an HTTP/1.1 response: invalid HTTP version");
    let packed = whole("200 OK", "content-type: text/event-stream\r\ncontent-encoding: gzip\r\n", "\u{1f}");
    check(&packed, "Failed [] malformed: the answer is encoded as gzip, which was not asked for");
}

#[test]
fn answers_that_are_no_stream() {
    let html = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>";
    check(
        &whole("200 OK", "content-type: text/html\r\n", html),
        &format!(
            "Failed [] malformed: the answer is not the API's but text/html (expected value at line 1 column 1): {html}"
        ),
    );
    check(
        &whole("502 Bad Gateway", "content-type: text/html\r\n", html),
        &format!("Failed [] status: status 502: {html}"),
    );
    check(
        &whole("429 Too Many Requests", "retry-after: 2\r\n", "{\"error\":{\"message\":\"slow down\"}}"),
        "Failed [] status: status 429: slow down (retry after 2)",
    );
    check(
        &whole("307 Temporary Redirect", "location: https://elsewhere/v1/chat/completions\r\n", ""),
        "Failed [] status: status 307: moved to https://elsewhere/v1/chat/completions; measure that address",
    );
    check(
        &whole("401 Unauthorized", "", "{\"detail\":\"Not authenticated\"}"),
        "Failed [] status: status 401: Not authenticated",
    );
    // A server that takes no notice of `stream`, one that calls its events something else, and errors with status 200.
    let plain = "{\"choices\":[{\"message\":{\"content\":\"all\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":1}}";
    check(&whole("200 OK", "content-type: application/json\r\n", plain), "Completed [] usage 2+1 stop");
    assert!(!record(whole("200 OK", "", plain).as_bytes(), 61).streamed);
    check(&whole("200 OK", "content-type: text/plain\r\n", &format!("{CHUNK}{FINISH}")), "Completed [2] stop");
    check(&whole("200 OK", "", "{\"error\":{\"message\":\"no such model\"}}"), "Failed [] server_error: no such model");
    check(&whole("200 OK", "", "{\"object\":\"list\",\"data\":[]}"), "Failed [] malformed: the answer has no choices");
}
