//! [`SentencePiece`]: byte-pair encoding by scores, as sentencepiece and llama.cpp do it (Llama 2, Mistral, Gemma).
//!
//! Any neighbouring characters may merge, the pair with the best score first. Where two characters stand together in no token
//! no merge can cross, so text is cut there and merged piece by piece with the same outcome: mostly before spaces. A
//! character that is no token becomes its bytes' tokens. Tokens hold a plain space where the file writes U+2581, so U+2581 in
//! text counts as a space, as it does in the originals.

use crate::{
    TokenId,
    merge::{Join, Merger, NONE},
    vocabulary::{TokenKind, Vocabulary},
};
use std::borrow::Cow;

/// The file's sign for a space.
pub(crate) const SPACE_SIGN: &str = "\u{2581}";

/// Merges by score over a vocabulary.
pub(crate) struct SentencePiece {
    /// For each token its place in the order of merging: lower first. Equal scores are equal.
    priorities: Box<[u32]>,
    /// The token of each byte, the unknown token, or [`NONE`]: such bytes are dropped.
    byte_tokens: [TokenId; 256],
    /// Whether text after the start or after a control token gets a space before it.
    add_space_prefix: bool,
    neighbours: Neighbours,
}

impl SentencePiece {
    /// `scores`: one for each token, none of them NaN; higher merges first.
    pub(crate) fn new(
        vocabulary: &Vocabulary,
        scores: &[f32],
        unknown: Option<TokenId>,
        add_space_prefix: bool,
    ) -> Self {
        assert_eq!(vocabulary.len(), scores.len(), "a score for each token");
        let mut byte_tokens = [unknown.unwrap_or(NONE); 256];
        // A vocabulary without byte tokens may have tokens of one byte: they stand for it.
        for byte in 0..=255_u8 {
            if let Some(token) = vocabulary.find(&[byte]) {
                byte_tokens[byte as usize] = token;
            }
        }
        for token in vocabulary.of_kind(TokenKind::Byte) {
            if let &[byte] = vocabulary.bytes(token) {
                byte_tokens[byte as usize] = token;
            }
        }
        Self {
            priorities: scores.iter().map(|&score| descending(score)).collect(),
            byte_tokens,
            add_space_prefix,
            neighbours: Neighbours::in_tokens(vocabulary),
        }
    }

    /// Appends the tokens of a stretch of text; `prefixable` if nothing or a special token stands before it.
    pub(crate) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        prefixable: bool,
        merger: &mut Merger,
        out: &mut Vec<TokenId>,
    ) {
        let mut text =
            if text.contains(SPACE_SIGN) { Cow::Owned(text.replace(SPACE_SIGN, " ")) } else { Cow::Borrowed(text) };
        if self.add_space_prefix && prefixable {
            text.to_mut().insert(0, ' ');
        }
        let bytes = text.as_bytes();
        let mut start = 0;
        for at in 1..bytes.len() {
            if self.neighbours.are_apart(bytes[at - 1], bytes[at]) {
                self.encode_word(vocabulary, &text[start..at], merger, out);
                start = at;
            }
        }
        self.encode_word(vocabulary, &text[start..], merger, out);
    }

    fn encode_word(&self, vocabulary: &Vocabulary, text: &str, merger: &mut Merger, out: &mut Vec<TokenId>) {
        let bytes = text.as_bytes();
        merger.clear();
        for (at, character) in text.char_indices() {
            let len = character.len_utf8();
            merger.push(at, len, vocabulary.find(&bytes[at..at + len]).unwrap_or(NONE));
        }
        let symbols = merger.run(|left, right| {
            let token = vocabulary.find(&bytes[left.start as usize..(right.start + right.len) as usize])?;
            Some(Join { priority: self.priorities[token as usize], token })
        });
        for symbol in symbols {
            if symbol.token != NONE {
                out.push(symbol.token);
                continue;
            }
            let start = symbol.start as usize;
            let tokens = bytes[start..start + symbol.len as usize].iter().map(|&byte| self.byte_tokens[byte as usize]);
            out.extend(tokens.filter(|&token| token != NONE));
        }
    }
}

/// Which characters stand beside each other in some token, known by the last byte of one and the first of the next.
struct Neighbours(Box<[bool]>);

impl Neighbours {
    fn in_tokens(vocabulary: &Vocabulary) -> Self {
        let mut together = vec![false; 1 << 16].into_boxed_slice();
        for kind in [TokenKind::Normal, TokenKind::Unused] {
            for token in vocabulary.of_kind(kind) {
                for pair in vocabulary.bytes(token).windows(2) {
                    together[usize::from(pair[0]) << 8 | usize::from(pair[1])] = true;
                }
            }
        }
        Self(together)
    }

    /// Whether text may be cut between two bytes: a character begins there, and no merge joins the two.
    fn are_apart(&self, left: u8, right: u8) -> bool {
        let begins_character = right & 0xC0 != 0x80;
        begins_character && !self.0[usize::from(left) << 8 | usize::from(right)]
    }
}

/// An order-reversing map of the numbers to integers; both zeros are equal.
fn descending(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn higher_scores_come_first() {
        let scores = [f32::INFINITY, 3.5, 1e-40, 0.0, -1e-40, -1.0, -2.0, -1e30, f32::NEG_INFINITY];
        assert!(scores.windows(2).all(|pair| descending(pair[0]) < descending(pair[1])));
        assert_eq!(descending(0.0), descending(-0.0));
    }

    #[test]
    fn piece_by_piece_merges_as_all_at_once() {
        let mut cuts = 0;
        for seed in 0..500 {
            let mut random = Random::new(seed);
            let mut text = |most: usize, letters: &[char]| -> String {
                (0..=random.below(most)).map(|_| letters[random.below(letters.len())]).collect()
            };
            let mut vocabulary = Vocabulary::with_capacity(60);
            for token in ["a", "b", " ", "é"] {
                vocabulary.push(token.as_bytes(), TokenKind::Normal);
            }
            for _ in 0..40 {
                let word = format!("{}{}", text(2, &[' ']), text(4, &['a', 'b', 'é', '\u{e8}']));
                vocabulary.push(&word.as_bytes()[seed as usize % 2..], TokenKind::Normal);
            }
            let sentence = text(80, &['a', 'b', ' ', 'é', '€', 'ä']);
            // Few different scores, so that ties are frequent.
            let scores: Vec<f32> = (0..vocabulary.len()).map(|_| random.below(5) as f32).collect();
            let mut encoder = SentencePiece::new(&vocabulary, &scores, None, false);
            let ids = |encoder: &SentencePiece| {
                let mut out = Vec::new();
                encoder.encode(&vocabulary, &sentence, true, &mut Merger::default(), &mut out);
                out
            };
            let pieces = ids(&encoder);
            cuts +=
                sentence.as_bytes().windows(2).filter(|pair| encoder.neighbours.are_apart(pair[0], pair[1])).count();
            encoder.neighbours.0.fill(true);
            assert_eq!(pieces, ids(&encoder), "seed {seed}: {sentence:?}");
        }
        assert!(cuts > 1000, "cut only {cuts} times");
    }
}
