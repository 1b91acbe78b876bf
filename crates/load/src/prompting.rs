//! From a plan of prompts to prompts: what is one token for the server is asked first.

use crate::{
    exchange::Target,
    openai::{Api, Part, Prompt, RequestOptions},
    plan::{BenchError, Event, Plan, PromptPlan},
    session::Session,
    work::{Calibration, PromptFile, Prompts, Synthetic, calibrate},
};
use serde_json::{Value, json};
use std::ops::Range;

/// Finds out how the server counts, and makes the prompts' source.
pub(crate) fn prompts(
    plan: &Plan,
    session: &Session,
    target: &Target,
    tell: &mut impl FnMut(Event<'_>),
) -> Result<Prompts, BenchError> {
    if plan.conversations.is_some() && plan.api != Api::Chat {
        return Err(BenchError::WrongRoute("conversations of several turns are for --endpoint chat only"));
    }
    match &plan.prompts {
        PromptPlan::File(path) => {
            let file = PromptFile::open(path)?;
            if file.needs_chat() && plan.api != Api::Chat {
                return Err(BenchError::WrongRoute("the file holds messages, which only --endpoint chat takes"));
            }
            Ok(Prompts::File(file))
        }
        PromptPlan::Synthetic { input, token_ids, prefix_tokens, prefix_groups } => {
            let calibration = calibration(plan, token_ids.as_ref(), session, target, tell)?;
            let (prefix_tokens, prefix_groups) = (*prefix_tokens, *prefix_groups);
            Ok(Prompts::Synthetic(Synthetic { input: input.clone(), calibration, prefix_tokens, prefix_groups }))
        }
        PromptPlan::Trace { trace, token_ids, .. } => {
            let calibration = calibration(plan, token_ids.as_ref(), session, target, tell)?;
            Ok(Prompts::Trace { trace: trace.clone(), calibration })
        }
    }
}

fn calibration(
    plan: &Plan,
    token_ids: Option<&Range<u32>>,
    session: &Session,
    target: &Target,
    tell: &mut impl FnMut(Event<'_>),
) -> Result<Calibration, BenchError> {
    let calibration = match token_ids {
        Some(_) if plan.api != Api::Completions => {
            return Err(BenchError::WrongRoute("token ids are a prompt for --endpoint completions only"));
        }
        Some(range) => Calibration::Ids(range.clone()),
        None => {
            tell(Event::Note("counting tokens with the server's tokenizer".to_owned()));
            calibrated(session, target)
        }
    };
    match &calibration {
        Calibration::Words { verified: false, .. } => tell(Event::Note(
            "the server does not count tokens: prompt lengths are a guess of one token per word".to_owned(),
        )),
        Calibration::Words { words, overhead, .. } => {
            tell(Event::Note(format!("{} one-token words, {overhead} tokens around them", words.len())));
        }
        Calibration::Ids(_) => {}
    }
    Ok(calibration)
}

/// Calibrates by `/tokenize` where it agrees with what a request is charged, else by the charges of one-token requests.
fn calibrated(session: &Session, target: &Target) -> Calibration {
    let charged = |text: &str| charged_tokens(session, target, text);
    let probe = crate::work::FIRST_WORD;
    match (tokenized(session, target, probe), charged(probe)) {
        (Some(counted), Some(charged)) if counted == charged => calibrate(|text| tokenized(session, target, text)),
        // A server that reports no usage can still count.
        (Some(_), None) => calibrate(|text| tokenized(session, target, text)),
        _ => calibrate(charged),
    }
}

/// Tokens of a prompt by the server's `/tokenize` (vLLM's), template included.
fn tokenized(session: &Session, target: &Target, text: &str) -> Option<u32> {
    let model = &target.options.model;
    let body = match target.options.api {
        Api::Chat => {
            json!({"model": model, "messages": [{"role": "user", "content": text}], "add_generation_prompt": true})
        }
        Api::Completions => json!({"model": model, "prompt": text}),
    };
    let url = target.url.root().join("/tokenize");
    let body = session.body(target, "POST", &url, Some(body.to_string().as_bytes()))?;
    let reply: Value = serde_json::from_slice(&body).ok()?;
    u32::try_from(reply.get("count")?.as_u64()?).ok()
}

/// Tokens of a prompt by the usage of a request for one token.
fn charged_tokens(session: &Session, target: &Target, text: &str) -> Option<u32> {
    let options = RequestOptions { stream: false, ..target.options.clone() };
    let body = options.body(&Prompt::Text(text.to_owned()), 1);
    let reply = session.body(target, "POST", &target.url, Some(&body))?;
    Part::parse(&reply).ok()?.usage.map(|usage| usage.prompt_tokens)
}
