//! Who may call: API keys as Bearer tokens, or as the password of HTTP Basic, which is what a browser can ask its user for.

use axum::http::{HeaderMap, header};
use base64::{Engine, prelude::BASE64_STANDARD};
use powertrain_protocol::ApiError;
use subtle::{Choice, ConstantTimeEq};

/// Routes that need no key: orchestrators probe them.
const OPEN_PATHS: [&str; 2] = ["/health", "/ready"];

/// The keys that open the server; none: it is open.
#[derive(Clone)]
pub(crate) struct Keys(Vec<String>);

impl Keys {
    pub(crate) fn new(keys: Vec<String>) -> Self {
        Self(keys)
    }

    /// Whether a request may pass.
    pub(crate) fn check(&self, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.0.is_empty() || OPEN_PATHS.contains(&path) {
            return Ok(());
        }
        let Some(header) = headers.get(header::AUTHORIZATION) else {
            return Err(ApiError::Unauthorized("no API key; send it as `Authorization: Bearer KEY`"));
        };
        match presented(header.as_bytes()) {
            Some(key) if self.contains(&key) => Ok(()),
            Some(_) => Err(ApiError::Unauthorized("the API key is not one of this server's")),
            None => Err(ApiError::Unauthorized("the Authorization header is not `Bearer KEY`")),
        }
    }

    /// Compares with every key and each to its end: the time says only which lengths exist.
    fn contains(&self, presented: &[u8]) -> bool {
        let mut found = Choice::from(0);
        for key in &self.0 {
            found |= key.as_bytes().ct_eq(presented);
        }
        found.into()
    }
}

/// The key inside an Authorization header.
fn presented(header: &[u8]) -> Option<Vec<u8>> {
    let space = header.iter().position(|byte| *byte == b' ')?;
    let (scheme, value) = (&header[..space], header[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(value.to_vec());
    }
    if scheme.eq_ignore_ascii_case(b"basic") {
        let pair = BASE64_STANDARD.decode(value).ok()?;
        let colon = pair.iter().position(|byte| *byte == b':')?;
        return Some(pair[colon + 1..].to_vec());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(authorization: Option<&str>, path: &str) -> Result<(), String> {
        let keys = Keys::new(vec!["first-key".to_owned(), "k2".to_owned()]);
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.parse().expect("a header"));
        }
        keys.check(path, &headers).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_open_everything_and_probes_need_none() {
        assert_eq!(check(Some("Bearer first-key"), "/v1/models"), Ok(()));
        assert_eq!(check(Some("bearer  k2"), "/metrics"), Ok(()));
        // user:k2
        assert_eq!(check(Some("Basic dXNlcjprMg=="), "/"), Ok(()));
        assert_eq!(check(None, "/health"), Ok(()));
        assert_eq!(check(None, "/ready"), Ok(()));
    }

    #[test]
    fn anything_else_is_told_why() {
        let no_key = "no API key; send it as `Authorization: Bearer KEY`";
        let wrong = "the API key is not one of this server's";
        let malformed = "the Authorization header is not `Bearer KEY`";
        for (header, message) in [
            (None, no_key),
            (Some("Bearer first-ke"), wrong),
            (Some("Bearer first-key2"), wrong),
            (Some("Bearer "), wrong),
            (Some("Basic !!"), malformed),
            (Some("Digest x"), malformed),
            (Some("first-key"), malformed),
        ] {
            assert_eq!(check(header, "/v1/models"), Err(message.to_owned()), "{header:?}");
        }
    }
}
