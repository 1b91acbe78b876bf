//! Values to pixels, and where ticks stand.

use super::canvas::units;
use crate::{figure::Unit, format};
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use std::ops::Range;

/// How values become pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from zero.
    Linear,
    /// By the logarithm.
    Logarithmic,
}

/// A scale over a range of values, with its ticks.
#[derive(Clone, Debug)]
pub(super) struct Fitted {
    scale: Scale,
    values: (f64, f64),
    /// Pixels that are left free at both ends.
    margin: f64,
    ticks: Vec<f64>,
}

/// Most ticks of an axis.
const TICKS_MAX: usize = 7;

impl Fitted {
    /// Fits a scale to values. A linear one begins at zero and ends at a round value; a logarithmic one leaves a little more. Ticks
    /// stand at round values, or where it is told.
    pub(super) fn new(scale: Scale, values: impl Iterator<Item = f64>, ticks: Option<&[f64]>, margin: f64) -> Self {
        let wanted = |value: &f64| value.is_finite() && (scale == Scale::Linear || *value > 0.0);
        let (low, high) = values
            .filter(wanted)
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        let values = match scale {
            Scale::Linear => {
                let step = round_step(if high > 0.0 { high } else { 1.0 });
                (0.0, (high / step - 1e-9).ceil().max(1.0) * step)
            }
            Scale::Logarithmic if low.is_finite() && high > low => {
                let margin = (high / low).powf(0.05);
                (low / margin, high * margin)
            }
            Scale::Logarithmic => {
                let middle = if low.is_finite() { low } else { 1.0 };
                (middle / 2.0, middle * 2.0)
            }
        };
        let ticks = ticks.map_or_else(|| round_ticks(scale, values), <[f64]>::to_vec);
        Self { scale, values, margin, ticks }
    }

    /// Where a value lies between the two ends, 0 to 1; what lies outside is drawn at the edge.
    fn part(&self, value: f64) -> f64 {
        let value = value.clamp(self.values.0, self.values.1);
        match self.scale {
            Scale::Linear => (value - self.values.0) / (self.values.1 - self.values.0),
            Scale::Logarithmic => (value / self.values.0).ln() / (self.values.1 / self.values.0).ln(),
        }
    }
}

impl Ranged for Fitted {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let margin = units(self.margin) * (last - first).signum();
        let (first, last) = (f64::from(first + margin), f64::from(last - margin));
        (first + self.part(*value) * (last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // There are no lines between ticks.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.values.0..self.values.1
    }
}

/// Round values within a range.
fn round_ticks(scale: Scale, (low, high): (f64, f64)) -> Vec<f64> {
    if scale == Scale::Linear {
        let step = round_step(high);
        return (0..=TICKS_MAX).map(|index| index as f64 * step).filter(|&tick| tick <= high * (1.0 + 1e-9)).collect();
    }
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let of = |parts: &[f64]| -> Vec<f64> {
        let all = decades.clone().flat_map(|decade| parts.iter().map(move |part| part * 10f64.powi(decade)));
        all.filter(|tick| (low..=high).contains(tick)).collect()
    };
    let candidates = [of(&[1.0, 2.0, 5.0]), of(&[1.0, 3.0]), of(&[1.0])];
    let fitting = candidates.into_iter().find(|ticks| ticks.len() <= TICKS_MAX);
    fitting.unwrap_or_else(|| of(&[1.0]))
}

/// A step of 1, 2 or 5 times a power of ten that divides a range into at most six.
fn round_step(range: f64) -> f64 {
    let rough = range / 6.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|part| part * power)
        .find(|&step| step >= rough * (1.0 - 1e-9))
        .unwrap_or(power)
}

/// A tick's text: as short as it can be.
pub(super) fn tick_text(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Share | Unit::Money => format::number(value, unit),
        _ => {
            let decimals = (0..6).find(|&decimals| (value * 10f64.powi(decimals)).fract().abs() < 1e-6).unwrap_or(6);
            format::grouped(value, decimals as usize)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_scales_begin_at_zero_and_end_round() {
        let scale = Fitted::new(Scale::Linear, [120.0, 470.0].into_iter(), None, 0.0);
        assert_eq!(scale.ticks, [0.0, 100.0, 200.0, 300.0, 400.0, 500.0]);
        assert_eq!([0.0, 250.0, 1e9].map(|value| scale.map(&value, (0, 1000))), [0, 500, 1000]);
        // Upwards, with 10 pixels free at both ends.
        let inset = Fitted { margin: 10.0, ..scale };
        assert_eq!([0.0, 250.0, 500.0].map(|value| inset.map(&value, (1000, 0))), [900, 500, 100]);
    }

    #[test]
    fn logarithmic_scales_have_few_round_ticks() {
        for (values, expected) in [
            (vec![30.0, 300.0], vec![50.0, 100.0, 200.0]),
            (vec![1.0, 900.0], vec![1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]),
        ] {
            let scale = Fitted::new(Scale::Logarithmic, values.into_iter(), None, 0.0);
            let found: Vec<f64> = scale.ticks.iter().map(|tick| tick.round()).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn no_values_are_no_reason_to_fail() {
        for scale in [Scale::Linear, Scale::Logarithmic] {
            let fitted = Fitted::new(scale, [f64::NAN, 0.0].into_iter(), None, 0.0);
            assert!(fitted.part(3.0).is_finite());
            assert!(fitted.ticks.iter().all(|tick| tick.is_finite()));
        }
    }
}
