//! Configurations as Hugging Face writes them: `config.json` and `generation_config.json`.

mod generation;

pub use generation::GenerationConfig;

use crate::error::{ModelError, quoted};
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;

/// The largest configuration file that is read. The largest published ones (label maps of classifiers) are near 1 MiB.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

const ADVICE_OTHER_MODEL: &str = "no other value is supported: use another model";

/// A `config.json`, or a section of it, with typed fields.
///
/// Getters come in two kinds, as those of a GGUF file's metadata: plain ones give `None` for a missing or null field,
/// `require_*` an error. A value of the wrong type is an error in both, and every error names the file and the field.
#[derive(Clone, Debug)]
pub struct Config {
    path: Arc<Path>,
    /// Where this section stands in the file: empty, or `text_config.` and so on.
    section: String,
    fields: Map<String, Value>,
}

impl Config {
    /// Reads a JSON file.
    ///
    /// # Errors
    /// When it cannot be read, is over 16 MiB, or is not a JSON object.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        use std::io::Read;
        let io = |source| ModelError::io(path, "read", source);
        let mut text = Vec::new();
        let file = crate::bytes::open_regular(path)?;
        file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut text).map_err(io)?;
        if text.len() as u64 > CONFIG_BYTES_MAX {
            let found = format!("over {CONFIG_BYTES_MAX} bytes");
            return Err(ModelError::invalid(path, "the file", found, "a model's configuration", "check the path"));
        }
        Self::parse(path, &text)
    }

    /// Reads JSON from memory; `path` is what messages call it.
    ///
    /// # Errors
    /// When it is not a JSON object.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, ModelError> {
        let damaged = |found: String| {
            ModelError::invalid(path, "the file", found, "a JSON object", "download it again or repair it by hand")
        };
        match serde_json::from_slice(json) {
            Ok(Value::Object(fields)) => Ok(Self { path: path.into(), section: String::new(), fields }),
            Ok(other) => Err(damaged(describe(&other))),
            Err(error) => Err(damaged(format!("invalid JSON: {error}"))),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the field is there, null included.
    pub fn contains(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// Whether it has no field at all.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// An integer of at least 0.
    pub fn count(&self, field: &str) -> Result<Option<usize>, ModelError> {
        self.get(field, "an integer of at least 0", |value| value.as_u64()?.try_into().ok())
    }

    /// [`count`](Self::count), the field required.
    pub fn require_count(&self, field: &str) -> Result<usize, ModelError> {
        self.count(field)?.ok_or_else(|| self.missing(field, "an integer of at least 0"))
    }

    /// A finite number.
    pub fn number(&self, field: &str) -> Result<Option<f64>, ModelError> {
        self.get(field, "a number", Value::as_f64)
    }

    /// [`number`](Self::number), the field required.
    pub fn require_number(&self, field: &str) -> Result<f64, ModelError> {
        self.number(field)?.ok_or_else(|| self.missing(field, "a number"))
    }

    /// A number from 1e-6 to 1e12: what a factor, base or cap can be. Wider ones make no finite f32 of what they scale.
    pub fn positive(&self, field: &str) -> Result<Option<f64>, ModelError> {
        match self.number(field)? {
            Some(value) if !(1e-6..=1e12).contains(&value) => {
                Err(self.wrong(field, "a number from 1e-6 to 1e12", "correct the file"))
            }
            value => Ok(value),
        }
    }

    /// [`positive`](Self::positive), the field required.
    pub fn require_positive(&self, field: &str) -> Result<f64, ModelError> {
        self.positive(field)?.ok_or_else(|| self.missing(field, "a number from 1e-6 to 1e12"))
    }

    /// True or false.
    pub fn flag(&self, field: &str) -> Result<Option<bool>, ModelError> {
        self.get(field, "true or false", Value::as_bool)
    }

    /// A string.
    pub fn text(&self, field: &str) -> Result<Option<&str>, ModelError> {
        self.get(field, "a string", Value::as_str)
    }

    /// An array of strings.
    pub fn texts(&self, field: &str) -> Result<Option<Vec<&str>>, ModelError> {
        self.get(field, "an array of strings", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// One token id or an array of them.
    pub fn token_ids(&self, field: &str) -> Result<Option<Vec<u32>>, ModelError> {
        let id = |value: &Value| value.as_u64()?.try_into().ok();
        self.get(field, "a token id or an array of token ids", |value| match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            value => Some(vec![id(value)?]),
        })
    }

    /// An object inside this one.
    pub fn section(&self, field: &str) -> Result<Option<Config>, ModelError> {
        self.get(field, "an object", |value| {
            let fields = value.as_object()?.clone();
            Some(Self { path: self.path.clone(), section: format!("{}{field}.", self.section), fields })
        })
    }

    /// Refuses any other value of a field than this one; it may be missing.
    pub fn expect_text(&self, field: &str, only: &str) -> Result<(), ModelError> {
        match self.text(field)? {
            Some(found) if found != only => Err(self.wrong(field, format!("{only:?}"), ADVICE_OTHER_MODEL)),
            _ => Ok(()),
        }
    }

    /// Refuses any other value of a field than this one; it may be missing.
    pub fn expect_flag(&self, field: &str, only: bool) -> Result<(), ModelError> {
        match self.flag(field)? {
            Some(found) if found != only => Err(self.wrong(field, only.to_string(), ADVICE_OTHER_MODEL)),
            _ => Ok(()),
        }
    }

    /// An error about this field: its value in words, and what was expected instead.
    pub fn wrong(&self, field: &str, expected: impl Into<String>, advice: impl Into<String>) -> ModelError {
        let found = self.fields.get(field).map_or_else(|| "nothing".to_owned(), describe);
        ModelError::invalid(&self.path, format!("{}{field}", self.section), found, expected, advice)
    }

    fn missing(&self, field: &str, expected: &str) -> ModelError {
        self.wrong(field, expected, "take the config.json that was published with the weights")
    }

    fn get<'a, T>(
        &'a self,
        field: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(self.wrong(field, expected, "correct the file")),
            },
        }
    }
}

/// A value in words, for messages: short whatever the value.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(items) => quoted_json(value).unwrap_or_else(|| format!("an array of {}", items.len())),
        Value::Object(fields) => format!("an object of {} fields", fields.len()),
    }
}

/// A short value as it stands in the file.
fn quoted_json(value: &Value) -> Option<String> {
    let text = value.to_string();
    (text.len() <= 60).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Result<Config, ModelError> {
        Config::parse(Path::new("m/config.json"), json.as_bytes())
    }

    #[test]
    fn an_error_names_file_field_found_and_expected() {
        let check = |error: ModelError, expected: &str| assert_eq!(error.to_string(), expected);
        let c = config(r#"{"a": "x", "b": [1, 2], "s": {"n": -3}, "z": null}"#).unwrap();
        check(
            c.count("a").unwrap_err(),
            r#"m/config.json: a: found "x", expected an integer of at least 0; correct the file"#,
        );
        check(c.flag("b").unwrap_err(), r#"m/config.json: b: found [1,2], expected true or false; correct the file"#);
        check(
            c.section("s").unwrap().unwrap().count("n").unwrap_err(),
            "m/config.json: s.n: found -3, expected an integer of at least 0; correct the file",
        );
        check(
            c.require_number("z").unwrap_err(),
            "m/config.json: z: found null, expected a number; take the config.json that was published with the weights",
        );
        assert_eq!(c.count("z").unwrap(), None);
        assert!(config("[1]").unwrap_err().to_string().contains("found [1], expected a JSON object"));
        assert!(config("{").unwrap_err().to_string().contains("invalid JSON: EOF"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_device_is_not_read() {
        let error = Config::open(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(config(&deep).unwrap_err().to_string().contains("recursion limit"));
    }
}
