//! `powertrain eval divergence --url … --baseline-url …`: of two servers, by what they tell of their most probable tokens.

use crate::{
    divergence::{Arguments, interval},
    eval::{Progress, file_name},
};
use powertrain_eval::{Endpoint, EndpointDivergence, FORMAT, Likelihood, divergence};
use serde_json::json;
use std::time::{Duration, Instant};

pub(crate) fn run(arguments: &Arguments, url: &str, baseline: &str) -> anyhow::Result<()> {
    let text = arguments.text.read()?;
    let server = &arguments.server;
    let timeout = Duration::from_secs(u64::from(server.timeout));
    let reference = Endpoint::new(baseline, server.api_key.clone(), arguments.baseline_served_model.clone(), timeout)?;
    let other = server.endpoint(url)?;
    let (context, top) = (arguments.text.context as usize, arguments.top as usize);
    let (started, mut progress) = (Instant::now(), Progress::new(0));
    let found = divergence(&reference, &other, &text, context, arguments.text.windows, top, &mut |done, of| {
        progress.windows = of;
        progress.say(done);
    })?;
    give(arguments, &text, &found, &reference, &other, started.elapsed().as_secs_f64())
}

fn give(
    arguments: &Arguments,
    source: &str,
    result: &EndpointDivergence,
    reference: &Endpoint,
    other: &Endpoint,
    seconds: f64,
) -> anyhow::Result<()> {
    let found = &result.found;
    let (agreement, agreement_interval) = found.top1_agreement();
    let (least, least_interval) = found.divergence_least();
    let (variation_low, variation_high) = found.total_variation();
    let perplexity = |likelihood: &Likelihood| likelihood.perplexity();
    let (of_reference, of_other) = (perplexity(&found.likelihood_reference), perplexity(&found.likelihood_other));
    let object = json!({
        "format": FORMAT,
        "measure": "divergence",
        "model": other.model,
        "url": other.url(),
        "reference": format!("{} at {}", reference.model, reference.url()),
        "asked": result.other.name(),
        "reference_asked": result.reference.name(),
        "top": arguments.top,
        "tokenizers_alike": result.tokenizers_alike,
        "file": arguments.text.file,
        "text_sha256": powertrain_eval::text_sha256(source),
        "context": arguments.text.context,
        "windows": found.windows(),
        "tokens_scored": found.positions(),
        "top1_agreement": agreement,
        "top1_agreement_interval": agreement_interval,
        "kl_divergence_least_mean": least,
        "kl_divergence_least_mean_interval": least_interval,
        "kl_divergence_least_p50": found.divergence_least_quantile(0.5),
        "kl_divergence_least_p99": found.divergence_least_quantile(0.99),
        "kl_divergence_least_max": found.divergence_least_quantile(1.0),
        "total_variation_mean_low": variation_low,
        "total_variation_mean_high": variation_high,
        "unseen_probability_mean": found.rest(),
        "unseen_probability_p99": found.rest_quantile(0.99),
        "perplexity": of_other,
        "perplexity_interval": found.likelihood_other.interval(),
        "perplexity_reference": of_reference,
        "seconds": seconds,
    });
    let mut text = format!(
        "{} at {} against {} at {}\n\
         {} tokens of {} windows of {} of {}, the {} most probable of each told by {} and {}\n\
         same most probable token  {:.2} %{}\n\
         KL divergence, nats       at least: mean {least:.6}{}, p50 {:.6}, p99 {:.6}, max {:.6}\n\
         total variation           mean between {variation_low:.6} and {variation_high:.6}\n\
         not told by the reference {:.3} % of its probability on average, {:.3} % at p99: what differs within it is not seen,\n\
         {:26}so the KL divergence has no upper bound\n",
        other.model,
        other.url(),
        reference.model,
        reference.url(),
        found.positions(),
        found.windows(),
        arguments.text.context,
        file_name(&arguments.text.file),
        arguments.top,
        result.reference.name(),
        result.other.name(),
        agreement * 100.0,
        interval(agreement_interval, 100.0, 2),
        interval(least_interval, 1.0, 6),
        found.divergence_least_quantile(0.5),
        found.divergence_least_quantile(0.99),
        found.divergence_least_quantile(1.0),
        found.rest() * 100.0,
        found.rest_quantile(0.99) * 100.0,
        "",
    );
    if let (Some(of_other), Some(of_reference)) = (of_other, of_reference) {
        text.push_str(&format!(
            "perplexity                {of_other:.4}, of the reference {of_reference:.4} ({:+.3} %)\n",
            (of_other / of_reference - 1.0) * 100.0
        ));
    }
    if result.tokenizers_alike.is_none() {
        text.push_str("the measured server does not tokenize: that both have one vocabulary was not checked\n");
    }
    arguments.text.result.give(&object, &text)
}
