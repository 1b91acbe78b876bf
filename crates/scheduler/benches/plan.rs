//! What scheduling costs per step in steady decode: plan and complete, without any executor.
//!
//! `cargo bench -p powertrain-scheduler`. The ceiling to stay under is 30 us for 256 rows: a step of a small model on a
//! fast GPU takes a few milliseconds.
#![allow(clippy::print_stdout)] // its output is its result

use powertrain_scheduler::{NewSequence, Scheduler, SchedulerConfig, StopConditions};
use powertrain_step::{RowOutput, SampledToken, StepLimits, StepResult};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const STEPS: u32 = 2000;

fn main() {
    println!("rows  waiting  depth  plan us (median, max)  complete us (median, max)");
    for (rows, waiting) in [(1, 0), (64, 0), (256, 0), (256, 10_000)] {
        for depth in [1, 2] {
            let (plan, complete) = measure(rows, waiting, depth);
            println!("{rows:>4}  {waiting:>7}  {depth:>5}  {plan:>21}  {complete:>25}");
        }
    }
}

fn measure(rows: u32, waiting: u32, depth: u32) -> (String, String) {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        limits: StepLimits { max_num_seqs: rows, max_num_batched_tokens: 8192, max_model_len: 4096, block_size: 16 },
        kv_blocks: rows * 256,
        max_queue: waiting,
        prefix_caching: true,
        depth,
        hash_key: [1; 16],
        step_costs: None,
    })
    .expect("limits that work together");
    for index in 0..rows + waiting {
        let new = NewSequence {
            prompt: (0..30).map(|position| index * 31 + position).collect(),
            sampling: Arc::default(),
            stop: StopConditions { max_tokens: 4000, stop_token_ids: Vec::new(), eos_token_ids: vec![0] },
            priority: 0,
            cache_salt: None,
            prompt_logprobs: None,
        };
        scheduler.submit(vec![new]).expect("there is room");
    }

    let (mut plans, mut completions, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
    let mut results = std::collections::VecDeque::new();
    for _ in 0..STEPS + 10 {
        loop {
            let start = Instant::now();
            let Some(plan) = scheduler.plan() else { break };
            plans.push(start.elapsed());
            let token = |sample| SampledToken { token: 7 + u32::from(sample), logprobs: None };
            let row = |sample| RowOutput { sampled: vec![token(sample); usize::from(sample)], ..RowOutput::default() };
            let rows = plan.work.iter().map(|work| (work.row, Ok(row(work.sample)))).collect();
            results.push_back(StepResult { step: plan.step, rows });
        }
        let result = results.pop_front().expect("a step is in flight");
        let start = Instant::now();
        scheduler.complete(result, &mut outputs);
        completions.push(start.elapsed());
        outputs.clear();
    }
    // The first steps are prefill.
    (summary(&mut plans[10..]), summary(&mut completions[10..]))
}

fn summary(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
    format!("{:.2}, {:.2}", microseconds(times[times.len() / 2]), microseconds(times[times.len() - 1]))
}
