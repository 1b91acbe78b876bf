//! The executor under the real engine: scheduler, prefix cache, two steps in flight. Clients are threads; there is no HTTP.

use powertrain_engine::{Engine, EngineConfig, Event, Handle, Request, StopConditions};
use powertrain_model::Model;
use powertrain_step::{SamplingParams, StepLimits};
use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

const PROMPT: u32 = 512;

pub(crate) fn measure_all(paths: &[String]) -> usize {
    paths.iter().filter(|path| measure(path).map_err(|error| println!("FAILED {path}: {error}")).is_err()).count()
}

fn measure(path: &str) -> Result<(), String> {
    let model = Model::dummy(Path::new(path)).map_err(|error| error.to_string())?;
    let limits = StepLimits { max_num_seqs: 512, max_num_batched_tokens: 8192, max_model_len: 2048, block_size: 16 };
    let begin = Instant::now();
    let executor = powertrain_cuda::load(&model, &limits, &crate::options()).map_err(|error| error.to_string())?;
    let config = EngineConfig {
        limits,
        max_queue: 4096,
        prefix_caching: true,
        async_scheduling: true,
        pace_prompts: true,
        vocab_size: model.spec().vocab_size as u32,
        stall_timeout: Duration::from_secs(60),
        step_timeout: Some(Duration::from_secs(60)),
    };
    let engine = Engine::start(config, executor).map_err(|error| error.to_string())?;
    let handle = engine.handle();
    run(&handle, path, 1, 1, 4)?;
    println!("# {path}: from nothing to the first answer {:.2} s", begin.elapsed().as_secs_f64());
    // Graphs of the batch sizes to come are captured and tuned here.
    run(&handle, path, 512, 600, 40)?;
    for (clients, requests) in [(1, 4), (10, 60), (50, 250), (100, 400), (256, 768)] {
        run(&handle, path, clients, requests, 128)?;
    }
    // As many as vllm_offline.py is given for models of these sizes.
    run(&handle, path, 512, if model.spec().hidden_size < 4096 { 2000 } else { 1000 }, 256)?;
    drop(engine);
    Ok(())
}

/// `clients` threads send `requests` in all, each its next when its last is done.
fn run(handle: &Handle, path: &str, clients: usize, requests: usize, output: u32) -> Result<(), String> {
    static SERIAL: AtomicUsize = AtomicUsize::new(0);
    let next = AtomicUsize::new(0);
    let begin = Instant::now();
    let results: Vec<Result<Vec<Duration>, String>> = std::thread::scope(|scope| {
        let client = || {
            let mut first_tokens = Vec::new();
            while next.fetch_add(1, Relaxed) < requests {
                first_tokens.push(request(handle, SERIAL.fetch_add(1, Relaxed), output)?);
            }
            Ok(first_tokens)
        };
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client does not panic")).collect()
    });
    let seconds = begin.elapsed().as_secs_f64();
    let mut first_tokens = Vec::new();
    for result in results {
        first_tokens.extend(result?);
    }
    first_tokens.sort_unstable();
    let tokens = requests as f64 * f64::from(output);
    println!(
        "{path} {clients:>3} clients, {requests} requests of {PROMPT}/{output}: {:.2} s, {:.0} output tok/s, time to first token p50 {:.1} ms p95 {:.1} ms",
        seconds,
        tokens / seconds,
        first_tokens[first_tokens.len() / 2].as_secs_f64() * 1e3,
        first_tokens[first_tokens.len() * 95 / 100].as_secs_f64() * 1e3
    );
    Ok(())
}

fn request(handle: &Handle, serial: usize, output: u32) -> Result<Duration, String> {
    let token = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(serial as u32 * 7919) >> 7) % 40_000;
    let request = Request {
        id: format!("{serial}").into(),
        prompt: (0..PROMPT).map(token).collect::<Vec<_>>().into(),
        sampling: SamplingParams { temperature: 0.0, ..Default::default() },
        stop: StopConditions { max_tokens: output, stop_token_ids: Vec::new(), eos_token_ids: Vec::new() },
        priority: 0,
        deadline: None,
        cache_salt: None,
        prompt_logprobs: None,
    };
    let begin = Instant::now();
    let mut stream = handle.blocking_submit(vec![request]).map_err(|error| error.to_string())?.remove(0);
    let (mut first, mut count) = (None, 0);
    while let Some(event) = stream.blocking_next() {
        match event {
            Event::Token(_) => {
                first.get_or_insert_with(|| begin.elapsed());
                count += 1;
            }
            Event::Scheduled { .. } => {}
            Event::Finished(_) => break,
            Event::Failed(failure) => return Err(failure.to_string()),
            Event::PromptLogprobs(_) => return Err("log-probabilities nobody asked for".into()),
        }
    }
    match first {
        Some(first) if count == output => Ok(first),
        _ => Err(format!("{count} of {output} tokens")),
    }
}
