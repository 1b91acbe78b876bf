//! The server over real sockets, on an engine whose executor is a mock: it generates printable text that
//! [`powertrain_step::mock::expected_tokens`] foretells, so every answer is compared with what it must be.

mod chat;
mod client;
mod completions;
mod crowd;
mod errors;
mod lifecycle;
mod metrics;
mod server;
