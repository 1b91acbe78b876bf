//! The engine: one thread that owns scheduler and executor and turns requests into streams of events.
//!
//! ```text
//!   any task or thread                 the engine thread                         the executor
//!   Handle::submit ── commands ──>  Scheduler::plan ── StepPlan ──>  launch
//!   EventStream    <── events ────  Scheduler::complete <── StepResult ──  collect
//!   Handle::snapshot, health <── atomics
//! ```
//!
//! Invariants:
//! - All state belongs to the engine thread but the table of clients, which it locks for single sends and never while it is in the executor. It
//!   waits for nobody but the executor while it has work, and for a command when it has none. A slow client cannot hold it up: a request's
//!   queue holds whatever it can yield.
//! - Every accepted request's stream ends with exactly one [`Event::Finished`] or [`Event::Failed`], also when the
//!   executor fails, panics, is lost or never comes back. Dropping a stream earlier cancels the request.
//! - An engine dies once, of one of three causes: a panic, [`powertrain_step::ExecutorLost`], a step beyond its limit. From then on every request
//!   fails with the reason, [`Health::Dead`] has it too, and the executor is not touched again, not even to drop it.
//! - Requests waiting are bounded by `max_queue`, commands not yet read by [`COMMANDS_MAX`].
#![forbid(unsafe_code)]

mod clients;
mod config;
mod deadlines;
mod drain_rate;
mod engine;
mod handle;
mod health;
mod request;
mod snapshot;
mod stream;
mod watchdog;
mod worker;

pub use config::{EngineConfig, StartError};
pub use engine::{Drained, Engine};
pub use handle::{COMMANDS_MAX, Handle};
pub use health::Health;
pub use request::{Event, Failure, FinishReason, Finished, Request, StopConditions, SubmitError, Timings};
pub use snapshot::{RequestsEnded, Snapshot};
pub use stream::EventStream;
