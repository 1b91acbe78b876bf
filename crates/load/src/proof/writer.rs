//! Threads that write the chunks of streams when they are due.
//!
//! They take the time right before and after each write, so the truth is when they wrote, not when they meant to: how late they
//! were is no error of the client's. They sleep at least [`SLEEP_MIN`], so that waking up costs little beside writing. What was done
//! of a stream is noted before the stream's end is written: a client that has read all finds the note.

use super::{
    Script, Truth,
    script::{Plan, Write},
    server::{Truths, note},
    wire,
};
use crate::{
    clock::Clock,
    http::Socket,
    priority::{self, Priority},
    record::Nanos,
};
use rustix::{
    io::Errno,
    net::{SendFlags, send},
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::oneshot;

/// Shortest sleep.
const SLEEP_MIN: Duration = Duration::from_micros(200);
/// By how much the thread gives way to others where the client has no priority.
const NICENESS: i32 = 10;
/// Its own priority where the client has a higher one: other programs must not keep it from making the load.
const NICENESS_BESIDE_PRIORITY: i32 = -10;
/// A stream makes up for lateness of up to one part in so many of its gap: what jitter takes, not what overload does.
const CATCH_UP: Nanos = 2;
/// When a full socket is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// A stream whose head is written, on its way to its end.
pub(super) struct Stream {
    /// Comes back at the end.
    pub(super) socket: Socket,
    /// When its first chunk is due.
    pub(super) due: Nanos,
    pub(super) script: Arc<Script>,
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

/// Starts a thread, beside a client of a priority and on a CPU if one is said; it ends when the sender is dropped.
pub(super) fn start(
    clock: Clock,
    truths: Arc<Truths>,
    client: Priority,
    cpu: Option<usize>,
) -> io::Result<(Sender<Stream>, JoinHandle<()>)> {
    let (sender, receiver) = channel();
    let writer = Writer {
        content: wire::content(),
        clock,
        truths,
        client,
        due: BinaryHeap::new(),
        streams: Vec::new(),
        free: Vec::new(),
    };
    let thread = std::thread::Builder::new().name("truth-writer".to_owned()).spawn(move || {
        if let Some(cpu) = cpu {
            priority::stay_on(cpu);
        }
        writer.run(&receiver);
    })?;
    Ok((sender, thread))
}

struct Writer {
    clock: Clock,
    truths: Arc<Truths>,
    content: Vec<u8>,
    client: Priority,
    /// When which of the streams is due next, the earliest at the top: small, because it is moved with every chunk.
    due: BinaryHeap<Reverse<(Nanos, u32)>>,
    /// None where a stream has ended.
    streams: Vec<Option<Box<Turn>>>,
    /// Places of ended streams.
    free: Vec<u32>,
}

/// A stream and how far it is.
struct Turn {
    due: Nanos,
    chunk: u32,
    /// What a full socket did not take; written before anything else.
    rest: Vec<u8>,
    stream: Stream,
}

enum Next {
    At(Nanos),
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
            self.write_due();
            let received = match self.due.peek() {
                Some(Reverse((due, _))) => {
                    let wait = Duration::from_nanos(due.saturating_sub(self.clock.now()));
                    receiver.recv_timeout(wait.max(SLEEP_MIN))
                }
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

    /// Writes what is due by now.
    fn write_due(&mut self) {
        let now = self.clock.now();
        while let Some(mut next) = self.due.peek_mut().filter(|next| next.0.0 <= now) {
            let place = next.0.1;
            let turn = self.streams[place as usize].as_mut().expect("a stream that is due has not ended");
            match turn.advance(&self.content, &self.clock, &self.truths) {
                Next::At(due) => {
                    turn.due = due;
                    next.0.0 = due;
                }
                Next::Ended { whole } => {
                    turn.note(&self.truths);
                    PeekMut::pop(next);
                    self.free.push(place);
                    if let Some(turn) = self.streams[place as usize].take() {
                        let Stream { socket, ended, .. } = turn.stream;
                        // A server that is going away no longer waits for its streams.
                        _ = ended.send(Ended { socket, whole });
                    }
                }
            }
        }
    }

    fn take(&mut self, mut stream: Stream) {
        if let Some(truth) = &mut stream.truth {
            truth.writes.reserve_exact(stream.plan.written as usize);
        }
        let mut turn = Turn { due: stream.due, chunk: 0, rest: Vec::new(), stream };
        turn.due += turn.pause();
        let place = self.free.pop().unwrap_or_else(|| {
            self.streams.push(None);
            self.streams.len() as u32 - 1
        });
        self.due.push(Reverse((turn.due, place)));
        self.streams[place as usize] = Some(Box::new(turn));
    }
}

impl Turn {
    /// Writes what is due.
    fn advance(&mut self, content: &[u8], clock: &Clock, truths: &Truths) -> Next {
        let mut now = 0;
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            now = clock.now();
            if let Some(next) = self.write(&rest, None, clock) {
                return next;
            }
        } else if self.chunk < self.stream.plan.written {
            self.chunk += 1;
            let at = clock.now();
            let next = self.write(content, self.stream.script.write_bytes, clock);
            now = clock.now();
            if let Some(truth) = &mut self.stream.truth {
                truth.writes.push(Write { at, took: now - at });
            }
            if let Some(next) = next {
                return next;
            }
        }
        if self.chunk < self.stream.plan.written {
            // What a stream is late beyond that is forgiven. A server that makes up for it writes without a pause; then each chunk wakes the
            // client for itself, which costs it more, and what is measured is how fast it reads, not how exactly.
            let gap = nanos(self.stream.script.gap);
            let due = self.due.max(now.saturating_sub(gap / CATCH_UP));
            return Next::At(due + gap + self.pause());
        }
        self.note(truths);
        let end = wire::ending(&self.stream.script, &self.stream.plan, self.stream.prompt_tokens);
        if self.chunk > self.stream.plan.written || end.is_empty() {
            return Next::Ended { whole: !end.is_empty() };
        }
        // The end is written once: one past the last chunk says that it was.
        self.chunk += 1;
        self.write(&end, self.stream.script.write_bytes, clock).unwrap_or(Next::Ended { whole: true })
    }

    fn note(&mut self, truths: &Truths) {
        if let Some(truth) = self.stream.truth.take() {
            note(truths, std::mem::take(&mut self.stream.prompt), truth);
        }
    }

    /// What the script wants before the next chunk.
    fn pause(&self) -> Nanos {
        self.stream.script.stall.filter(|&(before, _)| before == self.chunk).map_or(0, |(_, pause)| nanos(pause))
    }

    /// Writes in parts of a size; tells what is next where that was not all.
    fn write(&mut self, bytes: &[u8], part_bytes: Option<usize>, clock: &Clock) -> Option<Next> {
        let mut left = bytes;
        while !left.is_empty() {
            let part = &left[..part_bytes.unwrap_or(left.len()).min(left.len())];
            // Past the event loop, whose notes of what is ready cost a microsecond a chunk and are of no use here.
            match send(self.stream.socket.stream(), part, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(written) => left = &left[written..],
                Err(Errno::WOULDBLOCK) => {
                    self.rest = left.to_vec();
                    return Some(Next::At(clock.now() + nanos(RETRY)));
                }
                // A client that goes away is no concern of this server.
                Err(_) => return Some(Next::Ended { whole: false }),
            }
        }
        None
    }
}

fn nanos(time: Duration) -> Nanos {
    // 584 years fit.
    time.as_nanos() as Nanos
}
