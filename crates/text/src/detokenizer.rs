//! [`Detokenizer`]: token ids to text as they come, never half a character.

use crate::{TokenId, tokenizer::Tokenizer, vocabulary::TokenKind};

/// One sequence's text so far. What it gives out, joined, is the lossy UTF-8 reading of all its tokens' bytes.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    /// The beginning of a character whose end has not come: at most 3 bytes.
    incomplete: Vec<u8>,
    show_special: bool,
    strip_space: bool,
}

impl Detokenizer {
    /// For text that goes on after a prompt: nothing is stripped. `show_special`: control tokens appear as their names.
    pub fn continuing(show_special: bool) -> Self {
        Self { incomplete: Vec::new(), show_special, strip_space: false }
    }

    /// For a whole text from its first token: a space that encoding put before it is taken away.
    pub fn at_start(tokenizer: &Tokenizer, show_special: bool) -> Self {
        Self { strip_space: tokenizer.strip_leading_space, ..Self::continuing(show_special) }
    }

    /// Takes the next token and appends the text that is complete now.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: TokenId, text: &mut String) {
        let Some(kind) = tokenizer.token_kind(token) else { return };
        let mut bytes = tokenizer.token_bytes(token);
        if matches!(kind, TokenKind::Control | TokenKind::Unknown) {
            if !self.show_special {
                return;
            }
        } else if std::mem::take(&mut self.strip_space) {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.push_bytes(bytes, text);
    }

    /// Ends the text: a character that never came whole becomes one U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        if !self.incomplete.is_empty() {
            self.incomplete.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    /// Whether part of a character waits for its rest.
    pub fn is_mid_character(&self) -> bool {
        !self.incomplete.is_empty()
    }

    fn push_bytes(&mut self, bytes: &[u8], text: &mut String) {
        if self.incomplete.is_empty() {
            let rest = append_complete(bytes, text);
            self.incomplete.extend_from_slice(rest);
        } else {
            let mut joined = std::mem::take(&mut self.incomplete);
            joined.extend_from_slice(bytes);
            let rest = append_complete(&joined, text).len();
            joined.drain(..joined.len() - rest);
            self.incomplete = joined;
        }
    }
}

/// Appends all of `bytes` but the beginning of an unfinished character at their end, which is returned.
fn append_complete<'b>(mut bytes: &'b [u8], text: &mut String) -> &'b [u8] {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(valid) => {
                text.push_str(valid);
                return &[];
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                let Some(invalid) = error.error_len() else { return rest };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes = &rest[invalid..];
            }
        }
    }
}
