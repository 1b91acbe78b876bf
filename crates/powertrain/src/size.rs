//! [`Bytes`]: amounts of memory as people write and read them.

use std::{fmt, str::FromStr};

/// An amount of memory. Reads `4GiB`, `4G` (both binary), `4GB` (decimal), `1.5GiB`, `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) u64);

const UNITS: [(&str, u64); 5] =
    [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("PiB", 1 << 50)];

impl fmt::Display for Bytes {
    /// Three digits at most: `512 B`, `93.8 MiB`, `3.00 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((unit, factor)) = UNITS.iter().rev().find(|(_, factor)| self.0 >= *factor) else {
            return write!(f, "{} B", self.0);
        };
        let value = self.0 as f64 / *factor as f64;
        let decimals = if value < 9.995 {
            2
        } else if value < 99.95 {
            1
        } else {
            0
        };
        write!(f, "{value:.decimals$} {unit}")
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor =
            factor(unit.trim()).ok_or_else(|| format!("{unit:?} is not a unit; use KiB, MiB, GiB, or bytes"))?;
        let number: f64 =
            number.parse().map_err(|_| format!("{text:?} is not an amount; write it as 4GiB or 512MiB"))?;
        let bytes = number * factor as f64;
        if bytes >= 2f64.powi(63) {
            return Err(format!("{text} is more than any machine has"));
        }
        Ok(Self(bytes as u64))
    }
}

fn factor(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let power = match unit.chars().next() {
        None | Some('b') => 0,
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some(_) => return None,
    };
    match unit.get(1..).unwrap_or("") {
        "" | "i" | "ib" => Some(1 << (10 * power)),
        "b" if power > 0 => Some(1000_u64.pow(power)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("4096", 4096),
            ("0", 0),
            ("7b", 7),
            ("4GiB", 4 << 30),
            ("4g", 4 << 30),
            ("1.5 GiB", 3 << 29),
            ("2GB", 2_000_000_000),
            ("512MiB", 512 << 20),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "GiB", "4 parsecs", "-1", "1.2.3", "99999999T", "4bb"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn shows_three_digits() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1 << 20, "1.00 MiB"), (98_362_432, "93.8 MiB"), (u64::MAX, "16384 PiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
