//! A served model, and the Python that talks to it.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

/// The client, pinned: its behaviour is part of the test.
const OPENAI: &str = "openai==3.54.0";
/// `suite.py` sends it.
const KEY: &str = "test-key";

/// Servers that share the cores would only wait for each other's threads.
static TURN: Mutex<()> = Mutex::new(());

/// `powertrain serve smollm2` on a free port.
pub(crate) struct Served {
    process: Child,
    _turn: MutexGuard<'static, ()>,
    /// `http://127.0.0.1:PORT`.
    pub(crate) address: String,
}

impl Served {
    /// Returns once it listens with the model loaded.
    pub(crate) fn start(flags: &[&str]) -> Self {
        // A test that failed leaves nothing behind that the next could trip over.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut process = Command::new(env!("CARGO_BIN_EXE_powertrain"))
            .args(["serve", "smollm2", "--port", "0", "--api-key", KEY, "--log-level", "warn"])
            .args(["--max-model-len", "2048", "--kv-cache-memory", "1GiB"])
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let banner = BufReader::new(process.stdout.take().expect("piped"));
        let address = banner.lines().map(|line| line.expect("text")).find_map(|line| {
            let (_, address) = line.split_once("listening on")?;
            Some(address.trim().to_owned())
        });
        let address = address.expect("the server said where it listens before it ended");
        Self { process, _turn: turn, address }
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Sends SIGTERM; it must end well.
    pub(crate) fn stop(mut self) {
        self.terminate();
    }

    /// It was told to stop: it must end well. Where Python is missing nobody told it.
    pub(crate) fn ended(mut self) {
        if python().is_none() {
            return self.terminate();
        }
        self.wait();
    }

    fn terminate(&mut self) {
        let sent = Command::new("kill").arg(self.process_id().to_string()).status().expect("kill runs");
        assert!(sent.success());
        self.wait();
    }

    fn wait(&mut self) {
        let status = self.process.wait().expect("it can be waited for");
        assert_eq!(status.code(), Some(0), "the server did not stop well");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // After a failed test it still runs.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The interpreter of an environment that has the client; `None` where none can be made.
pub(crate) fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON.get_or_init(make_environment).as_deref()
}

fn make_environment() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(OPENAI);
    let python = folder.join("bin/python");
    let has_client = || succeeds(Command::new(&python).args(["-c", "import openai"]));
    if has_client() {
        return Some(python);
    }
    let made = succeeds(Command::new("python3").args(["-m", "venv"]).arg(&folder))
        && succeeds(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            OPENAI,
        ]))
        && has_client();
    if made {
        return Some(python);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "python3 with venv and pip could not install {OPENAI}");
    eprintln!("skipped: python3 with venv and pip could not install {OPENAI}");
    None
}

fn succeeds(command: &mut Command) -> bool {
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
