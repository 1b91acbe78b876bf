//! `powertrain serve [MODEL]`

use crate::{
    banner,
    engine_flags::{EngineFlags, seconds},
    load::Loaded,
    size::Bytes,
};
use anyhow::{Context, bail};
use powertrain_engine::Drained;
use powertrain_hub::ModelReference;
use powertrain_server::{EngineReport, LogFormat, ModelFacts, ServedModel, Server, ServerConfig, init_logging};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Threads for HTTP and text; the model has its own.
const HTTP_THREADS: usize = 2;
/// Once the engine is dead, the driver under it may never come back from what it does at the end of the process: then it ends so soon.
const EXIT_TIME_MAX: Duration = Duration::from_secs(3);

/// Serve a model over HTTP with the OpenAI API.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    engine: EngineFlags,

    /// Address to listen on; 0.0.0.0 for all
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "HTTP")]
    host: String,

    /// Port to listen on; 0 takes any free one
    #[arg(long, default_value_t = 8000, help_heading = "HTTP")]
    port: u16,

    /// Key that requests must bring as a bearer token; may be given several times [default: none is needed]
    #[arg(long, value_name = "KEY", value_parser = key, env = "POWERTRAIN_API_KEY", hide_env_values = true, help_heading = "HTTP")]
    api_key: Vec<String>,

    /// Name that requests may use for the model; may be given several times, the first is in answers [default: the model as given]
    #[arg(long, value_name = "NAME", num_args = 1.., help_heading = "HTTP")]
    served_model_name: Vec<String>,

    /// Largest request body, as 8MiB; larger ones are answered with 413
    #[arg(long, value_name = "SIZE", default_value = "8MiB", help_heading = "HTTP")]
    max_request_bytes: Bytes,

    /// Connections at once; further ones wait to be accepted
    #[arg(long, value_name = "COUNT", default_value_t = 4096, help_heading = "HTTP")]
    max_connections: u16,

    /// Seconds a request may take when it says nothing itself [default: any time]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = "HTTP")]
    request_timeout: Option<Duration>,

    /// Seconds that running requests may go on after SIGTERM or Ctrl-C
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, help_heading = "HTTP")]
    shutdown_timeout: Duration,

    /// Origin whose pages may call this server from a browser; may be given several times; * for any
    #[arg(long, value_name = "ORIGIN", help_heading = "HTTP")]
    allowed_origin: Vec<String>,

    /// Log lines for people, or one JSON object each
    #[arg(long, value_enum, default_value_t = LogLines::Text, help_heading = "Logs")]
    log_format: LogLines,

    /// Least severe lines that are logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info", help_heading = "Logs")]
    log_level: tracing::level_filters::LevelFilter,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogLines {
    Text,
    Json,
}

/// The engine died while it served; the supervisor is to start the process anew.
#[derive(Debug, thiserror::Error)]
#[error("the engine died: {0}")]
pub(crate) struct EngineDied(String);

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let format = match arguments.log_format {
        LogLines::Text => LogFormat::Text,
        LogLines::Json => LogFormat::Json,
    };
    init_logging(format, arguments.log_level);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(HTTP_THREADS).enable_all().build()?;
    let served = runtime.block_on(serve(arguments));
    // A model that is still being fetched or loaded does not keep the process: what was fetched is resumed next time.
    runtime.shutdown_background();
    if served.as_ref().is_err_and(|error| error.is::<EngineDied>()) {
        std::thread::spawn(|| {
            std::thread::sleep(EXIT_TIME_MAX);
            std::process::abort();
        });
    }
    served
}

async fn serve(arguments: Arguments) -> anyhow::Result<()> {
    let reference: ModelReference = arguments.engine.model.parse()?;
    // One watch for all of it: a signal between loading and serving must not be lost.
    let mut stop = StopSignal::new()?;
    // First the port: whoever has it is known before a model is fetched and loaded.
    let server = Server::bind(arguments.server_config(&reference)).await?;
    let address = server.local_addr()?;
    let flags = arguments.engine;
    let loading = tokio::task::spawn_blocking(move || flags.load(&reference));
    let loaded = tokio::select! {
        loaded = loading => loaded.context("loading the model panicked")??,
        () = stop.received() => return Ok(()),
    };
    for note in &loaded.notes {
        tracing::warn!("{note}");
    }
    let Loaded { engine, text, vocab_size, .. } = loaded;
    let facts = ModelFacts {
        source: loaded.name,
        architecture: loaded.architecture,
        dtype: loaded.dtype,
        load_seconds: loaded.load_seconds,
        load_stages: loaded.load_stages,
        workspace_bytes: loaded.workspace_bytes,
    };
    banner::print(&EngineReport::new(&facts, &engine.handle()), address)?;
    let model = ServedModel {
        tokenizer: text.tokenizer,
        template: text.template,
        eos_token_ids: text.eos_token_ids,
        vocab_size,
        defaults: text.defaults,
        facts,
    };
    let (drain, draining) = tokio::sync::oneshot::channel::<()>();
    let serving = server.serve(model, engine, async {
        // A sender that is gone means the same.
        let _ = draining.await;
    });
    let stopping_twice = async {
        stop.received().await;
        drop(drain);
        stop.received().await;
    };
    let drained = tokio::select! {
        drained = serving => drained,
        () = stopping_twice => bail!("stopped at once by a second signal; requests that ran were cut off"),
    };
    match drained {
        Drained::Stopped { cut_short: 0 } => tracing::info!("stopped"),
        Drained::Stopped { cut_short } => tracing::warn!(cut_short, "stopped; some requests were ended early"),
        Drained::Stuck => {
            return Err(EngineDied("a step hangs in the executor; its requests could not be ended".to_owned()).into());
        }
        Drained::Dead { reason } => return Err(EngineDied(reason).into()),
    }
    Ok(())
}

impl Arguments {
    fn server_config(&self, reference: &ModelReference) -> ServerConfig {
        let names =
            if self.served_model_name.is_empty() { vec![reference.name()] } else { self.served_model_name.clone() };
        ServerConfig {
            host: self.host.clone(),
            port: self.port,
            api_keys: self.api_key.clone(),
            served_model_names: names,
            // More than addresses can count is as good as no limit.
            request_bytes_max: usize::try_from(self.max_request_bytes.0).unwrap_or(usize::MAX),
            connections_max: usize::from(self.max_connections.max(1)),
            request_timeout: self.request_timeout,
            shutdown_timeout: self.shutdown_timeout,
            allowed_origins: self.allowed_origin.clone(),
            ..ServerConfig::default()
        }
    }
}

/// SIGTERM and Ctrl-C, from when it was made on.
struct StopSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignal {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Resolves at the next of either.
    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// An empty key, as an unset variable in a compose file makes it, would lock nothing while it seems to.
fn key(text: &str) -> Result<String, String> {
    if text.is_empty() || text.trim() != text {
        return Err(
            "a key must not be empty or begin or end with blanks; leave it out to serve without keys".to_owned()
        );
    }
    Ok(text.to_owned())
}
