//! One request over one connection: what is sent, and what is noted while the answer arrives.

use crate::{
    clock::Clock,
    http::{Connection, Connector, Head, SseParser, Url},
    live::Live,
    openai::{Part, Prompt, RequestOptions, append_text, error_message},
    record::{Chunk, Failure, FailureClass, Nanos, Outcome, RequestRecord},
    rounds,
    stop::{Bounded, Stop},
};
use std::{fmt::Write, sync::Arc, time::Duration};

/// Longest body that is kept whole: a non-streamed answer or an error.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Most content chunks of one answer.
const CHUNKS_MAX: usize = 1 << 20;
/// A body that begins so is one of events, whatever its type says.
const EVENT_BEGINNING: &[u8] = b"data:";
/// How much of a server's error is kept.
const MESSAGE_CHARACTERS_MAX: usize = 300;

/// Where requests go and how; shared by all clients of a run.
#[derive(Clone)]
pub struct Target {
    /// Makes connections.
    pub connector: Connector,
    /// The route's address.
    pub url: Url,
    /// Headers beyond our own, as `name: value`.
    pub headers: Vec<(String, String)>,
    /// What all bodies have in common.
    pub options: RequestOptions,
    /// Longest time from sending to the end of the answer.
    pub timeout: Duration,
    /// Open a new connection for every request.
    pub no_keep_alive: bool,
    /// The run's clock.
    pub clock: Clock,
    /// What the progress line shows.
    pub live: Arc<Live>,
}

/// One client's place in the run: it keeps its connection between requests.
pub struct Client {
    target: Arc<Target>,
    connection: Option<Connection>,
    /// The connection has carried a request.
    carried: bool,
    /// The text of the last answer, where it is kept.
    answer: Option<String>,
    /// Why a connection could not be made before a request needed it.
    unconnected: Option<Unconnected>,
}

struct Unconnected {
    began: Nanos,
    failure: Failure,
}

/// A request as bytes, ready to be due.
pub struct Prepared {
    bytes: Vec<u8>,
    streamed: bool,
}

impl Target {
    /// Writes out one request.
    pub fn prepare(&self, prompt: &Prompt, output_tokens_max: u32) -> Prepared {
        let body = self.options.body(prompt, output_tokens_max);
        Prepared { bytes: self.request("POST", &self.url, Some(&body)), streamed: self.options.stream }
    }

    /// The bytes of a request to any of the server's routes.
    pub fn request(&self, method: &str, url: &Url, body: Option<&[u8]>) -> Vec<u8> {
        let path = if url.path.is_empty() { "/" } else { &url.path };
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", url.authority());
        // Writing to a String cannot fail.
        _ = write!(
            head,
            "user-agent: powertrain/{}\r\naccept: */*\r\naccept-encoding: identity\r\n",
            env!("CARGO_PKG_VERSION")
        );
        for (name, value) in &self.headers {
            _ = write!(head, "{name}: {value}\r\n");
        }
        if self.no_keep_alive {
            head.push_str("connection: close\r\n");
        }
        if let Some(body) = body {
            _ = write!(head, "content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body.unwrap_or_default());
        bytes
    }
}

impl Client {
    /// A client without a connection yet.
    pub fn new(target: Arc<Target>) -> Self {
        Self { target, connection: None, carried: false, answer: None, unconnected: None }
    }

    /// Keeps the texts of answers from now on, for conversations.
    pub fn keep_answers(&mut self) {
        self.answer.get_or_insert_default();
    }

    /// The text of the last answer, as far as it came; empty where none is kept.
    pub fn answer(&self) -> &str {
        self.answer.as_deref().unwrap_or_default()
    }

    /// Makes the connection before anything is due. Where that fails it is not tried again: the failure is the result of
    /// the next request, which counts from this attempt.
    pub async fn connect_ahead(&mut self) {
        if self.target.no_keep_alive {
            return;
        }
        let began = self.target.clock.now();
        match self.target.connector.connect(&self.target.clock).await {
            Ok(connection) => self.connection = Some(connection),
            Err(failure) => self.unconnected = Some(Unconnected { began, failure }),
        }
    }

    /// Sends a request that is due and notes everything up to its end. Nothing is ever sent twice: an idle connection
    /// that the server has closed is replaced before sending, and a failure after that is the request's result.
    ///
    /// `record` brings the index, the scheduled time and what was asked. When the run is stopped, what was noted by then stays in it.
    pub async fn send(&mut self, request: &Prepared, record: &mut RequestRecord, stop: &Stop) {
        let target = self.target.clone();
        record.streamed = request.streamed;
        record.started = target.clock.now();
        target.live.started();
        if let Some(Unconnected { began, failure }) = self.unconnected.take() {
            (record.scheduled, record.started) = (began, began);
            record.ended = target.clock.now();
            record.failure = Some(failure);
            target.live.ended(record);
            return;
        }
        let failure = match stop.bound(target.timeout, self.exchange(&target, request, record)).await {
            Bounded::Done(done) => done.err(),
            Bounded::Late => {
                let message = format!("not complete within {:?}", target.timeout);
                Some(Failure { class: FailureClass::TimedOut, message })
            }
            Bounded::Stopped => {
                let message = "given up: the run was interrupted".to_owned();
                Some(Failure { class: FailureClass::Interrupted, message })
            }
        };
        record.ended = target.clock.now();
        record.failure = failure;
        if record.outcome() != Outcome::Interrupted {
            target.live.ended(record);
        }
    }

    async fn exchange(
        &mut self,
        target: &Target,
        request: &Prepared,
        record: &mut RequestRecord,
    ) -> Result<(), Failure> {
        let kept = self.connection.take().filter(|_| !target.no_keep_alive);
        let mut connection = match kept.and_then(|mut kept| (!kept.is_closed()).then_some(kept)) {
            Some(kept) => {
                record.reused_connection = std::mem::replace(&mut self.carried, true);
                kept
            }
            None => target.connector.connect(&target.clock).await?,
        };
        record.sent = Some(target.clock.now());
        connection.write(&request.bytes).await?;
        let (head, mut decoder) = connection.read_head().await?;
        record.first_byte = Some(head.first_byte);
        record.status = Some(head.status);
        if let Some(encoding) = &head.encoding {
            let message = format!("the answer is encoded as {encoding}, which was not asked for");
            return Err(Failure { class: FailureClass::Malformed, message });
        }

        if let Some(text) = &mut self.answer {
            text.clear();
        }
        let mut answer = Answer::new(&head, record, &target.live, self.answer.as_mut());
        let _reading = matches!(answer.reading, Reading::Events(_)).then(rounds::Reading::begin);
        loop {
            let done = connection.read_body(&mut decoder, |bytes, at| answer.take(bytes, at)).await?;
            if let Some(waited) = connection.take_wait() {
                target.live.waits.add(waited);
            }
            if done {
                break;
            }
            answer.failed()?;
        }
        let whole = !decoder.ends_with_connection();
        let at = target.clock.now();
        answer.finish(&head, whole, at)?;
        self.connection = Some(connection).filter(|_| head.keep_alive);
        self.carried = true;
        Ok(())
    }
}

/// A body as it arrives: how it is read, and what is noted of it.
struct Answer<'a> {
    reading: Reading,
    notes: Notes<'a>,
}

enum Reading {
    Events(SseParser),
    Whole(Vec<u8>),
}

struct Notes<'a> {
    record: &'a mut RequestRecord,
    live: &'a Live,
    failure: Option<Failure>,
    done_mark: bool,
    /// Tokens the server has counted so far.
    tokens_counted: Option<u32>,
    /// Where the text goes, if it is kept.
    text: Option<&'a mut String>,
}

impl<'a> Answer<'a> {
    fn new(head: &Head, record: &'a mut RequestRecord, live: &'a Live, text: Option<&'a mut String>) -> Self {
        let events = head.status == 200 && head.content_type == "text/event-stream";
        record.streamed = events;
        let reading = if events { Reading::Events(SseParser::default()) } else { Reading::Whole(Vec::new()) };
        Self { reading, notes: Notes { record, live, failure: None, done_mark: false, tokens_counted: None, text } }
    }

    fn take(&mut self, bytes: &[u8], at: Nanos) {
        let notes = &mut self.notes;
        if let Reading::Whole(body) = &mut self.reading
            && notes.record.status == Some(200)
            && body.len() < EVENT_BEGINNING.len()
        {
            // Events by another name.
            body.extend_from_slice(bytes);
            if body.starts_with(EVENT_BEGINNING) {
                notes.record.streamed = true;
                let body = std::mem::take(body);
                self.reading = Reading::Events(SseParser::default());
                self.take(&body, at);
            }
            return;
        }
        match &mut self.reading {
            Reading::Events(parser) => {
                if let Err(reason) = parser.push(bytes, |data| notes.event(data, at)) {
                    notes.fail(FailureClass::Malformed, reason.to_owned());
                }
            }
            Reading::Whole(body) if body.len() + bytes.len() > BODY_BYTES_MAX => {
                notes.fail(FailureClass::Malformed, "the body is longer than 64 MiB".to_owned());
            }
            Reading::Whole(body) => body.extend_from_slice(bytes),
        }
    }

    fn failed(&self) -> Result<(), Failure> {
        self.notes.failure.clone().map_or(Ok(()), Err)
    }

    /// Judges the body at its end; `whole` tells that its framing said so, not just the connection.
    fn finish(mut self, head: &Head, whole: bool, at: Nanos) -> Result<(), Failure> {
        self.failed()?;
        let parser = match &self.reading {
            Reading::Whole(body) if head.status == 200 => {
                self.notes.whole(body, &head.content_type, at);
                return self.failed();
            }
            Reading::Whole(body) => {
                let message = refusal(head, body);
                return Err(Failure { class: FailureClass::Status, message });
            }
            Reading::Events(parser) => parser,
        };
        let ended = self.notes.done_mark || (whole && self.notes.record.finish_reason.is_some());
        if ended {
            return Ok(());
        }
        let class = if whole { FailureClass::EndedEarly } else { FailureClass::Closed };
        let mut message = "the stream ended without its end mark or a finish reason".to_owned();
        if let Some(line) = parser.unknown_line() {
            message.push_str(&format!("; its last line: {}", shortened(&String::from_utf8_lossy(line))));
        }
        Err(Failure { class, message })
    }
}

impl Notes<'_> {
    fn event(&mut self, data: &[u8], at: Nanos) {
        if data.trim_ascii() == b"[DONE]" {
            self.done_mark = true;
            return;
        }
        if let Some(text) = &mut self.text {
            append_text(data, text);
        }
        match Part::parse(data) {
            Ok(part) => self.part(part, at),
            Err(error) => {
                let text = shortened(&String::from_utf8_lossy(data));
                self.fail(FailureClass::Malformed, format!("an event that is no chunk ({error}): {text}"));
            }
        }
    }

    fn part(&mut self, part: Part, at: Nanos) {
        if let Some(message) = part.error {
            self.fail(FailureClass::ServerError, shortened(&message));
            return;
        }
        let before = self.tokens_counted;
        if let Some(usage) = part.usage {
            self.record.usage = Some(usage);
            // Counts beside a choice are counts so far; a final one comes alone.
            if part.has_choice {
                self.tokens_counted = Some(usage.completion_tokens);
            }
        }
        if !part.has_choice {
            return;
        }
        self.record.first_event.get_or_insert(at);
        self.record.last_event = Some(at);
        if part.finish_reason.is_some() {
            self.record.finish_reason = part.finish_reason;
        }
        if part.characters == 0 {
            return;
        }
        if self.record.chunks.len() >= CHUNKS_MAX {
            self.fail(FailureClass::Malformed, format!("more than {CHUNKS_MAX} chunks"));
            return;
        }
        let tokens = self.tokens_counted.map(|counted| counted.saturating_sub(before.unwrap_or(0)));
        self.live.chunk(self.record, at);
        self.record.chunks.push(Chunk { at, characters: part.characters, tokens });
    }

    /// A body that came in one piece: its end is known, its first token is not.
    fn whole(&mut self, body: &[u8], content_type: &str, at: Nanos) {
        if let Some(text) = &mut self.text {
            append_text(body, text);
        }
        match Part::parse(body) {
            Ok(Part { error: Some(message), .. }) => self.fail(FailureClass::ServerError, shortened(&message)),
            Ok(part) if part.has_choice => {
                self.record.last_event = Some(at);
                self.record.usage = part.usage;
                self.record.finish_reason = part.finish_reason;
            }
            Ok(_) => self.fail(FailureClass::Malformed, "the answer has no choices".to_owned()),
            Err(error) => {
                let text = shortened(&String::from_utf8_lossy(body));
                let but = match content_type {
                    "" | "application/json" => String::new(),
                    other => format!(" but {other}"),
                };
                self.fail(FailureClass::Malformed, format!("the answer is not the API's{but} ({error}): {text}"));
            }
        }
    }

    /// Keeps the first failure.
    fn fail(&mut self, class: FailureClass, message: String) {
        self.failure.get_or_insert(Failure { class, message });
    }
}

/// Why the server answered with another status than 200, and what it wants done.
fn refusal(head: &Head, body: &[u8]) -> String {
    let status = head.status;
    match (&head.location, &head.retry_after) {
        (Some(location), _) if (300..400).contains(&status) => {
            format!("status {status}: moved to {}; measure that address", shortened(location))
        }
        (_, Some(wait)) => format!("status {status}: {} (retry after {})", shortened(&error_of(body)), shortened(wait)),
        _ => format!("status {status}: {}", shortened(&error_of(body))),
    }
}

/// The message in an error's body, JSON or not.
fn error_of(body: &[u8]) -> String {
    serde_json::from_slice(body)
        .map_or_else(|_| String::from_utf8_lossy(body).into_owned(), |error| error_message(&error))
}

fn shortened(text: &str) -> String {
    let line: String = text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
    match line.char_indices().nth(MESSAGE_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
