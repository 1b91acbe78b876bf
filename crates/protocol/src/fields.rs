//! Reads a JSON object field by field and collects everything that is wrong with it.

use crate::{ApiError, TokenId};
use serde_json::{Map, Value};
use std::{fmt, ops::RangeInclusive};

/// How many problems a message lists before it only counts them.
const PROBLEMS_SHOWN_MAX: usize = 16;
/// Characters of a bad value that a message repeats.
const VALUE_SHOWN_MAX: usize = 40;

/// One thing wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `temperature`, `messages[2].role`.
    pub field: String,
    /// What was found and what is allowed.
    pub message: String,
}

/// Everything wrong with a request, in the order in which it was found. Shown as `temperature: -1 is below 0; n: …`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

/// The fields of one JSON object. Each reading takes its field out; `null` counts as absent.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
    problems: Problems,
}

impl Fields {
    /// Parses a request body.
    ///
    /// # Errors
    /// [`ApiError::BodyNotJson`] when it is no JSON or no object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self::new(map)),
            Ok(other) => Err(ApiError::BodyNotJson(format!("expected an object, got {}", kind(&other)))),
            Err(error) => Err(ApiError::BodyNotJson(error.to_string())),
        }
    }

    /// Reads an object that is already parsed.
    #[must_use]
    pub fn new(map: Map<String, Value>) -> Self {
        Self { map, problems: Problems::default() }
    }

    /// Notes that something is wrong.
    pub fn problem(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.problems.0.push(Problem { field: field.into(), message: message.into() });
    }

    /// Whether the field is given, and not null.
    #[must_use]
    pub fn has(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(|value| !value.is_null())
    }

    /// Whether a problem was noted for this very field.
    #[must_use]
    pub fn has_problem(&self, field: &str) -> bool {
        self.problems.0.iter().any(|problem| problem.field == field)
    }

    /// Whether any problem was noted.
    #[must_use]
    pub fn has_problems(&self) -> bool {
        !self.problems.0.is_empty()
    }

    /// The end of reading.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] with all problems, if there are any.
    pub fn finish(self) -> Result<(), ApiError> {
        if self.problems.0.is_empty() { Ok(()) } else { Err(ApiError::Invalid(self.problems)) }
    }

    /// Ends the reading of a nested object: its problems, for the outer reader to take over.
    pub(crate) fn into_problems(self) -> Problems {
        self.problems
    }

    /// Takes over problems found inside the field `prefix`.
    pub(crate) fn problems_of(&mut self, prefix: &str, inner: Problems) {
        for Problem { field, message } in inner.0 {
            self.problem(format!("{prefix}.{field}"), message);
        }
    }

    /// The field whatever it is.
    pub fn take(&mut self, field: &str) -> Option<Value> {
        match self.map.remove(field) {
            None | Some(Value::Null) => None,
            some => some,
        }
    }

    /// The names of the fields that are left.
    pub(crate) fn names(&self) -> Vec<String> {
        self.map.keys().cloned().collect()
    }

    /// Puts a field back, to be read in another way.
    pub(crate) fn put(&mut self, field: &str, value: Value) {
        self.map.insert(field.to_owned(), value);
    }

    /// A boolean.
    pub fn bool(&mut self, field: &str) -> Option<bool> {
        match self.take(field)? {
            Value::Bool(value) => Some(value),
            other => self.wrong_kind(field, &other, "a boolean"),
        }
    }

    /// A number in a range.
    pub fn number(&mut self, field: &str, range: RangeInclusive<f64>) -> Option<f32> {
        let found = self.take(field)?;
        let Some(value) = found.as_f64() else { return self.wrong_kind(field, &found, "a number") };
        if !range.contains(&value) {
            self.problem(field, outside(&found, value < *range.start(), range.start(), range.end()));
            return None;
        }
        // The range keeps it well inside f32.
        Some(value as f32)
    }

    /// A whole number in a range; `3.0` counts as one.
    pub fn integer(&mut self, field: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let found = self.take(field)?;
        let Some(value) = whole(&found) else { return self.wrong_kind(field, &found, "an integer") };
        match i64::try_from(value) {
            Ok(value) if range.contains(&value) => Some(value),
            _ => {
                self.problem(field, outside(&found, value < i128::from(*range.start()), range.start(), range.end()));
                None
            }
        }
    }

    /// A string.
    pub fn string(&mut self, field: &str) -> Option<String> {
        match self.take(field)? {
            Value::String(value) => Some(value),
            other => self.wrong_kind(field, &other, "a string"),
        }
    }

    /// An object.
    pub fn object(&mut self, field: &str) -> Option<Map<String, Value>> {
        match self.take(field)? {
            Value::Object(value) => Some(value),
            other => self.wrong_kind(field, &other, "an object"),
        }
    }

    /// An array.
    pub fn array(&mut self, field: &str) -> Option<Vec<Value>> {
        match self.take(field)? {
            Value::Array(value) => Some(value),
            other => self.wrong_kind(field, &other, "an array"),
        }
    }

    /// A string, or an array of strings.
    pub fn strings(&mut self, field: &str) -> Option<Vec<String>> {
        let items = match self.take(field)? {
            Value::String(one) => return Some(vec![one]),
            Value::Array(items) => items,
            other => return self.wrong_kind(field, &other, "a string or an array of strings"),
        };
        let mut strings = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            match item {
                Value::String(one) => strings.push(one),
                other => return self.wrong_kind(&format!("{field}[{index}]"), &other, "a string"),
            }
        }
        Some(strings)
    }

    /// An array of token ids. Whether the model has them is for the engine to say.
    pub fn token_ids(&mut self, field: &str) -> Option<Vec<TokenId>> {
        let items = self.array(field)?;
        self.token_ids_in(field, &items)
    }

    /// Token ids out of an array that was taken before.
    pub(crate) fn token_ids_in(&mut self, field: &str, items: &[Value]) -> Option<Vec<TokenId>> {
        let mut ids = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match item.as_u64().and_then(|id| TokenId::try_from(id).ok()) {
                Some(id) => ids.push(id),
                None => return self.wrong_kind(&format!("{field}[{index}]"), item, "a token id"),
            }
        }
        Some(ids)
    }

    /// Says that a field is of the wrong kind; `None`, for the caller to return.
    pub(crate) fn wrong_kind<T>(&mut self, field: &str, found: &Value, wanted: &str) -> Option<T> {
        let found = match found {
            Value::Array(_) | Value::Object(_) => kind(found).to_owned(),
            scalar => shown(scalar),
        };
        self.problem(field, format!("{found} is not {wanted}"));
        None
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { field, message }) in self.0.iter().take(PROBLEMS_SHOWN_MAX).enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{field}: {message}")?;
        }
        match self.0.len().saturating_sub(PROBLEMS_SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value as JSON, cut when long.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(VALUE_SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn whole(value: &Value) -> Option<i128> {
    let number = value.as_number()?;
    if let Some(value) = number.as_i128() {
        return Some(value);
    }
    let value = number.as_f64()?;
    // Beyond 2^63 the cast saturates, and the range check refuses it as it should.
    (value.fract() == 0.0).then_some(value as i128)
}

/// `-1 is below 0` or `3 is above 2`.
fn outside(found: &Value, below: bool, min: &impl fmt::Display, max: &impl fmt::Display) -> String {
    let found = shown(found);
    if below { format!("{found} is below {min}") } else { format!("{found} is above {max}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message for a body whose fields `read` reads.
    fn check(body: &str, read: impl FnOnce(&mut Fields), expected: &str) {
        let mut fields = Fields::parse(body.as_bytes()).expect("an object");
        read(&mut fields);
        let message = fields.finish().err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(message, expected);
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        check(
            r#"{"temperature": -1, "n": "many", "stop": [1], "seed": 1.5, "user": null, "stream": 0, "ids": [1, -2]}"#,
            |fields| {
                fields.number("temperature", 0.0..=2.0);
                fields.integer("n", 1..=128);
                fields.strings("stop");
                fields.integer("seed", i64::MIN..=i64::MAX);
                fields.string("user");
                fields.bool("stream");
                fields.token_ids("ids");
            },
            "temperature: -1 is below 0; n: \"many\" is not an integer; stop[0]: 1 is not a string; seed: 1.5 is not an \
             integer; stream: 0 is not a boolean; ids[1]: -2 is not a token id",
        );
    }

    #[test]
    fn whole_floats_are_integers_and_huge_ones_are_out_of_range() {
        check(r#"{"n": 3.0}"#, |f| assert_eq!(f.integer("n", 1..=5), Some(3)), "");
        check(r#"{"n": 1e30}"#, |f| assert_eq!(f.integer("n", 1..=5), None), "n: 1e+30 is above 5");
        check(r#"{"n": 99999999999999999999}"#, |f| assert_eq!(f.integer("n", 1..=5), None), "n: 1e+20 is above 5");
    }

    #[test]
    fn long_values_are_cut() {
        let long = "x".repeat(1000);
        check(
            &format!(r#"{{"n": "{long}"}}"#),
            |f| assert_eq!(f.integer("n", 1..=5), None),
            &format!("n: \"{}… is not an integer", "x".repeat(39)),
        );
    }

    #[test]
    fn a_body_must_be_an_object() {
        let message = |body: &[u8]| Fields::parse(body).unwrap_err().to_string();
        assert_eq!(message(b"[1]"), "the body is not a JSON object: expected an object, got an array");
        assert!(message(b"{\"a\": ").contains("EOF while parsing"), "{}", message(b"{\"a\": "));
        assert!(message(&b"[".repeat(100_000)).contains("recursion limit"));
    }
}
