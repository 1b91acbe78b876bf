//! [`Vocabulary`]: the tokens of a model, as bytes and as kinds.

use crate::TokenId;
use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

/// What a token is for. The names are those of GGUF's `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// Stands for what the vocabulary cannot say.
    Unknown,
    /// Structure, not text: `<s>`, `<|im_start|>`. Hidden from the reader, and taken from text only where the caller trusts it.
    Control,
    /// A piece of text that is cut out before any other rule (Gemma's runs of newlines).
    UserDefined,
    /// Reserved.
    Unused,
    /// One byte of a character that no other token covers (`<0x0A>`).
    Byte,
}

/// All tokens: their bytes in one arena, their kinds, and the way back from bytes to ids for those that stand for text.
pub(crate) struct Vocabulary {
    arena: Vec<u8>,
    /// Where each token ends in the arena; it starts where the one before ends.
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    by_bytes: HashTable<TokenId>,
    hasher: DefaultHashBuilder,
    longest_text_token: usize,
}

impl Vocabulary {
    pub(crate) fn with_capacity(tokens: usize) -> Self {
        Self {
            arena: Vec::with_capacity(tokens * 8),
            ends: Vec::with_capacity(tokens),
            kinds: Vec::with_capacity(tokens),
            by_bytes: HashTable::with_capacity(tokens),
            hasher: DefaultHashBuilder::default(),
            longest_text_token: 0,
        }
    }

    /// Appends the token with the next id. Normal and unused tokens can then be found by their bytes; of equals, the first.
    pub(crate) fn push(&mut self, bytes: &[u8], kind: TokenKind) {
        let id = self.ends.len() as TokenId;
        self.arena.extend_from_slice(bytes);
        self.ends.push(self.arena.len() as u32);
        self.kinds.push(kind);
        if matches!(kind, TokenKind::Normal | TokenKind::Unused) && !bytes.is_empty() {
            self.longest_text_token = self.longest_text_token.max(bytes.len());
            let hash = self.hasher.hash_one(bytes);
            if self.by_bytes.find(hash, |&other| slice(&self.arena, &self.ends, other) == bytes).is_none() {
                self.by_bytes
                    .insert_unique(hash, id, |&other| self.hasher.hash_one(slice(&self.arena, &self.ends, other)));
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// A token's bytes; none for an id the vocabulary does not have.
    pub(crate) fn bytes(&self, id: TokenId) -> &[u8] {
        if (id as usize) < self.ends.len() { slice(&self.arena, &self.ends, id) } else { &[] }
    }

    pub(crate) fn kind(&self, id: TokenId) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// The text token with exactly these bytes.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<TokenId> {
        if bytes.len() > self.longest_text_token {
            return None;
        }
        self.by_bytes.find(self.hasher.hash_one(bytes), |&id| slice(&self.arena, &self.ends, id) == bytes).copied()
    }

    /// Ids of all tokens of one kind, ascending.
    pub(crate) fn of_kind(&self, kind: TokenKind) -> impl Iterator<Item = TokenId> + '_ {
        self.kinds.iter().enumerate().filter(move |&(_, &k)| k == kind).map(|(id, _)| id as TokenId)
    }
}

fn slice<'a>(arena: &'a [u8], ends: &[u32], id: TokenId) -> &'a [u8] {
    let start = if id == 0 { 0 } else { ends[id as usize - 1] };
    &arena[start as usize..ends[id as usize] as usize]
}
