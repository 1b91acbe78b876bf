//! Counts tokens over the choices of one response.

use powertrain_protocol::Usage;
use powertrain_step::TokenId;
use std::sync::Arc;

/// Which choices there are, and how many tokens each has.
pub(crate) struct Tally {
    prompt_tokens: Vec<u32>,
    n: usize,
    generated: Vec<u32>,
    cached: Vec<u32>,
}

impl Tally {
    /// `n` choices for each prompt.
    pub(crate) fn new(prompts: &[Arc<[TokenId]>], n: u32) -> Self {
        let choices = prompts.len() * n as usize;
        Self {
            prompt_tokens: prompts.iter().map(|prompt| prompt.len() as u32).collect(),
            n: n as usize,
            generated: vec![0; choices],
            cached: vec![0; choices],
        }
    }

    /// A choice stands here now.
    pub(crate) fn note(&mut self, index: u32, generated: u32, cached: u32) {
        self.generated[index as usize] = generated;
        self.cached[index as usize] = cached;
    }

    /// Of one choice.
    pub(crate) fn choice(&self, index: u32) -> Usage {
        let index = index as usize;
        Usage::new(self.prompt_tokens[index / self.n], self.cached[index], self.generated[index])
    }

    /// Of all: a prompt counts once, and so do its cached tokens, as its first choice found them; the others share its
    /// blocks anyway.
    pub(crate) fn total(&self) -> Usage {
        let cached = self.cached.iter().step_by(self.n).sum();
        Usage::new(self.prompt_tokens.iter().sum(), cached, self.generated.iter().sum())
    }
}
