//! Where the time of steps goes: of each thread and phase, what it worked and what it waited for the others.
//!
//! Off unless asked for: then a phase costs one look at the clock at its start and two at its barrier.

use std::cell::{Cell, RefCell};

/// A part of a step. Some are left out, or run together with another, depending on how many rows a step has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Rows of the embedding and the sines and cosines of positions.
    Embedding,
    /// Norm before attention and encoding of its result.
    AttentionNorm,
    /// Projection to queries, keys and values.
    QueryKeyValue,
    /// Rotation of queries and keys; keys and values into the cache.
    Rotation,
    /// Attention over the cache.
    Attention,
    /// Merging of what threads found in their shares of long contexts.
    Merge,
    /// Encoding of the attention's output.
    AttentionEncoding,
    /// Projection of the attention's output onto the residual.
    Output,
    /// Norm before the feed-forward and encoding of its result.
    FeedForwardNorm,
    /// Gate and up projections, their activation and its encoding.
    GateAndUp,
    /// Down projection onto the residual.
    Down,
    /// Norms after the branches, where a model has them.
    BranchNorm,
    /// Last norm and the logits.
    Logits,
    /// Choice of tokens.
    Sampling,
}

impl Phase {
    /// All, in the order of a step.
    pub const ALL: [Self; 14] = [
        Self::Embedding,
        Self::AttentionNorm,
        Self::QueryKeyValue,
        Self::Rotation,
        Self::Attention,
        Self::Merge,
        Self::AttentionEncoding,
        Self::Output,
        Self::FeedForwardNorm,
        Self::GateAndUp,
        Self::Down,
        Self::BranchNorm,
        Self::Logits,
        Self::Sampling,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::AttentionNorm => "attention norm, encoding",
            Self::QueryKeyValue => "query, key, value",
            Self::Rotation => "rotation, KV store",
            Self::Attention => "attention",
            Self::Merge => "merge of spans",
            Self::AttentionEncoding => "attention output encoding",
            Self::Output => "output projection",
            Self::FeedForwardNorm => "feed-forward norm, encoding",
            Self::GateAndUp => "gate and up, activation",
            Self::Down => "down projection",
            Self::BranchNorm => "branch norms",
            Self::Logits => "logits",
            Self::Sampling => "sampling",
        }
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProfileClock {
    /// Seconds that pass.
    Wall,
    /// Seconds a thread had a core: what others on the machine took does not count. A system call each time, 0.2 µs.
    Cpu,
}

/// Seconds of one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PhaseTime {
    /// At work.
    pub worked: f64,
    /// At the barriers that end it.
    pub waited: f64,
}

/// One thread's seconds by phase, over all steps since profiling began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ThreadProfile([PhaseTime; Phase::ALL.len()]);

impl ThreadProfile {
    /// Of one phase.
    pub fn of(&self, phase: Phase) -> PhaseTime {
        self.0[phase as usize]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (time, other) in self.0.iter_mut().zip(&other.0) {
            time.worked += other.worked;
            time.waited += other.waited;
        }
    }
}

/// Attributes one thread's time during a job to phases.
pub(crate) struct PhaseTimer {
    clock: Option<ProfileClock>,
    phase: Cell<Phase>,
    since: Cell<f64>,
    times: RefCell<ThreadProfile>,
}

impl PhaseTimer {
    /// Starts in the first phase; without a clock nothing is counted.
    pub(crate) fn start(clock: Option<ProfileClock>) -> Self {
        let since = clock.map_or(0.0, now);
        Self { clock, phase: Cell::new(Phase::Embedding), since: Cell::new(since), times: RefCell::default() }
    }

    /// What follows is work of `phase`.
    #[inline]
    pub(crate) fn enter(&self, phase: Phase) {
        if let Some(clock) = self.clock {
            self.count(clock, |time| &mut time.worked);
            self.phase.set(phase);
        }
    }

    /// Work ends: what follows is waiting.
    #[inline]
    pub(crate) fn begin_wait(&self) {
        if let Some(clock) = self.clock {
            self.count(clock, |time| &mut time.worked);
        }
    }

    /// Waiting ends.
    #[inline]
    pub(crate) fn end_wait(&self) {
        if let Some(clock) = self.clock {
            self.count(clock, |time| &mut time.waited);
        }
    }

    /// All that was counted.
    pub(crate) fn stop(&self) -> ThreadProfile {
        self.begin_wait();
        *self.times.borrow()
    }

    fn count(&self, clock: ProfileClock, kind: impl FnOnce(&mut PhaseTime) -> &mut f64) {
        let now = now(clock);
        *kind(&mut self.times.borrow_mut().0[self.phase.get() as usize]) += now - self.since.replace(now);
    }
}

fn now(clock: ProfileClock) -> f64 {
    match clock {
        ProfileClock::Wall => wall_seconds(),
        ProfileClock::Cpu => thread_seconds(),
    }
}

fn wall_seconds() -> f64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed().as_secs_f64()
}

/// Seconds this thread has run: time that others had the core does not count.
#[cfg(unix)]
pub(crate) fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(unix))]
pub(crate) fn thread_seconds() -> f64 {
    wall_seconds()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_stands_at_its_number_and_has_its_own_name() {
        for (index, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, index);
            assert!(Phase::ALL[..index].iter().all(|other| other.name() != phase.name()));
        }
    }

    #[test]
    fn work_and_waiting_are_counted_where_they_belong() {
        let timer = PhaseTimer::start(Some(ProfileClock::Cpu));
        let work = || (0..100_000u64).fold(0, |sum, i| std::hint::black_box(sum ^ i));
        timer.enter(Phase::Down);
        work();
        timer.begin_wait();
        work();
        timer.end_wait();
        timer.enter(Phase::Logits);
        let profile = timer.stop();
        let down = profile.of(Phase::Down);
        assert!(down.worked > 0.0 && down.waited > 0.0, "{down:?}");
        assert_eq!(profile.of(Phase::Attention), PhaseTime::default());
        assert_eq!(profile.of(Phase::Logits).waited, 0.0);
        let mut twice = profile;
        twice.add(&profile);
        assert_eq!(twice.of(Phase::Down).waited, 2.0 * down.waited);
    }

    #[test]
    fn without_a_clock_nothing_is_counted() {
        let timer = PhaseTimer::start(None);
        timer.enter(Phase::Down);
        timer.begin_wait();
        timer.end_wait();
        assert_eq!(timer.stop(), ThreadProfile::default());
    }
}
