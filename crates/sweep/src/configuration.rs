//! One point of a matrix: a server with one value for each parameter, and the command that starts it.

use crate::matrix::{ServerPlan, Words};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// Longest name of a folder on common file systems, less some room.
const NAME_BYTES_MAX: usize = 200;

/// A server with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// `server/parameter=value,…`: what tables call it, and its folder.
    pub name: String,
    /// The server's name alone.
    pub server: String,
    /// Each parameter's value, in the order of the file.
    pub parameters: Vec<(String, String)>,
    /// The plan it comes from, with these parameters in its command and no others.
    pub plan: ServerPlan,
    words: Vec<String>,
}

/// A command ready to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Program and arguments.
    pub words: Vec<String>,
    /// Environment beyond our own.
    pub env: BTreeMap<String, String>,
    /// Where it will listen.
    pub url: String,
    /// The port in it.
    pub port: u16,
    /// How long it may take until it answers.
    pub ready_timeout: Duration,
    /// How long it may take to end.
    pub stop_timeout: Duration,
}

/// Why a command cannot be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// Nothing to run.
    #[error("server `{0}`: the command is empty")]
    Empty(String),
    /// Quoting.
    #[error("server `{server}`: a quote in the command is not closed: {command}")]
    Quoting {
        /// Which.
        server: String,
        /// What was given.
        command: String,
    },
    /// A placeholder nobody fills.
    #[error("server `{server}`: the command has {{{name}}}, which is no parameter and not {{port}}")]
    Placeholder {
        /// Which.
        server: String,
        /// What stands between the braces.
        name: String,
    },
    /// A name that cannot be a folder.
    #[error(
        "`{0}` cannot name a folder: use letters, digits, dots, dashes and underscores, at most {NAME_BYTES_MAX} bytes with all values"
    )]
    Name(String),
}

impl Configuration {
    /// Makes the command.
    ///
    /// # Errors
    /// When it cannot be split, is empty, or has a placeholder that is no parameter.
    pub fn new(plan: &ServerPlan, table: toml::Table) -> Result<Self, LaunchError> {
        let server = plan.name.clone();
        let mut words = match &plan.command {
            Words::List(words) => words.clone(),
            Words::Text(text) => shlex::split(text)
                .ok_or_else(|| LaunchError::Quoting { server: server.clone(), command: text.clone() })?,
        };
        if words.is_empty() {
            return Err(LaunchError::Empty(server));
        }
        let mut env = plan.env.clone();
        let mut parameters = Vec::new();
        for (name, value) in &table {
            let text = text(value);
            let placeholder = format!("{{{name}}}");
            let places = || words.iter().chain(env.values());
            if places().any(|word| word.contains(&placeholder)) {
                words.iter_mut().chain(env.values_mut()).for_each(|word| *word = word.replace(&placeholder, &text));
            } else {
                let dashes = if name.starts_with('-') {
                    ""
                } else if name.len() == 1 {
                    "-"
                } else {
                    "--"
                };
                match value {
                    toml::Value::Boolean(true) => words.push(format!("{dashes}{name}")),
                    toml::Value::Boolean(false) => {}
                    _ => words.extend([format!("{dashes}{name}"), text.clone()]),
                }
            }
            parameters.push((name.clone(), text));
        }
        if let Some(name) =
            words.iter().chain(env.values()).find_map(|word| placeholder(word)).filter(|name| name != "port")
        {
            return Err(LaunchError::Placeholder { server, name });
        }
        let values: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let below = if values.is_empty() { "default".to_owned() } else { values.join(",") };
        for part in [&server, &below] {
            let is_plain = |character: char| character.is_ascii_alphanumeric() || "._-=,:+ ".contains(character);
            let is_dots = part.chars().all(|character| character == '.');
            if part.is_empty() || is_dots || part.len() > NAME_BYTES_MAX {
                return Err(LaunchError::Name(part.clone()));
            }
            if *part == server && !part.chars().all(is_plain) {
                return Err(LaunchError::Name(part.clone()));
            }
        }
        // Values may be paths: what cannot stand in a file's name becomes a dash there.
        let below: String =
            below.chars().map(|c| if c.is_ascii_alphanumeric() || "._-=,:+".contains(c) { c } else { '-' }).collect();
        let plan = ServerPlan {
            command: Words::List(words.clone()),
            env,
            parameters: toml::Table::new(),
            exclude: Vec::new(),
            ..plan.clone()
        };
        Ok(Self { name: format!("{server}/{below}"), server, parameters, plan, words })
    }

    /// The command for a port.
    pub fn launch(&self, port: u16) -> Launch {
        let filled = |word: &String| word.replace("{port}", &port.to_string());
        Launch {
            words: self.words.iter().map(filled).collect(),
            env: self.plan.env.iter().map(|(name, value)| (name.clone(), filled(value))).collect(),
            url: filled(&self.plan.url),
            port,
            ready_timeout: Duration::from_secs_f64(self.plan.ready_timeout_s),
            stop_timeout: Duration::from_secs_f64(self.plan.stop_timeout_s),
        }
    }

    /// What makes a stored result one of this configuration: all that the server can notice.
    pub fn definition(&self) -> Value {
        json!({
            "server": self.server,
            "command": self.words,
            "env": self.plan.env,
            "url": self.plan.url,
            "model": self.plan.model,
            "parameters": self.parameters.iter().map(|(name, value)| json!([name, value])).collect::<Vec<_>>(),
        })
    }

    /// The command as a shell takes it, for this port.
    pub fn shell_line(&self, port: u16) -> String {
        let launch = self.launch(port);
        let quoted = |word: &str| shlex::try_quote(word).map_or_else(|_| word.to_owned(), |quoted| quoted.into_owned());
        let env = launch.env.iter().map(|(name, value)| format!("{name}={}", quoted(value)));
        env.chain(launch.words.iter().map(|word| quoted(word))).collect::<Vec<_>>().join(" ")
    }
}

/// A value as a command line has it.
fn text(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The first `{name}` in a word: braces around letters, digits, dashes and underscores. Others, as in JSON, are text.
fn placeholder(word: &str) -> Option<String> {
    word.split('{').skip(1).find_map(|rest| {
        let (name, _) = rest.split_once('}')?;
        let is_name = |character: char| character.is_ascii_alphanumeric() || character == '-' || character == '_';
        (!name.is_empty() && name.chars().all(is_name)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(command: &str) -> ServerPlan {
        let text = format!("name = 's'\ncommand = '''{command}'''");
        toml::from_str(&text).unwrap()
    }

    fn table(text: &str) -> toml::Table {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn parameters_fill_placeholders_or_become_flags() {
        let check = |command: &str, parameters: &str, expected: &str| {
            let configuration = Configuration::new(&plan(command), table(parameters)).unwrap();
            assert_eq!(configuration.shell_line(8000), expected);
        };
        check("vllm serve m --port {port}", "max-model-len = 4096", "vllm serve m --port 8000 --max-model-len 4096");
        check("run -c {ctx}", "ctx = 5\neager = true\nfast = false\nt = 2", "run -c 5 --eager -t 2");
        let filled: ServerPlan =
            toml::from_str("name = 's'\ncommand = 'run'\nenv = { MODE = '{mode} {port}' }").unwrap();
        let configuration = Configuration::new(&filled, table("mode = 'x'")).unwrap();
        assert_eq!(configuration.shell_line(1), "MODE='x 1' run");
        check("run --util={u}", "u = 0.85", "run '--util=0.85'");
        check("run 'a b' --json '{\"a\": {}}'", "", "run 'a b' --json '{\"a\": {}}'");
    }

    #[test]
    fn names_are_folders() {
        let name = |parameters: &str| Configuration::new(&plan("run"), table(parameters)).map(|found| found.name);
        assert_eq!(name("").unwrap(), "s/default");
        assert_eq!(name("model = 'a/b c'").unwrap(), "s/model=a-b-c");
        assert!(name(&format!("x = '{}'", "y".repeat(300))).unwrap_err().to_string().contains("200"));
        let error = Configuration::new(&plan("run {what}"), toml::Table::new()).unwrap_err();
        assert!(error.to_string().contains("{what}"), "{error}");
    }
}
