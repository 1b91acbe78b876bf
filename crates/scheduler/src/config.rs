//! The sizes a scheduler works within.

use powertrain_step::{StepCosts, StepLimits};

/// What bounds a scheduler; fixed for its life.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Sizes shared with the executor.
    pub limits: StepLimits,
    /// Blocks of KV cache the executor holds.
    pub kv_blocks: u32,
    /// Sequences that may wait beyond those a free row will take at once (`--max-queue`).
    pub max_queue: u32,
    /// Whether full blocks are kept and found again by their content.
    pub prefix_caching: bool,
    /// Steps that may be planned before the oldest is completed: 1 or 2.
    pub depth: u32,
    /// Key of the block hashes. Secret and random where clients do not trust each other: who knows it could construct
    /// two prompts with the same hash and so read through another's cache.
    pub hash_key: [u8; 16],
    /// What steps cost, by which prompts are spread over them; `None`: each step takes all positions of prompts that
    /// `--max-num-batched-tokens` leaves.
    pub step_costs: Option<StepCosts>,
}

/// Limits that cannot work together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A size is zero.
    #[error("{name} is 0; it must be at least 1")]
    Zero {
        /// The flag's name.
        name: &'static str,
    },
    /// Not every running sequence could decode in one step.
    #[error(
        "--max-num-batched-tokens {max_num_batched_tokens} is less than --max-num-seqs {max_num_seqs}: a step must hold one token of every running sequence; raise the first or lower the second"
    )]
    BudgetBelowRows {
        /// `--max-num-batched-tokens`.
        max_num_batched_tokens: u32,
        /// `--max-num-seqs`.
        max_num_seqs: u32,
    },
    /// More steps in flight than the scheduler plans ahead.
    #[error("{depth} steps in flight were asked for; 1 and 2 are supported")]
    Depth {
        /// What was asked.
        depth: u32,
    },
}

impl SchedulerConfig {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        let sizes = [
            ("--max-num-seqs", limits.max_num_seqs),
            ("--max-num-batched-tokens", limits.max_num_batched_tokens),
            ("--max-model-len", limits.max_model_len),
            ("--block-size", limits.block_size),
            ("the number of KV blocks (--kv-cache-memory)", self.kv_blocks),
        ];
        if let Some(&(name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(ConfigError::Zero { name });
        }
        if limits.max_num_batched_tokens < limits.max_num_seqs {
            return Err(ConfigError::BudgetBelowRows {
                max_num_batched_tokens: limits.max_num_batched_tokens,
                max_num_seqs: limits.max_num_seqs,
            });
        }
        if !(1..=2).contains(&self.depth) {
            return Err(ConfigError::Depth { depth: self.depth });
        }
        Ok(())
    }
}
