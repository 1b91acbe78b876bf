//! The model as HTTP sees it: its text side, its defaults, and what it says of itself.

use powertrain_engine::Handle;
use powertrain_step::{CostsBeside, StepCost, StepCosts, TokenId};
use powertrain_text::{ChatTemplate, Tokenizer};
use serde::Serialize;
use std::sync::Arc;

/// What is served.
pub struct ServedModel {
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// How a conversation becomes text; without one `/v1/chat/completions` says so.
    pub template: Option<Arc<ChatTemplate>>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<TokenId>,
    /// Rows of the embedding: ids are below it.
    pub vocab_size: u32,
    /// What the model's makers recommend (`generation_config.json`).
    pub defaults: SamplingDefaults,
    /// For people and for `/v1/engine`.
    pub facts: ModelFacts,
}

/// Sampling where a request says nothing; what is `None` here too is neutral.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// See [`powertrain_step::SamplingParams`].
    pub temperature: Option<f32>,
    /// See [`powertrain_step::SamplingParams`].
    pub top_k: Option<u32>,
    /// See [`powertrain_step::SamplingParams`].
    pub top_p: Option<f32>,
    /// See [`powertrain_step::SamplingParams`].
    pub min_p: Option<f32>,
    /// See [`powertrain_step::SamplingParams`].
    pub repetition_penalty: Option<f32>,
}

/// What only the loader knows.
#[derive(Clone, Debug)]
pub struct ModelFacts {
    /// Where it came from: an alias, a Hub name or a path.
    pub source: String,
    /// The family, as the checkpoint calls it.
    pub architecture: String,
    /// How the weights are stored, in words.
    pub dtype: String,
    /// Seconds from the start of loading to ready.
    pub load_seconds: f64,
    /// What they went into.
    pub load_stages: Vec<LoadStage>,
    /// Memory a step works in, beside weights and KV cache; `None` where the executor does not say.
    pub workspace_bytes: Option<u64>,
}

/// A part of loading. Parts may run beside each other, so their sum may exceed the whole.
#[derive(Clone, Debug, Serialize)]
pub struct LoadStage {
    /// What was done: `weights`, `text`.
    pub name: &'static str,
    /// By the wall's clock.
    pub seconds: f64,
}

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemoryReport {
    /// All there is.
    pub total_bytes: u64,
    /// In use by the driver and by other programs when loading began.
    pub others_bytes: u64,
    /// Set aside for graphs and what the driver takes later.
    pub reserved_bytes: u64,
}

/// `GET /v1/engine`, and what `serve` prints at start.
#[derive(Clone, Debug, Serialize)]
pub struct EngineReport {
    /// Of the server.
    pub version: &'static str,
    /// Where the model came from.
    pub model: String,
    /// The family.
    pub architecture: String,
    /// How the weights are stored.
    pub dtype: String,
    /// `reference`, `cpu`, `cuda`.
    pub executor: &'static str,
    /// The device in words.
    pub device: String,
    /// Threads that compute.
    pub threads: u32,
    /// SIMD level, or compute capability.
    pub simd: String,
    /// Tokens of prompt and completion together.
    pub max_model_len: u32,
    /// Sequences that run at once.
    pub max_num_seqs: u32,
    /// Tokens in one step.
    pub max_num_batched_tokens: u32,
    /// Tokens in a block of KV cache.
    pub block_size: u32,
    /// Weights in memory.
    pub weights_bytes: u64,
    /// KV cache in memory.
    pub kv_cache_bytes: u64,
    /// Memory a step works in, sized for the largest; absent where the executor does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_bytes: Option<u64>,
    /// How a GPU's memory is shared out beside weights and KV cache; absent elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_memory: Option<MemoryReport>,
    /// The KV cache's element type.
    pub kv_cache_dtype: &'static str,
    /// Bytes of it that one token takes.
    pub kv_bytes_per_token: u64,
    /// Tokens it holds.
    pub kv_cache_tokens: u64,
    /// Blocks it has.
    pub kv_blocks: u32,
    /// How many sequences of `max_model_len` it holds.
    pub max_concurrency_at_max_model_len: f64,
    /// `auto` where prompts are spread over steps by what those cost, else `full`.
    pub prefill_pace: &'static str,
    /// What steps were measured to cost, by which prompts are spread over them; absent where they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_costs: Option<StepCostsReport>,
    /// Seconds from the start of loading to ready.
    pub load_seconds: f64,
    /// What they went into.
    pub load_stages: Vec<LoadStage>,
}

/// What steps take, as measured when the model was loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepCostsReport {
    /// By numbers of decodes, ascending.
    pub beside: Vec<CostsBesideReport>,
}

/// Steps with so many decodes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CostsBesideReport {
    /// Sequences of which a step computes one token each.
    pub decodes: u32,
    /// How long a step of these alone takes.
    pub alone_seconds: f64,
    /// With prompts for the rest, ascending in positions.
    pub prompts: Vec<StepCostReport>,
}

/// One size of step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepCostReport {
    /// Positions computed, those of decodes among them.
    pub positions: u32,
    /// How long that took.
    pub seconds: f64,
}

impl From<&StepCosts> for StepCostsReport {
    fn from(costs: &StepCosts) -> Self {
        let step = |cost: &StepCost| StepCostReport { positions: cost.positions, seconds: cost.seconds };
        let beside = |costs: &CostsBeside| CostsBesideReport {
            decodes: costs.decodes,
            alone_seconds: costs.alone,
            prompts: costs.prompts.iter().map(step).collect(),
        };
        Self { beside: costs.beside.iter().map(beside).collect() }
    }
}

impl EngineReport {
    /// Of a model on a running engine.
    #[must_use]
    pub fn new(facts: &ModelFacts, engine: &Handle) -> Self {
        let (executor, limits) = (engine.facts(), engine.limits());
        let kv_cache_tokens = u64::from(executor.kv_blocks) * u64::from(limits.block_size);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            model: facts.source.clone(),
            architecture: facts.architecture.clone(),
            dtype: facts.dtype.clone(),
            executor: executor.executor,
            device: executor.device.clone(),
            threads: executor.threads,
            simd: executor.simd.clone(),
            max_model_len: limits.max_model_len,
            max_num_seqs: limits.max_num_seqs,
            max_num_batched_tokens: limits.max_num_batched_tokens,
            block_size: limits.block_size,
            weights_bytes: executor.weights_bytes,
            kv_cache_bytes: executor.kv_cache_bytes,
            workspace_bytes: facts.workspace_bytes,
            device_memory: executor.device_memory.map(|memory| MemoryReport {
                total_bytes: memory.total,
                others_bytes: memory.others,
                reserved_bytes: memory.reserved,
            }),
            kv_cache_dtype: executor.kv_dtype,
            kv_bytes_per_token: executor.kv_bytes_per_token,
            kv_cache_tokens,
            kv_blocks: executor.kv_blocks,
            max_concurrency_at_max_model_len: kv_cache_tokens as f64 / f64::from(limits.max_model_len.max(1)),
            prefill_pace: if executor.step_costs.is_some() { "auto" } else { "full" },
            step_costs: executor.step_costs.as_ref().map(StepCostsReport::from),
            load_seconds: facts.load_seconds,
            load_stages: facts.load_stages.clone(),
        }
    }
}
