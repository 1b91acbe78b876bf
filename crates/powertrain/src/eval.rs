//! `powertrain eval perplexity`

use crate::{
    engine_flags::EngineFlags,
    load::Loaded,
    perplexity::{self, Perplexity},
    print,
};
use anyhow::{Context, ensure};
use powertrain_text::{AddSpecial, ParseSpecial};
use std::{
    io::IsTerminal,
    path::PathBuf,
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
    Perplexity(PerplexityArguments),
}

/// Perplexity of a text file, in windows that do not overlap, their second halves scored (as llama-perplexity).
#[derive(clap::Args)]
struct PerplexityArguments {
    /// The text, UTF-8
    #[arg(long, value_name = "PATH")]
    file: PathBuf,
    /// Tokens in a window
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    context: u32,
    /// Compute at most this many windows
    #[arg(long, value_name = "COUNT")]
    windows: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineFlags,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Measure::Perplexity(arguments) = arguments.measure;
    let context = arguments.context as usize;
    ensure!(context >= 4, "--context {context} leaves nothing to score; set it to at least 4");
    let path = &arguments.file;
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read the text", path.display()))?;

    let loaded = arguments.engine.load(&arguments.engine.model.parse()?)?;
    let most = loaded.engine.handle().limits().max_model_len;
    ensure!(arguments.context <= most, "--context {context} is more than --max-model-len {most}; lower it");
    let tokenizer = &loaded.text.tokenizer;
    let mut tokens = tokenizer.encode(&text, AddSpecial::Yes, ParseSpecial::No)?;
    if let Some(windows) = arguments.windows {
        tokens.truncate(windows.saturating_mul(context));
    }
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let mut progress = Progress::new(tokens.len() / context);
    let started = Instant::now();
    let result = perplexity::measure(&loaded.engine.handle(), &tokens, bos, context, &mut |done| progress.say(done))?;
    print(&report(&arguments, &loaded, result, started.elapsed()))
}

fn report(arguments: &PerplexityArguments, loaded: &Loaded, result: Perplexity, took: Duration) -> String {
    let Perplexity { windows, tokens, negative_log_likelihood } = result;
    let seconds = took.as_secs_f64();
    if arguments.json {
        let object = serde_json::json!({
            "model": loaded.name,
            "file": arguments.file,
            "context": arguments.context,
            "windows": windows,
            "tokens_scored": tokens,
            "negative_log_likelihood": negative_log_likelihood,
            "perplexity": result.value(),
            "seconds": seconds,
        });
        return format!("{object}\n");
    }
    format!(
        "perplexity {:.4} over {tokens} tokens of {windows} windows of {} (negative log-likelihood {:.4}, {seconds:.1} s)\n",
        result.value(),
        arguments.context,
        negative_log_likelihood,
    )
}

/// A line on a terminal's standard error, once a second.
struct Progress {
    windows: usize,
    last: Option<Instant>,
}

impl Progress {
    fn new(windows: usize) -> Self {
        Self { windows, last: std::io::stderr().is_terminal().then(Instant::now) }
    }

    fn say(&mut self, done: usize) {
        if self.last.is_some_and(|last| last.elapsed() > Duration::from_secs(1)) {
            eprint!("\rwindow {done} of {} ", self.windows);
            self.last = Some(Instant::now());
        }
    }
}
