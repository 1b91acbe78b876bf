//! What requests ask: prompts and lengths, each a pure function of the seed and the request's number.

mod calibrate;
mod conversation;
mod file;
mod lengths;
mod synthetic;
mod trace;

pub use calibrate::calibrate;
pub use conversation::{Conversations, LaterTurn, Pause, PauseError, TURNS_MAX};
pub use file::{FileError, PromptFile};
pub use lengths::{Lengths, LengthsError};
pub use synthetic::{Calibration, FIRST_WORD, Synthetic, WORDS};
pub use trace::{BLOCK_TOKENS, Replay, Trace, TraceError, TraceRequest};

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
    /// As long as those of a trace, and alike where those were.
    Trace {
        /// The lengths and blocks.
        trace: Trace,
        /// What tokens are made of.
        calibration: Calibration,
    },
}

/// All questions of a run.
#[derive(Clone, Debug)]
pub struct Work {
    /// Where prompts come from.
    pub prompts: Prompts,
    /// Lengths of the answers; a trace has its own.
    pub output: Lengths,
    /// Conversations of several turns.
    pub conversations: Option<Conversations>,
    /// Everything random follows from it.
    pub seed: u64,
}

impl Work {
    /// The first, or only, question of a number.
    pub fn item(&self, number: u64) -> Item {
        let mut random = Random::of_item(self.seed, number);
        let output_tokens_max = self.output.draw(&mut random);
        let (prompt, prompt_tokens) = match &self.prompts {
            Prompts::Synthetic(synthetic) => {
                let (prompt, tokens) = synthetic.prompt(self.seed, &mut random);
                (prompt, Some(tokens))
            }
            Prompts::File(file) => (file.prompt(self.seed, number), None),
            Prompts::Trace { trace, calibration } => {
                let request = trace.request(number);
                let (prompt, prompt_tokens) = match &request.prompt {
                    Some(text) => (Prompt::Text(text.clone()), None),
                    None => {
                        let (prompt, tokens) = calibration.blocks(request, self.seed, &mut random);
                        (prompt, Some(tokens))
                    }
                };
                return Item { prompt, prompt_tokens, output_tokens_max: request.output_tokens };
            }
        };
        Item { prompt, prompt_tokens, output_tokens_max }
    }
}
