//! One engine behind HTTP: the OpenAI API, probes, metrics, a chat page.
//!
//! Files in reading order: [`Server`] (`server.rs`: bind, serve, drain), `app.rs` (routes and what is around them: record,
//! keys, CORS), `routes/` (one file each), `generate.rs` (from a request to running sequences), `sequence.rs` and
//! `choice.rs` (events to text), `event_body.rs` (text to server-sent events), `metrics.rs`, `record.rs` (ids and the log).
//!
//! Invariants
//! - Dropping a response, because the client is gone, drops its sequences, and that cancels them in the engine.
//! - Every sequence is counted and logged once, however it ends.
//! - Every answer that is no success has OpenAI's error shape, also those of routing and of broken bodies.
#![forbid(unsafe_code)]

mod app;
mod auth;
mod body;
mod choice;
mod config;
mod connections;
mod event_body;
mod generate;
mod log;
mod logprobs;
mod metrics;
mod model;
mod pool;
mod prompt;
mod record;
mod reply;
mod routes;
mod sequence;
mod server;
mod state;
mod tally;
mod write_timeout;

pub use config::ServerConfig;
pub use connections::BindError;
pub use log::{LogFormat, init_logging};
pub use model::{EngineReport, LoadStage, MemoryReport, ModelFacts, SamplingDefaults, ServedModel};
pub use server::Server;
