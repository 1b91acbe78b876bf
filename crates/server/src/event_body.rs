//! A response body of server-sent events. Everything that is ready goes out in one write: with many tokens at once the
//! system calls, not the tokens, would cost. Nothing waits for more.

use crate::{generate::Sequences, record::Record, sequence::Progress};
use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use futures_util::Stream;
use hyper::body::Frame;
use powertrain_protocol::sse;
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

/// A write is not made larger than about this.
const WRITE_BYTES: usize = 16 << 10;

/// How one kind of response writes its events.
pub(crate) trait Frames: Send + Unpin + 'static {
    /// Choices there are.
    fn choices(&self) -> u32;
    /// Before any token of any choice, for each: all of them may be much (echoed prompts), so not at once.
    fn open(&mut self, index: u32, out: &mut Vec<u8>);
    /// For more text of a choice; never for an error.
    fn piece(&mut self, progress: Progress, out: &mut Vec<u8>);
    /// After the end of all choices.
    fn close(&mut self, out: &mut Vec<u8>);
}

/// Dropped by the connection when the client is gone, which cancels what runs.
struct EventBody<F> {
    sequences: Sequences,
    frames: F,
    stage: Stage,
    /// Its line is logged when the body is dropped.
    _record: Record,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    /// The next choice's opening is to be written.
    Opening(u32),
    Running,
    Over,
}

/// Starts a stream.
pub(crate) fn respond(sequences: Sequences, frames: impl Frames, record: Record) -> Response {
    let body = EventBody { sequences, frames, stage: Stage::Opening(0), _record: record };
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(sse::CONTENT_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect the events otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<F: Frames> EventBody<F> {
    /// Writes one sequence's progress; an error ends the whole response.
    fn write(&mut self, progress: Option<Progress>, out: &mut Vec<u8>) {
        match progress {
            Some(Progress { piece: Err(error), .. }) => {
                self.sequences.clear();
                sse::write_error(out, &error);
            }
            Some(progress) => return self.frames.piece(progress, out),
            None => self.frames.close(out),
        }
        sse::write_done(out);
        self.stage = Stage::Over;
    }
}

impl<F: Frames> hyper::body::Body for EventBody<F> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let mut out = Vec::new();
        while let Stage::Opening(index) = this.stage
            && out.len() < WRITE_BYTES
        {
            if index == this.frames.choices() {
                this.stage = Stage::Running;
                break;
            }
            this.frames.open(index, &mut out);
            this.stage = Stage::Opening(index + 1);
        }
        while this.stage == Stage::Running && out.len() < WRITE_BYTES {
            match Pin::new(&mut this.sequences).poll_next(context) {
                Poll::Ready(progress) => this.write(progress, &mut out),
                Poll::Pending if out.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if out.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(out.into()))))
    }

    fn is_end_stream(&self) -> bool {
        false
    }
}
