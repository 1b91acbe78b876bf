//! Prompts from a file: JSON lines or one JSON list of MT-Bench's objects (`turns`), of `prompt`, `text` or `messages`, or of
//! ShareGPT's (`conversations`).

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
    /// For each prompt, what is said after it.
    later: Vec<Vec<String>>,
}

/// Why a file of prompts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read the prompts in {path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        error: io::Error,
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
        let io = |error| FileError::Io { path: name.clone(), error };
        let file = File::open(path).map_err(io)?;
        Self::read(&name, BufReader::new(file.take(FILE_BYTES_MAX)))
    }

    fn read(name: &str, mut lines: impl BufRead) -> Result<Self, FileError> {
        let io = |error| FileError::Io { path: name.to_owned(), error };
        let mut file = Self { prompts: Vec::new(), later: Vec::new() };
        let begins = lines.fill_buf().map_err(io)?;
        if begins.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
            let wrong = |error: serde_json::Error| FileError::Line {
                path: name.to_owned(),
                line: error.line(),
                reason: format!("not JSON ({error})"),
            };
            let list: Vec<Value> = serde_json::from_reader(lines).map_err(wrong)?;
            // Collections of conversations have empty ones among them.
            list.iter().filter_map(|value| turns(value).ok()).for_each(|turns| file.add(turns));
        } else {
            for (index, line) in lines.lines().enumerate() {
                let line = line.map_err(io)?;
                if line.trim().is_empty() {
                    continue;
                }
                let value = serde_json::from_str(&line).map_err(|error| format!("not JSON ({error})"));
                let turns = value.and_then(|value| turns(&value));
                let wrong = |reason| FileError::Line { path: name.to_owned(), line: index + 1, reason };
                file.add(turns.map_err(wrong)?);
            }
        }
        if file.prompts.is_empty() { Err(FileError::Empty(name.to_owned())) } else { Ok(file) }
    }

    fn add(&mut self, (prompt, later): (Prompt, Vec<String>)) {
        self.prompts.push(prompt);
        self.later.push(later);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.prompts.len()
    }

    /// The prompt of a request: each is used once before any is used again.
    pub fn prompt(&self, seed: u64, number: u64) -> Prompt {
        self.prompts[self.place(seed, number)].clone()
    }

    /// What is said in a later turn after that prompt; none past the conversation's end.
    pub fn later_turn(&self, seed: u64, number: u64, turn: usize) -> Option<String> {
        self.later[self.place(seed, number)].get(turn.checked_sub(1)?).cloned()
    }

    fn place(&self, seed: u64, number: u64) -> usize {
        let count = self.prompts.len() as u64;
        let start = Random::of_item(seed, u64::MAX - 1).below(count);
        ((start + number % count) % count) as usize
    }

    /// Some prompt is a list of messages, which only the chat route takes.
    pub fn needs_chat(&self) -> bool {
        self.prompts.iter().any(|prompt| matches!(prompt, Prompt::Messages(_)))
    }
}

/// The prompt in a value, and what its author says later.
fn turns(value: &Value) -> Result<(Prompt, Vec<String>), String> {
    if let Some(messages) = value.get("messages").and_then(Value::as_array) {
        return if messages.is_empty() {
            Err("no messages".to_owned())
        } else {
            Ok((Prompt::Messages(messages.clone()), Vec::new()))
        };
    }
    let mut said: Vec<&str> = Vec::new();
    if let Some(turns) = value.get("turns").and_then(Value::as_array) {
        said.extend(turns.iter().filter_map(Value::as_str));
    } else if let Some(turns) = value.get("conversations").and_then(Value::as_array) {
        let human =
            |turn: &&Value| !matches!(turn.get("from").and_then(Value::as_str), Some("gpt" | "assistant" | "system"));
        said.extend(turns.iter().filter(human).filter_map(|turn| turn.get("value")?.as_str()));
    } else {
        let text = value.get("prompt").or_else(|| value.get("text")).unwrap_or(value);
        said.extend(text.as_str());
    }
    match said.split_first() {
        Some((first, later)) if !first.is_empty() => {
            Ok((Prompt::Text((*first).to_owned()), later.iter().map(|&text| text.to_owned()).collect()))
        }
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
{"conversations": [{"from": "human", "value": "four"}, {"from": "gpt", "value": "no"}, {"from": "human", "value": "more"}]}
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
        let mut later: Vec<_> =
            (0..6).map(|number| (file.later_turn(1, number, 1), file.later_turn(1, number, 2))).collect();
        later.sort();
        assert_eq!(later[4..], [(Some("later".to_owned()), None), (Some("more".to_owned()), None)]);
        assert_eq!(later[3], (None, None));
        for text in ["one", "two", "three", "four", "five"] {
            assert!(names(0).contains(&format!("Text({text:?})")), "{text}");
        }
    }

    #[test]
    fn a_list_is_read_but_for_its_empty_conversations() {
        let list = r#" [{"conversations": []}, {"conversations": [{"from": "human", "value": "a"}]}, {"prompt": "b"}]"#;
        assert_eq!(PromptFile::read("f", list.as_bytes()).unwrap().count(), 2);
        let error = PromptFile::read("f", "[\n{]".as_bytes()).unwrap_err().to_string();
        assert!(error.contains("line 2: not JSON"), "{error}");
        assert!(PromptFile::read("f", "[]".as_bytes()).unwrap_err().to_string().contains("no prompts"));
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
