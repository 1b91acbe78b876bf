//! Results to a case study: charts, tables, comparison, cost.
//!
//! In reading order: `figure.rs` (a number and where it comes from), `sentence.rs`, `format.rs`; what is read: `document.rs`
//! (a file), `scenario.rs` (the client), `metric.rs`, `run.rs` (a result), `events.rs` (its raw events), `side.rs` (several
//! runs); what follows: `change.rs` (before against after), `requirement.rs`, `sweet_spot.rs`, `telemetry.rs`, `configurations.rs`.
#![forbid(unsafe_code)]

pub mod analysis;
pub mod case_study;
pub mod change;
pub mod chart;
pub mod comparison;
pub mod configurations;
pub mod cost;
pub mod document;
pub mod drawings;
mod error;
pub mod events;
pub mod explore;
pub mod figure;
mod format;
pub mod index;
mod limits;
pub mod metric;
pub mod quality;
mod render;
pub mod requirement;
pub mod rules;
pub mod run;
mod same_work;
pub mod scenario;
pub mod sentence;
pub mod side;
pub mod sweet_spot;
pub mod telemetry;

pub use error::Error;
