//! The walk over a matrix: each configuration started, warmed up, measured under every workload, stopped.

use crate::{
    configuration::Configuration,
    failure::{FailureKind, ServerFailure},
    folder::{Cell, Folder, FolderError, Started},
    matrix::{Matrix, MatrixError},
    server::{Ready, Server, StartError, free_port},
    workload::{Destination, Workload},
};
use powertrain_load::{
    Event as BenchEvent, Stop, bench, events::EventsFile, files::events_path, http::Url, result::RunResult,
};
use std::{
    io,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Free ports that are tried after the first.
const PORT_TRIES: u32 = 10;
/// Time between two looks at whether a measured server still runs.
const WATCH: Duration = Duration::from_millis(50);

/// How a sweep is walked.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Start again what failed before.
    pub retry_failed: bool,
    /// Measure again what was measured under another matrix.
    pub redo_changed: bool,
    /// The command line that results keep.
    pub command: Vec<String>,
}

/// What a sweep tells while it goes on.
pub enum Event<'a> {
    /// A server is started.
    Starting {
        /// Which.
        configuration: &'a Configuration,
        /// Its place, counted from 1.
        place: usize,
        /// Of so many.
        of: usize,
        /// The repeat, counted from 1.
        repeat: u32,
    },
    /// It is ready.
    Ready(&'a Ready),
    /// It is not, or a cell came to nothing.
    Failed(&'a ServerFailure),
    /// A cell begins.
    Cell(&'a Cell<'a>),
    /// What the run tells.
    Bench(BenchEvent<'a>),
    /// So many cells were found finished.
    Resumed(usize),
}

/// Why a sweep cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The matrix.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// This machine.
    #[error("no free port or file: {0}")]
    Machine(#[from] io::Error),
    /// The environment.
    #[error("server `{server}`: the environment has no {variable}, which holds its key (api_key_env)")]
    NoKey {
        /// Which server.
        server: String,
        /// Which variable.
        variable: String,
    },
    /// An address.
    #[error("server `{server}`: {error}")]
    Url {
        /// Which server.
        server: String,
        /// Why.
        error: powertrain_load::http::UrlError,
    },
}

/// Measures what is not yet in the folder. Ends early when `stop` is requested; what is finished by then is kept, and the
/// next call goes on with the rest. Repeats go to and fro over the configurations, so that a drift hits all alike.
///
/// # Errors
/// When folder or matrix cannot be used. A server that fails is a result.
pub fn sweep(
    matrix: &Matrix,
    folder: &Folder,
    options: &Options,
    stop: &Stop,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<(), SweepError> {
    let configurations = matrix.configurations()?;
    let all: Vec<Cell<'_>> = (0..matrix.repeats).flat_map(|repeat| cells_of(matrix, &configurations, repeat)).collect();
    if !options.redo_changed {
        folder.refuse_changed(all.iter().copied())?;
    }
    let mut finished = 0;
    for cell in &all {
        finished += usize::from(folder.cell(cell)?.is_some());
    }
    if finished > 0 {
        tell(Event::Resumed(finished));
    }
    for repeat in 0..matrix.repeats {
        let mut order: Vec<usize> = (0..configurations.len()).collect();
        if repeat % 2 == 1 {
            order.reverse();
        }
        for place in order {
            if stop.is_requested() {
                return Ok(());
            }
            let configuration = &configurations[place];
            let mut pending = Vec::new();
            for workload in &matrix.workload {
                let cell = Cell { configuration, workload, limits: matrix.objectives.as_ref(), repeat };
                let kept = folder.cell(&cell)?;
                if kept.is_none_or(|kept| options.retry_failed && kept.failure.is_some()) {
                    pending.push(cell);
                }
            }
            // What could not start once is not started for every repeat.
            let failed =
                (0..=repeat).map(|repeat| folder.start(configuration, repeat)).collect::<Result<Vec<_>, _>>()?;
            let failed = failed.iter().flatten().any(|start| matches!(start.started, Started::Failed(_)));
            if pending.is_empty() || (failed && !options.retry_failed) {
                continue;
            }
            tell(Event::Starting { configuration, place: place + 1, of: configurations.len(), repeat: repeat + 1 });
            let run = ConfigurationRun { matrix, folder, options, stop, configuration, repeat };
            run.measure(&pending, tell)?;
        }
    }
    Ok(())
}

fn cells_of<'a>(
    matrix: &'a Matrix,
    configurations: &'a [Configuration],
    repeat: u32,
) -> impl Iterator<Item = Cell<'a>> {
    configurations.iter().flat_map(move |configuration| {
        let limits = matrix.objectives.as_ref();
        matrix.workload.iter().map(move |workload| Cell { configuration, workload, limits, repeat })
    })
}

/// One configuration's turn.
struct ConfigurationRun<'a> {
    matrix: &'a Matrix,
    folder: &'a Folder,
    options: &'a Options,
    stop: &'a Stop,
    configuration: &'a Configuration,
    repeat: u32,
}

impl ConfigurationRun<'_> {
    fn measure(&self, pending: &[Cell<'_>], tell: &mut dyn FnMut(Event<'_>)) -> Result<(), SweepError> {
        let log = self.folder.log(self.configuration, self.repeat)?;
        let (mut server, ready) = match start(self.configuration, &log, self.stop)? {
            Ok(started) => started,
            Err(StartError::Stopped) => return Ok(()),
            Err(StartError::Failed(failure)) => {
                tell(Event::Failed(&failure));
                return self.keep_start(Started::Failed(failure));
            }
        };
        tell(Event::Ready(&ready));
        self.keep_start(Started::Ready { ready_s: ready.after.as_secs_f64(), startup: ready.startup })?;
        let mut destination = destination(self.configuration, server.url())?;
        destination.command.clone_from(&self.options.command);
        if self.matrix.warmup_requests > 0 {
            let warming = self.matrix.workload[0].warming_up(self.matrix.warmup_requests);
            // What is wrong here shows again when it is measured.
            _ = run(&mut server, &warming, &destination, self, None, &mut |_| {});
        }
        for cell in pending {
            if self.stop.is_requested() || server.ended().is_some() {
                break;
            }
            tell(Event::Cell(cell));
            let path = self.folder.begin_cell(cell)?;
            let (result, failure) = match run(&mut server, cell.workload, &destination, self, Some(&path), tell) {
                Ok(result) => (Some(result), server.ended().map(|status| server.died(status))),
                Err(reason) => (None, Some(server.unusable(reason))),
            };
            if self.stop.is_requested() {
                break;
            }
            if let Some(failure) = &failure {
                tell(Event::Failed(failure));
            }
            self.folder.finish_cell(cell, result.as_ref(), failure)?;
        }
        if !self.stop.is_requested()
            && let Some(status) = server.ended()
        {
            // The cells that a dead server left get its end as their reason.
            for cell in pending {
                if self.folder.cell(cell)?.is_none() {
                    self.folder.finish_cell(cell, None, Some(server.died(status)))?;
                }
            }
        }
        if let Some(left) = server.stop() {
            tell(Event::Bench(BenchEvent::Note(left)));
        }
        Ok(())
    }

    fn keep_start(&self, started: Started) -> Result<(), SweepError> {
        let port = self.configuration.plan.port.unwrap_or(8000);
        Ok(self.folder.keep_start(self.configuration, self.repeat, self.configuration.shell_line(port), started)?)
    }
}

/// Starts a configuration and waits for it.
pub(crate) fn start(
    configuration: &Configuration,
    log: &Path,
    stop: &Stop,
) -> Result<Result<(Server, Ready), StartError>, SweepError> {
    let mut tries = 0;
    let mut server = loop {
        let port = match configuration.plan.port {
            Some(port) => port,
            None => free_port()?,
        };
        let launch = configuration.launch(port);
        let url: Result<Url, _> = launch.url.parse();
        url.map_err(|error| SweepError::Url { server: configuration.server.clone(), error })?;
        match Server::start(launch, key(configuration)?, log) {
            Ok(server) => break server,
            // A port that was free a moment ago: somebody's connection has it now.
            Err(failure)
                if failure.kind == FailureKind::PortTaken
                    && configuration.plan.port.is_none()
                    && tries < PORT_TRIES =>
            {
                tries += 1;
            }
            Err(failure) => return Ok(Err(StartError::Failed(failure))),
        }
    };
    Ok(match server.wait_ready(stop) {
        Ok(ready) => Ok((server, ready)),
        Err(error) => Err(error),
    })
}

/// Where a configuration's requests go.
pub(crate) fn destination(configuration: &Configuration, url: &str) -> Result<Destination, SweepError> {
    let url = url.parse().map_err(|error| SweepError::Url { server: configuration.server.clone(), error })?;
    let key = key(configuration)?.map(|key| ("authorization".to_owned(), format!("Bearer {key}")));
    Ok(Destination {
        url,
        model: configuration.plan.model.clone(),
        headers: key.into_iter().collect(),
        config: configuration.name.clone(),
        command: Vec::new(),
    })
}

fn key(configuration: &Configuration) -> Result<Option<String>, SweepError> {
    let Some(variable) = &configuration.plan.api_key_env else { return Ok(None) };
    let missing = || SweepError::NoKey { server: configuration.server.clone(), variable: variable.clone() };
    std::env::var(variable).map(Some).map_err(|_| missing())
}

/// Runs a workload; ends it early when the server ends or the user wishes. With `path`, raw events are kept beside it.
fn run(
    server: &mut Server,
    workload: &Workload,
    destination: &Destination,
    of: &ConfigurationRun<'_>,
    path: Option<&Path>,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<RunResult, String> {
    let plan = workload.plan(destination, of.matrix.objectives.as_ref(), seed());
    measured(server, &plan, of.stop, path, &mut |event| tell(Event::Bench(event)))
}

/// Runs a plan against a server that is watched.
pub(crate) fn measured(
    server: &mut Server,
    plan: &powertrain_load::Plan,
    stop: &Stop,
    path: Option<&Path>,
    tell: &mut dyn FnMut(BenchEvent<'_>),
) -> Result<RunResult, String> {
    let (end, done) = (Stop::new(), AtomicBool::new(false));
    let server = Mutex::new(server);
    let mut events = path.map(|path| EventsFile::create(&events_path(path))).transpose().map_err(|e| e.to_string())?;
    let mut written = Ok(());
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let ended = server.lock().unwrap_or_else(PoisonError::into_inner).ended().is_some();
                if ended || stop.is_requested() {
                    end.request();
                    return;
                }
                thread::sleep(WATCH);
            }
        });
        let mut level = 0;
        let result = bench(plan, &end, |event| {
            if let (BenchEvent::LevelEnded { records, .. }, Some(events)) = (&event, &mut events) {
                let now = events.write_level(level, records);
                written = std::mem::replace(&mut written, Ok(())).and(now);
                level += 1;
            }
            tell(event);
        });
        done.store(true, Ordering::Relaxed);
        result
    });
    let mut result = result.map_err(|error| error.to_string())?;
    if let (Some(path), Some(events)) = (path, events) {
        written.and_then(|()| events.finish()).map_err(|error| format!("cannot write the raw events: {error}"))?;
        result.events_file = events_path(path).file_name().map(|name| name.to_string_lossy().into_owned());
    }
    Ok(result)
}

/// A seed no earlier run had, lest a server find the last run's prompts in its cache.
pub(crate) fn seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64 % 1_000_000_000)
}
