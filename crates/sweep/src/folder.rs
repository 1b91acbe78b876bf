//! What a sweep keeps, so that it can go on where it was interrupted.
//!
//! ```text
//! FOLDER/SERVER/PARAMETERS/start.R.json          how the configuration's start R went
//!                          server.R.log          what it wrote
//!                          WORKLOAD/R.json       the run's result, as `bench --output` writes it
//!                          WORKLOAD/R.cell.json  written last: the cell is finished
//! ```
//!
//! Every file has its name only when it is whole. A finished file holds the definition it was measured under: another
//! definition is a changed matrix, and is refused rather than mixed.

use crate::{
    configuration::Configuration,
    failure::ServerFailure,
    startup::StartUp,
    workload::{Limits, Workload},
};
use powertrain_load::{files, result::RunResult};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The version of the small files.
const FORMAT: &str = "powertrain-sweep/1";
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Changed cells that an error names.
const NAMED_MAX: usize = 5;

/// A sweep's folder, locked while this lives.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// The lock goes with the file.
    _lock: File,
}

/// How a configuration's start went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartOutcome {
    format: String,
    definition: Value,
    /// The command as a shell takes it.
    pub command: String,
    /// Ready, or not.
    pub started: Started,
}

/// Ready, or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Started {
    /// It served.
    Ready {
        /// Seconds from its start.
        ready_s: f64,
        /// Memory in numbers.
        startup: StartUp,
    },
    /// It did not.
    Failed(ServerFailure),
}

/// How a cell ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellOutcome {
    format: String,
    definition: Value,
    /// Why it is no result; absent when it is one.
    pub failure: Option<ServerFailure>,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file.
    #[error("{}: {error}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file that is no file of a sweep.
    #[error("{}: {error}; delete it to measure again", .path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// Two at once.
    #[error("{}: another sweep runs in this folder; wait for it or give another with --output", .0.display())]
    Locked(PathBuf),
    /// Another matrix.
    #[error("{}: the matrix has changed since these were measured: {names}; measure them again with --redo-changed, or give \
             another folder with --output", .path.display())]
    Changed {
        /// Which folder.
        path: PathBuf,
        /// Which cells.
        names: String,
    },
}

impl Folder {
    /// Opens a folder, made where it is not there.
    ///
    /// # Errors
    /// When it cannot be made, or another sweep runs in it.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let file = |error| FolderError::File { path: path.to_owned(), error };
        fs::create_dir_all(path).map_err(file)?;
        let lock = File::create(path.join("sweep.lock")).map_err(file)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(FolderError::Locked(path.to_owned())),
            Err(fs::TryLockError::Error(error)) => Err(file(error)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a start's output goes; the folder is made.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn log(&self, configuration: &Configuration, repeat: u32) -> Result<PathBuf, FolderError> {
        let folder = self.path.join(&configuration.name);
        fs::create_dir_all(&folder).map_err(|error| FolderError::File { path: folder.clone(), error })?;
        Ok(folder.join(format!("server.{repeat}.log")))
    }

    /// How a start went, if it was kept and is of this definition.
    ///
    /// # Errors
    /// When its file is damaged.
    pub fn start(&self, configuration: &Configuration, repeat: u32) -> Result<Option<StartOutcome>, FolderError> {
        let found: Option<StartOutcome> = read(&self.start_path(configuration, repeat))?;
        Ok(found.filter(|found| found.definition == configuration.definition()))
    }

    /// Keeps how a start went.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_start(
        &self,
        configuration: &Configuration,
        repeat: u32,
        command: String,
        started: Started,
    ) -> Result<(), FolderError> {
        let outcome =
            StartOutcome { format: FORMAT.to_owned(), definition: configuration.definition(), command, started };
        write(&self.start_path(configuration, repeat), &outcome)
    }

    /// How a cell ended, if it did and is of this definition.
    ///
    /// # Errors
    /// When its file is damaged.
    pub fn cell(&self, cell: &Cell<'_>) -> Result<Option<CellOutcome>, FolderError> {
        let found: Option<CellOutcome> = read(&self.cell_path(cell))?;
        Ok(found.filter(|found| found.definition == cell.definition()))
    }

    /// A finished cell's result.
    ///
    /// # Errors
    /// When its file is damaged.
    pub fn result(&self, cell: &Cell<'_>) -> Result<Option<RunResult>, FolderError> {
        read(&self.result_path(cell))
    }

    /// Where a cell's result goes; the folder is made.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn begin_cell(&self, cell: &Cell<'_>) -> Result<PathBuf, FolderError> {
        let path = self.result_path(cell);
        let folder = path.with_file_name("");
        fs::create_dir_all(&folder).map_err(|error| FolderError::File { path: folder, error })?;
        Ok(path)
    }

    /// Keeps a cell: its result, if it has one, then that it is finished.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish_cell(
        &self,
        cell: &Cell<'_>,
        result: Option<&RunResult>,
        failure: Option<ServerFailure>,
    ) -> Result<(), FolderError> {
        let path = self.begin_cell(cell)?;
        if let Some(result) = result {
            files::write_result(&path, result).map_err(|error| FolderError::File { path, error })?;
        }
        let outcome = CellOutcome { format: FORMAT.to_owned(), definition: cell.definition(), failure };
        write(&self.cell_path(cell), &outcome)
    }

    /// Refuses what was measured under another definition.
    ///
    /// # Errors
    /// When there is such, or a file is damaged.
    pub fn refuse_changed<'a>(&self, cells: impl Iterator<Item = Cell<'a>>) -> Result<(), FolderError> {
        let mut changed = Vec::new();
        for cell in cells {
            let found: Option<CellOutcome> = read(&self.cell_path(&cell))?;
            if found.is_some_and(|found| found.definition != cell.definition()) {
                changed.push(cell.name());
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        let more = changed.len().saturating_sub(NAMED_MAX);
        let mut names = changed[..changed.len().min(NAMED_MAX)].join("; ");
        if more > 0 {
            names.push_str(&format!("; and {more} more"));
        }
        Err(FolderError::Changed { path: self.path.clone(), names })
    }

    /// Writes a file of the whole sweep.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf, FolderError> {
        let path = self.path.join(name);
        write_whole(&path, text.as_bytes())?;
        Ok(path)
    }

    fn start_path(&self, configuration: &Configuration, repeat: u32) -> PathBuf {
        self.path.join(&configuration.name).join(format!("start.{repeat}.json"))
    }

    fn result_path(&self, cell: &Cell<'_>) -> PathBuf {
        self.path.join(&cell.configuration.name).join(&cell.workload.name).join(format!("{}.json", cell.repeat))
    }

    fn cell_path(&self, cell: &Cell<'_>) -> PathBuf {
        self.result_path(cell).with_extension("cell.json")
    }
}

/// One run: a configuration under a workload, for the so-manyth time.
#[derive(Clone, Copy, Debug)]
pub struct Cell<'a> {
    /// The server.
    pub configuration: &'a Configuration,
    /// What is asked of it.
    pub workload: &'a Workload,
    /// What makes a request good.
    pub limits: Option<&'a Limits>,
    /// Counted from 0.
    pub repeat: u32,
}

impl Cell<'_> {
    /// In words.
    pub fn name(&self) -> String {
        format!("{} {} ({})", self.configuration.name, self.workload.name, self.repeat + 1)
    }

    fn definition(&self) -> Value {
        json!({"configuration": self.configuration.definition(), "workload": self.workload, "objectives": self.limits})
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FolderError> {
    match files::read_regular(path, FILE_BYTES_MAX) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| FolderError::Damaged { path: path.to_owned(), error: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FolderError::File { path: path.to_owned(), error }),
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), FolderError> {
    let damaged = |error: serde_json::Error| FolderError::Damaged { path: path.to_owned(), error: error.to_string() };
    let mut text = serde_json::to_vec_pretty(value).map_err(damaged)?;
    text.push(b'\n');
    write_whole(path, &text)
}

/// A file under its name is whole.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), FolderError> {
    let partial = path.with_extension("partial");
    let done = File::create(&partial)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&partial, path));
    done.map_err(|error| FolderError::File { path: path.to_owned(), error })
}
