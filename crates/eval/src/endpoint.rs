//! Quality of any OpenAI-compatible server: how it scores a text, what it answers.

use crate::Likelihood;
use serde_json::{Map, Value, json};
use std::time::Duration;
use ureq::Agent;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// How much of an error is shown.
const MESSAGE_CHARACTERS_MAX: usize = 300;
/// Longest text that is sent to be tokenized where the whole is refused: servers limit it by their longest sequence.
const PIECE_BYTES_MAX: usize = 16 << 10;
/// Where a server cannot tokenize, a window is so many characters per token asked for.
const CHARACTERS_PER_TOKEN: usize = 4;

/// A server and a model of it.
pub struct Endpoint {
    agent: Agent,
    root: String,
    key: Option<String>,
    /// The model's name in requests.
    pub model: String,
}

/// How a server was asked for the log-probabilities of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// `prompt_logprobs`, as vLLM has it.
    PromptLogprobs,
    /// `echo` with `logprobs`, as the older OpenAI API has it.
    Echo,
}

/// Why a server's quality cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// No answer.
    #[error("{url}: {reason}")]
    Unreachable {
        /// The route.
        url: String,
        /// Why.
        reason: String,
    },
    /// A refusal.
    #[error("{url} answered {status}: {message}")]
    Refused {
        /// The route.
        url: String,
        /// Its status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// An answer of another shape.
    #[error("{url}: {reason}")]
    Malformed {
        /// The route.
        url: String,
        /// What was expected.
        reason: &'static str,
    },
    /// No model.
    #[error("{0} lists no models at /v1/models; name one with --served-model")]
    NoModel(String),
    /// It cannot score.
    #[error(
        "{url} gives no log-probabilities of prompts, neither by `prompt_logprobs` (vLLM, SGLang's OpenAI API, powertrain) nor by \
             `echo` with `logprobs`: its perplexity cannot be measured over HTTP ({reason})"
    )]
    NoPromptLogprobs {
        /// The server.
        url: String,
        /// What it said.
        reason: String,
    },
    /// Too short a text.
    #[error("the text fills no window of {0} tokens; give a longer one")]
    TooShort(usize),
}

/// A window as the server gets it.
enum Prompt {
    Tokens(Vec<u32>),
    Text(String),
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

/// What windows are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowsOf {
    /// The text's tokens, as in our own engine: numbers compare.
    Tokens,
    /// Tokens of pieces of the text, cut at line ends, since the server does not tokenize so long a text at once: some tokens
    /// at the cuts may differ from the text's own.
    TokensOfPieces,
    /// Characters: numbers compare with no others.
    Characters,
}

impl WindowsOf {
    /// As in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::TokensOfPieces => "tokens of pieces",
            Self::Characters => "characters",
        }
    }
}

/// A text as the server tokenizes it.
struct Tokenized {
    tokens: Vec<u32>,
    /// The token that the model wants first, if it does.
    bos: Option<u32>,
    windows_of: WindowsOf,
}

impl Endpoint {
    /// Finds the model's name where none is given.
    ///
    /// # Errors
    /// When the server does not answer or lists no model.
    pub fn new(
        url: &str,
        key: Option<String>,
        model: Option<String>,
        timeout: Duration,
    ) -> Result<Self, EndpointError> {
        let config = Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false).build();
        let root = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let mut endpoint = Self { agent: config.into(), root, key, model: String::new() };
        endpoint.model = match model {
            Some(model) => model,
            None => {
                let models = endpoint.ask("/v1/models", None)?;
                let first = models["data"][0]["id"].as_str();
                first.ok_or_else(|| EndpointError::NoModel(endpoint.root.clone()))?.to_owned()
            }
        };
        Ok(endpoint)
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.root
    }

    /// The answer to a question as a chat, at temperature 0.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub fn chat(&self, question: &str, tokens_max: u32) -> Result<String, EndpointError> {
        let route = "/v1/chat/completions";
        let answer = self.ask(
            route,
            Some(&json!({
                "model": self.model,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": tokens_max,
                "temperature": 0,
                "stream": false,
            })),
        )?;
        let content = &answer["choices"][0]["message"]["content"];
        // Null: the model said nothing, or spent its tokens on reasoning.
        if content.is_null() && answer["choices"][0]["message"].is_object() {
            return Ok(String::new());
        }
        let malformed = || EndpointError::Malformed { url: self.at(route), reason: "no choices[0].message.content" };
        content.as_str().map(str::to_owned).ok_or_else(malformed)
    }

    /// The text's tokens, by the server's own tokenizer; none where it has no such route. With the model's first tokens, or
    /// without.
    fn tokenize(&self, text: &str, add_special: bool) -> Option<Vec<u32>> {
        // vLLM's and ours; then llama.cpp's.
        let bodies = [
            json!({"model": self.model, "prompt": text, "add_special_tokens": add_special}),
            json!({"content": text, "add_special": add_special}),
        ];
        bodies.iter().find_map(|body| {
            let answer = self.ask("/tokenize", Some(body)).ok()?;
            let tokens = answer["tokens"].as_array()?.iter();
            let tokens: Option<Vec<u32>> = tokens.map(|token| u32::try_from(token.as_u64()?).ok()).collect();
            tokens.filter(|tokens| !tokens.is_empty())
        })
    }

    /// The text's tokens, with the first one that the model wants; none where the server cannot tokenize.
    fn tokens(&self, text: &str) -> Option<Tokenized> {
        let whole = self.tokenize(text, true);
        let windows_of = if whole.is_some() { WindowsOf::Tokens } else { WindowsOf::TokensOfPieces };
        let pieces = if whole.is_some() { vec![text] } else { pieces(text) };
        let (first, others) = pieces.split_first()?;
        let mut tokens = whole.or_else(|| self.tokenize(first, true))?;
        let bare = self.tokenize(first, false);
        let bos = bare.filter(|bare| bare.len() + 1 == tokens.len()).map(|_| tokens[0]);
        for piece in others {
            tokens.extend(self.tokenize(piece, false)?);
        }
        Some(Tokenized { tokens, bos, windows_of })
    }

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

    fn ask(&self, route: &str, body: Option<&Value>) -> Result<Value, EndpointError> {
        let url = self.at(route);
        let unreachable =
            |error: ureq::Error| EndpointError::Unreachable { url: url.clone(), reason: error.to_string() };
        let key = self.key.as_ref().map(|key| format!("Bearer {key}"));
        let answer = match body {
            Some(body) => {
                let mut request = self.agent.post(&url).content_type("application/json");
                if let Some(key) = &key {
                    request = request.header("authorization", key);
                }
                request.send(body.to_string())
            }
            None => {
                let mut request = self.agent.get(&url);
                if let Some(key) = &key {
                    request = request.header("authorization", key);
                }
                request.call()
            }
        };
        let mut answer = answer.map_err(unreachable)?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string().map_err(unreachable)?;
        if status != 200 {
            let message = text.chars().take(MESSAGE_CHARACTERS_MAX).collect();
            return Err(EndpointError::Refused { url, status, message });
        }
        serde_json::from_str(&text).map_err(|_| EndpointError::Malformed { url, reason: "the answer is no JSON" })
    }

    fn at(&self, route: &str) -> String {
        format!("{}{route}", self.root)
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
    // No more text than the windows can take: tokens of sixteen bytes on average are unheard of, and one window
    // is to spare.
    let enough = windows_max.and_then(|count| (count + 1).checked_mul(context * 16)).unwrap_or(text.len());
    let text = &text[..text.floor_char_boundary(enough)];
    let tokenized = endpoint.tokens(text);
    let windows_of = tokenized.as_ref().map_or(WindowsOf::Characters, |found| found.windows_of);
    let mut windows: Vec<Prompt> = match tokenized {
        Some(Tokenized { tokens, bos, .. }) => {
            // A beginning-of-sequence token takes the place of each window's first.
            let window = |window: &[u32]| {
                let mut window = window.to_vec();
                if let Some(bos) = bos {
                    window[0] = bos;
                }
                Prompt::Tokens(window)
            };
            tokens.chunks_exact(context).map(window).collect()
        }
        None => {
            let characters: Vec<char> = text.chars().collect();
            let window = |window: &[char]| Prompt::Text(window.iter().collect());
            characters.chunks_exact(context * CHARACTERS_PER_TOKEN).map(window).collect()
        }
    };
    windows.truncate(windows_max.unwrap_or(usize::MAX));
    let first = windows.first().ok_or(EndpointError::TooShort(context))?;
    let (scoring, mut scores) = first_scores(endpoint, first)?;
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

/// A text in pieces that end with lines, where lines are short enough.
fn pieces(text: &str) -> Vec<&str> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while rest.len() > PIECE_BYTES_MAX {
        let most = rest.floor_char_boundary(PIECE_BYTES_MAX);
        let end = rest[..most].rfind('\n').map_or(most, |end| end + 1);
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
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
    Err(EndpointError::NoPromptLogprobs { url: endpoint.root.clone(), reason: reasons.join("; ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_text() {
        let text = "a line of the text, ä\n".repeat(3000) + &"ö".repeat(40_000);
        let found = pieces(&text);
        assert!(found.len() > 5 && found.iter().all(|piece| !piece.is_empty() && piece.len() <= PIECE_BYTES_MAX));
        assert!(found[0].ends_with('\n'));
        assert_eq!(found.concat(), text);
        assert_eq!(pieces("short"), ["short"]);
    }
}
