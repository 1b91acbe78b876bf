//! The threads of a step: one job run by all of them, with barriers inside.
//!
//! Between steps a worker spins for some tens of microseconds, because the next step of a decode usually follows at once, and
//! then sleeps: an idle engine uses no CPU. Within a step threads meet at barriers, where they spin briefly and then yield: a
//! thread that lost its core to another process must get it back.

use crate::{
    config::CpuError,
    profile::{Phase, PhaseTimer, ProfileClock, ThreadProfile},
};
use std::{
    cell::UnsafeCell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

/// Threads a pool may have.
pub(crate) const MAX_THREADS: usize = 1024;
/// Pauses (about 20 ns each) before a worker without a step sleeps, and before a thread at a barrier yields.
const SPINS: usize = 3000;

/// What all threads run: each is called with its view of the team.
type Job<'a> = dyn Fn(&Team<'_>) + Sync + 'a;

/// A job failed: a panic, which is a bug, in one of the threads. The pool is whole again.
#[derive(Debug)]
pub(crate) struct JobFailed;

/// What the threads of a running job share.
struct Meeting {
    threads: usize,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    /// The next item of the current phase.
    next: AtomicUsize,
    /// Of each thread's own part of a phase's items, how many are taken.
    taken: Vec<OwnLine<AtomicUsize>>,
    failed: AtomicBool,
}

/// A value with a cache line of its own, so that threads do not wait for each other's.
#[derive(Default)]
#[repr(align(128))]
struct OwnLine<T>(T);

impl Meeting {
    fn begin_phase(&self) {
        self.next.store(0, Ordering::Relaxed);
        for taken in &self.taken {
            // Most phases do not use it: a line that is only read stays in all caches.
            if taken.0.load(Ordering::Relaxed) != 0 {
                taken.0.store(0, Ordering::Relaxed);
            }
        }
    }
}

/// One thread's view of those that run a job together.
pub(crate) struct Team<'a> {
    meeting: &'a Meeting,
    thread: usize,
    timer: PhaseTimer,
}

impl Team<'_> {
    /// Threads.
    pub(crate) fn threads(&self) -> usize {
        self.meeting.threads
    }

    /// This thread's number.
    pub(crate) fn thread(&self) -> usize {
        self.thread
    }

    /// Says which phase of a step follows, for the profile.
    pub(crate) fn enter(&self, phase: Phase) {
        self.timer.enter(phase);
    }

    /// Waits for all threads; then items are shared out anew, from 0 on.
    pub(crate) fn barrier(&self) {
        let meeting = self.meeting;
        if meeting.threads == 1 {
            meeting.begin_phase();
            return;
        }
        self.timer.begin_wait();
        let generation = meeting.generation.load(Ordering::Relaxed);
        if meeting.arrived.fetch_add(1, Ordering::AcqRel) + 1 == meeting.threads {
            meeting.arrived.store(0, Ordering::Relaxed);
            meeting.begin_phase();
            meeting.generation.store(generation.wrapping_add(1), Ordering::Release);
        } else {
            spin_until(|| {
                assert!(!meeting.failed.load(Ordering::Relaxed), "another thread of the step failed");
                meeting.generation.load(Ordering::Acquire) != generation
            });
        }
        self.timer.end_wait();
    }

    /// Runs `work` on items `0..count` of this phase, whichever thread is free taking the next `together` of them.
    pub(crate) fn share(&self, count: usize, together: usize, mut work: impl FnMut(usize)) {
        loop {
            let first = self.meeting.next.fetch_add(together, Ordering::Relaxed);
            if first >= count {
                return;
            }
            (first..(first + together).min(count)).for_each(&mut work);
        }
    }

    /// As [`share`](Team::share), but each thread takes the items of its own part first, one of equal parts from 0 to `count`, and
    /// then what is left of the others': what it wrote in one phase it finds in its caches in the next.
    pub(crate) fn share_owned(&self, count: usize, mut work: impl FnMut(usize)) {
        let threads = self.meeting.threads;
        for part in (self.thread..threads).chain(0..self.thread) {
            let (first, end) = (count * part / threads, count * (part + 1) / threads);
            loop {
                let item = first + self.meeting.taken[part].0.fetch_add(1, Ordering::Relaxed);
                if item >= end {
                    break;
                }
                work(item);
            }
        }
    }

    /// As [`share`](Team::share), each item with the one this thread does next: it takes its next items before it begins with those
    /// it has, so that it can ask memory for them meanwhile.
    pub(crate) fn share_ahead(&self, count: usize, together: usize, mut work: impl FnMut(usize, Option<usize>)) {
        let take = || {
            let first = self.meeting.next.fetch_add(together, Ordering::Relaxed);
            (first < count).then(|| first..(first + together).min(count))
        };
        let mut taken = take();
        while let Some(range) = taken {
            taken = take();
            let end = range.end;
            for item in range {
                let next = if item + 1 < end { Some(item + 1) } else { taken.as_ref().map(|range| range.start) };
                work(item, next);
            }
        }
    }

    /// As [`share`](Team::share), for items that stand in memory one after the other: a thread takes its share of half of what is
    /// left, so that it reads long stretches at first, which prefetchers follow, and all threads end together.
    pub(crate) fn share_stretches(&self, count: usize, mut work: impl FnMut(usize)) {
        let meeting = self.meeting;
        let mut first = meeting.next.load(Ordering::Relaxed);
        while first < count {
            let end = first + ((count - first) / (2 * meeting.threads)).max(1);
            match meeting.next.compare_exchange_weak(first, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    (first..end).for_each(&mut work);
                    first = meeting.next.load(Ordering::Relaxed);
                }
                Err(taken) => first = taken,
            }
        }
    }
}

fn spin_until(mut done: impl FnMut() -> bool) {
    let mut spins = 0;
    while !done() {
        if spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

/// A job to do.
#[derive(Clone, Copy)]
struct Order {
    /// Its address, its lifetime forgotten.
    job: *const Job<'static>,
    clock: Option<ProfileClock>,
}

struct JobCell(UnsafeCell<Option<Order>>);

// SAFETY: written by `Pool::run` while all workers wait, read by workers only between the epoch's change and their report.
unsafe impl Sync for JobCell {}
// SAFETY: as above; the job itself is Sync.
unsafe impl Send for JobCell {}

struct Shared {
    meeting: Meeting,
    job: JobCell,
    /// Counts jobs; its change starts one.
    epoch: AtomicUsize,
    /// Workers done with the current job.
    finished: AtomicUsize,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    /// One a thread.
    profiles: Vec<Mutex<ThreadProfile>>,
}

/// Worker threads; the thread that calls [`run`](Pool::run) is number 0 and works too.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    clock: Option<ProfileClock>,
}

impl Pool {
    /// Starts `threads - 1` workers, pinned one to each core if wanted.
    pub(crate) fn new(threads: usize, pin: bool) -> Result<Self, CpuError> {
        let shared = Arc::new(Shared {
            meeting: Meeting {
                threads,
                arrived: AtomicUsize::new(0),
                generation: AtomicUsize::new(0),
                next: AtomicUsize::new(0),
                taken: (0..threads).map(|_| OwnLine::default()).collect(),
                failed: AtomicBool::new(false),
            },
            job: JobCell(UnsafeCell::new(None)),
            epoch: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            profiles: (0..threads).map(|_| Mutex::default()).collect(),
        });
        let mut pool = Self { shared, workers: Vec::new(), clock: None };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new().name(format!("cpu-{index}")).spawn(move || {
                if pin {
                    pin_to_core(index);
                }
                shared.work(index);
            });
            match worker {
                Ok(worker) => pool.workers.push(worker),
                Err(error) => return Err(CpuError::Thread { index, threads, reason: error.to_string() }),
            }
        }
        Ok(pool)
    }

    /// From now on counts the time of jobs by `clock`, or no longer.
    pub(crate) fn profile(&mut self, clock: Option<ProfileClock>) {
        self.clock = clock;
    }

    /// What was counted of each thread; counting starts anew.
    pub(crate) fn take_profiles(&mut self) -> Vec<ThreadProfile> {
        let profiles = self.shared.profiles.iter();
        profiles.map(|profile| std::mem::take(&mut *profile.lock().unwrap_or_else(PoisonError::into_inner))).collect()
    }

    /// Runs `job` on all threads and waits for all.
    pub(crate) fn run(&mut self, job: &Job<'_>) -> Result<(), JobFailed> {
        let shared = &*self.shared;
        shared.meeting.arrived.store(0, Ordering::Relaxed);
        shared.meeting.begin_phase();
        shared.finished.store(0, Ordering::Relaxed);
        // SAFETY: only the lifetime is forgotten; this function does not return before every worker is done with the job.
        let forgotten = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        // SAFETY: all workers wait for the epoch to change.
        unsafe { *shared.job.0.get() = Some(Order { job: forgotten, clock: self.clock }) };
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        shared.run_caught(job, self.clock, 0);
        let workers = self.workers.len();
        spin_until(|| shared.finished.load(Ordering::Acquire) == workers);
        if shared.meeting.failed.swap(false, Ordering::Relaxed) { Err(JobFailed) } else { Ok(()) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        drop(self.shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches what its jobs throw; there is nothing to hear from it.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.wait_for_job(seen);
            seen = self.epoch.load(Ordering::Acquire);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            // SAFETY: the epoch changed, so the job is set and lives until this worker reports.
            let order = unsafe { (*self.job.0.get()).map(|order| (&*order.job, order.clock)) };
            if let Some((job, clock)) = order {
                self.run_caught(job, clock, index);
            }
            self.finished.fetch_add(1, Ordering::Release);
        }
    }

    fn wait_for_job(&self, seen: usize) {
        for _ in 0..SPINS {
            if self.epoch.load(Ordering::Acquire) != seen {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.epoch.load(Ordering::SeqCst) == seen {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn run_caught(&self, job: &Job<'_>, clock: Option<ProfileClock>, thread: usize) {
        let team = Team { meeting: &self.meeting, thread, timer: PhaseTimer::start(clock) };
        if catch_unwind(AssertUnwindSafe(|| job(&team))).is_err() {
            self.meeting.failed.store(true, Ordering::Relaxed);
        }
        if clock.is_some() {
            self.profiles[thread].lock().unwrap_or_else(PoisonError::into_inner).add(&team.timer.stop());
        }
    }
}

/// Cores this process may use.
pub(crate) fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(target_os = "linux")]
fn pin_to_core(index: usize) {
    // SAFETY: cpu_set_t is a plain bit set for which zeros are valid; the calls read and write no more than its size, and a
    // refusal leaves the thread unpinned.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of::<libc::cpu_set_t>();
        if libc::sched_getaffinity(0, size, &mut allowed) != 0 {
            return;
        }
        let mut cores = (0..libc::CPU_SETSIZE as usize).filter(|&core| libc::CPU_ISSET(core, &allowed));
        if let Some(core) = cores.nth(index) {
            let mut only: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(core, &mut only);
            libc::sched_setaffinity(0, size, &only);
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn pin_to_core(_index: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_of_every_phase_is_done_once() {
        for threads in [1, 2, 3, 5] {
            let mut pool = Pool::new(threads, false).unwrap();
            for _ in 0..20 {
                let counts: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
                pool.run(&|team| {
                    for phase in 0..10 {
                        let work = |item: usize| {
                            counts[phase * 10 + item].fetch_add(1, Ordering::Relaxed);
                        };
                        match phase % 4 {
                            0 => team.share(10, 3, work),
                            1 => team.share_stretches(10, work),
                            2 => team.share_owned(10, work),
                            _ => {
                                let mut promised = None;
                                team.share_ahead(10, 3, |item, next| {
                                    assert!(promised.is_none_or(|promised| promised == item));
                                    promised = next;
                                    work(item);
                                });
                                assert_eq!(promised, None);
                            }
                        }
                        team.barrier();
                        assert!(counts[phase * 10..][..10].iter().all(|count| count.load(Ordering::Relaxed) == 1));
                    }
                })
                .unwrap();
            }
        }
    }

    #[test]
    fn a_profile_has_the_phases_of_every_thread_and_ends_when_told() {
        let mut pool = Pool::new(3, false).unwrap();
        let job = |team: &Team<'_>| {
            team.enter(Phase::Logits);
            team.barrier();
        };
        pool.run(&job).unwrap();
        assert_eq!(pool.take_profiles(), [ThreadProfile::default(); 3]);
        pool.profile(Some(ProfileClock::Wall));
        pool.run(&job).unwrap();
        pool.profile(None);
        pool.run(&job).unwrap();
        let profiles = pool.take_profiles();
        assert!(profiles.iter().all(|profile| profile.of(Phase::Logits).waited > 0.0), "{profiles:?}");
        assert_eq!(pool.take_profiles(), [ThreadProfile::default(); 3]);
    }

    #[test]
    fn a_panic_fails_the_job_and_leaves_the_pool_whole() {
        let mut pool = Pool::new(3, false).unwrap();
        for bad in 0..3 {
            let failed = pool.run(&|team| {
                assert_ne!(team.thread(), bad, "on purpose");
                team.barrier();
            });
            assert!(failed.is_err());
            let done = AtomicUsize::new(0);
            pool.run(&|team| {
                team.barrier();
                done.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!(done.load(Ordering::Relaxed), 3);
        }
    }
}
