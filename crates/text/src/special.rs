//! [`SpecialTokens`]: finds the tokens that are cut out of text before any other rule.

use crate::{
    TokenId,
    vocabulary::{TokenKind, Vocabulary},
};
use aho_corasick::{AhoCorasick, AhoCorasickKind, BuildError, MatchKind};

/// Bytes of special tokens up to which the finder may be the fastest there is. Those of public models have some 10,000 at most.
const TABLE_BYTES_MAX: usize = 64 << 10;

/// Finders for control and user-defined tokens; where several begin at a place, the longest wins.
pub(crate) struct SpecialTokens {
    all: Finder,
    user_defined: Finder,
}

/// A piece of text by [`SpecialTokens::partition`].
pub(crate) enum Piece<'t> {
    Text(&'t str),
    Token(TokenId),
}

struct Finder {
    automaton: Option<AhoCorasick>,
    tokens: Vec<TokenId>,
}

impl SpecialTokens {
    pub(crate) fn new(vocabulary: &Vocabulary) -> Result<Self, BuildError> {
        let of = |kinds: &[TokenKind]| {
            let mut tokens: Vec<TokenId> = kinds.iter().flat_map(|&kind| vocabulary.of_kind(kind)).collect();
            tokens.sort_unstable();
            Finder::new(vocabulary, tokens)
        };
        Ok(Self {
            all: of(&[TokenKind::Control, TokenKind::Unknown, TokenKind::UserDefined])?,
            user_defined: of(&[TokenKind::UserDefined])?,
        })
    }

    /// Calls `piece` with the special tokens in `text` and the stretches between them, in order. Without `control` only
    /// user-defined tokens are found: `<s>` in text stays text.
    pub(crate) fn partition<'t>(&self, text: &'t str, control: bool, mut piece: impl FnMut(Piece<'t>)) {
        let finder = if control { &self.all } else { &self.user_defined };
        let mut at = 0;
        for found in finder.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            if found.start() > at {
                piece(Piece::Text(&text[at..found.start()]));
            }
            piece(Piece::Token(finder.tokens[found.pattern().as_usize()]));
            at = found.end();
        }
        if at < text.len() {
            piece(Piece::Text(&text[at..]));
        }
    }
}

impl Finder {
    /// Only tokens that are whole characters can be cut out of text without breaking it.
    fn new(vocabulary: &Vocabulary, mut tokens: Vec<TokenId>) -> Result<Self, BuildError> {
        tokens.retain(|&token| std::str::from_utf8(vocabulary.bytes(token)).is_ok_and(|text| !text.is_empty()));
        if tokens.is_empty() {
            return Ok(Self { automaton: None, tokens });
        }
        // Left to itself it makes tables of some hundred bytes for each byte of few tokens: much, where a file's are long.
        let bytes: usize = tokens.iter().map(|&token| vocabulary.bytes(token).len()).sum();
        let kind = (bytes > TABLE_BYTES_MAX).then_some(AhoCorasickKind::NoncontiguousNFA);
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(kind)
            .build(tokens.iter().map(|&token| vocabulary.bytes(token)))?;
        Ok(Self { automaton: Some(automaton), tokens })
    }
}
