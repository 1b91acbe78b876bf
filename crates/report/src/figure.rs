//! A number as it is shown: its value, where it was read or what it was computed from, and what is wrong with the run it
//! was measured in. A number that is no `Figure` does not get into a report.

use crate::format;
use serde::{Serialize, Serializer, ser::SerializeStruct};
use std::collections::BTreeSet;

/// A number with its unit, its 95 % interval where it has one, its origin and its marks.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// In the unit's own scale: a share is 0 to 1, however it is printed.
    pub value: f64,
    /// Lower and upper end of the 95 % interval.
    pub interval: Option<(f64, f64)>,
    /// What it counts.
    pub unit: Unit,
    /// Where it comes from.
    pub origin: Origin,
    /// What a reader must know before believing it.
    pub marks: Marks,
}

/// What a number counts; decides how it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Whole things.
    Count,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Tokens per second.
    TokensPerSecond,
    /// Requests per second.
    RequestsPerSecond,
    /// Part of a whole, printed in percent.
    Share,
    /// A difference as part of the first value, printed in percent with its sign.
    Change,
    /// So many times.
    Ratio,
    /// 2^20 bytes.
    Mebibytes,
    /// In the scenario's currency.
    Money,
    /// Watts.
    Watts,
    /// Joules.
    Joules,
    /// Millions of a second.
    Megahertz,
    /// Degrees.
    Celsius,
    /// 2^30 bytes.
    Gibibytes,
    /// Months.
    Months,
    /// A number without a unit.
    Plain,
}

/// Where a number comes from: the places it was read, and the rule that made one number of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// How it was computed; none for a number that stands in a file as it is.
    pub rule: Option<String>,
    /// `DOCUMENT#/json/pointer` of each number that went in.
    pub leaves: BTreeSet<String>,
}

/// What a reader must know of the run behind a number. A computed number has the marks of all it was computed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Marks {
    /// The client, not the server, may have set the limit.
    pub client_limited: bool,
    /// The user ended the level before its time.
    pub interrupted: bool,
    /// Tokens were counted by chunks, because the server did not count them.
    pub estimated: bool,
}

impl Marks {
    /// The marks of both.
    pub fn and(self, other: Self) -> Self {
        Self {
            client_limited: self.client_limited || other.client_limited,
            interrupted: self.interrupted || other.interrupted,
            estimated: self.estimated || other.estimated,
        }
    }

    /// The sign printed after the number.
    pub fn sign(self) -> String {
        [(self.client_limited, "†"), (self.interrupted, "‡"), (self.estimated, "≈")]
            .into_iter()
            .filter_map(|(set, sign)| set.then_some(sign))
            .collect()
    }
}

impl Figure {
    /// A number that stands in a document.
    pub fn read(value: f64, unit: Unit, document: &str, pointer: &str) -> Self {
        let leaves = BTreeSet::from([format!("{document}#{pointer}")]);
        Self { value, interval: None, unit, origin: Origin { rule: None, leaves }, marks: Marks::default() }
    }

    /// A number computed from others by a rule that can be said in a few words.
    pub fn computed(value: f64, unit: Unit, rule: impl Into<String>, from: &[&Figure]) -> Self {
        let mut leaves = BTreeSet::new();
        let mut marks = Marks::default();
        for figure in from {
            leaves.extend(figure.origin.leaves.iter().cloned());
            marks = marks.and(figure.marks);
        }
        Self { value, interval: None, unit, origin: Origin { rule: Some(rule.into()), leaves }, marks }
    }

    /// The same with an interval.
    pub fn within(mut self, interval: Option<(f64, f64)>) -> Self {
        self.interval = interval.filter(|(low, high)| low.is_finite() && high.is_finite() && low <= high);
        self
    }

    /// The same with further marks.
    pub fn marked(mut self, marks: Marks) -> Self {
        self.marks = self.marks.and(marks);
        self
    }

    /// The number without its unit.
    pub fn text(&self) -> String {
        format::number(self.value, self.unit)
    }

    /// The number with its unit, as in a sentence.
    pub fn with_unit(&self) -> String {
        let suffix = self.unit.suffix();
        if suffix.is_empty() { self.text() } else { format!("{}\u{202f}{suffix}", self.text()) }
    }

    /// `low – high`, in the number's own unit; none where both would be printed alike, which says nothing.
    pub fn interval_text(&self) -> Option<String> {
        let (low, high) = self.interval?;
        let (low, high) = (format::number(low, self.unit), format::number(high, self.unit));
        (low != high).then(|| format!("{low} – {high}"))
    }
}

impl Unit {
    /// What is printed after the number in a sentence.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::TokensPerSecond => "tok/s",
            Self::RequestsPerSecond => "req/s",
            Self::Mebibytes => "MiB",
            Self::Watts => "W",
            Self::Joules => "J",
            Self::Megahertz => "MHz",
            Self::Celsius => "°C",
            Self::Gibibytes => "GiB",
            Self::Months => "months",
            // Their text has the sign already, or the sentence says what they count.
            Self::Count | Self::Share | Self::Change | Self::Ratio | Self::Money | Self::Plain => "",
        }
    }
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_struct("Figure", 8)?;
        map.serialize_field("value", &self.value)?;
        map.serialize_field("text", &self.text())?;
        map.serialize_field("suffix", self.unit.suffix())?;
        map.serialize_field("full", &self.with_unit())?;
        map.serialize_field("interval", &self.interval_text())?;
        map.serialize_field("rule", &self.origin.rule)?;
        map.serialize_field("from", &self.origin.leaves.iter().cloned().collect::<Vec<_>>().join(" "))?;
        map.serialize_field("sign", &self.marks.sign())?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_computed_number_keeps_all_origins_and_marks() {
        let limited = Marks { client_limited: true, ..Marks::default() };
        let before = Figure::read(200.0, Unit::TokensPerSecond, "B1", "/a");
        let after = Figure::read(300.0, Unit::TokensPerSecond, "A1", "/a").marked(limited);
        let ratio = Figure::computed(after.value / before.value, Unit::Ratio, "after / before", &[&after, &before]);
        assert_eq!(ratio.origin.leaves.iter().collect::<Vec<_>>(), ["A1#/a", "B1#/a"]);
        assert_eq!(ratio.marks, limited);
        assert_eq!(ratio.marks.sign(), "†");
        assert_eq!(ratio.with_unit(), "1.50×");
    }

    #[test]
    fn an_interval_that_is_none_is_not_shown() {
        let figure = Figure::read(1.0, Unit::Plain, "B1", "/a");
        assert_eq!(figure.clone().within(Some((2.0, 1.0))).interval, None);
        assert_eq!(figure.clone().within(Some((f64::NAN, 1.0))).interval, None);
        let watts = Figure { unit: Unit::Watts, ..figure };
        assert_eq!(watts.clone().within(Some((699.8, 700.1))).interval_text(), None);
        assert_eq!(watts.within(Some((698.0, 700.1))).interval_text().as_deref(), Some("698 – 700"));
    }
}
