//! One request's record: its id on the way in, its line in the log when the last byte is out or the client is gone.

use axum::http::{HeaderMap, HeaderValue};
use std::{
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The header that carries a request's id, in and out.
pub(crate) const REQUEST_ID: &str = "x-request-id";
/// The longest id taken from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// Routes asked every few seconds by machines; their lines are for debugging only.
const QUIET_PATHS: [&str; 3] = ["/health", "/ready", "/metrics"];

/// The reason of what nobody waited for.
pub(crate) const DISCONNECTED: &str = "disconnected";

/// Shared by the middleware, the handler and the body of a stream; the last one to let go writes the line.
#[derive(Clone, Debug)]
pub(crate) struct Record(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: String,
    method: String,
    path: String,
    arrived: Instant,
    outcome: Mutex<Outcome>,
}

/// What became of the request.
#[derive(Clone, Debug, Default)]
struct Outcome {
    status: Option<u16>,
    prompt_tokens: u32,
    cached_tokens: u32,
    generated_tokens: u32,
    ttft: Option<Duration>,
    reason: Option<String>,
}

impl Record {
    /// For a request that just arrived. Takes the client's id where it is printable, else makes one.
    pub(crate) fn new(method: &str, path: &str, headers: &HeaderMap) -> Self {
        let id = headers
            .get(REQUEST_ID)
            .and_then(|value| value.to_str().ok())
            .filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX)
            .map_or_else(random_id, str::to_owned);
        Self(Arc::new(Inner {
            id,
            method: method.to_owned(),
            path: path.to_owned(),
            arrived: Instant::now(),
            outcome: Mutex::default(),
        }))
    }

    /// The id as a header.
    pub(crate) fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0.id).unwrap_or(HeaderValue::from_static("unprintable"))
    }

    /// When it arrived.
    pub(crate) fn arrived(&self) -> Instant {
        self.0.arrived
    }

    /// The answer's head is on its way.
    pub(crate) fn status(&self, status: u16) {
        self.update(|outcome| outcome.status = Some(status));
    }

    /// A prompt was encoded.
    pub(crate) fn prompt(&self, tokens: u32) {
        self.update(|outcome| outcome.prompt_tokens += tokens);
    }

    /// A sequence ended or was given up.
    pub(crate) fn sequence(&self, generated: u32, cached: u32, first_token: Option<Instant>, reason: &str) {
        let ttft = first_token.map(|at| at.saturating_duration_since(self.0.arrived));
        self.update(|outcome| {
            outcome.generated_tokens += generated;
            outcome.cached_tokens = outcome.cached_tokens.max(cached);
            outcome.ttft = outcome.ttft.into_iter().chain(ttft).min();
            let reasons = outcome.reason.get_or_insert_default();
            if !reasons.split(',').any(|known| known == reason) {
                let comma = if reasons.is_empty() { "" } else { "," };
                // Writing to a String cannot fail.
                let _ = write!(reasons, "{comma}{reason}");
            }
        });
    }

    fn update(&self, change: impl FnOnce(&mut Outcome)) {
        change(&mut self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Self { id, method, path, arrived, outcome } = self;
        let outcome = outcome.get_mut().unwrap_or_else(PoisonError::into_inner);
        let milliseconds = |duration: Duration| (duration.as_secs_f64() * 1e5).round() / 100.0;
        let e2e_ms = milliseconds(arrived.elapsed());
        let ttft_ms = outcome.ttft.map(milliseconds);
        // nginx's number for a client that closed before the answer began.
        let status = outcome.status.unwrap_or(499);
        let reason = match &outcome.reason {
            Some(reason) => reason,
            None if outcome.status.is_some() => "-",
            None => DISCONNECTED,
        };
        if QUIET_PATHS.contains(&path.as_str()) {
            tracing::debug!(target: "powertrain::request", %id, %method, %path, status, e2e_ms, "request");
        } else {
            let Outcome { prompt_tokens, cached_tokens, generated_tokens, .. } = outcome;
            tracing::info!(
                target: "powertrain::request", %id, %method, %path, status, prompt_tokens, cached_tokens,
                generated_tokens, ttft_ms, e2e_ms, %reason, "request"
            );
        }
    }
}

/// 32 hexadecimal digits from the system's generator.
pub(crate) fn random_id() -> String {
    format!("{:016x}{:016x}", random_u64(), random_u64())
}

/// From the system's generator.
pub(crate) fn random_u64() -> u64 {
    // It fails only where the system has no random numbers at all; nothing here could go on then.
    getrandom::u64().expect("the system gives random numbers")
}
