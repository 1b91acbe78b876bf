//! What can go wrong before there is a report.

use crate::document::known_formats;
use std::io;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{path}: cannot be read: {error}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// A file is larger than any result.
    #[error("{path}: more than the {most} bytes that a result may have; give the result, not its raw events")]
    TooLarge {
        /// The file.
        path: String,
        /// The limit.
        most: u64,
    },
    /// A file is no JSON.
    #[error("{path}: not JSON: {error}")]
    NotJson {
        /// The file.
        path: String,
        /// Where and why.
        error: serde_json::Error,
    },
    /// A file is of no kind that a report knows.
    #[error("{path}: {found}; a report reads {}", known_formats())]
    UnknownFormat {
        /// The file.
        path: String,
        /// What it says of itself.
        found: String,
    },
    /// The scenario is not understood.
    #[error("{path}: {reason}")]
    Scenario {
        /// The file.
        path: String,
        /// What, where.
        reason: String,
    },
    /// A side has no measurement of speed.
    #[error("--{side} has no result of `powertrain bench`; give at least one")]
    NoRun {
        /// `before` or `after`.
        side: &'static str,
    },
    /// A run was given twice.
    #[error(
        "--{side}: {path} and {other} are one run (it began at {began_at}); a copy is no repeat, give each run once"
    )]
    SameRun {
        /// `before` or `after`.
        side: &'static str,
        /// The first file.
        path: String,
        /// The second.
        other: String,
        /// When the run began, as both say.
        began_at: String,
    },
    /// The comparison is of other runs.
    #[error(
        "{path}: it compares {compared}, and given are {given}: {reason}; give the comparison of these runs, or none"
    )]
    OtherComparison {
        /// The file.
        path: String,
        /// What it says of its sides.
        compared: String,
        /// The files of `--before` and `--after`.
        given: String,
        /// What does not fit.
        reason: String,
    },
    /// What was given as a comparison is none.
    #[error("{path}: not a result of `powertrain compare --json`, which --comparison takes")]
    NoComparison {
        /// The file.
        path: String,
    },
    /// What was given as a sweep is none.
    #[error("{path}: not the sweep.json of `powertrain sweep`, which --sweep takes")]
    NoSweep {
        /// The file.
        path: String,
    },
    /// A template does not render.
    #[error("the template {name} does not render: {error:#}")]
    Template {
        /// Which.
        name: String,
        /// Where and why.
        error: minijinja::Error,
    },
    /// A file cannot be written.
    #[error("{path}: cannot be written: {error}")]
    Unwritable {
        /// The file.
        path: String,
        /// Why.
        error: io::Error,
    },
}
