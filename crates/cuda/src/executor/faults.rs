//! What a failed call means: for the step, or for the executor.

use super::{CudaExecutor, NAME};
use crate::{CudaError, check::Spoil, driver::Buffer};
use powertrain_step::{BlockId, ExecutorLost, StepError};

impl CudaExecutor {
    /// What a failure means for the engine: where the context still answers, only the step failed.
    pub(super) fn judge(&self, step: u64, error: CudaError) -> StepError {
        match self.lost(&error) {
            Some(lost) => lost.into(),
            None => StepError::Failed { step, executor: NAME, reason: error.to_string() },
        }
    }

    pub(super) fn lost(&self, error: &CudaError) -> Option<ExecutorLost> {
        let reason = match error {
            CudaError::Lost { .. } => error.to_string(),
            // A launch that was accepted may have failed since; nothing of the step may be left running either.
            _ => format!("{error}; then {}", self.stream.wait().err()?),
        };
        Some(ExecutorLost { executor: NAME, reason })
    }

    /// Makes all of the first layer's key at `offset` of a block NaN, for checks on a device.
    pub(crate) fn damage_key(&mut self, block: BlockId, offset: u32) -> Result<(), CudaError> {
        self.context.enter()?;
        self.stream.wait()?;
        let attention = &self.forward.spec.layers[0].attention;
        let elements = attention.kv_heads * attention.head_dim;
        let slot = block.0 as usize * self.forward.block_size + offset as usize;
        // NaN in bf16 and in f16.
        self.forward.cache.write(slot * elements * 2, &vec![u16::MAX; elements])
    }

    /// Does what `how` says, for checks on a device.
    pub(crate) fn spoil(&mut self, how: Spoil) -> Result<(), CudaError> {
        self.context.enter()?;
        match how {
            Spoil::Exhaust => {
                for bytes in (21..=36).rev().map(|power| 1_usize << power) {
                    while let Ok(buffer) = Buffer::allocate(&self.context, bytes, "the check") {
                        std::mem::forget(buffer);
                    }
                }
                Ok(())
            }
            Spoil::FreeCache => self.stream.wait().and_then(|()| self.forward.cache.free_early()),
            Spoil::Hang => self.stream.wait_for_ever(&self.slots[0].results),
        }
    }
}
