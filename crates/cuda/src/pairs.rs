//! How the work of gated.cu and best.cu is divided: tiles of two blocks each, all pairs of blocks side by side, round after round.

use crate::{
    driver::Shape,
    kernels::{PAIR_PARTS_MAX, PAIR_TILE, WARPGROUP_THREADS},
};

/// What a part of a tile is reckoned with beyond its share of the tile's time, so that `Matmul::expects_fused` is right on most measured shapes
/// (docs/benchmarks/h100-raw/gated.txt). It takes more itself: 0.2 to 0.35 of a tile's time with the 1,536 columns of Qwen2.5-1.5B.
const PART_OVERHEAD: f64 = 0.05;

/// What the pairs compute: so many whole tiles, then `parts` of each that is left (`Items` of pairs.cuh).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Items {
    whole: i32,
    parts: i32,
    count: i32,
}

impl Items {
    /// Of a product of `m` rows with a matrix of `n` rows. Tiles that would leave half of the pairs without one in the last round are divided.
    pub(crate) fn of(m: usize, n: usize, pairs: usize) -> Self {
        let tiles = m.div_ceil(2 * PAIR_TILE.0) * n.div_ceil(PAIR_TILE.1);
        let rest = tiles % pairs;
        let parts = [PAIR_PARTS_MAX, 2].into_iter().find(|parts| parts * rest <= pairs).unwrap_or(1);
        let whole = tiles - rest;
        Self { whole: whole as i32, parts: parts as i32, count: (whole + rest * parts) as i32 }
    }

    fn count(self) -> usize {
        self.count as usize
    }

    /// How many rounds of whole tiles take as long.
    pub(crate) fn rounds(self, pairs: usize) -> f64 {
        let last = match (self.count > self.whole, self.parts) {
            (false, _) => 0.0,
            (true, 1) => 1.0,
            (true, parts) => 1.0 / f64::from(parts) + PART_OVERHEAD,
        };
        f64::from(self.whole) / pairs as f64 + last
    }
}

/// The launch of a kernel whose blocks, in pairs, stay for all their items. The size of clusters is the kernel's own.
pub(crate) fn shape(items: Items, pairs: usize, shared_bytes: u32) -> Shape {
    let grid = (2 * items.count().min(pairs) as u32, 1, 1);
    Shape { grid, threads: WARPGROUP_THREADS, shared_bytes, cluster: 0, overlap: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fills_half_a_round_or_less_is_divided() {
        let items = |whole, parts, count| Items { whole, parts, count };
        // 70 tiles for each 256 rows of Qwen2.5-1.5B, 66 pairs of an H100.
        assert_eq!(Items::of(256, 17920, 66), items(66, 4, 66 + 16));
        assert_eq!(Items::of(1024, 17920, 66), items(264, 4, 264 + 64));
        assert_eq!(Items::of(1280, 17920, 66), items(330, 2, 330 + 40));
        // 112 for each of Llama-3.1-8B: 46 of 66 are left, which no division makes shorter.
        assert_eq!(Items::of(256, 28672, 66), items(66, 1, 112));
        // Fewer than pairs.
        assert_eq!(Items::of(256, 3072, 66), items(0, 4, 48));
        assert_eq!(Items::of(66 * 256, 256, 66), items(66, 4, 66));
    }

    #[test]
    fn no_division_has_more_parts_than_a_round_and_none_is_slower() {
        for pairs in [1, 2, 54, 66, 74] {
            for tiles in 1..4 * pairs {
                let items = Items::of(256 * tiles, 256, pairs);
                let rest = items.count as usize - items.whole as usize;
                assert!(rest <= pairs && (items.whole as usize).is_multiple_of(pairs), "{items:?}");
                assert_eq!(items.whole as usize + rest / items.parts as usize, tiles);
                let (rounds, undivided) = (items.rounds(pairs), tiles.div_ceil(pairs) as f64);
                assert!(rounds <= undivided && rounds >= tiles as f64 / pairs as f64, "{items:?}: {rounds}");
            }
        }
    }
}
