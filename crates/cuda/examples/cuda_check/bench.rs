//! Times of the executor alone: no server, no scheduler; plans are written by hand.

use powertrain_cuda::{CudaOptions, check::Profiler};
use powertrain_model::Model;
use powertrain_step::*;
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

pub(crate) fn bench_all(paths: &[String]) -> usize {
    let mut failures = 0;
    for path in paths {
        if let Err(error) = bench(path) {
            println!("FAILED {path}: {error}");
            failures += 1;
        }
    }
    failures
}

/// What decodes cost beside prompts of 512 tokens, in one step: prompts alone, decodes alone, both.
pub(crate) fn mixed_all(paths: &[String]) -> usize {
    paths.iter().filter(|path| mixed(path).map_err(|error| println!("FAILED {path}: {error}")).is_err()).count()
}

/// Rows of steps that prompts fill up: whole tiles of 128, the sizes of a budget.
const FILLED: [u32; 15] = [256, 384, 512, 640, 768, 896, 1024, 1280, 1408, 1664, 1792, 2048, 2816, 4096, 8192];

fn mixed(path: &str) -> Result<(), String> {
    let mut bench = Bench::load(path, crate::options())?;
    for decodes in [0, 50, 100, 240] {
        let mut words = Vec::new();
        for prompts in [0, 1, 2, 3, 4, 8, 15].into_iter().filter(|prompts| decodes + prompts > 0) {
            let milliseconds = bench.beside(decodes, 512 * prompts)?;
            words.push(format!("{prompts} prompts {milliseconds:.3}"));
        }
        println!("{path}, {decodes} decodes at 512, median ms/step: {}", words.join(" | "));
        let mut words = Vec::new();
        for rows in FILLED.into_iter().filter(|&rows| rows > decodes) {
            let milliseconds = bench.beside(decodes, rows - decodes)?;
            words.push(format!("{rows} rows {milliseconds:.3}"));
        }
        println!("{path}, {decodes} decodes at 512 and prompts, median ms/step: {}", words.join(" | "));
    }
    Ok(())
}

/// What parameters beyond temperature cost, and what `--deterministic` does, beside the plain way.
pub(crate) fn sampling_all(paths: &[String]) -> usize {
    paths.iter().filter(|path| sampling(path).map_err(|error| println!("FAILED {path}: {error}")).is_err()).count()
}

fn sampling(path: &str) -> Result<(), String> {
    let greedy = SamplingParams { temperature: 0.0, ..Default::default() };
    let penalties = SamplingParams { frequency_penalty: 0.5, repetition_penalty: 1.1, ..greedy.clone() };
    let logprobs = SamplingParams { logprobs: Some(20), ..greedy.clone() };
    let both = SamplingParams { logprobs: Some(5), ..penalties.clone() };
    let on_host = SamplingParams { logprobs: Some(21), ..penalties.clone() };
    let mut bench = Bench::load(path, crate::options())?;
    for (name, sampling) in [("plain", &greedy), ("penalties", &penalties), ("logprobs 20", &logprobs), ("both", &both)]
    {
        for batch in [1, 256] {
            bench.decode(name, batch, 32, 60, sampling)?;
        }
    }
    bench.decode("on the host", 16, 32, 12, &on_host)?;
    bench.decode("both", 16, 32, 12, &both)?;
    drop(bench);
    let mut bench = Bench::load(path, CudaOptions { deterministic: true, ..crate::options() })?;
    for (batch, prompt) in [(1, 32), (1, 1024), (16, 512), (64, 256), (256, 32)] {
        bench.decode("--deterministic", batch, prompt, 40, &greedy)?;
    }
    for (batch, prompt) in [(1, 1024), (8, 1024)] {
        bench.prefill(batch, prompt, Duration::ZERO)?;
    }
    Ok(())
}

/// Where the time of a step goes: of decodes, and of steps with prompts where asked for. Arguments: folders, and cases in place of all.
pub(crate) fn profile_all(arguments: &[String], prefills: bool) -> usize {
    let (cases, paths): (Vec<_>, Vec<_>) =
        arguments.iter().partition(|argument| argument.starts_with("case:") || argument.starts_with("mixed:"));
    let cases: Result<Vec<_>, _> = cases.into_iter().map(|case| profile_case(case)).collect();
    let failed = |path: &&&String| {
        let done = cases.clone().and_then(|cases| profile(path, prefills, &cases));
        done.map_err(|error| println!("FAILED {path}: {error}")).is_err()
    };
    paths.iter().filter(failed).count()
}

#[derive(Clone, Copy)]
enum ProfileCase {
    /// Rows, positions a row, positions before, whether what computes the products is measured first.
    Alike(u32, u32, u32, bool),
    /// Decodes, all positions: prompts of 512 fill the step, the last one cut.
    Mixed(u32, u32),
}

impl ProfileCase {
    /// Of each row, positions before and positions in the step.
    fn rows(self) -> Vec<(u32, u32)> {
        match self {
            Self::Alike(rows, len, before, _) => vec![(before, len); rows as usize],
            Self::Mixed(decodes, positions) => {
                let prompts = positions.saturating_sub(decodes);
                let prompt = |begin: u32| (0, PROMPT.min(prompts - begin));
                (0..decodes).map(|_| (PROMPT, 1)).chain((0..prompts).step_by(PROMPT as usize).map(prompt)).collect()
            }
        }
    }
}

impl std::fmt::Display for ProfileCase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Alike(rows, len, before, _) => write!(f, "batch {rows} x {len} at {before}"),
            Self::Mixed(decodes, positions) => {
                write!(f, "{decodes} decodes at {PROMPT} and prompts, {positions} positions")
            }
        }
    }
}

/// Prompts beside decodes, and what these have behind them.
const PROMPT: u32 = 512;

/// `case:ROWSxLENGTH@BEFORE` or `mixed:DECODESxPOSITIONS`
fn profile_case(argument: &str) -> Result<ProfileCase, String> {
    let (kind, numbers) = argument.split_once(':').unwrap_or_default();
    let numbers = numbers.split(['x', '@']).map(str::parse).collect::<Result<Vec<u32>, _>>();
    match (kind, numbers.as_deref()) {
        ("case", Ok(&[rows, len, before])) => Ok(ProfileCase::Alike(rows, len, before, true)),
        ("mixed", Ok(&[decodes, positions])) => Ok(ProfileCase::Mixed(decodes, positions)),
        _ => Err(format!(
            "{argument}: a case is case:ROWSxLENGTH@BEFORE or mixed:DECODESxPOSITIONS, e.g. case:100x1@500 or mixed:100x1024"
        )),
    }
}

fn profile(path: &str, prefills: bool, wanted: &[ProfileCase]) -> Result<(), String> {
    let model = Model::dummy(Path::new(path)).map_err(|error| error.to_string())?;
    // What a case needs is timed with it.
    let options = CudaOptions { prepare_at_start: Duration::ZERO, ..crate::options() };
    let mut profiler = Profiler::load(&model, &LIMITS, &options).map_err(|error| error.to_string())?;
    use ProfileCase::{Alike, Mixed};
    let decodes = [
        Alike(1, 1, 100, true),
        Alike(1, 1, 1000, true),
        Alike(8, 1, 100, true),
        Alike(8, 1, 1000, true),
        Alike(10, 1, 500, true),
        Alike(16, 1, 100, true),
        Alike(16, 1, 500, true),
        Alike(32, 1, 500, true),
        Alike(48, 1, 500, true),
        Alike(64, 1, 500, true),
        Alike(100, 1, 500, true),
        Alike(128, 1, 500, true),
        Alike(256, 1, 100, true),
        Alike(256, 1, 500, true),
    ];
    let firsts = [
        Alike(1, 512, 0, false),
        Alike(1, 1024, 0, false),
        Alike(1, 4096, 0, false),
        Alike(8, 1024, 0, false),
        Alike(16, 512, 0, false),
        // Sizes that a start measures, too.
        Alike(1, 512, 0, true),
        Alike(1, 1024, 0, true),
    ];
    let mixed =
        [(100, 512), (100, 1024), (240, 1280), (240, 2048)].map(|(decodes, positions)| Mixed(decodes, positions));
    let all: Vec<ProfileCase> =
        decodes.into_iter().chain(firsts.into_iter().chain(mixed).filter(|_| prefills)).collect();
    let cases = if wanted.is_empty() { all } else { wanted.to_vec() };
    // With what computes the products measured or not; mixed ones both ways, measured last, as what is found holds for others, too.
    let mut runs: Vec<(ProfileCase, bool)> = Vec::new();
    for &case in &cases {
        runs.push((case, matches!(case, Alike(.., true))));
    }
    runs.extend(cases.into_iter().filter(|case| matches!(case, Mixed(..))).map(|case| (case, true)));
    let mut step = 0;
    for (case, tune) in runs {
        let rows = case.rows();
        let each = rows.iter().map(|(before, len)| before + len + 1).max().unwrap_or(1).div_ceil(BLOCK);
        let mut next = |work: Vec<RowWork>| {
            step += 1;
            StepPlan { step, work, ..StepPlan::default() }
        };
        let work = |start, len| move |row: usize| RowWork { row: RowId(row as u32), start, len, sample: true };
        // What comes before the step is computed, so that the cache holds what it would.
        let behind: Vec<_> = (0..rows.len()).filter(|&row| rows[row].0 > 0).collect();
        let longest = rows.iter().map(|(before, _)| *before).max().unwrap_or(0).max(1);
        let mut plans: Vec<_> = behind
            .chunks((8192 / longest) as usize)
            .map(|group| next(group.iter().map(|&row| work(0, rows[row].0)(row)).collect()))
            .collect();
        plans.push(next(rows.iter().enumerate().map(|(row, &(before, len))| work(before, len)(row)).collect()));
        plans[0].released = (0..ROWS).map(RowId).collect();
        plans[0].started = rows
            .iter()
            .zip(0..)
            .map(|(&(before, len), row)| RowStart {
                row: RowId(row),
                tokens: (0..before + len).map(|i| (i * 31 + row * 17) % 9000).collect::<Vec<_>>().into(),
                prompt_len: if before == 0 { len } else { before },
                computed: 0,
                sampling: Arc::new(SamplingParams { temperature: 0.0, ..Default::default() }),
                prompt_logprobs: None,
            })
            .collect();
        plans[0].appended = (0..rows.len() as u32)
            .flat_map(|row| (0..each).map(move |i| (RowId(row), BlockId(row * each + i))))
            .collect();
        let classes = profiler.profile(&plans, tune).map_err(|error| error.to_string())?;
        let words: Vec<_> = classes.iter().map(|(name, us)| format!("{name} {us:.1}")).collect();
        println!("{path} {case}, tuned {tune}, us: {}", words.join(" | "));
    }
    Ok(())
}

/// So long that a device at its power limit has its clocks back: one H100 at 700 W ran prompts at 1,545 to 1,590 MHz one after another, at 1,935
/// to 1,980 this long apart.
const RESTED: Duration = Duration::from_millis(40);

const LIMITS: StepLimits =
    StepLimits { max_num_seqs: ROWS, max_num_batched_tokens: 8192, max_model_len: LENGTH, block_size: BLOCK };
const BLOCK: u32 = 16;
const ROWS: u32 = 256;
const LENGTH: u32 = 4352;

struct Bench {
    executor: Profiler,
    step: u64,
    blocks_each: u32,
}

fn bench(path: &str) -> Result<(), String> {
    let mut bench = Bench::load(path, crate::options())?;
    let facts = bench.executor.executor().facts().clone();
    for (batch, prompt, steps) in [
        (1, 32, 128),
        (1, 1024, 100),
        (8, 1024, 60),
        (16, 512, 60),
        (32, 512, 60),
        (64, 256, 60),
        (128, 256, 60),
        (256, 32, 127),
    ] {
        if u64::from(batch) * u64::from((prompt + steps + 1) as u32) > u64::from(facts.kv_blocks) * u64::from(BLOCK) {
            continue;
        }
        bench.decode("greedy", batch, prompt, steps, &with_temperature(0.0))?;
    }
    bench.decode("temperature 0.8", 1, 32, 60, &with_temperature(0.8))?;
    bench.decode("temperature 0.8", 256, 32, 60, &with_temperature(0.8))?;
    for (batch, prompt) in [(1, 512), (1, 1024), (1, 4096), (8, 1024)] {
        bench.prefill(batch, prompt, Duration::ZERO)?;
    }
    for prompt in [512, 1024] {
        bench.prefill(1, prompt, RESTED)?;
    }
    Ok(())
}

fn with_temperature(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, ..Default::default() }
}

impl Bench {
    fn load(path: &str, options: CudaOptions) -> Result<Self, String> {
        let model = Model::dummy(Path::new(path)).map_err(|error| error.to_string())?;
        // All decodes by the kernels chosen for them, however long that takes.
        let options = CudaOptions { prepare_at_start: Duration::MAX, ..options };
        let begin = Instant::now();
        let mut executor = Profiler::load(&model, &LIMITS, &options).map_err(|error| error.to_string())?;
        let facts = executor.executor().facts();
        println!(
            "# {path}: {}, loaded in {:.2} s, weights {:.2} GiB, KV {:.1} GiB in {} blocks",
            facts.device,
            begin.elapsed().as_secs_f64(),
            facts.weights_bytes as f64 / f64::from(1 << 30),
            facts.kv_cache_bytes as f64 / f64::from(1 << 30),
            facts.kv_blocks
        );
        Ok(Self { executor, step: 0, blocks_each: 0 })
    }

    fn start(&mut self, batch: u32, prompt: usize, sampling: &SamplingParams, length: u32) -> StepPlan {
        self.blocks_each = length.div_ceil(BLOCK);
        self.step += 1;
        let started = (0..batch).map(|row| RowStart {
            row: RowId(row),
            tokens: (0..prompt as u32).map(|i| (i * 31 + row * 17) % 9000).collect::<Vec<_>>().into(),
            prompt_len: prompt as u32,
            computed: 0,
            sampling: Arc::new(SamplingParams { seed: u64::from(row), ..sampling.clone() }),
            prompt_logprobs: None,
        });
        let each = self.blocks_each;
        let appended = (0..batch).flat_map(|row| (0..each).map(move |i| (RowId(row), BlockId(row * each + i))));
        StepPlan {
            step: self.step,
            released: (0..ROWS).map(RowId).collect(),
            started: started.collect(),
            appended: appended.collect(),
            work: vec![],
        }
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<f64, String> {
        let begin = Instant::now();
        self.executor.executor().launch(plan).map_err(|error| error.to_string())?;
        Ok(begin.elapsed().as_secs_f64())
    }

    fn collect(&mut self) -> Result<(), String> {
        let result = self.executor.executor().collect().map_err(|error| error.to_string())?;
        result.rows.into_iter().try_for_each(|(_, row)| row.map(|_| ()).map_err(|error| error.to_string()))
    }

    /// Prompts are prefilled in steps of at most 8192 positions; then every row decodes, two steps in flight.
    fn decode(
        &mut self,
        name: &str,
        batch: u32,
        prompt: usize,
        steps: usize,
        sampling: &SamplingParams,
    ) -> Result<(), String> {
        let mut plan = self.start(batch, prompt, sampling, (prompt + steps + 1) as u32);
        let rows_at_once = (8192 / prompt).max(1) as u32;
        for first in (0..batch).step_by(rows_at_once as usize) {
            plan.work = (first..batch.min(first + rows_at_once))
                .map(|row| RowWork { row: RowId(row), start: 0, len: prompt as u32, sample: true })
                .collect();
            self.launch(&plan)?;
            self.collect()?;
            self.step += 1;
            plan = StepPlan { step: self.step, ..StepPlan::default() };
        }
        let mut step_plan = |position: usize| {
            self.step += 1;
            let work = (0..batch).map(|row| RowWork { row: RowId(row), start: position as u32, len: 1, sample: true });
            StepPlan { step: self.step, work: work.collect(), ..StepPlan::default() }
        };
        let plans: Vec<_> = (0..steps).map(|i| step_plan(prompt + i)).collect();
        let (mut times, mut host, mut parts) = (Vec::new(), Vec::new(), [const { Vec::new() }; 4]);
        let waits = self.executor.waits();
        self.launch(&plans[0])?;
        let mut begin = Instant::now();
        let whole = Instant::now();
        for next in plans.iter().skip(1).map(Some).chain([None]) {
            if let Some(next) = next {
                host.push(self.launch(next)?);
                parts.iter_mut().zip(self.executor.launch_seconds()).for_each(|(part, seconds)| part.push(seconds));
            }
            self.collect()?;
            times.push(begin.elapsed().as_secs_f64());
            begin = Instant::now();
        }
        let total = whole.elapsed().as_secs_f64();
        // The first steps capture and tune.
        let times = sorted(&times[3..]);
        let host = sorted(&host[3..]);
        let [staging, copy, kernels, rest] = parts.map(|part| at(&sorted(&part[3..]), 0.5) * 1e6);
        println!(
            "decode {name}, batch {batch:>3} prompt {prompt:>4}: median {:.3} ms/step (p10 {:.3}, p90 {:.3}), {:.0} tok/s, host launch median {:.1} us p90 {:.1} us (staging {staging:.1}, copy {copy:.1}, kernels {kernels:.1}, rest {rest:.1}), {} launches waited, first {} steps {:.2} s",
            at(&times, 0.5) * 1e3,
            at(&times, 0.1) * 1e3,
            at(&times, 0.9) * 1e3,
            f64::from(batch) / at(&times, 0.5),
            at(&host, 0.5) * 1e6,
            at(&host, 0.9) * 1e6,
            self.executor.waits() - waits,
            steps,
            total
        );
        Ok(())
    }

    /// Median milliseconds of a step of `decodes` rows at some 512 positions and `tokens` of new prompts of 512, the last one cut, two steps in flight.
    fn beside(&mut self, decodes: u32, tokens: u32) -> Result<f64, String> {
        const STEPS: usize = 12;
        let prompt = 512;
        let prompts = tokens.div_ceil(prompt as u32);
        let first = self.start(decodes + prompts, prompt, &with_temperature(0.0), (prompt + STEPS) as u32);
        let decoding = StepPlan {
            started: first.started[..decodes as usize].to_vec(),
            appended: first.appended.iter().copied().filter(|(row, _)| row.0 < decodes).collect(),
            ..first.clone()
        };
        let fresh = StepPlan {
            released: (decodes..decodes + prompts).map(RowId).collect(),
            started: first.started[decodes as usize..].to_vec(),
            appended: first.appended.iter().copied().filter(|(row, _)| row.0 >= decodes).collect(),
            ..StepPlan::default()
        };
        let whole = |rows: std::ops::Range<u32>| {
            rows.map(|row| RowWork { row: RowId(row), start: 0, len: prompt as u32, sample: true })
        };
        let cut = |row: u32| (tokens - (row - decodes) * prompt as u32).min(prompt as u32);
        let begun = |row: u32| RowWork { row: RowId(row), start: 0, len: cut(row), sample: cut(row) == prompt as u32 };
        let mut plans = vec![decoding];
        for begin in (0..decodes).step_by(16) {
            plans.push(StepPlan { work: whole(begin..decodes.min(begin + 16)).collect(), ..StepPlan::default() });
        }
        let (before, rows) = (plans.len(), decodes..decodes + prompts);
        for step in 0..STEPS as u32 {
            let decodes =
                (0..decodes).map(|row| RowWork { row: RowId(row), start: prompt as u32 + step, len: 1, sample: true });
            plans.push(StepPlan { work: decodes.chain(rows.clone().map(begun)).collect(), ..fresh.clone() });
        }
        let mut times = Vec::new();
        let mut begin = Instant::now();
        for (at, plan) in plans.iter_mut().enumerate() {
            self.step += 1;
            plan.step = self.step;
            self.launch(plan)?;
            if at > 0 {
                self.collect()?;
                times.push(begin.elapsed().as_secs_f64());
                begin = Instant::now();
            }
        }
        self.collect()?;
        // The first steps capture, or find their algorithms.
        Ok(at(&sorted(&times[before + 2..]), 0.5) * 1e3)
    }

    /// Prompts one step after another, `pause` between them.
    fn prefill(&mut self, batch: u32, prompt: usize, pause: Duration) -> Result<(), String> {
        let mut times = Vec::new();
        // The first is not counted. One step takes up to a sixth longer than another: five gave a median that moved by 3 %.
        for _ in 0..22 {
            std::thread::sleep(pause);
            let mut plan = self.start(batch, prompt, &with_temperature(0.0), prompt as u32 + 1);
            plan.work =
                (0..batch).map(|row| RowWork { row: RowId(row), start: 0, len: prompt as u32, sample: true }).collect();
            let begin = Instant::now();
            self.launch(&plan)?;
            self.collect()?;
            times.push(begin.elapsed().as_secs_f64());
        }
        let times = sorted(&times[1..]);
        println!(
            "prefill {batch} x {prompt}{}: median {:.2} ms (min {:.2}, max {:.2})",
            if pause.is_zero() { String::new() } else { format!(", {} ms after the last", pause.as_millis()) },
            at(&times, 0.5) * 1e3,
            at(&times, 0.0) * 1e3,
            at(&times, 1.0) * 1e3
        );
        Ok(())
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

fn at(sorted: &[f64], quantile: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * quantile).round() as usize]
}
