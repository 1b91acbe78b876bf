//! Numbers as text: as many digits as a reader can use, grouped by thousands.

use crate::figure::Unit;

/// A number in its unit, without the unit's name (a percent sign and a times sign belong to the number).
pub(crate) fn number(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Count => grouped(value, 0),
        Unit::Share => format!("{}\u{202f}%", significant(value * 100.0, 3)),
        Unit::Change => {
            let sign = if value < 0.0 { "−" } else { "+" };
            format!("{sign}{}\u{202f}%", significant((value * 100.0).abs(), 3))
        }
        Unit::Ratio => format!("{}×", significant(value, 3)),
        Unit::Money if value.abs() >= 1.0 || value == 0.0 => grouped(value, if value.abs() < 10_000.0 { 2 } else { 0 }),
        _ => significant(value, 3),
    }
}

/// At least so many significant digits; never fewer than the whole part has.
pub(crate) fn significant(value: f64, digits: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".to_owned() } else { "—".to_owned() };
    }
    let magnitude = value.abs().log10().floor() as i32;
    let mut decimals = (digits - 1 - magnitude).clamp(0, 9);
    // 9.996 rounds to 10.00: one digit too many.
    let rounded = (value.abs() * 10f64.powi(decimals)).round() / 10f64.powi(decimals);
    if rounded > 0.0 && rounded.log10().floor() as i32 > magnitude {
        decimals = (decimals - 1).max(0);
    }
    grouped(value, decimals as usize)
}

/// With commas between thousands.
pub(crate) fn grouped(value: f64, decimals: usize) -> String {
    let plain = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = plain.split_once('.').map_or((plain.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let mut text = String::new();
    let is_zero = plain.bytes().all(|byte| matches!(byte, b'0' | b'.'));
    if value < 0.0 && !is_zero {
        text.push('−');
    }
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if let Some(fraction) = fraction {
        text.push('.');
        text.push_str(fraction);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_a_reader_can_use() {
        for (value, unit, expected) in [
            (0.0, Unit::Milliseconds, "0"),
            (0.012_345, Unit::Milliseconds, "0.0123"),
            (9.996, Unit::Milliseconds, "10.0"),
            (12.34, Unit::Milliseconds, "12.3"),
            (123.4, Unit::Milliseconds, "123"),
            (12_345.6, Unit::TokensPerSecond, "12,346"),
            (1_000_000.0, Unit::Count, "1,000,000"),
            (0.123_4, Unit::Share, "12.3\u{202f}%"),
            (-0.05, Unit::Change, "−5.00\u{202f}%"),
            (1.5, Unit::Ratio, "1.50×"),
            (1234.5, Unit::Money, "1,234.50"),
            (0.123_45, Unit::Money, "0.123"),
            (-0.001, Unit::Count, "0"),
            (f64::NAN, Unit::Plain, "—"),
        ] {
            assert_eq!(number(value, unit), expected, "{value} {unit:?}");
        }
    }
}
