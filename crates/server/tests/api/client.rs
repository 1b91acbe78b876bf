//! A client that can leave in the middle.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, body::Incoming, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::SocketAddr;
use tokio::{net::TcpStream, task::JoinHandle};

/// One connection. Dropping it closes it.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
    headers: Vec<(&'static str, String)>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// An answer whose body still comes.
pub(crate) struct Events {
    body: Incoming,
    buffer: Vec<u8>,
    /// Kept, as the connection closes with it.
    _client: Client,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server listens");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        let connection = tokio::spawn(async {
            // It ends with an error where the test leaves early.
            let _ = connection.await;
        });
        Self { sender, connection, headers: Vec::new() }
    }

    /// With a header in all requests.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send(Method::GET, path, Bytes::new()).await.whole().await
    }

    pub(crate) async fn post(&mut self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string()).await
    }

    pub(crate) async fn post_bytes(&mut self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send(Method::POST, path, body.into()).await.whole().await
    }

    pub(crate) async fn method(&mut self, method: Method, path: &str) -> Answer {
        self.send(method, path, Bytes::new()).await.whole().await
    }

    /// Starts a stream.
    pub(crate) async fn stream(mut self, path: &str, body: &Value) -> Events {
        let response = self.send(Method::POST, path, body.to_string().into()).await.0;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        Events { body: response.into_body(), buffer: Vec::new(), _client: self }
    }

    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Pending {
        let mut request = Request::builder().method(&method).uri(path).header("host", "test");
        if method == Method::POST && !self.headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(body)).expect("a request");
        Pending(self.sender.send_request(request).await.expect("an answer"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

struct Pending(Response<Incoming>);

impl Pending {
    async fn whole(self) -> Answer {
        let (head, body) = self.0.into_parts();
        let body = body.collect().await.expect("the whole body").to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The JSON of a success.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Status and message of an error in OpenAI's shape.
    pub(crate) fn error(&self) -> (u16, String) {
        let json = self.json();
        assert_eq!(self.headers["content-type"], "application/json");
        assert!(json["error"]["type"].is_string(), "{json}");
        (self.status, json["error"]["message"].as_str().expect("a message").to_owned())
    }
}

impl Events {
    /// The next event's data; `None` at the end of the body.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let text = String::from_utf8(event).expect("UTF-8");
                return Some(text.trim_end().strip_prefix("data: ").expect("an event").to_owned());
            }
            let frame = self.body.frame().await?.expect("the body goes on");
            self.buffer.extend_from_slice(&frame.into_data().expect("data"));
        }
    }

    /// The next event that is JSON.
    pub(crate) async fn chunk(&mut self) -> Value {
        serde_json::from_str(&self.next().await.expect("an event")).expect("JSON")
    }

    /// All further chunks; the stream must end with `[DONE]`.
    pub(crate) async fn rest(mut self) -> Vec<Value> {
        let mut chunks = Vec::new();
        loop {
            match self.next().await.as_deref() {
                Some("[DONE]") => break,
                Some(data) => chunks.push(serde_json::from_str(data).expect("JSON")),
                None => panic!("the stream ended without [DONE] after {chunks:?}"),
            }
        }
        assert_eq!(self.next().await, None);
        chunks
    }
}

/// The text of one choice in the chunks of a stream.
pub(crate) fn streamed_text(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("choices"));
    choices
        .filter(|choice| choice["index"] == index)
        .filter_map(|choice| choice["delta"]["content"].as_str().or(choice["text"].as_str()))
        .collect()
}
