//! The engine's log-probabilities in the API's shapes.

use crate::choice::Piece;
use powertrain_protocol::{
    ChatLogprobs, CompletionLogprobs, Finite, PromptLogprob, PromptLogprobs, PromptPosition, TokenAlternative,
    TokenLogprob, TopLogprobs,
};
use powertrain_step::{TokenId, TokenLogprobs};
use powertrain_text::{Detokenizer, TokenKind, Tokenizer};

/// How tokens are written.
#[derive(Clone, Copy)]
pub(crate) struct Spelling<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// As `token_id:N` instead of as text.
    pub(crate) as_ids: bool,
}

impl Spelling<'_> {
    pub(crate) fn token(&self, id: TokenId) -> String {
        if self.as_ids {
            format!("token_id:{id}")
        } else {
            String::from_utf8_lossy(self.tokenizer.token_bytes(id)).into_owned()
        }
    }

    /// For chat.
    pub(crate) fn chat(&self, logprobs: &[TokenLogprobs]) -> ChatLogprobs {
        let alternative = |id: TokenId, logprob: f32| TokenAlternative {
            token: self.token(id),
            logprob,
            bytes: self.tokenizer.token_bytes(id).to_vec(),
        };
        let content = logprobs.iter().map(|position| TokenLogprob {
            chosen: alternative(position.token, position.logprob),
            top_logprobs: position.top.iter().map(|(id, logprob)| alternative(*id, *logprob)).collect(),
        });
        ChatLogprobs { content: content.collect() }
    }

    /// For plain completions, where there are no bytes beside the text: a token that is no whole characters is written
    /// `bytes:\xf0\x9f`, as with OpenAI. As U+FFFD many different ones would be one.
    fn key(&self, id: TokenId) -> String {
        let bytes = self.tokenizer.token_bytes(id);
        if self.as_ids || std::str::from_utf8(bytes).is_ok() {
            return self.token(id);
        }
        let mut text = "bytes:".to_owned();
        for &byte in bytes {
            match byte {
                b' '..=b'~' => text.push(char::from(byte)),
                _ => text.push_str(&format!("\\x{byte:02x}")),
            }
        }
        text
    }

    /// For plain completions. `before` is how many characters of the choice's text come before what was generated.
    pub(crate) fn completion(&self, piece: &Piece, before: u32, alternatives: u8) -> CompletionLogprobs {
        let mut lists = CompletionLogprobs::default();
        // What a stop string cut off is after the end.
        let end = piece.end.as_ref().map_or(u32::MAX, |end| end.chars);
        for (position, start) in piece.logprobs.iter().zip(&piece.starts) {
            self.push(&mut lists, position, before + start.min(&end), alternatives);
        }
        lists
    }

    /// For a prompt echoed as this text: its first token, then those that something predicts.
    pub(crate) fn echo(
        &self,
        echoed: &str,
        prompt: &[TokenId],
        rest: &[TokenLogprobs],
        alternatives: u8,
    ) -> CompletionLogprobs {
        let mut starts = self.starts(echoed, prompt).into_iter();
        let mut lists = CompletionLogprobs {
            text_offset: starts.next().into_iter().collect(),
            token_logprobs: vec![None],
            tokens: vec![self.key(prompt[0])],
            top_logprobs: vec![None],
        };
        for (position, start) in rest.iter().zip(starts) {
            self.push(&mut lists, position, start, alternatives);
        }
        lists
    }

    fn push(&self, lists: &mut CompletionLogprobs, position: &TokenLogprobs, offset: u32, alternatives: u8) {
        let token = self.key(position.token);
        let mut top: Vec<(String, f32)> = Vec::with_capacity(usize::from(alternatives) + 1);
        let told = position.top.iter().take(usize::from(alternatives));
        let named = told.map(|(id, logprob)| (self.key(*id), *logprob));
        // The chosen token is always among them, as with OpenAI.
        for (key, logprob) in named.chain([(token.clone(), position.logprob)]) {
            // They are the keys of an object: of tokens written alike the most probable stays.
            if top.iter().all(|(other, _)| *other != key) {
                top.push((key, logprob));
            }
        }
        lists.text_offset.push(offset);
        lists.token_logprobs.push(Some(Finite(position.logprob)));
        lists.top_logprobs.push(Some(TopLogprobs(top)));
        lists.tokens.push(token);
    }

    /// Where each token of a prompt begins in the text it is echoed as, in characters. Control tokens are in it where they
    /// were written in it; not where encoding added them, nor where they were left out of ids made text.
    fn starts(&self, echoed: &str, prompt: &[TokenId]) -> Vec<u32> {
        let mut detokenizer = Detokenizer::at_start(self.tokenizer, true);
        let (mut rest, mut offset) = (echoed, 0);
        let mut starts = Vec::with_capacity(prompt.len());
        for &id in prompt {
            starts.push(offset);
            let special = matches!(self.tokenizer.token_kind(id), Some(TokenKind::Control | TokenKind::Unknown));
            if special && !rest.as_bytes().starts_with(self.tokenizer.token_bytes(id)) {
                continue;
            }
            let mut text = String::new();
            detokenizer.push(self.tokenizer, id, &mut text);
            // By characters, not by bytes: a tokenizer may have normalised the text, which can put others in their place.
            for _ in text.chars() {
                let mut chars = rest.chars();
                offset += u32::from(chars.next().is_some());
                rest = chars.as_str();
            }
        }
        starts
    }

    /// vLLM's `prompt_logprobs`.
    pub(crate) fn prompt(&self, rest: &[TokenLogprobs], alternatives: u8) -> PromptLogprobs {
        let candidate =
            |id: TokenId, logprob: f32, rank: u32| (id, PromptLogprob { logprob, rank, decoded_token: self.token(id) });
        let positions = rest.iter().map(|position| {
            let mut candidates = vec![candidate(position.token, position.logprob, position.rank)];
            for (rank, (id, logprob)) in (1..).zip(position.top.iter().take(usize::from(alternatives))) {
                if *id != position.token {
                    candidates.push(candidate(*id, *logprob, rank));
                }
            }
            Some(PromptPosition(candidates))
        });
        std::iter::once(None).chain(positions).collect()
    }
}

/// Appends lists to lists.
pub(crate) fn extend(lists: &mut CompletionLogprobs, mut more: CompletionLogprobs) {
    lists.text_offset.append(&mut more.text_offset);
    lists.token_logprobs.append(&mut more.token_logprobs);
    lists.tokens.append(&mut more.tokens);
    lists.top_logprobs.append(&mut more.top_logprobs);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::tests::tokenizer;

    #[test]
    fn parts_of_characters_are_told_apart() {
        let tokenizer = tokenizer();
        let spelling = Spelling { tokenizer: &tokenizer, as_ids: false };
        // The two bytes of é, and two ids that are no tokens.
        let top = vec![(4, -1.0), (3, -2.0), (100, -3.0), (101, -4.0), (0, -5.0)];
        let position = TokenLogprobs { token: 3, logprob: -2.0, rank: 2, top };
        let piece = Piece { logprobs: vec![position], starts: vec![0], ..Piece::default() };
        let keys = |alternatives| {
            let lists = spelling.completion(&piece, 0, alternatives);
            assert_eq!(lists.tokens, [r"bytes:\xc3"]);
            lists.top_logprobs[0].clone().expect("told").0
        };
        let (first, second) = ((r"bytes:\xa9".to_owned(), -1.0), (r"bytes:\xc3".to_owned(), -2.0));
        assert_eq!(keys(5), [first.clone(), second.clone(), (String::new(), -3.0), ("a".to_owned(), -5.0)]);
        assert_eq!(keys(1), [first, second.clone()]);
        assert_eq!(keys(0), [second]);
    }
}
