//! An engine over the mock executor, and what clients do with it.

use powertrain_engine::{
    Drained, Engine, EngineConfig, Event, EventStream, Failure, Finished, Handle, Request, StopConditions,
};
use powertrain_step::{
    SamplingParams, StepLimits, TokenId,
    mock::{Gate, MockExecutor, expected_tokens},
};
use std::time::{Duration, Instant};

pub(crate) const VOCAB: u32 = 1000;
pub(crate) const LIMITS: StepLimits =
    StepLimits { max_num_seqs: 8, max_num_batched_tokens: 32, max_model_len: 1_000_000, block_size: 4 };
pub(crate) const FAR: Duration = Duration::from_secs(3600);

pub(crate) fn config() -> EngineConfig {
    EngineConfig {
        limits: LIMITS,
        max_queue: 100,
        prefix_caching: true,
        async_scheduling: true,
        pace_prompts: true,
        vocab_size: VOCAB,
        stall_timeout: FAR,
        step_timeout: None,
    }
}

pub(crate) fn mock(kv_blocks: u32, depth: u32) -> MockExecutor {
    MockExecutor::new(LIMITS, kv_blocks, depth, VOCAB)
}

pub(crate) fn engine(executor: MockExecutor) -> Engine {
    Engine::start(config(), Box::new(executor)).expect("limits that work together")
}

pub(crate) fn gated(kv_blocks: u32, depth: u32) -> (Engine, Gate) {
    let (executor, gate) = mock(kv_blocks, depth).gated();
    (engine(executor), gate)
}

pub(crate) fn request(name: u32, prompt_len: u32, max_tokens: u32) -> Request {
    Request {
        id: name.to_string().into(),
        prompt: (0..prompt_len).map(|position| (name * 7 + position) % VOCAB).collect(),
        sampling: SamplingParams { seed: u64::from(name), ..SamplingParams::default() },
        stop: StopConditions { max_tokens, stop_token_ids: Vec::new(), eos_token_ids: Vec::new() },
        priority: 0,
        deadline: None,
        cache_salt: None,
        prompt_logprobs: None,
    }
}

pub(crate) fn expected(request: &Request) -> Vec<TokenId> {
    expected_tokens(&request.prompt, request.sampling.seed, VOCAB, request.stop.max_tokens as usize)
}

pub(crate) fn submit(handle: &Handle, request: Request) -> EventStream {
    handle.blocking_submit(vec![request]).expect("there is room").remove(0)
}

/// All tokens, and the end.
pub(crate) fn read(mut stream: EventStream) -> (Vec<TokenId>, Result<Finished, Failure>) {
    let (mut tokens, mut scheduled) = (Vec::new(), 0);
    let end = loop {
        match stream.blocking_next().expect("a stream ends with its last event") {
            Event::Token(sampled) => tokens.push(sampled.token),
            Event::Scheduled { .. } => scheduled += 1,
            Event::PromptLogprobs(_) => panic!("nobody asked for them"),
            Event::Finished(finished) => break Ok(finished),
            Event::Failed(failure) => break Err(failure),
        }
    };
    assert!(stream.blocking_next().is_none(), "nothing follows the last event");
    assert!(scheduled <= 1, "a request is scheduled for the first time once");
    (tokens, end)
}

/// Lets all that runs finish and checks that nothing is left behind.
pub(crate) fn drain(engine: Engine) -> powertrain_engine::Snapshot {
    let handle = engine.handle();
    assert_eq!(engine.drain(Instant::now() + FAR), Drained::Stopped { cut_short: 0 });
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.running, snapshot.waiting, snapshot.kv_blocks_used), (0, 0, 0), "nothing leaks");
    snapshot
}
