//! A lean HTTP/1.1 client for measuring: what arrives is stamped by the kernel, or as the read returns, before anything looks at
//! it.
//!
//! General clients hand a body over through tasks and channels, which costs a wake-up per chunk and stamps late.

mod body;
mod connection;
#[cfg(test)]
mod damage;
mod socket;
mod sse;
mod stamps;
mod tls;
mod url;

pub use body::{BodyDecoder, BodyState};
pub use connection::{Connection, Connector, Head, Limits, Response};
pub(crate) use socket::{ReadTimes, Socket};
pub use sse::SseParser;
pub use tls::Trust;
pub use url::{Scheme, Url, UrlError};
