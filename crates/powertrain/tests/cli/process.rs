//! Running the binary, and talking to it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

pub(crate) fn powertrain() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_powertrain"));
    command.env("HF_HUB_OFFLINE", "1");
    command
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures").join(name)
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    powertrain().args(arguments).output().unwrap()
}

/// A server that is ended when the test ends, however it ends.
pub(crate) struct Served {
    pub(crate) process: Child,
    /// `HOST:PORT`
    pub(crate) address: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        // It is gone already where the test went well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn serve(arguments: &[&str]) -> Served {
    let mut command = powertrain();
    command.arg("serve").args(arguments).args(["--port", "0"]);
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
    let line = lines.into_iter().find(|line| line.contains("listening on"));
    let address = line.expect("the server says where it listens").split("http://").last().unwrap().to_owned();
    Served { process, address }
}

/// The answer's status and body.
pub(crate) fn ask(server: &Served, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}
