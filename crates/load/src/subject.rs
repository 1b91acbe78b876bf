//! What was measured: what the server tells about itself, and its own counters before and after.

use crate::{definitions::ttft, exchange::Target, http::Url, record::RequestRecord, session::Session};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Most counters kept of a page of metrics.
const METRICS_MAX: usize = 20_000;

/// What the server says it is; null where it has no such page.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// `GET /v1/models`
    pub models: Value,
    /// `GET /version`
    pub version: Value,
    /// `GET /v1/engine`
    pub engine: Value,
    /// What else servers tell about their version and flags, by path: SGLang's `/get_server_info`, TGI's `/info`,
    /// llama.cpp's `/props`, Ollama's `/api/version`, vLLM's `/server_info?config_format=json`.
    #[serde(default)]
    pub pages: BTreeMap<String, Value>,
}

/// Where servers list their models.
pub(crate) const MODELS: &str = "/v1/models";
/// Pages on which some servers tell their version and flags.
const PAGES: [&str; 5] = ["/get_server_info", "/info", "/props", "/api/version", "/server_info?config_format=json"];

/// A Prometheus page: value by name and labels.
pub type Metrics = BTreeMap<String, f64>;

/// The counters that moved during a level.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsChange {
    /// Value before and after, by name and labels; those that did not change are left out.
    pub changed: BTreeMap<String, (f64, f64)>,
    /// Mean TTFT as the server saw it, over all requests of the level, warm-up included.
    pub server_ttft_ms_mean: Option<f64>,
    /// Requests that mean is over.
    pub server_ttft_count: u64,
    /// Mean TTFT as the client saw it, over all answers of the level, warm-up included: the difference is what the network
    /// and the client's side add.
    pub client_ttft_ms_mean: Option<f64>,
}

impl Subject {
    /// Asks the server; and whether it gave its list of models, or why not. A server that gives no answer to that is asked nothing
    /// more: each further question would wait as long.
    pub(crate) fn ask(session: &Session, target: &Target) -> (Self, Result<(), String>) {
        let root = target.url.root();
        let models = match session.ask(target, "GET", &root.join(MODELS), None) {
            Ok(reply) if reply.status == 200 => json_or_text(&reply.body),
            Ok(reply) => {
                let reason = format!("status {}", reply.status);
                return (Self::told(session, target, Value::Null), Err(reason));
            }
            Err(failure) => return (Self::default(), Err(failure.message)),
        };
        (Self::told(session, target, models), Ok(()))
    }

    fn told(session: &Session, target: &Target, models: Value) -> Self {
        let root = target.url.root();
        let page = |path: &str| {
            let body = session.body(target, "GET", &root.join(path), None);
            body.map_or(Value::Null, |body| json_or_text(&body))
        };
        let pages = PAGES.iter().map(|&path| (path.to_owned(), page(path))).filter(|(_, page)| page.is_object());
        Self { models, version: page("/version"), engine: page("/v1/engine"), pages: pages.collect() }
    }

    /// The first model the server offers.
    pub fn first_model(&self) -> Option<&str> {
        self.models.get("data")?.get(0)?.get("id")?.as_str()
    }
}

fn json_or_text(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).trim().into())
}

/// One page of metrics.
#[derive(Default)]
pub(crate) struct Page {
    pub(crate) samples: Metrics,
    /// Names of those that go up and down.
    pub(crate) gauges: Vec<String>,
}

/// The server's metrics; empty where it has none.
pub(crate) fn page(session: &Session, target: &Target) -> Page {
    let url: Url = target.url.root().join("/metrics");
    let page = session.body(target, "GET", &url, None).unwrap_or_default();
    let text = String::from_utf8_lossy(&page);
    let gauges = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" gauge"));
    Page { samples: parse(&text), gauges: gauges.map(|name| name.trim().to_owned()).collect() }
}

impl MetricsChange {
    /// What moved between two pages.
    pub fn between(before: &Metrics, after: &Metrics, records: &[RequestRecord]) -> Self {
        let moved = after.iter().filter_map(|(name, &now)| {
            let then = before.get(name).copied().unwrap_or(0.0);
            (now != then).then(|| (name.clone(), (then, now)))
        });
        let changed: BTreeMap<_, _> = moved.collect();
        // Servers with aliases show the same histogram under several names: one is enough.
        let bare = |name: &str| name.split('{').next().unwrap_or_default().to_owned();
        let histogram = changed.keys().map(|name| bare(name)).find_map(|name| {
            name.strip_suffix("_count").filter(|name| name.ends_with("time_to_first_token_seconds")).map(str::to_owned)
        });
        let total = |suffix: &str| -> f64 {
            let Some(histogram) = &histogram else { return 0.0 };
            let wanted = format!("{histogram}_{suffix}");
            changed.iter().filter(|(name, _)| bare(name) == wanted).map(|(_, (then, now))| now - then).sum()
        };
        let (sum, count) = (total("sum"), total("count"));
        let server_ttft_ms_mean = (count > 0.0).then(|| sum / count * 1e3);
        let seen: Vec<f64> = records.iter().filter_map(ttft).map(|nanos| nanos as f64 / 1e6).collect();
        let client_ttft_ms_mean = (!seen.is_empty()).then(|| seen.iter().sum::<f64>() / seen.len() as f64);
        Self { changed, server_ttft_ms_mean, server_ttft_count: count as u64, client_ttft_ms_mean }
    }
}

/// The samples of a page in Prometheus's text format that are finite numbers, without the times at which counters were made
/// (`_created`, which Python's client adds to each).
fn parse(page: &str) -> Metrics {
    let samples = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        // Labels may hold spaces; the value is the first word after them.
        let end = line.rfind('}').map_or_else(|| line.find(' '), |brace| Some(brace + 1))?;
        if line[..end].split('{').next()?.ends_with("_created") {
            return None;
        }
        let value: f64 = line[end..].split_whitespace().next()?.parse().ok()?;
        value.is_finite().then(|| (line[..end].to_owned(), value))
    });
    samples.take(METRICS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moved_counters_and_the_servers_ttft_are_found() {
        let before = parse(
            "# HELP x y\nvllm:time_to_first_token_seconds_sum{model=\"a b\"} 1.5\n\
             vllm:time_to_first_token_seconds_count{model=\"a b\"} 10\nidle 3\nbad NaN\nrequests_total 1 1700000000\n\
             requests_created{path=\"/\"} 1.7e9\n",
        );
        assert_eq!(before.len(), 4);
        let mut after = before.clone();
        after.insert("vllm:time_to_first_token_seconds_sum{model=\"a b\"}".to_owned(), 2.5);
        after.insert("vllm:time_to_first_token_seconds_count{model=\"a b\"}".to_owned(), 20.0);
        // An alias of the same histogram, which must not count twice.
        after.insert("own_time_to_first_token_seconds_sum".to_owned(), 1.0);
        after.insert("own_time_to_first_token_seconds_count".to_owned(), 10.0);
        after.insert("new".to_owned(), 2.0);
        let change = MetricsChange::between(&before, &after, &[]);
        assert_eq!((change.server_ttft_ms_mean, change.server_ttft_count), (Some(100.0), 10));
        assert_eq!(change.changed.get("new"), Some(&(0.0, 2.0)));
        assert_eq!(change.changed.len(), 5);
        assert_eq!(MetricsChange::between(&before, &before, &[]).server_ttft_ms_mean, None);
    }
}
