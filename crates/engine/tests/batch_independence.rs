//! Same weights, same prompt, same seed: the same tokens, whatever else is in the batch. Alone, together, in chunks, after
//! preemption, behind a prefix cache: token for token and log-probability for log-probability, bit by bit.

#[path = "../../model/tests/fixtures/fixtures.rs"]
mod fixtures;

use powertrain_cpu::{Activations, CpuConfig, CpuExecutor, KvDtype};
use powertrain_engine::{Engine, EngineConfig, Event, FinishReason, Request, Snapshot, StopConditions};
use powertrain_model::{Model, reference::Reference};
use powertrain_step::{Executor, SampledToken, SamplingParams, StepLimits, TokenId};
use std::time::{Duration, Instant};

/// Makes an executor with this many blocks of KV cache.
type Build = dyn Fn(&Model, StepLimits, u32) -> Box<dyn Executor>;

/// What the CPU's kernels want.
const BLOCK_SIZE: u32 = 16;
/// Blocks that hold every request of a test at its longest,
const PLENTY: u32 = 64;
/// and blocks that hold the longest, but not all that run.
const TOO_FEW: u32 = 7;

/// One way to run requests.
#[derive(Clone, Copy)]
struct Way {
    rows: u32,
    budget: u32,
    kv_blocks: u32,
    prefix_caching: bool,
}

const ROOMY: Way = Way { rows: 8, budget: 512, kv_blocks: PLENTY, prefix_caching: false };

struct Bench<'a> {
    model: Model,
    build: &'a Build,
    vocab_size: u32,
}

impl Bench<'_> {
    fn engine(&self, way: Way) -> Engine {
        let limits = StepLimits {
            max_num_seqs: way.rows,
            max_num_batched_tokens: way.budget,
            max_model_len: 64,
            block_size: BLOCK_SIZE,
        };
        let config = EngineConfig {
            limits,
            max_queue: 64,
            prefix_caching: way.prefix_caching,
            async_scheduling: true,
            pace_prompts: true,
            vocab_size: self.vocab_size,
            stall_timeout: Duration::from_secs(3600),
            step_timeout: None,
        };
        Engine::start(config, (self.build)(&self.model, limits, way.kv_blocks)).expect("limits that work together")
    }

    /// Runs these requests together, then as many times again as asked on the same engine; what each got, and the numbers.
    fn run(&self, way: Way, requests: &[Request], times: u32) -> (Vec<Vec<SampledToken>>, Snapshot) {
        let engine = self.engine(way);
        let handle = engine.handle();
        let mut all = Vec::new();
        for _ in 0..times {
            let streams = handle.blocking_submit(requests.to_vec()).expect("there is room");
            all = streams.into_iter().map(read).collect();
        }
        engine.drain(Instant::now() + Duration::from_secs(3600));
        (all, handle.snapshot())
    }
}

fn read(mut stream: powertrain_engine::EventStream) -> Vec<SampledToken> {
    let mut tokens = Vec::new();
    while let Some(event) = stream.blocking_next() {
        match event {
            Event::Token(token) => tokens.push(token),
            Event::Finished(finished) => assert_eq!(finished.reason, FinishReason::Length),
            Event::Failed(failure) => panic!("{failure}"),
            Event::Scheduled { .. } | Event::PromptLogprobs(_) => {}
        }
    }
    tokens
}

/// Six requests of different lengths, greedy and sampled in turn; the first four begin alike.
fn requests(prompt: &[TokenId], vocab_size: u32) -> Vec<Request> {
    let lengths = [(37, 20), (38, 17), (33, 23), (37, 12), (3, 30), (50, 9)];
    let request = |(index, &(prompt_len, max_tokens)): (usize, &(usize, u32))| {
        let shift = if index < 4 { 0 } else { index as u32 };
        Request {
            id: index.to_string().into(),
            prompt: prompt.iter().cycle().map(|token| (token + shift) % vocab_size).take(prompt_len).collect(),
            sampling: SamplingParams {
                temperature: if index % 2 == 0 { 0.0 } else { 1.0 },
                seed: index as u64,
                logprobs: Some(3),
                ..SamplingParams::default()
            },
            stop: StopConditions { max_tokens, stop_token_ids: Vec::new(), eos_token_ids: Vec::new() },
            priority: 0,
            deadline: None,
            cache_salt: None,
            prompt_logprobs: None,
        }
    };
    lengths.iter().enumerate().map(request).collect()
}

fn check(name: &str, build: &Build) {
    let fixture = fixtures::named(name);
    let model = Model::open(&fixture.path).expect("a model of the fixtures");
    let vocab_size = model.spec().vocab_size as u32;
    let requests = requests(&fixture.prompt, vocab_size);
    let bench = Bench { model, build, vocab_size };

    let alone: Vec<Vec<SampledToken>> =
        requests.iter().map(|request| bench.run(ROOMY, std::slice::from_ref(request), 1).0.remove(0)).collect();
    let same = |way: Way, times: u32, what: &str| {
        let (together, numbers) = bench.run(way, &requests, times);
        for (index, (got, expected)) in together.iter().zip(&alone).enumerate() {
            assert_eq!(got, expected, "{name}: request {index} {what}");
        }
        numbers
    };

    same(ROOMY, 1, "together with the others");
    same(Way { budget: 8, ..ROOMY }, 1, "in chunks of at most 8");
    same(Way { rows: 2, budget: 3, ..ROOMY }, 1, "in chunks of at most 3, two at a time");
    let tight = Way { kv_blocks: TOO_FEW, ..ROOMY };
    assert!(same(tight, 1, "after preemption").preemptions > 0, "{name}: too few blocks for all");
    let cached = same(Way { prefix_caching: true, ..ROOMY }, 2, "behind a prefix cache");
    assert!(cached.prefix_tokens_hit > cached.prefix_tokens_queried / 2, "{name}: {cached:?}");
    let all = Way { rows: 5, budget: 7, kv_blocks: TOO_FEW, prefix_caching: true };
    let all = same(all, 2, "with everything at once");
    assert!(all.preemptions > 0 && all.prefix_tokens_hit > 0, "{name}: {all:?}");
}

fn reference(model: &Model, limits: StepLimits, kv_blocks: u32) -> Box<dyn Executor> {
    Box::new(Reference::new(model, limits, kv_blocks))
}

fn cpu(config: CpuConfig) -> Box<Build> {
    Box::new(move |model, limits, kv_blocks| {
        let with = |kv_cache_bytes| {
            let config = CpuConfig { threads: Some(2), kv_cache_bytes, ..config.clone() };
            CpuExecutor::new(model, limits, config).expect("an executor of this size")
        };
        let facts = with(None).facts().clone();
        let block_bytes = facts.kv_cache_bytes / u64::from(facts.kv_blocks);
        let executor = with(Some(block_bytes * u64::from(kv_blocks)));
        assert_eq!(executor.facts().kv_blocks, kv_blocks);
        Box::new(executor)
    })
}

#[test]
fn reference_llama() {
    check("llama", &reference);
}

#[test]
fn reference_gemma_with_its_sliding_window() {
    check("gemma3", &reference);
}

#[test]
fn cpu_with_quantised_activations_and_half_precision_cache() {
    let build = cpu(CpuConfig::default());
    for name in ["llama-Q8_0.gguf", "qwen3", "gemma3"] {
        check(name, &build);
    }
}

#[test]
fn cpu_in_reference_mode() {
    let exact = CpuConfig { activations: Activations::F32, kv_dtype: KvDtype::F32, ..CpuConfig::default() };
    let build = cpu(exact);
    for name in ["llama", "gemma3"] {
        check(name, &build);
    }
}

/// The engine in between changes nothing either: transformers' own greedy text comes out at its end.
#[test]
fn the_engine_s_greedy_text_is_that_of_transformers() {
    for fixture in fixtures::all() {
        let model = Model::open(&fixture.path).expect("a model of the fixtures");
        let vocab_size = model.spec().vocab_size as u32;
        let mut request = requests(&fixture.prompt, vocab_size).remove(0);
        request.prompt = fixture.prompt.clone().into();
        request.stop.max_tokens = fixture.greedy.len() as u32;
        let bench = Bench { model, build: &reference, vocab_size };
        let way = Way { budget: 8, prefix_caching: true, ..ROOMY };
        let tokens = bench.run(way, &[request], 2).0.remove(0);
        let ids: Vec<TokenId> = tokens.iter().map(|sampled| sampled.token).collect();
        assert_eq!(ids, fixture.greedy, "{}", fixture.name);
    }
}
