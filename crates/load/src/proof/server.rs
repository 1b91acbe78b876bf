//! The ground-truth server: answers by script and notes when it wrote what.
//!
//! A thread with an event loop reads requests and begins their answers; another writes the chunks ([`super::writer`]).

use super::{
    Ending, Script, Truth, remote,
    script::Plan,
    wire,
    writer::{self, Ended, Stream},
};
use crate::{
    clock::Clock,
    http::Socket,
    priority::{CLIENTS_MANY, ClientThreads, Priority},
    record::Nanos,
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    thread::JoinHandle,
    time::Duration,
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
pub(super) type Noted = HashMap<String, Vec<Truth>>;
pub(super) type Truths = Mutex<Noted>;

pub(super) fn note(truths: &Truths, prompt: String, truth: Truth) {
    lock(truths).entry(prompt).or_default().push(truth);
}

impl TruthServer {
    /// Starts one on a free port of this machine.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(script: Script, clock: Clock) -> io::Result<Self> {
        Self::beside(ClientThreads { count: Some(1), priority: Priority::Normal }, script, clock)
    }

    /// The same beside a client of these threads.
    pub(super) fn beside(client: ClientThreads, script: Script, clock: Clock) -> io::Result<Self> {
        Self::listen(SocketAddr::from(([127, 0, 0, 1], 0)), client, script, clock)
    }

    /// Starts one for clients of other processes and machines, which tell it what to do and ask it what it did ([`super::RemoteTruth`]).
    /// `threads` are those of a client on this machine: the server's go after them.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn listen(address: SocketAddr, threads: ClientThreads, script: Script, clock: Clock) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        // More than the usual backlog: all clients of a level connect at once.
        let listener = runtime.block_on(async {
            let socket =
                if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
            // Connections of a server that ended just now keep nobody from starting another.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(4096)
        })?;
        let address = listener.local_addr()?;
        let (end, ended) = oneshot::channel();
        let truths = Arc::new(Truths::default());
        // As many writers as the client has threads, each beside one where those stay on their CPUs: what is written and read on one CPU is in
        // its cache.
        let placement = threads.of(CLIENTS_MANY);
        let cpu = |place: usize| placement.cpus.as_ref().map(|cpus| cpus[place]);
        let writer = |place| writer::start(clock, truths.clone(), placement.priority, cpu(place));
        let started: Vec<_> = (0..placement.count).map(writer).collect::<io::Result<_>>()?;
        let (streams, writers): (Vec<_>, Vec<_>) = started.into_iter().unzip();
        let script = Mutex::new(Arc::new(script));
        let cpus = placement.cpus.unwrap_or_default();
        let shared = Arc::new(Shared { script, clock, truths: truths.clone(), streams, cpus });
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = ended => {}
                    () = accept(&listener, &shared) => {}
                }
            });
        };
        let reader = std::thread::Builder::new().name("truth".to_owned()).spawn(serve)?;
        Ok(Self { address, clock, truths, end: Some(end), threads: std::iter::once(reader).chain(writers).collect() })
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
    pub fn truths(&self) -> Noted {
        lock(&self.truths).clone()
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
    /// Of the requests from now on.
    script: Mutex<Arc<Script>>,
    clock: Clock,
    truths: Arc<Truths>,
    /// Of each writer.
    streams: Vec<Sender<Stream>>,
    /// Where the writers stay, if they do.
    cpus: Vec<usize>,
}

struct Request {
    /// Method and path.
    route: String,
    body: Value,
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

impl Shared {
    /// The writer on the CPU that the connection's packets come in on, or else one by the connection's number.
    fn writer_of(&self, socket: &Socket, number: u32) -> usize {
        let cpu = incoming_cpu(socket.stream());
        let beside = self.cpus.iter().position(|&writer| Some(writer) == cpu);
        beside.unwrap_or(number as usize % self.streams.len())
    }

    /// The answer to a client of another process that says what to do or asks what was done; none for requests that are measured.
    fn told(&self, request: &Request) -> Option<Vec<u8>> {
        match request.route.as_str() {
            remote::SCRIPT_ROUTE => Some(match Script::deserialize(&request.body) {
                Ok(script) if script.is_bounded() => {
                    lock(&self.truths).clear();
                    *lock(&self.script) = Arc::new(script);
                    wire::whole("200 OK", "{}")
                }
                Ok(_) => wire::refused("a script of more than 1,000,000 chunks"),
                Err(error) => wire::refused(&format!("no script: {error}")),
            }),
            remote::NOTES_ROUTE => {
                let notes = remote::take_some(&mut lock(&self.truths));
                // Numbers, texts and lists: they can be written.
                Some(wire::whole("200 OK", &serde_json::to_string(&notes).unwrap_or_default()))
            }
            _ => None,
        }
    }
}

/// The CPU on which the last packet of a connection came in; on this machine that of its sender.
fn incoming_cpu(stream: &TcpStream) -> Option<usize> {
    #[cfg(target_os = "linux")]
    return rustix::net::sockopt::socket_incoming_cpu(stream).ok().map(|cpu| cpu as usize);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = stream;
        None
    }
}

async fn serve(mut socket: Socket, shared: &Shared, number: u32) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut answered = 0;
    while let Some(request) = read_request(&mut socket, &mut buffer).await? {
        if let Some(answer) = shared.told(&request) {
            socket.write_all(&answer).await?;
            continue;
        }
        let script = lock(&shared.script).clone();
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
            socket.write_all(&wire::unstreamed(&script, &plan, prompt_tokens)).await?;
        } else {
            let beginning = wire::beginning(&script);
            for part in beginning.chunks(script.write_bytes.unwrap_or(beginning.len())) {
                socket.write_all(part).await?;
            }
            let (ended, end) = oneshot::channel();
            let due = shared.clock.now() + (script.ttft + plan.phase).as_nanos() as Nanos;
            let (prompt, truth) = (request.prompt, Some(truth));
            let writer = shared.writer_of(&socket, number);
            let stream = Stream { socket, due, script, plan, prompt_tokens, prompt, truth, ended };
            let gone = |_| io::Error::other("the writer has ended");
            shared.streams[writer].send(stream).map_err(|_| io::Error::other("the writer has ended"))?;
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
                let route = format!("{} {}", head.method.unwrap_or_default(), head.path.unwrap_or_default());
                buffer.drain(..start + length);
                let prompt = body.pointer("/messages/0/content").or_else(|| body.get("prompt"));
                return Ok(Some(Request {
                    route,
                    prompt: prompt.and_then(Value::as_str).unwrap_or_default().to_owned(),
                    stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
                    messages: body.get("messages").and_then(Value::as_array).map_or(0, Vec::len),
                    received: socket.times().received,
                    body,
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
