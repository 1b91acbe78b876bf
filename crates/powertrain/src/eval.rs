//! `powertrain eval`: perplexity, divergence, questions

use crate::{divergence, engine_flags::EngineFlags, perplexity, print, questions};
use anyhow::{Context, ensure};
use powertrain_eval::{Endpoint, FORMAT, Likelihood, Scoring, WindowsOf, text_sha256};
use powertrain_load::files;
use powertrain_text::{AddSpecial, ParseSpecial};
use serde_json::{Value, json};
use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Measure a model's quality.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    measure: Measure,
}

#[derive(clap::Subcommand)]
enum Measure {
    Perplexity(Box<PerplexityArguments>),
    Divergence(Box<divergence::Arguments>),
    Questions(questions::Arguments),
}

/// Perplexity of a text file, in windows that do not overlap, their second halves scored (as llama-perplexity): of a model in
/// our own engine, or with --url of any server that gives log-probabilities of prompts.
#[derive(clap::Args)]
struct PerplexityArguments {
    #[command(flatten)]
    text: TextFlags,
    /// Measure a server in place of our own engine, e.g. http://localhost:8000
    #[arg(long, help_heading = "Over HTTP")]
    url: Option<String>,
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

/// A text, how much of it, and where the result goes.
#[derive(clap::Args)]
pub(crate) struct TextFlags {
    /// The text, UTF-8
    #[arg(long, value_name = "PATH")]
    pub(crate) file: PathBuf,
    /// Tokens in a window
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub(crate) context: u32,
    /// Compute at most this many windows
    #[arg(long, value_name = "COUNT")]
    pub(crate) windows: Option<usize>,
    #[command(flatten)]
    pub(crate) result: ResultFlags,
}

/// Where a result goes.
#[derive(clap::Args)]
pub(crate) struct ResultFlags {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the JSON object here, for `report`
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// How a server is asked.
#[derive(clap::Args)]
pub(crate) struct ServerFlags {
    /// Name of the server's model; by default the first it lists
    #[arg(long, value_name = "NAME", help_heading = "Over HTTP")]
    pub(crate) served_model: Option<String>,
    /// Key sent to the server
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, help_heading = "Over HTTP")]
    pub(crate) api_key: Option<String>,
    /// Seconds after which a request is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Over HTTP")]
    pub(crate) timeout: u32,
}

impl ServerFlags {
    pub(crate) fn endpoint(&self, url: &str) -> anyhow::Result<Endpoint> {
        let timeout = Duration::from_secs(u64::from(self.timeout));
        Ok(Endpoint::new(url, self.api_key.clone(), self.served_model.clone(), timeout)?)
    }
}

impl TextFlags {
    /// What can be known to be wrong before anything is loaded.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(self.windows != Some(0), "--windows 0 leaves nothing to score; write 1 or more, or leave it out");
        self.result.check()
    }

    pub(crate) fn read(&self) -> anyhow::Result<String> {
        let context = self.context;
        ensure!(context >= 4, "--context {context} leaves nothing to score; set it to at least 4");
        let path = &self.file;
        std::fs::read_to_string(path).with_context(|| format!("{}: cannot read the text", path.display()))
    }
}

impl ResultFlags {
    /// Whether there is somewhere to write to: before anything is measured.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let Some(path) = &self.output else { return Ok(()) };
        files::check_writable(path).with_context(|| format!("cannot write --output {}", path.display()))
    }

    /// Prints the object or the text, and writes the object where it was asked for.
    pub(crate) fn give(&self, object: &Value, text: &str) -> anyhow::Result<()> {
        let printed = if self.json { print(&format!("{object}\n")) } else { print(text) };
        if let Some(path) = &self.output {
            let written = files::write_whole(path, (serde_json::to_string_pretty(object)? + "\n").as_bytes());
            written.with_context(|| format!("cannot write {}", path.display()))?;
        }
        printed
    }
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.measure {
        Measure::Perplexity(arguments) => {
            arguments.text.check()?;
            match &arguments.url {
                Some(url) => over_http(&arguments, url),
                None => in_our_engine(&arguments),
            }
        }
        Measure::Divergence(arguments) => divergence::run(&arguments),
        Measure::Questions(arguments) => questions::run(&arguments),
    }
}

fn in_our_engine(arguments: &PerplexityArguments) -> anyhow::Result<()> {
    let text = arguments.text.read()?;
    let context = arguments.text.context as usize;
    let loaded = arguments.engine.load(&arguments.engine.model.parse()?)?;
    let most = loaded.engine.handle().limits().max_model_len;
    ensure!(arguments.text.context <= most, "--context {context} is more than --max-model-len {most}; lower it");
    let tokenizer = &loaded.text.tokenizer;
    let mut tokens = tokenizer.encode(&text, AddSpecial::Yes, ParseSpecial::No)?;
    if let Some(windows) = arguments.text.windows {
        tokens.truncate(windows.saturating_mul(context));
    }
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let mut progress = Progress::new(tokens.len() / context);
    let started = Instant::now();
    let found = perplexity::measure(&loaded.engine.handle(), &tokens, bos, context, &mut |done| progress.say(done))?;
    let more = json!({
        "text_sha256": text_sha256(&text),
        "model": loaded.name,
        "weights": loaded.dtype,
        "seconds": started.elapsed().as_secs_f64(),
    });
    give(arguments, &found, more, &format!("windows of {context}"))
}

fn over_http(arguments: &PerplexityArguments, url: &str) -> anyhow::Result<()> {
    let text = arguments.text.read()?;
    let endpoint = arguments.server.endpoint(url)?;
    let context = arguments.text.context as usize;
    let mut progress = Progress::new(0);
    let started = Instant::now();
    let found = powertrain_eval::perplexity(&endpoint, &text, context, arguments.text.windows, &mut |done, of| {
        progress.windows = of;
        progress.say(done);
    })?;
    let scoring = match found.scoring {
        Scoring::PromptLogprobs => "prompt_logprobs",
        Scoring::Echo => "echo",
    };
    let more = json!({
        "text_sha256": text_sha256(&text),
        "model": endpoint.model,
        "url": endpoint.url(),
        "scoring": scoring,
        "windows_of": found.windows_of.name(),
        "seconds": started.elapsed().as_secs_f64(),
    });
    let windows = match found.windows_of {
        WindowsOf::Tokens => format!("windows of {context}"),
        WindowsOf::TokensOfPieces => format!("windows of {context}, the text tokenized in pieces"),
        WindowsOf::Characters => {
            format!(
                "windows of {} characters (the server does not tokenize: no number to compare with others)",
                4 * context
            )
        }
    };
    give(arguments, &found.likelihood, more, &windows)
}

fn give(arguments: &PerplexityArguments, found: &Likelihood, more: Value, windows: &str) -> anyhow::Result<()> {
    let perplexity = found.perplexity().context("no token was scored")?;
    let mut object = json!({
        "format": FORMAT,
        "measure": "perplexity",
        "file": arguments.text.file,
        "context": arguments.text.context,
        "windows": found.windows.len(),
        "tokens_scored": found.tokens(),
        "negative_log_likelihood": found.negative_log_likelihood(),
        "perplexity": perplexity,
        "perplexity_interval": found.interval(),
    });
    extend(&mut object, more);
    let interval = found.interval();
    let interval = interval.map_or(String::new(), |(low, high)| format!(" ({low:.4} to {high:.4} over such texts)"));
    let text = format!(
        "perplexity {perplexity:.4}{interval} over {} tokens of {} {windows} (negative log-likelihood {:.4}, {:.1} s)\n",
        found.tokens(),
        found.windows.len(),
        found.negative_log_likelihood(),
        object["seconds"].as_f64().unwrap_or(0.0),
    );
    arguments.text.result.give(&object, &text)
}

/// Adds the fields of another object.
pub(crate) fn extend(object: &mut Value, more: Value) {
    if let (Some(fields), Value::Object(more)) = (object.as_object_mut(), more) {
        fields.extend(more);
    }
}

/// The file's name without its folders, for texts.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A line on a terminal's standard error, once a second.
pub(crate) struct Progress {
    pub(crate) windows: usize,
    last: Option<Instant>,
}

impl Progress {
    pub(crate) fn new(windows: usize) -> Self {
        Self { windows, last: std::io::stderr().is_terminal().then(Instant::now) }
    }

    pub(crate) fn say(&mut self, done: usize) {
        if self.last.is_some_and(|last| last.elapsed() > Duration::from_secs(1)) {
            eprint!("\r{done} of {} ", self.windows);
            self.last = Some(Instant::now());
        }
    }
}
