//! Seeded random numbers whose sequence never changes between versions: a seed printed today replays tomorrow.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The sequence of one item of a seed's family: items are independent of the order they are asked in.
    pub fn of_item(seed: u64, item: u64) -> Self {
        let mut parent = Self::new(seed ^ item.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        Self::new(parent.bits())
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..bound`; 0 when `bound` is 0. The bias of the multiplication is below `bound / 2^64`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }

    /// Gamma with the given shape and scale 1 (Marsaglia and Tsang, "A simple method for generating gamma variables",
    /// 2000; shapes below 1 by their boost).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        assert!(shape > 0.0, "a gamma distribution needs a positive shape, not {shape}");
        if shape < 1.0 {
            let boost = (1.0 - self.uniform()).powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.uniform()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        // The reference implementation's first numbers for seed 1234567.
        let mut random = Random::new(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([random.bits(), random.bits(), random.bits()], expected);
    }

    #[test]
    fn moments_are_right() {
        let seed = 11;
        let mut random = Random::new(seed);
        let mut check = |name: &str, mean: f64, variance: f64, draw: &dyn Fn(&mut Random) -> f64| {
            let values: Vec<f64> = (0..200_000).map(|_| draw(&mut random)).collect();
            let count = values.len() as f64;
            let got = values.iter().sum::<f64>() / count;
            let spread = values.iter().map(|value| (value - got).powi(2)).sum::<f64>() / count;
            assert!((got - mean).abs() < 0.02 * mean.max(1.0), "{name}, seed {seed}: mean {got}");
            assert!((spread / variance - 1.0).abs() < 0.05, "{name}, seed {seed}: variance {spread}");
        };
        check("uniform", 0.5, 1.0 / 12.0, &Random::uniform);
        check("normal", 0.0, 1.0, &Random::normal);
        check("exponential", 1.0, 1.0, &Random::exponential);
        check("gamma 0.25", 0.25, 0.25, &|random| random.gamma(0.25));
        check("gamma 4", 4.0, 4.0, &|random| random.gamma(4.0));
        check("below 10", 4.5, 8.25, &|random| random.below(10) as f64);
    }
}
