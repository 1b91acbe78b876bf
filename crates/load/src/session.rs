//! Single questions to the server before and after a run, one at a time.

use crate::{
    exchange::Target,
    http::{Connector, Limits, Url},
    record::{Failure, FailureClass},
    stop::{Bounded, Stop},
};
use std::{io, time::Duration};
use tokio::runtime::{Builder, Runtime};

/// Longest kept answer.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Longest wait for an answer; less where a request of the load has less.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// Asks the server about itself, until the run is stopped.
pub(crate) struct Session {
    runtime: Runtime,
    stop: Stop,
}

/// Status and body.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Session {
    pub(crate) fn new(stop: &Stop) -> io::Result<Self> {
        Ok(Self { runtime: Builder::new_current_thread().enable_all().build()?, stop: stop.clone() })
    }

    /// Looks the server up.
    pub(crate) fn connector(&self, url: &Url, limits: &Limits) -> Result<Connector, Failure> {
        self.runtime.block_on(Connector::new(url, limits))
    }

    /// Sends one request over a connection of its own.
    ///
    /// # Errors
    /// When it fails, its answer is too long, or it takes too long: whatever it was about is then unknown.
    pub(crate) fn ask(&self, target: &Target, method: &str, url: &Url, body: Option<&[u8]>) -> Result<Reply, Failure> {
        let request = target.request(method, url, body);
        let limit = target.timeout.min(ANSWER_TIME_MAX);
        let exchange = async {
            let mut connection = target.connector.connect(&target.clock).await?;
            connection.write(&request).await?;
            let (head, mut decoder) = connection.read_head().await?;
            let mut body = Vec::new();
            while !connection.read_body(&mut decoder, |part, _| body.extend_from_slice(part)).await? {
                if body.len() > ANSWER_BYTES_MAX {
                    let message = format!("{url}: an answer of more than {ANSWER_BYTES_MAX} bytes");
                    return Err(Failure { class: FailureClass::Malformed, message });
                }
            }
            Ok(Reply { status: head.status, body })
        };
        let late = || {
            let message = format!("{url}: no answer within {} s", limit.as_secs_f64());
            Err(Failure { class: FailureClass::TimedOut, message })
        };
        let stopped = || {
            let message = format!("{url}: given up: the run was interrupted");
            Err(Failure { class: FailureClass::Interrupted, message })
        };
        self.runtime.block_on(async {
            match self.stop.bound(limit, exchange).await {
                Bounded::Done(reply) => reply,
                Bounded::Late => late(),
                Bounded::Stopped => stopped(),
            }
        })
    }

    /// The body of a successful answer.
    pub(crate) fn body(&self, target: &Target, method: &str, url: &Url, body: Option<&[u8]>) -> Option<Vec<u8>> {
        self.ask(target, method, url, body).ok().filter(|reply| reply.status == 200).map(|reply| reply.body)
    }
}
