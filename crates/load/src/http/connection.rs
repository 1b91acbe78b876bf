//! One connection to the server: made, written, and read with the time at which each read's bytes had come.

use super::{BodyDecoder, BodyState, ReadTimes, Scheme, Socket, Trust, Url, stamps::Stamps};
use crate::{
    clock::Clock,
    record::{Failure, FailureClass, Nanos},
};
use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Longest accepted response head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most headers of a response.
const HEADERS_MAX: usize = 128;
/// Of a connection's own buffer, at first: a head and the beginning of a body.
const BUFFER_BYTES: usize = 4 << 10;
/// Large enough for whatever a stream of tokens brings at once.
const READ_BYTES: usize = 16 << 10;

thread_local! {
    /// Bodies are read here and used at once: space that all connections of a thread share stays in its CPU's cache, a buffer for each of a
    /// thousand does not.
    static SPACE: RefCell<Box<[u8; READ_BYTES]>> = RefCell::new(Box::new([0; READ_BYTES]));
}

/// How connections are made.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long one may take, TCP and TLS together.
    pub connect: Duration,
    /// Whom to believe over https.
    pub trust: Trust,
}

/// Makes connections to one server, whose name was looked up once: the resolver's speed is no property of the server.
#[derive(Clone)]
pub struct Connector {
    addresses: Vec<SocketAddr>,
    tls: Option<(TlsConnector, rustls::pki_types::ServerName<'static>)>,
    time_max: Duration,
    /// For as long as connections may be made.
    _stamps: Arc<Option<Stamps>>,
}

/// An open connection with its read buffer.
pub struct Connection {
    transport: Transport,
    buffer: Vec<u8>,
    /// The bytes read and not yet used.
    start: usize,
    end: usize,
    /// When the bytes of the last read came.
    read: ReadTimes,
}

enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

/// A response's status and what its headers say about the body.
#[derive(Debug)]
pub struct Head {
    /// Status code.
    pub status: u16,
    /// The body's type, lower case, without parameters.
    pub content_type: String,
    /// How the body is packed, where it is.
    pub encoding: Option<String>,
    /// Where the server wants the request sent.
    pub location: Option<String>,
    /// When the server wants it sent again.
    pub retry_after: Option<String>,
    /// The connection can carry another request after the body.
    pub keep_alive: bool,
    /// When the first byte came.
    pub first_byte: Nanos,
}

/// A head and the decoder of the body that follows it.
pub type Response = (Head, BodyDecoder);

impl Connector {
    /// Looks the host up, and loads this machine's certificate authorities for https.
    ///
    /// # Errors
    /// When the name has no address or the certificates cannot be used.
    pub async fn new(url: &Url, limits: &Limits) -> Result<Self, Failure> {
        let failure = |class, message: String| Failure { class, message };
        let found = tokio::net::lookup_host((url.host.as_str(), url.port)).await;
        let addresses: Vec<SocketAddr> = found
            .map_err(|error| failure(FailureClass::UnknownHost, format!("cannot look up {}: {error}", url.host)))?
            .collect();
        if addresses.is_empty() {
            return Err(failure(FailureClass::UnknownHost, format!("{} has no address", url.host)));
        }
        let tls = match url.scheme {
            Scheme::Http => None,
            Scheme::Https => {
                Some(limits.trust.connector(&url.host).map_err(|message| failure(FailureClass::Tls, message))?)
            }
        };
        Ok(Self { addresses, tls, time_max: limits.connect, _stamps: Arc::new(Stamps::begin()) })
    }

    /// Opens a connection, trying the addresses in order, each once.
    ///
    /// # Errors
    /// The last address's.
    pub async fn connect(&self, clock: &Clock) -> Result<Connection, Failure> {
        match tokio::time::timeout(self.time_max, self.try_connect(clock)).await {
            Ok(done) => done,
            Err(_) => {
                let message = format!("no connection within {:?}", self.time_max);
                Err(Failure { class: FailureClass::Unreachable, message })
            }
        }
    }

    async fn try_connect(&self, clock: &Clock) -> Result<Connection, Failure> {
        let mut last = None;
        for &address in &self.addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return self.secure(stream, clock).await,
                Err(error) => last = Some(connect_failure(&error, address)),
            }
        }
        // There is at least one address, so there was an error.
        Err(last.unwrap_or_else(|| Failure { class: FailureClass::Unreachable, message: "no address".to_owned() }))
    }

    async fn secure(&self, stream: TcpStream, clock: &Clock) -> Result<Connection, Failure> {
        // Without it small writes may wait for acknowledgements; where it fails the socket works all the same.
        _ = stream.set_nodelay(true);
        let stream = Socket::new(stream, *clock);
        let transport = match &self.tls {
            None => Transport::Plain(stream),
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await;
                let class = FailureClass::Tls;
                Transport::Tls(Box::new(stream.map_err(|error| Failure { class, message: error.to_string() })?))
            }
        };
        Ok(Connection { transport, buffer: vec![0; BUFFER_BYTES], start: 0, end: 0, read: ReadTimes::default() })
    }
}

impl Connection {
    /// Whether the server has closed this idle connection, as far as this side knows by now.
    pub fn is_closed(&mut self) -> bool {
        let (stream, plain) = match &self.transport {
            Transport::Plain(socket) => (socket.stream(), true),
            Transport::Tls(stream) => (stream.get_ref().0.stream(), false),
        };
        let mut byte = [0];
        match stream.poll_peek(&mut Context::from_waker(Waker::noop()), &mut ReadBuf::new(&mut byte)) {
            Poll::Pending => self.start < self.end,
            // Between requests TLS may still have tickets for us; plain HTTP has nothing to say.
            Poll::Ready(Ok(bytes)) => bytes == 0 || plain,
            Poll::Ready(Err(_)) => true,
        }
    }

    /// Hands all bytes to the socket.
    ///
    /// # Errors
    /// The socket's.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let done = match &mut self.transport {
            Transport::Plain(stream) => stream.write_all(bytes).await,
            Transport::Tls(stream) => match stream.write_all(bytes).await {
                Ok(()) => stream.flush().await,
                error => error,
            },
        };
        done.map_err(|error| stream_failure(&error))
    }

    /// Reads a response's head, skipping informational ones.
    ///
    /// # Errors
    /// When the connection ends, or what arrives is no HTTP/1.1.
    pub async fn read_head(&mut self) -> Result<Response, Failure> {
        let mut first_byte = None;
        loop {
            if self.start < self.end {
                first_byte.get_or_insert(self.read.received);
                if let Some((head, decoder, used)) = parse_head(&self.buffer[self.start..self.end], self.read.received)?
                {
                    self.start += used;
                    if head.status >= 200 {
                        return Ok((Head { first_byte: first_byte.unwrap_or(self.read.received), ..head }, decoder));
                    }
                    continue;
                }
                self.make_room()?;
            }
            self.fill().await?;
        }
    }

    /// Hands over the next piece of the body with the time at which it came; waits for one if none is buffered.
    ///
    /// # Errors
    /// When the connection ends before the body does, or its framing is wrong.
    pub async fn read_body(
        &mut self,
        decoder: &mut BodyDecoder,
        mut content: impl FnMut(&[u8], Nanos),
    ) -> Result<bool, Failure> {
        if decoder.is_empty() {
            return Ok(true);
        }
        if self.start < self.end {
            let at = self.read.received;
            let state = decoder.decode(&self.buffer[self.start..self.end], |part| content(part, at));
            return match state.map_err(malformed)? {
                BodyState::Open => {
                    (self.start, self.end) = (0, 0);
                    Ok(false)
                }
                BodyState::Complete { used } => {
                    self.start += used;
                    Ok(true)
                }
            };
        }
        std::future::poll_fn(|cx| {
            SPACE.with_borrow_mut(|space| {
                let mut space = ReadBuf::new(&mut space[..]);
                let read = ready!(self.transport.poll_read(cx, &mut space, &mut self.read));
                Poll::Ready(read.and_then(|()| self.use_up(space.filled(), decoder, &mut content)))
            })
        })
        .await
    }

    /// Decodes what was just read of a body; nothing is the connection's end. What follows the body is kept.
    fn use_up(
        &mut self,
        bytes: &[u8],
        decoder: &mut BodyDecoder,
        content: &mut impl FnMut(&[u8], Nanos),
    ) -> Result<bool, Failure> {
        if bytes.is_empty() {
            return if decoder.ends_with_connection() { Ok(true) } else { Err(closed()) };
        }
        let at = self.read.received;
        match decoder.decode(bytes, |part| content(part, at)).map_err(malformed)? {
            BodyState::Open => Ok(false),
            BodyState::Complete { used } => {
                let rest = &bytes[used..];
                if self.buffer.len() < rest.len() {
                    self.buffer.resize(rest.len(), 0);
                }
                self.buffer[..rest.len()].copy_from_slice(rest);
                (self.start, self.end) = (0, rest.len());
                Ok(true)
            }
        }
    }

    /// How long the bytes of the last read lay in the socket, told once; none where the kernel did not tell.
    pub fn take_wait(&mut self) -> Option<Nanos> {
        self.read.waited.take()
    }

    /// Reads more into the connection's own buffer.
    async fn fill(&mut self) -> Result<(), Failure> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let read = std::future::poll_fn(|cx| {
            let mut space = ReadBuf::new(&mut self.buffer[self.end..]);
            let read = ready!(self.transport.poll_read(cx, &mut space, &mut self.read));
            Poll::Ready(read.map(|()| space.filled().len()))
        });
        match read.await? {
            0 => Err(closed()),
            bytes => {
                self.end += bytes;
                Ok(())
            }
        }
    }

    /// Makes space to read more of a head.
    fn make_room(&mut self) -> Result<(), Failure> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.end == self.buffer.len() {
            if self.end >= HEAD_BYTES_MAX {
                return Err(malformed("the response's head is longer than 64 KiB"));
            }
            self.buffer.resize(self.end * 2, 0);
        }
        Ok(())
    }
}

impl Transport {
    /// One read, and when its bytes had come.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
        times: &mut ReadTimes,
    ) -> Poll<Result<(), Failure>> {
        let read = match self {
            Self::Plain(socket) => {
                let read = ready!(Pin::new(&mut *socket).poll_read(cx, space));
                *times = socket.times();
                read
            }
            Self::Tls(stream) => {
                let read = ready!(Pin::new(&mut **stream).poll_read(cx, space));
                // What an earlier read brought and nobody asked for yet was not waited for anew.
                let last = stream.get_ref().0.times();
                let waited = last.waited.filter(|_| last.received != times.received);
                *times = ReadTimes { waited, ..last };
                read
            }
        };
        Poll::Ready(read.map_err(|error| stream_failure(&error)))
    }
}

/// The head at the start of `bytes`, its body's decoder and its length; none while it is incomplete.
fn parse_head(bytes: &[u8], first_byte: Nanos) -> Result<Option<(Head, BodyDecoder, usize)>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let used = match response.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => {
            let message = format!("not an HTTP/1.1 response: {error}");
            return Err(Failure { class: FailureClass::Malformed, message });
        }
    };
    let status = response.code.unwrap_or(0);
    let mut keep_alive = response.version == Some(1);
    let (mut content_type, mut length, mut chunked) = (String::new(), None, false);
    let (mut encoding, mut location, mut retry_after) = (None, None, None);
    for header in response.headers.iter() {
        let given = String::from_utf8_lossy(header.value).trim().to_owned();
        let value = given.to_ascii_lowercase();
        match header.name.to_ascii_lowercase().as_str() {
            "content-type" => content_type = value.split(';').next().unwrap_or("").trim().to_owned(),
            "content-length" => {
                let bytes = value.parse::<u64>().map_err(|_| malformed("a content-length that is no number"))?;
                if length.replace(bytes).is_some_and(|other| other != bytes) {
                    return Err(malformed("two content-lengths that differ"));
                }
            }
            "transfer-encoding" => chunked = value.split(',').next_back().is_some_and(|last| last.trim() == "chunked"),
            "content-encoding" => encoding = Some(value).filter(|encoding| encoding != "identity"),
            "location" => location = Some(given),
            "retry-after" => retry_after = Some(given),
            "connection" => keep_alive &= !value.split(',').any(|option| option.trim() == "close"),
            _ => {}
        }
    }
    let decoder = match (status, chunked, length) {
        (100..200 | 204 | 304, ..) => BodyDecoder::length(0),
        (_, true, _) => BodyDecoder::chunked(),
        (_, false, Some(bytes)) => BodyDecoder::length(bytes),
        (_, false, None) => BodyDecoder::until_close(),
    };
    keep_alive &= !decoder.ends_with_connection();
    let head = Head { status, content_type, encoding, location, retry_after, keep_alive, first_byte };
    Ok(Some((head, decoder, used)))
}

fn closed() -> Failure {
    Failure { class: FailureClass::Closed, message: "the server closed the connection".to_owned() }
}

fn malformed(message: &str) -> Failure {
    Failure { class: FailureClass::Malformed, message: message.to_owned() }
}

fn connect_failure(error: &io::Error, address: SocketAddr) -> Failure {
    const TOO_MANY_FILES: [i32; 2] = [23, 24];
    let class = match error.kind() {
        io::ErrorKind::ConnectionRefused => FailureClass::Refused,
        io::ErrorKind::AddrNotAvailable => FailureClass::ClientExhausted,
        _ if error.raw_os_error().is_some_and(|code| TOO_MANY_FILES.contains(&code)) => FailureClass::ClientExhausted,
        _ => FailureClass::Unreachable,
    };
    Failure { class, message: format!("cannot connect to {address}: {error}") }
}

fn stream_failure(error: &io::Error) -> Failure {
    let class = match error.kind() {
        io::ErrorKind::InvalidData => FailureClass::Tls,
        _ => FailureClass::Closed,
    };
    Failure { class, message: format!("the connection broke: {error}") }
}
