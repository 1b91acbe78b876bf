//! One thread that writes the chunks of all streams when they are due.
//!
//! It takes the time right before and after each write, so the truth is when it wrote, not when it meant to: how late it
//! was is no error of the client's. It sleeps at least [`SLEEP_MIN`], so that waking up costs little beside writing. What it did
//! of a stream is noted before the stream's end is written: a client that has read all finds the note.

use super::{
    Script, Truth,
    script::Plan,
    server::{Truths, note},
    wire,
};
use crate::{
    clock::Clock,
    http::Socket,
    priority::{self, Priority},
};
use std::{
    cmp::Ordering,
    collections::{BinaryHeap, binary_heap::PeekMut},
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Shortest sleep.
const SLEEP_MIN: Duration = Duration::from_micros(200);
/// By how much the thread gives way to others where the client has no priority.
const NICENESS: i32 = 10;
/// Its own priority where the client has a higher one: other programs must not keep it from making the load.
const NICENESS_BESIDE_PRIORITY: i32 = -10;
/// A stream makes up for lateness of up to one part in so many of its gap.
const CATCH_UP: u32 = 10;
/// When a full socket is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// A stream whose head is written, on its way to its end.
pub(super) struct Stream {
    /// Comes back at the end.
    pub(super) socket: Socket,
    /// When its first chunk is due.
    pub(super) due: Instant,
    pub(super) plan: Plan,
    pub(super) prompt_tokens: usize,
    /// Under which it is noted.
    pub(super) prompt: String,
    /// None once it is noted.
    pub(super) truth: Option<Truth>,
    /// Told when it has ended, well or not.
    pub(super) ended: oneshot::Sender<Ended>,
}

/// A stream that has ended.
pub(super) struct Ended {
    pub(super) socket: Socket,
    /// Everything was written: the connection can carry another.
    pub(super) whole: bool,
}

/// Starts the thread, beside a client of a priority; it ends when the sender is dropped.
pub(super) fn start(
    script: Script,
    clock: Clock,
    truths: Arc<Truths>,
    client: Priority,
) -> io::Result<(Sender<Stream>, JoinHandle<()>)> {
    let (sender, receiver) = channel();
    let writer = Writer { content: wire::content(), script, clock, truths, client, streams: BinaryHeap::new() };
    let thread = std::thread::Builder::new().name("truth-writer".to_owned()).spawn(move || writer.run(&receiver))?;
    Ok((sender, thread))
}

struct Writer {
    script: Script,
    clock: Clock,
    truths: Arc<Truths>,
    content: Vec<u8>,
    client: Priority,
    streams: BinaryHeap<Turn>,
}

/// A stream by when it is due next, the earliest at the top of the heap.
struct Turn {
    due: Instant,
    chunk: u32,
    /// What a full socket did not take; written before anything else.
    rest: Vec<u8>,
    stream: Box<Stream>,
}

enum Next {
    At(Instant),
    Ended { whole: bool },
}

impl Writer {
    fn run(mut self, receiver: &Receiver<Stream>) {
        // Where both need the same CPU the client goes first, as it would with a server on a machine of its own. The server's
        // lateness is no error: it tells when it wrote.
        if self.client == Priority::Normal || !priority::niceness(NICENESS_BESIDE_PRIORITY) {
            priority::niceness(NICENESS);
        }
        loop {
            let now = Instant::now();
            while let Some(mut turn) = self.streams.peek_mut().filter(|turn| turn.due <= now) {
                match turn.advance(&self.script, &self.content, &self.clock, &self.truths) {
                    Next::At(due) => turn.due = due,
                    Next::Ended { whole } => {
                        turn.note(&self.truths);
                        let Stream { socket, ended, .. } = *PeekMut::pop(turn).stream;
                        // A server that is going away no longer waits for its streams.
                        _ = ended.send(Ended { socket, whole });
                    }
                }
            }
            let next = self.streams.peek().map(|turn| turn.due.saturating_duration_since(Instant::now()));
            let received = match next {
                Some(wait) => receiver.recv_timeout(wait.max(SLEEP_MIN)),
                None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(stream) => self.take(stream),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(stream) = receiver.try_recv() {
                self.take(stream);
            }
        }
    }

    fn take(&mut self, mut stream: Stream) {
        if let Some(truth) = &mut stream.truth {
            for times in [&mut truth.written, &mut truth.took] {
                times.reserve_exact(stream.plan.written as usize);
            }
        }
        let mut turn = Turn { due: stream.due, chunk: 0, rest: Vec::new(), stream: Box::new(stream) };
        turn.due += turn.pause(&self.script);
        self.streams.push(turn);
    }
}

impl Turn {
    /// Writes what is due.
    fn advance(&mut self, script: &Script, content: &[u8], clock: &Clock, truths: &Truths) -> Next {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            if let Some(next) = self.write(&rest, None) {
                return next;
            }
        } else if self.chunk < self.stream.plan.written {
            self.chunk += 1;
            let before = clock.now();
            let next = self.write(content, script.write_bytes);
            if let Some(truth) = &mut self.stream.truth {
                truth.written.push(before);
                truth.took.push(clock.now() - before);
            }
            if let Some(next) = next {
                return next;
            }
        }
        if self.chunk < self.stream.plan.written {
            // What a stream is late beyond that is forgiven. A server that makes up for it writes without a pause; then each chunk wakes the
            // client for itself, which costs it more, and what is measured is how fast it reads, not how exactly.
            let due = self.due.max(Instant::now() - script.gap / CATCH_UP);
            return Next::At(due + script.gap + self.pause(script));
        }
        self.note(truths);
        let end = wire::ending(script, &self.stream.plan, self.stream.prompt_tokens);
        if self.chunk > self.stream.plan.written || end.is_empty() {
            return Next::Ended { whole: !end.is_empty() };
        }
        // The end is written once: one past the last chunk says that it was.
        self.chunk += 1;
        self.write(&end, script.write_bytes).unwrap_or(Next::Ended { whole: true })
    }

    fn note(&mut self, truths: &Truths) {
        if let Some(truth) = self.stream.truth.take() {
            note(truths, std::mem::take(&mut self.stream.prompt), truth);
        }
    }

    /// What the script wants before the next chunk.
    fn pause(&self, script: &Script) -> Duration {
        script.stall.filter(|&(before, _)| before == self.chunk).map_or(Duration::ZERO, |(_, pause)| pause)
    }

    /// Writes in parts of a size; tells what is next where that was not all.
    fn write(&mut self, bytes: &[u8], part_bytes: Option<usize>) -> Option<Next> {
        let mut left = bytes;
        while !left.is_empty() {
            let part = &left[..part_bytes.unwrap_or(left.len()).min(left.len())];
            match self.stream.socket.stream().try_write(part) {
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.rest = left.to_vec();
                    return Some(Next::At(Instant::now() + RETRY));
                }
                // A client that goes away is no concern of this server.
                Err(_) => return Some(Next::Ended { whole: false }),
            }
        }
        None
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Turn {}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        other.due.cmp(&self.due)
    }
}
