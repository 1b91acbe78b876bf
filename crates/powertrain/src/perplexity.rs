//! Perplexity of a text: how surprised the model is by each token, through the same engine that serves.
//!
//! The computation is that of llama.cpp's `llama-perplexity`, so that numbers compare: the text's tokens are cut into
//! windows that do not overlap, the rest that fills none is left out; in each window of n tokens the tokens n/2 + 1 to
//! n - 1 (counted from 0) are scored, each given all before it in the window. Where the tokenizer adds a
//! beginning-of-sequence token, it takes the place of each window's first.

use anyhow::{Context, bail, ensure};
use powertrain_engine::{Event, EventStream, Handle, Request, StopConditions};
use powertrain_eval::Likelihood;
use powertrain_sampling::{SamplingParams, TokenId};
use powertrain_step::TokenLogprobs;
use std::{collections::VecDeque, sync::Arc};

/// Windows computed at a time; they share the engine's steps.
const WINDOWS_IN_FLIGHT: usize = 4;

/// Computes it; `progress` gets windows done.
pub(crate) fn measure(
    engine: &Handle,
    tokens: &[TokenId],
    bos: Option<TokenId>,
    context: usize,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Likelihood> {
    let mut likelihood = Likelihood::default();
    let mut running: VecDeque<EventStream> = VecDeque::new();
    let mut windows = windows(tokens, bos, context).enumerate();
    loop {
        while running.len() < WINDOWS_IN_FLIGHT {
            let Some((number, window)) = windows.next() else { break };
            running.extend(engine.blocking_submit(vec![request(number, window, 0)])?);
        }
        let Some(stream) = running.pop_front() else { break };
        let scored = scored(stream, context).with_context(|| format!("window {}", likelihood.windows.len()))?;
        likelihood.push(&scored.iter().map(|position| f64::from(position.logprob)).collect::<Vec<_>>());
        progress(likelihood.windows.len());
    }
    ensure!(
        likelihood.tokens() > 0,
        "the text has {} tokens, fewer than one window of {context}; give a longer one",
        tokens.len()
    );
    Ok(likelihood)
}

/// The text's windows.
pub(crate) fn windows(
    tokens: &[TokenId],
    bos: Option<TokenId>,
    context: usize,
) -> impl Iterator<Item = Arc<[TokenId]>> {
    tokens.chunks_exact(context).map(move |window| {
        let mut window = window.to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        window.into()
    })
}

/// Scores its prompt, with this many alternatives, and generates nothing.
pub(crate) fn request(number: usize, window: Arc<[TokenId]>, alternatives: u8) -> Request {
    Request {
        id: format!("window-{number}").into(),
        prompt: window,
        sampling: SamplingParams::default(),
        stop: StopConditions { max_tokens: 0, stop_token_ids: Vec::new(), eos_token_ids: Vec::new() },
        priority: 0,
        deadline: None,
        cache_salt: None,
        prompt_logprobs: Some(alternatives),
    }
}

/// The positions that count.
pub(crate) fn scored(mut stream: EventStream, context: usize) -> anyhow::Result<Vec<TokenLogprobs>> {
    let (mut seen, mut scored) = (0, Vec::with_capacity(context / 2));
    loop {
        match stream.blocking_next() {
            // Of tokens 1 to context - 1, in order; whole vocabularies of those that do not count are not kept.
            Some(Event::PromptLogprobs(more)) => {
                for position in more {
                    if seen >= context / 2 {
                        scored.push(position);
                    }
                    seen += 1;
                }
            }
            Some(Event::Scheduled { .. } | Event::Token(_)) => {}
            Some(Event::Finished(_)) => break,
            Some(Event::Failed(failure)) => bail!(failure),
            None => bail!("the engine stopped"),
        }
    }
    ensure!(seen == context - 1, "{seen} of {} tokens were scored", context - 1);
    Ok(scored)
}
