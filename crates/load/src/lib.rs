//! Load generation and measurement of any OpenAI-compatible server.
//!
//! In reading order: [`RequestRecord`] is what a request leaves behind, [`definitions`] what is computed from it,
//! [`statistics`] how many of them become numbers with intervals. [`schedule`] and [`work`] say when requests are due and
//! what they ask, [`http`], [`openai`] and [`exchange`] send one, [`run_level`] sends all of a level, and [`Summary`]
//! is what a level comes to. The client observes itself while it runs, and its results say when it was the limit.
#![forbid(unsafe_code)]

mod bench;
mod capacity;
mod client_health;
mod clock;
pub mod csv;
pub mod definitions;
pub mod events;
pub mod exchange;
pub mod files;
mod gpu;
pub mod http;
mod live;
mod machine;
mod observe;
pub mod openai;
mod plan;
mod priority;
mod prompting;
pub mod proof;
mod random;
mod record;
pub mod result;
mod rounds;
mod run;
pub mod schedule;
mod session;
pub mod stages;
mod stages_of;
pub mod statistics;
mod stop;
mod subject;
mod summary;
pub mod table;
mod telemetry;
mod waits;
pub mod work;

pub use bench::bench;
pub use capacity::{CapacityResult, SearchPlan, Trial, Unit};
pub use client_health::ClientHealth;
pub use clock::Clock;
pub use gpu::{GpuDevice, GpuSummary, Gpus};
pub use live::{Live, LiveCounts};
pub use machine::Machine;
pub use observe::{CpuTimes, ThreadObservation};
pub use plan::{BenchError, Event, Plan, PromptPlan};
pub use priority::{CLIENTS_MANY, ClientThreads, Priority};
pub use random::Random;
pub use record::{Chunk, Failure, FailureClass, Nanos, Outcome, RequestRecord, Usage};
pub use run::{CpuUse, Level, LevelRun, run_level};
pub use stop::Stop;
pub use subject::{Metrics, MetricsChange, Subject};
pub use summary::*;
pub use telemetry::{GaugeSummary, Sample};
