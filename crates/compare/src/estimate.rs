//! Intervals of plain shares and means.

use crate::student;

/// Wilson's interval of a share; all of 0 to 1 when there was nothing.
pub fn share_interval(count: u64, of: u64, confidence: f64) -> (f64, f64) {
    if of == 0 {
        return (0.0, 1.0);
    }
    let z = student::two_sided(confidence, u32::MAX);
    let (n, share) = (of as f64, count as f64 / of as f64);
    let middle = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let reach = z / (1.0 + z * z / n) * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    ((middle - reach).max(0.0).min(share), (middle + reach).min(1.0).max(share))
}

/// Student's interval of a mean of independent values; needs two.
pub fn mean_interval(values: &[f64], confidence: f64) -> Option<(f64, f64)> {
    let degrees = u32::try_from(values.len().checked_sub(1)?).unwrap_or(u32::MAX);
    if degrees == 0 {
        return None;
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / f64::from(degrees);
    let reach = student::two_sided(confidence, degrees) * (variance / count).sqrt();
    Some((mean - reach, mean + reach))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_books() {
        // Newcombe 1998: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
        for (count, of, low, high) in [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611)] {
            let found = share_interval(count, of, 0.95);
            assert!((found.0 - low).abs() < 2e-3 && (found.1 - high).abs() < 2e-3, "{found:?}");
        }
        assert_eq!(share_interval(0, 0, 0.95), (0.0, 1.0));
        // Mean 2, standard error 0.5774, t of two degrees 4.3027.
        let (low, high) = mean_interval(&[1.0, 2.0, 3.0], 0.95).unwrap();
        assert!((low + 0.4841).abs() < 1e-3 && (high - 4.4841).abs() < 1e-3);
        assert_eq!(mean_interval(&[1.0], 0.95), None);
    }
}
