//! `exp` for arguments at most 0, written so that the compiler vectorises loops over it.

/// `e^x` for `x <= 0`, within 2e-7 relative; below -87 it is 0.
#[inline(always)]
pub(crate) fn exp_nonpositive(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that the reduction is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // Cephes' minimax polynomial of exp on [-ln2/2, ln2/2].
    let p = 1.987_569_1e-4f32;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let value = p * r * r + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x > -87.0 { value * scale } else { 0.0 }
}

/// The sum of `e^((x - max) * inverse_temperature)` in f64; `max` is the highest of `values`.
pub(crate) fn sum_exp(values: &[f32], max: f32, inverse_temperature: f32) -> f64 {
    const LANES: usize = 16;
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut total = 0.0f64;
    // Sums of 1024 terms stay in f32 lanes (64 each: relative error under 4e-6 / 64), then go to f64.
    for group in chunks.chunks(64) {
        let mut lanes = [0.0f32; LANES];
        for chunk in group {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += exp_nonpositive((x - max) * inverse_temperature);
            }
        }
        total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
    }
    total + rest.iter().map(|&x| f64::from(exp_nonpositive((x - max) * inverse_temperature))).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_f64() {
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let want = f64::from(x).exp();
            let relative = (f64::from(exp_nonpositive(x)) - want).abs() / want;
            assert!(relative < 2e-7, "exp({x}) is off by {relative}");
        }
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_nonpositive(-1e30), 0.0);
    }
}
