//! The engine thread from outside, on an executor without a model that checks the step contract at every step.

mod death;
mod harness;

use futures_core::Stream;
use harness::*;
use powertrain_engine::{
    Drained, Engine, EngineConfig, Event, EventStream, Failure, FinishReason, Handle, Health, Request, StartError,
    SubmitError,
};
use powertrain_step::{
    CostsBeside, Executor, ExecutorFacts, ExecutorLost, StepCost, StepCosts, StepError, StepLimits, StepPlan,
    StepResult, TokenId,
    mock::{Fault, MockExecutor},
};
use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::mpsc::{Sender, channel},
    task::{Context, Waker},
    time::{Duration, Instant},
};

#[test]
fn a_request_gets_its_tokens_its_end_and_its_numbers() {
    for depth in [1, 2] {
        let engine = engine(mock(64, depth));
        let asked = request(3, 50, 7);
        let (tokens, end) = read(submit(&engine.handle(), asked.clone()));
        let finished = end.expect("it finishes");
        assert_eq!(tokens, expected(&asked));
        assert_eq!(finished.reason, FinishReason::Length);
        assert_eq!((finished.prompt_tokens, finished.generated_tokens, finished.cached_tokens), (50, 7, 0));
        let timings = finished.timings;
        assert!(Some(timings.queued) <= timings.scheduled && timings.scheduled <= timings.first_token);
        assert!(timings.first_token <= Some(timings.finished));
        let snapshot = drain(engine);
        assert_eq!((snapshot.prompt_tokens, snapshot.generated_tokens), (50, 7));
        assert_eq!(snapshot.ended.length, 1);
        assert_eq!(snapshot.steps, 2 + 6, "two chunks, then a token a step");
    }
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up() {
    let engine = engine(mock(256, 2));
    let asked = request(1, 5, 500);
    let stream = submit(&engine.handle(), asked.clone());
    drain(engine);
    let (tokens, end) = read(stream);
    assert_eq!(tokens, expected(&asked));
    assert_eq!(end.expect("it finished").reason, FinishReason::Length);
}

#[test]
fn events_can_be_awaited_and_streamed() {
    let engine = engine(mock(64, 2));
    let handle = engine.handle();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let asked = request(1, 5, 3);
    let tokens = runtime.block_on(async {
        let mut streams = handle.submit(vec![asked.clone(), asked.clone()]).await.expect("there is room");
        let (mut second, mut first) = (streams.pop().unwrap(), streams.pop().unwrap());
        let mut tokens = Vec::new();
        while let Some(event) = first.next().await {
            tokens.extend(token(event));
        }
        while let Some(event) = poll_fn(|context| Pin::new(&mut second).poll_next(context)).await {
            tokens.extend(token(event));
        }
        tokens
    });
    assert_eq!(tokens, [expected(&asked), expected(&asked)].concat());
    drain(engine);
}

fn token(event: Event) -> Option<TokenId> {
    match event {
        Event::Token(sampled) => Some(sampled.token),
        _ => None,
    }
}

#[test]
fn dropping_a_stream_cancels_its_request_and_frees_its_blocks() {
    for depth in [1, 2] {
        let (engine, gate) = gated(200_000, depth);
        let endless = submit(&engine.handle(), request(1, 5, 500_000));
        gate.allow(3);
        gate.wait_until_blocked();
        assert!(engine.handle().snapshot().kv_blocks_used > 0);
        drop(endless);
        gate.open();
        assert_eq!(drain(engine).ended.cancelled, 1);
    }
}

#[test]
fn dropping_the_submission_cancels_what_was_taken() {
    let (engine, gate) = gated(200_000, 2);
    let handle = engine.handle();
    let first = submit(&handle, request(1, 5, 1));
    gate.wait_until_blocked();
    {
        // Polled once, the command is sent; the engine cannot answer before the gate opens.
        let mut submission = Box::pin(handle.submit(vec![request(2, 5, 500_000)]));
        assert!(submission.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    gate.open();
    read(first).1.expect("it finishes");
    assert_eq!(drain(engine).ended.cancelled, 1);
}

#[test]
fn of_a_hundred_streams_thirty_vanish_and_the_others_are_right() {
    for (seed, depth) in [(1, 1), (2, 2)] {
        // Room for a few of them at a time, so that some are preempted and most wait.
        let engine = engine(mock(60, depth));
        let handle = engine.handle();
        std::thread::scope(|scope| {
            for name in 0..100 {
                let handle = handle.clone();
                scope.spawn(move || {
                    let asked = request(name, 1 + name % 23, 20 + name % 31);
                    let mut stream = submit(&handle, asked.clone());
                    if name % 10 < 3 {
                        // Where it leaves depends on the seed: waiting, in its prompt, or in the middle of its answer.
                        for _ in 0..(name * 31 + seed * 17) % 15 {
                            stream.blocking_next().expect("it is not over yet");
                        }
                    } else {
                        let (tokens, end) = read(stream);
                        assert_eq!(tokens, expected(&asked), "request {name}");
                        assert_eq!(end.expect("it finishes").reason, FinishReason::Length);
                    }
                });
            }
        });
        let ended = drain(engine).ended;
        assert_eq!(ended.length + ended.cancelled, 100);
        assert!(ended.length >= 70 && ended.failed == 0, "{ended:?}");
    }
}

#[test]
fn past_the_queue_s_limit_a_client_is_told_when_to_come_back() {
    let two_may_wait = || EngineConfig { max_queue: 2, ..config() };
    let engine = Engine::start(two_may_wait(), Box::new(mock(64, 1))).unwrap();
    let handle = engine.handle();
    let refused = handle.blocking_submit((0..11).map(|name| request(name, 5, 1)).collect());
    let too_large = SubmitError::GroupTooLarge { requested: 11, most: 10 };
    assert_eq!(refused.err(), Some(too_large), "eight rows and two places hold ten: no use in coming back");

    let (executor, gate) = mock(1_000_000, 1).gated();
    let full = Engine::start(two_may_wait(), Box::new(executor)).unwrap();
    let group = |max_tokens| (0..10).map(|name| request(name, 5, max_tokens)).collect::<Vec<_>>();
    let taken = full.handle().blocking_submit(group(100_000)).expect("ten fit");
    gate.wait_until_blocked();
    let late = full.handle();
    let late = std::thread::spawn(move || late.blocking_submit(group(1)).map(|streams| streams.len()));
    while !late.is_finished() {
        gate.allow(1);
        gate.wait_until_blocked();
    }
    let Err(SubmitError::QueueFull { requested: 10, limit: 2, retry_after, .. }) = late.join().unwrap() else {
        panic!("eight run or are about to, and two wait")
    };
    assert!(retry_after > Duration::ZERO);
    drop(taken);
    gate.open();
    drain(full);

    let taken = handle.blocking_submit((0..10).map(|name| request(name, 5, 1)).collect());
    for stream in taken.expect("ten fit") {
        read(stream).1.expect("it finishes");
    }
    drain(engine);
}

#[test]
fn what_can_never_run_is_refused_with_its_reason() {
    let engine = engine(mock(4, 1));
    let check = |request: Request, message: &str| {
        let error = engine.handle().blocking_submit(vec![request]).err().expect("it is refused");
        assert_eq!(error.to_string(), message);
    };
    check(request(1, 0, 1), "the prompt is empty; it needs at least one token");
    check(
        Request { prompt: [5, 1000].into(), ..request(1, 1, 1) },
        "token id 1000 at position 1 of the prompt is not in the vocabulary; ids are 0 to 999",
    );
    check(
        request(1, 10, 20),
        "prompt and max_tokens need 8 KV blocks, the cache has 4; raise --kv-cache-memory or ask for fewer tokens",
    );
    check(
        request(1, 1_000_000, 1),
        "the prompt has 1000000 tokens; --max-model-len 1000000 must hold it and at least one generated token",
    );
    drain(engine);
}

/// Fails in the one step whose number this is.
fn fault_at(step: u64, fault: Fault) -> impl FnMut(&StepPlan) -> Fault + Send {
    move |plan| if plan.step == step { fault } else { Fault::None }
}

#[test]
fn a_failed_step_fails_its_requests_and_the_next_is_served() {
    for fault in [Fault::Launch, Fault::Collect] {
        for depth in [1, 2] {
            let engine = engine(mock(64, depth).with_faults(fault_at(3, fault)));
            let handle = engine.handle();
            let streams = handle.blocking_submit(vec![request(1, 5, 20), request(2, 5, 20)]).expect("there is room");
            for stream in streams {
                let failure = read(stream).1.expect_err("its step failed");
                assert!(matches!(failure, Failure::Step(_)), "{failure}");
                assert!(failure.to_string().starts_with("step 3 failed on mock: asked to fail"), "{failure}");
            }
            let asked = request(1, 5, 20);
            assert_eq!(read(submit(&handle, asked.clone())).0, expected(&asked));
            assert_eq!(handle.health(), Health::Live);
            assert_eq!(drain(engine).ended.failed, 2);
        }
    }
}

#[test]
fn a_failed_row_fails_alone() {
    for depth in [1, 2] {
        let engine = engine(mock(64, depth).with_faults(fault_at(3, Fault::Row(1))));
        let asked = [request(1, 5, 20), request(2, 5, 20), request(3, 5, 20)];
        let streams = engine.handle().blocking_submit(asked.to_vec()).expect("there is room");
        let mut ends = streams.into_iter().map(read);
        assert_eq!(ends.next().unwrap().0, expected(&asked[0]));
        assert!(matches!(ends.next().unwrap().1, Err(Failure::Row(_))));
        assert_eq!(ends.next().unwrap().0, expected(&asked[2]));
        drop(ends);
        assert_eq!(drain(engine).ended.failed, 1);
    }
}

#[test]
fn a_step_that_does_not_return_shows_in_health() {
    let (executor, gate) = mock(64, 2).gated();
    let engine = Engine::start(EngineConfig { stall_timeout: Duration::ZERO, ..config() }, Box::new(executor)).unwrap();
    let handle = engine.handle();
    assert_eq!(handle.health(), Health::Live, "there is nothing to run");
    let stream = submit(&handle, request(1, 5, 1));
    gate.wait_until_blocked();
    while handle.health().is_live() {
        std::thread::yield_now();
    }
    assert!(matches!(handle.health(), Health::Stalled(_)));
    gate.open();
    read(stream).1.expect("it finishes");
    drain(engine);
    assert_eq!(handle.health(), Health::Live, "there is nothing to run any more");
}

#[test]
fn a_deadline_ends_a_request_waiting_or_running() {
    let (engine, gate) = gated(200_000, 2);
    let handle = engine.handle();
    let deadline = Instant::now() + Duration::from_millis(1);
    let running = Request { deadline: Some(deadline), ..request(1, 5, 500_000) };
    let late = Request { deadline: Some(Instant::now()), ..request(2, 5, 500_000) };
    // Together, because the engine answers nobody while a step stands at the gate.
    let streams = handle.blocking_submit(vec![running, late]).expect("there is room");
    while Instant::now() <= deadline {
        std::hint::spin_loop();
    }
    gate.open();
    for stream in streams {
        assert_eq!(read(stream).1.expect("it ends").reason, FinishReason::DeadlineExceeded);
    }
    assert_eq!(drain(engine).ended.deadline, 2);
}

#[test]
fn draining_finishes_what_runs_and_refuses_what_comes() {
    let (engine, gate) = gated(64, 2);
    let handle = engine.handle();
    let asked = request(1, 5, 20);
    let stream = submit(&handle, asked.clone());
    gate.wait_until_blocked();
    let draining = std::thread::spawn(move || engine.drain(Instant::now() + FAR));
    while handle.is_accepting() {
        std::thread::yield_now();
    }
    assert_eq!(handle.blocking_submit(vec![request(2, 5, 1)]).err(), Some(SubmitError::ShuttingDown));
    gate.open();
    assert_eq!(read(stream).0, expected(&asked));
    assert_eq!(draining.join().unwrap(), Drained::Stopped { cut_short: 0 });
}

#[test]
fn a_drain_past_its_deadline_ends_the_rest() {
    let engine = engine(mock(200_000, 2));
    let handle = engine.handle();
    let streams = (0..10).map(|name| submit(&handle, request(name, 5, 60_000))).collect::<Vec<_>>();
    assert_eq!(engine.drain(Instant::now()), Drained::Stopped { cut_short: 10 });
    for stream in streams {
        assert_eq!(read(stream).1.expect("it ends").reason, FinishReason::Shutdown);
    }
    assert_eq!((handle.snapshot().ended.shutdown, handle.snapshot().kv_blocks_used), (10, 0));
    assert_eq!(handle.blocking_submit(vec![request(1, 5, 1)]).err(), Some(SubmitError::ShuttingDown));
}

#[test]
fn dropping_the_engine_ends_what_runs() {
    let engine = engine(mock(200_000, 2));
    let stream = submit(&engine.handle(), request(1, 5, 60_000));
    drop(engine);
    assert_eq!(read(stream).1.expect("it ends").reason, FinishReason::Shutdown);
}

#[test]
fn a_step_ahead_or_not_the_tokens_are_the_same() {
    let asked: Vec<Request> = (0..40).map(|name| request(name, 1 + name * 5 % 37, 1 + name * 3 % 41)).collect();
    let run = |async_scheduling: bool| {
        let config = EngineConfig { async_scheduling, ..config() };
        let engine = Engine::start(config, Box::new(mock(30, 2))).unwrap();
        let streams = engine.handle().blocking_submit(asked.clone()).expect("there is room");
        let tokens: Vec<Vec<TokenId>> = streams.into_iter().map(|stream| read(stream).0).collect();
        assert!(drain(engine).preemptions > 0, "the cache is too small for all that run");
        tokens
    };
    let ahead = run(true);
    assert_eq!(ahead, run(false));
    assert_eq!(ahead, asked.iter().map(expected).collect::<Vec<_>>());
}

#[test]
fn prompts_spread_over_steps_or_not_the_tokens_are_the_same() {
    let asked: Vec<Request> = (0..40).map(|name| request(name, 1 + name * 5 % 200, 1 + name * 3 % 41)).collect();
    let cost = |positions, seconds| StepCost { positions, seconds };
    let beside = CostsBeside { decodes: 1, alone: 1.0, prompts: vec![cost(40, 1.1), cost(60, 1.6)] };
    let costs = StepCosts { beside: vec![beside] };
    let limits = StepLimits { max_num_batched_tokens: 200, ..LIMITS };
    let run = |pace_prompts: bool| {
        let config = EngineConfig { pace_prompts, limits, ..config() };
        let executor = MockExecutor::new(limits, 300, 2, VOCAB).with_step_costs(costs.clone());
        let engine = Engine::start(config, Box::new(executor)).unwrap();
        assert_eq!(engine.handle().facts().step_costs.is_some(), pace_prompts);
        let streams = engine.handle().blocking_submit(asked.clone()).expect("there is room");
        let tokens: Vec<Vec<TokenId>> = streams.into_iter().map(|stream| read(stream).0).collect();
        (tokens, drain(engine).steps)
    };
    let (spread, whole) = (run(true), run(false));
    assert_eq!(spread.0, asked.iter().map(expected).collect::<Vec<_>>());
    assert_eq!(whole.0, spread.0);
    assert!(spread.1 > whole.1, "{} steps spread, {} whole", spread.1, whole.1);
}

#[test]
fn prompt_log_probabilities_come_in_order_before_the_tokens() {
    let engine = engine(mock(64, 2));
    let mut stream = submit(&engine.handle(), Request { prompt_logprobs: Some(1), ..request(1, 70, 2) });
    let (mut scored, mut chunks) = (Vec::new(), 0);
    assert!(matches!(stream.blocking_next(), Some(Event::Scheduled { cached_tokens: 0, .. })));
    while let Some(Event::PromptLogprobs(logprobs)) = stream.blocking_next() {
        scored.extend(logprobs.into_iter().map(|logprobs| logprobs.token));
        chunks += 1;
    }
    assert_eq!(scored, request(1, 70, 2).prompt[1..]);
    assert_eq!(chunks, 3, "a chunk a step of 32 tokens");
    assert_eq!(read(stream).0.len(), 1, "the first token was read above");
    drain(engine);
}

#[test]
fn limits_that_cannot_work_together_do_not_start() {
    let limits = StepLimits { max_num_batched_tokens: 4, ..LIMITS };
    let executor = MockExecutor::new(limits, 64, 1, VOCAB);
    let started = Engine::start(EngineConfig { limits, ..config() }, Box::new(executor));
    assert!(matches!(started.err(), Some(StartError::Config(_))));
}

#[test]
fn the_handle_can_be_shared_and_streams_can_move() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    fn moved<T: Send + 'static>() {}
    shared::<Handle>();
    moved::<EventStream>();
    moved::<Event>();
    moved::<Engine>();
}

/// Has work to prepare, and tells when it did a piece; steps must never run before the pieces that were due while idle.
struct Preparing {
    inner: MockExecutor,
    left: u32,
    /// It is lost over the piece before this many are left.
    lost_at: u32,
    done: Sender<u32>,
    in_flight: u32,
}

impl Executor for Preparing {
    fn facts(&self) -> &ExecutorFacts {
        self.inner.facts()
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        self.in_flight += 1;
        self.inner.launch(plan)
    }

    fn collect(&mut self) -> Result<StepResult, StepError> {
        self.in_flight -= 1;
        self.inner.collect()
    }

    fn preparations(&self) -> usize {
        self.left as usize
    }

    fn prepare(&mut self) -> Result<(), ExecutorLost> {
        assert_eq!(self.in_flight, 0, "nothing is prepared while steps run");
        if self.left == self.lost_at {
            return Err(ExecutorLost { executor: "preparing", reason: "asked to be".into() });
        }
        self.left -= 1;
        self.done.send(self.left).expect("the test listens");
        Ok(())
    }
}

#[test]
fn the_executor_prepares_while_there_is_nothing_to_run_and_requests_are_served_between() {
    let (done, pieces) = channel();
    let executor = Preparing { inner: mock(64, 2), left: 5, lost_at: 0, done, in_flight: 0 };
    let engine = Engine::start(config(), Box::new(executor)).expect("limits that work together");
    // Every piece is done without anybody asking for anything; then the engine waits.
    for left in (0..5).rev() {
        assert_eq!(pieces.recv_timeout(FAR).expect("the engine prepares"), left);
    }
    let wanted = request(1, 6, 9);
    let (tokens, end) = read(submit(&engine.handle(), wanted.clone()));
    assert_eq!(tokens, expected(&wanted));
    assert_eq!(end.expect("it ends well").reason, FinishReason::Length);
    drain(engine);
}
