//! Whole models: what the device computes must be what the reference computes, within bf16 or f16.

use powertrain_cuda::{CudaOptions, Element};
use powertrain_model::{Model, config::Config, dummy::DummyWeights, family::describe_config, model::Source, reference};
use powertrain_step::*;
use powertrain_text::{AddSpecial, ParseSpecial, Tokenizer};
use std::{
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

/// Log-probabilities may differ by this share of the standard deviation of the reference's logits, at most and in the mean. The
/// device rounds activations and KV cache to 8 bits of mantissa a few times a layer (11 in f16), and weights that are not bf16 once; errors
/// scale with the logits, and tiny random models with large weights have large logits.
fn tolerances() -> (f64, f64) {
    match crate::element() {
        Element::Bf16 => (0.25, 0.02),
        Element::F16 => (0.25 / 4.0, 0.02 / 4.0),
    }
}

pub(crate) const SYNTHETIC: [(&str, &str); 12] = [
    (
        "llama, head 64, group 3, odd vocabulary",
        r#"{"architectures":["LlamaForCausalLM"],"hidden_size":192,"intermediate_size":320,"num_attention_heads":6,"num_key_value_heads":2,"head_dim":64,"num_hidden_layers":2,"vocab_size":999,"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "llama, head 128, group 4",
        r#"{"architectures":["LlamaForCausalLM"],"hidden_size":256,"intermediate_size":512,"num_attention_heads":8,"num_key_value_heads":2,"head_dim":128,"num_hidden_layers":2,"vocab_size":1024,"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":500000.0,"tie_word_embeddings":false}"#,
    ),
    (
        "llama, head 64, group 16",
        r#"{"architectures":["LlamaForCausalLM"],"hidden_size":128,"intermediate_size":256,"num_attention_heads":16,"num_key_value_heads":1,"head_dim":64,"num_hidden_layers":2,"vocab_size":512,"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":false}"#,
    ),
    (
        "qwen2, head 128, group 6, biases",
        r#"{"architectures":["Qwen2ForCausalLM"],"hidden_size":256,"intermediate_size":576,"num_attention_heads":12,"num_key_value_heads":2,"head_dim":128,"num_hidden_layers":2,"vocab_size":1000,"max_position_embeddings":2048,"rms_norm_eps":1e-6,"rope_theta":1000000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "qwen3, head 128, norms of q and k",
        r#"{"architectures":["Qwen3ForCausalLM"],"hidden_size":256,"intermediate_size":512,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":128,"num_hidden_layers":2,"vocab_size":768,"max_position_embeddings":2048,"rms_norm_eps":1e-6,"rope_theta":1000000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "mistral, head 64, window 50",
        r#"{"architectures":["MistralForCausalLM"],"hidden_size":192,"intermediate_size":320,"num_attention_heads":6,"num_key_value_heads":2,"head_dim":64,"num_hidden_layers":2,"vocab_size":640,"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":10000.0,"sliding_window":50,"tie_word_embeddings":false}"#,
    ),
    (
        "mistral, head 128, window 200",
        r#"{"architectures":["MistralForCausalLM"],"hidden_size":256,"intermediate_size":320,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":128,"num_hidden_layers":2,"vocab_size":640,"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":10000.0,"sliding_window":200,"tie_word_embeddings":false}"#,
    ),
    (
        "llama, head 128, 8 KV heads",
        r#"{"architectures":["LlamaForCausalLM"],"hidden_size":256,"intermediate_size":320,"num_attention_heads":16,"num_key_value_heads":8,"head_dim":128,"num_hidden_layers":2,"vocab_size":640,"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":500000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "mistral, head 64, 8 KV heads, window 200",
        r#"{"architectures":["MistralForCausalLM"],"hidden_size":192,"intermediate_size":320,"num_attention_heads":8,"num_key_value_heads":8,"head_dim":64,"num_hidden_layers":2,"vocab_size":512,"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":10000.0,"sliding_window":200,"tie_word_embeddings":false}"#,
    ),
    (
        "llama, head 40 (plain kernel)",
        r#"{"architectures":["LlamaForCausalLM"],"hidden_size":160,"intermediate_size":264,"num_attention_heads":4,"num_key_value_heads":1,"head_dim":40,"num_hidden_layers":2,"vocab_size":512,"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":false}"#,
    ),
    (
        "llama, head 256 (plain kernel)",
        r#"{"architectures":["LlamaForCausalLM"],"hidden_size":192,"intermediate_size":320,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":256,"num_hidden_layers":2,"vocab_size":512,"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "llama, head 96 (plain kernel)",
        r#"{"architectures":["LlamaForCausalLM"],"hidden_size":192,"intermediate_size":320,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":96,"num_hidden_layers":2,"vocab_size":512,"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":true}"#,
    ),
];

/// Decoded so far into its sequence that positions are divided among blocks (`FAR_POSITIONS` of decode.rs), by kernels that no other shape takes.
const FAR: (&str, &str) = (
    "llama, head 128, 2300 positions",
    r#"{"architectures":["LlamaForCausalLM"],"hidden_size":128,"intermediate_size":256,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":128,"num_hidden_layers":2,"vocab_size":512,"max_position_embeddings":4096,"rms_norm_eps":1e-5,"rope_theta":500000.0,"tie_word_embeddings":true}"#,
);
const FAR_LENGTH: usize = 2300;

/// `arguments`: checkpoints; `only:TEXT` leaves the synthetic shapes whose names hold one of these texts.
pub(crate) fn check_all(arguments: &[String]) -> usize {
    let mut failures = 0;
    let (only, paths): (Vec<_>, Vec<_>) = arguments.iter().partition(|argument| argument.starts_with("only:"));
    let wanted = |name: &str| only.is_empty() || only.iter().any(|only| name.contains(&only["only:".len()..]));
    for ((name, json), block) in
        SYNTHETIC.into_iter().zip(BLOCKS.into_iter().cycle()).filter(|((name, _), _)| wanted(name))
    {
        failures += report(name, synthetic(json).and_then(|model| check(&model, &scattered(&model, 700), block)));
    }
    if wanted(FAR.0) {
        failures += report(FAR.0, synthetic(FAR.1).and_then(|model| check_far(&model, &scattered(&model, FAR_LENGTH))));
    }
    for path in paths {
        let model = Model::open(Path::new(path)).map_err(|error| error.to_string());
        if model.as_ref().is_ok_and(|model| !crate::element().holds_residuals(model.spec())) {
            println!("not in f16: {path}");
            continue;
        }
        failures += report(path, model.and_then(|model| check(&model, &tokens_for(&model)?, BLOCKS[0])));
    }
    failures
}

pub(crate) fn report(name: &str, result: Result<String, String>) -> usize {
    match &result {
        Ok(words) => println!("ok     {name}: {words}"),
        Err(words) => println!("FAILED {name}: {words}"),
    }
    usize::from(result.is_err())
}

/// A model of a config with the dummy weights in host memory, so that both sides compute with the same.
pub(crate) fn synthetic(json: &str) -> Result<Model, String> {
    let path = Path::new("synthetic/config.json");
    let config = Config::parse(path, json.as_bytes()).map_err(|error| error.to_string())?;
    let described = describe_config(&config, &|_| true).map_err(|error| error.to_string())?;
    let dummy = DummyWeights::new(&described.spec);
    let (mut header, mut data) = (Vec::new(), Vec::new());
    for slot in described.spec.slots() {
        let view = dummy.tensor(slot).expect("every slot has dummy weights");
        let shape =
            if view.rows == 1 { format!("{}", view.columns) } else { format!("{},{}", view.rows, view.columns) };
        let (name, begin, end) = (&described.names[&slot], data.len(), data.len() + view.data.len());
        header.push(format!(r#""{name}":{{"dtype":"BF16","shape":[{shape}],"data_offsets":[{begin},{end}]}}"#));
        data.extend_from_slice(view.data);
    }
    let header = format!("{{{}}}", header.join(","));
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let folder = std::env::temp_dir().join(format!("cuda-check-{}", std::process::id()));
    let written = std::fs::create_dir_all(&folder).and_then(|()| {
        std::fs::write(folder.join("config.json"), json)?;
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        std::fs::write(folder.join("model.safetensors"), file)
    });
    written.map_err(|error| error.to_string())?;
    let model = Model::open(&folder).map_err(|error| error.to_string());
    // The weights stay mapped.
    std::fs::remove_dir_all(&folder).map_err(|error| error.to_string())?;
    model
}

/// The device's executor with a row per sequence, each owning its blocks.
struct Device {
    executor: Box<dyn Executor>,
    step: u64,
    blocks_each: u32,
}

/// So many that every decode kernel takes its turn: with two KV heads they are 144 groups of heads, with eight 576.
const ROWS: u32 = 72;
/// Decodes beside a prompt, so many that with two KV heads their attention takes a block a sequence and KV head (decode.rs, `Shallow`).
const MANY: u32 = ROWS - 1;
/// Rows that generate text, which the reference then reads.
const WRITERS: usize = 12;
/// Positions of a block, of one shape after another.
const BLOCKS: [u32; 3] = [16, 48, 32];

impl Device {
    fn new(model: &Model, length: u32, block_size: u32) -> Result<Self, String> {
        let max_num_batched_tokens = length.max(2048);
        let limits = StepLimits { max_num_seqs: ROWS, max_num_batched_tokens, max_model_len: length, block_size };
        // So short that some decodes are prepared and others captured when they come, of kernels not timed.
        let prepare_at_start = Duration::from_millis(200);
        // Steps with prompts both ways, too.
        let capture_prompts_at = 2;
        // Steps that bring several rows send some of that ahead.
        let step_change_words = 1 << 14;
        let options = CudaOptions {
            kv_cache_bytes: Some(1 << 30),
            prepare_at_start,
            capture_prompts_at,
            step_change_words,
            // Logits are written for those who draw, and by every other check.
            greedy_without_logits: Some(true),
            ..crate::options()
        };
        let executor = powertrain_cuda::load(model, &limits, &options).map_err(|error| error.to_string())?;
        let blocks_each = length.div_ceil(block_size);
        if executor.facts().kv_blocks < blocks_each * ROWS {
            return Err("too few blocks for the check".into());
        }
        Ok(Self { executor, step: 0, blocks_each })
    }

    fn start(row: u32, tokens: &[TokenId], prompt_len: usize, computed: usize, sampling: SamplingParams) -> RowStart {
        RowStart {
            row: RowId(row),
            tokens: tokens.into(),
            prompt_len: prompt_len as u32,
            computed: computed as u32,
            sampling: Arc::new(sampling),
            prompt_logprobs: None,
        }
    }

    fn plan(&mut self, released: &[u32], started: Vec<RowStart>, work: Vec<RowWork>) -> StepPlan {
        self.step += 1;
        let blocks_each = self.blocks_each;
        // Blocks in an order that is not theirs, so that tables matter.
        let block_of = move |row: u32, i: u32| BlockId(row * blocks_each + (i * 7 + row) % blocks_each);
        // Coprime with 7 is needed for the permutation; where it is not, keep the order.
        let permutes = !blocks_each.is_multiple_of(7);
        let appended = started
            .iter()
            .flat_map(|start| {
                let row = start.row;
                (0..blocks_each)
                    .map(move |i| (row, if permutes { block_of(row.0, i) } else { BlockId(row.0 * blocks_each + i) }))
            })
            .collect();
        StepPlan {
            step: self.step,
            released: released.iter().map(|&row| RowId(row)).collect(),
            started,
            appended,
            work,
        }
    }

    /// Kinds of steps with prompts that run by graphs.
    fn captured_with_prompts(&self) -> u64 {
        self.executor.facts().graphs.as_ref().map_or(0, |graphs| graphs.prompts.load(Relaxed))
    }

    fn run(&mut self, plan: &StepPlan) -> Result<Vec<RowOutput>, String> {
        self.executor.launch(plan).map_err(|error| error.to_string())?;
        self.collect()
    }

    fn collect(&mut self) -> Result<Vec<RowOutput>, String> {
        let result = self.executor.collect().map_err(|error| error.to_string())?;
        result.rows.into_iter().map(|(_, row)| row.map_err(|error| error.to_string())).collect()
    }
}

fn work(row: u32, start: usize, len: usize, sample: bool) -> RowWork {
    RowWork { row: RowId(row), start: start as u32, len: len as u32, sample }
}

/// Differences of log-probabilities, collected.
#[derive(Default)]
struct Spread {
    worst: f64,
    sum: f64,
    count: usize,
}

impl Spread {
    fn add(&mut self, got: f32, want: f64) {
        let difference = (f64::from(got) - want).abs();
        self.worst = if difference.is_nan() { f64::INFINITY } else { self.worst.max(difference) };
        self.sum += difference;
        self.count += 1;
    }

    /// In units of `deviation`.
    fn finish(&self, what: &str, deviation: f64) -> Result<String, String> {
        let (worst, mean) = (self.worst / deviation, self.sum / self.count.max(1) as f64 / deviation);
        let words = format!("{what} worst {worst:.3} mean {mean:.4} of {}", self.count);
        let (worst_allowed, mean_allowed) = tolerances();
        if self.count > 0 && worst <= worst_allowed && mean <= mean_allowed { Ok(words) } else { Err(words) }
    }
}

/// Token ids all over the vocabulary.
pub(crate) fn scattered(model: &Model, length: usize) -> Vec<TokenId> {
    let (vocab, length) = (model.spec().vocab_size as u64, length.min(model.spec().context_len) as u64);
    (0..length).map(|i| ((i * 2_654_435_761 + i * i * 97) % vocab) as TokenId).collect()
}

/// What a trained model is checked on.
const TEXT: &str = "The first railways were built to carry coal from the mines to the rivers, and horses pulled the wagons. When steam engines became small enough \
to be put on wheels, one of them could do the work of forty horses, and within thirty years there were lines between all the large towns of the country. \
People who had never been further from home than a day's walk could now see the sea. The price of bread, which had been different in every valley, became the \
same everywhere, because grain could be brought from where there was plenty of it.";

/// Vocabularies below this are those of untrained models.
const TRAINED_VOCABULARY: usize = 10_000;

/// Text for a trained model: it is ill-conditioned on anything else (for SmolLM2, transformers' own bf16 is off by 1.6 deviations at worst on
/// scattered tokens, by 0.07 on text).
fn tokens_for(model: &Model) -> Result<Vec<TokenId>, String> {
    if model.spec().vocab_size < TRAINED_VOCABULARY {
        return Ok(scattered(model, 90));
    }
    let tokenizer = match model.source() {
        Source::Gguf(metadata) => Tokenizer::from_gguf(metadata),
        Source::Folder(folder) => Tokenizer::from_folder(folder),
    };
    let encoded = tokenizer.map_err(|error| error.to_string())?.encode(TEXT, AddSpecial::Yes, ParseSpecial::No);
    encoded.map_err(|error| error.to_string())
}

/// What the reference makes of tokens: by how much the logits deviate, and the log-probabilities behind each.
fn wanted_of(model: &Model, tokens: &[TokenId]) -> (f64, Vec<Vec<f64>>) {
    let logits = reference::logits(model, tokens);
    let deviation = logits.iter().map(|row| standard_deviation(row)).sum::<f64>() / logits.len() as f64;
    (deviation, logits.iter().map(|row| log_softmax(row)).collect())
}

fn check_far(model: &Model, tokens: &[TokenId]) -> Result<String, String> {
    let (deviation, wanted) = wanted_of(model, tokens);
    let mut device = Device::new(model, tokens.len() as u32 + 64, BLOCKS[0])?;
    let mut spread = Spread::default();
    decode_each(&mut device, tokens, &wanted, &mut spread)?;
    let decode = spread.finish("decode:", deviation)?;
    // The first chunk is short, the others are not.
    let (chunk, mut spread) = (900, Spread::default());
    score_prompt(&mut device, tokens, (chunk, MANY), &wanted, &mut spread)?;
    Ok(format!("{decode}; {}", spread.finish(&format!("chunks of {chunk} beside {MANY}:"), deviation)?))
}

fn check(model: &Model, tokens: &[TokenId], block: u32) -> Result<String, String> {
    let (vocab, length) = (model.spec().vocab_size, tokens.len());
    let (deviation, wanted) = wanted_of(model, tokens);
    let mut device = Device::new(model, length as u32 + 64, block)?;
    let mut words = vec![format!("logits deviate {deviation:.2}")];
    for (chunk, others) in [(length, 1), (129, 1), (33, 1), (length, MANY), (333, MANY), (65, MANY)] {
        let mut spread = Spread::default();
        score_prompt(&mut device, tokens, (chunk, others), &wanted, &mut spread)?;
        words.push(spread.finish(&format!("chunks of {chunk} beside {others}:"), deviation)?);
    }
    let mut spread = Spread::default();
    decode_each(&mut device, tokens, &wanted, &mut spread)?;
    words.push(spread.finish("decode:", deviation)?);
    let mut spread = Spread::default();
    sample_prompts(&mut device, tokens, &wanted, &mut spread)?;
    words.push(spread.finish("prompts that end:", deviation)?);
    words.push(greedy_together(&mut device, model, tokens, deviation)?);
    words.push(many_greedy(&mut device, tokens, &wanted, deviation)?);
    words.push(draws_equal_the_host(&mut device, tokens, vocab)?);
    Ok(words.join("; "))
}

fn standard_deviation(values: &[f32]) -> f64 {
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
    (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x - max) - sum.ln()).collect()
}

/// Prefill in chunks beside other rows that decode, one position further with each: every prompt token's log-probability compared, and what each decode finds
/// likely.
fn score_prompt(
    device: &mut Device,
    tokens: &[TokenId],
    (chunk, others): (usize, u32),
    wanted: &[Vec<f64>],
    spread: &mut Spread,
) -> Result<(), String> {
    let sampling = || SamplingParams { temperature: 0.0, logprobs: Some(5), ..Default::default() };
    // Where a row decodes first.
    let first = |row: u32| 5 + row as usize * 7 % 40;
    let started = (0..others).map(|row| Device::start(row, &tokens[..first(row)], first(row), 0, sampling())).collect();
    let plan = device.plan(&[], started, (0..others).map(|row| work(row, 0, first(row), false)).collect());
    device.run(&plan)?;
    let mut start = Device::start(others, tokens, tokens.len(), 0, SamplingParams::default());
    start.prompt_logprobs = Some(3);
    let mut prompt = Some(start);
    let mut position = 1;
    let decoding: Vec<u32> = (0..others).collect();
    for (index, begin) in (0..tokens.len()).step_by(chunk).enumerate() {
        let len = chunk.min(tokens.len() - begin);
        let at = |row: u32| first(row) + index;
        // Rows that start over, so that it is known what they read.
        let started = (0..others).map(|row| Device::start(row, &tokens[..=at(row)], at(row) + 1, at(row), sampling()));
        let mut works = vec![work(others, begin, len, false)];
        works.extend((0..others).map(|row| work(row, at(row), 1, true)));
        let plan = device.plan(&decoding, started.chain(prompt.take()).collect(), works);
        let outputs = device.run(&plan)?;
        for (row, output) in (0..).zip(&outputs[1..]) {
            let logprobs = output.sampled[0].logprobs.as_ref().ok_or("no log-probabilities")?;
            for &(token, logprob) in &logprobs.top {
                spread.add(logprob, wanted[at(row)][token as usize]);
            }
        }
        for logprobs in &outputs[0].prompt_logprobs {
            if logprobs.token != tokens[position] {
                return Err(format!("log-probability of token {} at {position}", logprobs.token));
            }
            spread.add(logprobs.logprob, wanted[position - 1][logprobs.token as usize]);
            for &(token, logprob) in &logprobs.top {
                spread.add(logprob, wanted[position - 1][token as usize]);
            }
            position += 1;
        }
    }
    let released: Vec<u32> = (0..=others).collect();
    let plan = device.plan(&released, vec![], vec![]);
    device.run(&plan)?;
    if position != tokens.len() { Err(format!("{position} of {} tokens scored", tokens.len())) } else { Ok(()) }
}

/// One position at a time over a cache that prefill filled: the decode kernel and the kernels of few rows.
fn decode_each(
    device: &mut Device,
    tokens: &[TokenId],
    wanted: &[Vec<f64>],
    spread: &mut Spread,
) -> Result<(), String> {
    let sampling = || SamplingParams { temperature: 0.0, logprobs: Some(5), ..Default::default() };
    for row in 0..ROWS {
        let start = Device::start(row, tokens, tokens.len(), 0, sampling());
        let plan = device.plan(&[], vec![start], vec![work(row, 0, tokens.len(), false)]);
        device.run(&plan)?;
    }
    let last = tokens.len() - 1;
    for batch in [1, 2, 3, 8, 9, 12, 17, 40, ROWS] {
        for round in 0..3 {
            let at = |row: u32| (last * (round + 1) / 3).saturating_sub(row as usize * 5 % last.max(1));
            let started: Vec<_> = (0..batch)
                .map(|row| Device::start(row, &tokens[..=at(row)], at(row) + 1, at(row), sampling()))
                .collect();
            let works = (0..batch).map(|row| work(row, at(row), 1, true)).collect();
            let released: Vec<u32> = (0..batch).collect();
            let plan = device.plan(&released, started, works);
            for (row, output) in device.run(&plan)?.iter().enumerate() {
                let logprobs = output.sampled[0].logprobs.as_ref().ok_or("no log-probabilities")?;
                for &(token, logprob) in &logprobs.top {
                    spread.add(logprob, wanted[at(row as u32)][token as usize]);
                }
            }
        }
    }
    let all: Vec<u32> = (0..ROWS).collect();
    let plan = device.plan(&all, vec![], vec![]);
    device.run(&plan).map(|_| ())
}

/// Prompts whose first token is chosen, beside decoding rows and a part of a prompt whose is not: the last layer goes on with the chosen
/// positions alone. Then the rest of that prompt, over keys and values that such a step has left.
fn sample_prompts(
    device: &mut Device,
    tokens: &[TokenId],
    wanted: &[Vec<f64>],
    spread: &mut Spread,
) -> Result<(), String> {
    let sampling = || SamplingParams { temperature: 0.0, logprobs: Some(5), ..Default::default() };
    let short = tokens.len().min(40);
    // Prompts, decodes, positions of the part.
    let cases = [
        (1, 0, 0),
        (1, 1, 0),
        (2, 0, 3),
        (3, 9, 1),
        (20, 0, short - 1),
        (17, 40, 0),
        (0, 0, short - 1),
        (0, 3, short - 1),
    ];
    let lengths = |prompts: u32| {
        let longest = (tokens.len() - 1).min(1800 / (prompts as usize).max(1));
        (0..prompts as usize).map(move |row| longest - row * 13 % (longest / 3).max(1)).collect::<Vec<_>>()
    };
    let cases = cases.map(|(prompts, decoding, part)| (lengths(prompts), decoding, part));
    // The same kind of step, with room for more than some of them have: the first is launched kernel by kernel, the others by one graph.
    let alike = [(3, 33), (4, 36), (3, 40), (4, 44), (3, 43)]
        .map(|(prompts, decoding)| (vec![(185 - decoding as usize) / prompts; prompts], decoding, 0));
    let (others, mut captured) = (cases.len(), 0);
    for (index, (lengths, decoding, part)) in cases.into_iter().chain(alike).enumerate() {
        let prompts = lengths.len() as u32;
        let len = |row: u32| lengths[row as usize];
        let at = |row: u32| short / 2 + row as usize % (short / 4).max(1);
        let (decoders, last) = (prompts..prompts + decoding, prompts + decoding);
        if decoding > 0 {
            let started =
                decoders.clone().map(|d| Device::start(d, &tokens[..=at(d)], at(d) + 1, 0, sampling())).collect();
            let works = decoders.clone().map(|d| work(d, 0, at(d), false)).collect();
            let plan = device.plan(&[], started, works);
            device.run(&plan)?;
        }
        let mut started: Vec<_> =
            (0..prompts).map(|p| Device::start(p, &tokens[..len(p)], len(p), 0, sampling())).collect();
        let mut works: Vec<_> = (0..prompts).map(|p| work(p, 0, len(p), true)).collect();
        works.extend(decoders.map(|d| work(d, at(d), 1, true)));
        let mut rest = Vec::new();
        if part > 0 {
            started.push(Device::start(last, tokens, tokens.len(), 0, sampling()));
            works.insert(works.len() / 2, work(last, 0, part, false));
            rest.push(work(last, part, tokens.len() - part, true));
        }
        let before = device.captured_with_prompts();
        for works in [works, rest] {
            if works.is_empty() {
                continue;
            }
            let ends: Vec<_> = works.iter().map(|work| (work.sample, (work.start + work.len - 1) as usize)).collect();
            let plan = device.plan(&[], std::mem::take(&mut started), works);
            for (output, (sample, end)) in device.run(&plan)?.iter().zip(ends) {
                if output.sampled.len() != usize::from(sample) {
                    return Err(format!("{} tokens chosen at {end}", output.sampled.len()));
                }
                for sampled in &output.sampled {
                    for &(token, logprob) in &sampled.logprobs.as_ref().ok_or("no log-probabilities")?.top {
                        spread.add(logprob, wanted[end][token as usize]);
                    }
                }
            }
        }
        if index >= others {
            captured += device.captured_with_prompts() - before;
        }
        let released: Vec<u32> = (0..last + u32::from(part > 0)).collect();
        let plan = device.plan(&released, vec![], vec![]);
        device.run(&plan)?;
    }
    if captured == 1 { Ok(()) } else { Err(format!("steps of one kind were captured {captured} times")) }
}

/// Sequences of different lengths generate together, two steps in flight. Each token must be within rounding of the best that
/// the reference sees after the same text.
fn greedy_together(device: &mut Device, model: &Model, tokens: &[TokenId], deviation: f64) -> Result<String, String> {
    let greedy = || SamplingParams { temperature: 0.0, ..Default::default() };
    let prompts: Vec<&[TokenId]> = (0..WRITERS).map(|i| &tokens[i..(i * 11 + 4).min(tokens.len() - 1)]).collect();
    let started: Vec<_> =
        prompts.iter().enumerate().map(|(i, p)| Device::start(i as u32, p, p.len(), 0, greedy())).collect();
    let first = prompts.iter().enumerate().map(|(i, p)| work(i as u32, 0, p.len(), true)).collect();
    let plan = device.plan(&[], started, first);
    device.executor.launch(&plan).map_err(|error| error.to_string())?;
    let mut texts: Vec<Vec<TokenId>> = prompts.iter().map(|p| p.to_vec()).collect();
    const STEPS: usize = 20;
    for step in 0..STEPS {
        if step + 1 < STEPS {
            // The order of work changes from step to step; results follow it.
            let order = |step: usize| (0..WRITERS).map(move |i| (i * 5 + step + 1) % WRITERS);
            let works = order(step).map(|i| work(i as u32, prompts[i].len() + step, 1, true)).collect();
            let plan = device.plan(&[], vec![], works);
            device.executor.launch(&plan).map_err(|error| error.to_string())?;
        }
        for (place, output) in device.collect()?.into_iter().enumerate() {
            let row = if step == 0 { place } else { (place * 5 + step) % WRITERS };
            texts[row].push(output.sampled[0].token);
        }
    }
    let (mut worst, mut same, mut count) = (0.0f32, 0, 0);
    // The reference takes a tenth of a second a token on a real model: three texts of those are enough.
    let compared = if model.spec().hidden_size > 400 { 3 } else { prompts.len() };
    for (prompt, text) in prompts.iter().zip(&texts).take(compared) {
        let logits = reference::logits(model, text);
        for position in prompt.len()..text.len() {
            let row = &logits[position - 1];
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let got = row[text[position] as usize];
            worst = worst.max(best - got);
            same += usize::from(best == got);
            count += 1;
        }
    }
    let plan = device.plan(&(0..WRITERS as u32).collect::<Vec<_>>(), vec![], vec![]);
    device.run(&plan)?;
    let words = format!("greedy: {same} of {count} the reference's best, worst {worst:.3} under it");
    if f64::from(worst) < tolerances().0 * deviation && same * 10 >= count * 9 { Ok(words) } else { Err(words) }
}

/// Many rows decode greedily, without logits, then with some among them for which the host chooses, so that there are logits, and without again. Each
/// token must be within rounding of the best.
fn many_greedy(device: &mut Device, tokens: &[TokenId], wanted: &[Vec<f64>], deviation: f64) -> Result<String, String> {
    let lengths: Vec<usize> = (0..MANY as usize).map(|row| 2 + row * 7 % (tokens.len() - 2).min(50)).collect();
    let rows = || lengths.iter().zip(0u32..);
    let mut worst = 0.0f64;
    for hosts in [false, true, false] {
        let sampling = |row: u32| SamplingParams {
            temperature: 0.0,
            logprobs: (hosts && row % 30 == 5).then_some(21),
            ..Default::default()
        };
        let started = rows().map(|(&len, row)| Device::start(row, &tokens[..len], len, 0, sampling(row))).collect();
        let before = rows().map(|(&len, row)| work(row, 0, len - 1, false)).collect();
        let plan = device.plan(&[], started, before);
        device.run(&plan)?;
        let plan = device.plan(&[], vec![], rows().map(|(&len, row)| work(row, len - 1, 1, true)).collect());
        for (output, &len) in device.run(&plan)?.iter().zip(&lengths) {
            let (token, likely) = (output.sampled[0].token, &wanted[len - 1]);
            let best = likely.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let got = likely.get(token as usize).ok_or_else(|| format!("token {token} of {}", likely.len()))?;
            worst = worst.max(best - got);
        }
        let plan = device.plan(&(0..MANY).collect::<Vec<_>>(), vec![], vec![]);
        device.run(&plan)?;
    }
    let words = format!("{MANY} greedy, with and without the host: worst {worst:.3} under the best");
    if worst <= tolerances().0 * deviation { Ok(words) } else { Err(words) }
}

/// The device's draw must be the host sampler's: the same prompt and seed twice, once asking for more log-probabilities than the device makes.
fn draws_equal_the_host(device: &mut Device, tokens: &[TokenId], vocab: usize) -> Result<String, String> {
    let prompt = &tokens[..tokens.len().min(40)];
    let cases = [
        (1.0, 0, 1.0, 0.0),
        (0.7, 0, 1.0, 0.0),
        (1.3, 40, 1.0, 0.0),
        (0.8, 0, 0.9, 0.0),
        (1.0, 20, 0.8, 0.0),
        (1.0, 0, 1.0, 0.05),
        (0.5, 7, 0.5, 0.1),
        (5.0, 0, 0.999, 0.0),
    ];
    let (mut same, mut count, mut distinct) = (0, 0, std::collections::HashSet::new());
    for (case, (temperature, top_k, top_p, min_p)) in cases.into_iter().enumerate() {
        for round in 0..6u64 {
            let sampling = |logprobs| SamplingParams {
                temperature,
                top_k,
                top_p,
                min_p,
                logprobs,
                seed: (round << 33) | (12345 + round),
                ..Default::default()
            };
            let started = vec![
                Device::start(0, prompt, prompt.len(), 0, sampling(None)),
                Device::start(1, prompt, prompt.len(), 0, sampling(Some(21))),
            ];
            let both = vec![work(0, 0, prompt.len(), true), work(1, 0, prompt.len(), true)];
            let plan = device.plan(&[0, 1], started, both);
            let mut pairs = vec![device.run(&plan)?];
            for step in 0..4 {
                let works = vec![work(0, prompt.len() + step, 1, true), work(1, prompt.len() + step, 1, true)];
                let plan = device.plan(&[], vec![], works);
                pairs.push(device.run(&plan)?);
            }
            for (step, pair) in pairs.iter().enumerate() {
                let (device_token, host_token) = (pair[0].sampled[0].token, pair[1].sampled[0].token);
                if device_token as usize >= vocab {
                    return Err(format!("case {case} drew token {device_token} of {vocab}"));
                }
                same += usize::from(device_token == host_token);
                count += 1;
                distinct.insert(device_token);
                if device_token != host_token {
                    if step == 0 {
                        return Err(format!("case {case} round {round}: device {device_token}, host {host_token}"));
                    }
                    break;
                }
            }
        }
    }
    let plan = device.plan(&[0, 1], vec![], vec![]);
    device.run(&plan)?;
    let words = format!("draws: {same} of {count} the host's, {} distinct", distinct.len());
    if same * 100 >= count * 98 && distinct.len() > 10 { Ok(words) } else { Err(words) }
}
