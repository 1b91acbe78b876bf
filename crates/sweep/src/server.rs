//! A started server's life: in a process group of its own, its output in a file, ended with all its children.
//!
//! The group keeps Ctrl-C at the terminal from reaching the server before it was told to stop, and lets one signal reach
//! workers that it started.

use crate::{
    configuration::Launch,
    failure::{FailureKind, ServerFailure},
    probe::Probe,
    startup::StartUp,
};
use powertrain_load::Stop;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    net::TcpListener,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Time between two looks at a server that starts or ends.
const POLL: Duration = Duration::from_millis(100);
/// How much of a log's beginning and end is read: facts come early, failures late.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// The groups that run now, so that a program that must end at once leaves none behind.
static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// A started server. Dropping it ends it.
pub struct Server {
    child: Child,
    group: Pid,
    log: PathBuf,
    probe: Probe,
    launch: Launch,
    started: Instant,
    ended: Option<ExitStatus>,
}

/// What a server said when it was ready.
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    /// From its start.
    pub after: Duration,
    /// Memory in numbers.
    pub startup: StartUp,
}

/// Why a start came to nothing.
#[derive(Debug)]
pub enum StartError {
    /// The server's fault, or its configuration's.
    Failed(ServerFailure),
    /// The user ended the run.
    Stopped,
}

impl Server {
    /// Starts it; its output goes to `log`, which is written anew.
    ///
    /// # Errors
    /// When the program cannot be run or its port is taken.
    pub fn start(launch: Launch, key: Option<String>, log: &Path) -> Result<Self, ServerFailure> {
        let failure = |kind, reason| ServerFailure::new(kind, reason, "");
        if let Err(error) = TcpListener::bind(("127.0.0.1", launch.port)) {
            let reason = format!(
                "port {} cannot be used ({error}): another server has it, perhaps one that an earlier run left; end it, or \
                 leave `port` out to take a free one",
                launch.port
            );
            return Err(failure(FailureKind::PortTaken, reason));
        }
        let cannot = |reason: String| failure(FailureKind::CannotRun, reason);
        let output = File::create(log).map_err(|error| cannot(format!("{}: {error}", log.display())))?;
        let errors = output.try_clone().map_err(|error| cannot(error.to_string()))?;
        let child = Command::new(&launch.words[0])
            .args(&launch.words[1..])
            .envs(&launch.env)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(|error| cannot(format!("`{}`: {error}", launch.words[0])))?;
        let group = Pid::from_child(&child);
        groups(|groups| groups.push(group));
        let probe = Probe::new(&launch.url, key);
        Ok(Self { child, group, log: log.to_owned(), probe, launch, started: Instant::now(), ended: None })
    }

    /// Waits until it is healthy and lists a model.
    ///
    /// # Errors
    /// When it ends before, takes too long, or the user ends the run.
    pub fn wait_ready(&mut self, stop: &Stop) -> Result<Ready, StartError> {
        loop {
            if stop.is_requested() {
                return Err(StartError::Stopped);
            }
            if let Some(status) = self.ended() {
                let reason = format!("ended with {} before it was ready", ending(status));
                return Err(StartError::Failed(ServerFailure::new(FailureKind::Ended, reason, &self.log_text())));
            }
            if self.probe.is_ready() {
                let engine = self.probe.json("/v1/engine");
                let startup = StartUp::read(&self.log_text(), engine.as_ref());
                return Ok(Ready { after: self.started.elapsed(), startup });
            }
            let limit = self.launch.ready_timeout;
            if self.started.elapsed() > limit {
                let reason =
                    format!("no answer from {} within {} s (ready_timeout_s)", self.launch.url, limit.as_secs_f64());
                return Err(StartError::Failed(ServerFailure::new(FailureKind::TimedOut, reason, &self.log_text())));
            }
            thread::sleep(POLL);
        }
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            // An error here means that somebody else waited for it: it is gone all the same.
            self.ended = self.child.try_wait().unwrap_or_default();
        }
        self.ended
    }

    /// The failure of a server that ended while it was measured.
    pub fn died(&self, status: ExitStatus) -> ServerFailure {
        let reason = format!("ended with {} while it was measured", ending(status));
        ServerFailure::new(FailureKind::Died, reason, &self.log_text())
    }

    /// A failure of a server that runs.
    pub fn unusable(&self, reason: String) -> ServerFailure {
        ServerFailure::new(FailureKind::Unusable, reason, &self.log_text())
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.launch.url
    }

    /// Ends it and all it started: SIGTERM, and SIGKILL to what is left after its time.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if self.ended().is_none() {
            _ = kill_process_group(self.group, Signal::TERM);
            let begun = Instant::now();
            while self.ended().is_none() && begun.elapsed() < self.launch.stop_timeout {
                thread::sleep(POLL);
            }
        }
        // Workers may outlive their leader.
        if test_kill_process_group(self.group).is_ok() {
            _ = kill_process_group(self.group, Signal::KILL);
        }
        if self.ended.is_none() {
            self.ended = self.child.wait().ok();
        }
        groups(|groups| groups.retain(|&group| group != self.group));
    }

    /// The log's beginning and end.
    fn log_text(&self) -> String {
        read_log(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Kills every server that runs, for a program that ends without unwinding.
pub fn kill_all() {
    groups(|groups| {
        for &group in groups.iter() {
            _ = kill_process_group(group, Signal::KILL);
        }
    });
}

/// A port that is free now.
///
/// # Errors
/// When this machine has none.
pub fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn groups<R>(with: impl FnOnce(&mut Vec<Pid>) -> R) -> R {
    with(&mut GROUPS.lock().unwrap_or_else(PoisonError::into_inner))
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(9)) => "signal 9, as the system kills what takes too much memory".to_owned(),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "neither code nor signal".to_owned(),
    }
}

fn read_log(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut bytes = Vec::new();
    file.by_ref().take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    if length > 2 * LOG_BYTES_MAX {
        bytes.extend_from_slice(b"\n");
        file.seek(SeekFrom::Start(length - LOG_BYTES_MAX))?;
    }
    file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
