//! What one engine step is: the contract between the scheduler, which plans it, and an executor, which runs it.
//!
//! The words: a **row** is the permanent place a running sequence holds in an executor, from [`RowStart`] to
//! [`StepPlan::released`]. A **block** is `block_size` consecutive positions of KV cache. A **step** gives some rows some
//! of their missing positions; prefill, chunked prefill, decode and verification of speculated tokens are all that.
//!
//! Invariants, asserted on both sides:
//! - A row's block table only grows while it lives. A block may stand in the tables of several rows, but positions are
//!   written only by the row that computes them, and no computed position of a shared block is written again.
//! - The executor owns each row's token table: it starts as [`RowStart::tokens`] and the executor itself appends what it
//!   samples. So step N+1 can be launched before the tokens of step N were collected.
//! - After preemption a sequence returns by a new `RowStart` with all its tokens; the executor remembers nothing else.
//! - An executor that is lost is lost for good; all else that fails, fails a row or a step.
//! - A plan that fails has released its rows all the same. A row it would have started is released by a later plan, although
//!   it may never have started: that is no error.
#![forbid(unsafe_code)]

#[cfg(feature = "mock")]
pub mod mock;

pub use powertrain_sampling::{SampledToken, SamplingParams, TokenId, TokenLogprobs};
use std::sync::{Arc, atomic::AtomicU64};

/// A running sequence's place in the executor: less than `max_num_seqs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(pub u32);

/// A block of KV cache: less than the executor's `kv_blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// A sequence takes a row: new, or back after preemption.
#[derive(Clone, Debug)]
pub struct RowStart {
    /// The row, free until now.
    pub row: RowId,
    /// All tokens known so far: the prompt, then what was generated before a preemption.
    pub tokens: Arc<[TokenId]>,
    /// How many of `tokens` are the prompt's.
    pub prompt_len: u32,
    /// Positions below this are already in the blocks (prefix cache); less than `tokens.len()`.
    pub computed: u32,
    /// How to choose its tokens.
    pub sampling: Arc<SamplingParams>,
    /// Report the log-probability of every prompt token after the first, with this many alternatives each. Then
    /// `computed` is 0: nothing was skipped.
    pub prompt_logprobs: Option<u8>,
}

/// Positions of one row to compute in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowWork {
    /// Whose.
    pub row: RowId,
    /// First position: all before it are computed (or are computed by a step in flight).
    pub start: u32,
    /// How many, at least 1.
    pub len: u32,
    /// Whether the range ends at the row's last known token, so that the next token is sampled from its last position.
    pub sample: bool,
}

/// One step: what changes in the batch, then what is computed. Applied in the order of the fields.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    /// Counts up by one from 1.
    pub step: u64,
    /// Rows given back: finished, cancelled or preempted since the last plan. Their tables are forgotten.
    pub released: Vec<RowId>,
    /// Rows taken.
    pub started: Vec<RowStart>,
    /// Blocks appended to rows' tables, in order.
    pub appended: Vec<(RowId, BlockId)>,
    /// What to compute; at most one entry a row, at most the token budget in all. May be empty when only rows are released.
    pub work: Vec<RowWork>,
}

/// What one row got from a step.
#[derive(Clone, Debug, Default)]
pub struct RowOutput {
    /// The tokens sampled: one where [`RowWork::sample`] was set, several after accepted speculation.
    pub sampled: Vec<SampledToken>,
    /// For rows that asked: the log-probabilities of the prompt tokens at positions `start + 1` up to and with `start + len`
    /// (clipped to the prompt): position p+1 is predicted by the logits at p. So the chunks of a prompt report every token
    /// after the first once.
    pub prompt_logprobs: Vec<TokenLogprobs>,
}

/// What a step brought, entry for entry as in [`StepPlan::work`].
#[derive(Debug)]
pub struct StepResult {
    /// The plan's number.
    pub step: u64,
    /// One per entry of the plan's work, in its order. A row that failed alone (NaN logits, say) leaves the others whole.
    pub rows: Vec<(RowId, Result<RowOutput, RowError>)>,
}

/// One row's failure; the sequence ends with it, the step does not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The model produced a NaN or infinite logit for this row.
    #[error(
        "the model produced non-finite logits at position {position}: the weights or the KV cache of this sequence are damaged, or activations overflowed (on a GPU in float16: use --dtype bfloat16)"
    )]
    NonFiniteLogits {
        /// Position whose logits they were.
        position: u32,
    },
}

/// Why a step did not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// It could not run: every row in it fails, later steps run.
    #[error("step {step} failed on {executor}: {reason}")]
    Failed {
        /// The plan's number.
        step: u64,
        /// The executor's name.
        executor: &'static str,
        /// What happened, and the way out where there is one.
        reason: String,
    },
    /// No step will run any more.
    #[error(transparent)]
    Lost(#[from] ExecutorLost),
}

/// The executor, or the device under it, cannot compute any more: a sticky CUDA error, a device that fell off the bus. Nothing is to be asked
/// of it again, not even to free what it holds: the process is to end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{executor} is lost: {reason}")]
pub struct ExecutorLost {
    /// The executor's name.
    pub executor: &'static str,
    /// What happened.
    pub reason: String,
}

/// The sizes an executor is built for; it allocates for the largest step at start and nothing after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows that can live at once (`--max-num-seqs`).
    pub max_num_seqs: u32,
    /// Positions in one step (`--max-num-batched-tokens`).
    pub max_num_batched_tokens: u32,
    /// Positions a sequence may reach (`--max-model-len`).
    pub max_model_len: u32,
    /// Positions in a block (`--block-size`).
    pub block_size: u32,
}

/// What an executor says of itself once it is loaded. Printed at start, served at `/v1/engine`.
#[derive(Clone, Debug)]
pub struct ExecutorFacts {
    /// `reference`, `cpu`, `cuda`.
    pub executor: &'static str,
    /// The device in words: SIMD level and threads, or the GPU's name.
    pub device: String,
    /// Threads that compute.
    pub threads: u32,
    /// SIMD level in use, or the GPU's compute capability.
    pub simd: String,
    /// Bytes the weights take in memory as laid out for this executor.
    pub weights_bytes: u64,
    /// Bytes of KV cache in all.
    pub kv_cache_bytes: u64,
    /// Bytes of KV cache one position takes over all layers.
    pub kv_bytes_per_token: u64,
    /// KV cache element type: `f32`, `f16`, `bf16`.
    pub kv_dtype: &'static str,
    /// Blocks of KV cache.
    pub kv_blocks: u32,
    /// How many steps may be launched before the oldest is collected: 1 or 2.
    pub depth: u32,
    /// How a device with memory of its own shares it out.
    pub device_memory: Option<DeviceMemory>,
    /// What is captured as graphs, counted while it goes on.
    pub graphs: Option<Arc<Graphs>>,
    /// What steps of some sizes take. `None`: as much as they have positions.
    pub step_costs: Option<StepCosts>,
}

/// What steps take, measured when the executor was loaded with steps as they come under load: decodes some hundred positions into their sequences,
/// and prompts of some hundred positions beside them. What longer ones add depends on them, and is a little more the more steps their positions
/// are spread over.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepCosts {
    /// By numbers of decodes, ascending.
    pub beside: Vec<CostsBeside>,
}

/// Measured: steps with so many decodes.
#[derive(Clone, Debug, PartialEq)]
pub struct CostsBeside {
    /// Rows of which a step computes one position each.
    pub decodes: u32,
    /// Seconds of a step of these decodes and nothing else.
    pub alone: f64,
    /// Steps with these decodes and prompts for the rest, ascending in positions.
    pub prompts: Vec<StepCost>,
}

/// Measured: a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepCost {
    /// Positions it computes, those of decodes among them.
    pub positions: u32,
    /// How long that takes.
    pub seconds: f64,
}

/// Bytes of a device's memory, beside weights and KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// All there is.
    pub total: u64,
    /// In use by the driver and by other programs when loading began.
    pub others: u64,
    /// Taken by all else when the largest step had run: tables, activations, kernels, libraries.
    pub workspace: u64,
    /// Set aside for graphs and what the driver takes later.
    pub reserved: u64,
}

/// Steps recorded to be launched in one call.
#[derive(Debug, Default)]
pub struct Graphs {
    /// Kinds of pure decodes that are to be captured.
    pub planned: AtomicU64,
    /// Of them, captured.
    pub captured: AtomicU64,
    /// Captures of steps with prompts, each after its kind came a few times.
    pub prompts: AtomicU64,
    /// Device memory taken when they were captured, that of graphs given up since included.
    pub bytes: AtomicU64,
    /// Time they took, the choice of kernels included.
    pub microseconds: AtomicU64,
    /// Shapes of products whose kernels were timed; those known from an earlier start are not.
    pub shapes_timed: AtomicU64,
}

/// Runs steps of one model on one device. Owned by the engine thread; `launch` and `collect` are called by it alone.
pub trait Executor: Send {
    /// What was built.
    fn facts(&self) -> &ExecutorFacts;

    /// Starts a step. At most [`ExecutorFacts::depth`] may be in flight.
    ///
    /// # Errors
    /// When the step could not be started; it is then not in flight, its rows' state is unknown and the caller releases them. After
    /// [`StepError::Lost`] nothing may be called, here and below.
    fn launch(&mut self, plan: &StepPlan) -> Result<(), StepError>;

    /// Waits for the oldest step in flight.
    ///
    /// # Errors
    /// When that step failed as a whole; it is then no longer in flight.
    fn collect(&mut self) -> Result<StepResult, StepError>;

    /// Pieces of work left that steps would otherwise do when they first need them (captured graphs).
    fn preparations(&self) -> usize {
        0
    }

    /// Does one of the [`preparations`](Self::preparations), which takes a fraction of a second. Called while there is nothing to run.
    ///
    /// # Errors
    /// When the executor was lost over it. What can be done without is no error.
    fn prepare(&mut self) -> Result<(), ExecutorLost> {
        Ok(())
    }
}
