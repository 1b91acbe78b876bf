//! One running sequence: the engine's stream of events made a stream of pieces, measured on the way.

use crate::{
    choice::{Choice, Piece},
    metrics::{Ending, Life, Metrics},
    record::{DISCONNECTED, Record},
};
use futures_util::Stream;
use powertrain_engine::{Event, EventStream, FinishReason};
use powertrain_protocol::{ApiError, WireFinishReason};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

/// What a sequence yields, and where it stands then.
pub(crate) struct Progress {
    /// Which choice of the response.
    pub(crate) index: u32,
    /// Tokens generated so far.
    pub(crate) generated: u32,
    /// Prompt tokens found in the prefix cache.
    pub(crate) cached: u32,
    /// More text; an error is the last.
    pub(crate) piece: Result<Piece, ApiError>,
}

/// Ends with the piece that has an end, or with an error. Dropped before that, it cancels the sequence.
pub(crate) struct Sequence {
    index: u32,
    /// `None` once it is over.
    events: Option<EventStream>,
    /// Read already, to see whether it was the end.
    ahead: Option<Event>,
    choice: Choice,
    meter: Meter,
}

/// Watches a sequence for the metrics and the log.
struct Meter {
    metrics: Arc<Metrics>,
    record: Record,
    life: Life,
    cached: u32,
    ended: bool,
}

impl Sequence {
    pub(crate) fn new(
        index: u32,
        prompt_tokens: u32,
        events: EventStream,
        choice: Choice,
        metrics: Arc<Metrics>,
        record: Record,
    ) -> Self {
        let life = Life {
            arrived: record.arrived(),
            queued: Some(Instant::now()),
            scheduled: None,
            first_token: None,
            last_token: None,
            prompt_tokens,
            generated_tokens: 0,
        };
        Self {
            index,
            events: Some(events),
            ahead: None,
            choice,
            meter: Meter { metrics, record, life, cached: 0, ended: false },
        }
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Some(event) = self.ahead.take() {
            return Poll::Ready(Some(event));
        }
        // An engine's stream always ends with an event of its own, after which we do not ask again.
        let Some(events) = &mut self.events else { return Poll::Ready(None) };
        Pin::new(events).poll_next(context)
    }

    /// The end comes right behind the last token: it goes into that token's piece instead of one of its own, which
    /// clients would take for another token.
    fn append_end(&mut self, piece: &mut Result<Piece, ApiError>, context: &mut Context<'_>) {
        let Ok(piece) = piece else { return };
        if piece.end.is_some() {
            return;
        }
        let Poll::Ready(Some(event)) = self.poll_event(context) else { return };
        let is_plain_end = matches!(&event, Event::Finished(finished) if matches!(finished.reason,
            FinishReason::EndOfSequence | FinishReason::StopToken(_) | FinishReason::Length));
        if !is_plain_end {
            self.ahead = Some(event);
        } else if let Some(Ok(end)) = self.take(event) {
            piece.append(end);
        }
    }

    fn take(&mut self, event: Event) -> Option<Result<Piece, ApiError>> {
        self.meter.watch(&event);
        match self.choice.push(event) {
            Ok(None) => None,
            Ok(Some(piece)) => {
                if let Some(end) = &piece.end {
                    let ending = match end.finish {
                        WireFinishReason::Stop => Ending::Stop,
                        WireFinishReason::Length => Ending::Length,
                    };
                    self.meter.end(ending, ending.name());
                    self.events = None;
                }
                Some(Ok(piece))
            }
            Err(error) => {
                let ending = match error {
                    ApiError::Engine(_) => Ending::Error,
                    _ => Ending::Abort,
                };
                self.meter.end(ending, error.code().unwrap_or("error"));
                self.events = None;
                Some(Err(error))
            }
        }
    }
}

impl Stream for Sequence {
    type Item = Progress;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Progress>> {
        let this = self.get_mut();
        loop {
            let Some(event) = ready!(this.poll_event(context)) else { return Poll::Ready(None) };
            if let Some(mut piece) = this.take(event) {
                this.append_end(&mut piece, context);
                let (index, generated, cached) = (this.index, this.choice.generated(), this.meter.cached);
                return Poll::Ready(Some(Progress { index, generated, cached, piece }));
            }
        }
    }
}

impl Meter {
    fn watch(&mut self, event: &Event) {
        match event {
            Event::Scheduled { at, cached_tokens } => {
                self.life.scheduled = Some(*at);
                self.cached = *cached_tokens;
            }
            Event::Token(_) => {
                let now = Instant::now();
                match self.life.last_token {
                    None => {
                        self.life.first_token = Some(now);
                        self.metrics.first_token(now.saturating_duration_since(self.life.arrived));
                    }
                    Some(last) => self.metrics.token_gap(now.saturating_duration_since(last)),
                }
                self.life.last_token = Some(now);
                self.life.generated_tokens += 1;
            }
            Event::Finished(finished) => {
                self.life.queued = Some(finished.timings.queued);
                self.life.first_token = finished.timings.first_token.or(self.life.first_token);
            }
            Event::PromptLogprobs(_) | Event::Failed(_) => {}
        }
    }

    fn end(&mut self, ending: Ending, reason: &str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.metrics.sequence(&self.life, ending);
        self.record.sequence(self.life.generated_tokens, self.cached, self.life.first_token, reason);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // Nobody waited for the end: the client left, or another sequence of the same request failed.
        self.end(Ending::Abort, DISCONNECTED);
    }
}
