//! Accepts connections and serves HTTP/1.1 on them.
//!
//! Own loop instead of `axum::serve`: it limits how many connections there are, how long a request's head may take and how long a client may read
//! nothing of its response, so that slow or idle clients cannot use the server up.

use crate::{config::ServerConfig, write_timeout::WriteTimeout};
use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use std::{future::Future, io, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// How long the head of a request may take, counted anew for each on a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take none of its response while there is some to take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// After accepting failed for want of resources (file descriptors, say), how long to let some come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long connections may take to close once nothing runs on them.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the server could not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else does.
    #[error("port {port} on {host} is taken; stop what listens there or choose another with --port")]
    Taken {
        /// `--host`.
        host: String,
        /// `--port`.
        port: u16,
    },
    /// Ports below 1024 need rights.
    #[error("no permission to listen on port {port} of {host}; choose one above 1023 with --port")]
    Denied {
        /// `--host`.
        host: String,
        /// `--port`.
        port: u16,
    },
    /// The host has no such address, or its name is unknown.
    #[error("cannot listen on {host}:{port}: {reason}; --host must be an address of this machine")]
    Other {
        /// `--host`.
        host: String,
        /// `--port`.
        port: u16,
        /// The system's words.
        reason: String,
    },
    /// An origin that is none.
    #[error("--allowed-origin {origin}: not an origin such as https://example.com, nor *")]
    Origin {
        /// What was given.
        origin: String,
    },
}

/// Listens as configured.
pub(crate) async fn listen(config: &ServerConfig) -> Result<TcpListener, BindError> {
    let ServerConfig { host, port, .. } = config;
    TcpListener::bind((host.as_str(), *port)).await.map_err(|source| {
        let (host, port) = (host.clone(), *port);
        match source.kind() {
            io::ErrorKind::AddrInUse => BindError::Taken { host, port },
            io::ErrorKind::PermissionDenied => BindError::Denied { host, port },
            _ => BindError::Other { host, port, reason: source.to_string() },
        }
    })
}

/// Serves until `stop` resolves, then lets connections finish the request they are in, for a short time.
pub(crate) async fn serve(listener: TcpListener, app: Router, connections_max: usize, stop: impl Future<Output = ()>) {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(connections_max));
    let mut stop = std::pin::pin!(stop);
    loop {
        let stream = tokio::select! {
            stream = accept(&listener, &slots) => stream,
            () = &mut stop => break,
        };
        let Some((stream, slot)) = stream else { continue };
        // Tokens are small packets that must not wait for each other.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(app.clone());
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(WriteTimeout::new(stream, WRITE_TIMEOUT)), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended early");
            }
            drop(slot);
        });
    }
    drop(listener);
    if tokio::time::timeout(CLOSE_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!("some connections did not close in time");
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    // The semaphore is never closed.
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, slot)),
        Err(error) => {
            let gone = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset];
            if !gone.contains(&error.kind()) {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            None
        }
    }
}
