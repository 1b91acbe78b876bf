//! Conversations of several turns, with pauses in which somebody thinks.

use super::{Lengths, Prompts, Work};
use crate::{openai::Prompt, random::Random};
use std::{fmt, str::FromStr, time::Duration};

/// Longest pause.
const SECONDS_MAX: f64 = 86_400.0;
/// Most turns.
pub const TURNS_MAX: u32 = 1000;

/// How conversations go.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversations {
    /// Turns of each, at most as many as a file has.
    pub turns: Lengths,
    /// From the end of an answer to the next question.
    pub think: Pause,
}

/// A time, fixed or drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pause {
    /// Always the same, in seconds.
    Fixed(f64),
    /// Any of a range alike, in seconds.
    Uniform(f64, f64),
    /// Exponentially distributed, with this mean in seconds.
    Exponential(f64),
}

/// Why a text is no pause.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no pause: write seconds as 2, 1-5 or exponential:3, at most {SECONDS_MAX}")]
pub struct PauseError(String);

/// A turn after the first.
#[derive(Clone, Debug, PartialEq)]
pub struct LaterTurn {
    /// What is said.
    pub text: String,
    /// Most tokens of the answer.
    pub output_tokens_max: u32,
    /// Passes before it is said.
    pub think: Duration,
}

impl Pause {
    /// One pause.
    pub fn draw(self, random: &mut Random) -> Duration {
        let seconds = match self {
            Self::Fixed(seconds) => seconds,
            Self::Uniform(min, max) => min + (max - min) * random.uniform(),
            Self::Exponential(mean) => mean * random.exponential(),
        };
        Duration::from_secs_f64(seconds.min(SECONDS_MAX))
    }
}

impl FromStr for Pause {
    type Err = PauseError;

    fn from_str(given: &str) -> Result<Self, PauseError> {
        let error = || PauseError(given.to_owned());
        let seconds = |text: &str| {
            let seconds = text.trim().parse::<f64>().map_err(|_| error())?;
            if (0.0..=SECONDS_MAX).contains(&seconds) { Ok(seconds) } else { Err(error()) }
        };
        if let Some(mean) = given.strip_prefix("exponential:") {
            return Ok(Self::Exponential(seconds(mean)?));
        }
        match given.split_once('-') {
            None => Ok(Self::Fixed(seconds(given)?)),
            Some((min, max)) => {
                let (min, max) = (seconds(min)?, seconds(max)?);
                if min <= max { Ok(Self::Uniform(min, max)) } else { Err(error()) }
            }
        }
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(seconds) => write!(formatter, "{seconds}"),
            Self::Uniform(min, max) => write!(formatter, "{min}-{max}"),
            Self::Exponential(mean) => write!(formatter, "exponential:{mean}"),
        }
    }
}

impl Work {
    /// The turns of a number's conversation after its first question.
    pub fn later_turns(&self, number: u64) -> Vec<LaterTurn> {
        let Some(conversations) = &self.conversations else { return Vec::new() };
        // A family of its own: the first turns stay what they are without later ones.
        let mut random = Random::of_item(self.seed.wrapping_add(3), number);
        let turns = conversations.turns.draw(&mut random).min(TURNS_MAX);
        let mut later = Vec::new();
        for turn in 1..turns {
            let text = match &self.prompts {
                Prompts::Synthetic(synthetic) => match synthetic.words(&mut random) {
                    Prompt::Text(text) => text,
                    Prompt::Messages(_) | Prompt::Tokens(_) => break,
                },
                Prompts::File(file) => match file.later_turn(self.seed, number, turn as usize) {
                    Some(text) => text,
                    None => break,
                },
                Prompts::Trace { .. } => break,
            };
            let output_tokens_max = self.output.draw(&mut random);
            later.push(LaterTurn { text, output_tokens_max, think: conversations.think.draw(&mut random) });
        }
        later
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_read_written_and_drawn() {
        for (given, mean) in [("2", 2.0), ("1-5", 3.0), ("exponential:3", 3.0)] {
            let pause: Pause = given.parse().unwrap();
            assert_eq!(pause.to_string(), given);
            let mut random = Random::new(8);
            let sum: f64 = (0..20_000).map(|_| pause.draw(&mut random).as_secs_f64()).sum();
            assert!((sum / 20_000.0 - mean).abs() < 0.1, "{given}");
        }
        for bad in ["x", "-1", "5-1", "1e9", "exponential:"] {
            assert!(bad.parse::<Pause>().unwrap_err().to_string().contains("exponential:3"), "{bad}");
        }
    }
}
