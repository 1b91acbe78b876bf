//! The ground-truth server: answers by script and notes when it wrote what.

use crate::{clock::Clock, record::Nanos};
use serde_json::Value;
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    sync::oneshot,
    time::{Instant, sleep_until},
};

/// Longest request it reads.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Ends a body in chunks.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How every request is answered.
#[derive(Clone, Debug)]
pub struct Script {
    /// From the request to the first content.
    pub ttft: Duration,
    /// Between content chunks.
    pub gap: Duration,
    /// Content chunks.
    pub chunks: u32,
    /// Tokens counted for each.
    pub tokens_per_chunk: u32,
    /// Send a chunk with only the role at once.
    pub role_first: bool,
    /// Begin each answer at another phase of the gap, so that streams do not write in one burst.
    pub spread: bool,
    /// Wait so long before the chunk of this number.
    pub stall: Option<(u32, Duration)>,
    /// How it ends.
    pub ending: Ending,
    /// Report usage at the end.
    pub usage: bool,
    /// Write this many bytes at a time, to split events anywhere; all at once where none.
    pub write_bytes: Option<usize>,
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Finish reason, usage, end mark.
    Complete,
    /// The connection is closed after so many chunks.
    Closed(u32),
    /// The body is ended properly after so many chunks, without finish reason or end mark.
    Early(u32),
    /// An error event after so many chunks.
    Error(u32),
    /// This status in place of an answer.
    Status(u16),
}

/// When the server did what for one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Truth {
    /// The request had been read.
    pub received: Nanos,
    /// Just before each content chunk was written.
    pub written: Vec<Nanos>,
}

/// A running server; ends when dropped.
pub struct TruthServer {
    address: SocketAddr,
    clock: Clock,
    truths: Arc<Truths>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// By prompt. Requests of one prompt are answered alike, each with its own entry.
type Truths = Mutex<HashMap<String, Vec<Truth>>>;

impl Default for Script {
    fn default() -> Self {
        Self {
            ttft: Duration::ZERO,
            gap: Duration::ZERO,
            chunks: 4,
            tokens_per_chunk: 1,
            role_first: true,
            spread: false,
            stall: None,
            ending: Ending::Complete,
            usage: true,
            write_bytes: None,
        }
    }
}

impl TruthServer {
    /// Starts one on a free port of this machine.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(script: Script, clock: Clock) -> io::Result<Self> {
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
        let shared = Arc::new(Shared { script, clock, truths: truths.clone() });
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = ended => {}
                    () = accept(&listener, &shared) => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("truth".to_owned()).spawn(serve)?;
        Ok(Self { address, clock, truths, end: Some(end), thread: Some(thread) })
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
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

struct Shared {
    script: Script,
    clock: Clock,
    truths: Arc<Truths>,
}

struct Request {
    prompt: String,
    stream: bool,
}

async fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut number = 0;
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        _ = stream.set_nodelay(true);
        number += 1;
        // A client that goes away is no concern of this server.
        tokio::spawn(async move { _ = serve(stream, &shared, number).await });
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared, number: u32) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer).await? {
        let mut truth = Truth { received: shared.clock.now(), written: Vec::new() };
        let done = answer(&mut stream, shared, number, &request, &mut truth).await;
        shared.truths.lock().unwrap_or_else(PoisonError::into_inner).entry(request.prompt).or_default().push(truth);
        if !done? {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads one request and takes it out of the buffer; none when the client has gone.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let bad = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
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
                }));
            }
        }
        if buffer.len() > REQUEST_BYTES_MAX {
            return Err(bad("a request is too long"));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// Answers by the script; tells whether the connection stays open.
async fn answer(
    stream: &mut TcpStream,
    shared: &Shared,
    number: u32,
    request: &Request,
    truth: &mut Truth,
) -> io::Result<bool> {
    let script = &shared.script;
    let tokens = script.chunks * script.tokens_per_chunk;
    let usage = format!("{{\"prompt_tokens\":{},\"completion_tokens\":{tokens}}}", request.prompt.split(' ').count());
    if let Ending::Status(status) = script.ending {
        let body = "{\"error\":{\"message\":\"by script\"}}";
        let head = format!(
            "HTTP/1.1 {status} Scripted\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
        return Ok(true);
    }
    if !request.stream {
        let usage = if script.usage { format!(",\"usage\":{usage}") } else { String::new() };
        let body =
            format!("{{\"choices\":[{{\"message\":{{\"content\":\"all\"}},\"finish_reason\":\"length\"}}]{usage}}}");
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
        return Ok(true);
    }
    let mut begin =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    if script.role_first {
        event(&mut begin, &choice("\"role\":\"assistant\",\"content\":\"\"", "null"));
    }
    write(stream, script, &begin).await?;

    let mut content = Vec::new();
    event(&mut content, &choice("\"content\":\" token\"", "null"));
    // A prime stride puts neighbours far apart.
    let phase = if script.spread { script.gap * (number * 617 % 1000) / 1000 } else { Duration::ZERO };
    let mut due = Instant::now() + script.ttft + phase;
    for chunk in 0..script.chunks {
        match script.ending {
            Ending::Closed(after) if chunk == after => return Ok(false),
            Ending::Early(after) if chunk == after => {
                stream.write_all(LAST_CHUNK).await?;
                return Ok(true);
            }
            Ending::Error(after) if chunk == after => {
                let mut error = Vec::new();
                event(&mut error, "{\"error\":{\"message\":\"by script\"}}");
                error.extend_from_slice(LAST_CHUNK);
                stream.write_all(&error).await?;
                return Ok(true);
            }
            _ => {}
        }
        if let Some((_, pause)) = script.stall.filter(|&(before, _)| before == chunk) {
            due += pause;
        }
        if due > Instant::now() {
            sleep_until(due).await;
        }
        truth.written.push(shared.clock.now());
        write(stream, script, &content).await?;
        due += script.gap;
    }
    let mut end = Vec::new();
    event(&mut end, &choice("", "\"length\""));
    if script.usage {
        event(&mut end, &format!("{{\"choices\":[],\"usage\":{usage}}}"));
    }
    event(&mut end, "[DONE]");
    end.extend_from_slice(LAST_CHUNK);
    write(stream, script, &end).await?;
    Ok(true)
}

async fn write(stream: &mut TcpStream, script: &Script, bytes: &[u8]) -> io::Result<()> {
    for part in bytes.chunks(script.write_bytes.unwrap_or(bytes.len())) {
        stream.write_all(part).await?;
    }
    Ok(())
}

fn choice(delta: &str, finish_reason: &str) -> String {
    format!(
        "{{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"truth\",\
         \"choices\":[{{\"index\":0,\"delta\":{{{delta}}},\"logprobs\":null,\"finish_reason\":{finish_reason}}}]}}"
    )
}

/// Appends an event as one chunk of the body.
fn event(bytes: &mut Vec<u8>, data: &str) {
    let event = format!("data: {data}\n\n");
    bytes.extend_from_slice(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes());
}
