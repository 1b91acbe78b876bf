//! The client watches itself: what it could not have measured well must be known, and said.
//!
//! A probe thread wakes each client thread's event loop every 10 ms, as a packet would; the time until the loop gets to it
//! is how late an arriving chunk may be stamped. `/proc` tells how much CPU time each thread had and waited for.

use crate::{
    clock::Clock,
    priority::{self, Priority},
    record::Nanos,
    rounds,
};
use std::{
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, sync::mpsc};

/// Time between probes.
const PROBE_PERIOD: Duration = Duration::from_millis(10);
/// Probes on their way to one event loop: ten seconds' worth.
pub(crate) const PROBES_MAX: usize = 1000;
/// Clock ticks of `/proc/stat` per second; fixed by Linux's interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// A wake-up on its way to an event loop: when it was sent.
pub(crate) type Probe = Nanos;

/// What one client thread noted of itself.
#[derive(Clone, Debug, Default)]
pub struct ThreadObservation {
    /// The priority it got.
    pub priority: Priority,
    /// The one it asked for.
    pub priority_asked: Priority,
    /// How long each probe waited for the event loop.
    pub lags: Vec<Nanos>,
    /// CPU time it had.
    pub cpu: Duration,
    /// Time it was ready to run and waited for a CPU.
    pub cpu_wait: Duration,
    /// From its start to its end.
    pub wall: Duration,
    /// Time during which it read in rounds.
    pub in_rounds: Duration,
}

/// CPU time of this process and of the whole machine at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuTimes {
    /// Of this process, in seconds.
    pub own_s: f64,
    /// Of everything on the machine, in seconds.
    pub machine_s: f64,
}

/// Probes the loops until `done`; for a thread of its own.
pub(crate) fn probe(clock: &Clock, loops: Vec<mpsc::Sender<Probe>>, done: &AtomicBool) {
    while !done.load(Relaxed) {
        for event_loop in &loops {
            // A loop that has ended needs no probing; one that is behind by all of these is known to be.
            _ = event_loop.try_send(clock.now());
        }
        std::thread::sleep(PROBE_PERIOD);
    }
}

/// Runs a client thread's work on its event loop, at the priority it gets, and observes both.
pub(crate) fn observed(
    clock: Clock,
    priority_asked: Priority,
    cpu: Option<usize>,
    mut probes: mpsc::Receiver<Probe>,
    runtime: &Runtime,
    work: impl Future<Output = ()>,
) -> ThreadObservation {
    if let Some(cpu) = cpu {
        priority::stay_on(cpu);
    }
    let priority = priority_asked.take();
    let (began, before) = (Instant::now(), thread_times());
    let lags: Arc<Mutex<Vec<Nanos>>> = Arc::default();
    let noted = lags.clone();
    let in_rounds: Arc<AtomicU64> = Arc::default();
    runtime.spawn(async move {
        while let Some(sent) = probes.recv().await {
            let lag = clock.now().saturating_sub(sent);
            noted.lock().unwrap_or_else(PoisonError::into_inner).push(lag);
        }
    });
    runtime.spawn(rounds::keep(in_rounds.clone()));
    runtime.block_on(work);
    let after = thread_times();
    ThreadObservation {
        priority,
        priority_asked,
        lags: std::mem::take(&mut *lags.lock().unwrap_or_else(PoisonError::into_inner)),
        cpu: after.0.saturating_sub(before.0),
        cpu_wait: after.1.saturating_sub(before.1),
        wall: began.elapsed(),
        in_rounds: Duration::from_nanos(in_rounds.load(Relaxed)),
    }
}

/// CPU time had and waited for by the calling thread; zero where the kernel does not tell.
fn thread_times() -> (Duration, Duration) {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let mut nanos = text.split_whitespace().map(|field| Duration::from_nanos(field.parse().unwrap_or(0)));
    (nanos.next().unwrap_or_default(), nanos.next().unwrap_or_default())
}

impl CpuTimes {
    /// Reads them; none where there is no Linux `/proc`.
    pub fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?, &fs::read_to_string("/proc/stat").ok()?)
    }

    /// CPU seconds of other processes between two moments.
    pub fn others_since(&self, before: &Self) -> f64 {
        // Ticks are coarse: a difference below zero is nothing.
        ((self.machine_s - before.machine_s) - (self.own_s - before.own_s)).max(0.0)
    }

    fn parse(own: &str, machine: &str) -> Option<Self> {
        // The second field is the name in parentheses and may hold spaces; user and system time are fields 14 and 15.
        let fields: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
        let own_ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        let line = machine.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal guest…; guests are part of user.
        let idle = ticks.get(3)? + ticks.get(4)?;
        let busy = ticks.iter().take(8).sum::<u64>() - idle;
        Some(Self { own_s: own_ticks as f64 / TICKS_PER_SECOND, machine_s: busy as f64 / TICKS_PER_SECOND })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        let own = "4242 (a (b) c) S 1 4242 4242 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 1 0 100 1000 10";
        let machine = "cpu  1000 100 400 9000 1000 10 20 30 500 0\ncpu0 1 2 3 4\n";
        let times = CpuTimes::parse(own, machine).unwrap();
        assert_eq!(times, CpuTimes { own_s: 2.0, machine_s: 15.6 });
        let later = CpuTimes { own_s: 3.0, machine_s: 20.6 };
        assert!((later.others_since(&times) - 4.0).abs() < 1e-9);
        assert_eq!(CpuTimes::parse("nonsense", machine), None);
    }
}
