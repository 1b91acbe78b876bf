//! The Hugging Face Hub: which files a model needs, and its cache layout
//! (`models--org--repo/{blobs,refs,snapshots}`, as `huggingface_hub` documents it).

use crate::{
    HubError, HubReference, HuggingFaceSettings, Settings,
    download::{Destination, Lock, Source, create_folder, fetch, hint},
    http::{Ask, Client, header, join},
    reference::is_safe_path,
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

const CACHE_VARIABLE: &str = "HF_HUB_CACHE";
const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
/// Redirects on the Hub itself (a renamed repository) before its answer is given up.
const RENAMES_MAX: usize = 5;

/// A repository's folder in the cache.
pub(crate) struct Cache {
    root: PathBuf,
    repository: PathBuf,
}

impl Cache {
    pub(crate) fn new(settings: &HuggingFaceSettings, hub: &HubReference) -> Self {
        let folder = format!("models--{}", hub.repository.replace('/', "--"));
        Self { root: settings.cache.clone(), repository: settings.cache.join(folder) }
    }

    /// The model's path, when all of it is here: the snapshot's folder, or the GGUF in it.
    pub(crate) fn find(&self, hub: &HubReference) -> Option<PathBuf> {
        let snapshot = self.snapshot(&self.commit(hub));
        match &hub.file {
            Some(file) => Some(snapshot.join(file)).filter(|path| path.is_file()),
            None => is_complete(&snapshot).then_some(snapshot),
        }
    }

    /// The only GGUF that was fetched. Whether the repository has nothing else to mean, the Hub alone knows.
    fn find_only_gguf(&self, hub: &HubReference) -> Option<PathBuf> {
        hub.file.is_none().then(|| only_gguf(&self.snapshot(&self.commit(hub)))).flatten()
    }

    /// The snapshot's folder, when it has what describes a model; weights or none.
    pub(crate) fn find_description(&self, hub: &HubReference) -> Option<PathBuf> {
        let snapshot = self.snapshot(&self.commit(hub));
        snapshot.join(CONFIG).is_file().then_some(snapshot)
    }

    fn commit(&self, hub: &HubReference) -> String {
        std::fs::read_to_string(self.repository.join("refs").join(&hub.revision))
            .map_or_else(|_| hub.revision.clone(), |commit| commit.trim().to_owned())
    }

    /// The folder that holds everything of this repository, and its locks.
    pub(crate) fn folders(&self) -> [PathBuf; 2] {
        let name = self.repository.file_name().unwrap_or_default();
        [self.repository.clone(), self.root.join(".locks").join(name)]
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.repository.join("snapshots").join(commit)
    }
}

/// Asks the Hub what the revision is now and fetches what is missing of it.
pub(crate) fn pull(client: &Client, settings: &Settings, hub: &HubReference) -> Result<PathBuf, HubError> {
    let cache = Cache::new(&settings.hugging_face, hub);
    if settings.hugging_face.offline {
        let offline = || HubError::Offline { name: hub.to_string(), cache: settings.hugging_face.cache.clone() };
        return cache.find(hub).or_else(|| cache.find_only_gguf(hub)).ok_or_else(offline);
    }
    let pull = Pull { client, settings, hub, cache };
    let repository = pull.describe()?;
    let names: BTreeSet<&str> = repository.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    let path = match pull.gguf(&names)? {
        Some(file) => pull.file(&repository.sha, file)?,
        None => pull.folder(&repository.sha, &names)?,
    };
    pull.remember_revision(&repository.sha)?;
    Ok(path)
}

/// Fetches what describes the model and none of its weights.
pub(crate) fn pull_description(client: &Client, settings: &Settings, hub: &HubReference) -> Result<PathBuf, HubError> {
    let cache = Cache::new(&settings.hugging_face, hub);
    if let Some(path) = cache.find_description(hub) {
        return Ok(path);
    }
    if settings.hugging_face.offline {
        return Err(HubError::Offline { name: hub.to_string(), cache: settings.hugging_face.cache.clone() });
    }
    let pull = Pull { client, settings, hub, cache };
    let repository = pull.describe()?;
    let names: BTreeSet<&str> = repository.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    if !names.contains(CONFIG) {
        let reason = format!("it has no {CONFIG}, of which dummy weights are made");
        return Err(HubError::NoUsableFile { name: hub.to_string(), reason });
    }
    pull.companions(&repository.sha, &names)?;
    pull.remember_revision(&repository.sha)?;
    Ok(pull.cache.snapshot(&repository.sha))
}

#[derive(Deserialize)]
struct Repository {
    /// The commit the revision is.
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

struct Pull<'a> {
    client: &'a Client,
    settings: &'a Settings,
    hub: &'a HubReference,
    cache: Cache,
}

/// What the Hub says of a file before it is fetched.
struct FileFacts {
    /// Names the blob: the SHA-256 of a large file, the git hash of a small one.
    etag: String,
    size: Option<u64>,
}

impl Pull<'_> {
    fn describe(&self) -> Result<Repository, HubError> {
        let HuggingFaceSettings { endpoint, .. } = &self.settings.hugging_face;
        let HubReference { repository, revision, .. } = self.hub;
        let url = format!("{endpoint}/api/models/{repository}/revision/{}", revision.replace('/', "%2F"));
        let document = self.client.document(self.ask(&url)).map_err(|error| self.explain(error))?.1;
        let described: Repository = serde_json::from_str(&document)
            .map_err(|error| HubError::Answer { url: url.clone(), reason: format!("not a repository: {error}") })?;
        if !is_commit(&described.sha) {
            let reason = format!("{:?} is not a commit", described.sha);
            return Err(HubError::Answer { url, reason });
        }
        Ok(described)
    }

    /// The GGUF that is meant, or `None` for safetensors.
    fn gguf<'f>(&self, names: &BTreeSet<&'f str>) -> Result<Option<&'f str>, HubError> {
        let files: Vec<&str> = names.iter().copied().filter(|name| name.ends_with(".gguf")).collect();
        let list = || if files.is_empty() { "none".to_owned() } else { files.join(", ") };
        let unusable = |reason: String| HubError::NoUsableFile { name: self.hub.to_string(), reason };
        if let Some(wanted) = &self.hub.file {
            let found = files.iter().find(|name| *name == wanted).copied();
            return found.map(Some).ok_or_else(|| unusable(format!("it has no {wanted}; its GGUF files: {}", list())));
        }
        if names.contains("config.json") && names.iter().any(|name| name.ends_with(".safetensors")) {
            return Ok(None);
        }
        match files.as_slice() {
            [one] => Ok(Some(one)),
            [] => Err(unusable("neither config.json with *.safetensors nor *.gguf".to_owned())),
            _ => Err(unusable(format!("name one of its GGUF files, as {}:FILE: {}", self.hub, list()))),
        }
    }

    /// Small files first: a snapshot with all its weights then has everything else too.
    fn folder(&self, commit: &str, names: &BTreeSet<&str>) -> Result<PathBuf, HubError> {
        self.companions(commit, names)?;
        let snapshot = self.cache.snapshot(commit);
        for shard in weight_files(&snapshot, names)? {
            if !names.contains(shard.as_str()) {
                let reason = format!("{INDEX} names {shard}, which the repository does not have");
                return Err(HubError::NoUsableFile { name: self.hub.to_string(), reason });
            }
            self.file(commit, &shard)?;
        }
        Ok(snapshot)
    }

    /// Everything but the weights.
    fn companions(&self, commit: &str, names: &BTreeSet<&str>) -> Result<(), HubError> {
        for name in names.iter().filter(|name| is_companion(name)) {
            self.file(commit, name)?;
        }
        Ok(())
    }

    /// One file into the snapshot.
    fn file(&self, commit: &str, name: &str) -> Result<PathBuf, HubError> {
        // It comes from whoever answers, and becomes a path here and a part of an address.
        if !is_safe_path(name) {
            let reason = format!("{name:?} is not a file name");
            return Err(HubError::NoUsableFile { name: self.hub.to_string(), reason });
        }
        let pointer = self.cache.snapshot(commit).join(name);
        if pointer.is_file() {
            return Ok(pointer);
        }
        let HuggingFaceSettings { endpoint, token, .. } = &self.settings.hugging_face;
        let url = format!("{endpoint}/{}/resolve/{commit}/{name}", self.hub.repository);
        let facts = self.facts(&url)?;
        let [repository, locks] = self.cache.folders();
        let blobs = repository.join("blobs");
        create_folder(&blobs)?;
        create_folder(&locks)?;
        let blob = blobs.join(&facts.etag);
        let _lock = Lock::acquire(&locks.join(format!("{}.lock", facts.etag)), name, self.settings.progress)?;
        let source = Source {
            url: &url,
            bearer: token.as_deref(),
            label: name,
            size: facts.size,
            sha256: Some(facts.etag.as_str()).filter(|etag| etag.len() == 64),
        };
        let to = Destination {
            target: &blob,
            part: blobs.join(format!("{}.incomplete", facts.etag)),
            extra_bytes: 0,
            variable: CACHE_VARIABLE,
        };
        fetch(self.client, &source, &to, self.settings.progress).map_err(|error| self.explain(error))?;
        link(&blob, &pointer, name.matches('/').count())?;
        Ok(pointer)
    }

    /// Follows redirects within the Hub; the one to its storage carries the facts.
    fn facts(&self, url: &str) -> Result<FileFacts, HubError> {
        let mut at = url.to_owned();
        for _ in 0..RENAMES_MAX {
            let response = self.client.head(self.ask(&at))?;
            let headers = response.headers();
            let status = response.status().as_u16();
            let location = header(headers, "location");
            let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag"));
            // Not `//host/path`, which is another host: the token is not for it.
            let within = |place: &&str| place.starts_with('/') && !place.starts_with("//");
            if let Some(place) = location.filter(|place| within(place) && (300..400).contains(&status)) {
                at = join(&at, place);
                continue;
            }
            if status >= 400 {
                let error = HubError::Status { url: url.to_owned(), status, hint: String::new() };
                return Err(self.explain(error));
            }
            let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
            let Some(etag) = etag.filter(|etag| is_safe_path(etag) && !etag.contains('/')) else {
                return Err(HubError::Answer { url: at, reason: "no usable ETag header".to_owned() });
            };
            let size = match status {
                200..300 => header(headers, "x-linked-size").or_else(|| header(headers, "content-length")),
                _ => header(headers, "x-linked-size"),
            };
            return Ok(FileFacts { etag: etag.to_owned(), size: size.and_then(|size| size.parse().ok()) });
        }
        Err(HubError::Answer { url: url.to_owned(), reason: format!("more than {RENAMES_MAX} redirects") })
    }

    /// `refs/<revision>` holds the commit, once everything of it is here.
    fn remember_revision(&self, commit: &str) -> Result<(), HubError> {
        if self.hub.revision == commit {
            return Ok(());
        }
        let [repository, _] = self.cache.folders();
        let path = repository.join("refs").join(&self.hub.revision);
        create_folder(path.parent().unwrap_or(&repository))?;
        std::fs::write(&path, commit).map_err(|error| HubError::io(&path, "write", &error))
    }

    fn ask<'a>(&'a self, url: &'a str) -> Ask<'a> {
        Ask { url, bearer: self.settings.hugging_face.token.as_deref(), header: None }
    }

    /// A status in the Hub's terms: what it means for this repository and what to do.
    fn explain(&self, error: HubError) -> HubError {
        let HubError::Status { url, status, .. } = error else { return error };
        let HubReference { repository, revision, .. } = self.hub;
        let endpoint = &self.settings.hugging_face.endpoint;
        let hint = match (status, &self.settings.hugging_face.token) {
            (401 | 403, None) => format!(
                "{repository} is gated, private or does not exist; accept its terms at {endpoint}/{repository} and set HF_TOKEN"
            ),
            (401 | 403, Some(_)) => format!(
                "the token in HF_TOKEN may not read {repository}; accept its terms at {endpoint}/{repository} with the token's account"
            ),
            (404, _) => format!("no repository {repository} with revision {revision}; check the spelling"),
            _ => hint(status).to_owned(),
        };
        HubError::Status { url, status, hint }
    }
}

fn only_gguf(snapshot: &Path) -> Option<PathBuf> {
    let paths = std::fs::read_dir(snapshot).ok()?.flatten().map(|entry| entry.path());
    let mut files = paths.filter(|path| path.extension().is_some_and(|end| end == "gguf") && path.is_file());
    files.next().filter(|_| files.next().is_none())
}

/// Whether the folder has config.json and all its weights.
fn is_complete(snapshot: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(snapshot) else { return false };
    let names: BTreeSet<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let Ok(weights) = weight_files(snapshot, &names) else { return false };
    let has = |name: &str| snapshot.join(name).is_file();
    has("config.json") && !weights.is_empty() && weights.iter().all(|name| has(name))
}

/// Which safetensors make the model: the index's shards; else `model.safetensors`; else all of them.
fn weight_files(snapshot: &Path, names: &BTreeSet<&str>) -> Result<BTreeSet<String>, HubError> {
    if names.contains(INDEX) {
        let path = snapshot.join(INDEX);
        let text = std::fs::read_to_string(&path).map_err(|error| HubError::io(&path, "open", &error))?;
        let index: ShardIndex = serde_json::from_str(&text).map_err(|error| HubError::Answer {
            url: path.display().to_string(),
            reason: format!("not an index of shards: {error}"),
        })?;
        let shards: BTreeSet<String> = index.weight_map.into_values().collect();
        return match shards.iter().find(|shard| !is_safe_path(shard)) {
            Some(shard) => {
                let reason = format!("{shard:?} is not a file name");
                Err(HubError::Answer { url: path.display().to_string(), reason })
            }
            None => Ok(shards),
        };
    }
    if names.contains("model.safetensors") {
        return Ok(BTreeSet::from(["model.safetensors".to_owned()]));
    }
    let all = names.iter().filter(|name| name.ends_with(".safetensors") && is_safe_path(name) && !name.contains('/'));
    Ok(all.map(|name| (*name).to_owned()).collect())
}

/// The files a model needs beside its weights.
fn is_companion(name: &str) -> bool {
    let known = matches!(
        name,
        "config.json"
            | "generation_config.json"
            | "special_tokens_map.json"
            | "added_tokens.json"
            | "vocab.json"
            | "merges.txt"
            | INDEX
    );
    let family = name.starts_with("tokenizer") || name.starts_with("chat_template");
    (known || family) && is_safe_path(name) && !name.contains('/')
}

fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// A relative link from the snapshot to the blob, as `huggingface_hub` makes it; a copy where links are not to be had.
fn link(blob: &Path, pointer: &Path, depth: usize) -> Result<(), HubError> {
    create_folder(pointer.parent().unwrap_or(pointer))?;
    let blob_name = blob.file_name().unwrap_or_default();
    let relative = PathBuf::from("../".repeat(depth + 2)).join("blobs").join(blob_name);
    // A link whose blob is gone stands in the way.
    _ = std::fs::remove_file(pointer);
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(&relative, pointer);
    #[cfg(not(unix))]
    let linked: std::io::Result<()> = Err(std::io::Error::other(relative.display().to_string()));
    match linked {
        Ok(()) => Ok(()),
        Err(_) if pointer.is_file() => Ok(()),
        Err(_) => std::fs::copy(blob, pointer)
            .map(|_| ())
            .map_err(|error| crate::download::write_error(pointer, &error, 0, CACHE_VARIABLE)),
    }
}
