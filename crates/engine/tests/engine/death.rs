//! Executors that panic, are lost, or come back too late: every request ends, and the engine says so.

use crate::{Preparing, fault_at, harness::*};
use powertrain_engine::{Drained, Engine, EngineConfig, Failure, Health, SubmitError};
use powertrain_step::{
    Executor, ExecutorFacts, ExecutorLost, StepError, StepPlan, StepResult,
    mock::{Fault, MockExecutor},
};
use std::{
    cell::RefCell,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

#[test]
fn a_panic_in_the_executor_ends_every_stream_and_the_engine_says_so() {
    let (executor, gate) = mock(64, 2).with_faults(fault_at(3, Fault::Panic)).gated();
    let engine = engine(executor);
    let handle = engine.handle();
    let streams = handle.blocking_submit((0..12).map(|name| request(name, 5, 20)).collect()).expect("there is room");
    gate.open();
    for stream in streams {
        let failure = read(stream).1.expect_err("the engine is gone");
        assert!(matches!(&failure, Failure::Engine(reason) if reason.contains("asked to panic")), "{failure}");
    }
    let error = handle.blocking_submit(vec![request(1, 5, 1)]).err();
    assert_eq!(error, Some(SubmitError::EngineStopped));
    assert!(matches!(handle.health(), Health::Dead(_)) && !handle.is_accepting());
    assert!(
        matches!(engine.drain(Instant::now() + FAR), Drained::Dead { reason } if reason.contains("asked to panic"))
    );
    assert_eq!(handle.snapshot().ended.failed, 12);
}

#[test]
fn a_lost_executor_ends_every_stream_with_the_reason_and_is_not_touched_again() {
    for fault in [Fault::LostAtLaunch, Fault::LostAtCollect] {
        for depth in [1, 2] {
            let (executor, gate) = mock(64, depth).with_faults(fault_at(3, fault)).gated();
            let engine = Engine::start(config(), Box::new(Undroppable(executor))).expect("limits that work together");
            let handle = engine.handle();
            let asked = (0..12).map(|name| request(name, 5, 20)).collect();
            let streams = handle.blocking_submit(asked).expect("there is room");
            gate.open();
            for stream in streams {
                let failure = read(stream).1.expect_err("the device is gone");
                assert_eq!(
                    failure.to_string(),
                    "the engine stopped: mock is lost: asked to lose the device; the server must be restarted"
                );
            }
            let reason = "mock is lost: asked to lose the device".to_owned();
            assert_eq!(handle.health(), Health::Dead(reason.clone()));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            assert_eq!(runtime.block_on(handle.death()), reason);
            assert_eq!(handle.blocking_submit(vec![request(1, 5, 1)]).err(), Some(SubmitError::EngineStopped));
            assert_eq!(engine.drain(Instant::now() + FAR), Drained::Dead { reason });
            assert_eq!(handle.snapshot().ended.failed, 12);
        }
    }
}

#[test]
fn an_executor_lost_while_it_prepares_is_known_before_a_request_comes() {
    let (done, _pieces) = channel();
    let executor = Preparing { inner: mock(64, 2), left: 5, lost_at: 3, done, in_flight: 0 };
    let engine = Engine::start(config(), Box::new(executor)).expect("limits that work together");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(engine.handle().death()), "preparing is lost: asked to be");
}

#[test]
fn a_step_beyond_its_limit_ends_every_request_although_the_executor_never_comes_back() {
    let (executor, gate) = mock(64, 2).gated();
    let config = EngineConfig { step_timeout: Some(Duration::from_millis(20)), ..config() };
    let engine = Engine::start(config, Box::new(Undroppable(executor))).unwrap();
    let handle = engine.handle();
    let streams = handle.blocking_submit((0..3).map(|name| request(name, 5, 20)).collect()).expect("there is room");
    gate.wait_until_blocked();
    // The engine thread may have read this one or not; it hangs either way.
    let unread = handle.blocking_submit(vec![request(9, 5, 1)]).map(|mut streams| read(streams.remove(0)).1.is_err());
    assert!(matches!(unread, Err(SubmitError::EngineStopped) | Ok(true)));
    for stream in streams {
        let failure = read(stream).1.expect_err("its step hangs").to_string();
        assert!(failure.contains("step 1 (3 rows, 15 tokens) has not come back after"), "{failure}");
        assert!(failure.contains("--step-timeout is 0.02 s"), "{failure}");
    }
    assert!(matches!(handle.health(), Health::Dead(_)));
    assert_eq!(handle.blocking_submit(vec![request(1, 5, 1)]).err(), Some(SubmitError::EngineStopped));
    assert!(matches!(engine.drain(Instant::now() + FAR), Drained::Dead { .. }), "nobody waits for the step");
    assert!(handle.snapshot().ended.failed >= 3);
    gate.open();
}

#[test]
fn an_executor_that_comes_back_too_late_is_not_asked_again() {
    let (go, may_go) = channel();
    let (ends_with_thread, thread) = channel();
    let said = Arc::new(Mutex::new(Vec::new()));
    let facts = mock(64, 2).facts().clone();
    let late = Late { facts, may_go, ends_with_thread: Some(ends_with_thread), said: said.clone() };
    let config = EngineConfig { step_timeout: Some(Duration::from_millis(20)), ..config() };
    let engine = Engine::start(config, Box::new(late)).unwrap();
    let handle = engine.handle();
    assert!(read(submit(&handle, request(0, 5, 8))).1.is_err());
    assert!(matches!(handle.health(), Health::Dead(_)));
    // Enough for all that it may be asked.
    (0..10).for_each(|_| go.send(()).unwrap());
    assert!(thread.recv().is_err(), "nothing is sent; the thread ends");
    assert_eq!(*said.lock().unwrap(), ["launch"]);
}

/// Every step takes until it may go.
struct Late {
    facts: ExecutorFacts,
    may_go: Receiver<()>,
    ends_with_thread: Option<Sender<()>>,
    said: Arc<Mutex<Vec<&'static str>>>,
}

thread_local! {
    static ENDS_WITH_THREAD: RefCell<Option<Sender<()>>> = const { RefCell::new(None) };
}

impl Executor for Late {
    fn facts(&self) -> &ExecutorFacts {
        &self.facts
    }

    fn launch(&mut self, _: &StepPlan) -> Result<(), StepError> {
        if let Some(sender) = self.ends_with_thread.take() {
            ENDS_WITH_THREAD.set(Some(sender));
        }
        self.said.lock().unwrap().push("launch");
        self.may_go.recv().unwrap();
        Ok(())
    }

    fn collect(&mut self) -> Result<StepResult, StepError> {
        self.said.lock().unwrap().push("collect");
        Err(ExecutorLost { executor: "late", reason: "it was asked".to_owned() }.into())
    }
}

/// Freeing what a lost device holds could wait forever.
struct Undroppable(MockExecutor);

impl Drop for Undroppable {
    fn drop(&mut self) {
        std::process::abort();
    }
}

impl Executor for Undroppable {
    fn facts(&self) -> &ExecutorFacts {
        self.0.facts()
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        self.0.launch(plan)
    }

    fn collect(&mut self) -> Result<StepResult, StepError> {
        self.0.collect()
    }
}
