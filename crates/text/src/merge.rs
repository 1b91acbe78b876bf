//! The merging loop that byte-pair encoding and SentencePiece share: join the best neighbouring pair until none is left.
//!
//! A heap holds the candidate pairs, so n symbols cost O(n log n) whatever the text: a megabyte without a space is no attack.

use crate::TokenId;
use std::{cmp::Reverse, collections::BinaryHeap};

/// The end of the list of symbols.
pub(crate) const NONE: u32 = u32::MAX;

/// A stretch of the text that is one token, or could not be any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbol {
    /// First byte.
    pub(crate) start: u32,
    /// Bytes; 0 once merged into the symbol before.
    pub(crate) len: u32,
    /// The token, or [`NONE`].
    pub(crate) token: TokenId,
    pub(crate) previous: u32,
    pub(crate) next: u32,
}

/// A pair that may be joined: the lower priority first, of equals the leftmost.
pub(crate) struct Join {
    pub(crate) priority: u32,
    pub(crate) token: TokenId,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    priority: u32,
    left: u32,
    right: u32,
    /// Bytes of both when it was found: if either has grown since, or vanished, the candidate is stale.
    len: u32,
    token: TokenId,
}

/// The loop's memory, kept between words.
#[derive(Default)]
pub(crate) struct Merger {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Starts a new word.
    pub(crate) fn clear(&mut self) {
        self.symbols.clear();
        self.candidates.clear();
    }

    /// Appends a first symbol of the word.
    pub(crate) fn push(&mut self, start: usize, len: usize, token: TokenId) {
        let index = self.symbols.len() as u32;
        if let Some(last) = self.symbols.last_mut() {
            last.next = index;
        }
        let previous = if index == 0 { NONE } else { index - 1 };
        self.symbols.push(Symbol { start: start as u32, len: len as u32, token, previous, next: NONE });
    }

    /// Joins pairs for as long as `join` knows one, then yields what is left, in order.
    pub(crate) fn run(&mut self, join: impl Fn(&Symbol, &Symbol) -> Option<Join>) -> impl Iterator<Item = &Symbol> {
        for right in 1..self.symbols.len() as u32 {
            self.offer(right - 1, right, &join);
        }
        while let Some(Reverse(best)) = self.candidates.pop() {
            let (left, right) = (self.symbols[best.left as usize], self.symbols[best.right as usize]);
            if left.len == 0 || right.len == 0 || left.len + right.len != best.len {
                continue;
            }
            self.symbols[best.left as usize] = Symbol { len: best.len, token: best.token, next: right.next, ..left };
            self.symbols[best.right as usize].len = 0;
            if right.next != NONE {
                self.symbols[right.next as usize].previous = best.left;
            }
            self.offer(left.previous, best.left, &join);
            self.offer(best.left, right.next, &join);
        }
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    fn offer(&mut self, left: u32, right: u32, join: &impl Fn(&Symbol, &Symbol) -> Option<Join>) {
        if left == NONE || right == NONE {
            return;
        }
        let (l, r) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some(Join { priority, token }) = join(l, r) {
            let len = l.len + r.len;
            self.candidates.push(Reverse(Candidate { priority, left, right, len, token }));
        }
    }
}
