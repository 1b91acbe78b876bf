//! One sequence's text as it comes: detokenised, stop strings applied, log-probabilities kept beside the text they are of.

use powertrain_engine::{Event, FinishReason, Finished};
use powertrain_protocol::{ApiError, StopReason, WireFinishReason};
use powertrain_step::{TokenId, TokenLogprobs};
use powertrain_text::{Detokenizer, StopMatcher, Tokenizer};
use std::sync::Arc;

/// What the choices of one request have in common.
#[derive(Debug)]
pub(crate) struct TextRules {
    /// Strings that end the text.
    pub(crate) stop: Vec<String>,
    /// Tokens that end it, by the request.
    pub(crate) stop_token_ids: Vec<TokenId>,
    /// Tokens that end it, by the model.
    pub(crate) eos_token_ids: Vec<TokenId>,
    /// Whether what ended the text is part of it.
    pub(crate) include_stop: bool,
    /// Whether control tokens are left out.
    pub(crate) skip_special: bool,
    /// Before this many tokens no stop string counts.
    pub(crate) min_tokens: u32,
}

/// New text and what belongs to it. Text may lag behind tokens (half a character, the beginning of a stop string); then
/// the tokens wait for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Piece {
    /// What may be shown.
    pub(crate) text: String,
    /// The tokens sampled for it.
    pub(crate) tokens: Vec<TokenId>,
    /// Theirs, when asked for.
    pub(crate) logprobs: Vec<TokenLogprobs>,
    /// The prompt's, when asked for.
    pub(crate) prompt_logprobs: Vec<TokenLogprobs>,
    /// Set in the last piece.
    pub(crate) end: Option<End>,
}

/// How a text ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) finish: WireFinishReason,
    pub(crate) stop_reason: Option<StopReason>,
}

/// Turns one sequence's events into pieces.
#[derive(Clone)]
pub(crate) struct Choice {
    tokenizer: Arc<Tokenizer>,
    rules: Arc<TextRules>,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    pending: Piece,
    generated: u32,
}

impl Piece {
    /// Takes what comes after it.
    pub(crate) fn append(&mut self, mut next: Self) {
        self.text.push_str(&next.text);
        self.tokens.append(&mut next.tokens);
        self.logprobs.append(&mut next.logprobs);
        self.prompt_logprobs.append(&mut next.prompt_logprobs);
        self.end = next.end;
    }
}

impl Choice {
    /// Before its first token.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, rules: Arc<TextRules>) -> Result<Self, ApiError> {
        let matcher = StopMatcher::new(&rules.stop, rules.include_stop)
            .map_err(|error| ApiError::field("stop", error.to_string()))?;
        let detokenizer = Detokenizer::continuing(!rules.skip_special);
        Ok(Self { tokenizer, rules, detokenizer, matcher, pending: Piece::default(), generated: 0 })
    }

    /// Tokens so far.
    pub(crate) fn generated(&self) -> u32 {
        self.generated
    }

    /// Takes an event. A piece comes back when there is text, or the end; after an end or an error nothing more may come.
    pub(crate) fn push(&mut self, event: Event) -> Result<Option<Piece>, ApiError> {
        match event {
            Event::Scheduled { .. } => Ok(None),
            Event::PromptLogprobs(mut logprobs) => {
                self.pending.prompt_logprobs.append(&mut logprobs);
                Ok(None)
            }
            Event::Token(sampled) => {
                self.generated += 1;
                self.pending.tokens.push(sampled.token);
                self.pending.logprobs.extend(sampled.logprobs);
                Ok(self.push_token(sampled.token))
            }
            Event::Finished(finished) => self.finish(&finished).map(Some),
            Event::Failed(failure) => Err(ApiError::Engine(failure.to_string())),
        }
    }

    fn push_token(&mut self, token: TokenId) -> Option<Piece> {
        if self.is_hidden(token) {
            return None;
        }
        let mut text = String::new();
        self.detokenizer.push(&self.tokenizer, token, &mut text);
        self.push_text(&text)
    }

    /// The token that ends a sequence is not text, unless the request named it and wants to see it.
    fn is_hidden(&self, token: TokenId) -> bool {
        if self.rules.stop_token_ids.contains(&token) {
            return !self.rules.include_stop;
        }
        self.rules.eos_token_ids.contains(&token)
    }

    fn push_text(&mut self, text: &str) -> Option<Piece> {
        if self.generated < self.rules.min_tokens {
            self.pending.text.push_str(text);
        } else if let Some(index) = self.matcher.push(text, &mut self.pending.text) {
            let stop_reason = Some(StopReason::Text(self.rules.stop[index].clone()));
            return Some(self.take(Some(End { finish: WireFinishReason::Stop, stop_reason })));
        }
        (!self.pending.text.is_empty()).then(|| self.take(None))
    }

    fn finish(&mut self, finished: &Finished) -> Result<Piece, ApiError> {
        let (finish, stop_reason) = match finished.reason {
            FinishReason::EndOfSequence => (WireFinishReason::Stop, None),
            FinishReason::StopToken(id) => (WireFinishReason::Stop, Some(StopReason::Token(id))),
            FinishReason::Length => (WireFinishReason::Length, None),
            FinishReason::DeadlineExceeded => return Err(ApiError::DeadlineExceeded),
            FinishReason::Shutdown => return Err(ApiError::ShuttingDown),
        };
        let mut rest = String::new();
        self.detokenizer.finish(&mut rest);
        if let Some(piece) = self.push_text(&rest) {
            if piece.end.is_some() {
                return Ok(piece);
            }
            self.pending = piece;
        }
        self.matcher.finish(&mut self.pending.text);
        Ok(self.take(Some(End { finish, stop_reason })))
    }

    fn take(&mut self, end: Option<End>) -> Piece {
        Piece { end, ..std::mem::take(&mut self.pending) }
    }
}
