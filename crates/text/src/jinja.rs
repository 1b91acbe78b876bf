//! The Jinja that chat templates are written for: Hugging Face's settings, filters and functions over minijinja.

use jiff::Zoned;
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, ValueKind},
};
use serde_json::Value as Json;
use std::{error::Error as _, panic::AssertUnwindSafe};

/// Template instructions in one rendering at most: well under a second. A chat of ten thousand messages takes a fifth.
pub(crate) const FUEL: u64 = 5_000_000;

/// Instructions of a rendering that any thread can do: what they can nest, some hundreds, fits its stack. Enough for a chat of some dozens of messages.
const SHORT_FUEL: u64 = 8_000;

/// Bytes of a template at most.
const SOURCE_MAX: usize = 256 << 10;

/// Stack of the threads that read templates, and render what takes more than [`SHORT_FUEL`]: address space, of which only what is used is memory. Both go as deep
/// as what a template nests, which its length and its fuel bound; twice what is enough for the worst of hostile.rs in a build without optimisation. To
/// begin and end such a thread takes some 100 us.
const STACK_BYTES: usize = 512 << 20;

/// A template that can be rendered.
#[derive(Debug)]
pub(crate) struct Compiled {
    short: Environment<'static>,
    long: Environment<'static>,
}

impl Compiled {
    /// Reads a template.
    ///
    /// # Errors
    /// It is too long, or what is wrong with it.
    pub(crate) fn new(source: &str, now: fn() -> Zoned) -> Result<Self, String> {
        if source.len() > SOURCE_MAX {
            return Err(format!(
                "it has {} bytes, and no more than {SOURCE_MAX} are read; give a shorter one (--chat-template)",
                source.len()
            ));
        }
        let read = deeply(|| {
            let short = environment(source, now, SHORT_FUEL)?;
            Ok(Self { short, long: environment(source, now, FUEL)? })
        })?;
        read.map_err(|error: Error| describe(&error))
    }

    /// Renders it with these variables.
    ///
    /// # Errors
    /// The outer one: the template engine could not go on. The inner one: what it says.
    pub(crate) fn render(&self, variables: &[(&str, Value)]) -> Result<Result<String, Error>, String> {
        let render = |environment: &Environment<'static>| {
            let variables = Value::from_pairs(variables.iter().cloned());
            environment.get_template(NAME).and_then(|template| template.render(variables))
        };
        // minijinja 3.0.5 panics on `[::-1]` of an empty list: that must cost one request, not its thread.
        let short =
            std::panic::catch_unwind(AssertUnwindSafe(|| render(&self.short))).map_err(|_| FAILED.to_owned())?;
        match short {
            Err(error) if is_out_of_fuel(&error) => deeply(|| render(&self.long)),
            done => Ok(done),
        }
    }
}

const NAME: &str = "chat_template";
const FAILED: &str = "the template engine failed on it";

/// Runs work that may go deep, or panic.
fn deeply<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    let no_thread = |error| {
        format!(
            "no thread with a stack of {STACK_BYTES} bytes could be had: {error}; allow more address space (ulimit -v) or threads (ulimit -u)"
        )
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("template".to_owned()).stack_size(STACK_BYTES);
        let spawned = thread.spawn_scoped(scope, work).map_err(no_thread)?;
        spawned.join().map_err(|_| FAILED.to_owned())
    })
}

/// Whether a rendering's instructions were over: in the template itself, or in what it includes.
pub(crate) fn is_out_of_fuel(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An error with its causes, in one line.
pub(crate) fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text.replace(&format!(" (in {NAME}:"), " (line ")
}

/// What `raise_exception` was called with, inside a [`minijinja::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Raised(pub(crate) String);

/// An environment with one template.
fn environment(source: &str, now: fn() -> Zoned, fuel: u64) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(fuel));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    // In Jinja strings and mappings have a length and items, so they are sequences.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "the template refused").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", move |format: String| -> Result<String, Error> {
        jiff::fmt::strtime::format(&format, &now())
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
    });
    environment.add_template_owned(NAME, without_generation_tags(source))?;
    Ok(environment)
}

/// `{% generation %}` marks what an assistant wrote, for training; here it is a block that is always shown.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let (before, tag) = (&rest[..start + 2], &rest[start + 2..start + len]);
        out.push_str(before);
        let name = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match name {
            "generation" => out.push_str(&tag.replace(name, "if true")),
            "endgeneration" => out.push_str(&tag.replace(name, "endif")),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = &rest[start + len + 2..];
    }
    out.push_str(rest);
    out
}

/// A JSON value as the template sees it, keys in their order.
pub(crate) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(bool) => Value::from(*bool),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (_, Some(number)) => Value::from(number),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(fields) => Value::from_pairs(fields.iter().map(|(key, field)| (key.as_str(), value(field)))),
    }
}

/// `tojson` as Hugging Face defines it: Python's `json.dumps` without escaping for HTML.
fn to_json(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let indent = match indent.or(options.get("indent")?).filter(|indent| !indent.is_none()) {
        Some(indent) => Some(usize::try_from(indent)?.min(64)),
        None => None,
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two strings")),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let writer = JsonWriter {
        out: String::new(),
        indent,
        item,
        key,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    writer.finish(value)
}

struct JsonWriter {
    out: String,
    indent: Option<usize>,
    item: String,
    key: String,
    ascii: bool,
    sort: bool,
}

/// Nesting at which `tojson` gives up: the parsers before it stop earlier.
const JSON_DEPTH_MAX: usize = 200;

impl JsonWriter {
    fn finish(mut self, value: &Value) -> Result<String, Error> {
        self.write(value, 0)?;
        Ok(self.out)
    }

    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > JSON_DEPTH_MAX {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson: nested deeper than {JSON_DEPTH_MAX}"),
            ));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.list('[', ']', items, depth, |writer, item| writer.write(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.list('{', '}', keys, depth, |writer, name| {
                    match name.as_str() {
                        Some(text) => writer.string(text),
                        None => {
                            writer.string(&Json::from(name.to_string()).as_str().unwrap_or_default().to_lowercase())
                        }
                    }
                    let separator = writer.key.clone();
                    writer.out.push_str(&separator);
                    writer.write(&value.get_item(&name)?, depth + 1)
                })?;
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("tojson: a value of type {kind} is no JSON"),
                ));
            }
        }
        Ok(())
    }

    fn list<T>(
        &mut self,
        open: char,
        close: char,
        items: impl IntoIterator<Item = T>,
        depth: usize,
        mut write: impl FnMut(&mut Self, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let mut empty = true;
        for item in items {
            if !empty {
                let separator = self.item.clone();
                self.out.push_str(&separator);
            }
            empty = false;
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !empty {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    /// As Python writes it: floats by the shortest digits, with an exponent from 1e16 on and below 1e-4.
    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            self.out.push_str(&value.to_string());
            return Ok(());
        }
        let number = f64::try_from(value.clone())?;
        let magnitude = number.abs();
        let text = if number.is_nan() {
            "NaN".to_owned()
        } else if number.is_infinite() {
            if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
        } else if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
            let text = format!("{number:e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |exponent| ("-", exponent));
            format!("{digits}e{sign}{exponent:0>2}")
        } else {
            format!("{number:?}")
        };
        self.out.push_str(&text);
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                _ if character < ' ' || (self.ascii && !character.is_ascii()) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }
}
