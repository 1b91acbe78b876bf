//! What is refused, and in which words; and that one row's failure is its own.

mod support;

use powertrain_cpu::{CpuConfig, CpuError, SimdLevel};
use powertrain_model::weights::WeightFormat;
use powertrain_step::{BlockId, Executor, RowError, RowId, RowStart, RowWork, SamplingParams, StepLimits, StepPlan};
use std::sync::Arc;
use support::{limits, synthetic::Synthetic};

fn model() -> Synthetic {
    Synthetic::all_formats(1).into_iter().find(|model| model.format == WeightFormat::F32).unwrap()
}

fn refused(limits: StepLimits, config: CpuConfig) -> CpuError {
    match model().open(limits, config) {
        Ok(_) => panic!("{limits:?} was accepted"),
        Err(error) => error,
    }
}

fn config() -> CpuConfig {
    CpuConfig { threads: Some(2), kv_cache_bytes: Some(8 << 20), ..CpuConfig::default() }
}

#[test]
fn what_does_not_fit_says_which_number_to_change() {
    let limits = limits(64);
    let check = |error: CpuError, words: &str| {
        let message = error.to_string();
        assert!(message.contains(words), "{message:?} lacks {words:?}");
    };
    check(refused(limits, CpuConfig { kv_cache_bytes: Some(1000), ..config() }), "--kv-cache-memory");
    check(refused(StepLimits { block_size: 8, ..limits }, config()), "--block-size 8");
    check(refused(StepLimits { max_model_len: 5000, ..limits }, config()), "exceeds the 1024 positions");
    check(refused(StepLimits { max_num_seqs: 0, ..limits }, config()), "--max-num-seqs is 0");
    check(refused(limits, CpuConfig { threads: Some(0), ..config() }), "--threads is 0");
    check(refused(limits, CpuConfig { threads: Some(1 << 20), ..config() }), "--threads 1048576");
    for level in SimdLevel::ALL.into_iter().filter(|level| !level.is_available()) {
        check(refused(limits, CpuConfig { simd: Some(level), ..config() }), "this machine does not have it");
    }
}

#[test]
fn the_kv_cache_holds_what_was_given() {
    let executor = model().open(limits(64), config()).unwrap();
    let facts = executor.facts();
    assert!(facts.kv_cache_bytes <= 8 << 20);
    assert_eq!(facts.kv_cache_bytes, u64::from(facts.kv_blocks) * 16 * facts.kv_bytes_per_token);
    assert_eq!((facts.threads, facts.depth, facts.kv_dtype), (2, 1, "int8"));
}

fn start(row: u32, tokens: &[u32]) -> RowStart {
    RowStart {
        row: RowId(row),
        tokens: Arc::from(tokens),
        prompt_len: tokens.len() as u32,
        computed: 0,
        sampling: Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }),
        prompt_logprobs: None,
    }
}

fn work(row: u32, len: u32) -> RowWork {
    RowWork { row: RowId(row), start: 0, len, sample: true }
}

#[test]
fn a_damaged_row_fails_alone() {
    let mut executor = model().damaged(5).open(limits(64), config()).unwrap();
    let plan = StepPlan {
        step: 1,
        started: vec![start(0, &[1, 2, 3]), start(1, &[4, 5, 6]), start(2, &[7])],
        appended: (0..3).map(|row| (RowId(row), BlockId(row))).collect(),
        work: vec![work(0, 3), work(1, 3), work(2, 1)],
        ..StepPlan::default()
    };
    executor.launch(&plan).unwrap();
    let rows = executor.collect().unwrap().rows;
    assert!(rows[0].1.is_ok() && rows[2].1.is_ok());
    assert_eq!(rows[1].1.as_ref().unwrap_err(), &RowError::NonFiniteLogits { position: 2 });
}

#[test]
fn impossible_plans_are_errors_and_the_next_step_runs() {
    let mut executor = model().open(limits(8), config()).unwrap();
    let whole = |step| StepPlan {
        step,
        released: vec![RowId(0)],
        started: vec![start(0, &[1, 2])],
        appended: vec![(RowId(0), BlockId(0))],
        work: vec![work(0, 2)],
    };
    let broken: [(&str, StepPlan); 7] = [
        ("of 8", StepPlan { started: vec![start(9, &[1])], ..StepPlan::default() }),
        ("vocabulary has 70", StepPlan { started: vec![start(1, &[70])], ..StepPlan::default() }),
        ("which is free", StepPlan { work: vec![work(3, 1)], ..StepPlan::default() }),
        ("block 4000000", StepPlan { appended: vec![(RowId(0), BlockId(4_000_000))], ..StepPlan::default() }),
        ("blocks for 0", StepPlan { appended: Vec::new(), ..whole(0) }),
        ("two entries", StepPlan { work: vec![work(0, 2), work(0, 2)], ..whole(0) }),
        (
            "--max-num-batched-tokens is 8",
            StepPlan { started: vec![start(0, &[1; 9])], work: vec![work(0, 9)], ..whole(0) },
        ),
    ];
    for (index, (words, plan)) in broken.into_iter().enumerate() {
        let step = 2 * index as u64 + 1;
        let error = executor.launch(&StepPlan { step, ..plan }).unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with(&format!("step {step} failed on cpu: ")), "{said}");
        assert!(said.contains(words), "{said:?} lacks {words:?}");
        executor.launch(&whole(step + 1)).unwrap();
        assert!(executor.collect().unwrap().rows[0].1.is_ok());
    }
}
