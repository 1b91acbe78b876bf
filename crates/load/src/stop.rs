//! The user's wish to end a run early; what was measured is kept.

use tokio::sync::watch;

/// A switch that all parts of a run look at.
#[derive(Clone, Debug)]
pub struct Stop {
    requested: watch::Sender<bool>,
}

impl Stop {
    /// Not requested yet.
    pub fn new() -> Self {
        Self { requested: watch::Sender::new(false) }
    }

    /// Asks for the end.
    pub fn request(&self) {
        self.requested.send_replace(true);
    }

    /// Whether the end was asked for.
    pub fn is_requested(&self) -> bool {
        *self.requested.borrow()
    }

    /// Ends when the end is asked for.
    pub async fn requested(&self) {
        // The sender lives in `self`: waiting cannot fail.
        _ = self.requested.subscribe().wait_for(|requested| *requested).await;
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}
