//! Notices when the executor does not come back from a step, which the engine thread, waiting for it, cannot.

use crate::handle::Shared;
use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

/// How often it looks: a share of the limit, within these bounds.
const LOOKS_PER_LIMIT: u32 = 8;
const INTERVAL_MIN: Duration = Duration::from_millis(5);
const INTERVAL_MAX: Duration = Duration::from_secs(1);

/// Declares the engine dead when a step takes longer than `limit`, and says so to `last_word`. Does not run while the executor has nothing to do,
/// and returns when the engine thread has ended.
pub(crate) fn watch(shared: &Arc<Shared>, limit: Duration, last_word: &mpsc::Sender<u32>) {
    let interval = (limit / LOOKS_PER_LIMIT).clamp(INTERVAL_MIN, INTERVAL_MAX);
    // Found late at two looks: a process that was stopped for a while (SIGSTOP, a debugger) comes back to one.
    let mut late = None;
    while shared.pulse.next_look(interval) {
        match shared.pulse.overdue(Instant::now(), limit) {
            Some((task, took)) if late == Some(task) => {
                let (took, limit) = (took.as_secs_f64(), limit.as_secs_f64());
                shared.die(format!(
                    "{task} has not come back after {took:.1} s; --step-timeout is {limit} s: the device hangs, or is too slow for such steps (lower --max-num-batched-tokens, or raise the limit)"
                ));
                // Nobody waits for it unless the engine is being stopped.
                let _ = last_word.send(0);
                return;
            }
            found => late = found.map(|(task, _)| task),
        }
    }
}
