//! Perplexity of a text: how surprised the model is by each token, through the same engine that serves.
//!
//! The computation is that of llama.cpp's `llama-perplexity`, so that numbers compare: the text's tokens are cut into
//! windows that do not overlap, the rest that fills none is left out; in each window of n tokens the tokens n/2 + 1 to
//! n - 1 (counted from 0) are scored, each given all before it in the window. Where the tokenizer adds a
//! beginning-of-sequence token, it takes the place of each window's first.

use anyhow::{Context, bail, ensure};
use powertrain_engine::{Event, EventStream, Handle, Request, StopConditions};
use powertrain_sampling::{SamplingParams, TokenId};
use std::{collections::VecDeque, sync::Arc};

/// Windows computed at a time; they share the engine's steps.
const WINDOWS_IN_FLIGHT: usize = 4;

/// What came out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Perplexity {
    /// Windows computed.
    pub(crate) windows: usize,
    /// Tokens scored.
    pub(crate) tokens: u64,
    /// Sum of their negative natural log-probabilities.
    pub(crate) negative_log_likelihood: f64,
}

impl Perplexity {
    /// `exp` of the mean negative log-likelihood.
    pub(crate) fn value(&self) -> f64 {
        (self.negative_log_likelihood / self.tokens as f64).exp()
    }
}

/// Computes it; `progress` gets windows done.
pub(crate) fn measure(
    engine: &Handle,
    tokens: &[TokenId],
    bos: Option<TokenId>,
    context: usize,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Perplexity> {
    let mut sum = Perplexity::default();
    let mut running: VecDeque<EventStream> = VecDeque::new();
    let mut windows = windows(tokens, bos, context).enumerate();
    loop {
        while running.len() < WINDOWS_IN_FLIGHT {
            let Some((number, window)) = windows.next() else { break };
            running.extend(engine.blocking_submit(vec![request(number, window)])?);
        }
        let Some(stream) = running.pop_front() else { break };
        let scored = scored(stream, context).with_context(|| format!("window {}", sum.windows))?;
        sum.windows += 1;
        sum.tokens += scored.len() as u64;
        sum.negative_log_likelihood -= scored.iter().map(|&logprob| f64::from(logprob)).sum::<f64>();
        progress(sum.windows);
    }
    ensure!(
        sum.tokens > 0,
        "the text has {} tokens, fewer than one window of {context}; give a longer one",
        tokens.len()
    );
    Ok(sum)
}

fn windows(tokens: &[TokenId], bos: Option<TokenId>, context: usize) -> impl Iterator<Item = Arc<[TokenId]>> {
    tokens.chunks_exact(context).map(move |window| {
        let mut window = window.to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        window.into()
    })
}

/// Scores its prompt and generates nothing.
fn request(number: usize, window: Arc<[TokenId]>) -> Request {
    Request {
        id: format!("window-{number}").into(),
        prompt: window,
        sampling: SamplingParams::default(),
        stop: StopConditions { max_tokens: 0, stop_token_ids: Vec::new(), eos_token_ids: Vec::new() },
        priority: 0,
        deadline: None,
        cache_salt: None,
        prompt_logprobs: Some(0),
    }
}

/// The log-probabilities of the tokens that count.
fn scored(mut stream: EventStream, context: usize) -> anyhow::Result<Vec<f32>> {
    // Of tokens 1 to context - 1.
    let mut logprobs = Vec::with_capacity(context);
    loop {
        match stream.blocking_next() {
            Some(Event::PromptLogprobs(more)) => logprobs.extend(more.iter().map(|token| token.logprob)),
            Some(Event::Scheduled { .. } | Event::Token(_)) => {}
            Some(Event::Finished(_)) => break,
            Some(Event::Failed(failure)) => bail!(failure),
            None => bail!("the engine stopped"),
        }
    }
    ensure!(logprobs.len() == context - 1, "{} of {} tokens were scored", logprobs.len(), context - 1);
    Ok(logprobs.split_off(context / 2))
}
