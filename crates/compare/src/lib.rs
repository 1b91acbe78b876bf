//! Two sides of stored results, and whether they differ.
//!
//! In reading order: [`Side`] is what was stored of one side (a file of a run, or a folder of repeats), [`Metric`] what can
//! be compared, [`sample`] the values of one side and what is computed from them, [`interval`] how much of a ratio is
//! chance, [`Comparison`] the verdicts, [`differences`] what else was not alike, [`Gate`] a limit for CI, [`table`] the
//! text for people. Nothing here measures: it reads what `load` wrote.
#![forbid(unsafe_code)]

mod comparison;
mod differences;
mod estimate;
mod gate;
pub mod interval;
mod level;
mod metric;
pub mod sample;
mod side;
mod student;
pub mod table;

pub use comparison::{Basis, Comparison, FORMAT, Failed, LevelComparison, MetricComparison, Settings, Verdict};
pub use differences::{Difference, differences};
pub use estimate::{mean_interval, share_interval};
pub use gate::{Gate, GateError, GateOutcome, GateResult};
pub use interval::Interval;
pub use metric::{Metric, Statistic};
pub use side::{Run, Side, SideError};
