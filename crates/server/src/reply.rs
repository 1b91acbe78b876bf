//! Answers that are not streams: JSON, and errors in OpenAI's shape.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use powertrain_protocol::ApiError;
use serde::Serialize;

/// An [`ApiError`] on its way out.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let mut response = json(&error.body());
        *response.status_mut() = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if let Some(seconds) = error.retry_after_s() {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if error.never_retry() {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

/// A JSON answer.
pub(crate) fn json(value: &impl Serialize) -> Response {
    // Our types are plain structs with string keys; writing to memory cannot fail.
    let body = serde_json::to_vec(value).expect("responses serialise");
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
