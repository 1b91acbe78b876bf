//! The file a user writes: servers with parameters to try, workloads to offer them, limits to meet.

use crate::{
    configuration::Configuration,
    workload::{Limits, Workload, WorkloadError},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Most configurations of a matrix.
const CONFIGURATIONS_MAX: usize = 10_000;
/// Most repeats.
const REPEATS_MAX: u32 = 1000;

/// A matrix: every configuration of every server, under every workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// How often all of it is measured, each time with servers started anew, so that repeats differ as starts do.
    #[serde(default = "one")]
    pub repeats: u32,
    /// Requests sent to each started server before anything is measured.
    #[serde(default = "warmup_requests")]
    pub warmup_requests: u32,
    /// What to start.
    pub server: Vec<ServerPlan>,
    /// What to offer.
    pub workload: Vec<Workload>,
    /// What makes a request good, and how many must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objectives: Option<Limits>,
}

/// A server and the parameters to try with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerPlan {
    /// What tables call it.
    pub name: String,
    /// Program and arguments; `{port}` and `{parameter}` stand for their values.
    pub command: Words,
    /// Where it will listen; `{port}` stands for its port.
    #[serde(default = "local")]
    pub url: String,
    /// The port; any free one where none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The model's name in requests; by default the first that the server lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Name of the environment variable that holds the key to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// Seconds it may take until it answers.
    #[serde(default = "ready_timeout")]
    pub ready_timeout_s: f64,
    /// Seconds it may take to end after SIGTERM.
    #[serde(default = "stop_timeout")]
    pub stop_timeout_s: f64,
    /// Environment beyond our own; placeholders as in the command.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Values to try, every combination. One that neither command nor environment mentions becomes a flag `--parameter value`;
    /// `true` gives the flag alone, `false` none.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub parameters: toml::Table,
    /// Combinations to leave out: those that agree with one of these in all it names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<toml::Table>,
}

/// A command line, as one text with shell quoting or as a list of words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Words {
    /// To be split as a shell would; nothing else of a shell is done.
    Text(String),
    /// As they are.
    List(Vec<String>),
}

/// Why a matrix cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MatrixError {
    /// The file.
    #[error("{}: {error}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// No TOML, or unknown or missing fields.
    #[error("{}: {message}", .path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// With line and column.
        message: String,
    },
    /// A value.
    #[error("{0}")]
    Value(String),
    /// A workload.
    #[error("workload `{name}`: {error}")]
    Workload {
        /// Which.
        name: String,
        /// Why.
        error: WorkloadError,
    },
}

impl Matrix {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, is no matrix, or cannot be carried out.
    pub fn open(path: &Path) -> Result<Self, MatrixError> {
        let text = fs::read_to_string(path).map_err(|error| MatrixError::Read { path: path.to_owned(), error })?;
        let parse = |error: toml::de::Error| MatrixError::Parse { path: path.to_owned(), message: error.to_string() };
        let matrix: Self = toml::from_str(&text).map_err(parse)?;
        matrix.check()?;
        Ok(matrix)
    }

    /// Every configuration, in the order of the file, the last parameter changing fastest.
    ///
    /// # Errors
    /// When a parameter has no usable values or there are too many combinations.
    pub fn configurations(&self) -> Result<Vec<Configuration>, MatrixError> {
        let mut all: Vec<Configuration> = Vec::new();
        for server in &self.server {
            for parameters in server.combinations()? {
                if all.len() == CONFIGURATIONS_MAX {
                    return Err(MatrixError::Value(format!(
                        "more than {CONFIGURATIONS_MAX} configurations; try fewer values"
                    )));
                }
                all.push(
                    Configuration::new(server, parameters).map_err(|error| MatrixError::Value(error.to_string()))?,
                );
            }
        }
        if all.is_empty() {
            return Err(MatrixError::Value("every combination is excluded; nothing is left to measure".to_owned()));
        }
        let mut names: Vec<&str> = all.iter().map(|configuration| configuration.name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                Err(MatrixError::Value(format!("two configurations are both called {}; rename one", pair[0])))
            }
            None => Ok(all),
        }
    }

    fn check(&self) -> Result<(), MatrixError> {
        let ensure = |holds: bool, message: String| if holds { Ok(()) } else { Err(MatrixError::Value(message)) };
        ensure(!self.server.is_empty(), "no [[server]] is given".to_owned())?;
        ensure(!self.workload.is_empty(), "no [[workload]] is given".to_owned())?;
        ensure(
            (1..=REPEATS_MAX).contains(&self.repeats),
            format!("repeats = {}: write 1 to {REPEATS_MAX}", self.repeats),
        )?;
        for server in &self.server {
            for (name, seconds) in
                [("ready_timeout_s", server.ready_timeout_s), ("stop_timeout_s", server.stop_timeout_s)]
            {
                let holds = seconds.is_finite() && (0.1..=86_400.0).contains(&seconds);
                ensure(holds, format!("server `{}`: {name} = {seconds}: write 0.1 to 86400", server.name))?;
            }
        }
        for (place, workload) in self.workload.iter().enumerate() {
            let error = |error| MatrixError::Workload { name: workload.name.clone(), error };
            workload.check(self.objectives.as_ref()).map_err(error)?;
            let twice = self.workload[..place].iter().any(|other| other.name == workload.name);
            ensure(!twice, format!("two workloads are both called `{}`; rename one", workload.name))?;
        }
        self.configurations().map(|_| ())
    }
}

impl ServerPlan {
    fn combinations(&self) -> Result<Vec<toml::Table>, MatrixError> {
        let wrong = |name: &str, why: &str| {
            Err(MatrixError::Value(format!("server `{}`, parameter `{name}`: {why}", self.name)))
        };
        let mut all = vec![toml::Table::new()];
        for (name, values) in &self.parameters {
            let values = match values {
                toml::Value::Array(values) => values.clone(),
                one => vec![one.clone()],
            };
            if values.is_empty() {
                return wrong(name, "has no values");
            }
            let is_scalar = |value: &toml::Value| !matches!(value, toml::Value::Array(_) | toml::Value::Table(_));
            if !values.iter().all(is_scalar) {
                return wrong(name, "values must be numbers, texts, true or false");
            }
            if all.len().saturating_mul(values.len()) > CONFIGURATIONS_MAX {
                return wrong(name, &format!("makes more than {CONFIGURATIONS_MAX} combinations; try fewer values"));
            }
            let with = |table: &toml::Table, value: &toml::Value| {
                let mut table = table.clone();
                table.insert(name.clone(), value.clone());
                table
            };
            all = all.iter().flat_map(|table| values.iter().map(move |value| with(table, value))).collect();
        }
        if let Some(name) =
            self.exclude.iter().flat_map(|table| table.keys()).find(|name| !self.parameters.contains_key(*name))
        {
            return wrong(name, "is excluded but not among the parameters");
        }
        let excluded = |table: &toml::Table| {
            self.exclude.iter().any(|exclude| {
                !exclude.is_empty() && exclude.iter().all(|(name, value)| table.get(name) == Some(value))
            })
        };
        all.retain(|table| !excluded(table));
        Ok(all)
    }
}

fn one() -> u32 {
    1
}

fn warmup_requests() -> u32 {
    8
}

fn local() -> String {
    "http://127.0.0.1:{port}".to_owned()
}

fn ready_timeout() -> f64 {
    600.0
}

fn stop_timeout() -> f64 {
    30.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Matrix, MatrixError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("matrix.toml");
        fs::write(&path, text).unwrap();
        Matrix::open(&path)
    }

    const SERVER: &str = "[[server]]\nname = 's'\ncommand = 'run --port {port}'\n";
    const WORKLOAD: &str = "[[workload]]\nname = 'w'\nconcurrency = [1, 8]\n";

    #[test]
    fn every_combination_is_made_but_those_excluded() {
        let parameters = "parameters = { len = [1024, 2048], seqs = [8, 16], eager = [true, false] }\n\
                          exclude = [{ len = 2048, seqs = 16 }]\n";
        let matrix = read(&format!("{SERVER}{parameters}{WORKLOAD}")).unwrap();
        let names: Vec<String> = matrix.configurations().unwrap().into_iter().map(|found| found.name).collect();
        assert_eq!(names.len(), 6);
        assert_eq!(names[0], "s/len=1024,seqs=8,eager=true");
        assert_eq!(names[5], "s/len=2048,seqs=8,eager=false");
        assert_eq!(matrix.repeats, 1);
    }

    #[test]
    fn what_cannot_be_is_said_with_its_name() {
        for (text, expected) in [
            (WORKLOAD.to_owned(), "missing field `server`"),
            (format!("{SERVER}{WORKLOAD}").replace("name = 's'", "name = 's'\nporrt = 1"), "porrt"),
            (format!("repeats = 0\n{SERVER}{WORKLOAD}"), "repeats = 0"),
            (format!("{SERVER}parameters = {{ a = [] }}\n{WORKLOAD}"), "`a`: has no values"),
            (format!("{SERVER}parameters = {{ a = [[1]] }}\n{WORKLOAD}"), "must be numbers"),
            (format!("{SERVER}parameters = {{ a = [1] }}\nexclude = [{{ a = 1 }}]\n{WORKLOAD}"), "nothing is left"),
            (format!("{SERVER}exclude = [{{ a = 1 }}]\n{WORKLOAD}"), "not among the parameters"),
            (format!("{SERVER}{WORKLOAD}{WORKLOAD}"), "two workloads"),
            (format!("{SERVER}{SERVER}{WORKLOAD}"), "two configurations"),
            (format!("{SERVER}ready_timeout_s = -1\n{WORKLOAD}"), "ready_timeout_s = -1"),
            (format!("{SERVER}{WORKLOAD}request_rate = [2]\n"), "workload `w`"),
            (format!("{SERVER}{WORKLOAD}").replace("run --port {port}", "run \\\"a").replace('\'', "\""), "quote"),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
