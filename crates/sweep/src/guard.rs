//! Ends a server whose measurement was killed: SIGKILL, or no memory, leaves nobody who could.
//!
//! A small shell in a process group of its own reads from a pipe whose other end only this process holds, so that the kernel closes it however
//! this process ends. A signal at the parent's death (`PR_SET_PDEATHSIG`) would reach neither the server's workers nor a server that
//! changed its user.

use rustix::process::Pid;
use std::{
    io::{self, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// First the server's group, then nothing until the pipe is closed; then as [`crate::server::Server::stop`] does.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
read -r group || exit 0
while read -r _; do :; done
kill -s TERM -- "-$group" 2>/dev/null || exit 0
left=$1
while [ "$left" -gt 0 ] && kill -s 0 -- "-$group" 2>/dev/null; do
    sleep 1
    left=$((left - 1))
done
kill -s KILL -- "-$group" 2>/dev/null
"#;

/// Watches over one group until it is dropped.
pub(crate) struct Guard {
    shell: Child,
}

impl Guard {
    /// Made before the server is, as its group is, so that it watches from the first moment.
    pub(crate) fn start(stop_timeout: Duration) -> io::Result<Self> {
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "guard", &stop_timeout.as_secs_f64().ceil().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self { shell })
    }

    /// Names the group to end.
    pub(crate) fn watch(&mut self, group: Pid) -> io::Result<()> {
        let pipe = self.shell.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(pipe, "{}", group.as_raw_nonzero())
    }
}

impl Drop for Guard {
    /// Before the pipe closes: the group is gone, and another may have its number.
    fn drop(&mut self) {
        _ = self.shell.kill();
        _ = self.shell.wait();
    }
}

/// A process that does nothing but lead a group until it is dropped: whoever joined the group stays in it.
pub(crate) struct GroupLeader(Child);

impl GroupLeader {
    pub(crate) fn start() -> io::Result<Self> {
        // Ends by itself when this program does.
        let mut leader = Command::new("sh");
        leader.args(["-c", "read -r _"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        leader.process_group(0).spawn().map(Self)
    }

    pub(crate) fn group(&self) -> Pid {
        Pid::from_child(&self.0)
    }
}

impl Drop for GroupLeader {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
