//! Two servers' predictions on one text, compared by the alternatives that they tell.

use crate::{
    Endpoint, EndpointError,
    top::{Alternatives, Token, TopDivergence},
    windows::beginning,
};
use serde_json::{Value, json};

const ROUTE: &str = "/v1/completions";
/// How much of the text both servers tokenize, to see whether they do it alike.
const COMPARED_BYTES: usize = 4096;

/// How a server was asked for alternatives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// `prompt_logprobs` of a whole window, as vLLM has it.
    PromptLogprobs,
    /// One token after each beginning of a window, with `logprobs`.
    Continuations,
}

impl Asking {
    /// As in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::PromptLogprobs => "prompt_logprobs",
            Self::Continuations => "continuations",
        }
    }
}

/// Divergence over HTTP.
#[derive(Clone, Debug)]
pub struct EndpointDivergence {
    /// The positions.
    pub found: TopDivergence,
    /// How the reference was asked.
    pub reference: Asking,
    /// How the other was.
    pub other: Asking,
    /// Both tokenize the text's beginning alike; none where the other does not tokenize.
    pub tokenizers_alike: Option<bool>,
}

/// What a server tells of a window: alternatives at each scored position, and the log-probabilities of the text's own tokens where
/// it tells those, too.
struct Window {
    alternatives: Vec<Alternatives>,
    own: Option<Vec<f64>>,
}

/// Compares two servers on windows of the text's tokens, at the positions that perplexity scores: the second half of each. Tokens
/// are the reference's.
///
/// # Errors
/// When a server does not tell alternatives, the reference does not tokenize, the two tokenize differently, or the text is too
/// short.
pub fn divergence(
    reference: &Endpoint,
    other: &Endpoint,
    text: &str,
    context: usize,
    windows_max: Option<usize>,
    top: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<EndpointDivergence, EndpointError> {
    let text = beginning(text, context, windows_max);
    let tokenized = reference.tokens(text).ok_or_else(|| EndpointError::NoTokenizer(reference.url().to_owned()))?;
    let sample = &text[..text.floor_char_boundary(COMPARED_BYTES)];
    let both = || (reference.url().to_owned(), other.url().to_owned());
    let tokenizers_alike =
        other.tokenize(sample, false).map(|tokens| Some(tokens) == reference.tokenize(sample, false));
    if tokenizers_alike == Some(false) {
        let (reference, other) = both();
        return Err(EndpointError::Tokenizers(reference, other));
    }
    let windows: Vec<Vec<u32>> = tokenized.windows(context).take(windows_max.unwrap_or(usize::MAX)).collect();
    let first = windows.first().ok_or(EndpointError::TooShort(context))?;
    let (asking, asking_other) = (way(reference, first, top)?, way(other, first, top)?);
    let mut found = TopDivergence::default();
    for (place, tokens) in windows.iter().enumerate() {
        let ours = reference.window(tokens, asking, top)?;
        let theirs = other.window(tokens, asking_other, top)?;
        let is_id = |window: &Window| matches!(window.alternatives[0].first(), Token::Id(_));
        if is_id(&ours) != is_id(&theirs) {
            let (reference, other) = both();
            return Err(EndpointError::Names(reference, other));
        }
        found.push_window(ours.alternatives.iter().zip(&theirs.alternatives));
        if let (Some(ours), Some(theirs)) = (&ours.own, &theirs.own) {
            found.likelihood_reference.push(ours);
            found.likelihood_other.push(theirs);
        }
        progress(place + 1, windows.len());
    }
    Ok(EndpointDivergence { found, reference: asking, other: asking_other, tokenizers_alike })
}

/// The first position that is scored in a window: of tokens 1 to n - 1 the second half.
fn first_scored(tokens: &[u32]) -> usize {
    1 + (tokens.len() - 1).div_ceil(2)
}

/// The way of asking that works: the one request for all positions, else one for each.
fn way(endpoint: &Endpoint, window: &[u32], top: usize) -> Result<Asking, EndpointError> {
    let mut reasons = Vec::new();
    for asking in [Asking::PromptLogprobs, Asking::Continuations] {
        let asked = match asking {
            Asking::PromptLogprobs => endpoint.prompt_alternatives(window, top).map(|_| ()),
            Asking::Continuations => endpoint.continuation(&window[..first_scored(window)], top).map(|_| ()),
        };
        match asked {
            Ok(()) => return Ok(asking),
            Err(error @ EndpointError::Unreachable { .. }) => return Err(error),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(EndpointError::NoAlternatives { url: endpoint.url().to_owned(), reason: reasons.join("; ") })
}

impl Endpoint {
    fn window(&self, tokens: &[u32], asking: Asking, top: usize) -> Result<Window, EndpointError> {
        match asking {
            Asking::PromptLogprobs => self.prompt_alternatives(tokens, top),
            Asking::Continuations => {
                let beginnings = (first_scored(tokens)..tokens.len()).map(|end| self.continuation(&tokens[..end], top));
                Ok(Window { alternatives: beginnings.collect::<Result<_, _>>()?, own: None })
            }
        }
    }

    /// Alternatives at every scored position of a prompt.
    fn prompt_alternatives(&self, tokens: &[u32], top: usize) -> Result<Window, EndpointError> {
        let malformed = |reason| EndpointError::Malformed { url: self.at(ROUTE), reason };
        let body =
            json!({"model": self.model, "prompt": tokens, "max_tokens": 1, "temperature": 0, "prompt_logprobs": top});
        let answer = self.ask(ROUTE, Some(&body))?;
        let list = answer["choices"][0]["prompt_logprobs"].as_array();
        let list = list.filter(|list| list.len() == tokens.len());
        let list = list.ok_or_else(|| malformed("no choices[0].prompt_logprobs for each token of the prompt"))?;
        let mut window = Window { alternatives: Vec::new(), own: Some(Vec::new()) };
        for place in first_scored(tokens)..tokens.len() {
            let candidates = list[place].as_object().ok_or_else(|| malformed("a prompt token without candidates"))?;
            let named =
                candidates.iter().map(|(id, told)| Some((Token::Id(id.parse().ok()?), told["logprob"].as_f64()?)));
            let named = named.collect::<Option<Vec<_>>>();
            let own = candidates.get(&tokens[place].to_string()).and_then(|told| told["logprob"].as_f64());
            let found = named.and_then(|named| Alternatives::new(named, top));
            window.alternatives.push(found.ok_or_else(|| malformed("candidates without ids and log-probabilities"))?);
            window.own = window.own.zip(own).map(|(mut all, own)| {
                all.push(own);
                all
            });
        }
        Ok(window)
    }

    /// Alternatives for the token after a prompt.
    fn continuation(&self, tokens: &[u32], top: usize) -> Result<Alternatives, EndpointError> {
        let malformed = |reason| EndpointError::Malformed { url: self.at(ROUTE), reason };
        let body = json!({"model": self.model, "prompt": tokens, "max_tokens": 1, "temperature": 0, "logprobs": top});
        let answer = self.ask(ROUTE, Some(&body))?;
        let logprobs = &answer["choices"][0]["logprobs"];
        // The older OpenAI API's, by text; llama.cpp's, by id.
        let by_text = |told: &Value| {
            let named = told.as_object()?.iter().map(|(text, logprob)| Some((token(text), logprob.as_f64()?)));
            named.collect::<Option<Vec<_>>>()
        };
        let by_id = |told: &Value| {
            let named = told.as_array()?.iter().map(|told| {
                let id = told["id"].as_u64().and_then(|id| u32::try_from(id).ok());
                let name = id.map(Token::Id).or_else(|| Some(Token::Text(told["token"].as_str()?.to_owned())));
                Some((name?, told["logprob"].as_f64()?))
            });
            named.collect::<Option<Vec<_>>>()
        };
        let named = by_text(&logprobs["top_logprobs"][0]).or_else(|| by_id(&logprobs["content"][0]["top_logprobs"]));
        let found = named.and_then(|named| Alternatives::new(named, top));
        found.ok_or_else(|| malformed("no choices[0].logprobs with alternatives"))
    }
}

/// vLLM can name tokens `token_id:123`.
fn token(text: &str) -> Token {
    let id = text.strip_prefix("token_id:").and_then(|id| id.parse().ok());
    id.map_or_else(|| Token::Text(text.to_owned()), Token::Id)
}
