//! Which tokens a sequence holds, counted, so that penalties touch only those.

use crate::TokenId;
use std::collections::HashMap;

/// The token counts of one sequence. Costs one hash lookup per [`push`](History::push); a sequence without penalties needs
/// only [`generated`](History::generated), so build it with [`counting`](History::counting)`(false, ..)`.
#[derive(Clone, Debug, Default)]
pub struct History {
    seen: Vec<Seen>,
    index: HashMap<TokenId, u32>,
    generated: u32,
    counting: bool,
}

/// One distinct token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub token: TokenId,
    /// How often it was generated.
    pub generated: u32,
}

impl History {
    /// A sequence that holds `prompt` and then `generated`, all counted.
    pub fn new(prompt: &[TokenId], generated: &[TokenId]) -> Self {
        Self::counting(true, prompt, generated)
    }

    /// As [`new`](History::new); without `counting` (when [`SamplingParams::uses_history`](crate::SamplingParams::uses_history)
    /// is false) only the number of generated tokens is kept.
    pub fn counting(counting: bool, prompt: &[TokenId], generated: &[TokenId]) -> Self {
        let mut history = Self { counting, ..Self::default() };
        if counting {
            for &token in prompt {
                history.entry(token);
            }
        }
        for &token in generated {
            history.push(token);
        }
        history
    }

    /// The sequence generated one more token.
    pub fn push(&mut self, token: TokenId) {
        self.generated += 1;
        if self.counting {
            self.entry(token).generated += 1;
        }
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> u32 {
        self.generated
    }

    /// Every distinct token of prompt and output, in order of first appearance.
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    fn entry(&mut self, token: TokenId) -> &mut Seen {
        let next = self.seen.len() as u32;
        let at = *self.index.entry(token).or_insert(next);
        if at == next {
            self.seen.push(Seen { token, generated: 0 });
        }
        &mut self.seen[at as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_prompt_and_output_apart() {
        let mut history = History::new(&[5, 7, 5], &[7]);
        history.push(9);
        history.push(9);
        assert_eq!(history.generated(), 3);
        let seen: Vec<_> = history.seen().iter().map(|s| (s.token, s.generated)).collect();
        assert_eq!(seen, [(5, 0), (7, 1), (9, 2)]);
        let mut bare = History::counting(false, &[5], &[]);
        bare.push(1);
        assert_eq!((bare.generated(), bare.seen().len()), (1, 0));
    }
}
