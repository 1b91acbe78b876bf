//! How the client's threads stand beside everything else that wants this machine's CPUs.
//!
//! The kernel stamps what arrives, so a client thread that is late still knows when a chunk came: unless it waits for its CPU
//! longer than a gap. Then two chunks lie in the socket, are read together and have the time of the second. On a busy machine
//! that is common, and on an idle one other programs' short work still does it to one chunk in a hundred. So client threads
//! ask to go first. They need little time each and sleep in between; what they take, a client on a machine of its own would
//! not take from the server, and the result says how much that was.
//!
//! A real-time thread that never sleeps would keep its CPU from all others. Three things stand against it: there are no more such
//! threads than CPUs, a client thread sleeps whenever its sockets are empty, and the kernel leaves 5 % to the others whatever happens
//! (`sched_rt_runtime_us`, sched(7); where it does not, there are fewer such threads than CPUs).

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
    /// How many. Where none is said: one for every two CPUs, at most four, because the other CPUs are for the system's share of each packet and for a
    /// server on this machine; of [`CLIENTS_MANY`] clients and more at least two.
    pub count: Option<usize>,
    /// What they ask for; where the system refuses they take the next lower one.
    pub priority: Priority,
}

impl Default for ClientThreads {
    /// As many as suits the clients, in real time.
    fn default() -> Self {
        Self { count: None, priority: Priority::RealTime }
    }
}

/// So many clients may bring more than one CPU can read.
pub const CLIENTS_MANY: u32 = 500;

/// The threads of a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) count: usize,
    /// What each asks for: real time only where a CPU, or a part of each, is left for everything else.
    pub(crate) priority: Priority,
    /// Of each thread the CPU it stays on, where there is a thread for each CPU: moved about, two of them would meet on one for longer than a gap.
    pub(crate) cpus: Option<Vec<usize>>,
}

impl ClientThreads {
    /// Of so many clients.
    pub(crate) fn of(self, clients: u32) -> Placement {
        let cpus = cpus();
        let suits = (cpus / 2).clamp(1, 4).max(if clients < CLIENTS_MANY { 1 } else { cpus.min(2) });
        let count = self.count.unwrap_or(suits).clamp(1, clients.max(1) as usize);
        let leaves_time = count < cpus || (count == cpus && real_time_is_limited());
        let priority = if leaves_time { self.priority } else { self.priority.min(Priority::Nice) };
        let allowed = Some(allowed_cpus()).filter(|allowed| count == cpus && allowed.len() == cpus);
        Placement { count, priority, cpus: allowed.filter(|_| cpus > 1) }
    }
}

/// Whether the kernel leaves a part of each CPU to what is not real-time, as it does unless told otherwise.
fn real_time_is_limited() -> bool {
    let limit = std::fs::read_to_string("/proc/sys/kernel/sched_rt_runtime_us");
    limit.is_ok_and(|text| text.trim().parse::<i64>().is_ok_and(|limit_us| limit_us >= 0))
}

/// Keeps the calling thread on one CPU; it goes on where the system refuses.
pub(crate) fn stay_on(cpu: usize) {
    #[cfg(target_os = "linux")]
    {
        let mut set = rustix::thread::CpuSet::new();
        set.set(cpu);
        _ = rustix::thread::sched_setaffinity(None, &set);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = cpu;
}

/// The CPUs that the calling thread may run on; none where the system does not tell.
fn allowed_cpus() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    if let Ok(set) = rustix::thread::sched_getaffinity(None) {
        return (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect();
    }
    Vec::new()
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
    fn real_time_leaves_something_to_everything_else() {
        let asked = |count, priority| ClientThreads { count: Some(count), priority }.of(1000).priority;
        let all = if real_time_is_limited() { Priority::RealTime } else { Priority::Nice };
        assert_eq!(asked(cpus(), Priority::RealTime), all);
        assert_eq!(asked(cpus() + 3, Priority::RealTime), Priority::Nice);
        assert_eq!(asked(cpus() - 1, Priority::RealTime), Priority::RealTime);
        assert_eq!(asked(cpus() - 1, Priority::Normal), Priority::Normal);
        assert_eq!(asked(cpus(), Priority::Normal), Priority::Normal);
    }

    #[test]
    fn many_clients_have_two_threads_where_there_are_two_cpus() {
        let count = |clients| ClientThreads::default().of(clients).count;
        assert_eq!(count(CLIENTS_MANY - 1), (cpus() / 2).clamp(1, 4));
        assert_eq!(count(CLIENTS_MANY), (cpus() / 2).clamp(1, 4).max(cpus().min(2)));
        assert_eq!(count(1), 1);
        assert_eq!(ClientThreads { count: Some(3), ..ClientThreads::default() }.of(2).count, 2);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn as_many_threads_as_cpus_stay_on_one_each() {
        let all = allowed_cpus();
        let placed = |count| ClientThreads { count: Some(count), ..ClientThreads::default() }.of(1000).cpus;
        assert_eq!(placed(cpus()), Some(all.clone()).filter(|all| all.len() == cpus() && cpus() > 1));
        assert_eq!(placed(cpus() + 1), None);
        let cpu = all[all.len() - 1];
        let stays = std::thread::spawn(move || {
            stay_on(cpu);
            allowed_cpus()
        });
        assert_eq!(stays.join().unwrap(), [cpu]);
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
