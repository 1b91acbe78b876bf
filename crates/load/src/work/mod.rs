//! What requests ask: prompts and lengths, each a pure function of the seed and the request's number.

mod calibrate;
mod file;
mod lengths;
mod synthetic;

pub use calibrate::calibrate;
pub use file::{FileError, PromptFile};
pub use lengths::{Lengths, LengthsError};
pub use synthetic::{Calibration, FIRST_WORD, Synthetic, WORDS};

use crate::{openai::Prompt, random::Random};

/// One request's question.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// What is sent.
    pub prompt: Prompt,
    /// Its length in tokens as the server should count it, where that is known.
    pub prompt_tokens: Option<u32>,
    /// Most tokens of the answer.
    pub output_tokens_max: u32,
}

/// Where prompts come from.
#[derive(Clone, Debug)]
pub enum Prompts {
    /// Made to length.
    Synthetic(Synthetic),
    /// Read from a file.
    File(PromptFile),
}

/// All questions of a run.
#[derive(Clone, Debug)]
pub struct Work {
    /// Where prompts come from.
    pub prompts: Prompts,
    /// Lengths of the answers.
    pub output: Lengths,
    /// Everything random follows from it.
    pub seed: u64,
}

impl Work {
    /// The question of a number.
    pub fn item(&self, number: u64) -> Item {
        let mut random = Random::of_item(self.seed, number);
        let output_tokens_max = self.output.draw(&mut random);
        let (prompt, prompt_tokens) = match &self.prompts {
            Prompts::Synthetic(synthetic) => {
                let (prompt, tokens) = synthetic.prompt(self.seed, &mut random);
                (prompt, Some(tokens))
            }
            Prompts::File(file) => (file.prompt(self.seed, number), None),
        };
        Item { prompt, prompt_tokens, output_tokens_max }
    }
}
