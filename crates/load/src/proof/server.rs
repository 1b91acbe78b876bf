//! The ground-truth server: answers by script and notes when it wrote what.
//!
//! A thread with an event loop reads requests and begins their answers; another writes the chunks ([`super::writer`]).

use super::{
    Ending, Script, Truth,
    script::Plan,
    wire,
    writer::{self, Ended, Stream},
};
use crate::{clock::Clock, http::Socket, priority::Priority, record::Nanos};
use serde_json::Value;
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, mpsc::Sender},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    sync::oneshot,
};

/// Longest request it reads.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// A running server; ends when dropped.
pub struct TruthServer {
    address: SocketAddr,
    clock: Clock,
    truths: Arc<Truths>,
    end: Option<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// By prompt. Requests of one prompt are answered alike, each with its own entry.
pub(super) type Truths = Mutex<HashMap<String, Vec<Truth>>>;

pub(super) fn note(truths: &Truths, prompt: String, truth: Truth) {
    truths.lock().unwrap_or_else(PoisonError::into_inner).entry(prompt).or_default().push(truth);
}

impl TruthServer {
    /// Starts one on a free port of this machine.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(script: Script, clock: Clock) -> io::Result<Self> {
        Self::beside(Priority::Normal, script, clock)
    }

    /// The same beside a client that asks for a priority.
    pub(super) fn beside(client: Priority, script: Script, clock: Clock) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        // More than the usual backlog: all clients of a level connect at once.
        let listener = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
            socket.listen(4096)
        })?;
        let address = listener.local_addr()?;
        let (end, ended) = oneshot::channel();
        let truths = Arc::new(Truths::default());
        let (streams, writer) = writer::start(script.clone(), clock, truths.clone(), client)?;
        let shared = Arc::new(Shared { script, clock, truths: truths.clone(), streams });
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = ended => {}
                    () = accept(&listener, &shared) => {}
                }
            });
        };
        let reader = std::thread::Builder::new().name("truth".to_owned()).spawn(serve)?;
        Ok(Self { address, clock, truths, end: Some(end), threads: vec![reader, writer] })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The clock of its notes.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// What it did, by prompt.
    pub fn truths(&self) -> HashMap<String, Vec<Truth>> {
        self.truths.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for TruthServer {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            _ = end.send(());
        }
        for thread in self.threads.drain(..) {
            _ = thread.join();
        }
    }
}

struct Shared {
    script: Script,
    clock: Clock,
    truths: Arc<Truths>,
    streams: Sender<Stream>,
}

struct Request {
    prompt: String,
    stream: bool,
    messages: usize,
    /// When its last byte had come.
    received: Nanos,
}

async fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut number = 0;
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        _ = stream.set_nodelay(true);
        write_at_once(&stream);
        number += 1;
        let socket = Socket::new(stream, shared.clock);
        // A client that goes away is no concern of this server.
        tokio::spawn(async move { _ = serve(socket, &shared, number).await });
    }
}

/// Has what is written leave in the write: BBR, the system's choice on many machines, may hold it back to pace it, and then the
/// notes would be wrong. Every system has Reno.
fn write_at_once(stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = rustix::net::sockopt::set_tcp_congestion(stream, "reno");
    #[cfg(not(target_os = "linux"))]
    let _ = stream;
}

async fn serve(mut socket: Socket, shared: &Shared, number: u32) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut answered = 0;
    while let Some(request) = read_request(&mut socket, &mut buffer).await? {
        let script = &shared.script;
        let prompt_tokens = request.prompt.split(' ').count();
        let truth = Truth { received: request.received, messages: request.messages, ..Truth::default() };
        // Only the first answer of a connection has a phase: the others begin where it ended.
        let plan = match answered {
            0 => script.plan(number),
            _ => Plan { phase: Duration::ZERO, ..script.plan(number + 1000 * answered) },
        };
        answered += 1;
        let mut open = true;
        if let Ending::Status(status) = script.ending {
            note(&shared.truths, request.prompt, truth);
            socket.write_all(&wire::failed(status)).await?;
        } else if !request.stream {
            note(&shared.truths, request.prompt, truth);
            socket.write_all(&wire::unstreamed(script, &plan, prompt_tokens)).await?;
        } else {
            let beginning = wire::beginning(script);
            for part in beginning.chunks(script.write_bytes.unwrap_or(beginning.len())) {
                socket.write_all(part).await?;
            }
            let (ended, end) = oneshot::channel();
            let due = Instant::now() + script.ttft + plan.phase;
            let (prompt, truth) = (request.prompt, Some(truth));
            let stream = Stream { socket, due, plan, prompt_tokens, prompt, truth, ended };
            let gone = |_| io::Error::other("the writer has ended");
            shared.streams.send(stream).map_err(|_| io::Error::other("the writer has ended"))?;
            let stream: Ended = end.await.map_err(gone)?;
            (socket, open) = (stream.socket, stream.whole);
        }
        if !open {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads one request and takes it out of the buffer; none when the client has gone.
async fn read_request(socket: &mut Socket, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Request::new(&mut headers);
        if let Ok(httparse::Status::Complete(start)) = head.parse(buffer) {
            let length = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok()).unwrap_or(0);
            if buffer.len() - start >= length {
                let body: Value = serde_json::from_slice(&buffer[start..start + length]).unwrap_or(Value::Null);
                buffer.drain(..start + length);
                let prompt = body.pointer("/messages/0/content").or_else(|| body.get("prompt"));
                return Ok(Some(Request {
                    prompt: prompt.and_then(Value::as_str).unwrap_or_default().to_owned(),
                    stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
                    messages: body.get("messages").and_then(Value::as_array).map_or(0, Vec::len),
                    received: socket.times().received,
                }));
            }
        }
        if buffer.len() > REQUEST_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a request is too long"));
        }
        if socket.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}
