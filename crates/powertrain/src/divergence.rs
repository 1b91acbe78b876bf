//! `powertrain eval divergence`

use crate::{
    endpoint_divergence,
    engine_flags::{Device, Dtype, EngineFlags},
    eval::{Progress, ServerFlags, TextFlags, file_name},
    load::Loaded,
    perplexity::{request, scored, windows},
};
use anyhow::{Context, ensure};
use powertrain_cpu::{Activations, KvDtype};
use powertrain_engine::Handle;
use powertrain_eval::{Divergence, FORMAT, Position};
use powertrain_sampling::{TokenId, WHOLE_VOCABULARY};
use powertrain_text::{AddSpecial, ParseSpecial};
use serde_json::json;
use std::{sync::Arc, time::Instant};

/// Most bytes that one window's predictions of both models may take.
const WINDOW_BYTES_MAX: u64 = 4 << 30;

/// How far a model's predictions are from another's on a text: top-1 agreement, KL divergence, both perplexities.
///
/// In our own engine, over the whole vocabulary, for another format or quantisation of the same model, or other arithmetic; the
/// baseline computes in f32 (activations and KV cache), on the CPU, unless told otherwise. With --url and --baseline-url, of any two servers,
/// by the most probable tokens that they tell: then bounds. The two must have the same vocabulary.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The model that is right by definition [default: the measured one, in f32 arithmetic]
    #[arg(long, value_name = "MODEL")]
    baseline: Option<String>,
    /// Give the baseline the arithmetic of the measured model, too
    #[arg(long)]
    baseline_as_served: bool,
    /// Measure this server in place of our own engine, e.g. http://localhost:8001
    #[arg(long, requires = "baseline_url", conflicts_with_all = ["baseline", "baseline_as_served"], help_heading = "Over HTTP")]
    pub(crate) url: Option<String>,
    /// The server that is right by definition
    #[arg(long, requires = "url", value_name = "URL", help_heading = "Over HTTP")]
    pub(crate) baseline_url: Option<String>,
    /// Name of the baseline's model; by default the first it lists
    #[arg(long, value_name = "NAME", help_heading = "Over HTTP")]
    pub(crate) baseline_served_model: Option<String>,
    /// Most probable tokens to ask for at each position; servers allow 5 to 20
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Over HTTP")]
    pub(crate) top: u32,
    #[command(flatten)]
    pub(crate) server: ServerFlags,
    #[command(flatten)]
    pub(crate) text: TextFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    arguments.text.check()?;
    if let (Some(url), Some(baseline)) = (&arguments.url, &arguments.baseline_url) {
        return endpoint_divergence::run(arguments, url, baseline);
    }
    let text = arguments.text.read()?;
    let context = arguments.text.context as usize;
    let baseline = arguments.baseline.as_ref().unwrap_or(&arguments.engine.model);
    ensure!(
        baseline != &arguments.engine.model || !arguments.baseline_as_served,
        "both are {baseline} with the same arithmetic; give another --baseline, or leave out --baseline-as-served"
    );
    let mut flags = arguments.engine.clone();
    flags.model.clone_from(baseline);
    if !arguments.baseline_as_served {
        (flags.cpu_activations, flags.kv_cache_dtype) = (Activations::F32, KvDtype::F32);
        // The GPU engine computes in 16 bits alone.
        if flags.device != Device::Reference {
            (flags.device, flags.dtype) = (Device::Cpu, Dtype::Auto);
        }
    }
    let reference = flags.load(&flags.model.parse()?)?;
    let other = arguments.engine.load(&arguments.engine.model.parse()?)?;
    let (tokens, bos) = tokens(&reference, &text)?;
    ensure!(
        tokens == self::tokens(&other, &text)?.0 && reference.vocab_size == other.vocab_size,
        "{} and {} have different vocabularies ({} and {} tokens), so that their predictions cannot be compared token by token",
        reference.name,
        other.name,
        reference.vocab_size,
        other.vocab_size
    );
    // A token's id and logarithm at each scored position, of two models.
    let bytes = 16 * u64::from(reference.vocab_size) * (u64::from(arguments.text.context) / 2);
    ensure!(
        bytes <= WINDOW_BYTES_MAX,
        "--context {context} takes {} GiB for the predictions of a window; at most 4 GiB: lower it",
        bytes >> 30
    );
    for loaded in [&reference, &other] {
        let most = loaded.engine.handle().limits().max_model_len;
        ensure!(arguments.text.context <= most, "--context {context} is more than --max-model-len {most}; lower it");
    }
    let count = (tokens.len() / context).min(arguments.text.windows.unwrap_or(usize::MAX));
    ensure!(count > 0, "the text has {} tokens, fewer than one window of {context}; give a longer one", tokens.len());
    let (started, mut progress) = (Instant::now(), Progress::new(count));
    let mut divergence = Divergence::default();
    for (number, window) in windows(&tokens, bos, context).take(count).enumerate() {
        add_window(&mut divergence, &reference.engine.handle(), &other.engine.handle(), number, window, context)
            .with_context(|| format!("window {number}"))?;
        progress.say(number + 1);
    }
    give(arguments, &text, &divergence, &reference, &other, started.elapsed().as_secs_f64())
}

fn tokens(loaded: &Loaded, text: &str) -> anyhow::Result<(Vec<TokenId>, Option<TokenId>)> {
    let tokenizer = &loaded.text.tokenizer;
    let tokens = tokenizer.encode(text, AddSpecial::Yes, ParseSpecial::No)?;
    Ok((tokens, tokenizer.bos().filter(|_| tokenizer.adds_bos())))
}

fn add_window(
    divergence: &mut Divergence,
    reference: &Handle,
    other: &Handle,
    number: usize,
    window: Arc<[TokenId]>,
    context: usize,
) -> anyhow::Result<()> {
    let predictions = |engine: &Handle| -> anyhow::Result<Vec<(TokenId, Vec<f32>)>> {
        let mut streams = engine.blocking_submit(vec![request(number, window.clone(), WHOLE_VOCABULARY)])?;
        let positions = scored(streams.pop().context("no stream")?, context)?;
        // All tokens in the order of their ids: the ids themselves need not be kept.
        let logprobs = |top: Vec<(TokenId, f32)>| top.into_iter().map(|(_, logprob)| logprob).collect();
        Ok(positions.into_iter().map(|position| (position.token, logprobs(position.top))).collect())
    };
    let (reference, other) = (predictions(reference)?, predictions(other)?);
    ensure!(reference.len() == other.len(), "{} and {} positions were scored", reference.len(), other.len());
    let positions = reference.iter().zip(&other).map(|((token, reference), (_, other))| Position {
        reference,
        other,
        token: *token,
    });
    divergence.push_window(positions);
    Ok(())
}

fn give(
    arguments: &Arguments,
    text: &str,
    found: &Divergence,
    reference: &Loaded,
    other: &Loaded,
    seconds: f64,
) -> anyhow::Result<()> {
    let perplexity = |likelihood: &powertrain_eval::Likelihood| likelihood.perplexity().context("no token was scored");
    let (of_reference, of_other) = (perplexity(&found.likelihood_reference)?, perplexity(&found.likelihood_other)?);
    let arithmetic = if arguments.baseline_as_served { "as served" } else { "f32" };
    let name = format!("{} ({}), {arithmetic}", reference.name, reference.dtype);
    let quantile = |q| found.quantile(q).unwrap_or(f64::NAN);
    let object = json!({
        "format": FORMAT,
        "measure": "divergence",
        "model": other.name,
        "weights": other.dtype,
        "reference": name,
        "file": arguments.text.file,
        "text_sha256": powertrain_eval::text_sha256(text),
        "context": arguments.text.context,
        "windows": found.windows(),
        "tokens_scored": found.positions(),
        "top1_agreement": found.top1_agreement(),
        "top1_agreement_interval": found.top1_agreement_interval(),
        "kl_divergence_mean": found.mean(),
        "kl_divergence_mean_interval": found.mean_interval(),
        "kl_divergence_p50": quantile(0.5),
        "kl_divergence_p99": quantile(0.99),
        "kl_divergence_max": quantile(1.0),
        "kl_divergence_infinite": found.infinite,
        "perplexity": of_other,
        "perplexity_interval": found.likelihood_other.interval(),
        "perplexity_reference": of_reference,
        "seconds": seconds,
    });
    let infinite = match found.infinite {
        0 => String::new(),
        count => format!("; at {count} positions it is infinite, they are left out"),
    };
    let text = format!(
        "{} against {name}, {} tokens of {} windows of {} of {}\n\
         same most probable token  {:.2} %{}\n\
         KL divergence, nats       mean {:.6}{}, p50 {:.6}, p99 {:.6}, max {:.6}{infinite}\n\
         perplexity                {of_other:.4}, of the reference {of_reference:.4} ({:+.3} %)\n",
        other.name,
        found.positions(),
        found.windows(),
        arguments.text.context,
        file_name(&arguments.text.file),
        found.top1_agreement() * 100.0,
        interval(found.top1_agreement_interval(), 100.0, 2),
        found.mean(),
        interval(found.mean_interval(), 1.0, 6),
        quantile(0.5),
        quantile(0.99),
        quantile(1.0),
        (of_other / of_reference - 1.0) * 100.0,
    );
    arguments.text.result.give(&object, &text)
}

/// An interval behind its number.
pub(crate) fn interval(interval: Option<(f64, f64)>, factor: f64, digits: usize) -> String {
    interval.map_or(String::new(), |(low, high)| format!(" ({:.digits$} to {:.digits$})", low * factor, high * factor))
}
