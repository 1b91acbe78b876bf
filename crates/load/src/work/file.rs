//! Prompts from a JSON Lines file: MT-Bench (`turns`), `prompt`, `text`, `messages`, or ShareGPT's `conversations`.

use crate::{openai::Prompt, random::Random};
use serde_json::Value;
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

/// Longest accepted file.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// The prompts of a file; requests go round it from a place that the seed chooses.
#[derive(Clone, Debug)]
pub struct PromptFile {
    prompts: Vec<Prompt>,
}

/// Why a file of prompts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read the prompts in {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A line that holds no prompt.
    #[error(
        "{path}, line {line}: {reason}; each line is an object with `turns`, `prompt`, `text`, `messages` or `conversations`"
    )]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// No prompts at all.
    #[error("{0} holds no prompts")]
    Empty(String),
}

impl PromptFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, a line holds no prompt, or there is none.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let name = path.display().to_string();
        let io = |source| FileError::Io { path: name.clone(), source };
        let file = File::open(path).map_err(io)?;
        Self::read(&name, BufReader::new(file.take(FILE_BYTES_MAX)))
    }

    fn read(name: &str, lines: impl BufRead) -> Result<Self, FileError> {
        let mut prompts = Vec::new();
        for (index, line) in lines.lines().enumerate() {
            let line = line.map_err(|source| FileError::Io { path: name.to_owned(), source })?;
            if line.trim().is_empty() {
                continue;
            }
            let prompt = prompt(&line);
            prompts.push(prompt.map_err(|reason| FileError::Line {
                path: name.to_owned(),
                line: index + 1,
                reason,
            })?);
        }
        if prompts.is_empty() { Err(FileError::Empty(name.to_owned())) } else { Ok(Self { prompts }) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.prompts.len()
    }

    /// The prompt of a request: each is used once before any is used again.
    pub fn prompt(&self, seed: u64, number: u64) -> Prompt {
        let count = self.prompts.len() as u64;
        let start = Random::of_item(seed, u64::MAX - 1).below(count);
        self.prompts[((start + number % count) % count) as usize].clone()
    }

    /// Some prompt is a list of messages, which only the chat route takes.
    pub fn needs_chat(&self) -> bool {
        self.prompts.iter().any(|prompt| matches!(prompt, Prompt::Messages(_)))
    }
}

fn prompt(line: &str) -> Result<Prompt, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("not JSON ({error})"))?;
    if let Some(messages) = value.get("messages").and_then(Value::as_array) {
        return if messages.is_empty() {
            Err("no messages".to_owned())
        } else {
            Ok(Prompt::Messages(messages.clone()))
        };
    }
    let first = |name: &str| value.get(name).and_then(Value::as_array).and_then(|list| list.first());
    let text = first("turns")
        .or_else(|| first("conversations").and_then(|turn| turn.get("value")))
        .or_else(|| value.get("prompt"))
        .or_else(|| value.get("text"))
        .or_else(|| value.is_string().then_some(&value));
    match text.and_then(Value::as_str) {
        Some(text) if !text.is_empty() => Ok(Prompt::Text(text.to_owned())),
        Some(_) => Err("an empty prompt".to_owned()),
        None => Err("no prompt".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_read_in_every_shape_and_used_in_turn() {
        let lines = r#"{"question_id": 81, "turns": ["one", "later"]}
{"prompt": "two"}

{"text": "three"}
{"conversations": [{"from": "human", "value": "four"}]}
"five"
{"messages": [{"role": "user", "content": "six"}]}"#;
        let file = PromptFile::read("f", lines.as_bytes()).unwrap();
        assert_eq!((file.count(), file.needs_chat()), (6, true));
        let names = |from: u64| -> Vec<String> {
            let mut round: Vec<_> = (from..from + 6).map(|number| format!("{:?}", file.prompt(1, number))).collect();
            round.sort();
            round
        };
        assert_eq!(names(0), names(6));
        for text in ["one", "two", "three", "four", "five"] {
            assert!(names(0).contains(&format!("Text({text:?})")), "{text}");
        }
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, reason) in [
            ("{\"prompt\": \"a\"}\n{", "line 2: not JSON"),
            ("{\"other\": 1}", "no prompt"),
            ("{\"prompt\": \"\"}", "empty prompt"),
            ("\n", "holds no prompts"),
        ] {
            let error = PromptFile::read("f", text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(PromptFile::open(Path::new("/nonexistent")).unwrap_err().to_string().contains("/nonexistent"));
    }
}
