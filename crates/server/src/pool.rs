//! Where rendering and encoding run: short texts right on the task, long ones on the runtime's blocking threads, a few at
//! a time, so that one long prompt holds up neither other requests' streams nor the engine thread.

use powertrain_protocol::ApiError;
use tokio::sync::Semaphore;

/// Texts up to this size are handled in well under a millisecond: moving them costs more.
const INLINE_BYTES_MAX: usize = 4 << 10;

/// Bounds how many texts are worked on at once; the others wait in order.
pub(crate) struct TextPool {
    slots: Semaphore,
}

impl TextPool {
    /// With this many slots.
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots: Semaphore::new(slots.max(1)) }
    }

    /// Does `work` on a text of about `bytes`.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if bytes <= INLINE_BYTES_MAX {
            return work();
        }
        // The semaphore is never closed; without a slot the work would still be right.
        let _slot = self.slots.acquire().await;
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| Err(ApiError::Engine(format!("the text could not be processed: {error}"))))
    }
}
