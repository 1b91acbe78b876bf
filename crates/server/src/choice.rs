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
    /// No stop string counts that is complete before this many tokens.
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
    /// With those: where each token's text begins in the whole text, in characters. The parts of a character all begin where
    /// it does.
    pub(crate) starts: Vec<u32>,
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
    /// The whole text's length in characters.
    pub(crate) chars: u32,
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
    /// Characters that the tokens so far have made.
    made: u32,
    /// Characters of them that pieces have shown: fewer where text is held back or cut.
    shown: u32,
}

impl Piece {
    /// Takes what comes after it.
    pub(crate) fn append(&mut self, mut next: Self) {
        self.text.push_str(&next.text);
        self.tokens.append(&mut next.tokens);
        self.logprobs.append(&mut next.logprobs);
        self.starts.append(&mut next.starts);
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
        Ok(Self { tokenizer, rules, detokenizer, matcher, pending: Piece::default(), generated: 0, made: 0, shown: 0 })
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
                if let Some(logprobs) = sampled.logprobs {
                    self.pending.logprobs.push(logprobs);
                    self.pending.starts.push(self.made);
                }
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
        self.made += text.chars().count() as u32;
        if let Some((finish, stop_reason)) = self.push_text(&text) {
            return Some(self.take_last(finish, stop_reason));
        }
        (!self.pending.text.is_empty()).then(|| self.take())
    }

    /// The token that ends a sequence is not text, unless the request named it and wants to see it.
    fn is_hidden(&self, token: TokenId) -> bool {
        if self.rules.stop_token_ids.contains(&token) {
            return !self.rules.include_stop;
        }
        self.rules.eos_token_ids.contains(&token)
    }

    /// How the text ends, if it does.
    fn push_text(&mut self, text: &str) -> Option<(WireFinishReason, Option<StopReason>)> {
        // What begins before the minimum and is complete after it is a stop string that came after it, as in vLLM: its
        // beginning waits here, so that a stream shows no more of it than a whole answer.
        if self.generated < self.rules.min_tokens {
            self.matcher.pass(text, &mut self.pending.text);
            return None;
        }
        let index = self.matcher.push(text, &mut self.pending.text)?;
        Some((WireFinishReason::Stop, Some(StopReason::Text(self.rules.stop[index].clone()))))
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
        if let Some((finish, stop_reason)) = self.push_text(&rest) {
            return Ok(self.take_last(finish, stop_reason));
        }
        self.matcher.finish(&mut self.pending.text);
        Ok(self.take_last(finish, stop_reason))
    }

    fn take(&mut self) -> Piece {
        self.shown += self.pending.text.chars().count() as u32;
        std::mem::take(&mut self.pending)
    }

    fn take_last(&mut self, finish: WireFinishReason, stop_reason: Option<StopReason>) -> Piece {
        let piece = self.take();
        Piece { end: Some(End { finish, stop_reason, chars: self.shown }), ..piece }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use powertrain_engine::Timings;
    use powertrain_step::SampledToken;
    use powertrain_text::GgufVocabulary;
    use std::time::Instant;

    const A: TokenId = 0;
    const B: TokenId = 1;
    const C: TokenId = 2;
    /// The two bytes of `é`, which are no text alone.
    const E_FIRST: TokenId = 3;
    const E_SECOND: TokenId = 4;
    const END: TokenId = 5;
    const AB: TokenId = 6;

    pub(crate) fn tokenizer() -> Arc<Tokenizer> {
        let vocabulary = GgufVocabulary {
            model: "gpt2",
            pre: Some("smollm"),
            tokens: vec!["a", "b", "c", "\u{c3}", "\u{a9}", "<end>", "ab"],
            merges: vec!["a b"],
            scores: Vec::new(),
            token_types: vec![1, 1, 1, 1, 1, 3, 1],
            bos: None,
            eos: Some(END),
            end_of_turn: None,
            end_of_message: None,
            unknown: None,
            padding: None,
            add_bos: Some(false),
            add_eos: None,
            add_space_prefix: None,
        };
        Arc::new(Tokenizer::from_gguf_vocabulary(&vocabulary).expect("a valid vocabulary"))
    }

    fn rules(stop: &[&str]) -> TextRules {
        TextRules {
            stop: stop.iter().map(ToString::to_string).collect(),
            stop_token_ids: Vec::new(),
            eos_token_ids: vec![END],
            include_stop: false,
            skip_special: true,
            min_tokens: 0,
        }
    }

    fn finished(reason: FinishReason) -> Event {
        let now = Instant::now();
        let timings = Timings { queued: now, scheduled: None, first_token: None, finished: now };
        let (prompt_tokens, cached_tokens, generated_tokens, preemptions) = (1, 0, 0, 0);
        Event::Finished(Finished { reason, prompt_tokens, cached_tokens, generated_tokens, preemptions, timings })
    }

    /// The pieces that come of these tokens and this end, each as its text and how many tokens it carries, and how it ended.
    fn check(
        rules: TextRules,
        tokens: &[TokenId],
        reason: FinishReason,
        pieces: &[(&str, usize)],
        stop_reason: Option<StopReason>,
    ) {
        let mut choice = Choice::new(tokenizer(), Arc::new(rules)).expect("valid rules");
        let events = tokens.iter().map(|&token| Event::Token(SampledToken { token, logprobs: None }));
        let mut found = Vec::new();
        let mut end = None;
        for event in events.chain([finished(reason)]) {
            if let Some(piece) = choice.push(event).expect("no failure") {
                found.push((piece.text, piece.tokens.len()));
                end = piece.end;
                if end.is_some() {
                    break;
                }
            }
        }
        let pieces: Vec<_> = pieces.iter().map(|(text, tokens)| ((*text).to_owned(), *tokens)).collect();
        assert_eq!(found, pieces);
        assert_eq!(end.expect("an end").stop_reason, stop_reason);
    }

    #[test]
    fn half_a_character_waits_for_its_rest() {
        check(
            rules(&[]),
            &[A, E_FIRST, E_SECOND, B],
            FinishReason::Length,
            &[("a", 1), ("é", 2), ("b", 1), ("", 0)],
            None,
        );
        check(rules(&[]), &[A, E_FIRST], FinishReason::Length, &[("a", 1), ("\u{fffd}", 1)], None);
    }

    #[test]
    fn the_token_that_ends_is_not_text() {
        check(rules(&[]), &[A, END], FinishReason::EndOfSequence, &[("a", 1), ("", 1)], None);
        let by_token = |include_stop| TextRules { stop_token_ids: vec![B], include_stop, ..rules(&[]) };
        let reason = Some(StopReason::Token(B));
        check(by_token(false), &[A, B], FinishReason::StopToken(B), &[("a", 1), ("", 1)], reason.clone());
        check(by_token(true), &[A, B], FinishReason::StopToken(B), &[("a", 1), ("b", 1), ("", 0)], reason);
    }

    #[test]
    fn what_may_be_a_stop_string_is_held_back_until_it_is_decided() {
        let reason = || Some(StopReason::Text("bc".to_owned()));
        check(rules(&["x", "bc"]), &[A, B, C, A], FinishReason::Length, &[("a", 1), ("", 2)], reason());
        check(rules(&["bc"]), &[A, B, A], FinishReason::Length, &[("a", 1), ("ba", 2), ("", 0)], None);
        check(rules(&["bc"]), &[A, B], FinishReason::Length, &[("a", 1), ("b", 1)], None);
        let included = TextRules { include_stop: true, ..rules(&["bc"]) };
        check(included, &[A, B, C], FinishReason::Length, &[("a", 1), ("bc", 2)], reason());
    }

    #[test]
    fn no_stop_string_counts_before_min_tokens() {
        let patient = TextRules { min_tokens: 3, ..rules(&["b"]) };
        check(
            patient,
            &[A, B, A, B],
            FinishReason::Length,
            &[("a", 1), ("b", 1), ("a", 1), ("", 1)],
            Some(StopReason::Text("b".to_owned())),
        );
    }

    #[test]
    fn a_stop_string_may_begin_before_min_tokens() {
        let stop = || Some(StopReason::Text("bc".to_owned()));
        let patient = |min_tokens| TextRules { min_tokens, ..rules(&["bc"]) };
        check(patient(3), &[A, B, C, A], FinishReason::Length, &[("a", 1), ("", 2)], stop());
        check(patient(4), &[A, B, C, A], FinishReason::Length, &[("a", 1), ("bc", 2), ("a", 1), ("", 0)], None);
        check(patient(4), &[A, B, C, B, C], FinishReason::Length, &[("a", 1), ("bc", 2), ("", 2)], stop());
        let included = TextRules { include_stop: true, ..patient(3) };
        check(included, &[A, B, C, A], FinishReason::Length, &[("a", 1), ("bc", 2)], stop());
    }

    #[test]
    fn tokens_start_where_their_text_does() {
        let check = |stop: &[&str], tokens: &[TokenId], starts: &[u32], chars: u32| {
            let mut choice = Choice::new(tokenizer(), Arc::new(rules(stop))).expect("valid rules");
            let logprobs = |token| Some(TokenLogprobs { token, logprob: 0.0, rank: 1, top: Vec::new() });
            let events = tokens.iter().map(|&token| Event::Token(SampledToken { token, logprobs: logprobs(token) }));
            let mut whole = Piece::default();
            for event in events.chain([finished(FinishReason::Length)]) {
                if let Some(piece) = choice.push(event).expect("no failure") {
                    whole.append(piece);
                }
                if whole.end.is_some() {
                    break;
                }
            }
            assert_eq!((whole.starts.as_slice(), whole.end.expect("an end").chars), (starts, chars));
            assert_eq!(whole.text.chars().count() as u32, chars);
        };
        check(&[], &[A, E_FIRST, E_SECOND, AB, B], &[0, 1, 1, 2, 4], 5);
        check(&[], &[A, E_FIRST], &[0, 1], 2);
        check(&["never"], &[A, END], &[0, 1], 1);
        check(&["bc"], &[A, B, A, B, C], &[0, 1, 2, 3, 4], 3);
    }

    #[test]
    fn an_end_that_is_no_answer_is_an_error() {
        let end = |reason| Choice::new(tokenizer(), Arc::new(rules(&[]))).expect("valid").push(finished(reason)).err();
        assert_eq!(end(FinishReason::DeadlineExceeded), Some(ApiError::DeadlineExceeded));
        assert_eq!(end(FinishReason::Shutdown), Some(ApiError::ShuttingDown));
    }
}
