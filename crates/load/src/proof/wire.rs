//! The bytes of the ground-truth server's answers.

use super::{Ending, Script, script::Plan};

/// Ends a body in chunks.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
const ERROR: &str = "{\"error\":{\"message\":\"by script\"}}";

/// A whole answer with its status.
pub(super) fn whole(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// The error that a script asks for.
pub(super) fn failed(status: u16) -> Vec<u8> {
    whole(&format!("{status} Scripted"), ERROR)
}

/// Why what a client told cannot be done.
pub(super) fn refused(reason: &str) -> Vec<u8> {
    whole("400 Bad Request", &serde_json::json!({"error": {"message": reason}}).to_string())
}

/// An answer that is not streamed.
pub(super) fn unstreamed(script: &Script, plan: &Plan, prompt_tokens: usize) -> Vec<u8> {
    let usage = if script.usage { format!(",\"usage\":{}", usage(script, plan, prompt_tokens)) } else { String::new() };
    whole(
        "200 OK",
        &format!("{{\"choices\":[{{\"message\":{{\"content\":\"all\"}},\"finish_reason\":\"length\"}}]{usage}}}"),
    )
}

/// The head of a stream, with the role's chunk where the script wants one.
pub(super) fn beginning(script: &Script) -> Vec<u8> {
    let mut bytes =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    if script.role_first {
        event(&mut bytes, &choice("\"role\":\"assistant\",\"content\":\"\"", "null"));
    }
    bytes
}

/// A chunk with content.
pub(super) fn content() -> Vec<u8> {
    let mut bytes = Vec::new();
    event(&mut bytes, &choice("\"content\":\" token\"", "null"));
    bytes
}

/// What follows the last chunk; nothing where the connection is just closed.
pub(super) fn ending(script: &Script, plan: &Plan, prompt_tokens: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    match script.ending {
        Ending::Closed(_) => return bytes,
        Ending::Early(_) | Ending::Status(_) => {}
        Ending::Error(_) => event(&mut bytes, ERROR),
        Ending::Complete => {
            event(&mut bytes, &choice("", "\"length\""));
            if script.usage {
                event(&mut bytes, &format!("{{\"choices\":[],\"usage\":{}}}", usage(script, plan, prompt_tokens)));
            }
            event(&mut bytes, "[DONE]");
        }
    }
    bytes.extend_from_slice(LAST_CHUNK);
    bytes
}

fn usage(script: &Script, plan: &Plan, prompt_tokens: usize) -> String {
    let tokens = plan.chunks * script.tokens_per_chunk;
    format!("{{\"prompt_tokens\":{prompt_tokens},\"completion_tokens\":{tokens}}}")
}

fn choice(delta: &str, finish_reason: &str) -> String {
    format!(
        "{{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"truth\",\
         \"choices\":[{{\"index\":0,\"delta\":{{{delta}}},\"logprobs\":null,\"finish_reason\":{finish_reason}}}]}}"
    )
}

/// Appends an event as one chunk of the body.
fn event(bytes: &mut Vec<u8>, data: &str) {
    let event = format!("data: {data}\n\n");
    bytes.extend_from_slice(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes());
}
