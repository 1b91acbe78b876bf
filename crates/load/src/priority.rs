//! How the client's threads stand beside everything else that wants this machine's CPUs.
//!
//! The kernel stamps what arrives, so a client thread that is late still knows when a chunk came: unless it waits for its CPU
//! longer than a gap. Then two chunks lie in the socket, are read together and have the time of the second. On a busy machine
//! that is common, and on an idle one other programs' short work still does it to one chunk in a hundred. So client threads
//! ask to go first. They need little time each and sleep in between; what they take, a client on a machine of its own would
//! not take from the server, and the result says how much that was.
//!
//! A real-time thread that never sleeps would keep its CPU from all others. Three things stand against it: there are fewer such
//! threads than CPUs (otherwise the lower priority is asked for), a client thread sleeps whenever its sockets are empty, and
//! the kernel leaves 5 % to the others whatever happens (`sched_rt_runtime_us`, sched(7)).

use rustix::process::setpriority_process;
use serde::{Deserialize, Serialize};
use thread_priority::{
    RealtimeThreadSchedulePolicy::RoundRobin, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

/// Of threads at [`Priority::Nice`].
const NICENESS: i32 = -15;

/// Whom a thread goes before, from the lowest to the highest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Nobody: as any other program.
    #[default]
    Normal,
    /// Most programs: niceness -15.
    Nice,
    /// All programs that are not real-time themselves: `SCHED_RR`, lowest level.
    RealTime,
}

/// A client's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientThreads {
    /// How many.
    pub count: usize,
    /// What they ask for; where the system refuses they take the next lower one.
    pub priority: Priority,
}

impl Default for ClientThreads {
    /// One thread for every two CPUs, at most four: the other CPUs are for the system's share of each packet, and for a server on
    /// this machine. They ask for real time.
    fn default() -> Self {
        Self { count: (cpus() / 2).clamp(1, 4), priority: Priority::RealTime }
    }
}

impl ClientThreads {
    /// What this many threads may ask for: real time only where a CPU is left for everything else.
    pub(crate) fn asked(self) -> Priority {
        if self.count < cpus() { self.priority } else { self.priority.min(Priority::Nice) }
    }
}

impl Priority {
    /// In words, as `with real-time priority`.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Normal => "normal priority",
            Self::Nice => "niceness -15",
            Self::RealTime => "real-time priority",
        }
    }

    /// Asks for this priority for the calling thread, for the next lower one where that is refused; what it got.
    pub(crate) fn take(self) -> Self {
        match self {
            Self::RealTime if real_time() => Self::RealTime,
            Self::RealTime | Self::Nice if niceness(NICENESS) => Self::Nice,
            _ => Self::Normal,
        }
    }
}

/// Sets the calling thread's niceness; false where the system refuses.
pub(crate) fn niceness(niceness: i32) -> bool {
    // On Linux niceness is a thread's own, elsewhere the whole process's.
    cfg!(target_os = "linux") && setpriority_process(None, niceness).is_ok()
}

fn real_time() -> bool {
    let policy = ThreadSchedulePolicy::Realtime(RoundRobin);
    cfg!(target_os = "linux") && set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy).is_ok()
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_time_leaves_a_cpu_to_everything_else() {
        let asked = |count, priority| ClientThreads { count, priority }.asked();
        assert_eq!(asked(cpus(), Priority::RealTime), Priority::Nice);
        assert_eq!(asked(cpus() + 3, Priority::RealTime), Priority::Nice);
        assert_eq!(asked(cpus() - 1, Priority::RealTime), Priority::RealTime);
        assert_eq!(asked(cpus() - 1, Priority::Normal), Priority::Normal);
        assert_eq!(asked(cpus(), Priority::Normal), Priority::Normal);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_has_the_priority_it_says() {
        for asked in [Priority::Normal, Priority::Nice, Priority::RealTime] {
            let (got, stat) = std::thread::spawn(move || (asked.take(), own_stat())).join().unwrap();
            assert!(got <= asked);
            let [_, niceness, real_time, policy] = stat;
            match got {
                Priority::Normal => assert_eq!([real_time, policy], [0, 0]),
                Priority::Nice => assert_eq!([niceness, real_time, policy], [NICENESS.into(), 0, 0]),
                Priority::RealTime => assert_eq!([real_time, policy], [1, 2]),
            }
        }
    }

    /// Kernel priority, niceness, real-time priority and policy of the calling thread: fields 18, 19, 40 and 41 of proc(5).
    #[cfg(target_os = "linux")]
    fn own_stat() -> [i64; 4] {
        let text = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
        [18, 19, 40, 41].map(|field| fields[field - 3].parse().unwrap())
    }
}
