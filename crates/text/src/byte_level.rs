//! [`ByteLevel`]: GPT-2's byte-level byte-pair encoding, over the vocabulary and merges of a GGUF file.
//!
//! Own code because the `tokenizers` crate would have to be fed a JSON of the whole vocabulary, which costs more than the
//! start-up may (ARCHITECTURE.md has the numbers), and because ids must equal llama.cpp's.

use crate::{
    TokenId,
    merge::{Join, Merger, NONE},
    pre_tokenizer::PreTokenizer,
    vocabulary::Vocabulary,
};
use hashbrown::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};

/// Merges by rank over a vocabulary, inside the words that a [`PreTokenizer`] cuts.
pub(crate) struct ByteLevel {
    pre_tokenizer: PreTokenizer,
    /// The token of each byte, or [`NONE`]: such bytes are dropped, as llama.cpp and Hugging Face do.
    byte_tokens: [TokenId; 256],
    /// From two neighbours to the merge's rank and the token they become.
    merges: HashMap<(TokenId, TokenId), (u32, TokenId)>,
    /// For each token whether merging its own bytes gives it: most words are such tokens and need no merging. Found out at
    /// first use; threads that race find the same.
    whole: Box<[AtomicU8]>,
}

const UNTRIED: u8 = 0;
const WHOLE: u8 = 1;
const PARTS: u8 = 2;

/// A merge whose left, right or joined text is no token.
#[derive(Debug)]
pub(crate) struct BadMerge {
    pub(crate) index: usize,
}

impl ByteLevel {
    /// `merges` in order of rank, each "left right" in GPT-2's byte alphabet.
    pub(crate) fn new<'m>(
        vocabulary: &Vocabulary,
        pre_tokenizer: PreTokenizer,
        merges: impl ExactSizeIterator<Item = &'m str>,
    ) -> Result<Self, BadMerge> {
        let alphabet = Alphabet::new();
        let mut byte_tokens = [NONE; 256];
        for byte in 0..=255_u8 {
            byte_tokens[byte as usize] = vocabulary.find(&[byte]).unwrap_or(NONE);
        }
        let mut table = HashMap::with_capacity(merges.len());
        let mut joined = Vec::new();
        for (index, merge) in merges.enumerate() {
            let mut parse = || {
                // The left side may itself begin with a space in files that do not use the alphabet.
                let cut = merge.char_indices().skip(1).find(|&(_, c)| c == ' ')?.0;
                joined.clear();
                alphabet.decode(&merge[..cut], &mut joined);
                let left_len = joined.len();
                alphabet.decode(&merge[cut + 1..], &mut joined);
                let left = vocabulary.find(&joined[..left_len])?;
                let right = vocabulary.find(&joined[left_len..])?;
                Some(((left, right), vocabulary.find(&joined)?))
            };
            let (pair, token) = parse().ok_or(BadMerge { index })?;
            table.entry(pair).or_insert((index as u32, token));
        }
        let whole = (0..vocabulary.len()).map(|_| AtomicU8::new(UNTRIED)).collect();
        Ok(Self { pre_tokenizer, byte_tokens, merges: table, whole })
    }

    /// Appends the tokens of `text`.
    pub(crate) fn encode(&self, vocabulary: &Vocabulary, text: &str, merger: &mut Merger, out: &mut Vec<TokenId>) {
        self.pre_tokenizer.split(text, |word| self.encode_word(vocabulary, word.as_bytes(), merger, out));
    }

    fn encode_word(&self, vocabulary: &Vocabulary, word: &[u8], merger: &mut Merger, out: &mut Vec<TokenId>) {
        let token = vocabulary.find(word);
        let knows = |verdict| move |&token: &TokenId| self.whole[token as usize].load(Ordering::Relaxed) == verdict;
        if let Some(token) = token.filter(|token| self.pre_tokenizer.whole_words || knows(WHOLE)(token)) {
            out.push(token);
            return;
        }
        merger.clear();
        for (at, &byte) in word.iter().enumerate() {
            merger.push(at, 1, self.byte_tokens[byte as usize]);
        }
        let before = out.len();
        let join = |&(priority, token): &(u32, TokenId)| Join { priority, token };
        let symbols = merger.run(|left, right| self.merges.get(&(left.token, right.token)).map(join));
        out.extend(symbols.map(|symbol| symbol.token).filter(|&token| token != NONE));
        if let Some(token) = token.filter(knows(UNTRIED)) {
            let verdict = if out[before..] == [token] { WHOLE } else { PARTS };
            self.whole[token as usize].store(verdict, Ordering::Relaxed);
        }
    }
}

/// GPT-2's alphabet: a printable character for each byte, so that tokens can be written as text.
pub(crate) struct Alphabet {
    /// Bytes of the characters below U+0144, the last of the alphabet.
    byte_of: [Option<u8>; 0x144],
}

impl Alphabet {
    pub(crate) fn new() -> Self {
        let mut byte_of = [None; 0x144];
        let mut next = 0x100;
        for byte in 0..=255_u8 {
            if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
                byte_of[byte as usize] = Some(byte);
            } else {
                byte_of[next] = Some(byte);
                next += 1;
            }
        }
        Self { byte_of }
    }

    /// Appends the bytes that `token` writes; characters outside the alphabet stand for themselves.
    pub(crate) fn decode(&self, token: &str, out: &mut Vec<u8>) {
        for character in token.chars() {
            match self.byte_of.get(character as usize).copied().flatten() {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
}
