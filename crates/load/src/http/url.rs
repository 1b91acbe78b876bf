//! The address of a server: `http://host:port/path` and `https://…`.

use std::{fmt, str::FromStr};

/// Plain or encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain TCP.
    Http,
    /// TLS.
    Https,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Plain or encrypted.
    pub scheme: Scheme,
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Port, 80 or 443 where not given.
    pub port: u16,
    /// Begins with `/` and does not end with one, or is empty.
    pub path: String,
}

/// Why an address cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{given}` is no server address: {reason}; write http://HOST:PORT or https://HOST")]
pub struct UrlError {
    given: String,
    reason: &'static str,
}

impl Url {
    /// The value of the `host` header.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default = match self.scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        };
        if self.port == default { host } else { format!("{host}:{}", self.port) }
    }

    /// The server's root: what stands before `/v1`.
    pub fn root(&self) -> Self {
        let end = self.path.find("/v1/").or_else(|| self.path.strip_suffix("/v1").map(str::len));
        Self { path: self.path[..end.unwrap_or(self.path.len())].to_owned(), ..self.clone() }
    }

    /// This address with another path below its own.
    pub fn join(&self, path: &str) -> Self {
        Self { path: format!("{}{path}", self.path), ..self.clone() }
    }
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(given: &str) -> Result<Self, UrlError> {
        let error = |reason| UrlError { given: given.to_owned(), reason };
        let (scheme, rest) = match given.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
            Some(_) => return Err(error("only http and https are spoken")),
            None => (Scheme::Http, given),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(error("a password in an address is not used, --api-key is"));
        }
        if path.contains(['?', '#']) || authority.contains(['?', '#']) {
            return Err(error("a query or fragment has no place here"));
        }
        if given
            .contains(|character: char| character.is_whitespace() || character.is_control() || !character.is_ascii())
        {
            return Err(error("it holds a character that does not belong in an address"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(|| error("a bracket is not closed"))?;
                (host, port.strip_prefix(':').or(port.is_empty().then_some("")).ok_or_else(|| error("a bad port"))?)
            }
            None => authority.split_once(':').unwrap_or((authority, "")),
        };
        if host.is_empty() {
            return Err(error("the host is missing"));
        }
        let port = match (port, scheme) {
            ("", Scheme::Http) => 80,
            ("", Scheme::Https) => 443,
            (port, _) => port.parse().ok().filter(|&port| port > 0).ok_or_else(|| error("a bad port"))?,
        };
        Ok(Self { scheme, host: host.to_owned(), port, path: path.trim_end_matches('/').to_owned() })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(formatter, "{scheme}://{}{}", self.authority(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (given, written, root) in [
            ("http://localhost:8000", "http://localhost:8000", "http://localhost:8000"),
            ("localhost:8000/", "http://localhost:8000", "http://localhost:8000"),
            ("https://api.example.com/v1/", "https://api.example.com/v1", "https://api.example.com"),
            ("HTTP://10.0.0.1:80/a/v1/chat/completions", "http://10.0.0.1/a/v1/chat/completions", "http://10.0.0.1/a"),
            ("https://[::1]:443", "https://[::1]", "https://[::1]"),
        ] {
            let url: Url = given.parse().unwrap();
            assert_eq!((url.to_string().as_str(), url.root().to_string().as_str()), (written, root));
        }
        assert_eq!("[::1]:9".parse::<Url>().unwrap().host, "::1");
    }

    #[test]
    fn bad_addresses_say_why() {
        for (given, reason) in [
            ("ftp://x", "only http"),
            ("http://", "host is missing"),
            ("http://a:0", "bad port"),
            ("http://a:70000", "bad port"),
            ("http://u:p@a", "--api-key"),
            ("http://[::1", "bracket"),
            ("http://a/b?c", "query"),
            ("http://a b", "character"),
        ] {
            let error = given.parse::<Url>().unwrap_err().to_string();
            assert!(error.contains(reason), "{given}: {error}");
        }
    }
}
