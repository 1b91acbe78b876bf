//! From validated fields and token ids to running sequences: the part that chat and plain completions share.

use crate::{
    choice::{Choice, TextRules},
    record::{Record, random_u64},
    sequence::Sequence,
    state::State,
};
use futures_util::stream::{SelectAll, select_all};
use powertrain_engine::{Request, StopConditions, SubmitError};
use powertrain_protocol::{ApiError, GenerationFields, LOGPROBS_MAX};
use powertrain_step::{SamplingParams, TokenId};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The header in which a client limits its request's time.
pub(crate) const TIMEOUT_HEADER: &str = "x-request-timeout-ms";
/// The longest time it may ask for: a week.
const TIMEOUT_MS_MAX: u64 = 7 * 24 * 3600 * 1000;

/// All sequences of one response, in whatever order they progress.
pub(crate) type Sequences = SelectAll<Sequence>;

/// What to generate from.
pub(crate) struct Job<'a> {
    /// For the engine's log; the response's id.
    pub(crate) id: &'a str,
    /// The prompts' ids.
    pub(crate) prompts: &'a [Arc<[TokenId]>],
    /// What the request says.
    pub(crate) fields: &'a GenerationFields,
    /// Report log-probabilities.
    pub(crate) logprobs: Option<u8>,
    /// Report the prompts' too.
    pub(crate) prompt_logprobs: Option<u8>,
    /// Tokens to generate when the request does not say; less where model or cache end before.
    pub(crate) max_tokens_default: u32,
    /// When it must be done.
    pub(crate) deadline: Option<Instant>,
}

impl Job<'_> {
    /// Submits `n` sequences for each prompt; choice `prompt * n + i` is the i-th of a prompt.
    ///
    /// A request's own seed holds for each of its prompts: equal seed, equal output. Without one each prompt has its own.
    ///
    /// # Errors
    /// When one of them can not run, or not now; then none does.
    pub(crate) async fn start(&self, state: &State, record: &Record) -> Result<Sequences, ApiError> {
        let rules = self.rules(state);
        let n = self.fields.n;
        let mut requests = Vec::with_capacity(self.prompts.len() * n as usize);
        for (index, prompt) in self.prompts.iter().enumerate() {
            record.prompt(prompt.len() as u32);
            let max_tokens = state.engine.check_prompt(prompt).map_err(refusal);
            let max_tokens = max_tokens.and_then(|()| self.max_tokens(state, prompt.len() as u32));
            let max_tokens = max_tokens.map_err(|error| error.of_prompt(index, self.prompts.len()))?;
            let sampling = self.sampling(state, &rules)?;
            // Drawn from the system's generator when the request has no seed: no two requests are alike by chance, nor two
            // equal prompts of one.
            let seed = self.fields.seed.unwrap_or_else(random_u64);
            for i in 0..n {
                requests.push(Request {
                    id: format!("{}-{}", self.id, requests.len()).into(),
                    prompt: Arc::clone(prompt),
                    sampling: SamplingParams { seed: seed.wrapping_add(u64::from(i)), ..sampling.clone() },
                    stop: StopConditions {
                        max_tokens,
                        stop_token_ids: rules.stop_token_ids.clone(),
                        eos_token_ids: rules.eos_token_ids.clone(),
                    },
                    priority: self.fields.priority,
                    deadline: self.deadline,
                    cache_salt: self.fields.cache_salt.as_deref().map(Arc::from),
                    // The completions of one prompt would all report the same.
                    prompt_logprobs: self.prompt_logprobs.filter(|_| i == 0),
                });
            }
        }
        let choice = Choice::new(Arc::clone(&state.model.tokenizer), Arc::clone(&rules))?;
        let streams = state.engine.submit(requests).await.map_err(refusal)?;
        Ok(select_all(streams.into_iter().enumerate().map(|(index, events)| {
            let prompt_tokens = self.prompts[index / n as usize].len() as u32;
            let metrics = Arc::clone(&state.metrics);
            Sequence::new(index as u32, prompt_tokens, events, choice.clone(), metrics, record.clone())
        })))
    }

    fn rules(&self, state: &State) -> Arc<TextRules> {
        let fields = self.fields;
        Arc::new(TextRules {
            stop: fields.stop.clone(),
            stop_token_ids: fields.stop_token_ids.clone(),
            eos_token_ids: if fields.ignore_eos { Vec::new() } else { state.model.eos_token_ids.clone() },
            include_stop: fields.include_stop_str_in_output,
            skip_special: fields.skip_special_tokens,
            min_tokens: fields.min_tokens,
        })
    }

    /// As asked, if it fits; else the default, cut to what fits.
    fn max_tokens(&self, state: &State, prompt_tokens: u32) -> Result<u32, ApiError> {
        let limits = state.engine.limits();
        let room = limits.max_model_len.saturating_sub(prompt_tokens);
        match self.fields.max_tokens {
            Some(0) => Ok(0),
            _ if room == 0 => {
                let limit = limits.max_model_len;
                Err(refusal(SubmitError::PromptTooLong { prompt_tokens, max_model_len: limit }))
            }
            Some(asked) if asked > room => Err(ApiError::ContextLengthExceeded(format!(
                "max_tokens: {asked} with a prompt of {prompt_tokens} tokens is more than --max-model-len {}; ask for at \
                 most {room}",
                limits.max_model_len
            ))),
            Some(asked) => Ok(asked),
            None => {
                let cache = u64::from(state.engine.facts().kv_blocks) * u64::from(limits.block_size);
                let cache_room = cache.saturating_sub(u64::from(prompt_tokens)).max(1);
                let room = room.min(u32::try_from(cache_room).unwrap_or(u32::MAX));
                let wanted = self.max_tokens_default.max(self.fields.min_tokens);
                if self.fields.min_tokens > room {
                    let min_tokens = self.fields.min_tokens;
                    return Err(ApiError::field("min_tokens", format!("{min_tokens} is above the {room} that fit")));
                }
                Ok(wanted.min(room))
            }
        }
    }

    fn sampling(&self, state: &State, rules: &TextRules) -> Result<SamplingParams, ApiError> {
        let (fields, defaults, neutral) = (self.fields, &state.model.defaults, SamplingParams::default());
        let vocab_size = state.model.vocab_size;
        if let Some((id, _)) = fields.logit_bias.iter().find(|(id, _)| *id >= vocab_size) {
            return Err(ApiError::field(
                "logit_bias",
                format!("token id {id} is not below the vocabulary's {vocab_size}"),
            ));
        }
        let suppressed = if fields.min_tokens == 0 {
            Vec::new()
        } else {
            rules.eos_token_ids.iter().chain(&rules.stop_token_ids).copied().filter(|id| *id < vocab_size).collect()
        };
        Ok(SamplingParams {
            temperature: fields.temperature.or(defaults.temperature).unwrap_or(neutral.temperature),
            top_k: fields.top_k.or(defaults.top_k).unwrap_or(neutral.top_k),
            top_p: fields.top_p.or(defaults.top_p).unwrap_or(neutral.top_p),
            min_p: fields.min_p.or(defaults.min_p).unwrap_or(neutral.min_p),
            presence_penalty: fields.presence_penalty.unwrap_or(neutral.presence_penalty),
            frequency_penalty: fields.frequency_penalty.unwrap_or(neutral.frequency_penalty),
            repetition_penalty: fields
                .repetition_penalty
                .or(defaults.repetition_penalty)
                .unwrap_or(neutral.repetition_penalty),
            logit_bias: fields.logit_bias.clone(),
            seed: neutral.seed,
            logprobs: self.logprobs,
            min_tokens: fields.min_tokens,
            suppressed,
        })
    }
}

/// How long a request may take: its header, or the server's limit; the shorter, where both are.
pub(crate) fn deadline(
    header: Option<&axum::http::HeaderValue>,
    limit: Option<Duration>,
    arrived: Instant,
) -> Result<Option<Instant>, ApiError> {
    let asked = match header {
        None => None,
        Some(value) => {
            let milliseconds = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
            match milliseconds {
                Some(milliseconds @ 1..=TIMEOUT_MS_MAX) => Some(Duration::from_millis(milliseconds)),
                _ => {
                    return Err(ApiError::field(
                        "X-Request-Timeout-Ms",
                        format!("not a number from 1 to {TIMEOUT_MS_MAX}"),
                    ));
                }
            }
        }
    };
    Ok(asked.into_iter().chain(limit).min().map(|timeout| arrived + timeout))
}

/// Why the engine did not take a request, for the client.
fn refusal(error: SubmitError) -> ApiError {
    let message = error.to_string();
    match error {
        SubmitError::QueueFull { retry_after, .. } => {
            ApiError::QueueFull { message, retry_after_s: retry_after.as_secs().max(1) }
        }
        SubmitError::PromptTooLong { .. } | SubmitError::ExceedsKvCache { .. } => {
            ApiError::ContextLengthExceeded(message)
        }
        SubmitError::GroupTooLarge { .. } => ApiError::field("n", message),
        SubmitError::InvalidPrompt(_) => ApiError::field("prompt", message),
        SubmitError::ShuttingDown => ApiError::ShuttingDown,
        SubmitError::EngineStopped => ApiError::Unhealthy(message),
    }
}

// The engine's type for counts of alternatives holds what validation lets through.
const _: () = assert!(LOGPROBS_MAX <= u8::MAX as i64);
