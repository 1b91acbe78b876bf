//! How the attention of single positions (attention.cu) is divided among blocks. A block takes up to eight query heads of one KV head of one
//! sequence, or a part of its positions.

use powertrain_model::spec::AttentionSpec;

/// Multiprocessors reckoned with: those of an H100. Fixed, so that sums that are merged through memory are divided alike on every device.
const MULTIPROCESSORS: usize = 132;
/// Blocks of four warps whose tiles are in registers that a multiprocessor holds.
const MANY_RESIDENT: usize = 4;
/// Groups of heads up to which all are given to one block a multiprocessor: of [`DecodeKernel::Few`], then of [`DecodeKernel::Deep`]; and up to
/// which [`DecodeKernel::Shallow`] is used with heads of 64. With heads of 128 it is for all: 1 % of a step one way or the other
/// (docs/benchmarks/h100.md), and most often for it.
const FEW_GROUPS: usize = 32;
const DEEP_GROUPS: usize = MULTIPROCESSORS;
const SHALLOW_GROUPS_OF_64: usize = 448;
const SPLITS_MAX: usize = 64;
/// Blocks of a cluster at most: what every device that has clusters grants.
const CLUSTER_MAX: usize = 8;
/// Positions from which on a sequence is far longer than what the kernels with rings were measured with: its positions are divided among
/// as many blocks as the device holds.
pub(crate) const FAR_POSITIONS: u32 = 2048;

/// The kernels, as [`Kernels::decode`](crate::kernels::Kernels) numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecodeKernel {
    /// Four warps, each with a tile in registers.
    Many,
    /// Eight.
    Few,
    /// Eight warps, each with a ring of tiles in shared memory that the copy engine fills.
    Deep,
    /// Four, with a ring of one: four blocks fit a multiprocessor.
    Shallow,
}

/// How many clusters of 0 to [`CLUSTER_MAX`] blocks of a kernel the device runs at once, by [`DecodeKernel`]. A cluster stands in one group of
/// multiprocessors, and those are of different sizes on different devices.
pub(crate) type Clusters = [[usize; CLUSTER_MAX + 1]; DecodeKernel::ALL.len()];

/// How the sequences of a step are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Division {
    pub(crate) kernel: DecodeKernel,
    /// Parts that a sequence's positions are divided into at most, a block each.
    pub(crate) splits: usize,
    /// Whether they are a cluster, and merged through its shared memory; else through global memory.
    pub(crate) cluster: bool,
}

impl DecodeKernel {
    pub(crate) const ALL: [Self; 4] = [Self::Many, Self::Few, Self::Deep, Self::Shallow];
    /// Names of the kernels after `decode_64` and `decode_128`.
    pub(crate) const SUFFIXES: [&str; 4] = ["", "_few", "_deep", "_shallow"];

    pub(crate) fn warps(self) -> usize {
        match self {
            Self::Many | Self::Shallow => 4,
            Self::Few | Self::Deep => 8,
        }
    }

    /// Blocks a multiprocessor that a launch of clusters may have: more than one of those with eight warps take longer than one a multiprocessor of twice
    /// the positions. 0: not in clusters. With heads of 128 a ring of one tile in clusters is slower, though attention alone is not.
    fn clustered_resident(self, head_dim: usize) -> usize {
        match self {
            Self::Many => 0,
            Self::Few | Self::Deep => 1,
            Self::Shallow if head_dim == 64 => MANY_RESIDENT,
            Self::Shallow => 0,
        }
    }

    /// Whether its blocks can be a cluster.
    pub(crate) fn merges_in_clusters(self, head_dim: usize) -> bool {
        self.clustered_resident(head_dim) > 0
    }

    /// Tiles of a warp's ring. With three of the deep kernel's, the blocks of its neighbours find no room beside it: 2 % slower.
    pub(crate) fn stages(self) -> usize {
        match self {
            Self::Many | Self::Few => 0,
            Self::Deep => 2,
            Self::Shallow => 1,
        }
    }

    /// Multiprocessors that attention of prompts (flash.cu) takes when this runs beside it. Blocks of flash.cu leave no room on theirs, so those of
    /// many decodes begin on the others; few decodes are done too soon to make up for it. Measured with prompts of 512; the kernel for
    /// sequences that are far longer leaves prompts all, as theirs may be long, too.
    pub(crate) fn left_to_prompts(self, multiprocessors: usize) -> usize {
        match self {
            Self::Shallow => (multiprocessors * 2).div_ceil(3),
            Self::Many | Self::Few | Self::Deep => multiprocessors,
        }
    }

    /// Dynamic shared memory: rings of tiles of 16 keys and values in bf16.
    pub(crate) fn shared_bytes(self, head_dim: usize) -> usize {
        self.warps() * self.stages() * 16 * head_dim * 4
    }
}

/// Blocks per sequence and split: groups of up to eight query heads that share a KV head.
pub(crate) fn groups(attention: &AttentionSpec) -> usize {
    attention.kv_heads * (attention.heads / attention.kv_heads).div_ceil(8)
}

/// How so many sequences are divided; fixed by the numbers so that a graph can hold it. `far`: some sequence has [`FAR_POSITIONS`]. A merge of parts
/// through memory costs about 3 us: where the blocks of whole sequences keep memory busy, there are none. Within a cluster it costs
/// less, so that the positions are divided among as many blocks as run at once, eight at most; more of them would wait for all others. `clusters`: `None` beside
/// prompts, whose blocks leave room one by one.
pub(crate) fn divide(sequences: usize, attention: &AttentionSpec, far: bool, clusters: Option<&Clusters>) -> Division {
    let groups = sequences * groups(attention);
    // Rounded down: a few blocks more than fit at once would take as long again.
    let splits = |resident: usize| (MULTIPROCESSORS * resident / groups).clamp(1, SPLITS_MAX);
    let (kernel, splits) = if groups <= FEW_GROUPS {
        (DecodeKernel::Few, splits(1))
    } else if far || attention.head_dim < 128 && groups > SHALLOW_GROUPS_OF_64 {
        (DecodeKernel::Many, splits(MANY_RESIDENT))
    } else if groups <= DEEP_GROUPS {
        (DecodeKernel::Deep, splits(1))
    } else {
        (DecodeKernel::Shallow, 1)
    };
    let cluster = clusters.filter(|_| !far).and_then(|clusters| {
        let most = MULTIPROCESSORS * kernel.clustered_resident(attention.head_dim) / groups;
        (2..=most.min(CLUSTER_MAX)).rev().find(|&blocks| clusters[kernel as usize][blocks] >= groups)
    });
    match cluster {
        Some(splits) => Division { kernel, splits, cluster: true },
        None => Division { kernel, splits, cluster: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use powertrain_model::spec::{RopePairing, RopeSpec};

    fn attention(heads: usize, kv_heads: usize) -> AttentionSpec {
        let rope = RopeSpec { pairing: RopePairing::Halves, inverse_frequencies: [1.0; 64].into(), magnitude: 1.0 };
        let (qkv_bias, output_bias, qk_norm, window, softcap) = (false, false, None, None, None);
        AttentionSpec {
            heads,
            kv_heads,
            head_dim: 128,
            qkv_bias,
            output_bias,
            qk_norm,
            rope,
            window,
            softcap,
            scale: 1.0,
        }
    }

    /// Clusters of 0 to 8 blocks that an H100 ran at once; another one may run some more or fewer.
    fn clusters(head_dim: usize) -> Clusters {
        let wide = match head_dim {
            64 => [0, 0, 132, 79, 62, 47, 39, 32, 30],
            _ => [0, 0, 66, 39, 30, 22, 17, 15, 15],
        };
        [[0; 9], wide, wide, [0, 0, 264, 163, 124, 94, 79, 69, 62]]
    }

    #[test]
    fn no_kernel_gets_more_blocks_than_the_device_holds_unless_there_are_more_groups() {
        for (heads, kv_heads, head_dim) in [(12, 2, 128), (32, 8, 128), (9, 3, 64), (16, 1, 128), (8, 8, 64)] {
            let attention = AttentionSpec { head_dim, ..attention(heads, kv_heads) };
            let clusters = clusters(head_dim);
            for sequences in 1..=300 {
                for (far, clusters) in [(false, None), (false, Some(&clusters)), (true, None), (true, Some(&clusters))]
                {
                    let division = divide(sequences, &attention, far, clusters);
                    let Division { kernel, splits, cluster } = division;
                    let resident = MULTIPROCESSORS * if kernel.warps() == 4 { MANY_RESIDENT } else { 1 };
                    let groups = sequences * groups(&attention);
                    assert!((1..=SPLITS_MAX).contains(&splits));
                    assert!(splits == 1 || splits * groups <= resident, "{division:?} of {sequences} sequences");
                    assert!(
                        !far || kernel.stages() == 0 && !cluster,
                        "{sequences} sequences, one of them far: {kernel:?}"
                    );
                    if cluster {
                        let at_once = clusters.expect("they are known")[kernel as usize][splits];
                        assert!(splits > 1 && at_once >= groups, "{division:?} of {sequences} sequences");
                    }
                }
            }
        }
    }

    #[test]
    fn many_groups_take_a_ring_with_heads_of_128_alone_unless_they_are_far() {
        use DecodeKernel::{Deep, Few, Many, Shallow};
        let of_64 = AttentionSpec { head_dim: 64, ..attention(32, 8) };
        let cases =
            [(4, Few, Few), (16, Deep, Deep), (17, Shallow, Shallow), (56, Shallow, Shallow), (57, Shallow, Many)];
        for (sequences, with_128, with_64) in cases {
            assert_eq!(divide(sequences, &attention(32, 8), false, None).kernel, with_128, "{sequences} sequences");
            assert_eq!(divide(sequences, &of_64, false, None).kernel, with_64, "{sequences} sequences");
        }
        assert_eq!(divide(57, &attention(32, 8), true, None).kernel, Many);
    }

    #[test]
    fn clusters_are_as_large_as_they_all_run_at_once() {
        let qwen = attention(12, 2);
        // 14 groups are 14 clusters of 8 blocks, of which 15 run at once; 16 groups have clusters of 6, of which 17 do, and so on.
        let cases = [(1, 8), (7, 8), (8, 6), (9, 5), (11, 5), (12, 4), (15, 4), (16, 3), (19, 3), (20, 2), (33, 2)];
        for (sequences, splits) in cases {
            let division = divide(sequences, &qwen, false, Some(&clusters(128)));
            assert_eq!((division.splits, division.cluster), (splits, true), "{sequences} sequences");
        }
        // One block each from 67 groups on, also where those have a ring of one tile; with heads of 64 that has clusters.
        for sequences in [34, 66, 67, 100, 131] {
            assert!(!divide(sequences, &qwen, false, Some(&clusters(128))).cluster, "{sequences} sequences");
        }
        let small = AttentionSpec { head_dim: 64, ..attention(9, 3) };
        for (sequences, splits) in [(10, 4), (22, 2), (23, 1), (44, 1), (45, 3), (54, 3), (55, 2), (88, 2), (89, 1)] {
            let division = divide(sequences, &small, false, Some(&clusters(64)));
            assert_eq!((division.splits, division.cluster), (splits, splits > 1), "{sequences} sequences");
        }
        // Where one is far, and beside prompts, parts are merged through memory.
        assert_eq!(divide(2, &qwen, true, Some(&clusters(128))).splits, 33);
        assert_eq!(divide(2, &qwen, false, None), Division { kernel: DecodeKernel::Few, splits: 33, cluster: false });
    }

    #[test]
    fn prompts_leave_multiprocessors_to_many_decodes() {
        assert_eq!(DecodeKernel::Shallow.left_to_prompts(132), 88);
        assert_eq!(DecodeKernel::Deep.left_to_prompts(132), 132);
        assert_eq!(DecodeKernel::Many.left_to_prompts(132), 132);
        assert_eq!(DecodeKernel::Shallow.left_to_prompts(1), 1);
    }

    #[test]
    fn rings_of_the_blocks_that_share_a_multiprocessor_fit_its_memory() {
        // 228 KiB, of which each block takes 1 KiB and at most 8 KiB beside the ring.
        for (kernel, resident) in [(DecodeKernel::Deep, 1), (DecodeKernel::Shallow, MANY_RESIDENT)] {
            assert!(resident * (kernel.shared_bytes(128) + 9 * 1024) <= 228 * 1024, "{kernel:?}");
        }
    }
}
