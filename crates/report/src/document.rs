//! A file of results: JSON with a format's name, an id that the report's numbers refer to, and a hash of its bytes.

use crate::{
    error::Error,
    figure::{Figure, Unit},
};
use powertrain_load::files::read_regular;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{io::ErrorKind, path::Path};

/// Largest file of results that is read: the raw events lie in another file.
const BYTES_MAX: u64 = 256 << 20;

/// A file of results.
#[derive(Clone, Debug)]
pub struct Document {
    /// `B1`, `A2`, … in a case study: side and number.
    pub id: String,
    /// As given by the user.
    pub path: String,
    /// SHA-256 of the bytes, hexadecimal.
    pub sha256: String,
    /// What it is.
    pub kind: Kind,
    /// The content.
    pub json: Value,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A run of `powertrain bench`.
    Bench,
    /// A measure of quality of `powertrain eval`, or of another tool in the same fields.
    Eval,
    /// An A/B comparison of `powertrain compare`.
    Compare,
    /// The table of a `powertrain sweep`.
    Sweep,
    /// A server's memory over a run.
    Memory,
    /// The client's scenario.
    Scenario,
}

/// Formats by the part of their name before the version, and the version that is understood.
const FORMATS: [(&str, u64, Kind); 5] = [
    ("powertrain-bench", 1, Kind::Bench),
    ("powertrain-eval", 1, Kind::Eval),
    ("powertrain-compare", 1, Kind::Compare),
    ("powertrain-sweep-table", 1, Kind::Sweep),
    ("powertrain-memory", 1, Kind::Memory),
];

impl Document {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is no JSON, or is of no kind that a report knows.
    pub fn open(id: &str, path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let unreadable = |error| Error::Unreadable { path: shown.clone(), error };
        let bytes = read_regular(path, BYTES_MAX).map_err(|error| match error.kind() {
            ErrorKind::FileTooLarge => Error::TooLarge { path: shown.clone(), most: BYTES_MAX },
            _ => unreadable(error),
        })?;
        let json: Value =
            serde_json::from_slice(&bytes).map_err(|error| Error::NotJson { path: shown.clone(), error })?;
        let kind = kind(&json).map_err(|found| Error::UnknownFormat { path: shown.clone(), found })?;
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { id: id.to_owned(), path: shown, sha256, kind, json })
    }

    /// The finite number at a JSON pointer.
    pub fn number(&self, pointer: &str, unit: Unit) -> Option<Figure> {
        let value = self.json.pointer(pointer)?.as_f64().filter(|value| value.is_finite())?;
        Some(Figure::read(value, unit, &self.id, pointer))
    }

    /// The text at a JSON pointer.
    pub fn text(&self, pointer: &str) -> Option<&str> {
        self.json.pointer(pointer)?.as_str().filter(|text| !text.is_empty())
    }

    /// The truth value at a JSON pointer; false where there is none.
    pub fn is_set(&self, pointer: &str) -> bool {
        self.json.pointer(pointer).and_then(Value::as_bool).unwrap_or(false)
    }

    /// How many elements the array at a JSON pointer has; 0 where there is none.
    pub fn length(&self, pointer: &str) -> usize {
        self.json.pointer(pointer).and_then(Value::as_array).map_or(0, Vec::len)
    }

    /// The command line that made it, quoted for a shell.
    pub fn command(&self) -> Option<String> {
        let words = self.json.pointer("/command")?.as_array()?;
        let words: Vec<String> = words.iter().filter_map(Value::as_str).map(shell_quoted).collect();
        (!words.is_empty()).then(|| words.join(" "))
    }
}

fn kind(json: &Value) -> Result<Kind, String> {
    let Some(format) = json.get("format").and_then(Value::as_str) else {
        // `eval perplexity --json` of early versions has no format's name.
        return if json.get("perplexity").is_some() { Ok(Kind::Eval) } else { Err("no field `format`".to_owned()) };
    };
    let (name, version) = format.split_once('/').unwrap_or((format, ""));
    let known = FORMATS.iter().find(|(known, understood, _)| name == *known && version == understood.to_string());
    known.map(|&(_, _, kind)| kind).ok_or_else(|| format!("format {format:?}"))
}

/// The formats' names with their versions, for messages.
pub(crate) fn known_formats() -> String {
    FORMATS.map(|(name, version, _)| format!("{name}/{version}")).join(", ")
}

/// A word as a POSIX shell reads it back.
pub fn shell_quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,:/@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kinds_are_told_by_their_format() {
        for (json, expected) in [
            (json!({"format": "powertrain-bench/1"}), Ok(Kind::Bench)),
            (json!({"format": "powertrain-bench/2"}), Err("format \"powertrain-bench/2\"".to_owned())),
            (json!({"perplexity": 21.5}), Ok(Kind::Eval)),
            (json!([]), Err("no field `format`".to_owned())),
        ] {
            assert_eq!(kind(&json), expected, "{json}");
        }
    }

    #[test]
    fn words_survive_a_shell() {
        for (word, expected) in
            [("--concurrency=1,8", "--concurrency=1,8"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("", "''")]
        {
            assert_eq!(shell_quoted(word), expected);
        }
    }
}
