//! From an address to a served model, and back to nothing when the signal comes.

use crate::{BindError, ServedModel, ServerConfig, app, connections, state::State};
use axum::Router;
use powertrain_engine::{Drained, Engine};
use std::{future::Future, io, net::SocketAddr, pin::pin, sync::atomic::Ordering::Relaxed, time::Instant};
use tokio::{net::TcpListener, sync::oneshot};

/// A server that listens. Connections made before [`serve`](Self::serve) wait.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    listener: TcpListener,
}

impl Server {
    /// Takes the port; before a model is loaded, so that a taken one is known at once.
    ///
    /// # Errors
    /// When the address cannot be listened on or an origin is malformed.
    pub async fn bind(config: ServerConfig) -> Result<Self, BindError> {
        app::check_origins(&config.allowed_origins)?;
        let listener = connections::listen(&config).await?;
        Ok(Self { config, listener })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` resolves. Then: `/ready` and new requests get 503, running ones go on for at most
    /// `shutdown_timeout`, the rest are ended with an error, connections close. When the engine dies, `/health` and all requests get 503 with the
    /// reason for `death_notice`, then connections close.
    ///
    /// # Errors
    /// None while serving; the result says whether the engine could be stopped, or that it died.
    pub async fn serve(self, model: ServedModel, engine: Engine, shutdown: impl Future<Output = ()>) -> Drained {
        let Self { config, listener } = self;
        let (timeout, notice, connections_max) = (config.shutdown_timeout, config.death_notice, config.connections_max);
        let handle = engine.handle();
        let state = State::new(config, model, engine.handle());
        let app: Router = app::router(state.clone());
        let (drained, stop) = oneshot::channel::<()>();
        let serving = tokio::spawn(connections::serve(listener, app, connections_max, async {
            // A sender that is gone means the same.
            let _ = stop.await;
        }));
        let mut shutdown = pin!(shutdown);
        let dead = tokio::select! {
            () = &mut shutdown => false,
            _ = handle.death() => true,
        };
        if dead {
            // Who watches and who waits for an answer shall read why, before nobody answers.
            let _ = tokio::time::timeout(notice, shutdown).await;
        } else {
            tracing::info!(timeout_s = timeout.as_secs_f64(), "stopping: no new requests; the running ones may finish");
        }
        state.stopping.store(true, Relaxed);
        let deadline = Instant::now() + timeout;
        let outcome = tokio::task::spawn_blocking(move || engine.drain(deadline)).await.unwrap_or(Drained::Stuck);
        drop(drained);
        if serving.await.is_err() {
            tracing::error!("the accepting task panicked");
        }
        outcome
    }
}
