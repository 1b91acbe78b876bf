//! What an engine is started with.

use powertrain_scheduler::ConfigError;
use powertrain_step::StepLimits;
use std::time::Duration;

/// The engine's settings; what concerns the device the executor knows already.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The sizes the executor was built for.
    pub limits: StepLimits,
    /// Requests that may wait beyond those free rows take at once (`--max-queue`); past it [`crate::SubmitError::QueueFull`].
    pub max_queue: u32,
    /// Whether blocks are kept and found again by their content.
    pub prefix_caching: bool,
    /// Whether the next step is launched before the last one's tokens are read, where the executor can (depth 2).
    /// Changes speed, never tokens.
    pub async_scheduling: bool,
    /// Whether prompts are spread over steps by what steps cost, where the executor has measured that; else each step takes all that
    /// `max_num_batched_tokens` leaves. Changes speed, never tokens beyond rounding.
    pub pace_prompts: bool,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// With work to do and no step completed for this long, the engine no longer counts as live.
    pub stall_timeout: Duration,
    /// A step that takes longer is given up, and the engine with it; `None`: any time.
    pub step_timeout: Option<Duration>,
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Limits that cannot work together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No thread.
    #[error("the engine thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}
