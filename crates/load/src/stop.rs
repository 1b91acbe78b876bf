//! The user's wish to end a run early; what was measured is kept.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// How bounded work ended.
pub(crate) enum Bounded<T> {
    /// By itself.
    Done(T),
    /// Its time was over.
    Late,
    /// The run's end was asked for.
    Stopped,
}

/// A switch that all parts of a run look at.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Wakes who waits.
    requested: watch::Sender<bool>,
    /// The same, to look at with every chunk.
    seen: Arc<AtomicBool>,
}

impl Stop {
    /// Not requested yet.
    pub fn new() -> Self {
        Self { requested: watch::Sender::new(false), seen: Arc::default() }
    }

    /// Asks for the end.
    pub fn request(&self) {
        self.seen.store(true, Relaxed);
        self.requested.send_replace(true);
    }

    /// Whether the end was asked for.
    pub fn is_requested(&self) -> bool {
        self.seen.load(Relaxed)
    }

    /// Ends when the end is asked for.
    pub async fn requested(&self) {
        // The sender lives in `self`: waiting cannot fail.
        _ = self.requested.subscribe().wait_for(|requested| *requested).await;
    }

    /// What `work` comes to, unless it takes longer than `time_max` or the end is asked for before.
    ///
    /// For work that is woken with every chunk: what would end it early is asked once to wake this task, and then only looked at.
    pub(crate) async fn bound<T>(&self, time_max: Duration, work: impl Future<Output = T>) -> Bounded<T> {
        let (mut work, mut requested) = (pin!(work), pin!(self.requested()));
        let deadline = Instant::now().checked_add(time_max);
        let mut late = pin!(tokio::time::sleep(time_max));
        let mut asked = false;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Bounded::Done(done));
            }
            // A task's waker stays the same, so asking once is enough.
            let first = !std::mem::replace(&mut asked, true);
            if (first || self.is_requested()) && requested.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Bounded::Stopped);
            }
            if (first || deadline.is_some_and(|at| Instant::now() >= at)) && late.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Bounded::Late);
            }
            Poll::Pending
        })
        .await
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}
