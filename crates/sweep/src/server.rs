//! A started server's life: in a process group of its own, its output in a file, ended with all its children.
//!
//! The group keeps Ctrl-C at the terminal from reaching the server before it was told to stop, and lets one signal reach
//! workers that it started.

use crate::{
    configuration::Launch,
    failure::{FailureKind, ServerFailure},
    guard::{GroupLeader, Guard},
    probe::Probe,
    startup::StartUp,
};
use powertrain_load::Stop;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use std::{
    fs::{self, File},
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
/// What was killed and is still there after this time is given up: it hangs in the kernel.
const KILLED_MAX: Duration = Duration::from_secs(60);
/// How much of a log's beginning and end is read: facts come early, failures late.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// The groups that run now, so that a program that must end at once leaves none behind.
static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// A started server. Dropping it ends it; so does the end of this process, whichever it is.
pub struct Server {
    child: Child,
    group: Pid,
    _guard: Guard,
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
        let unguarded = |error| cannot(format!("`sh`, which ends the server if this program is killed: {error}"));
        // The group is there, and watched, before the server joins it: killed at any moment, this program leaves nothing.
        let mut guard = Guard::start(launch.stop_timeout).map_err(unguarded)?;
        let leader = GroupLeader::start().map_err(unguarded)?;
        let group = leader.group();
        guard.watch(group).map_err(unguarded)?;
        let child = Command::new(&launch.words[0])
            .args(&launch.words[1..])
            .envs(&launch.env)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(group.as_raw_nonzero().get())
            .spawn()
            .map_err(|error| cannot(format!("`{}`: {error}", launch.words[0])))?;
        drop(leader);
        groups(|groups| groups.push(group));
        let probe = Probe::new(&launch.url, key);
        let server = Self {
            child,
            group,
            _guard: guard,
            log: log.to_owned(),
            probe,
            launch,
            started: Instant::now(),
            ended: None,
        };
        Ok(server)
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

    /// Ends it and all it started: SIGTERM, and SIGKILL to what is left after its time. Returns when its processes are gone,
    /// with their memory, this machine's and its GPUs'; if some hang all the same, what to tell the user.
    pub fn stop(mut self) -> Option<String> {
        let gone = self.end();
        (!gone).then(|| {
            format!(
                "processes of `{}` are still there {} s after they were killed; what follows may find their memory taken",
                self.launch.words[0],
                KILLED_MAX.as_secs()
            )
        })
    }

    /// Whether all is gone.
    fn end(&mut self) -> bool {
        // Workers may outlive their leader, and need time of their own to end well.
        let gone = self.signalled(Signal::TERM, self.launch.stop_timeout) || self.signalled(Signal::KILL, KILLED_MAX);
        groups(|groups| groups.retain(|&group| group != self.group));
        gone
    }

    /// Sends a signal to what is left of the group and waits; whether all is gone.
    fn signalled(&mut self, signal: Signal, most: Duration) -> bool {
        let (begun, mut sent) = (Instant::now(), false);
        while self.ended().is_none() || is_alive(self.group) {
            if begun.elapsed() >= most {
                return false;
            }
            // A process may start another one before it is killed. A second SIGTERM says "at once" to some servers.
            if !sent || signal == Signal::KILL {
                _ = kill_process_group(self.group, signal);
                sent = true;
            }
            thread::sleep(POLL);
        }
        true
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

/// Whether a process of a group still has its memory. A dead one that nobody has asked for its end has none, unless threads of
/// it are yet to die.
fn is_alive(group: Pid) -> bool {
    if test_kill_process_group(group).is_err() {
        return false;
    }
    // Where there is no `/proc` the dead count until they are asked for.
    let Ok(processes) = fs::read_dir("/proc") else { return true };
    let stats = processes.flatten().filter_map(|process| fs::read_to_string(process.path().join("stat")).ok());
    stats.filter_map(|stat| holds_memory(&stat, group)).any(|holds| holds)
}

/// By a line of `/proc/PID/stat`; none for processes of other groups.
fn holds_memory(stat: &str, group: Pid) -> Option<bool> {
    // State, parent, group, …, threads: fields 3, 4, 5 and 20 of proc(5), behind the name in parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let threads: u32 = fields.get(17)?.parse().ok()?;
    let of_group = fields.get(2)?.parse() == Ok(group.as_raw_nonzero().get());
    of_group.then(|| !matches!(fields[0], "Z" | "X") || threads > 1)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_hold_no_memory_but_their_last_threads_do() {
        let holds = |state: &str, group: i32, threads: u32| {
            let stat =
                format!("77 (a) b) {state} 1 {group} 77 0 -1 4194304 100 0 0 0 15 5 0 0 20 0 {threads} 0 100 1000 10");
            holds_memory(&stat, Pid::from_raw(77).unwrap())
        };
        assert_eq!(holds("S", 77, 1), Some(true));
        assert_eq!(holds("D", 77, 4), Some(true));
        assert_eq!(holds("Z", 77, 1), Some(false));
        assert_eq!(holds("Z", 77, 3), Some(true));
        assert_eq!(holds("R", 78, 1), None);
        assert_eq!(holds_memory("", Pid::from_raw(77).unwrap()), None);
    }
}
