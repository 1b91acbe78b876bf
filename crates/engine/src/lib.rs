//! The engine: one thread that owns scheduler and executor and turns requests into streams of events.
#![forbid(unsafe_code)]

mod request;

pub use request::{Event, Failure, FinishReason, Finished, Request, StopConditions, SubmitError, Timings};
