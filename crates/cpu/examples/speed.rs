//! Prefill and decode speed of a model file: `speed MODEL [threads] [key=value...]`, for comparison with llama-bench.
//!
//! Keys: `kv=f16|bf16|f32`, `simd=LEVEL`, `activations=int8|f32`, `only=prefill|prompts|mixed|decode|batch|long`, `rows=N` (of `batch`), `repeat=N`, `pin`, `cpu` (count CPU
//! seconds instead of the wall's), `profile` (say which phase of a step takes how long on which thread; means over all steps, not the best).
#![expect(clippy::print_stdout, reason = "a measuring program")]

use powertrain_cpu::{CpuConfig, CpuExecutor, Phase, ProfileClock};
use powertrain_model::Model;
use powertrain_step::{BlockId, Executor, RowId, RowStart, RowWork, SamplingParams, StepLimits, StepPlan};
use std::{path::Path, sync::Arc, time::Instant};

const BLOCK: u32 = 16;

struct Bench {
    executor: CpuExecutor,
    step: u64,
    next_block: u32,
    vocab_size: u32,
    by_cpu: bool,
    clock: Instant,
    has_profile: bool,
    /// Steps measured since the last profile.
    measured: u32,
}

impl Bench {
    /// Seconds so far, of the wall or of the CPU.
    fn now(&self) -> f64 {
        if self.by_cpu { cpu_seconds() } else { self.clock.elapsed().as_secs_f64() }
    }

    /// Seconds a step takes; it counts in the profile.
    fn time(&mut self, plan: StepPlan) -> f64 {
        let clock = if self.by_cpu { ProfileClock::Cpu } else { ProfileClock::Wall };
        self.executor.profile(self.has_profile.then_some(clock));
        let start = self.now();
        self.run(plan);
        let seconds = self.now() - start;
        self.executor.profile(None);
        self.measured += 1;
        seconds
    }

    /// Prints a line, and where the time of the steps measured since the last one went, where that is wanted.
    fn report(&mut self, line: &str) {
        println!("{line}");
        let steps = f64::from(std::mem::take(&mut self.measured));
        if !self.has_profile {
            return;
        }
        let threads = self.executor.take_profiles();
        let all = |of: &dyn Fn(Phase) -> f64| Phase::ALL.into_iter().map(of).sum::<f64>();
        let row = |name: &str, of: &dyn Fn(usize) -> (f64, f64)| {
            print!("  {name:<30}");
            for thread in 0..threads.len() {
                let (worked, waited) = of(thread);
                print!(" {:>9.3} {:>9.3}", worked * 1e3 / steps, waited * 1e3 / steps);
            }
            println!();
        };
        println!("  ms of each thread, at work and waiting, means of {steps} steps");
        for phase in Phase::ALL {
            if threads.iter().any(|thread| thread.of(phase).worked > 0.0) {
                row(phase.name(), &|thread| (threads[thread].of(phase).worked, threads[thread].of(phase).waited));
            }
        }
        let total = |thread: usize| {
            (all(&|phase| threads[thread].of(phase).worked), all(&|phase| threads[thread].of(phase).waited))
        };
        row("all", &total);
    }

    fn run(&mut self, plan: StepPlan) {
        self.step += 1;
        let plan = StepPlan { step: self.step, ..plan };
        self.executor.launch(&plan).expect("the step runs");
        let result = self.executor.collect().expect("the step ran");
        assert!(result.rows.iter().all(|(_, row)| row.is_ok()), "every row is whole");
    }

    /// Starts a row with blocks for `total` positions.
    fn start(&mut self, plan: &mut StepPlan, row: u32, tokens: u32, total: u32) {
        let vocab_size = self.vocab_size;
        let prompt: Arc<[u32]> = (0..tokens).map(|i| (i * 7919 + row * 104_729 + 11) % vocab_size).collect();
        let sampling = Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() });
        plan.started.push(RowStart {
            row: RowId(row),
            tokens: prompt,
            prompt_len: tokens,
            computed: 0,
            sampling,
            prompt_logprobs: None,
        });
        for _ in 0..total.div_ceil(BLOCK) {
            plan.appended.push((RowId(row), BlockId(self.next_block)));
            self.next_block += 1;
        }
    }

    fn release(&mut self, rows: u32) {
        self.next_block = 0;
        self.run(StepPlan { released: (0..rows).map(RowId).collect(), ..StepPlan::default() });
    }

    /// Seconds to prefill `prompts` prompts of `tokens` in one step.
    fn prefill(&mut self, prompts: u32, tokens: u32) -> f64 {
        let mut plan = StepPlan::default();
        for row in 0..prompts {
            self.start(&mut plan, row, tokens, tokens);
            plan.work.push(RowWork { row: RowId(row), start: 0, len: tokens, sample: true });
        }
        let seconds = self.time(plan);
        self.release(prompts);
        seconds
    }

    /// Computes `context` positions of `rows` sequences that are to run `steps` steps more.
    fn fill(&mut self, rows: u32, context: u32, steps: u32) {
        for row in 0..rows {
            let mut at = 0;
            while at < context {
                let len = (context - at).min(512);
                let mut plan = StepPlan::default();
                if at == 0 {
                    self.start(&mut plan, row, context, context + steps + 1);
                }
                plan.work.push(RowWork { row: RowId(row), start: at, len, sample: at + len == context });
                self.run(plan);
                at += len;
            }
        }
    }

    /// Seconds a step takes that computes a token of each of `rows` sequences at 128 positions, and of prompts of 128 what makes it
    /// 512; the best of `steps`.
    fn mixed(&mut self, rows: u32, steps: u32) -> f64 {
        self.fill(rows, 128, steps);
        let (mut seconds, blocks) = (f64::INFINITY, self.next_block);
        for step in 0..steps {
            let work = |row| RowWork { row: RowId(row), start: 128 + step, len: 1, sample: true };
            let mut plan = StepPlan { work: (0..rows).map(work).collect(), ..StepPlan::default() };
            let prompts = (512 - rows).div_ceil(128);
            for (prompt, row) in (rows..rows + prompts).enumerate() {
                let len = (512 - rows - prompt as u32 * 128).min(128);
                self.start(&mut plan, row, 128, 128);
                plan.work.push(RowWork { row: RowId(row), start: 0, len, sample: len == 128 });
            }
            seconds = seconds.min(self.time(plan));
            self.run(StepPlan { released: (rows..rows + prompts).map(RowId).collect(), ..StepPlan::default() });
            self.next_block = blocks;
        }
        self.release(rows);
        seconds
    }

    /// Seconds a step of `rows` sequences takes at `context` positions, the best of `steps`.
    fn decode(&mut self, rows: u32, context: u32, steps: u32) -> f64 {
        self.fill(rows, context, steps);
        // The least disturbed step of all: others use this machine too.
        let mut seconds = f64::INFINITY;
        for step in 0..steps {
            let work = |row| RowWork { row: RowId(row), start: context + step, len: 1, sample: true };
            let plan = StepPlan { work: (0..rows).map(work).collect(), ..StepPlan::default() };
            seconds = seconds.min(self.time(plan));
        }
        self.release(rows);
        seconds
    }
}

/// Seconds of CPU all threads of this process have used: what a run costs where wall time is disturbed. Barriers spin, so it
/// means most with one thread.
#[cfg(unix)]
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(unix))]
fn cpu_seconds() -> f64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// The least disturbed of some runs.
fn best(repeat: u32, mut run: impl FnMut() -> f64) -> f64 {
    (0..repeat).map(|_| run()).fold(f64::INFINITY, f64::min)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("usage: speed MODEL [threads] [key=value...]");
    let mut config = CpuConfig { kv_cache_bytes: Some(1 << 30), ..CpuConfig::default() };
    let (mut only, mut repeat, mut by_cpu, mut has_profile) = (String::new(), 3, false, false);
    let mut batches = vec![4, 8, 16, 32];
    for argument in arguments {
        match argument.split_once('=') {
            Some(("kv", value)) => config.kv_dtype = value.parse().expect("a KV type"),
            Some(("simd", value)) => config.simd = Some(value.parse().expect("a level")),
            Some(("activations", value)) => config.activations = value.parse().expect("int8 or f32"),
            Some(("only", value)) => only = value.to_owned(),
            Some(("repeat", value)) => repeat = value.parse().expect("a number"),
            Some(("rows", value)) => batches = vec![value.parse().expect("a number")],
            _ if argument == "pin" => config.pin_threads = true,
            _ if argument == "cpu" => by_cpu = true,
            _ if argument == "profile" => has_profile = true,
            _ => config.threads = Some(argument.parse().expect("a number of threads")),
        }
    }
    let wanted = |what: &str| only.is_empty() || only == what;
    let start = Instant::now();
    let model = Model::open(Path::new(&path)).expect("the model opens");
    let context = (model.spec().context_len as u32).min(8192);
    let limits =
        StepLimits { max_num_seqs: 64, max_num_batched_tokens: 2048, max_model_len: context, block_size: BLOCK };
    let executor = CpuExecutor::new(&model, limits, config).expect("the executor is built");
    println!(
        "load {:.3} s ({:.3} s of CPU), {}",
        start.elapsed().as_secs_f64(),
        cpu_seconds(),
        executor.facts().device
    );
    println!("weights {} MB, workspace {} MB", executor.facts().weights_bytes >> 20, executor.workspace_bytes() >> 20);
    let vocab_size = model.spec().vocab_size as u32;
    let clock = Instant::now();
    let mut bench = Bench { executor, step: 0, next_block: 0, vocab_size, by_cpu, clock, has_profile, measured: 0 };
    bench.prefill(1, 64);
    bench.prefill(1, 512);
    bench.executor.take_profiles();
    bench.measured = 0;
    if wanted("prefill") {
        let seconds = best(repeat, || bench.prefill(1, 512));
        bench.report(&format!("prefill 512: {:.1} tok/s ({:.1} ms)", 512.0 / seconds, seconds * 1e3));
    }
    if wanted("prompts") {
        for prompts in [1, 4, 8, 16] {
            let seconds = best(repeat, || bench.prefill(prompts, 128));
            let tokens = f64::from(prompts * 128);
            bench.report(&format!("prefill {prompts} x 128: {:.1} tok/s ({:.1} ms)", tokens / seconds, seconds * 1e3));
        }
    }
    if wanted("mixed") {
        for rows in [0, 8, 16, 28] {
            let seconds = best(repeat, || bench.mixed(rows, 4));
            let rate = 512.0 / seconds;
            bench.report(&format!(
                "{} of prompts and {rows} decoded: {rate:.1} tok/s ({:.1} ms)",
                512 - rows,
                seconds * 1e3
            ));
        }
    }
    if wanted("decode") {
        let seconds = best(repeat, || bench.decode(1, 128, 64));
        bench.report(&format!("decode at 128: {:.1} tok/s ({:.3} ms)", 1.0 / seconds, seconds * 1e3));
    }
    if wanted("batch") {
        for rows in batches.clone() {
            let seconds = best(repeat, || bench.decode(rows, 128, 32));
            bench.report(&format!(
                "decode {rows} at 128: {:.1} tok/s ({:.3} ms)",
                f64::from(rows) / seconds,
                seconds * 1e3
            ));
        }
    }
    if wanted("long") && context > 4200 {
        let seconds = best(repeat, || bench.decode(1, 4096, 32));
        bench.report(&format!("decode at 4096: {:.1} tok/s ({:.3} ms)", 1.0 / seconds, seconds * 1e3));
    }
}
