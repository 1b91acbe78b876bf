//! Short questions to a server that may not be there yet.

use serde_json::Value;
use std::time::Duration;
use ureq::Agent;

/// Longest wait for one answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest answer that is kept.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Asks one server.
pub(crate) struct Probe {
    agent: Agent,
    url: String,
    key: Option<String>,
}

impl Probe {
    pub(crate) fn new(url: &str, key: Option<String>) -> Self {
        let config = Agent::config_builder().timeout_global(Some(ANSWER_TIME_MAX)).http_status_as_error(false).build();
        Self { agent: config.into(), url: url.trim_end_matches('/').trim_end_matches("/v1").to_owned(), key }
    }

    /// Status and body; none when there is no answer.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut answer = request.call().ok()?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string().ok()?;
        Some((status, body))
    }

    /// Healthy, as far as it has a page for that, and it lists a model.
    pub(crate) fn is_ready(&self) -> bool {
        // 404 and 405: a server without such a page.
        let healthy = self.get("/health").is_some_and(|(status, _)| matches!(status, 200 | 204 | 404 | 405));
        healthy
            && self
                .json("/v1/models")
                .is_some_and(|models| models["data"].as_array().is_some_and(|all| !all.is_empty()))
    }

    /// A page that is JSON.
    pub(crate) fn json(&self, path: &str) -> Option<Value> {
        let (status, body) = self.get(path)?;
        serde_json::from_str(&body).ok().filter(|_| status == 200)
    }
}
