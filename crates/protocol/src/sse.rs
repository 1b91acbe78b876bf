//! Server-sent events: how a chunk becomes bytes. Written into one buffer, so that all that is ready goes out at once.

use crate::ApiError;
use serde::Serialize;

/// The response's content type.
pub const CONTENT_TYPE: &str = "text/event-stream; charset=utf-8";

/// Appends one event.
pub fn write_data(buffer: &mut Vec<u8>, chunk: &impl Serialize) {
    buffer.extend_from_slice(b"data: ");
    // Our chunks are plain structs with string keys and finite numbers; writing to memory cannot fail.
    serde_json::to_writer(&mut *buffer, chunk).expect("chunks serialise");
    buffer.extend_from_slice(b"\n\n");
}

/// Appends an error: the official clients raise it.
pub fn write_error(buffer: &mut Vec<u8>, error: &ApiError) {
    write_data(buffer, &error.body());
}

/// Appends the end mark.
pub fn write_done(buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(b"data: [DONE]\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newlines_in_text_stay_inside_their_event() {
        let mut buffer = Vec::new();
        write_data(&mut buffer, &"a\n\nb");
        write_error(&mut buffer, &ApiError::ShuttingDown);
        write_done(&mut buffer);
        assert_eq!(
            String::from_utf8(buffer).expect("UTF-8"),
            "data: \"a\\n\\nb\"\n\ndata: {\"error\":{\"message\":\"the server is shutting down\",\"type\":\
             \"service_unavailable_error\",\"param\":null,\"code\":\"shutting_down\"}}\n\ndata: [DONE]\n\n"
        );
    }
}
