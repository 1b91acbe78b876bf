//! What is cached, and deleting it.

use crate::{HubError, HubReference, ModelReference, Settings, huggingface};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A model in one of the two caches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// As given to `serve`: the alias or `org/repo`.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// Bytes on disk, incomplete transfers included.
    pub bytes: u64,
    /// Whether a transfer broke off and can be resumed.
    pub incomplete: bool,
}

pub(crate) fn list(settings: &Settings) -> Result<Vec<CachedModel>, HubError> {
    let mut models = Vec::new();
    let alias = settings.default_model.alias;
    let own = settings.cache.join("models").join(alias);
    if let Some(bytes) = size(&own).filter(|&bytes| bytes > 0) {
        let incomplete = !settings.default_model.is_cached(settings);
        models.push(CachedModel { name: alias.to_owned(), path: own, bytes, incomplete });
    }
    let hub = &settings.hugging_face.cache;
    let entries = match fs::read_dir(hub) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(models),
        Err(error) => return Err(HubError::io(hub, "read", &error)),
    };
    let first_of_hub = models.len();
    for path in entries.flatten().map(|entry| entry.path()) {
        let folder = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(name) = folder.strip_prefix("models--").map(|name| name.replacen("--", "/", 1)) else { continue };
        let Some(bytes) = size(&path) else { continue };
        let blobs = fs::read_dir(path.join("blobs")).into_iter().flatten().flatten();
        let incomplete = blobs.into_iter().any(|blob| blob.path().extension().is_some_and(|end| end == "incomplete"));
        models.push(CachedModel { name, path: path.clone(), bytes, incomplete });
    }
    models[first_of_hub..].sort_by(|a, b| a.name.cmp(&b.name));
    Ok(models)
}

pub(crate) fn remove(settings: &Settings, reference: &ModelReference) -> Result<u64, HubError> {
    let (name, folders) = match reference {
        ModelReference::Default => {
            let alias = settings.default_model.alias;
            (alias.to_owned(), vec![settings.cache.join("models").join(alias)])
        }
        ModelReference::Hub(hub) if hub.file.is_some() || hub.revision != HubReference::DEFAULT_REVISION => {
            return Err(HubError::PartOfRepository { given: hub.to_string(), repository: hub.repository.clone() });
        }
        ModelReference::Hub(hub) => {
            let folders = huggingface::Cache::new(&settings.hugging_face, hub).folders();
            (hub.repository.clone(), folders.to_vec())
        }
        ModelReference::Path(path) => return Err(HubError::NotCached { name: path.display().to_string() }),
    };
    let freed = size(&folders[0]).ok_or(HubError::NotCached { name })?;
    for folder in folders.iter().filter(|folder| folder.exists()) {
        fs::remove_dir_all(folder).map_err(|error| HubError::io(folder, "delete", &error))?;
    }
    Ok(freed)
}

/// Bytes of all files below a folder, links not followed; `None` when there is no such folder.
fn size(folder: &Path) -> Option<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).ok()?.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => bytes += size(&entry.path()).unwrap_or(0),
            Ok(kind) if kind.is_file() => bytes += entry.metadata().map_or(0, |metadata| metadata.len()),
            _ => {}
        }
    }
    Some(bytes)
}
