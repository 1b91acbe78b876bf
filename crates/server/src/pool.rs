//! Where rendering and encoding run: short texts right on the task, long ones on the runtime's blocking threads, a few at
//! a time, so that one long prompt holds up neither other requests' streams nor the engine thread.

use powertrain_protocol::ApiError;
use std::panic::{AssertUnwindSafe, catch_unwind};
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
            // As of a long one below: a tokenizer's own panic is an answer, not a connection that breaks off.
            let done = catch_unwind(AssertUnwindSafe(work));
            return done
                .unwrap_or_else(|_| Err(ApiError::Engine("the text could not be processed: a panic".to_owned())));
        }
        // The semaphore is never closed; without a slot the work would still be right.
        let _slot = self.slots.acquire().await;
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| Err(ApiError::Engine(format!("the text could not be processed: {error}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_request_alone() {
        let pool = TextPool::new(1);
        for bytes in [1, INLINE_BYTES_MAX + 1] {
            let broken = pool.run(bytes, || -> Result<(), ApiError> { panic!("as a tokenizer does") }).await;
            assert!(matches!(broken, Err(ApiError::Engine(_))), "{bytes}");
            assert_eq!(pool.run(bytes, || Ok(7)).await.ok(), Some(7));
        }
    }
}
