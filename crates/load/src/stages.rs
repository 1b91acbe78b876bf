//! A quantity that changes by stages: a rate of requests, or a number of clients.

use crate::record::Nanos;
use std::{fmt, str::FromStr, sync::Arc, time::Duration};

/// Most stages.
const STAGES_MAX: usize = 1000;
/// Highest value of a stage.
const VALUE_MAX: f64 = 1e6;
/// Longest stage.
const SECONDS_MAX: f64 = 7.0 * 86_400.0;

/// One stage: the value goes in a straight line from one to the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// How long it lasts.
    pub duration: Duration,
    /// At its beginning.
    pub from: f64,
    /// At its end.
    pub to: f64,
}

/// Stages one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Stages(Arc<[Stage]>);

/// Why a text describes no stages.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{given}` is no list of stages: {reason}; write DURATION:VALUE or DURATION:FROM-TO with commas between, e.g. 30s:10,1m:10-50, \
     values up to {VALUE_MAX}, at most {STAGES_MAX} stages"
)]
pub struct StagesError {
    given: String,
    reason: &'static str,
}

impl Stages {
    /// The stages, in order.
    pub fn list(&self) -> &[Stage] {
        &self.0
    }

    /// How long all of them last.
    pub fn duration(&self) -> Duration {
        self.0.iter().map(|stage| stage.duration).sum()
    }

    /// The highest value.
    pub fn max(&self) -> f64 {
        self.0.iter().map(|stage| stage.from.max(stage.to)).fold(0.0, f64::max)
    }

    /// The time at which the integral of the value has grown to `area`; none where it never does.
    pub fn when(&self, mut area: f64) -> Option<Nanos> {
        let mut begin = 0.0;
        for stage in self.0.iter() {
            let seconds = stage.duration.as_secs_f64();
            let whole = (stage.from + stage.to) / 2.0 * seconds;
            if area < whole {
                let slope = (stage.to - stage.from) / seconds;
                // from t + slope t² / 2 = area, in the form that does not cancel.
                let root = (stage.from * stage.from + 2.0 * slope * area).max(0.0).sqrt();
                let within = if area == 0.0 { 0.0 } else { 2.0 * area / (stage.from + root) };
                return Some(((begin + within.min(seconds)) * 1e9) as Nanos);
            }
            area -= whole;
            begin += seconds;
        }
        None
    }

    /// The first time from `time` on at which the value is above `level`; none when it stays below.
    pub fn next_above(&self, level: f64, time: Nanos) -> Option<Nanos> {
        let mut begin = 0.0;
        let time = time as f64 / 1e9;
        for stage in self.0.iter() {
            let seconds = stage.duration.as_secs_f64();
            let start = (time - begin).max(0.0);
            if start < seconds {
                let value = stage.from + (stage.to - stage.from) * start / seconds;
                if value > level {
                    return Some(((begin + start) * 1e9) as Nanos);
                }
                if stage.to > level {
                    // It rises through the level; a little later it is above.
                    let crossing = (level - stage.from) / (stage.to - stage.from) * seconds;
                    return Some(((begin + crossing.max(start)) * 1e9) as Nanos + 1);
                }
            }
            begin += seconds;
        }
        None
    }
}

impl FromStr for Stages {
    type Err = StagesError;

    fn from_str(given: &str) -> Result<Self, StagesError> {
        let error = |reason| StagesError { given: given.to_owned(), reason };
        let value = |text: &str| {
            let value: f64 = text.trim().parse().map_err(|_| error("a value is no number"))?;
            if (0.0..=VALUE_MAX).contains(&value) { Ok(value) } else { Err(error("a value is out of range")) }
        };
        let mut stages = Vec::new();
        for part in given.split(',') {
            let (duration, values) = part.split_once(':').ok_or_else(|| error("a stage has no colon"))?;
            let seconds = seconds(duration.trim()).ok_or_else(|| error("a duration is not like 30s, 5m or 1h"))?;
            if !(1e-3..=SECONDS_MAX).contains(&seconds) {
                return Err(error("a stage lasts less than a millisecond or more than a week"));
            }
            let (from, to) = values.split_once('-').unwrap_or((values, values));
            stages.push(Stage { duration: Duration::from_secs_f64(seconds), from: value(from)?, to: value(to)? });
        }
        if stages.len() > STAGES_MAX {
            return Err(error("too many stages"));
        }
        let stages = Self(stages.into());
        if stages.max() > 0.0 { Ok(stages) } else { Err(error("nothing is ever offered")) }
    }
}

/// A time as people write it: `90`, `90s`, `1.5m`, `2h`, `250ms`.
pub fn seconds(text: &str) -> Option<f64> {
    let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let (number, unit) =
        units.iter().find_map(|&(name, unit)| Some((text.strip_suffix(name)?, unit))).unwrap_or((text, 1.0));
    let seconds: f64 = number.trim().parse::<f64>().ok()? * unit;
    (seconds.is_finite() && seconds >= 0.0).then_some(seconds)
}

impl fmt::Display for Stages {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, Stage { duration, from, to }) in self.0.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            let seconds = duration.as_secs_f64();
            match from == to {
                true => write!(formatter, "{comma}{seconds}s:{from}")?,
                false => write!(formatter, "{comma}{seconds}s:{from}-{to}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Nanos = 1_000_000_000;

    fn stages(text: &str) -> Stages {
        text.parse().unwrap()
    }

    #[test]
    fn stages_are_read_and_written() {
        for (given, written) in
            [("30s:10,1m:10-50", "30s:10,60s:10-50"), ("0.5h:0-1", "1800s:0-1"), ("250ms:3", "0.25s:3")]
        {
            assert_eq!(stages(given).to_string(), written);
            assert_eq!(stages(written), stages(given));
        }
        for (given, reason) in [
            ("10", "no colon"),
            ("x:1", "duration"),
            ("1s:x", "no number"),
            ("1s:-1", "no number"),
            ("1s:2e6", "range"),
            ("0s:1", "millisecond"),
            ("1s:0", "nothing"),
        ] {
            let error = given.parse::<Stages>().unwrap_err().to_string();
            assert!(error.contains(reason), "{given}: {error}");
        }
    }

    #[test]
    fn the_integral_is_inverted() {
        // 20 in the first 2 s, then 10 s from 10 up to 50: 300.
        let stages = stages("2s:10,10s:10-50");
        for (area, expected) in [(0.0, 0.0), (5.0, 0.5), (20.0, 2.0), (20.0 + 10.0 * 5.0 + 50.0, 7.0)] {
            let found = stages.when(area).unwrap() as f64 / 1e9;
            assert!((found - expected).abs() < 1e-6, "{area}: {found}");
        }
        assert_eq!(stages.when(320.0), None);
        // A pause passes in no time; a rise from nothing begins slowly.
        let stages = self::stages("1s:2,3s:0,2s:0-4");
        assert_eq!(stages.when(2.0).map(|at| at / S), Some(4));
        let found = stages.when(3.0).unwrap() as f64 / 1e9;
        assert!((found - (4.0 + 1.0)).abs() < 1e-6, "{found}");
    }

    #[test]
    fn clients_come_and_go_with_the_value() {
        let stages = stages("10s:0-10,10s:10,10s:10-0,10s:4");
        assert_eq!(stages.next_above(0.0, 0), Some(1));
        assert_eq!(stages.next_above(4.0, 0), Some(4 * S + 1));
        assert_eq!(stages.next_above(4.0, 12 * S), Some(12 * S));
        assert_eq!(stages.next_above(4.0, 26 * S), None);
        assert_eq!(stages.next_above(3.0, 28 * S), Some(30 * S));
        assert_eq!(stages.next_above(10.0, 0), None);
        assert_eq!(stages.next_above(0.0, 40 * S), None);
    }
}
