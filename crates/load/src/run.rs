//! One level of load: client threads, each with an event loop of its own, and what they measured.
//!
//! Threads share nothing but counters: a stream's packets wake the loop it lives on, and no other.

use crate::{
    exchange::{Client, Prepared, Target},
    observe::{self, CpuTimes, ThreadObservation},
    openai::Prompt,
    priority::{ClientThreads, Placement, Priority},
    record::{FailureClass, Nanos, Outcome, RequestRecord},
    schedule::{Load, Until},
    stop::Stop,
    work::{LaterTurn, Work},
};
use serde_json::{Value, json};
use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

/// Longest sleep between looks at whether the run was interrupted.
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// Requests that are due and wait for a client thread, each.
const DUE_MAX: usize = 256;
/// A closed loop's client waits so long where nobody listened: a server that has died would otherwise be asked as often as this machine can.
pub(crate) const REFUSED_PAUSE: Nanos = 20_000_000;
/// An open loop's first request is due so long after its threads were made.
const LEAD: Duration = Duration::from_millis(20);

/// One level.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// How load is offered.
    pub load: Load,
    /// When it ends.
    pub until: Until,
    /// Requests sent before the measured ones, in the same way; the measurement begins while they run.
    pub warmup: u64,
    /// Where the level's requests begin in the work's numbering, so that no two levels ask the same.
    pub first_number: u64,
}

/// What a level left behind.
#[derive(Clone, Debug, Default)]
pub struct LevelRun {
    /// All requests, ordered by index and turn.
    pub records: Vec<RequestRecord>,
    /// When the schedule began: 0 on the clock of stages and traces.
    pub origin: Nanos,
    /// What each client thread noted of itself.
    pub threads: Vec<ThreadObservation>,
    /// CPU seconds meanwhile, where the system tells.
    pub cpu: Option<CpuUse>,
    /// From the first request to the end of the last.
    pub wall: Duration,
    /// Ended by the user before its time.
    pub interrupted: bool,
}

/// CPU seconds spent during a level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuUse {
    /// By this process.
    pub own_s: f64,
    /// By everything else on this machine.
    pub others_s: f64,
}

/// What all clients of a level share.
struct Shared {
    target: Arc<Target>,
    work: Arc<Work>,
    level: Level,
    stop: Stop,
    records: Mutex<Vec<RequestRecord>>,
    /// The next request of a closed loop.
    next: AtomicU64,
    /// When the first measured request was due; `Nanos::MAX` before.
    measured_from: AtomicU64,
    /// When the schedule begins.
    origin: Nanos,
}

/// A request whose time has come, on its way to a client thread.
struct Due {
    request: Prepared,
    record: RequestRecord,
    /// What follows in the same conversation.
    later: Option<Conversation>,
}

/// What has been said so far, and what is still to be said.
struct Conversation {
    messages: Vec<Value>,
    later: Vec<LaterTurn>,
}

/// Runs one level to its end on `threads`, of which there are no more than clients.
///
/// # Errors
/// When a thread's event loop cannot be made.
pub fn run_level(
    target: &Arc<Target>,
    work: &Arc<Work>,
    level: Level,
    threads: ClientThreads,
    stop: &Stop,
) -> io::Result<LevelRun> {
    let placement = threads.of(level.load.clients_max());
    let runtimes: Vec<Runtime> =
        (0..placement.count).map(|_| Builder::new_current_thread().enable_all().build()).collect::<io::Result<_>>()?;
    let shared = Arc::new(Shared {
        target: target.clone(),
        work: work.clone(),
        level,
        stop: stop.clone(),
        records: Mutex::default(),
        next: AtomicU64::new(0),
        measured_from: AtomicU64::new(Nanos::MAX),
        origin: target.clock.now() + LEAD.as_nanos() as Nanos,
    });
    let (cpu_before, began) = (CpuTimes::now(), Instant::now());
    let threads = run_threads(&shared, runtimes, &placement);
    let wall = began.elapsed();
    let cpu = cpu_before
        .zip(CpuTimes::now())
        .map(|(before, after)| CpuUse { own_s: after.own_s - before.own_s, others_s: after.others_since(&before) });
    let mut records = std::mem::take(&mut *lock(&shared.records));
    records.sort_unstable_by_key(|record| (record.index, record.turn));
    Ok(LevelRun { records, origin: shared.origin, threads, cpu, wall, interrupted: stop.is_requested() })
}

/// Runs the clients on a thread for each runtime, a prober beside them, and the pacer of an open loop.
fn run_threads(shared: &Arc<Shared>, runtimes: Vec<Runtime>, placement: &Placement) -> Vec<ThreadObservation> {
    let priority = placement.priority;
    let probing_done = AtomicBool::new(false);
    let count = runtimes.len();
    std::thread::scope(|scope| {
        let (mut clients, mut probes, mut dues) = (Vec::new(), Vec::new(), Vec::new());
        for (place, runtime) in runtimes.into_iter().enumerate() {
            let (probe, probe_receiver) = mpsc::channel(observe::PROBES_MAX);
            let (due, due_receiver) = mpsc::channel(DUE_MAX);
            probes.push(probe);
            dues.push(due);
            let all = shared.level.load.clients_max();
            let mine: Vec<u32> = (0..all).filter(|client| *client as usize % count == place).collect();
            let cpu = placement.cpus.as_ref().map(|cpus| cpus[place]);
            clients.push(scope.spawn(move || {
                observe::observed(shared.target.clock, priority, cpu, probe_receiver, &runtime, async {
                    match shared.level.load {
                        Load::Closed { .. } | Load::Clients { .. } => closed_loop(shared, mine).await,
                        Load::Open { .. } | Load::Rates { .. } | Load::Trace { .. } => {
                            open_loop(shared, mine.len().max(1), due_receiver).await;
                        }
                    }
                })
            }));
        }
        let prober = scope.spawn(|| observe::probe(&shared.target.clock, probes, &probing_done));
        if let Some(times) = shared.level.load.times(shared.work.seed) {
            scope.spawn(move || {
                // It writes requests out: that may take all of a CPU, which is not for a real-time thread.
                priority.min(Priority::Nice).take();
                pace(shared, times, dues);
            });
        }
        let joined: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        probing_done.store(true, Relaxed);
        // A client's panic is a fault of this program: it goes on here.
        let observations = joined.into_iter().map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let observations = observations.collect();
        _ = prober.join();
        observations
    })
}

/// Clients that each send their next request when the last has ended.
async fn closed_loop(shared: &Arc<Shared>, clients: Vec<u32>) {
    let mut tasks = JoinSet::new();
    for number in clients {
        let shared = shared.clone();
        tasks.spawn(async move {
            if !shared.wait_for_turn(number).await {
                return;
            }
            let mut client = shared.client();
            tokio::select! {
                biased;
                () = client.connect_ahead() => {}
                () = shared.stop.requested() => {}
            }
            while shared.wait_for_turn(number).await
                && let Some(due) = shared.next_turn()
            {
                let refused = shared.converse(&mut client, due).await;
                if refused && !shared.wait_until(shared.target.clock.now() + REFUSED_PAUSE).await {
                    return;
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// Takes requests as they become due, each by a client that has nothing to do.
async fn open_loop(shared: &Arc<Shared>, in_flight_max: usize, mut dues: mpsc::Receiver<Due>) {
    let idle: Arc<Mutex<Vec<Client>>> = Arc::default();
    let permits = Arc::new(Semaphore::new(in_flight_max));
    let mut tasks = JoinSet::new();
    loop {
        let next = async {
            // The semaphore is never closed.
            let permit = permits.clone().acquire_owned().await.ok()?;
            Some((permit, dues.recv().await?))
        };
        let (permit, due) = tokio::select! {
            biased;
            () = shared.stop.requested() => break,
            next = next => match next {
                Some(next) => next,
                None => break,
            },
        };
        let (shared, idle) = (shared.clone(), idle.clone());
        tasks.spawn(async move {
            let kept = lock(&idle).pop();
            let mut client = kept.unwrap_or_else(|| shared.client());
            shared.converse(&mut client, due).await;
            lock(&idle).push(client);
            drop(permit);
        });
        while tasks.try_join_next().is_some() {}
    }
    // The pacer must not wait for a loop that takes no more.
    drop(dues);
    while tasks.join_next().await.is_some() {}
}

/// Hands requests over when they are due, each written out beforehand; for a thread that has nothing else to do.
fn pace(shared: &Shared, times: impl Iterator<Item = Nanos>, dues: Vec<mpsc::Sender<Due>>) {
    let Shared { target, work, level, stop, origin, .. } = shared;
    let mut first_measured = None;
    for (index, time) in (0..).zip(times) {
        let warmup = index < level.warmup;
        if !warmup {
            let first = *first_measured.get_or_insert(time);
            if !level.until.allows(index - level.warmup, Duration::from_nanos(time - first)) {
                return;
            }
        }
        let mut due = prepare(target, work, level, index);
        due.record.scheduled = origin + time;
        while let Some(left) = target.clock.until(due.record.scheduled) {
            if stop.is_requested() {
                return;
            }
            std::thread::sleep(left.min(SLEEP_MAX));
        }
        // The loop that takes it has ended only when the run was interrupted.
        if dues[(index % dues.len() as u64) as usize].blocking_send(due).is_err() {
            return;
        }
    }
}

impl Shared {
    /// A client without a connection.
    fn client(&self) -> Client {
        let mut client = Client::new(self.target.clone());
        if self.work.conversations.is_some() {
            client.keep_answers();
        }
        client
    }

    /// Waits until a client's number is below that of the clients there should be; false when that never comes.
    async fn wait_for_turn(&self, number: u32) -> bool {
        let Load::Clients { stages } = &self.level.load else { return true };
        let now = self.target.clock.now().saturating_sub(self.origin);
        match stages.next_above(f64::from(number), now) {
            Some(at) => self.wait_until(self.origin + at).await,
            None => false,
        }
    }

    /// Waits for a time; false when the run is interrupted before.
    async fn wait_until(&self, at: Nanos) -> bool {
        while let Some(left) = self.target.clock.until(at) {
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = self.stop.requested() => return false,
            }
        }
        true
    }

    /// Sends a request and, after thinking, what follows in its conversation, as long as answers are whole; whether nobody listened.
    async fn converse(&self, client: &mut Client, due: Due) -> bool {
        let Due { request, mut record, later } = due;
        client.send(&request, &mut record, &self.stop).await;
        let (index, warmup) = (record.index, record.warmup);
        let mut last = (record.ended, record.outcome());
        let refused = record.failure.as_ref().is_some_and(|failure| failure.class == FailureClass::Refused);
        lock(&self.records).push(record);
        let Some(Conversation { mut messages, later }) = later else { return refused };
        for (turn, next) in (1..).zip(later) {
            if last.1 != Outcome::Completed {
                return refused;
            }
            messages.push(json!({"role": "assistant", "content": client.answer()}));
            messages.push(json!({"role": "user", "content": next.text}));
            let prompt = Prompt::Messages(messages);
            let request = self.target.prepare(&prompt, next.output_tokens_max);
            let Prompt::Messages(said) = prompt else { return refused };
            messages = said;
            // Without a pause a turn is due when it is written out, as in a closed loop.
            let due = (last.0 + next.think.as_nanos() as Nanos).max(self.target.clock.now());
            if !self.wait_until(due).await {
                return refused;
            }
            let mut record = RequestRecord {
                index,
                turn,
                warmup,
                scheduled: due,
                output_tokens_asked: next.output_tokens_max,
                ..RequestRecord::default()
            };
            client.send(&request, &mut record, &self.stop).await;
            last = (record.ended, record.outcome());
            lock(&self.records).push(record);
        }
        refused
    }

    /// The next request of a closed loop, due now; none when the level is over.
    fn next_turn(&self) -> Option<Due> {
        if self.stop.is_requested() {
            return None;
        }
        let Self { target, work, level, .. } = self;
        let index = self.next.fetch_add(1, Relaxed);
        // Written out before it is due: that work is not part of the latency.
        let mut due = prepare(target, work, level, index);
        let now = target.clock.now();
        due.record.scheduled = now;
        if index >= level.warmup {
            let first = self.measured_from.fetch_min(now, Relaxed).min(now);
            if !level.until.allows(index - level.warmup, Duration::from_nanos(now - first)) {
                return None;
            }
        }
        Some(due)
    }
}

fn prepare(target: &Target, work: &Work, level: &Level, index: u64) -> Due {
    let item = work.item(level.first_number + index);
    let record = RequestRecord {
        index,
        warmup: index < level.warmup,
        prompt_tokens_asked: item.prompt_tokens,
        output_tokens_asked: item.output_tokens_max,
        ..RequestRecord::default()
    };
    let turns = work.later_turns(level.first_number + index);
    let later = (!turns.is_empty()).then(|| Conversation { messages: messages(&item.prompt), later: turns });
    Due { request: target.prepare(&item.prompt, item.output_tokens_max), record, later }
}

fn messages(prompt: &Prompt) -> Vec<Value> {
    match prompt {
        Prompt::Text(text) => vec![json!({"role": "user", "content": text})],
        Prompt::Messages(messages) => messages.clone(),
        // Token ids have no turns: such work has no conversations.
        Prompt::Tokens(_) => Vec::new(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is behind these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
