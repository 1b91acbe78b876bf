//! The reference against transformers, over tiny models of every family.

#[path = "fixtures/fixtures.rs"]
mod fixtures;
#[path = "fixtures/steps.rs"]
mod steps;

use fixtures::Fixture;
use powertrain_model::bytes::FileBytes;
use powertrain_model::family::describe_gguf;
use powertrain_model::reference::{self, Reference};
use powertrain_model::spec::AttentionSpec;
use powertrain_model::{Checkpoint, Model};
use powertrain_step::*;
use std::path::Path;
use std::sync::Arc;
use steps::{BLOCKS, Steps, greedy, limits};

/// What two f32 computations of these models may differ by.
const ERROR_MAX: f32 = 1e-4;

fn steps_of(path: &Path) -> Steps {
    Steps::new(Reference::new(&Model::open(path).unwrap(), limits(), BLOCKS))
}

#[test]
fn logits_are_those_of_transformers() {
    for Fixture { name, path, prompt, logits: expected, .. } in fixtures::all() {
        let model = Model::open(&path).unwrap();
        let found = reference::logits(&model, &prompt);
        let pairs = found.iter().flatten().zip(expected.iter().flatten());
        let error = pairs.map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
        assert_eq!(found.len(), expected.len(), "{name}");
        assert!(error < ERROR_MAX, "{name}: largest error {error}");
        eprintln!("{name}: largest error {error:.1e}");
    }
}

#[test]
fn greedy_text_is_that_of_transformers() {
    for Fixture { name, path, prompt, greedy: expected, .. } in fixtures::all() {
        let mut steps = steps_of(&path);
        assert_eq!(steps.run_alone(&prompt, expected.len(), prompt.len(), greedy()), expected, "{name}");
    }
}

#[test]
fn chunks_blocks_and_neighbours_change_nothing() {
    for name in ["llama", "gemma3", "qwen2-window"] {
        let Fixture { path, prompt, greedy: expected, .. } = fixtures::named(name);
        let mut steps = steps_of(&path);
        for chunk in [1, 2, 5, 16] {
            assert_eq!(
                steps.run_alone(&prompt, expected.len(), chunk, greedy()),
                expected,
                "{name}, chunks of {chunk}"
            );
        }
        // Three sequences in turn, one of them the same; prompts of different lengths meet decoding.
        let prompts = [prompt.clone(), prompt[3..9].to_vec(), prompt.clone()];
        let alone = steps.run_alone(&prompts[1], expected.len(), 16, greedy());
        let together = steps.run_together(&prompts, expected.len(), 7);
        assert_eq!(together, [expected.clone(), alone, expected.clone()], "{name} together");
    }
}

#[test]
fn a_sequence_comes_back_after_preemption() {
    let Fixture { path, prompt, greedy: expected, .. } = fixtures::named("qwen3");
    let mut steps = steps_of(&path);
    let mut tokens = prompt.clone();
    tokens.extend(&expected[..10]);
    let (row, result) = steps.start(&tokens, prompt.len(), 0, greedy(), None);
    assert_eq!(result.rows[0].1.as_ref().unwrap().sampled[0].token, expected[10]);
    steps.release(row);
}

#[test]
fn cached_blocks_of_another_row_are_read() {
    let Fixture { path, prompt, greedy: expected, .. } = fixtures::named("gemma3");
    let mut steps = steps_of(&path);
    let (first, _) = steps.start(&prompt, prompt.len(), 0, greedy(), None);
    let shared = steps.table(first)[..prompt.len() / limits().block_size as usize].to_vec();
    assert!(shared.len() > 1, "the prompt fills blocks");
    let (_, result) = steps.start_on(&prompt, prompt.len(), &shared, greedy(), None);
    assert_eq!(result.rows[0].1.as_ref().unwrap().sampled[0].token, expected[0]);
}

#[test]
fn prompt_logprobs_are_log_softmax_of_the_logits() {
    let Fixture { path, prompt, logits, .. } = fixtures::named("mistral-window");
    let mut steps = steps_of(&path);
    for chunk in [prompt.len(), 5] {
        let (row, results) = steps.start_chunked(&prompt, chunk, greedy(), Some(3));
        let reported: Vec<TokenLogprobs> =
            results.iter().flat_map(|result| result.rows[0].1.as_ref().unwrap().prompt_logprobs.clone()).collect();
        assert_eq!(reported.len(), prompt.len() - 1);
        for (position, logprobs) in (1..).zip(&reported) {
            let logits = &logits[position - 1];
            let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            let expected = f64::from(logits[prompt[position] as usize]) - sum.ln();
            assert_eq!(logprobs.token, prompt[position]);
            assert!((f64::from(logprobs.logprob) - expected).abs() < 1e-4, "position {position}");
            assert_eq!(logprobs.top.len(), 3);
        }
        steps.release(row);
    }
}

#[test]
fn a_plan_that_breaks_the_contract_is_refused_with_a_reason() {
    let Fixture { path, prompt, .. } = fixtures::named("llama");
    let model = Model::open(&path).unwrap();
    let start = |row: u32| RowStart {
        row: RowId(row),
        tokens: prompt.clone().into(),
        prompt_len: prompt.len() as u32,
        computed: 0,
        sampling: greedy(),
        prompt_logprobs: None,
    };
    let len = prompt.len() as u32;
    let work = |row: u32, start: u32, len: u32, sample: bool| RowWork { row: RowId(row), start, len, sample };
    let blocks = |count: u32| (0..count).map(|block| (RowId(0), BlockId(block))).collect::<Vec<_>>();
    let check = |plan: StepPlan, expected: &str| {
        let mut executor = reference::Reference::new(&model, limits(), 64);
        let reason = executor.launch(&StepPlan { step: 1, ..plan }).unwrap_err().to_string();
        assert!(reason.contains(expected), "{reason:?} does not contain {expected:?}");
    };
    let plan = |started: Vec<RowStart>, appended: Vec<(RowId, BlockId)>, work: Vec<RowWork>| StepPlan {
        started,
        appended,
        work,
        ..StepPlan::default()
    };
    check(StepPlan { released: vec![RowId(99)], ..StepPlan::default() }, "row 99 is released of 8 rows");
    check(plan(vec![start(0), start(0)], vec![], vec![]), "row 0 is started but taken");
    check(plan(vec![start(99)], vec![], vec![]), "row 99 is started of 8 rows");
    check(plan(vec![start(0)], vec![(RowId(0), BlockId(64))], vec![]), "block 64 of 64");
    check(plan(vec![], vec![], vec![work(0, 0, 1, false)]), "row 0 was not started");
    check(plan(vec![start(0)], vec![], vec![work(0, 0, 1, false)]), "its blocks hold 0 positions");
    check(plan(vec![start(0)], blocks(9), vec![work(0, 0, len - 1, true)]), "samples after 21 of 22 tokens");
    check(plan(vec![start(0)], blocks(9), vec![work(0, 3, 1, false)]), "starts at 3, but 0 are computed");
    check(plan(vec![start(0)], blocks(9), vec![work(0, 0, len + 1, true)]), "but has 22 tokens");
    check(plan(vec![start(0)], blocks(9), vec![work(0, 0, 1000, false)]), "exceed the budget of");
    let strange = RowStart { tokens: vec![1, 256].into(), prompt_len: 2, ..start(0) };
    check(plan(vec![strange], vec![], vec![]), "holds token Some(256) of a vocabulary of 256");
}

/// No family here caps scores yet. A wide cap changes nothing; a narrow one makes all scores equal, as a scale of 0 does.
#[test]
fn scores_are_capped() {
    let Fixture { path, prompt, logits: plain, .. } = fixtures::named("llama-F16.gguf");
    let logits = |change: &dyn Fn(&mut AttentionSpec)| {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let mut described = describe_gguf(checkpoint.metadata().unwrap(), &|name| checkpoint.tensor(name)).unwrap();
        described.spec.layers.iter_mut().for_each(|layer| change(&mut layer.attention));
        reference::logits(&Model::assemble(described, checkpoint, None).unwrap(), &prompt)
    };
    let difference = |a: &[Vec<f32>], b: &[Vec<f32>]| {
        a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let uniform = logits(&|attention| attention.scale = 0.0);
    assert!(difference(&logits(&|attention| attention.softcap = Some(1e4)), &plain) < 1e-3);
    assert!(difference(&logits(&|attention| attention.softcap = Some(1e-6)), &uniform) < 1e-3);
    assert!(difference(&uniform, &plain) > 1.0);
}

#[test]
fn sampled_text_depends_on_the_seed_and_not_on_chunks() {
    let Fixture { path, prompt, .. } = fixtures::named("qwen2");
    let mut steps = steps_of(&path);
    let sampling = |seed| Arc::new(SamplingParams { temperature: 1.5, top_k: 50, seed, ..SamplingParams::default() });
    let text = steps.run_alone(&prompt, 20, 16, sampling(7));
    assert_eq!(steps.run_alone(&prompt, 20, 3, sampling(7)), text);
    assert_ne!(steps.run_alone(&prompt, 20, 16, sampling(8)), text);
}

#[test]
fn a_row_with_damaged_logits_fails_alone() {
    // The embedding of one token is NaN; the head is another matrix.
    const DAMAGED: TokenId = 77;
    let Fixture { path, prompt, greedy: expected, .. } = fixtures::named("llama-F16.gguf");
    let mut steps = Steps::new(Reference::new(&damage(&path, DAMAGED), limits(), BLOCKS));
    let strange = [prompt[0], DAMAGED, prompt[1]];
    let results = steps.start_side_by_side(&[&prompt, &strange], greedy());
    assert_eq!(results[0].as_ref().unwrap().sampled[0].token, expected[0]);
    assert_eq!(*results[1].as_ref().unwrap_err(), RowError::NonFiniteLogits { position: 2 });
}

/// The model of a GGUF file, its embedding of a token overwritten with NaN.
fn damage(path: &Path, token: TokenId) -> Model {
    let intact = Checkpoint::open(path).unwrap();
    let embedding = intact.tensors().get("token_embd.weight").unwrap();
    let row_bytes = embedding.bytes.len() / embedding.rows_columns().0;
    let mut file = std::fs::read(path).unwrap();
    file[embedding.bytes.start + token as usize * row_bytes..][..row_bytes].fill(0xff);
    let checkpoint = Checkpoint::from_gguf(FileBytes::Owned(file), path).unwrap();
    let described = describe_gguf(checkpoint.metadata().unwrap(), &|name| checkpoint.tensor(name)).unwrap();
    Model::assemble(described, checkpoint, None).unwrap()
}
