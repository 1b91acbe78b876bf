//! Perplexity of any server that scores prompts.

use crate::{
    Endpoint, EndpointError, Likelihood,
    windows::{Prompt, WindowsOf, windows},
};
use serde_json::{Map, Value, json};

/// How a server was asked for the log-probabilities of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// `prompt_logprobs`, as vLLM has it.
    PromptLogprobs,
    /// `echo` with `logprobs`, as the older OpenAI API has it.
    Echo,
}

/// Perplexity over HTTP.
#[derive(Clone, Debug)]
pub struct EndpointPerplexity {
    /// The windows.
    pub likelihood: Likelihood,
    /// How the server was asked.
    pub scoring: Scoring,
    /// What windows are made of.
    pub windows_of: WindowsOf,
}

impl Endpoint {
    /// The log-probabilities of a prompt's tokens from the second on.
    fn scores(&self, prompt: &Prompt, scoring: Scoring) -> Result<Vec<f64>, EndpointError> {
        let route = "/v1/completions";
        let mut body = Map::new();
        body.insert("model".to_owned(), self.model.clone().into());
        body.insert(
            "prompt".to_owned(),
            match prompt {
                Prompt::Tokens(tokens) => json!(tokens),
                Prompt::Text(text) => json!(text),
            },
        );
        body.insert("max_tokens".to_owned(), 1.into());
        body.insert("temperature".to_owned(), 0.into());
        match scoring {
            Scoring::PromptLogprobs => {
                body.insert("prompt_logprobs".to_owned(), 0.into());
            }
            Scoring::Echo => {
                body.insert("echo".to_owned(), true.into());
                body.insert("logprobs".to_owned(), 1.into());
            }
        }
        let answer = self.ask(route, Some(&Value::Object(body)))?;
        let malformed = |reason| EndpointError::Malformed { url: self.at(route), reason };
        match scoring {
            Scoring::PromptLogprobs => {
                let list = answer["choices"][0]["prompt_logprobs"].as_array();
                let list = list.ok_or_else(|| malformed("no choices[0].prompt_logprobs"))?;
                let scores = list.iter().enumerate().skip(1).map(|(place, candidates)| {
                    let candidates = candidates.as_object()?;
                    // Among several, the prompt's own: by its id, else the first, as servers order them.
                    let own = match prompt {
                        Prompt::Tokens(tokens) => candidates.get(&tokens.get(place)?.to_string()),
                        Prompt::Text(_) => candidates.values().next(),
                    };
                    own?["logprob"].as_f64()
                });
                scores.collect::<Option<Vec<f64>>>().ok_or_else(|| malformed("a prompt token without its logprob"))
            }
            Scoring::Echo => {
                let list = answer["choices"][0]["logprobs"]["token_logprobs"].as_array();
                let list = list.ok_or_else(|| malformed("no choices[0].logprobs.token_logprobs"))?;
                // The generated token stands at the end.
                let length = match prompt {
                    Prompt::Tokens(tokens) => Some(tokens.len()),
                    Prompt::Text(_) => answer["usage"]["prompt_tokens"].as_u64().map(|count| count as usize),
                };
                let length = length.filter(|&length| length <= list.len());
                let length = length.ok_or_else(|| malformed("fewer token_logprobs than the prompt has tokens"))?;
                let scores = list[..length].iter().skip(1).map(Value::as_f64);
                scores.collect::<Option<Vec<f64>>>().ok_or_else(|| malformed("a prompt token without its logprob"))
            }
        }
    }
}

/// Perplexity of a text: windows of `context` tokens that do not overlap, at most so many, the second half of each scored, as
/// `eval perplexity` does with our own engine. A server that cannot tokenize gets windows of as many characters as such
/// tokens usually have.
///
/// # Errors
/// When the server does not score prompts, or the text is too short.
pub fn perplexity(
    endpoint: &Endpoint,
    text: &str,
    context: usize,
    windows_max: Option<usize>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<EndpointPerplexity, EndpointError> {
    let (windows, windows_of) = windows(endpoint, text, context, windows_max)?;
    let (scoring, mut scores) = first_scores(endpoint, &windows[0])?;
    let mut likelihood = Likelihood::default();
    for (place, window) in windows.iter().enumerate() {
        if place > 0 {
            scores = endpoint.scores(window, scoring)?;
        }
        // Of tokens 1 to n - 1, those from n / 2 + 1 on.
        let half = scores.len().div_ceil(2);
        likelihood.push(&scores[half.min(scores.len())..]);
        progress(place + 1, windows.len());
    }
    Ok(EndpointPerplexity { likelihood, scoring, windows_of })
}

/// The way of asking that works, and what it gave.
fn first_scores(endpoint: &Endpoint, window: &Prompt) -> Result<(Scoring, Vec<f64>), EndpointError> {
    let mut reasons = Vec::new();
    for scoring in [Scoring::PromptLogprobs, Scoring::Echo] {
        match endpoint.scores(window, scoring) {
            Ok(scores) if !scores.is_empty() => return Ok((scoring, scores)),
            Ok(_) => reasons.push("no scores".to_owned()),
            Err(error @ EndpointError::Unreachable { .. }) => return Err(error),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(EndpointError::NoPromptLogprobs { url: endpoint.url().to_owned(), reason: reasons.join("; ") })
}
