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
        "cannot reach {}: {reason}; check the network, HTTPS_PROXY and SSL_CERT_FILE, or give the path of a model on disk",
        without_password(.url)
    )]
    Network {
        /// What was asked for.
        url: String,
        /// The last failure.
        reason: String,
    },
    /// An answer that is not the file.
    #[error("{} answered {status}: {hint}", without_password(.url))]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// What it means here and what to do.
        hint: String,
    },
    /// An answer that cannot be understood.
    #[error("{}: unexpected answer: {reason}", without_password(.url))]
    Answer {
        /// What was asked for.
        url: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// The bytes are not the ones that were promised.
    #[error(
        "{}: {what} is {found}, expected {expected}; something on the way changed the file (a proxy?); it was deleted, run the command again or fetch it over another network",
        without_password(.url)
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

/// A URL as it may be shown: an index's address can carry a user and a password.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let host_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..host_end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{HubError, without_password};

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_password("https://me:p@ss@host:1/a@b?c"), "https://host:1/a@b?c");
        assert_eq!(without_password("https://host/a@b"), "https://host/a@b");
        assert_eq!(without_password("/a/path@1"), "/a/path@1");
        let error = HubError::Status { url: "https://me:secret@host/x".into(), status: 500, hint: "later".into() };
        assert_eq!(error.to_string(), "https://host/x answered 500: later");
    }
}
