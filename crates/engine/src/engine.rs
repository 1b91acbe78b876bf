//! Starting and stopping the engine thread.

use crate::{
    EngineConfig, Handle, Health, StartError,
    clients::Clients,
    handle::{COMMANDS_MAX, Command, Shared},
    health::Pulse,
    snapshot::Counters,
    watchdog,
    worker::Worker,
};
use powertrain_scheduler::{Scheduler, SchedulerConfig};
use powertrain_step::Executor;
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, atomic::AtomicBool, atomic::Ordering::Relaxed, mpsc},
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, mpsc::unbounded_channel};

/// Waits this long beyond the deadline for the step in flight, then leaves the thread to the process's end.
const LAST_STEP_GRACE: Duration = Duration::from_secs(10);

/// A running engine. Dropping it ends what runs at once; [`drain`](Self::drain) gives it time.
pub struct Engine {
    handle: Handle,
    /// The thread's last word, or the watchdog's: requests it had to cut short. `None` once it was heard.
    done: Option<mpsc::Receiver<u32>>,
}

/// How a drain went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drained {
    /// The engine stopped; this many requests had to be ended before they were done.
    Stopped {
        /// Requests that ended with [`crate::FinishReason::Shutdown`].
        cut_short: u32,
    },
    /// A step hangs in the executor; its requests cannot be ended.
    Stuck,
    /// The engine died, before or meanwhile; its requests ended with the reason.
    Dead {
        /// What [`Health::Dead`] says.
        reason: String,
    },
}

impl Engine {
    /// Starts the engine thread around an executor that is loaded.
    ///
    /// # Errors
    /// When the limits cannot work together, or there is no thread.
    pub fn start(config: EngineConfig, executor: Box<dyn Executor>) -> Result<Self, StartError> {
        let mut facts = executor.facts().clone();
        facts.step_costs = facts.step_costs.filter(|_| config.pace_prompts);
        let scheduler = Scheduler::new(SchedulerConfig {
            limits: config.limits,
            kv_blocks: facts.kv_blocks,
            max_queue: config.max_queue,
            prefix_caching: config.prefix_caching,
            depth: if config.async_scheduling { facts.depth } else { 1 },
            hash_key: random_key(),
            step_costs: facts.step_costs.clone(),
        })?;
        let (commands, receiver) = unbounded_channel();
        let shared = Arc::new(Shared {
            commands,
            permits: Arc::new(Semaphore::new(COMMANDS_MAX)),
            draining: AtomicBool::new(false),
            pulse: Pulse::new(config.stall_timeout),
            counters: Counters::default(),
            clients: Clients::default(),
            facts,
            limits: config.limits,
            vocab_size: config.vocab_size,
        });
        let (finished, done) = mpsc::channel();
        if let Some(limit) = config.step_timeout {
            let (shared, last_word) = (Arc::clone(&shared), finished.clone());
            let watch = move || watchdog::watch(&shared, limit, &last_word);
            std::thread::Builder::new().name("engine-watchdog".into()).spawn(watch)?;
        }
        let worker = Worker::new(scheduler, executor, receiver, Arc::clone(&shared));
        let watched = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
            let cut_short = worker.run();
            // Nobody waits for it when the engine was dropped after a stuck drain.
            let _ = finished.send(cut_short);
            watched.pulse.end_watch();
        });
        if let Err(error) = thread {
            shared.pulse.end_watch();
            return Err(error.into());
        }
        Ok(Self { handle: Handle { shared }, done: Some(done) })
    }

    /// A reference for those who submit and watch.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Refuses new requests, lets the others finish until the deadline, ends the rest with
    /// [`crate::FinishReason::Shutdown`] and stops. Blocks this thread; where that must not be, call it on a blocking one.
    pub fn drain(mut self, deadline: Instant) -> Drained {
        self.stop(deadline)
    }

    fn stop(&mut self, deadline: Instant) -> Drained {
        let Some(done) = self.done.take() else { return Drained::Stopped { cut_short: 0 } };
        self.handle.shared.draining.store(true, Relaxed);
        // A thread that is gone has left its last word already.
        let _ = self.handle.shared.commands.send(Command::Drain(deadline));
        let patience = deadline.saturating_duration_since(Instant::now()) + LAST_STEP_GRACE;
        // A dead engine's thread may never come back from the executor.
        let dead = self.handle.shared.pulse.is_dead();
        let last_word = if dead { Ok(0) } else { done.recv_timeout(patience) };
        match (self.handle.health(), last_word) {
            (Health::Dead(reason), _) => Drained::Dead { reason },
            (_, Ok(cut_short)) => Drained::Stopped { cut_short },
            (_, Err(mpsc::RecvTimeoutError::Disconnected)) => Drained::Stopped { cut_short: 0 },
            (_, Err(mpsc::RecvTimeoutError::Timeout)) => Drained::Stuck,
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop(Instant::now());
    }
}

/// Sixteen bytes nobody can guess, from the standard library's own source of them.
fn random_key() -> [u8; 16] {
    let half = || RandomState::new().build_hasher().finish().to_le_bytes();
    let mut key = [0; 16];
    key[..8].copy_from_slice(&half());
    key[8..].copy_from_slice(&half());
    key
}
