//! A length in tokens, fixed or drawn.

use crate::random::Random;
use std::{fmt, fs::File, io::Read, str::FromStr, sync::Arc};

/// Longest length; beyond any model's context.
const TOKENS_MAX: u32 = 16 << 20;
/// Longest accepted file of lengths.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A distribution of lengths in tokens, each at least 1.
#[derive(Clone, Debug, PartialEq)]
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
    /// A log-normal distribution, rounded and cut to a range.
    LogNormal {
        /// Mean, of the lengths themselves.
        mean: f64,
        /// Standard deviation, likewise.
        deviation: f64,
        /// Shortest.
        min: u32,
        /// Longest.
        max: u32,
    },
    /// Lengths seen somewhere, each as likely as it stands in the file.
    Seen {
        /// The file: whole numbers, separated by white space or commas.
        path: String,
        /// The lengths.
        lengths: Arc<[u32]>,
    },
}

/// Why a text is no distribution of lengths.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{given}` is no length: {reason}; write 512, 128-1024, normal:MEAN:DEVIATION[:MIN:MAX], lognormal:MEAN:DEVIATION[:MIN:MAX] or \
     file:PATH, at most {TOKENS_MAX} tokens"
)]
pub struct LengthsError {
    given: String,
    reason: &'static str,
}

impl Lengths {
    /// The longest there can be.
    pub fn longest(&self) -> u32 {
        match *self {
            Self::Fixed(tokens) => tokens,
            Self::Uniform(_, max) | Self::Normal { max, .. } | Self::LogNormal { max, .. } => max,
            Self::Seen { ref lengths, .. } => lengths.iter().copied().max().unwrap_or(0),
        }
    }

    /// One length.
    pub fn draw(&self, random: &mut Random) -> u32 {
        let within = |value: f64, min: u32, max: u32| value.round().clamp(f64::from(min), f64::from(max)) as u32;
        match *self {
            Self::Fixed(tokens) => tokens,
            Self::Uniform(min, max) => min + random.below(u64::from(max - min) + 1) as u32,
            Self::Normal { mean, deviation, min, max } => within(mean + deviation * random.normal(), min, max),
            Self::LogNormal { mean, deviation, min, max } => {
                let variance = (deviation / mean).powi(2).ln_1p();
                within((mean.ln() - variance / 2.0 + variance.sqrt() * random.normal()).exp(), min, max)
            }
            Self::Seen { ref lengths, .. } => lengths[random.below(lengths.len() as u64) as usize],
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
        if let Some(path) = given.strip_prefix("file:") {
            let lengths = read(path).map_err(error)?;
            return Ok(Self::Seen { path: path.to_owned(), lengths });
        }
        let log = given.starts_with("lognormal:");
        if let Some(rest) = given.strip_prefix("normal:").or_else(|| given.strip_prefix("lognormal:")) {
            let parts: Vec<&str> = rest.split(':').collect();
            let number = |text: &str| {
                let number = text.trim().parse::<f64>().map_err(|_| error("not a number"))?;
                if number.is_finite() && number >= 0.0 { Ok(number) } else { Err(error("out of range")) }
            };
            let (min, max) = match parts[..] {
                [_, _] => (1, TOKENS_MAX),
                [_, _, min, max] => (tokens(min)?, tokens(max)?),
                _ => return Err(error("a normal distribution takes two or four numbers")),
            };
            if min > max {
                return Err(error("the shortest is longer than the longest"));
            }
            let (mean, deviation) = (number(parts[0])?, number(parts[1])?);
            if log && mean == 0.0 {
                return Err(error("out of range"));
            }
            return Ok(match log {
                true => Self::LogNormal { mean, deviation, min, max },
                false => Self::Normal { mean, deviation, min, max },
            });
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

fn read(path: &str) -> Result<Arc<[u32]>, &'static str> {
    let mut text = String::new();
    let file = File::open(path).map_err(|_| "the file cannot be opened")?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|_| "the file cannot be read as text")?;
    let words =
        text.split(|character: char| character.is_whitespace() || character == ',').filter(|word| !word.is_empty());
    let lengths: Option<Vec<u32>> =
        words.map(|word| word.parse().ok().filter(|tokens| (1..=TOKENS_MAX).contains(tokens))).collect();
    match lengths {
        Some(lengths) if !lengths.is_empty() => Ok(lengths.into()),
        Some(_) => Err("the file holds no lengths"),
        None => Err("the file holds something that is no length"),
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(tokens) => write!(formatter, "{tokens}"),
            Self::Uniform(min, max) => write!(formatter, "{min}-{max}"),
            Self::Normal { mean, deviation, min, max } => write!(formatter, "normal:{mean}:{deviation}:{min}:{max}"),
            Self::LogNormal { mean, deviation, min, max } => {
                write!(formatter, "lognormal:{mean}:{deviation}:{min}:{max}")
            }
            Self::Seen { path, .. } => write!(formatter, "file:{path}"),
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
            ("lognormal:200:20:1:16777216", 1, 1000, 200.0),
            ("lognormal:50:30:1:1000", 1, 1000, 50.0),
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
    fn lengths_seen_are_drawn_as_often_as_they_were() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "10, 10\n10\n400\n").unwrap();
        let given = format!("file:{}", file.path().display());
        let lengths: Lengths = given.parse().unwrap();
        assert_eq!(lengths.to_string(), given);
        let mut random = Random::new(4);
        let long = (0..10_000).filter(|_| lengths.draw(&mut random) == 400).count();
        assert!((2300..2700).contains(&long), "{long} of 10000");
        for (text, reason) in [("", "no lengths"), ("1 0", "no length"), ("a", "no length")] {
            std::fs::write(file.path(), text).unwrap();
            let error = given.parse::<Lengths>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!("file:nothing-here".parse::<Lengths>().unwrap_err().to_string().contains("opened"));
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
