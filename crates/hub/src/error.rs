//! Everything that can go wrong between a model's name and its files.

use std::{io, path::Path, path::PathBuf};

/// Why a model could not be found or fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a path, nor an alias, nor `org/repo`.
    #[error(
        "{given:?} is not a model: give a path to a GGUF file or a folder with config.json, `smollm2`, or a Hugging Face \
         repository as org/repo, org/repo@revision or org/repo:file.gguf"
    )]
    NotAReference {
        /// What was given.
        given: String,
    },
    /// It looks like a path, and nothing is there.
    #[error("{path}: no such file or folder")]
    NoSuchPath {
        /// The path.
        path: PathBuf,
    },
    /// A folder without a checkpoint.
    #[error(
        "{path}: no config.json in this folder; a Hugging Face checkpoint has one beside its *.safetensors, and a GGUF model is named by its file"
    )]
    NotAModelFolder {
        /// The folder.
        path: PathBuf,
    },
    /// Deleting a file or a revision of a repository, whose files others may share.
    #[error(
        "{given} names a part of a repository, and only a whole one can be deleted; give {repository} to delete all of it"
    )]
    PartOfRepository {
        /// What was given.
        given: String,
        /// `org/repo`.
        repository: String,
    },
    /// A file system operation failed.
    #[error("{path}: cannot {action}: {reason}")]
    Io {
        /// On what.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's words.
        reason: String,
    },
    /// The disk does not hold what is to be fetched.
    #[error(
        "{path}: the disk is full: {needed} bytes are needed, {free} are free; free some space, or set {variable} to a folder on a larger disk"
    )]
    DiskFull {
        /// Where it was to be written.
        path: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes free to this user.
        free: u64,
        /// The variable that moves this cache.
        variable: &'static str,
    },
    /// No answer.
    #[error(
        "cannot reach {url}: {reason}; check the network, HTTPS_PROXY and SSL_CERT_FILE, or give the path of a model on disk"
    )]
    Network {
        /// What was asked for.
        url: String,
        /// The last failure.
        reason: String,
    },
    /// An answer that is not the file.
    #[error("{url} answered {status}: {hint}")]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// What it means here and what to do.
        hint: String,
    },
    /// An answer that cannot be understood.
    #[error("{url}: unexpected answer: {reason}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// The bytes are not the ones that were promised.
    #[error(
        "{url}: {what} is {found}, expected {expected}; something on the way changed the file (a proxy?); it was deleted, run the command again or fetch it over another network"
    )]
    Corrupt {
        /// Where it came from.
        url: String,
        /// `size` or `sha256`.
        what: &'static str,
        /// Measured.
        found: String,
        /// Promised.
        expected: String,
    },
    /// `HF_HUB_OFFLINE` is set and the cache does not have it.
    #[error(
        "{name} is not complete in the cache {cache} and HF_HUB_OFFLINE is set; unset it, or run `powertrain pull {name}` where there is a network"
    )]
    Offline {
        /// The reference.
        name: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// The repository has nothing that can be served.
    #[error("{name} has no file to serve: {reason}")]
    NoUsableFile {
        /// The repository.
        name: String,
        /// What it has instead and what to give.
        reason: String,
    },
    /// Asked to delete what is not in the cache.
    #[error("{name} is not in the cache; `powertrain models` lists what is")]
    NotCached {
        /// The reference.
        name: String,
    },
    /// Neither `HOME` nor a cache folder is known.
    #[error("no cache folder: HOME is not set; set {variable} to a folder")]
    NoCacheFolder {
        /// The variable that names it.
        variable: &'static str,
    },
}

impl HubError {
    pub(crate) fn io(path: &Path, action: &'static str, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound && action == "open" {
            return Self::NoSuchPath { path: path.to_owned() };
        }
        Self::Io { path: path.to_owned(), action, reason: error.to_string() }
    }
}
