//! Real faults under a real engine: what its requests hear, and what health says.

use crate::models::{SYNTHETIC, synthetic};
use powertrain_cuda::{
    CudaOptions,
    check::{Spoil, Spoiled},
};
use powertrain_engine::{Engine, EngineConfig, Event, Health, Request, StopConditions};
use powertrain_step::{SamplingParams, StepLimits};
use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const LIMITS: StepLimits =
    StepLimits { max_num_seqs: 16, max_num_batched_tokens: 256, max_model_len: 512, block_size: 16 };
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

const CHECKS: [(&str, Spoil, Expected); 3] = [
    ("exhaust", Spoil::Exhaust, unharmed),
    ("free-cache", Spoil::FreeCache, |heard| dead(heard, "cuda is lost: ")),
    ("hang", Spoil::Hang, |heard| dead(heard, "has not come back after")),
];

/// Each in a process of its own, ended from outside once it has spoken: what it does to its context does not come back, and after the hang the
/// driver does not even let the process end.
pub(crate) fn check_all(names: &[String]) -> usize {
    if let [name] = names {
        return check(name);
    }
    CHECKS.iter().filter(|(name, ..)| !passes_alone(name).is_ok_and(|passes| passes)).count()
}

fn passes_alone(name: &str) -> std::io::Result<bool> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.args(["faults", name]).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line)?;
    print!("{line}");
    child.kill()?;
    child.wait()?;
    Ok(line.starts_with("ok "))
}

fn check(wanted: &str) -> usize {
    let Some((name, how, expected)) = CHECKS.into_iter().find(|(name, ..)| *name == wanted) else {
        println!("FAILED there is no fault {wanted:?}");
        return 1;
    };
    let checked = provoke(how).and_then(|heard| expected(&heard).map(|()| heard.said));
    match &checked {
        Ok(said) => println!("ok     {name}: {said}"),
        Err(said) => println!("FAILED {name}: {said}"),
    }
    usize::from(checked.is_err())
}

type Expected = fn(&Heard) -> Result<(), String>;

/// What requests heard, eight at a time, and the engine's health after.
struct Heard {
    failures: Vec<String>,
    health: Health,
    said: String,
}

fn provoke(how: Spoil) -> Result<Heard, String> {
    let model = synthetic(SYNTHETIC[0].1)?;
    // Graphs are captured when steps come: most after the fault.
    let options = CudaOptions {
        kv_cache_bytes: Some(64 << 20),
        prepare_at_start: Duration::ZERO,
        capture_prompts_at: 1,
        ..crate::options()
    };
    let executor = Spoiled::load(&model, &LIMITS, &options, 20, how).map_err(|error| error.to_string())?;
    let config = EngineConfig {
        limits: LIMITS,
        max_queue: 64,
        prefix_caching: true,
        async_scheduling: true,
        pace_prompts: true,
        vocab_size: model.spec().vocab_size as u32,
        stall_timeout: Duration::from_secs(60),
        step_timeout: Some(STEP_TIMEOUT),
    };
    let engine = Engine::start(config, Box::new(executor)).map_err(|error| error.to_string())?;
    let handle = engine.handle();
    let request = |serial: u32| Request {
        id: serial.to_string().into(),
        prompt: (0..20 + serial / 8 * 30).map(|i| i * 37 % 900 + serial).collect(),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        // Of different lengths, so that batches of all sizes come.
        stop: StopConditions { max_tokens: 40 + serial % 8 * 8, stop_token_ids: Vec::new(), eos_token_ids: Vec::new() },
        priority: 0,
        deadline: None,
        cache_salt: None,
        prompt_logprobs: None,
    };
    let begin = Instant::now();
    let mut failures = Vec::new();
    // If all is well, eight more, so that prompts of another length come after the fault.
    for serials in [0..8, 8..16] {
        if !failures.is_empty() {
            break;
        }
        let streams = handle.blocking_submit(serials.map(request).collect()).map_err(|error| error.to_string())?;
        for mut stream in streams {
            while let Some(event) = stream.blocking_next() {
                if let Event::Failed(failure) = event {
                    failures.push(failure.to_string());
                }
            }
        }
    }
    let (took, health) = (begin.elapsed().as_secs_f64(), handle.health());
    let said = format!("{} requests failed after {took:.2} s, health is {health:?}", failures.len());
    Ok(Heard { failures, health, said })
}

fn unharmed(heard: &Heard) -> Result<(), String> {
    if heard.failures.is_empty() && heard.health.is_live() { Ok(()) } else { Err(heard.said.clone()) }
}

fn dead(heard: &Heard, why: &str) -> Result<(), String> {
    let told = heard.failures.len() == 8 && heard.failures.iter().all(|failure| failure.contains(why));
    let known = matches!(&heard.health, Health::Dead(reason) if reason.contains(why));
    if told && known { Ok(()) } else { Err(format!("{}; requests heard {:?}", heard.said, heard.failures)) }
}
