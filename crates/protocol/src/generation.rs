//! The fields that chat and plain completions share: sampling, stopping, streaming, scheduling.

use crate::{
    Fields, LOGIT_BIAS_MAX, LOGPROBS_MAX, N_MAX, STOP_STRING_BYTES_MAX, STOP_STRINGS_MAX, STOP_TOKEN_IDS_MAX, TokenId,
};
use serde_json::Value;

/// Bytes of a cache salt.
const CACHE_SALT_BYTES_MAX: usize = 256;

/// What a request says about how to generate. `None` leaves the choice to the server and its model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationFields {
    /// The model's name; absent means the one that is served.
    pub model: Option<String>,
    /// Tokens to generate at most.
    pub max_tokens: Option<u32>,
    /// Tokens to generate at least.
    pub min_tokens: u32,
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Keep the k best tokens; 0 (also sent as -1) keeps all.
    pub top_k: Option<u32>,
    /// Keep the best tokens up to this share of probability.
    pub top_p: Option<f32>,
    /// Drop tokens below this share of the best one's probability.
    pub min_p: Option<f32>,
    /// Against tokens that occurred.
    pub presence_penalty: Option<f32>,
    /// Against tokens, by how often they occurred.
    pub frequency_penalty: Option<f32>,
    /// Against tokens of prompt and output, as a factor.
    pub repetition_penalty: Option<f32>,
    /// Added to these tokens' logits.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Of the first choice of each prompt; choice i draws from `seed + i`. Absent: random, for each prompt anew.
    pub seed: Option<u64>,
    /// Completions per prompt, at least 1.
    pub n: u32,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// Tokens that end it.
    pub stop_token_ids: Vec<TokenId>,
    /// Whether the text keeps the stop string or stop token that ended it.
    pub include_stop_str_in_output: bool,
    /// Whether the model's own end-of-sequence tokens do not end it.
    pub ignore_eos: bool,
    /// Whether control tokens are left out of the text.
    pub skip_special_tokens: bool,
    /// Whether to answer as server-sent events.
    pub stream: bool,
    /// What else a stream carries.
    pub stream_options: StreamOptions,
    /// Lower goes first.
    pub priority: i32,
    /// Cached prefixes are shared only between equal salts.
    pub cache_salt: Option<String>,
    /// Report the prompt's log-probabilities with this many alternatives.
    pub prompt_logprobs: Option<u8>,
    /// Whether to report token ids beside the text.
    pub return_token_ids: bool,
    /// Whether log-probabilities name tokens as `token_id:N`.
    pub return_tokens_as_token_ids: bool,
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: bool,
    /// The usage so far in every chunk.
    pub continuous_usage_stats: bool,
}

impl GenerationFields {
    /// Reads them; `max_tokens` may be `max_tokens_min` at least.
    pub(crate) fn read(fields: &mut Fields, max_tokens_min: i64) -> Self {
        let limit = i64::from(u32::MAX);
        let old_name = fields.integer("max_tokens", max_tokens_min..=limit);
        let max_tokens = fields.integer("max_completion_tokens", max_tokens_min..=limit).or(old_name);
        let min_tokens = fields.integer("min_tokens", 0..=limit).unwrap_or(0);
        if let Some(max_tokens) = max_tokens.filter(|max_tokens| min_tokens > *max_tokens) {
            fields.problem("min_tokens", format!("{min_tokens} is above max_tokens {max_tokens}"));
        }
        let stream = fields.bool("stream").unwrap_or(false);
        let prompt_logprobs = fields.integer("prompt_logprobs", 0..=LOGPROBS_MAX);
        if stream && prompt_logprobs.is_some() {
            fields.problem("prompt_logprobs", "not available with stream: true");
        }
        Self {
            model: fields.string("model").filter(|model| !model.is_empty()),
            max_tokens: max_tokens.map(|value| value as u32),
            min_tokens: min_tokens as u32,
            temperature: fields.number("temperature", 0.0..=100.0),
            top_k: fields.integer("top_k", -1..=limit).map(|k| k.max(0) as u32),
            top_p: fields.number("top_p", 0.0..=1.0),
            min_p: fields.number("min_p", 0.0..=1.0),
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0),
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0),
            repetition_penalty: fields.number("repetition_penalty", 0.01..=100.0),
            logit_bias: read_logit_bias(fields),
            // A negative seed is a seed: its bits count.
            seed: fields.integer("seed", i64::MIN..=i64::MAX).map(|seed| seed as u64),
            n: fields.integer("n", 1..=N_MAX).unwrap_or(1) as u32,
            stop: read_stop(fields),
            stop_token_ids: read_stop_token_ids(fields),
            include_stop_str_in_output: fields.bool("include_stop_str_in_output").unwrap_or(false),
            ignore_eos: fields.bool("ignore_eos").unwrap_or(false),
            skip_special_tokens: fields.bool("skip_special_tokens").unwrap_or(true),
            stream,
            stream_options: read_stream_options(fields, stream),
            priority: fields.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX)).unwrap_or(0) as i32,
            cache_salt: read_cache_salt(fields),
            prompt_logprobs: prompt_logprobs.map(|k| k as u8),
            return_token_ids: fields.bool("return_token_ids").unwrap_or(false),
            return_tokens_as_token_ids: fields.bool("return_tokens_as_token_ids").unwrap_or(false),
        }
    }
}

fn read_stop(fields: &mut Fields) -> Vec<String> {
    let stop = fields.strings("stop").unwrap_or_default();
    if stop.len() > STOP_STRINGS_MAX {
        fields.problem("stop", format!("{} strings; at most {STOP_STRINGS_MAX}", stop.len()));
    }
    for (index, one) in stop.iter().enumerate() {
        if one.is_empty() {
            fields.problem(format!("stop[{index}]"), "is empty");
        } else if one.len() > STOP_STRING_BYTES_MAX {
            fields.problem(format!("stop[{index}]"), format!("{} bytes; at most {STOP_STRING_BYTES_MAX}", one.len()));
        }
    }
    stop
}

fn read_stop_token_ids(fields: &mut Fields) -> Vec<TokenId> {
    let ids = fields.token_ids("stop_token_ids").unwrap_or_default();
    if ids.len() > STOP_TOKEN_IDS_MAX {
        fields.problem("stop_token_ids", format!("{} ids; at most {STOP_TOKEN_IDS_MAX}", ids.len()));
    }
    ids
}

fn read_logit_bias(fields: &mut Fields) -> Vec<(TokenId, f32)> {
    let Some(map) = fields.object("logit_bias") else { return Vec::new() };
    if map.len() > LOGIT_BIAS_MAX {
        fields.problem("logit_bias", format!("{} entries; at most {LOGIT_BIAS_MAX}", map.len()));
        return Vec::new();
    }
    let mut bias = Vec::with_capacity(map.len());
    let mut inner = Fields::new(map);
    for key in inner.names() {
        let value = inner.number(&key, -100.0..=100.0);
        match (key.parse::<TokenId>(), value) {
            (Ok(id), Some(value)) => bias.push((id, value)),
            (Err(_), _) => inner.problem(key, "the key is not a token id"),
            (Ok(_), None) => {}
        }
    }
    fields.problems_of("logit_bias", inner.into_problems());
    bias
}

fn read_stream_options(fields: &mut Fields, stream: bool) -> StreamOptions {
    let Some(map) = fields.object("stream_options") else { return StreamOptions::default() };
    if !stream {
        fields.problem("stream_options", "only allowed with stream: true");
    }
    let mut inner = Fields::new(map);
    let options = StreamOptions {
        include_usage: inner.bool("include_usage").unwrap_or(false),
        continuous_usage_stats: inner.bool("continuous_usage_stats").unwrap_or(false),
    };
    fields.problems_of("stream_options", inner.into_problems());
    options
}

fn read_cache_salt(fields: &mut Fields) -> Option<String> {
    let salt = fields.string("cache_salt")?;
    if salt.is_empty() || salt.len() > CACHE_SALT_BYTES_MAX {
        fields.problem("cache_salt", format!("{} bytes; between 1 and {CACHE_SALT_BYTES_MAX}", salt.len()));
    }
    Some(salt)
}

/// Reads `logprobs` of plain completions, a count; booleans stand for 0 and none.
pub(crate) fn read_logprobs_count(fields: &mut Fields) -> Option<u8> {
    match fields.take("logprobs")? {
        Value::Bool(wanted) => wanted.then_some(0),
        count => {
            fields.put("logprobs", count);
            fields.integer("logprobs", 0..=LOGPROBS_MAX).map(|count| count as u8)
        }
    }
}
