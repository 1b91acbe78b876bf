//! Whether the engine works: a step completed lately, or there is nothing to run; and what the executor is at.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// The engine's own answer to "are you alive?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// There is nothing to run, or a step completed within the stall timeout.
    Live,
    /// There is work, and no step completed for this long.
    Stalled(Duration),
    /// The engine broke down: the executor was lost, a step hangs, or a panic ended the thread. The process must be restarted.
    Dead(String),
}

impl Health {
    /// Whether requests can be expected to make progress.
    pub fn is_live(&self) -> bool {
        *self == Self::Live
    }
}

/// What the executor was given to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Step { step: u64, rows: usize, tokens: u32 },
    Preparation,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step { step, rows, tokens } => write!(f, "step {step} ({rows} rows, {tokens} tokens)"),
            Self::Preparation => f.write_str("a preparation of steps to come"),
        }
    }
}

/// What the executor is at.
#[derive(Default)]
struct Tasks {
    /// What it has not given back, oldest first, each with the moment from which on it alone keeps the engine waiting.
    given: VecDeque<(Task, Instant)>,
    /// Whether the watchdog waits for a task to begin: while there is none it does not run at all.
    watchdog_sleeps: bool,
    /// Whether the engine thread has ended.
    over: bool,
}

/// Written by the engine thread, read by anyone.
pub(crate) struct Pulse {
    origin: Instant,
    stall_timeout: Duration,
    busy: AtomicBool,
    /// Milliseconds since `origin` at which a step completed or work appeared.
    last_beat_ms: AtomicU64,
    tasks: Mutex<Tasks>,
    /// Told when a task begins while the watchdog sleeps, and when the engine thread ends.
    watched: Condvar,
    death: watch::Sender<Option<String>>,
}

impl Pulse {
    pub(crate) fn new(stall_timeout: Duration) -> Self {
        Self {
            origin: Instant::now(),
            stall_timeout,
            busy: AtomicBool::new(false),
            last_beat_ms: AtomicU64::new(0),
            tasks: Mutex::default(),
            watched: Condvar::new(),
            death: watch::Sender::new(None),
        }
    }

    /// A step completed, or the first work appeared.
    pub(crate) fn beat(&self, now: Instant) {
        self.last_beat_ms.store(now.saturating_duration_since(self.origin).as_millis() as u64, Relaxed);
        self.busy.store(true, Relaxed);
    }

    /// There is nothing to run.
    pub(crate) fn rest(&self) {
        self.busy.store(false, Relaxed);
    }

    /// The executor was given a task.
    pub(crate) fn begin(&self, task: Task, now: Instant) {
        let mut tasks = self.tasks();
        tasks.given.push_back((task, now));
        if std::mem::take(&mut tasks.watchdog_sleeps) {
            self.watched.notify_one();
        }
    }

    /// The executor did not take the last task.
    pub(crate) fn retract(&self) {
        self.tasks().given.pop_back();
    }

    /// The executor gave the oldest task back; the next one could not be done before.
    pub(crate) fn end(&self, now: Instant) {
        let mut tasks = self.tasks();
        tasks.given.pop_front();
        if let Some((_, since)) = tasks.given.front_mut() {
            *since = now;
        }
    }

    /// The task that keeps the engine waiting for longer than `limit`, and for how long.
    pub(crate) fn overdue(&self, now: Instant, limit: Duration) -> Option<(Task, Duration)> {
        let (task, since) = *self.tasks().given.front()?;
        let took = now.saturating_duration_since(since);
        (took > limit).then_some((task, took))
    }

    /// Waits until the executor has a task, and `interval` from then on; `false` when the engine thread has ended.
    pub(crate) fn next_look(&self, interval: Duration) -> bool {
        let mut tasks = self.tasks();
        while tasks.given.is_empty() && !tasks.over {
            tasks.watchdog_sleeps = true;
            tasks = self.watched.wait(tasks).unwrap_or_else(PoisonError::into_inner);
        }
        tasks.watchdog_sleeps = false;
        let waited = self.watched.wait_timeout_while(tasks, interval, |tasks| !tasks.over);
        !waited.unwrap_or_else(PoisonError::into_inner).0.over
    }

    /// The engine thread has ended: nothing is left to watch.
    pub(crate) fn end_watch(&self) {
        self.tasks().over = true;
        self.watched.notify_one();
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engine broke down; only the first reason counts.
    pub(crate) fn die(&self, reason: String) {
        self.death.send_if_modified(|death| {
            let first = death.is_none();
            death.get_or_insert(reason);
            first
        });
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.death.borrow().is_some()
    }

    /// Resolves with the reason when the engine breaks down.
    pub(crate) async fn death(&self) -> String {
        let mut death = self.death.subscribe();
        let reason = death.wait_for(Option::is_some).await;
        // The sender is `self`.
        reason.ok().and_then(|reason| reason.clone()).unwrap_or_default()
    }

    pub(crate) fn health(&self, now: Instant) -> Health {
        if let Some(reason) = &*self.death.borrow() {
            return Health::Dead(reason.clone());
        }
        let last_beat = self.origin + Duration::from_millis(self.last_beat_ms.load(Relaxed));
        let silence = now.saturating_duration_since(last_beat);
        if self.busy.load(Relaxed) && silence > self.stall_timeout { Health::Stalled(silence) } else { Health::Live }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_is_a_recent_step_or_nothing_to_run() {
        let pulse = Pulse::new(Duration::from_secs(10));
        let at = |seconds| pulse.origin + Duration::from_secs(seconds);
        assert_eq!(pulse.health(at(1000)), Health::Live, "idle");
        pulse.beat(at(1000));
        assert_eq!(pulse.health(at(1009)), Health::Live, "a step completed lately");
        assert_eq!(pulse.health(at(1011)), Health::Stalled(Duration::from_secs(11)));
        pulse.rest();
        assert_eq!(pulse.health(at(2000)), Health::Live, "idle again");
        pulse.die("it broke".into());
        pulse.die("it broke again".into());
        assert_eq!(pulse.health(at(2000)), Health::Dead("it broke".into()));
    }

    #[test]
    fn overdue_is_the_oldest_task_counted_from_when_it_was_alone() {
        let pulse = Pulse::new(Duration::from_secs(10));
        let at = |seconds| pulse.origin + Duration::from_secs(seconds);
        let step = |step| Task::Step { step, rows: 3, tokens: 40 };
        let overdue = |seconds| pulse.overdue(at(seconds), Duration::from_secs(5));
        assert_eq!(overdue(100), None, "nothing was given");
        pulse.begin(step(1), at(100));
        pulse.begin(step(2), at(101));
        assert_eq!(overdue(105), None);
        assert_eq!(overdue(106), Some((step(1), Duration::from_secs(6))));
        pulse.end(at(107));
        assert_eq!(overdue(112), None, "step 2 is alone since 107");
        assert_eq!(overdue(113), Some((step(2), Duration::from_secs(6))));
        pulse.begin(step(3), at(113));
        pulse.retract();
        pulse.end(at(114));
        assert_eq!(overdue(1000), None, "all were given back");
        assert_eq!(step(7).to_string(), "step 7 (3 rows, 40 tokens)");
    }
}
