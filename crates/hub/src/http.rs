//! The HTTP client: rustls with the system's certificates, proxies from the environment, bounded answers.

use crate::HubError;
use std::{io::Read, time::Duration};
use ureq::{
    Agent, Body,
    config::RedirectAuthHeaders,
    http::{HeaderMap, Response},
    tls::{RootCerts, TlsConfig},
};

/// Longest JSON or HTML answer read into memory.
const DOCUMENT_BYTES_MAX: u64 = 32 << 20;
/// A connection that takes longer is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// A server silent for longer is given up (and, in a download, asked again for the rest).
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests without any progress before giving up.
pub(crate) const ATTEMPTS_MAX: u32 = 5;

/// Shared by all transfers: connections are kept alive.
pub(crate) struct Client {
    agent: Agent,
    retry_delay: Duration,
}

/// A GET or HEAD to make.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) url: &'a str,
    pub(crate) bearer: Option<&'a str>,
    /// Extra header, such as `Range` or `Accept`.
    pub(crate) header: Option<(&'static str, &'a str)>,
}

impl Client {
    pub(crate) fn new(retry_delay: Duration) -> Self {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // A token goes to the host it was meant for, not to the storage it redirects to.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(SILENCE_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .user_agent(concat!("powertrain/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { agent, retry_delay }
    }

    /// GET, redirects followed; one attempt.
    pub(crate) fn get(&self, ask: Ask<'_>) -> Result<Response<Body>, ureq::Error> {
        ask.apply(self.agent.get(ask.url)).call()
    }

    /// HEAD, no redirect followed: the Hub's own headers stand on the redirect. Tried again while there is no answer.
    pub(crate) fn head(&self, ask: Ask<'_>) -> Result<Response<Body>, HubError> {
        self.repeat(ask.url, || {
            let request = self.agent.head(ask.url).config().max_redirects(0).build();
            ask.apply(request).call()
        })
    }

    /// A document as text, with its headers. Tried again while there is no answer or a 5xx.
    ///
    /// A status of 400 or more comes back as [`HubError::Status`] with an empty hint.
    pub(crate) fn document(&self, ask: Ask<'_>) -> Result<(HeaderMap, String), HubError> {
        let response = self.repeat(ask.url, || self.get(ask))?;
        let status = response.status().as_u16();
        if status >= 400 {
            return Err(HubError::Status { url: ask.url.to_owned(), status, hint: String::new() });
        }
        let (parts, body) = response.into_parts();
        let mut text = String::new();
        let read = body.into_reader().take(DOCUMENT_BYTES_MAX).read_to_string(&mut text);
        let size = read.map_err(|error| HubError::Network { url: ask.url.to_owned(), reason: error.to_string() })?;
        if size as u64 == DOCUMENT_BYTES_MAX {
            let reason = format!("longer than {DOCUMENT_BYTES_MAX} bytes");
            return Err(HubError::Answer { url: ask.url.to_owned(), reason });
        }
        Ok((parts.headers, text))
    }

    /// Waits before attempt `failures + 1`.
    pub(crate) fn pause(&self, failures: u32) {
        std::thread::sleep(self.retry_delay * failures);
    }

    fn repeat(
        &self,
        url: &str,
        attempt: impl Fn() -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, HubError> {
        let mut failures = 0;
        loop {
            let reason = match attempt() {
                Ok(response) if response.status().is_server_error() => format!("status {}", response.status().as_u16()),
                Ok(response) => return Ok(response),
                Err(error) if is_final(&error) => return Err(network(url, &error)),
                Err(error) => error.to_string(),
            };
            failures += 1;
            if failures >= ATTEMPTS_MAX {
                return Err(HubError::Network { url: url.to_owned(), reason });
            }
            self.pause(failures);
        }
    }
}

impl Ask<'_> {
    fn apply<B>(&self, mut request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        if let Some(token) = self.bearer {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some((name, value)) = self.header {
            request = request.header(name, value);
        }
        request
    }
}

/// Whether asking again cannot help: no such host, a certificate that is not trusted, a bad address.
pub(crate) fn is_final(error: &ureq::Error) -> bool {
    !matches!(error, ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::Protocol(_))
        || matches!(error, ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::ConnectionRefused)
        || matches!(error, ureq::Error::Io(io) if io.to_string().contains("certificate"))
}

pub(crate) fn network(url: &str, error: &ureq::Error) -> HubError {
    HubError::Network { url: url.to_owned(), reason: error.to_string() }
}

/// A header's value, when it is there and is text.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `reference` as a link on the page `base` means it; the fragment is cut off.
pub(crate) fn join(base: &str, reference: &str) -> String {
    let reference = reference.split('#').next().unwrap_or_default();
    if reference.contains("://") {
        return reference.to_owned();
    }
    let (scheme, rest) = base.split_once("://").unwrap_or(("https", base));
    if let Some(other_host) = reference.strip_prefix("//") {
        return format!("{scheme}://{other_host}");
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if let Some(absolute) = reference.strip_prefix('/') {
        return format!("{scheme}://{host}/{absolute}");
    }
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in reference.split('/') {
        match part {
            ".." => _ = parts.pop(),
            "." => {}
            part => parts.push(part),
        }
    }
    format!("{scheme}://{host}/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::join;

    #[test]
    fn links_are_joined() {
        let page = "https://host:1/simple/name/";
        for (link, expected) in [
            ("https://other/a.whl#sha256=1", "https://other/a.whl"),
            ("//other/a.whl", "https://other/a.whl"),
            ("/p/a.whl", "https://host:1/p/a.whl"),
            ("../../p/a.whl", "https://host:1/p/a.whl"),
            ("a.whl", "https://host:1/simple/name/a.whl"),
        ] {
            assert_eq!(join(page, link), expected);
        }
    }
}
