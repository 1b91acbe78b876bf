//! How the attention of single positions (attention.cu) is divided among blocks. A block takes up to eight query heads of one KV head of one
//! sequence, or a part of its positions.

use powertrain_model::spec::AttentionSpec;

/// Multiprocessors reckoned with: those of an H100. Fixed, so that sums are divided alike on every device.
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

impl DecodeKernel {
    /// Names of the kernels after `decode_64` and `decode_128`.
    pub(crate) const SUFFIXES: [&str; 4] = ["", "_few", "_deep", "_shallow"];

    pub(crate) fn warps(self) -> usize {
        match self {
            Self::Many | Self::Shallow => 4,
            Self::Few | Self::Deep => 8,
        }
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

/// The kernel for so many sequences and parts that a sequence's positions are divided into at most; fixed by the numbers so that a graph can
/// hold them. `far`: some sequence has [`FAR_POSITIONS`]. A merge of parts costs about 3 us: where the blocks of whole sequences keep memory
/// busy, there are none.
pub(crate) fn divide(sequences: usize, attention: &AttentionSpec, far: bool) -> (DecodeKernel, usize) {
    let groups = sequences * groups(attention);
    // Rounded down: a few blocks more than fit at once would take as long again.
    let splits = |resident: usize| (MULTIPROCESSORS * resident / groups).clamp(1, SPLITS_MAX);
    if groups <= FEW_GROUPS {
        (DecodeKernel::Few, splits(1))
    } else if far || attention.head_dim < 128 && groups > SHALLOW_GROUPS_OF_64 {
        (DecodeKernel::Many, splits(MANY_RESIDENT))
    } else if groups <= DEEP_GROUPS {
        (DecodeKernel::Deep, splits(1))
    } else {
        (DecodeKernel::Shallow, 1)
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

    #[test]
    fn no_kernel_gets_more_blocks_than_the_device_holds_unless_there_are_more_groups() {
        for (heads, kv_heads) in [(12, 2), (32, 8), (9, 3), (16, 1), (8, 8)] {
            let attention = attention(heads, kv_heads);
            for sequences in 1..=300 {
                for far in [false, true] {
                    let (kernel, splits) = divide(sequences, &attention, far);
                    let resident = MULTIPROCESSORS * if kernel.warps() == 4 { MANY_RESIDENT } else { 1 };
                    let blocks = splits * sequences * groups(&attention);
                    assert!((1..=SPLITS_MAX).contains(&splits));
                    assert!(splits == 1 || blocks <= resident, "{kernel:?}: {blocks} blocks for {sequences} sequences");
                    assert!(!far || kernel.stages() == 0, "{sequences} sequences, one of them far: {kernel:?}");
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
            assert_eq!(divide(sequences, &attention(32, 8), false).0, with_128, "{sequences} sequences");
            assert_eq!(divide(sequences, &of_64, false).0, with_64, "{sequences} sequences");
        }
        assert_eq!(divide(57, &attention(32, 8), true).0, Many);
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
        // 228 KiB, of which each block takes 1 KiB and at most 4 KiB beside the ring.
        for (kernel, resident) in [(DecodeKernel::Deep, 1), (DecodeKernel::Shallow, MANY_RESIDENT)] {
            assert!(resident * (kernel.shared_bytes(128) + 5 * 1024) <= 228 * 1024, "{kernel:?}");
        }
    }
}
