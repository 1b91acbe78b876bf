//! Reads request bodies: JSON only, up to a size, within a time.

use axum::{
    body::{Body, HttpBody},
    http::{HeaderMap, Request, header},
};
use http_body_util::BodyExt;
use powertrain_protocol::ApiError;
use std::{pin::pin, time::Duration};

/// How long a body may take to arrive.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a body that is too large is read and thrown away: a client that is still writing when the connection
/// closes never sees the answer.
const DISCARD_BYTES_MAX: usize = 64 << 20;
/// How much is allocated on a client's word alone, before a byte of it came.
const CLAIM_BYTES_MAX: usize = 1 << 20;

/// The body of a request that says it is JSON.
pub(crate) async fn read(request: Request<Body>, limit_bytes: usize) -> Result<Vec<u8>, ApiError> {
    check_content_type(request.headers())?;
    match tokio::time::timeout(RECEIVE_TIMEOUT, receive(request.into_body(), limit_bytes)).await {
        Ok(body) => body,
        Err(_) => Err(ApiError::BodyTimeout { limit_s: RECEIVE_TIMEOUT.as_secs() }),
    }
}

/// Browsers send other types across origins without asking; so pages of strangers cannot use a server on localhost.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let found = match headers.get(header::CONTENT_TYPE) {
        None => "missing",
        Some(value) => value.to_str().unwrap_or("unreadable"),
    };
    let essence = found.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    Err(ApiError::UnsupportedMediaType { found: found.chars().take(100).collect() })
}

async fn receive(body: Body, limit_bytes: usize) -> Result<Vec<u8>, ApiError> {
    let mut body = pin!(body);
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity(expected.min(limit_bytes).min(CLAIM_BYTES_MAX));
    let mut received = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::BodyUnreadable(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        received = received.saturating_add(data.len());
        if received <= limit_bytes {
            bytes.extend_from_slice(&data);
        } else {
            bytes = Vec::new();
            if received > limit_bytes.saturating_add(DISCARD_BYTES_MAX) {
                break;
            }
        }
    }
    if received > limit_bytes { Err(ApiError::BodyTooLarge { limit_bytes }) } else { Ok(bytes) }
}
