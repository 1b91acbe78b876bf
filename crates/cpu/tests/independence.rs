//! The invariant: a row's result is the same, bit for bit, whatever else happens.

mod support;

use powertrain_cpu::{Activations, CpuConfig, CpuExecutor, KvDtype, SimdLevel};
use powertrain_step::{StepLimits, TokenId, TokenLogprobs};
use support::{Driver, Random, greedy, limits, open, synthetic::Synthetic};

const SEED: u64 = 20_260_801;

fn config(activations: Activations) -> CpuConfig {
    CpuConfig { threads: Some(2), activations, kv_cache_bytes: Some(8 << 20), ..CpuConfig::default() }
}

fn prompt(random: &mut Random, len: usize, vocab_size: usize) -> Vec<TokenId> {
    (0..len).map(|_| random.below(vocab_size) as TokenId).collect()
}

/// Everything a model may be asked to do in another way, on one model.
fn check(name: &str, make: &dyn Fn(CpuConfig, StepLimits) -> CpuExecutor, vocab_size: usize, activations: Activations) {
    let mut random = Random(SEED);
    let limits = limits(96);
    let make = |config: CpuConfig| make(config, limits);
    let long = prompt(&mut random, 83, vocab_size);
    let base = config(activations);
    let (scores, tokens) = Driver::new(make(base.clone()), limits, None).generate(&long, 8, 96);
    assert_eq!((scores.len(), tokens.len()), (82 + 8, 8));

    let same = |what: &str, (other_scores, other_tokens): (Vec<TokenLogprobs>, Vec<TokenId>)| {
        assert_eq!(other_tokens, tokens, "{name}: {what}, seed {SEED}");
        assert!(other_scores == scores, "{name}: {what}: log-probabilities differ, seed {SEED}");
    };
    for chunk in [1, 7, 16, 33] {
        let result = Driver::new(make(base.clone()), limits, None).generate(&long, 8, chunk);
        same(&format!("chunks of {chunk}"), result);
    }
    for threads in [1, 3] {
        let config = CpuConfig { threads: Some(threads), ..base.clone() };
        same(&format!("{threads} threads"), Driver::new(make(config), limits, None).generate(&long, 8, 96));
    }
    same("shuffled blocks", Driver::new(make(base.clone()), limits, Some(SEED)).generate(&long, 8, 50));
    same("among others", among_others(make(base), limits, &long, &mut random, vocab_size));
}

/// The same row 0, while others come, run and go around it.
fn among_others(
    executor: CpuExecutor,
    limits: StepLimits,
    long: &[TokenId],
    random: &mut Random,
    vocab_size: usize,
) -> (Vec<TokenLogprobs>, Vec<TokenId>) {
    let mut driver = Driver::new(executor, limits, Some(SEED));
    driver.start(0, long, long.len(), greedy(), true);
    let mut others: Vec<u32> = Vec::new();
    let (mut scores, mut tokens) = (Vec::new(), Vec::new());
    while tokens.len() < 8 {
        // Newcomers stand before and after row 0 in the step.
        if others.len() < 5 {
            let row = (1..8).find(|row| !others.contains(row)).unwrap();
            let len = 1 + random.below(30);
            let prompt = prompt(random, len, vocab_size);
            driver.start(row, &prompt, len, greedy(), false);
            others.push(row);
        }
        let place = random.below(others.len() + 1);
        for (index, &row) in others.iter().enumerate() {
            if index == place {
                driver.work(0, 19);
            }
            driver.work(row, 13);
        }
        if place == others.len() {
            driver.work(0, 19);
        }
        for (row, output) in driver.step() {
            if row.0 == 0 {
                scores.extend(output.prompt_logprobs);
                for sampled in output.sampled {
                    tokens.push(sampled.token);
                    scores.extend(sampled.logprobs);
                }
            }
        }
        if random.below(4) == 0 {
            driver.release(others.remove(0));
        }
    }
    (scores, tokens)
}

#[test]
fn every_family_is_independent_of_its_batch() {
    for name in ["gemma3", "llama-Q8_0.gguf", "mistral-window", "qwen2-BF16.gguf", "qwen3"] {
        check(name, &|config, limits| open(name, limits, config), 256, Activations::Int8);
    }
    check("llama", &|config, limits| open("llama", limits, config), 256, Activations::F32);
}

#[test]
fn every_weight_format_is_independent_of_its_batch() {
    for model in Synthetic::all_formats(SEED) {
        let name = format!("{:?}", model.format);
        check(&name, &|config, limits| model.open(limits, config).unwrap(), model.vocab_size(), Activations::Int8);
    }
}

#[test]
fn all_simd_levels_agree_bit_for_bit() {
    for model in Synthetic::all_formats(SEED).into_iter().filter(|model| !model.is_bf16()) {
        for (activations, kv_dtype) in [(Activations::Int8, KvDtype::Int8), (Activations::F32, KvDtype::F16)] {
            let mut random = Random(SEED);
            let prompt = prompt(&mut random, 41, model.vocab_size());
            let run = |level| {
                let limits = limits(64);
                let config = CpuConfig { simd: Some(level), kv_dtype, ..config(activations) };
                Driver::new(model.open(limits, config).unwrap(), limits, None).generate(&prompt, 4, 64)
            };
            let reference = run(SimdLevel::Scalar);
            for level in SimdLevel::ALL.into_iter().filter(|level| level.is_available()) {
                assert!(run(level) == reference, "{:?} {activations:?} {level} differs, seed {SEED}", model.format);
            }
        }
    }
}

#[test]
fn packed_weights_are_exactly_the_files() {
    for model in Synthetic::all_formats(SEED) {
        let mut random = Random(SEED);
        let prompt = prompt(&mut random, 20, model.vocab_size());
        let run = |model: &Synthetic| {
            let limits = limits(64);
            let config = CpuConfig { kv_dtype: KvDtype::F32, ..config(Activations::F32) };
            Driver::new(model.open(limits, config).unwrap(), limits, None).generate(&prompt, 4, 64)
        };
        assert!(run(&model) == run(&model.dequantized()), "{:?}, seed {SEED}", model.format);
    }
}

#[test]
fn long_contexts_are_independent_of_spans_and_threads() {
    // 600 positions: three spans, shared out among threads when the sequence decodes alone.
    let limits = StepLimits { max_num_seqs: 8, max_num_batched_tokens: 640, max_model_len: 640, block_size: 16 };
    let model = Synthetic::all_formats(SEED).remove(0);
    let prompt = prompt(&mut Random(SEED), 600, model.vocab_size());
    for kv_dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16, KvDtype::Int8] {
        let run = |threads, chunk| {
            let config = CpuConfig { threads: Some(threads), kv_dtype, ..config(Activations::Int8) };
            Driver::new(model.open(limits, config).unwrap(), limits, Some(SEED)).generate(&prompt, 6, chunk)
        };
        let whole = run(1, 640);
        for (threads, chunk) in [(1, 100), (2, 640), (3, 257)] {
            assert!(run(threads, chunk) == whole, "{kv_dtype:?}, {threads} threads, chunks of {chunk}, seed {SEED}");
        }
    }
}
