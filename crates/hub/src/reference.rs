//! What the user writes for a model.

use crate::{HubError, SMOLLM2};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// A model as the user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelReference {
    /// `smollm2`: the default, from a pinned package.
    Default,
    /// A file or folder that exists.
    Path(PathBuf),
    /// A repository of the Hugging Face Hub.
    Hub(HubReference),
}

/// `org/repo[@revision][:file.gguf]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubReference {
    /// `org/repo`.
    pub repository: String,
    /// Branch, tag or commit; `main` when not given.
    pub revision: String,
    /// One GGUF file of the repository; without it the safetensors are meant.
    pub file: Option<String>,
}

impl ModelReference {
    /// The entry of the cache of that name; what lies in the file system under the same name is not meant.
    ///
    /// # Errors
    /// When nothing in the cache can be called so.
    pub fn cached(given: &str) -> Result<Self, HubError> {
        if given == SMOLLM2.alias {
            return Ok(Self::Default);
        }
        HubReference::parse(given).map(Self::Hub).ok_or_else(|| HubError::NotCached { name: given.to_owned() })
    }

    /// What to call the model: the alias, `org/repo` (with the file if one was named), or the last part of the path without
    /// `.gguf`.
    pub fn name(&self) -> String {
        match self {
            Self::Default => SMOLLM2.alias.to_owned(),
            Self::Hub(hub) => hub.name(),
            Self::Path(path) => {
                let full = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
                let last = full.file_name().unwrap_or(full.as_os_str()).to_string_lossy();
                last.strip_suffix(".gguf").unwrap_or(&last).to_owned()
            }
        }
    }
}

impl FromStr for ModelReference {
    type Err = HubError;

    fn from_str(given: &str) -> Result<Self, HubError> {
        if given == SMOLLM2.alias {
            return Ok(Self::Default);
        }
        let path = Path::new(given);
        if !given.is_empty() && path.exists() {
            return Ok(Self::Path(path.to_owned()));
        }
        if let Some(hub) = HubReference::parse(given) {
            return Ok(Self::Hub(hub));
        }
        if given.ends_with(".gguf") || given.starts_with(['/', '.', '~']) || given.matches('/').count() > 1 {
            return Err(HubError::NoSuchPath { path: path.to_owned() });
        }
        Err(HubError::NotAReference { given: given.to_owned() })
    }
}

impl HubReference {
    /// The revision meant when none is given.
    pub const DEFAULT_REVISION: &str = "main";

    fn parse(given: &str) -> Option<Self> {
        let (rest, file) = match given.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (given, None),
        };
        let (repository, revision) = rest.split_once('@').unwrap_or((rest, Self::DEFAULT_REVISION));
        let (organisation, name) = repository.split_once('/')?;
        let file_is_gguf = file.is_none_or(|file| file.ends_with(".gguf") && is_safe_path(file));
        // `folder/model.gguf` is a path that does not exist, not a repository of that name.
        let is_repository = is_name(organisation) && is_name(name) && !name.ends_with(".gguf");
        (is_repository && is_safe_path(revision) && file_is_gguf).then(|| Self {
            repository: repository.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }

    /// The name requests use: `org/repo`, or with a file `org/repo:file.gguf`.
    pub fn name(&self) -> String {
        match &self.file {
            Some(file) => format!("{}:{file}", self.repository),
            None => self.repository.clone(),
        }
    }
}

impl fmt::Display for HubReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if self.revision != Self::DEFAULT_REVISION {
            write!(f, "@{}", self.revision)?;
        }
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// The Hub's rule for organisations and repositories.
fn is_name(name: &str) -> bool {
    name.len() <= 96
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !name.contains("..")
        && !name.contains("--")
}

/// Whether a name from outside stays inside the folder it is joined to, and needs no escaping in a URL.
pub(crate) fn is_safe_path(path: &str) -> bool {
    path.len() <= 512
        && path.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+/".contains(c))
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_hub(given: &str, repository: &str, revision: &str, file: Option<&str>) {
        let ModelReference::Hub(hub) = given.parse().unwrap() else { panic!("{given} is not a hub reference") };
        assert_eq!((hub.repository.as_str(), hub.revision.as_str(), hub.file.as_deref()), (repository, revision, file));
    }

    #[track_caller]
    fn check_error(given: &str, expected: &str) {
        let error = given.parse::<ModelReference>().unwrap_err().to_string();
        assert!(error.contains(expected), "{given}: {error}");
    }

    #[test]
    fn names_are_told_apart() {
        assert_eq!("smollm2".parse::<ModelReference>().unwrap(), ModelReference::Default);
        assert!(matches!(".".parse().unwrap(), ModelReference::Path(_)));
        check_hub("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", "main", None);
        check_hub("a/b@refs/pr/1", "a/b", "refs/pr/1", None);
        check_hub("a/b:q/m.Q4_K_M.gguf", "a/b", "main", Some("q/m.Q4_K_M.gguf"));
        check_hub("a/b@v1:m.gguf", "a/b", "v1", Some("m.gguf"));
    }

    #[test]
    fn the_cache_is_searched_by_name_alone() {
        // Exists as a path, too: tests run in this crate's folder.
        assert!(matches!("src/../tests".parse().unwrap(), ModelReference::Path(_)));
        assert!(matches!("src/lib.rs".parse().unwrap(), ModelReference::Path(_)));
        assert!(matches!(ModelReference::cached("src/lib.rs"), Ok(ModelReference::Hub(_))));
        assert_eq!(ModelReference::cached("smollm2").unwrap(), ModelReference::Default);
        assert!(ModelReference::cached("./tests").unwrap_err().to_string().contains("./tests"));
    }

    #[test]
    fn what_is_no_model_is_said_so() {
        check_error("folder/model.gguf", "no such file");
        check_error("/no/such/folder", "no such file");
        check_error("gpt2", "is not a model");
        check_error("", "is not a model");
        check_error("a/b:model.bin", "is not a model");
        check_error("a/b:../../x.gguf", "no such file");
        check_error("a/b@../../etc", "no such file");
    }

    #[test]
    fn displays_as_written() {
        for given in ["a/b", "a/b@v1", "a/b@v1:c.gguf", "a/b:c.gguf"] {
            let ModelReference::Hub(hub) = given.parse().unwrap() else { panic!() };
            assert_eq!(hub.to_string(), given);
        }
    }
}
