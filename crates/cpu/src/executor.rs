//! [`CpuExecutor`]: plans in, tokens out.

use crate::{
    batch::{Batch, LogitUse, Row, apply},
    config::{CpuConfig, CpuError},
    forward::Forward,
    kernel::Kernels,
    kv::{KvCache, KvLayout},
    pool::{MAX_THREADS, Pool, Team, available_cores},
    profile::{Phase, ProfileClock, ThreadProfile},
    simd::SimdLevel,
    weights::{Tensors, Weights},
    workspace::Workspace,
};
use powertrain_model::{
    Model,
    spec::DecoderSpec,
    weights::{Slot, TensorView},
};
use powertrain_sampling::{NonFinite, SampledToken, Sampler, TokenLogprobs, logprobs_of};
use powertrain_step::{
    Executor, ExecutorFacts, RowError, RowId, RowOutput, StepError, StepLimits, StepPlan, StepResult,
};
use std::{
    cell::UnsafeCell,
    sync::Mutex,
    time::{Duration, Instant},
};

const NAME: &str = "cpu";
/// What the KV cache takes at most when nobody says.
const DEFAULT_KV_BYTES: u64 = 1 << 30;
const MAX_BLOCK_SIZE: u32 = 4096;

/// Runs a model on this machine's cores. `launch` computes the whole step; `collect` hands out its result.
pub struct CpuExecutor {
    spec: DecoderSpec,
    weights: Weights,
    kernels: Kernels,
    kv: KvCache,
    workspace: Workspace,
    pool: Pool,
    limits: StepLimits,
    facts: ExecutorFacts,
    rows: Vec<Option<Row>>,
    batch: Batch,
    /// One a thread.
    samplers: Vec<Mutex<Sampler>>,
    outcomes: Vec<Outcome>,
    finished: Option<StepResult>,
    build_times: BuildTimes,
}

/// What building an executor took.
#[derive(Clone, Copy, Debug)]
pub struct BuildTimes {
    /// Packing the weights for this machine.
    pub weights: Duration,
    /// KV cache, workspace and threads.
    pub memory: Duration,
}

/// What became of one row of logits; written by the one thread that took it.
struct Outcome(UnsafeCell<Option<Result<Chosen, NonFinite>>>);

// SAFETY: each is written by one thread between two barriers and read after the job by the thread that started it.
unsafe impl Sync for Outcome {}

enum Chosen {
    Sampled(SampledToken),
    Prompt(TokenLogprobs),
}

impl CpuExecutor {
    /// Packs the model's weights for this machine and allocates everything a step needs.
    ///
    /// # Errors
    /// When limits, configuration and model do not fit together; the message says which number to change.
    pub fn new(model: &Model, limits: StepLimits, config: CpuConfig) -> Result<Self, CpuError> {
        Self::from_tensors(model.spec(), &|slot| model.tensor(slot), limits, config)
    }

    /// As [`new`](Self::new), for a spec whose tensors come from anywhere.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when a tensor is missing or misshapen.
    pub fn from_tensors<'a>(
        spec: &DecoderSpec,
        tensors: &(dyn Fn(Slot) -> Option<TensorView<'a>> + 'a),
        limits: StepLimits,
        config: CpuConfig,
    ) -> Result<Self, CpuError> {
        let kernels = choose_kernels(config.simd)?;
        let threads = config.threads.unwrap_or_else(available_cores);
        check_sizes(spec, &limits, threads)?;
        let kv_blocks = plan_kv_blocks(spec, &limits, &config)?;

        let begun = Instant::now();
        let tensors: &Tensors<'a> = tensors;
        let weights = Weights::load(spec, tensors, &kernels, config.activations, threads)?;
        let packed = Instant::now();
        let layouts = spec.layers.iter().map(|layer| KvLayout {
            dtype: config.kv_dtype,
            block_size: limits.block_size as usize,
            kv_heads: layer.attention.kv_heads,
            head_dim: layer.attention.head_dim,
        });
        let kv = KvCache::new(layouts, kv_blocks as usize);
        let workspace = Workspace::new(spec, &weights, &limits, threads);
        let pool = Pool::new(threads, config.pin_threads)?;
        let facts = ExecutorFacts {
            executor: NAME,
            device: format!(
                "{threads} thread{}, {}, {} activations",
                if threads == 1 { "" } else { "s" },
                kernels.level,
                config.activations.name()
            ),
            threads: threads as u32,
            simd: kernels.level.to_string(),
            weights_bytes: weights.bytes() as u64,
            kv_cache_bytes: kv.bytes() as u64,
            kv_bytes_per_token: kv_block_bytes(spec, &limits, &config).div_ceil(u64::from(limits.block_size)),
            kv_dtype: config.kv_dtype.name(),
            kv_blocks,
            depth: 1,
            device_memory: None,
            graphs: None,
            step_costs: None,
        };
        Ok(Self {
            rows: (0..limits.max_num_seqs).map(|_| None).collect(),
            batch: Batch::new(&limits),
            samplers: (0..threads).map(|_| Mutex::new(Sampler::new(spec.vocab_size))).collect(),
            outcomes: (0..limits.max_num_batched_tokens).map(|_| Outcome(UnsafeCell::new(None))).collect(),
            spec: spec.clone(),
            weights,
            kernels,
            kv,
            workspace,
            pool,
            limits,
            facts,
            finished: None,
            build_times: BuildTimes { weights: packed - begun, memory: packed.elapsed() },
        })
    }

    /// Bytes of the memory a step works in, beside weights and KV cache.
    pub fn workspace_bytes(&self) -> u64 {
        self.workspace.bytes() as u64
    }

    /// What [`new`](Self::new) spent its time on.
    pub fn build_times(&self) -> BuildTimes {
        self.build_times
    }

    /// From now on counts where the time of steps goes, by `clock`, or no longer.
    pub fn profile(&mut self, clock: Option<ProfileClock>) {
        self.pool.profile(clock);
    }

    /// What was counted of each thread; counting starts anew.
    pub fn take_profiles(&mut self) -> Vec<ThreadProfile> {
        self.pool.take_profiles()
    }

    fn error(plan: &StepPlan, reason: impl Into<String>) -> StepError {
        StepError::Failed { step: plan.step, executor: NAME, reason: reason.into() }
    }

    /// Runs all layers, then logits and choices, chunk after chunk.
    fn compute(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        let forward = Forward {
            spec: &self.spec,
            weights: &self.weights,
            kernels: &self.kernels,
            kv: &self.kv,
            workspace: &self.workspace,
            batch: &self.batch,
            rows: &self.rows,
        };
        let (samplers, outcomes) = (&self.samplers, &self.outcomes);
        let (vocab_size, chunk_rows) = (self.spec.vocab_size, self.workspace.logit_rows);
        let job = |team: &Team<'_>| {
            let thread = team.thread();
            forward.run(team);
            let wanted = forward.batch.logits.len();
            for first in (0..wanted).step_by(chunk_rows) {
                let chunk = first..(first + chunk_rows).min(wanted);
                forward.logits(chunk.clone(), &forward.workspace.threads[thread], team);
                team.enter(Phase::Sampling);
                // Locked by this thread alone, so never waited for.
                let mut sampler = samplers[thread].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                team.share(chunk.len(), 1, |row| {
                    // SAFETY: the row of logits was completed before the last barrier, the outcome is this item's alone.
                    unsafe {
                        let at = forward.workspace.logits.as_mut_ptr().add(row * forward.workspace.logits_stride);
                        let logits = std::slice::from_raw_parts(at, vocab_size);
                        *outcomes[first + row].0.get() = Some(choose(&forward, first + row, logits, &mut sampler));
                    }
                });
                team.barrier();
            }
        };
        self.pool.run(&job).map_err(|_| Self::error(plan, "a thread of the CPU executor panicked; this is a bug"))
    }

    /// Moves the outcomes into a result and the sampled tokens into their rows.
    fn gather(&mut self, plan: &StepPlan) -> StepResult {
        let mut rows: Vec<(RowId, Result<RowOutput, RowError>)> =
            plan.work.iter().map(|work| (work.row, Ok(RowOutput::default()))).collect();
        for (wanted, outcome) in self.batch.logits.iter().zip(&mut self.outcomes) {
            let output = &mut rows[wanted.work].1;
            let outcome = outcome.0.get_mut().take().unwrap_or(Err(NonFinite));
            match (outcome, output.as_mut()) {
                (Ok(Chosen::Prompt(logprobs)), Ok(output)) => output.prompt_logprobs.push(logprobs),
                (Ok(Chosen::Sampled(sampled)), Ok(output)) => {
                    if let Some(row) = &mut self.rows[wanted.row] {
                        row.push(sampled.token);
                    }
                    output.sampled.push(sampled);
                }
                (Err(NonFinite), Ok(_)) => {
                    *output = Err(RowError::NonFiniteLogits { position: wanted.position as u32 });
                }
                (_, Err(_)) => {}
            }
        }
        StepResult { step: plan.step, rows }
    }
}

/// Chooses from one row of logits, or scores the prompt's next token by it.
fn choose(forward: &Forward<'_>, index: usize, logits: &[f32], sampler: &mut Sampler) -> Result<Chosen, NonFinite> {
    let wanted = forward.batch.logits[index];
    let Some(row) = &forward.rows[wanted.row] else { unreachable!("the plan was checked") };
    match wanted.wanted {
        LogitUse::Sample => {
            let position = wanted.position as u32 + 1;
            sampler.sample(logits, &row.sampling, &row.history, position).map(Chosen::Sampled)
        }
        LogitUse::Prompt => {
            let next = row.tokens[wanted.position + 1];
            logprobs_of(logits, next, row.prompt_logprobs.unwrap_or(0)).map(Chosen::Prompt)
        }
    }
}

impl Executor for CpuExecutor {
    fn facts(&self) -> &ExecutorFacts {
        &self.facts
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        if self.finished.is_some() {
            return Err(Self::error(plan, "the step before was not collected; depth is 1"));
        }
        apply(plan, &mut self.rows, &self.limits, self.facts.kv_blocks, self.spec.vocab_size)
            .map_err(|reason| Self::error(plan, reason))?;
        self.batch.fill(plan, &self.rows, self.limits.block_size as usize, self.workspace.tile_tokens);
        if !self.batch.tokens.is_empty() {
            self.compute(plan)?;
        }
        self.finished = Some(self.gather(plan));
        Ok(())
    }

    fn collect(&mut self) -> Result<StepResult, StepError> {
        self.finished.take().ok_or_else(|| StepError::Failed {
            step: 0,
            executor: NAME,
            reason: "no step is in flight".to_owned(),
        })
    }
}

fn choose_kernels(forced: Option<SimdLevel>) -> Result<Kernels, CpuError> {
    let widest = SimdLevel::detect();
    let level = forced.unwrap_or(widest);
    Kernels::of(level).ok_or(CpuError::SimdUnavailable { level, widest })
}

fn check_sizes(spec: &DecoderSpec, limits: &StepLimits, threads: usize) -> Result<(), CpuError> {
    for (flag, value) in [
        ("--threads", threads),
        ("--max-num-seqs", limits.max_num_seqs as usize),
        ("--max-num-batched-tokens", limits.max_num_batched_tokens as usize),
        ("--max-model-len", limits.max_model_len as usize),
    ] {
        if value == 0 {
            return Err(CpuError::Zero { flag });
        }
    }
    if threads > MAX_THREADS {
        return Err(CpuError::TooManyThreads { threads, limit: MAX_THREADS });
    }
    let block_size = limits.block_size;
    if block_size == 0 || !block_size.is_multiple_of(16) || block_size > MAX_BLOCK_SIZE {
        return Err(CpuError::BlockSize { block_size });
    }
    if limits.max_model_len as usize > spec.context_len {
        return Err(CpuError::MaxModelLen { asked: limits.max_model_len, model: spec.context_len });
    }
    for (layer, spec) in spec.layers.iter().enumerate() {
        let attention = &spec.attention;
        let unsupported = |what: String| Err(CpuError::Unsupported { layer, what });
        if attention.kv_heads == 0 || !attention.heads.is_multiple_of(attention.kv_heads) {
            let (heads, kv_heads) = (attention.heads, attention.kv_heads);
            return unsupported(format!("{heads} query heads cannot share {kv_heads} key and value heads evenly"));
        }
        let rotary = 2 * attention.rope.inverse_frequencies.len();
        if rotary > attention.head_dim {
            return unsupported(format!("a head of {} cannot rotate {rotary} elements", attention.head_dim));
        }
    }
    Ok(())
}

/// Bytes of one block over all layers.
fn kv_block_bytes(spec: &DecoderSpec, limits: &StepLimits, config: &CpuConfig) -> u64 {
    let layer = |layer: &powertrain_model::spec::LayerSpec| {
        let layout = KvLayout {
            dtype: config.kv_dtype,
            block_size: limits.block_size as usize,
            kv_heads: layer.attention.kv_heads,
            head_dim: layer.attention.head_dim,
        };
        layout.block_bytes() as u64
    };
    spec.layers.iter().map(layer).sum()
}

/// Blocks that fit the memory allowed; at least what one longest sequence needs.
fn plan_kv_blocks(spec: &DecoderSpec, limits: &StepLimits, config: &CpuConfig) -> Result<u32, CpuError> {
    let block_bytes = kv_block_bytes(spec, limits, config).max(1);
    let per_sequence = u64::from(limits.max_model_len.div_ceil(limits.block_size));
    let needed = per_sequence * block_bytes;
    let given = config
        .kv_cache_bytes
        .unwrap_or_else(|| needed.saturating_mul(u64::from(limits.max_num_seqs)).min(DEFAULT_KV_BYTES).max(needed));
    let blocks = given / block_bytes;
    if blocks < per_sequence {
        return Err(CpuError::KvCacheTooSmall {
            given,
            holds: blocks * u64::from(limits.block_size),
            max_model_len: limits.max_model_len,
            needed,
        });
    }
    // More than every row at its longest can never be used, except as prefix cache; more than u32 counts cannot be named.
    Ok(u32::try_from(blocks).unwrap_or(u32::MAX))
}
