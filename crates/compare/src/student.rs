//! Points of Student's t.

/// Beyond so many degrees of freedom the distribution is taken as that of so many: the error is below 1 %, to the safe side.
const DEGREES_MAX: u32 = 200;

/// The point that `|t|` stays below with this probability.
///
/// # Panics
/// When `probability` is not within (0, 1) or there is no degree of freedom.
pub(crate) fn two_sided(probability: f64, degrees: u32) -> f64 {
    assert!(probability > 0.0 && probability < 1.0 && degrees > 0, "no such point: {probability}, {degrees}");
    let degrees = degrees.min(DEGREES_MAX);
    let (mut low, mut high) = (0.0_f64, 1.0);
    while within(high, degrees) < probability {
        high *= 2.0;
    }
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if within(middle, degrees) < probability { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

/// The point that `t` stays below with this probability, from one half on.
pub(crate) fn one_sided(probability: f64, degrees: u32) -> f64 {
    two_sided(2.0 * probability - 1.0, degrees)
}

/// P(|t| <= limit), in closed form (Abramowitz and Stegun, 26.7.3 and 26.7.4).
fn within(limit: f64, degrees: u32) -> f64 {
    let angle = (limit / f64::from(degrees).sqrt()).atan();
    let (sine, cosine) = angle.sin_cos();
    let is_odd = degrees % 2 == 1;
    let (mut term, mut sum) = (if is_odd { cosine } else { 1.0 }, 0.0);
    let mut factor = if is_odd { 2.0 } else { 1.0 };
    // Powers of the cosine up to `degrees - 2`.
    for _ in 0..degrees / 2 {
        sum += term;
        term *= factor / (factor + 1.0) * cosine * cosine;
        factor += 2.0;
    }
    if is_odd { std::f64::consts::FRAC_2_PI * (angle + sine * sum) } else { sine * sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_those_of_the_tables() {
        for (probability, degrees, expected) in [
            (0.95, 1, 12.7062),
            (0.95, 2, 4.3027),
            (0.95, 3, 3.1824),
            (0.95, 4, 2.7764),
            (0.95, 10, 2.2281),
            (0.99, 3, 5.8409),
            (0.99, 30, 2.7500),
            (0.95, 120, 1.9799),
        ] {
            let point = two_sided(probability, degrees);
            assert!((point / expected - 1.0).abs() < 1e-4, "{probability} {degrees}: {point}");
        }
        assert!((one_sided(0.8, 4) - 0.9410).abs() < 1e-4);
        assert!((two_sided(0.95, 100_000) / 1.96 - 1.0).abs() < 0.01);
    }
}
