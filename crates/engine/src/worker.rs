//! The engine thread.

use crate::{
    Event, EventStream, Failure, FinishReason, Finished, RequestsEnded, SubmitError, Timings,
    clients::Client,
    deadlines::Deadlines,
    drain_rate::DrainRate,
    handle::{COMMANDS_MAX, Command, Shared, Submission},
    health::Task,
};
use powertrain_scheduler::{Output, Outputs, Refusal, Scheduler, SequenceId, Summary};
use powertrain_step::{Executor, ExecutorLost, StepError, StepPlan};
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError, unbounded_channel};

/// How long nothing may have come before the executor prepares, and how often that is looked at: a request that comes meanwhile waits so long.
const QUIET_BEFORE_PREPARING: Duration = Duration::from_millis(500);
const QUIET_CHECK: Duration = Duration::from_micros(200);

pub(crate) struct Worker {
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    commands: UnboundedReceiver<Command>,
    shared: Arc<Shared>,
    deadlines: Deadlines<SequenceId>,
    outputs: Outputs,
    ended: RequestsEnded,
    drain_rate: DrainRate,
    drain_deadline: Option<Instant>,
    cut_short: u32,
}

/// Whether the loop goes on.
#[derive(PartialEq)]
enum Flow {
    Continue,
    Stop,
}

impl Worker {
    pub(crate) fn new(
        scheduler: Scheduler,
        executor: Box<dyn Executor>,
        commands: UnboundedReceiver<Command>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            scheduler,
            executor,
            commands,
            shared,
            deadlines: Deadlines::new(),
            outputs: Outputs::new(),
            ended: RequestsEnded::default(),
            drain_rate: DrainRate::new(Instant::now()),
            drain_deadline: None,
            cut_short: 0,
        }
    }

    /// Serves until drained. Where that ends in a panic, the executor's or our own, or the executor is lost, every request ends with an error
    /// and the engine with it. Returns how many requests were cut short.
    pub(crate) fn run(mut self) -> u32 {
        self.publish();
        let reason = match catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(Ok(())) => None,
            Ok(Err(lost)) => Some(lost.to_string()),
            Err(panic) => Some(format!("the engine thread panicked: {}", panic_message(&*panic))),
        };
        if let Some(reason) = reason {
            self.commands.close();
            self.publish();
            self.shared.die(reason);
        }
        if self.shared.pulse.is_dead() {
            // Giving back what a lost device holds may take forever.
            std::mem::forget(self.executor);
        }
        self.cut_short
    }

    /// Returns when drained, or when the watchdog gave the engine up meanwhile.
    fn serve(&mut self) -> Result<(), ExecutorLost> {
        while self.take_commands()? == Flow::Continue {
            self.end_what_is_late(Instant::now());
            self.launch_steps()?;
            if !self.shared.pulse.is_dead() {
                self.collect_step()?;
            }
            if self.shared.pulse.is_dead() {
                return Ok(());
            }
            self.publish();
        }
        Ok(())
    }

    /// Reads commands; waits for one when there is nothing to run.
    fn take_commands(&mut self) -> Result<Flow, ExecutorLost> {
        if self.scheduler.is_idle() {
            self.shared.pulse.rest();
            self.publish();
            if self.drain_deadline.is_some() {
                return Ok(Flow::Stop);
            }
            match self.next_command()? {
                Some(command) => self.obey(command),
                None => return Ok(Flow::Stop),
            }
        }
        // Bounded, so that a flood of commands does not keep steps from running.
        for _ in 0..2 * COMMANDS_MAX {
            let Ok(command) = self.commands.try_recv() else { break };
            self.obey(command);
        }
        Ok(Flow::Continue)
    }

    /// The next command; when none has come for a while, the executor prepares what it can until one does. A piece of that takes longer than a
    /// client takes between two requests, so it must not begin in such a pause. `None` when nobody is left to send a command, or the engine was given up.
    fn next_command(&mut self) -> Result<Option<Command>, ExecutorLost> {
        let mut quiet_since = Instant::now();
        while self.executor.preparations() > 0 {
            match self.commands.try_recv() {
                Ok(command) => return Ok(Some(command)),
                Err(TryRecvError::Disconnected) => return Ok(None),
                Err(TryRecvError::Empty) => {}
            }
            if quiet_since.elapsed() < QUIET_BEFORE_PREPARING {
                std::thread::sleep(QUIET_CHECK);
            } else {
                self.shared.pulse.begin(Task::Preparation, Instant::now());
                self.executor.prepare()?;
                self.shared.pulse.end(Instant::now());
                if self.shared.pulse.is_dead() {
                    return Ok(None);
                }
                quiet_since = Instant::now() - QUIET_BEFORE_PREPARING;
            }
        }
        Ok(self.commands.blocking_recv())
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.accept(submission),
            Command::Cancel(sequence) => {
                if self.scheduler.finish(sequence).is_some() {
                    self.ended.cancelled += 1;
                    self.shared.clients.take(sequence);
                }
            }
            Command::Drain(deadline) => self.drain_deadline = Some(deadline),
        }
    }

    fn accept(&mut self, submission: Submission) {
        let Submission { sequences, deadlines, reply, _permit } = submission;
        if self.drain_deadline.is_some() {
            let _ = reply.send(Err(SubmitError::ShuttingDown));
            return;
        }
        let now = Instant::now();
        if self.scheduler.is_idle() {
            self.shared.pulse.beat(now);
            // Until now nobody waited.
            self.drain_rate.record(0, false, now);
        }
        let ids = match self.scheduler.submit(sequences) {
            Ok(ids) => ids,
            Err(refusal) => {
                let _ = reply.send(Err(self.explain(refusal)));
                return;
            }
        };
        let mut streams = Vec::with_capacity(ids.len());
        for (sequence, deadline) in ids.into_iter().zip(deadlines) {
            let (events, receiver) = unbounded_channel();
            streams.push(EventStream::new(sequence, receiver, self.shared.commands.clone()));
            let clients = &self.shared.clients;
            clients.insert(Client { sequence, events, queued: now, scheduled: None, first_token: None });
            if let Some(deadline) = deadline {
                self.deadlines.push(deadline, sequence, |other| clients.is_alive(other));
            }
        }
        // A submitter that is gone leaves the streams to us: dropping them cancels the requests.
        let _ = reply.send(Ok(streams));
    }

    fn explain(&self, refusal: Refusal) -> SubmitError {
        match refusal {
            Refusal::EmptyPrompt => SubmitError::InvalidPrompt(refusal.to_string()),
            Refusal::PromptTooLong { prompt_tokens, max_model_len } => {
                SubmitError::PromptTooLong { prompt_tokens, max_model_len }
            }
            Refusal::ExceedsKvCache { blocks_needed, blocks_total } => {
                SubmitError::ExceedsKvCache { blocks_needed, blocks_total }
            }
            Refusal::GroupTooLarge { requested, most } => SubmitError::GroupTooLarge { requested, most },
            Refusal::QueueFull { requested, waiting, limit } => {
                let retry_after = self.drain_rate.retry_after(waiting);
                SubmitError::QueueFull { requested, waiting, limit, retry_after }
            }
        }
    }

    /// Ends requests whose deadline passed, and all of them at the deadline of a drain.
    fn end_what_is_late(&mut self, now: Instant) {
        while let Some(sequence) = self.deadlines.pop_due(now) {
            self.end(sequence, FinishReason::DeadlineExceeded, now);
        }
        if self.drain_deadline.is_some_and(|deadline| deadline <= now) {
            for sequence in self.shared.clients.sequences() {
                self.cut_short += 1;
                self.end(sequence, FinishReason::Shutdown, now);
            }
        }
    }

    fn end(&mut self, sequence: SequenceId, reason: FinishReason, now: Instant) {
        if let Some(summary) = self.scheduler.finish(sequence) {
            self.finish(sequence, reason, summary, now);
        }
    }

    fn finish(&mut self, sequence: SequenceId, reason: FinishReason, summary: Summary, now: Instant) {
        let Some(client) = self.shared.clients.take(sequence) else { return };
        match reason {
            FinishReason::EndOfSequence | FinishReason::StopToken(_) => self.ended.stop += 1,
            FinishReason::Length => self.ended.length += 1,
            FinishReason::DeadlineExceeded => self.ended.deadline += 1,
            FinishReason::Shutdown => self.ended.shutdown += 1,
        }
        let timings = Timings {
            queued: client.queued,
            scheduled: client.scheduled,
            first_token: client.first_token,
            finished: now,
        };
        client.send(Event::Finished(Finished {
            reason,
            prompt_tokens: summary.prompt_tokens,
            cached_tokens: summary.cached_tokens,
            generated_tokens: summary.generated_tokens,
            preemptions: summary.preemptions,
            timings,
        }));
    }

    fn fail(&mut self, sequence: SequenceId, failure: Failure) {
        if let Some(client) = self.shared.clients.take(sequence) {
            self.ended.failed += 1;
            client.send(Event::Failed(failure));
        }
    }

    /// Brings as many steps in flight as may be.
    fn launch_steps(&mut self) -> Result<(), ExecutorLost> {
        let waited = self.scheduler.stats().waiting > 0;
        while let Some(plan) = self.scheduler.plan() {
            let step = plan.step;
            // An executor may compute the whole step before `launch` returns.
            let now = Instant::now();
            self.shared.pulse.begin(task(plan), now);
            let launched = self.executor.launch(plan);
            let departed = self.scheduler.first_scheduled();
            self.drain_rate.record(departed.len(), waited, now);
            for &sequence in departed {
                let cached_tokens = self.scheduler.cached_tokens(sequence).unwrap_or(0);
                self.shared.clients.with(sequence, |client| {
                    client.scheduled = Some(now);
                    client.send(Event::Scheduled { at: now, cached_tokens });
                });
            }
            if let Err(error) = launched {
                self.shared.pulse.retract();
                self.fail_step(step, error)?;
            }
            if self.shared.pulse.is_dead() {
                break;
            }
        }
        Ok(())
    }

    fn collect_step(&mut self) -> Result<(), ExecutorLost> {
        let Some(step) = self.scheduler.oldest_step() else { return Ok(()) };
        let collected = self.executor.collect();
        self.shared.pulse.end(Instant::now());
        match collected {
            Ok(result) => {
                self.scheduler.complete(result, &mut self.outputs);
                self.deliver(None);
                Ok(())
            }
            Err(error) => self.fail_step(step, error),
        }
    }

    fn fail_step(&mut self, step: u64, error: StepError) -> Result<(), ExecutorLost> {
        if let StepError::Lost(lost) = error {
            return Err(lost);
        }
        tracing::error!(step, %error, "a step failed; its requests end, the others go on");
        self.scheduler.fail_step(step, &mut self.outputs);
        self.deliver(Some(&error));
        Ok(())
    }

    fn deliver(&mut self, step_error: Option<&StepError>) {
        let now = Instant::now();
        self.shared.pulse.beat(now);
        let mut outputs = std::mem::take(&mut self.outputs);
        for (sequence, output) in outputs.drain(..) {
            match output {
                Output::PromptLogprobs(logprobs) => {
                    self.shared.clients.with(sequence, |client| client.send(Event::PromptLogprobs(logprobs)));
                }
                Output::Token(token) => {
                    self.shared.clients.with(sequence, |client| {
                        client.first_token.get_or_insert(now);
                        client.send(Event::Token(token));
                    });
                }
                Output::Finished(reason, summary) => self.finish(sequence, reason, summary, now),
                Output::RowFailed(error) => self.fail(sequence, Failure::Row(error)),
                Output::StepFailed => {
                    self.fail(sequence, Failure::Step(step_error.map(ToString::to_string).unwrap_or_default()));
                }
            }
        }
        // Keeps its capacity for the next step.
        self.outputs = outputs;
    }

    fn publish(&self) {
        self.shared.counters.store(&self.scheduler.stats(), &self.ended, self.drain_rate.per_second());
    }
}

fn task(plan: &StepPlan) -> Task {
    Task::Step { step: plan.step, rows: plan.work.len(), tokens: plan.work.iter().map(|work| work.len).sum() }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
