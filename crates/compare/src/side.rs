//! What was stored of one side: a run's file, or a folder of runs.

use powertrain_load::{
    RequestRecord,
    events::{EventsError, read_events},
    files::read_regular,
    result::{FORMAT, RunResult},
};
use serde_json::Value;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Most runs of a side.
const RUNS_MAX: usize = 1000;
/// Largest result that is read.
const RESULT_BYTES_MAX: u64 = 256 << 20;

/// One side: its runs in the order in which they began.
#[derive(Clone, Debug)]
pub struct Side {
    /// The file or folder.
    pub path: PathBuf,
    /// At least one.
    pub runs: Vec<Run>,
    /// Files that hold a run which another file holds too.
    pub repeated: Vec<PathBuf>,
}

/// One stored run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its file.
    pub path: PathBuf,
    /// What it says.
    pub result: RunResult,
    /// The same with whatever this version does not know.
    pub json: Value,
    /// The requests of each level, where the raw events are beside it.
    pub events: Option<Vec<Vec<RequestRecord>>>,
    /// Why raw events that the result names are not used.
    pub events_unused: Option<String>,
}

/// Why a side cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SideError {
    /// The file or folder.
    #[error("{}: {error}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Not what `bench --output` writes.
    #[error("{}: {reason}; give what `powertrain bench --output FILE` wrote", .path.display())]
    NoResult {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The raw events.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// An empty folder.
    #[error("{}: no file in it is the result of a run; give a folder of files that `powertrain bench --output FILE` wrote", .0.display())]
    Empty(PathBuf),
    /// Too full a folder.
    #[error("{}: more than {RUNS_MAX} runs; compare fewer", .0.display())]
    TooMany(PathBuf),
}

impl Side {
    /// Reads a file, or every result in a folder (not in folders below it; other files there are left alone).
    ///
    /// # Errors
    /// When nothing can be read, or a result or its raw events are damaged.
    pub fn open(path: &Path) -> Result<Self, SideError> {
        let read = |error| SideError::Read { path: path.to_owned(), error };
        let mut runs = Vec::new();
        if fs::metadata(path).map_err(read)?.is_dir() {
            for entry in fs::read_dir(path).map_err(read)? {
                let file = entry.map_err(read)?.path();
                let named = file.extension().is_some_and(|extension| extension == "json");
                if named && file.is_file() && is_result(&file)? {
                    runs.push(Run::open(&file)?);
                }
                if runs.len() > RUNS_MAX {
                    return Err(SideError::TooMany(path.to_owned()));
                }
            }
        } else {
            runs.push(Run::open(path)?);
        }
        if runs.is_empty() {
            return Err(SideError::Empty(path.to_owned()));
        }
        // Of equal form and in UTC, so that their order as text is their order in time.
        runs.sort_by(|a, b| a.result.began_at.cmp(&b.result.began_at));
        // A copy would count as a repeat that never varies.
        let mut repeated = Vec::new();
        let mut place = 1;
        while place < runs.len() {
            if runs[place].json == runs[place - 1].json {
                repeated.push(runs.remove(place).path);
            } else {
                place += 1;
            }
        }
        Ok(Self { path: path.to_owned(), runs, repeated })
    }
}

impl Run {
    /// Reads a result and, where they are, its raw events.
    ///
    /// # Errors
    /// When the file is no result, or the events are damaged. Events that are named but absent are no error.
    pub fn open(path: &Path) -> Result<Self, SideError> {
        let no_result = |reason: String| SideError::NoResult { path: path.to_owned(), reason };
        let json = read_json(path)?.map_err(|error| no_result(error.to_string()))?;
        let format = json.get("format").and_then(Value::as_str).unwrap_or("none");
        if format != FORMAT {
            return Err(no_result(format!("its format is {format}, not {FORMAT}")));
        }
        let result: RunResult = serde_json::from_value(json.clone()).map_err(|error| no_result(error.to_string()))?;
        // A name, not a path: a result says nothing about files elsewhere.
        let events =
            result.events_file.as_ref().and_then(|name| Some(path.with_file_name(Path::new(name).file_name()?)));
        let (events, events_unused) = match events {
            None => (None, None),
            Some(file) if !file.exists() => {
                (None, Some(format!("its raw events, {}, are not beside it", file.display())))
            }
            Some(file) => match belonging(&result, read_events(&file)?) {
                Ok(events) => (Some(events), None),
                Err(why) => (None, Some(format!("{} is not of this run ({why})", file.display()))),
            },
        };
        Ok(Self { path: path.to_owned(), result, json, events, events_unused })
    }

    /// The requests of a level, if its raw events are there.
    pub(crate) fn requests(&self, level: usize) -> Option<&[RequestRecord]> {
        self.events.as_ref()?.get(level).map(Vec::as_slice)
    }
}

/// Raw events that hold as many requests of each level as the result counted.
fn belonging(result: &RunResult, events: Vec<Vec<RequestRecord>>) -> Result<Vec<Vec<RequestRecord>>, String> {
    for (number, level) in result.levels.iter().enumerate() {
        let Some(summary) = &level.summary else { continue };
        let found = events.get(number).map_or(0, |records| records.iter().filter(|record| !record.warmup).count());
        if found as u64 != summary.requests.sent {
            return Err(format!("{found} of {} requests in level {number}", summary.requests.sent));
        }
    }
    Ok(events)
}

fn is_result(path: &Path) -> Result<bool, SideError> {
    let json = read_json(path)?;
    Ok(json.is_ok_and(|json| json.get("format").is_some_and(|format| format == FORMAT)))
}

fn read_json(path: &Path) -> Result<serde_json::Result<Value>, SideError> {
    let read = |error| SideError::Read { path: path.to_owned(), error };
    Ok(serde_json::from_slice(&read_regular(path, RESULT_BYTES_MAX).map_err(read)?))
}
