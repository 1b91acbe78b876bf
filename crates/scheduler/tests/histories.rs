//! Long random histories: arrivals, groups, shared prefixes, priorities, cancellations, preemptions, failed rows and steps,
//! one and two steps in flight, tiny caches. The mock executor checks what attention reads and writes, the book checks
//! what each sequence gets, the scheduler checks itself after every event.
//!
//! A failure prints its seed; `POWERTRAIN_SEED=n cargo test -p powertrain-scheduler --test histories` repeats it, and
//! `POWERTRAIN_HISTORIES=n` runs more of them.

mod harness;

use harness::{Bench, Choices, seeded, sequence};
use powertrain_scheduler::{NewSequence, Refusal, SchedulerConfig, SequenceId};
use powertrain_step::{CostsBeside, StepCost, StepCosts, StepLimits, TokenId, mock::Fault};
use std::sync::Arc;

/// Prints the seed of the history that panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the history of POWERTRAIN_SEED={} failed", self.0);
        }
    }
}

fn run_histories(events: u32, with_faults: bool) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let (chosen, histories) = (number("POWERTRAIN_SEED"), number("POWERTRAIN_HISTORIES").unwrap_or(1500));
    let seeds = chosen.map_or(0..histories, |seed: u64| seed..seed + 1);
    let (mut preemptions, mut hits, mut ended) = (0, 0, 0);
    for seed in seeds {
        let _seed = Seed(seed);
        let bench = run_history(seed, events, with_faults);
        let stats = bench.scheduler.stats();
        preemptions += stats.preemptions;
        hits += stats.prefix_tokens_hit;
        ended += bench.book.len();
    }
    if chosen.is_none() {
        // A history in which nothing happens proves nothing.
        assert!(
            preemptions > histories && hits > histories && ended as u64 > histories,
            "{preemptions} {hits} {ended}"
        );
    }
}

fn run_history(seed: u64, events: u32, with_faults: bool) -> Bench {
    let mut choices = Choices::new(seed);
    let config = random_config(&mut choices);
    let prefixes = random_prefixes(&mut choices, &config);
    let priorities = if choices.one_in(2) { 0 } else { 2 };
    let mut faults = Choices::new(seed ^ 0xfau64);
    let mut bench = Bench::with_faults(config.clone(), move |plan| match faults.of(0..=99) {
        0 if with_faults => Fault::Launch,
        1 if with_faults => Fault::Collect,
        2..=4 if with_faults => Fault::Row(faults.of(0..=plan.work.len() as u32 - 1) as usize),
        _ => Fault::None,
    });

    let mut names: Vec<SequenceId> = Vec::new();
    for _ in 0..events {
        match choices.of(0..=9) {
            0..=1 => names.extend(submit_group(&mut bench, &mut choices, &config, &prefixes, priorities)),
            2 if !names.is_empty() && choices.one_in(3) => {
                let name = names[choices.of(0..=names.len() as u32 - 1) as usize];
                bench.cancel(name);
            }
            2..=5 => {
                bench.launch();
            }
            _ => {
                bench.collect();
            }
        }
        bench.scheduler.assert_consistent();
        bench.assert_nothing_starves();
    }
    bench.run_to_idle();
    bench
}

fn random_config(choices: &mut Choices) -> SchedulerConfig {
    let max_num_seqs = choices.of(1..=6);
    let block_size = choices.of(1..=5);
    SchedulerConfig {
        limits: StepLimits {
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + choices.of(0..=20),
            max_model_len: choices.of(8..=60),
            block_size,
        },
        kv_blocks: choices.of(60 / block_size / 3..=60 / block_size * 3).max(1),
        max_queue: choices.of(0..=20),
        prefix_caching: !choices.one_in(4),
        depth: choices.of(1..=2),
        hash_key: [choices.of(0..=255) as u8; 16],
        step_costs: if choices.one_in(2) { None } else { Some(random_costs(choices)) },
    }
}

/// Sizes differ from one number of decodes to the next, and may be no more than the decodes.
fn random_costs(choices: &mut Choices) -> StepCosts {
    let mut decodes = 0;
    let beside = (0..choices.of(0..=3)).map(|_| {
        decodes += choices.of(1..=4);
        let seconds = |choices: &mut Choices| f64::from(choices.of(0..=1000)) * 1e-5;
        let (alone, mut positions) = (seconds(choices), 0);
        let prompts = (0..choices.of(0..=5)).map(|_| {
            positions += choices.of(1..=20);
            StepCost { positions, seconds: seconds(choices) }
        });
        CostsBeside { decodes, alone, prompts: prompts.collect() }
    });
    StepCosts { beside: beside.collect() }
}

fn random_prefixes(choices: &mut Choices, config: &SchedulerConfig) -> Vec<Vec<TokenId>> {
    let longest = config.limits.max_model_len - 1;
    (0..3).map(|_| (0..choices.of(1..=longest)).map(|_| choices.of(0..=1)).collect()).collect()
}

/// `n` completions of a prompt that begins as others do.
fn submit_group(
    bench: &mut Bench,
    choices: &mut Choices,
    config: &SchedulerConfig,
    prefixes: &[Vec<TokenId>],
    priorities: u32,
) -> Vec<SequenceId> {
    let prefix = &prefixes[choices.of(0..=prefixes.len() as u32 - 1) as usize];
    let mut prompt = prefix[..choices.of(0..=prefix.len() as u32) as usize].to_vec();
    prompt.extend((0..choices.of(0..=8)).map(|_| choices.of(0..=3)));
    let salt = choices.one_in(4).then(|| Arc::from("tenant"));
    let stop_ids: Vec<TokenId> = if choices.one_in(2) { vec![choices.of(0..=harness::VOCAB - 1)] } else { Vec::new() };
    let group: Vec<NewSequence> = (0..choices.of(1..=4))
        .map(|index| {
            let mut new = sequence(prompt.clone(), choices.of(0..=12));
            new.sampling = seeded(u64::from(index));
            new.priority = choices.of(0..=priorities) as i32 - 1;
            new.cache_salt = salt.clone();
            new.prompt_logprobs = choices.one_in(6).then_some(1);
            new.stop.eos_token_ids = stop_ids.clone();
            new.stop.stop_token_ids = vec![choices.of(0..=harness::VOCAB - 1)];
            new
        })
        .collect();
    let waiting = bench.scheduler.stats().waiting;
    match bench.submit(group.clone()) {
        Ok(names) => names,
        Err(refusal) => {
            let lengths = || group.iter().map(|new| (new.prompt.len() as u32, new.stop.max_tokens));
            match refusal {
                Refusal::EmptyPrompt => assert!(prompt.is_empty()),
                Refusal::PromptTooLong { max_model_len, .. } => {
                    assert!(lengths().any(|(prompt, max)| prompt + max.min(1) > max_model_len));
                }
                Refusal::ExceedsKvCache { .. } => {
                    let cache = config.kv_blocks * config.limits.block_size;
                    assert!(lengths().any(|(prompt, max)| prompt + max > cache));
                }
                Refusal::GroupTooLarge { most, .. } => assert!(group.len() as u32 > most),
                Refusal::QueueFull { limit, .. } => assert!(waiting + group.len() as u32 > limit),
            }
            Vec::new()
        }
    }
}

#[test]
fn random_histories_keep_every_invariant() {
    run_histories(300, false);
}

#[test]
fn random_histories_with_failing_rows_and_steps_keep_every_invariant() {
    run_histories(300, true);
}
