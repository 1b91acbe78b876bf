//! How the work of gated.cu and best.cu is divided: tiles of two blocks each, all pairs of blocks side by side, round after round.

use crate::{
    driver::Shape,
    kernels::{GATED_WIDTHS, PAIR_PARTS_MAX, PAIR_TILE, WARPGROUP_THREADS},
};

/// What a part of a tile is reckoned with beyond its share of the tile's time, so that `Matmul::expects_fused` is right on most measured shapes
/// (docs/benchmarks/h100-raw/gated.txt). It takes more itself: 0.2 to 0.35 of a tile's time with the 1,536 columns of Qwen2.5-1.5B.
const PART_OVERHEAD: f64 = 0.05;

/// What a tile of gated.cu takes beyond its products, as so many products of a row of x with an element of the weights: 2 us where a tile of 256 by 1,536 takes
/// 14. And the rows of weights that a part of a tile has more, by the time it takes. Guessed so that the choice of width is right, or loses no more than 2 %, on 43 of 48
/// measured shapes (docs/benchmarks/h100-raw/one-copy/widths.txt); on five it loses 2 to 10 %, where the same tiles timed twice differ by up to 5 %.
const TILE_OVERHEAD: usize = 57_000;
const PART_MORE: usize = 48;

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

    /// The same of the tiles of one of [`GATED_WIDTHS`], of which the narrower are not divided.
    pub(crate) fn of_width(m: usize, n: usize, which: usize, pairs: usize) -> Self {
        if which == 0 {
            return Self::of(m, n, pairs);
        }
        let tiles = (m.div_ceil(2 * PAIR_TILE.0) * n.div_ceil(GATED_WIDTHS[which])) as i32;
        Self { whole: tiles, parts: 1, count: tiles }
    }

    /// Which of [`GATED_WIDTHS`] the tiles of gated.cu have, and the items. The widest move least; narrower ones may fill the last round better.
    pub(crate) fn of_gated(m: usize, n: usize, k: usize, pairs: usize) -> (usize, Self) {
        let choices = (0..GATED_WIDTHS.len()).map(|which| (which, Self::of_width(m, n, which, pairs)));
        choices.min_by_key(|(which, items)| items.cost(GATED_WIDTHS[*which], k, pairs)).expect("there are some")
    }

    /// What the pairs take, in the unit of [`TILE_OVERHEAD`], where whole tiles have `width` rows of weights of `k` columns.
    fn cost(self, width: usize, k: usize, pairs: usize) -> usize {
        let tile = width * k + TILE_OVERHEAD;
        let (whole, rest) = (self.whole as usize, (self.count - self.whole) as usize);
        let last = match self.parts {
            _ if rest == 0 => 0,
            1 => tile,
            parts => (width / parts as usize + PART_MORE) * k + TILE_OVERHEAD,
        };
        whole.div_ceil(pairs) * tile + last
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
    fn gated_tiles_are_narrower_where_that_fills_the_last_round() {
        let width = |m, n, k| GATED_WIDTHS[Items::of_gated(m, n, k, 66).0];
        // Qwen2.5-1.5B: 512 rows are 2.12 rounds of the widest, 2.85 of 192; 1024 are 4.24 and 4.85 of 224; 1280 are 5.3, and 6.06 and 7.1 of the others.
        assert_eq!([256, 512, 1024, 1280].map(|m| width(m, 17920, 1536)), [256, 192, 224, 256]);
        assert_eq!(Items::of_gated(512, 17920, 1536, 66).1, Items { whole: 188, parts: 1, count: 188 });
        // Llama-3.1-8B: 3.39 rounds, 3.88 of 224.
        assert_eq!(width(512, 28672, 4096), 224);
        // SmolLM2-135M: parts of the widest are better than fewer, narrower tiles than pairs (6.9 us, 8.2).
        assert_eq!([256, 512].map(|m| width(m, 3072, 576)), [256, 256]);
        // Full rounds of the widest.
        assert_eq!([width(256, 16896, 1536), width(1024, 16896, 4096)], [256, 256]);
        for (m, n, k, pairs) in [(1, 16, 64, 66), (300, 1040, 1536, 7), (5000, 17920, 1536, 1), (129, 272, 72, 66)] {
            let (which, items) = Items::of_gated(m, n, k, pairs);
            let columns = n.div_ceil(GATED_WIDTHS[which]);
            let rest = (items.count - items.whole) as usize / items.parts as usize;
            assert_eq!(items.whole as usize + rest, m.div_ceil(256) * columns, "every tile is there once");
        }
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
