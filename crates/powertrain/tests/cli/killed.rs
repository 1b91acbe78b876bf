//! A measurement that is killed leaves no server.

use crate::process::powertrain;
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
};

/// Starts the command, kills it once its server is up, and waits until the server, its child included, is gone: both hold the pipe
/// open, so that its end is theirs.
fn leaves_nothing(folder: &Path, arguments: &[&str], server: &str) {
    let pipe = folder.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let script = folder.join("server.sh");
    fs::write(&script, format!("exec 3>{}\necho up >&3\n{server}\n", pipe.display())).unwrap();
    let matrix = format!(
        "[[server]]\nname = 's'\ncommand = ['sh', '{}']\nready_timeout_s = 600\nstop_timeout_s = 1\n\
         [[workload]]\nname = 'w'\nconcurrency = [1]\n",
        script.display()
    );
    fs::write(folder.join("matrix.toml"), matrix).unwrap();
    let mut command = powertrain();
    command.args(arguments).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = command.spawn().unwrap();
    let mut lines = BufReader::new(File::open(&pipe).unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    process.kill().unwrap();
    process.wait().unwrap();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    fs::remove_file(&pipe).unwrap();
}

#[test]
fn a_killed_sweep_tune_or_comparison_takes_its_server_along() {
    let folder = tempfile::tempdir().unwrap();
    let with_a_worker = "sleep 100000 & wait";
    leaves_nothing(folder.path(), &["sweep", "matrix.toml"], with_a_worker);
    leaves_nothing(folder.path(), &["tune", "matrix.toml"], with_a_worker);
    let compared = ["compare", "--interleave", "matrix.toml", "matrix.toml", "--output", "pairs"];
    leaves_nothing(folder.path(), &compared, with_a_worker);
    // Deaf to SIGTERM: killed after its time.
    let deaf = "trap '' TERM; sleep 100000 & wait";
    leaves_nothing(folder.path(), &["sweep", "matrix.toml", "--output", "deaf"], deaf);
}

#[test]
fn results_share_no_raw_events_and_a_pipe_is_no_result() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = powertrain().args(arguments).current_dir(folder.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    // Before a server is asked anything: there is none.
    for name in ["run.txt", "run"] {
        let (code, said) = run(&["bench", "http://127.0.0.1:9", "--output", name]);
        assert_eq!(code, Some(2));
        assert!(said.contains(&format!("--output {name}: a result's name ends in .json")), "{said}");
    }
    assert!(Command::new("mkfifo").arg(folder.path().join("pipe.json")).status().unwrap().success());
    for arguments in [
        &["bench", "http://127.0.0.1:9", "--output", "pipe.json"][..],
        &["compare", "pipe.json", "pipe.json"],
        &["report", "none.toml", "--before", "pipe.json", "--after", "pipe.json"],
        &["report", "index", "."],
    ] {
        let (code, said) = run(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
    }
    let (_, said) = run(&["compare", "pipe.json", "pipe.json"]);
    assert!(said.contains("it is a pipe or device; give a regular file"), "{said}");
    // A bench that ends before it measured leaves nothing.
    assert_eq!(run(&["bench", "http://127.0.0.1:9", "--output", "run.json"]).0, Some(2));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
