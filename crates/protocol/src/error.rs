//! Every error a client can get: its HTTP status and its JSON, in OpenAI's shape.

use crate::Problems;
use serde::Serialize;

/// Why a request got no answer, or only part of one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// Fields are missing, malformed, out of range or not supported.
    #[error("{0}")]
    Invalid(Problems),
    /// The body is no JSON object.
    #[error("the body is not a JSON object: {0}")]
    BodyNotJson(String),
    /// The chat template refused the messages.
    #[error("{0}")]
    Template(String),
    /// Prompt and generation do not fit the model.
    #[error("{0}")]
    ContextLengthExceeded(String),
    /// The body could not be received.
    #[error("the body could not be read: {0}")]
    BodyUnreadable(String),
    /// No key, or one that is not ours.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// The model asked for is not the one served.
    #[error("the model `{asked}` does not exist here; this server has {}", served.join(", "))]
    ModelNotFound {
        /// What the request said.
        asked: String,
        /// The names this server answers to.
        served: Vec<String>,
    },
    /// No such route.
    #[error("no such route: {method} {path}")]
    RouteNotFound {
        /// The request's method.
        method: String,
        /// The request's path.
        path: String,
    },
    /// The route exists, for another method.
    #[error("{path} does not take {method}")]
    MethodNotAllowed {
        /// The request's method.
        method: String,
        /// The request's path.
        path: String,
    },
    /// The body did not arrive in time.
    #[error("the request body did not arrive within {limit_s} s")]
    BodyTimeout {
        /// The limit.
        limit_s: u64,
    },
    /// The body is over the size limit.
    #[error("the body is larger than the {limit_bytes} bytes this server takes; send less at once")]
    BodyTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The body is not declared as JSON.
    #[error("content-type is {found}; send the body as application/json")]
    UnsupportedMediaType {
        /// What the request said.
        found: String,
    },
    /// The waiting queue is full.
    #[error("{message}")]
    QueueFull {
        /// The engine's words.
        message: String,
        /// When to come back.
        retry_after_s: u64,
    },
    /// The request's own deadline passed.
    #[error(
        "the request's deadline (X-Request-Timeout-Ms or the server's --request-timeout) passed before it was done"
    )]
    DeadlineExceeded,
    /// The server is going away.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The engine does not answer.
    #[error("the engine is not healthy: {0}")]
    Unhealthy(String),
    /// This request failed in the engine.
    #[error("{0}")]
    Engine(String),
}

/// The JSON of an error.
#[derive(Debug, Serialize)]
pub struct ErrorBody {
    /// The one field.
    pub error: ErrorDetail,
}

/// What OpenAI clients read of an error.
#[derive(Debug, Serialize)]
pub struct ErrorDetail {
    /// For people.
    pub message: String,
    /// The class: `invalid_request_error`, `authentication_error`, …
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The first field at fault.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
}

impl ApiError {
    /// A single field's problem.
    #[must_use]
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(Problems(vec![crate::Problem { field: field.into(), message: message.into() }]))
    }

    /// Names the prompt at fault by its index, where the request has several of them.
    #[must_use]
    pub fn of_prompt(self, index: usize, count: usize) -> Self {
        if count < 2 {
            return self;
        }
        match self {
            Self::Invalid(mut problems) => {
                for problem in problems.0.iter_mut().filter(|problem| problem.field == "prompt") {
                    problem.field = format!("prompt[{index}]");
                }
                Self::Invalid(problems)
            }
            Self::ContextLengthExceeded(message) => Self::ContextLengthExceeded(format!("prompt[{index}]: {message}")),
            other => other,
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Invalid(_)
            | Self::BodyNotJson(_)
            | Self::BodyUnreadable(_)
            | Self::Template(_)
            | Self::ContextLengthExceeded(_) => 400,
            Self::Unauthorized(_) => 401,
            Self::ModelNotFound { .. } | Self::RouteNotFound { .. } => 404,
            Self::MethodNotAllowed { .. } => 405,
            Self::BodyTimeout { .. } => 408,
            Self::BodyTooLarge { .. } => 413,
            Self::UnsupportedMediaType { .. } => 415,
            Self::QueueFull { .. } => 429,
            Self::Engine(_) => 500,
            Self::ShuttingDown | Self::Unhealthy(_) => 503,
            Self::DeadlineExceeded => 504,
        }
    }

    /// The error as clients read it.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        let param = match self {
            Self::Invalid(problems) => problems.0.first().map(|problem| problem.field.clone()),
            Self::ModelNotFound { .. } => Some("model".to_owned()),
            Self::Template(_) => Some("messages".to_owned()),
            _ => None,
        };
        ErrorBody { error: ErrorDetail { message: self.to_string(), kind: self.kind(), param, code: self.code() } }
    }

    /// Seconds after which trying again makes sense.
    #[must_use]
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::QueueFull { retry_after_s, .. } => Some(*retry_after_s),
            // Long enough for a balancer to take this server out, or for a new one to start.
            Self::ShuttingDown | Self::Unhealthy(_) => Some(5),
            _ => None,
        }
    }

    /// Whether the official clients must not repeat the request by themselves, as they do for most 5xx: the same
    /// deadline would pass again.
    #[must_use]
    pub fn never_retry(&self) -> bool {
        matches!(self, Self::DeadlineExceeded)
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Unauthorized(_) => "authentication_error",
            Self::QueueFull { .. } => "rate_limit_error",
            Self::DeadlineExceeded | Self::BodyTimeout { .. } => "timeout_error",
            Self::ShuttingDown | Self::Unhealthy(_) => "service_unavailable_error",
            Self::Engine(_) => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// What programs read.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::ContextLengthExceeded(_) => "context_length_exceeded",
            Self::Unauthorized(_) => "invalid_api_key",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::BodyTooLarge { .. } => "request_too_large",
            Self::QueueFull { .. } => "queue_full",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::ShuttingDown => "shutting_down",
            Self::Unhealthy(_) => "engine_unhealthy",
            Self::Engine(_) => "engine_error",
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: &ApiError, status: u16, json: &str) {
        assert_eq!(error.status(), status);
        assert_eq!(serde_json::to_string(&error.body()).expect("plain data"), json);
    }

    #[test]
    fn errors_have_openais_shape() {
        check(
            &ApiError::field("temperature", "-1 is below 0"),
            400,
            r#"{"error":{"message":"temperature: -1 is below 0","type":"invalid_request_error","param":"temperature","code":null}}"#,
        );
        check(
            &ApiError::ModelNotFound { asked: "gpt-4".into(), served: vec!["smollm2".into()] },
            404,
            r#"{"error":{"message":"the model `gpt-4` does not exist here; this server has smollm2","type":"invalid_request_error","param":"model","code":"model_not_found"}}"#,
        );
        check(
            &ApiError::QueueFull { message: "full".into(), retry_after_s: 3 },
            429,
            r#"{"error":{"message":"full","type":"rate_limit_error","param":null,"code":"queue_full"}}"#,
        );
    }
}
