//! How long a sequence may be and how much KV cache there is: what was asked for, against the model and the memory.

use crate::size::Bytes;
use powertrain_model::spec::DecoderSpec;

/// Of the memory left free by the weights, the default KV cache takes at most one part in this many.
const DEFAULT_SHARE: u64 = 4;
/// The default KV cache where the system does not say how much memory is free.
const DEFAULT_UNKNOWN_BYTES: u64 = 2 << 30;
/// Above these no machine gains anything; the memory of a step grows with both.
const MAX_NUM_SEQS_MOST: u32 = 4096;
const MAX_NUM_BATCHED_TOKENS_MOST: u32 = 1 << 16;
/// Shorter contexts than this serve nobody.
const USEFUL_LEN_MIN: u64 = 64;

/// What the flags say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// `--max-model-len`
    pub(crate) max_model_len: Option<u32>,
    /// `--max-num-seqs`
    pub(crate) max_num_seqs: u32,
    /// `--max-num-batched-tokens`
    pub(crate) max_num_batched_tokens: u32,
    /// `--block-size`
    pub(crate) block_size: u32,
    /// `--kv-cache-memory`
    pub(crate) kv_cache: Option<Bytes>,
}

/// What the model and the machine say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    /// Positions the model was made for.
    pub(crate) context_len: u32,
    /// KV cache of one position, over all layers.
    pub(crate) kv_bytes_per_token: u64,
    /// Memory the weights will take.
    pub(crate) weights_bytes: u64,
    /// Memory a step will work in.
    pub(crate) workspace_bytes: u64,
    /// Memory this process may still take, weights not yet loaded; `None` where unknown.
    pub(crate) available_bytes: Option<u64>,
}

/// What will be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) max_model_len: u32,
    pub(crate) kv_blocks: u32,
    /// What those blocks take.
    pub(crate) kv_bytes: u64,
    /// Whether `max_model_len` had to be less than the model's for lack of memory; nobody asked for a length.
    pub(crate) shortened: bool,
}

/// Why it does not fit; each says which number to change to what.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DoesNotFit {
    #[error(
        "--max-model-len {asked} is more than the {context_len} positions this model was made for; set it to at most {context_len}"
    )]
    Context { asked: u32, context_len: u32 },
    #[error(
        "the weights take {weights} and {available} of memory are free; free some, or serve a smaller or more quantised model"
    )]
    Weights { weights: Bytes, available: Bytes },
    #[error(
        "a step of --max-num-batched-tokens {asked} works in {workspace}, and beside {weights} of weights {left} of memory are free; set it to at most {fits}"
    )]
    Workspace { asked: u32, workspace: Bytes, weights: Bytes, left: Bytes, fits: u64 },
    #[error("{name} {asked} is more than {most}, the most there is memory and use for; set it to at most {most}")]
    TooMany { name: &'static str, asked: u32, most: u32 },
    #[error(
        "--max-num-batched-tokens {tokens} is less than --max-num-seqs {seqs}, so that not every sequence could get a token in a step; set it to at least {seqs}"
    )]
    FewTokens { tokens: u32, seqs: u32 },
    #[error(
        "--kv-cache-memory {asked} and {weights} of weights do not fit the {available} of memory that are free; set it to at most {most}"
    )]
    Memory { asked: Bytes, weights: Bytes, available: Bytes, most: Bytes },
    #[error(
        "a sequence of --max-model-len {asked} takes {needed} of KV cache and there are {kv_cache}; set --kv-cache-memory to at least {needed}, or --max-model-len to at most {fits}"
    )]
    Sequence { asked: u32, needed: Bytes, kv_cache: Bytes, fits: u64 },
    #[error(
        "{kv_cache} of KV cache hold {fits} tokens of {per_token} each; set --kv-cache-memory to at least {needed}"
    )]
    TooSmall { kv_cache: Bytes, fits: u64, per_token: Bytes, needed: Bytes },
    #[error("{name} is 0; set it to at least 1")]
    Zero { name: &'static str },
}

/// Settles both numbers.
pub(crate) fn plan(wanted: Wanted, given: Given) -> Result<Capacity, DoesNotFit> {
    let positive = [
        ("--max-num-seqs", wanted.max_num_seqs),
        ("--max-num-batched-tokens", wanted.max_num_batched_tokens),
        ("--block-size", wanted.block_size),
        ("--max-model-len", wanted.max_model_len.unwrap_or(1)),
    ];
    if let Some(&(name, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Err(DoesNotFit::Zero { name });
    }
    let bounded = [
        ("--max-num-seqs", wanted.max_num_seqs, MAX_NUM_SEQS_MOST),
        ("--max-num-batched-tokens", wanted.max_num_batched_tokens, MAX_NUM_BATCHED_TOKENS_MOST),
    ];
    if let Some(&(name, asked, most)) = bounded.iter().find(|(_, asked, most)| asked > most) {
        return Err(DoesNotFit::TooMany { name, asked, most });
    }
    if wanted.max_num_batched_tokens < wanted.max_num_seqs {
        return Err(DoesNotFit::FewTokens { tokens: wanted.max_num_batched_tokens, seqs: wanted.max_num_seqs });
    }
    if let Some(asked) = wanted.max_model_len.filter(|&asked| asked > given.context_len) {
        return Err(DoesNotFit::Context { asked, context_len: given.context_len });
    }
    let max_model_len = wanted.max_model_len.unwrap_or(given.context_len);
    let block_bytes = u64::from(wanted.block_size) * given.kv_bytes_per_token;
    let sequence_blocks = u64::from(max_model_len.div_ceil(wanted.block_size));

    let kv_cache = kv_cache_bytes(wanted, given, sequence_blocks * block_bytes)?;
    let blocks = (kv_cache / block_bytes.max(1)).min(u64::from(u32::MAX));
    // Below u32::MAX by the line above.
    let kv_blocks = blocks as u32;
    let kv_bytes = blocks * block_bytes;
    if blocks >= sequence_blocks {
        return Ok(Capacity { max_model_len, kv_blocks, kv_bytes, shortened: false });
    }

    let fits = blocks * u64::from(wanted.block_size);
    if let Some(asked) = wanted.max_model_len.filter(|_| fits >= USEFUL_LEN_MIN) {
        let needed = Bytes(sequence_blocks * block_bytes);
        return Err(DoesNotFit::Sequence { asked, needed, kv_cache: Bytes(kv_cache), fits });
    }
    if fits < USEFUL_LEN_MIN {
        let needed = Bytes(USEFUL_LEN_MIN.div_ceil(u64::from(wanted.block_size)) * block_bytes);
        let per_token = Bytes(given.kv_bytes_per_token);
        return Err(DoesNotFit::TooSmall { kv_cache: Bytes(kv_cache), fits, per_token, needed });
    }
    // Fewer positions than `sequence_blocks` hold, which fits a u32.
    Ok(Capacity { max_model_len: fits as u32, kv_blocks, kv_bytes, shortened: true })
}

/// What was asked for, if it fits; else a share of what is free, and no more than all rows can ever use.
fn kv_cache_bytes(wanted: Wanted, given: Given, sequence_bytes: u64) -> Result<u64, DoesNotFit> {
    let weights = given.weights_bytes;
    let left = match given.available_bytes {
        Some(available) if available <= weights => {
            return Err(DoesNotFit::Weights { weights: Bytes(weights), available: Bytes(available) });
        }
        Some(available) => Some(available - weights),
        None => None,
    };
    let workspace = given.workspace_bytes;
    let left = match left {
        Some(left) if left <= workspace => {
            let (asked, per_token) =
                (wanted.max_num_batched_tokens, workspace / u64::from(wanted.max_num_batched_tokens));
            // Half of what is left, so that a KV cache fits too.
            let fits = (left / 2 / per_token.max(1)).max(1);
            let (workspace, weights, left) = (Bytes(workspace), Bytes(weights), Bytes(left));
            return Err(DoesNotFit::Workspace { asked, workspace, weights, left, fits });
        }
        left => left.map(|left| left - workspace),
    };
    match (wanted.kv_cache, left) {
        (Some(asked), Some(left)) if asked.0 > left => {
            let available = Bytes(left + weights + workspace);
            Err(DoesNotFit::Memory { asked, weights: Bytes(weights), available, most: Bytes(left) })
        }
        (Some(asked), _) => Ok(asked.0),
        (None, left) => {
            let share = left.map_or(DEFAULT_UNKNOWN_BYTES, |left| left / DEFAULT_SHARE);
            Ok(share.min(sequence_bytes.saturating_mul(u64::from(wanted.max_num_seqs))))
        }
    }
}

/// About what a step of so many tokens works in: a handful of vectors as wide as the model for each, in f32 and encoded.
pub(crate) fn workspace_bytes(spec: &DecoderSpec, max_num_batched_tokens: u32) -> u64 {
    let layers = spec.layers.iter();
    let widths = layers.map(|layer| {
        let attention = &layer.attention;
        let query = attention.heads * attention.head_dim;
        let key = attention.kv_heads * attention.head_dim;
        // Residual and branch; what matrices read, in two encodings; queries and what they attended; keys and values.
        2 * spec.hidden_size
            + 2 * spec.hidden_size.max(query)
            + 2 * query
            + 2 * key
            + 2 * layer.feed_forward.hidden_size
    });
    4 * widths.max().unwrap_or(0) as u64 * u64::from(max_num_batched_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn wanted() -> Wanted {
        Wanted { max_model_len: None, max_num_seqs: 4, max_num_batched_tokens: 512, block_size: 16, kv_cache: None }
    }

    fn given() -> Given {
        Given {
            context_len: 8192,
            kv_bytes_per_token: 16 << 10,
            weights_bytes: GIB,
            workspace_bytes: 0,
            available_bytes: Some(9 * GIB),
        }
    }

    #[track_caller]
    fn check(wanted: Wanted, given: Given, max_model_len: u32, kv_blocks: u32, shortened: bool) {
        let kv_bytes = u64::from(kv_blocks) * u64::from(wanted.block_size) * given.kv_bytes_per_token;
        assert_eq!(plan(wanted, given), Ok(Capacity { max_model_len, kv_blocks, kv_bytes, shortened }));
    }

    #[track_caller]
    fn check_error(wanted: Wanted, given: Given, expected: &str) {
        let error = plan(wanted, given).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn the_default_is_what_the_rows_need_or_a_share() {
        // 4 rows x 128 MiB are less than a quarter of 8 GiB.
        check(wanted(), given(), 8192, 4 * 512, false);
        // 64 rows would need 8 GiB: a quarter of it is taken.
        check(Wanted { max_num_seqs: 64, ..wanted() }, given(), 8192, 8192, false);
        check(wanted(), Given { available_bytes: None, ..given() }, 8192, 4 * 512, false);
    }

    #[test]
    fn a_length_nobody_asked_for_shrinks() {
        let little = Given { available_bytes: Some(GIB + (256 << 20)), ..given() };
        check(wanted(), little, 4096, 256, true);
        check_error(
            Wanted { max_model_len: Some(8192), ..wanted() },
            little,
            "--max-model-len 8192 takes 128 MiB of KV cache and there are 64.0 MiB; set --kv-cache-memory to at least 128 MiB, or --max-model-len to at most 4096",
        );
        // What the message says is right.
        check(Wanted { max_model_len: Some(4096), ..wanted() }, little, 4096, 256, false);
        check(
            Wanted { max_model_len: Some(8192), kv_cache: Some(Bytes(128 << 20)), ..wanted() },
            little,
            8192,
            512,
            false,
        );
    }

    #[test]
    fn what_does_not_fit_names_the_number() {
        check_error(Wanted { max_model_len: Some(8193), ..wanted() }, given(), "set it to at most 8192");
        check_error(Wanted { kv_cache: Some(Bytes(9 * GIB)), ..wanted() }, given(), "set it to at most 8.00 GiB");
        check_error(
            Wanted { kv_cache: Some(Bytes(100)), ..wanted() },
            given(),
            "set --kv-cache-memory to at least 1.00 MiB",
        );
        check_error(wanted(), Given { weights_bytes: 10 * GIB, ..given() }, "the weights take 10.0 GiB");
        check_error(Wanted { block_size: 0, ..wanted() }, given(), "--block-size is 0");
        check_error(Wanted { max_model_len: Some(0), ..wanted() }, given(), "--max-model-len is 0");
        check_error(
            Wanted { max_num_batched_tokens: 40_000_000, ..wanted() },
            given(),
            "--max-num-batched-tokens 40000000 is more than 65536",
        );
        check_error(
            Wanted { max_num_seqs: u32::MAX, ..wanted() },
            given(),
            "--max-num-seqs 4294967295 is more than 4096",
        );
        check_error(
            Wanted { max_num_batched_tokens: 3, ..wanted() },
            given(),
            "--max-num-batched-tokens 3 is less than --max-num-seqs 4",
        );
        // 1 MiB a token; 8 GiB are left, of which half are for the step.
        check_error(
            Wanted { max_num_batched_tokens: 16_384, ..wanted() },
            Given { workspace_bytes: 16 * GIB, ..given() },
            "works in 16.0 GiB, and beside 1.00 GiB of weights 8.00 GiB of memory are free; set it to at most 4096",
        );
    }

    #[test]
    fn absurd_sizes_do_not_overflow() {
        let huge = Given { context_len: u32::MAX, kv_bytes_per_token: 1 << 30, ..given() };
        check_error(wanted(), huge, "hold 0 tokens");
        let tiny = Given { kv_bytes_per_token: 1, available_bytes: None, ..given() };
        let many = Wanted { max_num_seqs: 4096, max_num_batched_tokens: 1 << 16, block_size: 1, ..wanted() };
        check(many, tiny, 8192, 4096 * 8192, false);
    }
}
