//! Damage to files, the same for the same seed.

/// SplitMix64, so that a failure is reproduced by its printed seed.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.word() % end as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// One to four damages: bits, words that claim too much, cuts, copies inside, digits.
pub fn damage(file: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        if file.is_empty() {
            return;
        }
        let at = random.below(file.len());
        match random.below(6) {
            0 => file[at] ^= 1 << random.below(8),
            1 => file[at] = random.word() as u8,
            2 => {
                let len = file.len() as u64;
                let word =
                    random.pick(&[0, 1, len, len - at as u64, 1 << 31, 1 << 40, 1 << 60, i64::MAX as u64, u64::MAX]);
                let end = file.len().min(at + random.pick(&[4, 8]));
                file[at..end].copy_from_slice(&word.to_le_bytes()[..end - at]);
            }
            3 => file.truncate(at),
            4 => {
                let len = random.below((file.len() - at).min(64)) + 1;
                let piece = file[at..at + len].to_vec();
                let to = random.below(file.len());
                file.splice(to..to, piece);
            }
            _ => {
                if let Some(digit) = file[at..].iter_mut().find(|byte| byte.is_ascii_digit()) {
                    *digit = b'0' + random.below(10) as u8;
                }
            }
        }
    }
}

/// The seed of this run: `SEED` or a fixed one, printed so that a failure can be repeated.
pub fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed);
    eprintln!("SEED={seed}");
    seed
}
