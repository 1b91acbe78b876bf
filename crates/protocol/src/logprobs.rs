//! Log-probabilities in the shapes of chat, of plain completions, and of vLLM's prompt extension.

use crate::TokenId;
use serde::{Serialize, Serializer, ser::SerializeMap};

/// Of a chat choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatLogprobs {
    /// One per token.
    pub content: Vec<TokenLogprob>,
}

/// Of one token in chat.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The token and its own log-probability.
    #[serde(flatten)]
    pub chosen: TokenAlternative,
    /// The most probable tokens there.
    pub top_logprobs: Vec<TokenAlternative>,
}

/// A token and how probable it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenAlternative {
    /// Its text; bytes that are no UTF-8 of their own show as U+FFFD.
    pub token: String,
    /// Natural logarithm.
    #[serde(serialize_with = "finite")]
    pub logprob: f32,
    /// Its exact bytes.
    pub bytes: Vec<u8>,
}

/// Of a plain completion: parallel lists with one entry per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// Where each token's text starts in the choice's, in characters; the parts of a character start where it does.
    pub text_offset: Vec<u32>,
    /// `None` for a prompt's first token, which nothing predicts.
    pub token_logprobs: Vec<Option<Finite>>,
    /// Each token's text; `bytes:\xf0\x9f` where it is no whole characters.
    pub tokens: Vec<String>,
    /// The most probable tokens at each place.
    pub top_logprobs: Vec<Option<TopLogprobs>>,
}

/// Token texts, no two equal, and log-probabilities, most probable first; serialises to an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopLogprobs(pub Vec<(String, f32)>);

/// A logarithm that JSON can hold: minus infinity is sent as the lowest one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Finite(#[serde(serialize_with = "finite")] pub f32);

/// Of a prompt's tokens: per position the token that stood there and the alternatives; the first is `None`.
pub type PromptLogprobs = Vec<Option<PromptPosition>>;

/// The candidates at one position of a prompt, by token id.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptPosition(pub Vec<(TokenId, PromptLogprob)>);

/// One candidate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptLogprob {
    /// Natural logarithm.
    #[serde(serialize_with = "finite")]
    pub logprob: f32,
    /// Its place by probability, from 1.
    pub rank: u32,
    /// Its text.
    pub decoded_token: String,
}

/// Sent in place of minus infinity, as OpenAI does.
const LOGPROB_MIN: f32 = -9999.0;

fn finite<S: Serializer>(logprob: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f32(logprob.max(LOGPROB_MIN))
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, &Finite(*logprob))?;
        }
        map.end()
    }
}

impl Serialize for PromptPosition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (id, candidate) in &self.0 {
            map.serialize_entry(id, candidate)?;
        }
        map.end()
    }
}
