//! How everyone else talks to the engine thread.

use crate::{
    Event, EventStream, Failure, Health, Request, Snapshot, SubmitError, clients::Clients, health::Pulse,
    snapshot::Counters,
};
use powertrain_scheduler::{NewSequence, SequenceId};
use powertrain_step::{ExecutorFacts, StepLimits, TokenId};
use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc::UnboundedSender, oneshot};

/// Submissions the engine has not read yet; past it [`Handle::submit`] waits.
pub const COMMANDS_MAX: usize = 256;

/// A cheap, cloneable reference to a running engine.
#[derive(Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) commands: UnboundedSender<Command>,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) draining: AtomicBool,
    pub(crate) pulse: Pulse,
    pub(crate) counters: Counters,
    pub(crate) clients: Clients,
    pub(crate) facts: ExecutorFacts,
    pub(crate) limits: StepLimits,
    pub(crate) vocab_size: u32,
}

impl Shared {
    /// Ends every request, and the taking of new ones.
    pub(crate) fn die(&self, reason: String) {
        tracing::error!(reason, "the engine is dead; the process must be restarted");
        // Before the requests: who hears of a failure finds the reason, and itself counted.
        self.pulse.die(reason.clone());
        self.permits.close();
        let clients = self.clients.close(&reason);
        self.counters.add_failed(clients.len() as u64);
        for client in clients {
            client.send(Event::Failed(Failure::Engine(reason.clone())));
        }
    }
}

/// What the engine thread is told. The channel needs no bound of its own: submissions hold a permit each, a stream cancels
/// at most once, and an engine drains once.
pub(crate) enum Command {
    Submit(Submission),
    Cancel(SequenceId),
    Drain(Instant),
}

pub(crate) struct Submission {
    pub(crate) sequences: Vec<NewSequence>,
    pub(crate) deadlines: Vec<Option<Instant>>,
    pub(crate) reply: oneshot::Sender<Result<Vec<EventStream>, SubmitError>>,
    pub(crate) _permit: OwnedSemaphorePermit,
}

impl Handle {
    /// Submits these requests together: all are taken, with one stream each in their order, or none. Dropping the future
    /// cancels what was taken.
    ///
    /// # Errors
    /// When a request can never run here, the waiting queue is full, or the engine is stopping or dead.
    pub async fn submit(&self, requests: Vec<Request>) -> Result<Vec<EventStream>, SubmitError> {
        for request in &requests {
            self.check_prompt(&request.prompt)?;
        }
        let permit = Arc::clone(&self.shared.permits).acquire_owned().await;
        let _permit = permit.map_err(|_| SubmitError::EngineStopped)?;
        if self.shared.draining.load(Relaxed) {
            return Err(SubmitError::ShuttingDown);
        }
        let (reply, answer) = oneshot::channel();
        let deadlines = requests.iter().map(|request| request.deadline).collect();
        let sequences = requests.into_iter().map(Request::into_sequence).collect();
        let submission = Submission { sequences, deadlines, reply, _permit };
        self.shared.commands.send(Command::Submit(submission)).map_err(|_| SubmitError::EngineStopped)?;
        // A thread that hangs in the executor answers nobody.
        let (mut answer, mut death) = (pin!(answer), pin!(self.shared.pulse.death()));
        poll_fn(|context| match answer.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(answer.unwrap_or(Err(SubmitError::EngineStopped))),
            Poll::Pending => death.as_mut().poll(context).map(|_| Err(SubmitError::EngineStopped)),
        })
        .await
    }

    /// As [`submit`](Self::submit), for threads outside an async runtime.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn blocking_submit(&self, requests: Vec<Request>) -> Result<Vec<EventStream>, SubmitError> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut submission = pin!(self.submit(requests));
        loop {
            match submission.as_mut().poll(&mut context) {
                Poll::Ready(result) => return result,
                Poll::Pending => std::thread::park(),
            }
        }
    }

    /// The engine's numbers.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.counters.load()
    }

    /// Whether the engine works.
    pub fn health(&self) -> Health {
        self.shared.pulse.health(Instant::now())
    }

    /// Resolves with the reason when the engine dies; never where it does not.
    pub async fn death(&self) -> String {
        self.shared.pulse.death().await
    }

    /// Whether the engine takes requests: it is neither draining nor dead.
    pub fn is_accepting(&self) -> bool {
        !self.shared.draining.load(Relaxed) && !matches!(self.health(), Health::Dead(_))
    }

    /// What the executor says of itself.
    pub fn facts(&self) -> &ExecutorFacts {
        &self.shared.facts
    }

    /// The sizes steps and sequences keep to.
    pub fn limits(&self) -> &StepLimits {
        &self.shared.limits
    }

    /// Whether these are ids the model knows, and at least one; [`submit`](Self::submit) checks it too, without saying whose
    /// prompt of several it was.
    ///
    /// # Errors
    /// [`SubmitError::InvalidPrompt`].
    pub fn check_prompt(&self, prompt: &[TokenId]) -> Result<(), SubmitError> {
        let vocab_size = self.shared.vocab_size;
        if prompt.is_empty() {
            return Err(SubmitError::InvalidPrompt("the prompt is empty; it needs at least one token".into()));
        }
        match prompt.iter().position(|&token| token >= vocab_size) {
            Some(position) => Err(SubmitError::InvalidPrompt(format!(
                "token id {} at position {position} of the prompt is not in the vocabulary; ids are 0 to {}",
                prompt[position],
                vocab_size.saturating_sub(1)
            ))),
            None => Ok(()),
        }
    }
}

/// Wakes a thread that waits for a future.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
