//! The receiving end of one request.

use crate::{Event, Failure, handle::Command};
use futures_core::Stream;
use powertrain_scheduler::SequenceId;
use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

/// Yields a request's events; the last is `Finished` or `Failed`, then it ends. Dropped before that it cancels the request.
///
/// What it can hold is bounded by the request itself: a token event for each of `max_tokens`, at most one event for each
/// prompt position, and the first and the last.
pub struct EventStream {
    sequence: SequenceId,
    events: UnboundedReceiver<Event>,
    commands: UnboundedSender<Command>,
    ended: bool,
}

impl EventStream {
    pub(crate) fn new(
        sequence: SequenceId,
        events: UnboundedReceiver<Event>,
        commands: UnboundedSender<Command>,
    ) -> Self {
        Self { sequence, events, commands, ended: false }
    }

    /// The next event; `None` after the last. Cancel-safe: an event is never lost.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|context| self.poll_event(context)).await
    }

    /// The next event; waits on this thread, which must not be one of an async runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.take(event))
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.events.poll_recv(context).map(|event| Some(self.take(event)))
    }

    fn take(&mut self, event: Option<Event>) -> Event {
        // The engine ends every stream itself; if it could not even do that, the client still hears of it.
        let event = event.unwrap_or_else(|| Event::Failed(Failure::Engine("its thread is gone".into())));
        self.ended = matches!(event, Event::Finished(_) | Event::Failed(_));
        event
    }
}

impl Stream for EventStream {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.get_mut().poll_event(context)
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if !self.ended {
            // Without an engine there is nothing to cancel.
            let _ = self.commands.send(Command::Cancel(self.sequence));
        }
    }
}
