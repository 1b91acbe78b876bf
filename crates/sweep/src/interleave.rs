//! Two servers measured in turns, A B B A A B …, so that what drifts hits both alike.

use crate::{
    configuration::Configuration,
    failure::ServerFailure,
    matrix::{Matrix, MatrixError},
    server::StartError,
    sweep::{Event, SweepError, destination, measured, seed, start},
    workload::{Destination, Limits, Workload},
};
use powertrain_load::{
    BenchError, Stop, bench,
    events::EventsFile,
    files::{events_path, series_path, write_result},
    http::Url,
    result::RunResult,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// How the name of a server's log ends.
const SERVER_LOG: &str = "server.log";

/// Where a side's runs come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A server that runs.
    Running(Destination),
    /// One that is started for each of its runs.
    Started(Box<Configuration>),
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What the other is compared with.
    A,
    /// The other.
    B,
}

/// Why runs in turn came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum InterleaveError {
    /// A server could not be started or measured.
    #[error("{}: {}", .0.name(), .1.reason)]
    Failed(Side, ServerFailure),
    /// A run could not begin.
    #[error("{}: {error}", .side.name())]
    Bench {
        /// Whose.
        side: Side,
        /// Why.
        error: BenchError,
    },
    /// A configuration.
    #[error(transparent)]
    Sweep(#[from] SweepError),
    /// A matrix.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    /// More than one configuration.
    #[error("{}: has {count} configurations; give a file with one, as sweep's latency.toml", .path.display())]
    Several {
        /// Which file.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// A folder with results.
    #[error("{}: has results already; give an empty folder with --output", .0.display())]
    Full(PathBuf),
    /// A file.
    #[error("{}: {error}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl Side {
    /// `A` or `B`.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }

    /// Its results' folder.
    pub fn folder(self, of: &Path) -> PathBuf {
        of.join(self.name().to_lowercase())
    }
}

impl Source {
    /// A server at this address; the label is the result's.
    pub fn running(url: Url, model: Option<String>, headers: Vec<(String, String)>) -> Self {
        let config = url.to_string();
        Self::Running(Destination { url, model, headers, config, command: Vec::new() })
    }

    /// The one configuration of a matrix, and its first workload.
    ///
    /// # Errors
    /// When the file is no matrix or has several configurations.
    pub fn open(path: &Path) -> Result<(Self, Workload, Option<Limits>), InterleaveError> {
        let matrix = Matrix::open(path)?;
        let mut configurations = matrix.configurations()?;
        if configurations.len() != 1 {
            return Err(InterleaveError::Several { path: path.to_owned(), count: configurations.len() });
        }
        Ok((Self::Started(Box::new(configurations.remove(0))), matrix.workload[0].clone(), matrix.objectives))
    }
}

/// What runs in turns.
#[derive(Clone, Debug)]
pub struct Turns<'a> {
    /// What B is compared with.
    pub a: &'a Source,
    /// The other.
    pub b: &'a Source,
    /// What is asked of both.
    pub workload: &'a Workload,
    /// What makes a request good.
    pub limits: Option<&'a Limits>,
    /// Runs of each.
    pub pairs: u32,
    /// Requests before each run.
    pub warmup_requests: u32,
    /// The command line that results keep.
    pub command: &'a [String],
}

/// Runs them; results lie in `folder/a` and `folder/b` afterwards. Stopped early, whole pairs are kept.
///
/// # Errors
/// When a server cannot be started or measured, or a file cannot be written.
pub fn interleave(
    turns: &Turns<'_>,
    folder: &Path,
    stop: &Stop,
    tell: &mut dyn FnMut(Side, Event<'_>),
) -> Result<u32, InterleaveError> {
    for side in [Side::A, Side::B] {
        let path = side.folder(folder);
        let file = |error| InterleaveError::File { path: path.clone(), error };
        fs::create_dir_all(&path).map_err(file)?;
        for entry in fs::read_dir(&path).map_err(file)? {
            // Logs of servers stay where a run failed, for whoever looks why.
            let name = entry.map_err(file)?.file_name();
            if !name.to_string_lossy().ends_with(SERVER_LOG) {
                return Err(InterleaveError::Full(path));
            }
        }
    }
    for pair in 0..turns.pairs {
        let order = if pair % 2 == 0 { [Side::A, Side::B] } else { [Side::B, Side::A] };
        let mut results = Vec::new();
        for side in order {
            let path = side.folder(folder).join(format!("{pair}.json"));
            let result = turns.one(side, &path, stop, tell);
            if stop.is_requested() || result.is_err() {
                // Nothing stays of a pair that is not whole: the folder can be used again.
                results.iter().map(|(path, _)| path).chain([&path]).for_each(|path| discard(path));
                // A run that was to stop may end with an error for that.
                return if stop.is_requested() { Ok(pair) } else { result.map(|_| pair) };
            }
            results.push((path, result?));
        }
        // A pair is kept whole or not at all.
        for (path, result) in results {
            write_result(&path, &result).map_err(|error| InterleaveError::File { path, error })?;
        }
    }
    Ok(turns.pairs)
}

/// Removes what a run left beside a result that is not written.
fn discard(result: &Path) {
    // What cannot be removed is in nobody's way but this folder's next run's, which says so.
    [events_path(result), series_path(result)].iter().for_each(|path| _ = fs::remove_file(path));
}

impl Turns<'_> {
    fn one(
        &self,
        side: Side,
        path: &Path,
        stop: &Stop,
        tell: &mut dyn FnMut(Side, Event<'_>),
    ) -> Result<RunResult, InterleaveError> {
        let plan = |workload: &Workload, to: &Destination| {
            let to = Destination { command: self.command.to_vec(), ..to.clone() };
            workload.plan(&to, self.limits, seed())
        };
        let warming = self.workload.warming_up(self.warmup_requests);
        let warms = self.warmup_requests > 0;
        let source = if side == Side::A { self.a } else { self.b };
        match source {
            Source::Running(to) => {
                let failed = |error| InterleaveError::Bench { side, error };
                if warms {
                    bench(&plan(&warming, to), stop, |_| {}).map_err(failed)?;
                }
                let file = |error| InterleaveError::File { path: events_path(path), error };
                let mut events = EventsFile::create(&events_path(path)).map_err(file)?;
                let (mut level, mut written) = (0, Ok(()));
                let result = bench(&plan(self.workload, to), stop, |event| {
                    if let powertrain_load::Event::LevelEnded { records, .. } = &event {
                        let now = events.write_level(level, records);
                        written = std::mem::replace(&mut written, Ok(())).and(now);
                        level += 1;
                    }
                    tell(side, Event::Bench(event));
                });
                let mut result = result.map_err(failed)?;
                written.and_then(|()| events.finish()).map_err(file)?;
                result.events_file = events_path(path).file_name().map(|name| name.to_string_lossy().into_owned());
                Ok(result)
            }
            Source::Started(configuration) => {
                let log = path.with_extension(SERVER_LOG);
                let (mut server, ready) = match start(configuration, &log, stop)? {
                    Ok(started) => started,
                    Err(StartError::Failed(failure)) => return Err(InterleaveError::Failed(side, failure)),
                    Err(StartError::Stopped) => {
                        let reason = "given up before it was ready".to_owned();
                        let kind = crate::failure::FailureKind::Unusable;
                        return Err(InterleaveError::Failed(side, ServerFailure::new(kind, reason, "")));
                    }
                };
                tell(side, Event::Ready(&ready));
                let to = destination(configuration, server.url())?;
                if warms {
                    _ = measured(&mut server, &plan(&warming, &to), stop, None, &mut |_| {});
                }
                let told = &mut |event: powertrain_load::Event<'_>| tell(side, Event::Bench(event));
                let result = measured(&mut server, &plan(self.workload, &to), stop, Some(path), told);
                if let Some(status) = server.ended() {
                    return Err(InterleaveError::Failed(side, server.died(status)));
                }
                let result = result.map_err(|reason| InterleaveError::Failed(side, server.unusable(reason)))?;
                if let Some(left) = server.stop() {
                    tell(side, Event::Bench(powertrain_load::Event::Note(left)));
                }
                Ok(result)
            }
        }
    }
}
