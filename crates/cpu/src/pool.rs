//! The threads of a step: one job run by all of them, with barriers inside.
//!
//! Between steps a worker spins for some tens of microseconds, because the next step of a decode usually follows at once, and
//! then sleeps: an idle engine uses no CPU. Within a step threads meet at barriers, where they spin briefly and then yield: a
//! thread that lost its core to another process must get it back.

use crate::config::CpuError;
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

/// What all threads run: called with the thread's number and the team.
type Job<'a> = dyn Fn(usize, &Team) + Sync + 'a;

/// A job failed: a panic, which is a bug, in one of the threads. The pool is whole again.
#[derive(Debug)]
pub(crate) struct JobFailed;

/// What the threads of a running job share.
pub(crate) struct Team {
    threads: usize,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    /// The next item of the current phase.
    next: AtomicUsize,
    failed: AtomicBool,
}

impl Team {
    /// Threads.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Waits for all threads; then a new phase begins, and [`claim`](Team::claim) starts from 0 again.
    pub(crate) fn barrier(&self) {
        if self.threads == 1 {
            self.next.store(0, Ordering::Relaxed);
            return;
        }
        let generation = self.generation.load(Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.next.store(0, Ordering::Relaxed);
            self.generation.store(generation.wrapping_add(1), Ordering::Release);
        } else {
            spin_until(|| {
                assert!(!self.failed.load(Ordering::Relaxed), "another thread of the step failed");
                self.generation.load(Ordering::Acquire) != generation
            });
        }
    }

    /// Runs `work` on items `0..count` of this phase, whichever thread is free taking the next `together` of them.
    pub(crate) fn share(&self, count: usize, together: usize, mut work: impl FnMut(usize)) {
        loop {
            let first = self.next.fetch_add(together, Ordering::Relaxed);
            if first >= count {
                return;
            }
            (first..(first + together).min(count)).for_each(&mut work);
        }
    }

    /// As [`share`](Team::share), for items that stand in memory one after the other: a thread takes its share of half of what is
    /// left, so that it reads long stretches at first, which prefetchers follow, and all threads end together.
    pub(crate) fn share_stretches(&self, count: usize, mut work: impl FnMut(usize)) {
        let mut first = self.next.load(Ordering::Relaxed);
        while first < count {
            let end = first + ((count - first) / (2 * self.threads)).max(1);
            match self.next.compare_exchange_weak(first, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    (first..end).for_each(&mut work);
                    first = self.next.load(Ordering::Relaxed);
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

/// The job's address, its lifetime forgotten.
struct JobCell(UnsafeCell<Option<*const Job<'static>>>);

// SAFETY: written by `Pool::run` while all workers wait, read by workers only between the epoch's change and their report.
unsafe impl Sync for JobCell {}
// SAFETY: as above; the job itself is Sync.
unsafe impl Send for JobCell {}

struct Shared {
    team: Team,
    job: JobCell,
    /// Counts jobs; its change starts one.
    epoch: AtomicUsize,
    /// Workers done with the current job.
    finished: AtomicUsize,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

/// Worker threads; the thread that calls [`run`](Pool::run) is number 0 and works too.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads - 1` workers, pinned one to each core if wanted.
    pub(crate) fn new(threads: usize, pin: bool) -> Result<Self, CpuError> {
        let shared = Arc::new(Shared {
            team: Team {
                threads,
                arrived: AtomicUsize::new(0),
                generation: AtomicUsize::new(0),
                next: AtomicUsize::new(0),
                failed: AtomicBool::new(false),
            },
            job: JobCell(UnsafeCell::new(None)),
            epoch: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Self { shared, workers: Vec::new() };
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

    /// Runs `job` on all threads and waits for all.
    pub(crate) fn run(&mut self, job: &Job<'_>) -> Result<(), JobFailed> {
        let shared = &*self.shared;
        shared.team.arrived.store(0, Ordering::Relaxed);
        shared.team.next.store(0, Ordering::Relaxed);
        shared.finished.store(0, Ordering::Relaxed);
        // SAFETY: only the lifetime is forgotten; this function does not return before every worker is done with the job.
        let forgotten = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        // SAFETY: all workers wait for the epoch to change.
        unsafe { *shared.job.0.get() = Some(forgotten) };
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        shared.run_caught(job, 0);
        let workers = self.workers.len();
        spin_until(|| shared.finished.load(Ordering::Acquire) == workers);
        if shared.team.failed.swap(false, Ordering::Relaxed) { Err(JobFailed) } else { Ok(()) }
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
            let job = unsafe { (*self.job.0.get()).map(|job| &*job) };
            if let Some(job) = job {
                self.run_caught(job, index);
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

    fn run_caught(&self, job: &Job<'_>, index: usize) {
        if catch_unwind(AssertUnwindSafe(|| job(index, &self.team))).is_err() {
            self.team.failed.store(true, Ordering::Relaxed);
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
                pool.run(&|_, team| {
                    for phase in 0..10 {
                        let work = |item: usize| {
                            counts[phase * 10 + item].fetch_add(1, Ordering::Relaxed);
                        };
                        if phase % 2 == 0 {
                            team.share(10, 3, work);
                        } else {
                            team.share_stretches(10, work);
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
    fn a_panic_fails_the_job_and_leaves_the_pool_whole() {
        let mut pool = Pool::new(3, false).unwrap();
        for bad in 0..3 {
            let failed = pool.run(&|thread, team| {
                assert_ne!(thread, bad, "on purpose");
                team.barrier();
            });
            assert!(failed.is_err());
            let done = AtomicUsize::new(0);
            pool.run(&|_, team| {
                team.barrier();
                done.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!(done.load(Ordering::Relaxed), 3);
        }
    }
}
