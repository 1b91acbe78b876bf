//! What the operator decides about the HTTP side.

use std::time::Duration;

/// Flags of `serve` that concern HTTP.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Address or name to listen on (`--host`).
    pub host: String,
    /// Port (`--port`); 0 takes any free one.
    pub port: u16,
    /// Keys of which every route but `/health` and `/ready` wants one (`--api-key`); none: no key is needed.
    pub api_keys: Vec<String>,
    /// Names that requests may use for the model, at least one; the first is in answers and metrics (`--served-model-name`).
    pub served_model_names: Vec<String>,
    /// The largest request body.
    pub request_bytes_max: usize,
    /// How long a request may take when it says nothing itself (`--request-timeout`).
    pub request_timeout: Option<Duration>,
    /// How long requests may run on after the signal to stop (`--shutdown-timeout`).
    pub shutdown_timeout: Duration,
    /// How long a server whose engine died still answers, with the reason, before it ends.
    pub death_notice: Duration,
    /// Origins whose pages may call this server (`--allowed-origin`); `*` means any; none: CORS is off.
    pub allowed_origins: Vec<String>,
    /// Connections at once; further ones wait in the system's queue.
    pub connections_max: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8000,
            api_keys: Vec::new(),
            served_model_names: vec!["default".to_owned()],
            request_bytes_max: 8 << 20,
            request_timeout: None,
            shutdown_timeout: Duration::from_secs(30),
            death_notice: Duration::from_secs(2),
            allowed_origins: Vec::new(),
            connections_max: 4096,
        }
    }
}
