//! [`ModelError`]: everything that can be wrong with a checkpoint, said in one line that names the way out.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model cannot be opened. Every message names the file, what was found, what was expected, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb: `open`, `read`, `map`.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The file was read and is not what it has to be.
    #[error("{0}")]
    Invalid(Box<Invalid>),
}

/// One thing wrong with one file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {field}: found {found}, expected {expected}; {advice}", path.display())]
pub struct Invalid {
    /// The file.
    pub path: PathBuf,
    /// The key, tensor or part of the file in question.
    pub field: String,
    /// What stands there.
    pub found: String,
    /// What has to stand there.
    pub expected: String,
    /// What the reader can do about it.
    pub advice: String,
}

impl ModelError {
    /// An [`Invalid`]. Text that comes from the file goes through [`quoted`] first.
    pub fn invalid(
        path: &Path,
        field: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::Invalid(Box::new(Invalid {
            path: path.to_owned(),
            field: field.into(),
            found: found.into(),
            expected: expected.into(),
            advice: advice.into(),
        }))
    }

    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), action, source }
    }
}

/// Characters of a file's own text that a message repeats at most.
const QUOTED_CHARS_MAX: usize = 80;

/// Text from a file as a message may show it: quoted, control characters escaped, cut when long.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS_MAX) {
        None => format!("{text:?}"),
        Some((cut, _)) => format!("{:?}... ({} bytes)", &text[..cut], text.len()),
    }
}
