//! A length in tokens, fixed or drawn.

use crate::random::Random;
use std::{fmt, str::FromStr};

/// Longest length; beyond any model's context.
const TOKENS_MAX: u32 = 16 << 20;

/// A distribution of lengths in tokens, each at least 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lengths {
    /// Always the same.
    Fixed(u32),
    /// Every length of a range, ends included, alike.
    Uniform(u32, u32),
    /// A normal distribution, rounded and cut to a range.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        deviation: f64,
        /// Shortest.
        min: u32,
        /// Longest.
        max: u32,
    },
}

/// Why a text is no distribution of lengths.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{given}` is no length: {reason}; write 512, 128-1024, or normal:MEAN:DEVIATION[:MIN:MAX], at most {TOKENS_MAX}"
)]
pub struct LengthsError {
    given: String,
    reason: &'static str,
}

impl Lengths {
    /// One length.
    pub fn draw(&self, random: &mut Random) -> u32 {
        match *self {
            Self::Fixed(tokens) => tokens,
            Self::Uniform(min, max) => min + random.below(u64::from(max - min) + 1) as u32,
            Self::Normal { mean, deviation, min, max } => {
                (mean + deviation * random.normal()).round().clamp(f64::from(min), f64::from(max)) as u32
            }
        }
    }
}

impl FromStr for Lengths {
    type Err = LengthsError;

    fn from_str(given: &str) -> Result<Self, LengthsError> {
        let error = |reason| LengthsError { given: given.to_owned(), reason };
        let tokens = |text: &str| {
            let tokens = text.trim().parse::<u32>().map_err(|_| error("not a whole number"))?;
            if (1..=TOKENS_MAX).contains(&tokens) { Ok(tokens) } else { Err(error("out of range")) }
        };
        if let Some(rest) = given.strip_prefix("normal:") {
            let parts: Vec<&str> = rest.split(':').collect();
            let number = |text: &str| {
                let number = text.trim().parse::<f64>().map_err(|_| error("not a number"))?;
                if number.is_finite() && number >= 0.0 { Ok(number) } else { Err(error("out of range")) }
            };
            let (min, max) = match parts[..] {
                [_, _] => (1, TOKENS_MAX),
                [_, _, min, max] => (tokens(min)?, tokens(max)?),
                _ => return Err(error("normal takes two or four numbers")),
            };
            if min > max {
                return Err(error("the shortest is longer than the longest"));
            }
            return Ok(Self::Normal { mean: number(parts[0])?, deviation: number(parts[1])?, min, max });
        }
        match given.split_once('-') {
            None => Ok(Self::Fixed(tokens(given)?)),
            Some((min, max)) => {
                let (min, max) = (tokens(min)?, tokens(max)?);
                if min <= max {
                    Ok(Self::Uniform(min, max))
                } else {
                    Err(error("the shortest is longer than the longest"))
                }
            }
        }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(tokens) => write!(formatter, "{tokens}"),
            Self::Uniform(min, max) => write!(formatter, "{min}-{max}"),
            Self::Normal { mean, deviation, min, max } => write!(formatter, "normal:{mean}:{deviation}:{min}:{max}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_written_and_drawn_within_their_range() {
        for (given, min, max, mean) in [
            ("512", 512, 512, 512.0),
            ("100-300", 100, 300, 200.0),
            ("normal:200:20:1:1000", 100, 300, 200.0),
            ("normal:200:500:50:60", 50, 60, 56.2),
        ] {
            let lengths: Lengths = given.parse().unwrap();
            assert_eq!(lengths.to_string(), given);
            let mut random = Random::new(3);
            let drawn: Vec<u32> = (0..20_000).map(|_| lengths.draw(&mut random)).collect();
            assert!(drawn.iter().all(|tokens| (min..=max).contains(tokens)), "{given}");
            let got = drawn.iter().map(|&tokens| f64::from(tokens)).sum::<f64>() / drawn.len() as f64;
            assert!((got - mean).abs() < 1.0, "{given}: mean {got}");
        }
    }

    #[test]
    fn bad_lengths_say_why() {
        for (given, reason) in [
            ("0", "out of range"),
            ("99999999", "out of range"),
            ("x", "whole number"),
            ("5-2", "longer"),
            ("normal:5", "two or four"),
            ("normal:5:nan", "out of range"),
            ("normal:5:1:9:2", "longer"),
        ] {
            let error = given.parse::<Lengths>().unwrap_err().to_string();
            assert!(error.contains(reason), "{given}: {error}");
        }
    }
}
