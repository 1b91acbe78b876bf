//! The draw, defined so that batching never changes it and a device can repeat it.
//!
//! Each token's uniform number is a pure function of (seed, position, token id):
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with
//! key = (seed's low word, seed's high word) and counter = (token id / 4, position, 0, 0); the token takes word
//! `token id % 4` of the result, `x`. Then in f64
//!
//! ```text
//! w = (x + 0.5) / 2^32
//! gumbel = -ln(-ln_1p(-w))
//! score = logit / temperature + gumbel
//! ```
//!
//! and the token of the highest score wins, the lowest id among equals (the Gumbel-max trick: the winner is distributed
//! as the softmax of `logit / temperature` over the tokens that compete). Only the last digits of `ln` differ between
//! implementations. `w` near 0 is where winners are, and there it has full relative precision.

/// Blocks evaluated together by [`philox_lanes`].
pub(crate) const LANES: usize = 8;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// Philox4x32-10: four random words from a counter and a key.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// The random word of one token at one position.
pub fn token_word(seed: u64, position: u32, token: u32) -> u32 {
    philox4x32([token / 4, position, 0, 0], key(seed))[token as usize % 4]
}

/// A standard Gumbel number from a random word; between -3.2 and 22.9.
pub fn gumbel(word: u32) -> f64 {
    let w = (f64::from(word) + 0.5) / 4_294_967_296.0;
    -(-(-w).ln_1p()).ln()
}

/// A cheap upper bound of [`gumbel`]: `-ln(-ln_1p(-w)) <= -ln(w)`, by the exponent of `w` alone.
#[inline(always)]
pub(crate) fn gumbel_bound(word: u32) -> f32 {
    // Halved, because only signed integers convert in one instruction; 0 becomes exponent -127, a bound nothing exceeds.
    let exponent = (((word >> 1) as i32 as f32).to_bits() >> 23) as i32 - 127;
    (31 - exponent) as f32 * std::f32::consts::LN_2
}

pub(crate) fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// `LANES` consecutive blocks from `first_block`, as `[word][block]`; written for the vectoriser.
#[inline(always)]
pub(crate) fn philox_lanes(first_block: u32, position: u32, key: [u32; 2]) -> [[u32; LANES]; 4] {
    let mut c0: [u32; LANES] = std::array::from_fn(|lane| first_block.wrapping_add(lane as u32));
    let mut c1 = [position; LANES];
    let mut c2 = [0u32; LANES];
    let mut c3 = [0u32; LANES];
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        for lane in 0..LANES {
            let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0[lane]);
            let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2[lane]);
            c0[lane] = (p1 >> 32) as u32 ^ c1[lane] ^ k0;
            c2[lane] = (p0 >> 32) as u32 ^ c3[lane] ^ k1;
            c1[lane] = p1 as u32;
            c3[lane] = p0 as u32;
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers from the Random123 distribution (kat_vectors).
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn lanes_equal_single_blocks() {
        let lanes = philox_lanes(77, 123, key(0x1234_5678_9abc_def0));
        for block in 0..LANES as u32 {
            for word in 0..4 {
                assert_eq!(
                    lanes[word as usize][block as usize],
                    token_word(0x1234_5678_9abc_def0, 123, (77 + block) * 4 + word)
                );
            }
        }
    }

    #[test]
    fn the_bound_is_above_the_number() {
        let words = (0..100_000u32).map(|i| i.wrapping_mul(0x9E37_79B9)).chain([0, 1, 2, 3, u32::MAX, u32::MAX - 1]);
        for word in words {
            assert!(f64::from(gumbel_bound(word)) + 1e-5 >= gumbel(word), "word {word:#x}");
            assert!(gumbel(word).is_finite(), "word {word:#x}");
        }
    }
}
