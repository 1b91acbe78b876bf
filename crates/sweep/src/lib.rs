//! Many configurations of servers, each started, measured and stopped; what fails is a result like any other.
//!
//! In reading order: [`Matrix`] is the file a user writes, [`Configuration`] one point of it, [`server`] a started server's
//! life, [`startup`] what its log tells, [`failure`] why it failed, [`Workload`] what is asked of it, [`Folder`] what is
//! kept and found again, [`sweep`] the walk over all of it, [`table`] the results in rows, [`proposal`] the two
//! configurations that follow from them, [`tune`] a search that drops the worse half at each round.
#![forbid(unsafe_code)]

mod configuration;
pub mod failure;
mod folder;
mod guard;
mod interleave;
mod matrix;
mod probe;
pub mod proposal;
pub mod server;
pub mod startup;
mod sweep;
pub mod table;
pub mod tune;
mod workload;

pub use configuration::{Configuration, Launch, LaunchError};
pub use folder::{Cell, CellOutcome, Folder, FolderError, StartOutcome, Started};
pub use interleave::{InterleaveError, Side, Source, Turns, interleave};
pub use matrix::{Matrix, MatrixError, ServerPlan};
pub use sweep::{Event, Options, SweepError, sweep};
pub use workload::{Destination, Limits, Workload, WorkloadError};
