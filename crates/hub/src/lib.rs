//! Where models come from: a path, the pinned default, or the Hugging Face Hub.
//!
//! [`Hub::resolve`] turns what the user wrote into a path on disk, fetching it when it is not there yet.
//!
//! Invariants:
//! - **A file under its final name is whole.** It is written under another name, checked (size, and SHA-256 where the
//!   source states one), flushed, then renamed.
//! - **What is cached is used without asking the network.** Only [`Hub::pull`] looks for something newer.
//! - Two processes that want the same file: one fetches, the other waits for it.
//! - The Hub's files lie in the layout of `huggingface_hub`, so that both find what the other fetched.
#![forbid(unsafe_code)]

mod cache;
mod download;
mod error;
mod http;
mod huggingface;
mod pip;
mod progress;
mod pypi;
mod reference;
mod settings;
mod wheel;

pub use cache::CachedModel;
pub use error::HubError;
pub use progress::ProgressMode;
pub use reference::{HubReference, ModelReference};
pub use settings::{HuggingFaceSettings, Settings};
pub use wheel::{PinnedWheel, SMOLLM2};

use http::Client;
use std::path::{Path, PathBuf};

/// Finds and fetches checkpoints.
pub struct Hub {
    settings: Settings,
    client: Client,
}

/// A checkpoint on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// A GGUF file, or a folder with config.json and safetensors.
    pub path: PathBuf,
    /// See [`ModelReference::name`].
    pub name: String,
}

impl Hub {
    /// A hub with these settings. Nothing is contacted yet.
    pub fn new(settings: Settings) -> Self {
        let client = Client::new(settings.retry_delay);
        Self { settings, client }
    }

    /// The checkpoint on disk; fetched only when it is not cached.
    ///
    /// # Errors
    /// When there is no such path or repository, or it could not be fetched whole.
    pub fn resolve(&self, reference: &ModelReference) -> Result<Resolved, HubError> {
        let path = match reference {
            ModelReference::Path(path) => local(path)?,
            ModelReference::Default => self.settings.default_model.fetch(&self.client, &self.settings)?,
            ModelReference::Hub(hub) => match huggingface::Cache::new(&self.settings.hugging_face, hub).find(hub) {
                Some(path) => path,
                None => huggingface::pull(&self.client, &self.settings, hub)?,
            },
        };
        Ok(Resolved { path, name: reference.name() })
    }

    /// What describes the checkpoint, without its weights: of a Hub repository the folder with config.json alone is fetched.
    ///
    /// # Errors
    /// As [`Hub::resolve`]; also when the reference names a GGUF file, whose description is in the file.
    pub fn resolve_description(&self, reference: &ModelReference) -> Result<Resolved, HubError> {
        let path = match reference {
            ModelReference::Path(path) => local(path)?,
            ModelReference::Hub(hub) if hub.file.is_none() => {
                huggingface::pull_description(&self.client, &self.settings, hub)?
            }
            ModelReference::Hub(_) | ModelReference::Default => {
                return Err(HubError::NoUsableFile {
                    name: reference.name(),
                    reason: "dummy weights are made of a config.json: give that file, its folder, or org/repo"
                        .to_owned(),
                });
            }
        };
        Ok(Resolved { path, name: reference.name() })
    }

    /// Like [`Hub::resolve`], but asks the Hub whether its branch has moved and fetches what changed.
    ///
    /// # Errors
    /// As [`Hub::resolve`]; also when the Hub cannot be reached, even if something is cached.
    pub fn pull(&self, reference: &ModelReference) -> Result<Resolved, HubError> {
        match reference {
            ModelReference::Hub(hub) => {
                let path = huggingface::pull(&self.client, &self.settings, hub)?;
                Ok(Resolved { path, name: reference.name() })
            }
            ModelReference::Path(_) | ModelReference::Default => self.resolve(reference),
        }
    }

    /// What is cached, by name.
    ///
    /// # Errors
    /// When a cache folder cannot be read.
    pub fn list(&self) -> Result<Vec<CachedModel>, HubError> {
        cache::list(&self.settings)
    }

    /// Deletes a cached model; says how many bytes that freed. Of a Hub repository all revisions go.
    ///
    /// # Errors
    /// When it is not cached, is a path of the user's own, names only a part of a repository, or cannot be deleted.
    pub fn remove(&self, reference: &ModelReference) -> Result<u64, HubError> {
        cache::remove(&self.settings, reference)
    }
}

/// Whether it can be a checkpoint; which one, the model crate says.
fn local(path: &Path) -> Result<PathBuf, HubError> {
    let metadata = std::fs::metadata(path).map_err(|error| HubError::io(path, "open", &error))?;
    if metadata.is_dir() && !path.join("config.json").is_file() {
        return Err(HubError::NotAModelFolder { path: path.to_owned() });
    }
    Ok(path.to_owned())
}
