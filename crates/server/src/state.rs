//! What all requests share.

use crate::{ServedModel, ServerConfig, auth::Keys, metrics::Metrics, model::EngineReport, pool::TextPool};
use powertrain_engine::{Handle, Health};
use powertrain_protocol::ApiError;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// Cheap to clone.
pub(crate) type App = Arc<State>;

/// One model behind HTTP.
pub(crate) struct State {
    pub(crate) config: ServerConfig,
    pub(crate) keys: Keys,
    pub(crate) model: ServedModel,
    pub(crate) engine: Handle,
    pub(crate) report: EngineReport,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) pool: TextPool,
    /// Bytes of the longest token's text.
    token_bytes_max: usize,
    /// Unix seconds.
    pub(crate) started: u64,
    /// The signal to stop came.
    pub(crate) stopping: AtomicBool,
}

impl State {
    pub(crate) fn new(config: ServerConfig, model: ServedModel, engine: Handle) -> App {
        let report = EngineReport::new(&model.facts, &engine);
        let name = config.served_model_names.first().map_or("default", String::as_str);
        let metrics = Metrics::new(name, &report);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let ids = 0..model.vocab_size;
        let token_bytes_max = ids.map(|id| model.tokenizer.token_bytes(id).len()).max().unwrap_or(0).max(1);
        Arc::new(Self {
            token_bytes_max,
            keys: Keys::new(config.api_keys.clone()),
            config,
            model,
            engine,
            report,
            metrics: Arc::new(metrics),
            pool: TextPool::new(processors),
            started: unix_seconds(),
            stopping: AtomicBool::new(false),
        })
    }

    /// Text longer than this has more tokens than a sequence may: said before it is encoded, which takes time. Normalisation
    /// may make text shorter, seldom by more than this allows.
    pub(crate) fn prompt_bytes_max(&self) -> usize {
        const NORMALISATION: usize = 4;
        (self.engine.limits().max_model_len as usize).saturating_mul(NORMALISATION * self.token_bytes_max)
    }

    /// Whether new requests are taken.
    pub(crate) fn accepts(&self) -> Result<(), ApiError> {
        if self.stopping.load(Relaxed) {
            return Err(ApiError::ShuttingDown);
        }
        self.healthy()
    }

    /// Whether the engine works.
    pub(crate) fn healthy(&self) -> Result<(), ApiError> {
        match self.engine.health() {
            Health::Live => Ok(()),
            Health::Stalled(silence) => {
                Err(ApiError::Unhealthy(format!("there is work, and no step completed for {} s", silence.as_secs())))
            }
            Health::Dead(reason) => Err(ApiError::Unhealthy(reason)),
        }
    }

    /// The name under which an answer goes out.
    pub(crate) fn resolve_model(&self, asked: Option<&str>) -> Result<String, ApiError> {
        let served = &self.config.served_model_names;
        match asked {
            None => Ok(served.first().cloned().unwrap_or_default()),
            Some(asked) if served.iter().any(|name| name == asked) => Ok(asked.to_owned()),
            Some(asked) => Err(ApiError::ModelNotFound { asked: asked.to_owned(), served: served.clone() }),
        }
    }
}

/// Now, for people; intervals are measured otherwise.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
