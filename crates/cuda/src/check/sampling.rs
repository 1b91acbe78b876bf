//! The choice of tokens on the device against the scalar sampler, on made-up logits: no model, all parameters.

use crate::{
    CudaError,
    choose::{Chooser, Samples},
    driver::{Buffer, Context, Pinned, Shape, Stream},
    kernels::{Kernels, RECORD_WORDS, launch, shape},
    results::{Entry, InFlight},
    row_sampling::{Modes, RowSampling},
    staging::{Arena, Changes, Counts, Layout},
};
use powertrain_sampling::{History, Sampler};
use powertrain_step::{RowError, RowId, RowOutput, SampledToken, SamplingParams, StepLimits, TokenId};

/// What [`sampling`] found.
#[derive(Clone, Debug, Default)]
pub struct SamplingFindings {
    /// Rows and steps compared.
    pub compared: usize,
    /// Of these, rows without a token on both sides.
    pub damaged: usize,
    /// Log-probabilities compared.
    pub logprobs: usize,
    /// The largest difference of two log-probabilities.
    pub worst: f32,
    /// What differed, in words.
    pub failures: Vec<String>,
}

const ROWS: usize = 24;
const PROMPT_MAX: u32 = 40;
const STEPS: u32 = 6;

/// A small generator for cases; the samplers have their own.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ self.0 >> 29;
        (x.wrapping_mul(0xBF58_476D_1CE4_E5B9)) >> 16
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// In [0, 1).
    fn unit(&mut self) -> f32 {
        (self.next() & 0xff_ffff) as f32 / 16_777_216.0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Rounds of rows with random parameters, six steps each, on logits of several shapes; every token and log-probability against the
/// scalar sampler's. `seed` makes them anew.
///
/// # Errors
/// When the device cannot be used.
pub fn sampling(seed: u64, rounds: usize) -> Result<SamplingFindings, CudaError> {
    let context = Context::open(0)?;
    let kernels = Kernels::load(&context, crate::Element::Bf16)?;
    let stream = Stream::create()?;
    let mut findings = SamplingFindings::default();
    let mut random = Random(seed);
    for vocab in [13, 999, 32_003, 128_256] {
        // The scalar side takes its time on a large vocabulary.
        for _ in 0..if vocab > 100_000 { rounds } else { 3 * rounds } {
            round(&context, &kernels, &stream, vocab, &mut random, &mut findings)?;
        }
    }
    Ok(findings)
}

struct Case {
    params: SamplingParams,
    prompt: Vec<TokenId>,
    history: History,
    modes: Modes,
    /// Whether it still goes on.
    lives: bool,
}

fn params(random: &mut Random, vocab: u64) -> SamplingParams {
    let token = |random: &mut Random| random.below(vocab + 3) as TokenId;
    let mut params = SamplingParams {
        temperature: random.pick(&[0.0, 0.0, 0.7, 1.0, 3.0]),
        top_k: random.pick(&[0, 0, 1, 5, 50]),
        top_p: random.pick(&[1.0, 1.0, 0.9, 0.5]),
        min_p: random.pick(&[0.0, 0.0, 0.05]),
        seed: random.next(),
        ..SamplingParams::default()
    };
    if random.one_in(2) {
        params.presence_penalty = random.pick(&[0.0, 0.5, -1.0, 2.0]);
        params.frequency_penalty = random.pick(&[0.0, 0.3, 1.7, -0.1]);
        params.repetition_penalty = random.pick(&[1.0, 1.1, 1.3, 0.8]);
    }
    if random.one_in(3) {
        let count = random.pick(&[1, 4, 300]);
        params.logit_bias = (0..count).map(|_| (token(random), random.pick(&[-100.0, 100.0, 0.37, -2.3]))).collect();
    }
    if random.one_in(3) {
        params.min_tokens = random.below(5) as u32;
        params.suppressed = (0..random.pick(&[1, 3, 40])).map(|_| token(random)).collect();
    }
    if random.one_in(2) {
        params.logprobs = Some(random.pick(&[0, 1, 5, 20]));
    }
    params
}

/// A row of logits: spread, with many equal ones, with tokens that cannot come, all the same, damaged.
fn logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    let spread = random.pick(&[0.5, 3.0, 20.0]);
    let normal = |random: &mut Random| (0..6).map(|_| random.unit()).sum::<f32>() - 3.0;
    let mut row: Vec<f32> = (0..vocab).map(|_| normal(random) * spread).collect();
    match random.below(30) {
        0..=3 => row.iter_mut().for_each(|x| *x = (*x * 2.0).round() / 2.0),
        4 | 5 => row.iter_mut().step_by(3).for_each(|x| *x = f32::NEG_INFINITY),
        6 => row.fill(-1.5),
        7 => row[vocab / 2] = f32::NAN,
        8 => row[vocab - 1] = f32::INFINITY,
        9 => row.fill(f32::NEG_INFINITY),
        _ => {}
    }
    row
}

fn round(
    context: &Context,
    kernels: &Kernels,
    stream: &Stream,
    vocab: usize,
    random: &mut Random,
    findings: &mut SamplingFindings,
) -> Result<(), CudaError> {
    let limits = StepLimits {
        max_num_seqs: ROWS as u32,
        max_num_batched_tokens: 64,
        max_model_len: PROMPT_MAX + STEPS,
        block_size: 16,
    };
    let arena = Arena::new(&limits);
    let state = Buffer::allocate(context, arena.words() * 4, "check")?;
    let state_of = arena.state(state.pointer());
    let chooser = Chooser::allocate(context, stream, ROWS, vocab)?;
    let mut row_sampling = RowSampling::new(vocab, ROWS, ROWS);
    let layout = Layout { tokens: ROWS, samples: ROWS, tiles: 0 };
    let staged_words = layout.fixed_words() + (1 << 18);
    let (mut pinned, staged) = (Pinned::allocate(staged_words)?, Buffer::allocate(context, staged_words * 4, "check")?);
    let results = Pinned::allocate(ROWS * (1 + RECORD_WORDS))?;
    let mut sampler = Sampler::new(vocab);
    let mut changes = Changes::default();
    let mut cases: Vec<Case> = Vec::new();
    for row in 0..ROWS {
        let params = params(random, vocab as u64);
        let prompt: Vec<TokenId> =
            (0..1 + random.below(u64::from(PROMPT_MAX))).map(|_| random.below(vocab as u64) as TokenId).collect();
        // As after a preemption: some of the tokens were generated.
        let generated = if random.one_in(3) { random.below(prompt.len() as u64) as usize } else { 0 };
        let (before, after) = prompt.split_at(prompt.len() - generated);
        let history = History::new(before, after);
        changes.set(row * arena.max_len, prompt.iter().copied());
        let modes = row_sampling.start(context, &arena, &mut changes, row as u32, &params, before.len() as u32);
        cases.push(Case { params, history, modes, lives: true, prompt });
    }
    for step in 0..STEPS {
        let words = pinned.words_mut();
        words[layout.rows()..layout.fixed_words()].fill(0);
        let (mut entries, mut wanted, mut rows_of_logits) = (Vec::new(), Vec::new(), Vec::new());
        for (row, case) in cases.iter_mut().enumerate() {
            let row_logits = logits(random, vocab);
            let last = case.prompt.len() as u32 + step - 1;
            // The order of rows changes from step to step.
            let sample = (row + step as usize * 5) % ROWS;
            if case.lives {
                let mode = case.modes.take(last);
                words[layout.modes() + sample] = mode.0;
                words[layout.sample_rows() + sample] = row as u32;
                words[layout.sample_positions() + sample] = last;
                entries.push(Entry::new(RowId(row as u32), last, Some((sample, mode))));
                let want = sampler.sample(&row_logits, &case.params, &case.history, last + 1);
                case.lives = want.is_ok();
                if let Ok(sampled) = &want {
                    case.history.push(sampled.token);
                }
                wanted.push((row, want.map_err(|_| RowError::NonFiniteLogits { position: last })));
            }
            rows_of_logits.push((sample, row_logits));
        }
        for (sample, row_logits) in &rows_of_logits {
            chooser.logits.write(sample * vocab * 4, row_logits)?;
        }
        let at = results.device_address();
        let used =
            changes.write(&layout, Counts::default(), [at, at + 4 * ROWS as u64, row_sampling.adjusted()], words);
        changes.clear();
        stream.copy_to_device(&staged, &pinned, used)?;
        let header = staged.pointer();
        let alone = Shape { overlap: false, ..shape((32, 1, 1), 256) };
        launch!(stream, kernels.apply_changes, alone, state_of, header)?;
        let samples = Samples { state: state_of, staged: header, layout, draws: true, extras: true };
        chooser.run(kernels, stream, &samples)?;
        stream.wait()?;
        let outputs = InFlight::new(1, 0, entries).outputs(results.words(), ROWS);
        for ((row, want), (_, got)) in wanted.into_iter().zip(outputs) {
            let described = || format!("vocabulary {vocab}, step {step}, {:?}", cases[row].params);
            compare(&got, &want, findings, described);
        }
    }
    Ok(())
}

/// One row of one step.
fn compare(
    got: &Result<RowOutput, RowError>,
    want: &Result<SampledToken, RowError>,
    findings: &mut SamplingFindings,
    described: impl Fn() -> String,
) {
    const TOLERANCE: f32 = 1e-4;
    findings.compared += 1;
    let mut fail = |what: String| findings.failures.push(format!("{what}: {}", described()));
    let (got, want) = match (got, want) {
        (Ok(got), Ok(want)) => (&got.sampled[0], want),
        (Err(_), Err(_)) => {
            findings.damaged += 1;
            return;
        }
        (got, want) => return fail(format!("{got:?} instead of {want:?}")),
    };
    if got.token != want.token {
        return fail(format!("token {} instead of {}", got.token, want.token));
    }
    match (&got.logprobs, &want.logprobs) {
        (None, None) => {}
        (Some(got), Some(want)) => {
            let ids = |pairs: &[(TokenId, f32)]| pairs.iter().map(|pair| pair.0).collect::<Vec<_>>();
            if (got.token, got.rank, ids(&got.top)) != (want.token, want.rank, ids(&want.top)) {
                return fail(format!("{got:?} instead of {want:?}"));
            }
            let pairs = got.top.iter().zip(&want.top).map(|(a, b)| (a.1, b.1));
            for (a, b) in pairs.chain([(got.logprob, want.logprob)]) {
                let difference = if a == b { 0.0 } else { (a - b).abs() };
                findings.logprobs += 1;
                findings.worst = findings.worst.max(difference);
                if difference.is_nan() || difference > TOLERANCE {
                    return fail(format!("log-probability {a} instead of {b}"));
                }
            }
        }
        (got, want) => fail(format!("{got:?} instead of {want:?}")),
    }
}
