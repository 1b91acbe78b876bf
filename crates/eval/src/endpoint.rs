//! Quality of any OpenAI-compatible server: how it scores a text, what it answers.

use serde_json::{Value, json};
use std::time::Duration;
use ureq::Agent;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// How much of an error is shown.
const MESSAGE_CHARACTERS_MAX: usize = 300;
/// A server and a model of it.
pub struct Endpoint {
    agent: Agent,
    root: String,
    key: Option<String>,
    /// The model's name in requests.
    pub model: String,
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
    /// It names no alternatives.
    #[error(
        "{url} names no alternatives to a token, neither by `prompt_logprobs` nor by `logprobs` of continuations: its predictions \
             cannot be compared over HTTP ({reason})"
    )]
    NoAlternatives {
        /// The server.
        url: String,
        /// What it said.
        reason: String,
    },
    /// It cannot tokenize.
    #[error("{0} has no /tokenize: without the text's tokens its predictions cannot be compared with another server's")]
    NoTokenizer(String),
    /// Two vocabularies.
    #[error("{0} and {1} tokenize the text differently, so that their predictions cannot be compared token by token")]
    Tokenizers(String, String),
    /// Two ways to name tokens.
    #[error("{0} and {1} name tokens differently, one by id and one by text, so that they cannot be told alike")]
    Names(String, String),
    /// Too short a text.
    #[error("the text fills no window of {0} tokens; give a longer one")]
    TooShort(usize),
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

    pub(crate) fn ask(&self, route: &str, body: Option<&Value>) -> Result<Value, EndpointError> {
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

    pub(crate) fn at(&self, route: &str) -> String {
        format!("{}{route}", self.root)
    }
}
