//! From flags to a running engine: find the model, open it, settle how much memory it gets, build the executor.

use crate::{
    capacity::{self, Given, Wanted},
    engine_flags::{Device, Dtype, EngineFlags, LoadFormat, PrefillPace},
    memory,
    text_side::TextSide,
};
use powertrain_cpu::{CpuConfig, CpuExecutor, KvDtype};
use powertrain_cuda::{CudaError, CudaOptions, Element};
use powertrain_engine::{Engine, EngineConfig};
use powertrain_hub::{Hub, ModelReference, Settings};
use powertrain_model::{Model, reference::Reference, summary::Summary};
use powertrain_server::LoadStage;
use powertrain_step::{Executor, StepLimits};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A model ready to run.
pub(crate) struct Loaded {
    pub(crate) engine: Engine,
    pub(crate) text: TextSide,
    /// What to call it.
    pub(crate) name: String,
    /// The checkpoint's word for the family.
    pub(crate) architecture: String,
    /// How the weights are stored, as `Q4_1 + Q8_0 + F32`.
    pub(crate) dtype: String,
    pub(crate) vocab_size: u32,
    /// From the first look at the files to an engine that takes requests; fetching them is not counted.
    pub(crate) load_seconds: f64,
    /// What they went into.
    pub(crate) load_stages: Vec<LoadStage>,
    /// Memory a step works in; `None` where the executor does not say.
    pub(crate) workspace_bytes: Option<u64>,
    /// What the user should know but did not ask for.
    pub(crate) notes: Vec<String>,
}

/// An executor, and what is said about it once.
struct Built {
    limits: StepLimits,
    executor: Box<dyn Executor>,
    workspace_bytes: Option<u64>,
    stages: Vec<LoadStage>,
}

impl EngineFlags {
    /// Does all of it.
    pub(crate) fn load(&self, reference: &ModelReference) -> anyhow::Result<Loaded> {
        // Before any memory of the model is touched and any thread of its started.
        if let Some(said) = powertrain_cpu::bind_numa(&self.numa)? {
            tracing::info!("{said}");
        }
        let settings = Settings::from_env()?;
        let cache = settings.cache.clone();
        let hub = Hub::new(settings);
        let resolved = match self.load_format {
            LoadFormat::Auto => hub.resolve(reference)?,
            LoadFormat::Dummy => hub.resolve_description(reference)?,
        };
        let started = Instant::now();
        let model = match self.load_format {
            LoadFormat::Auto => Model::open(&resolved.path)?,
            LoadFormat::Dummy => Model::dummy(&resolved.path)?,
        };
        let opened = started.elapsed();
        let (summary, vocab_size) = (model.summary(), u32::try_from(model.spec().vocab_size)?);
        let mut notes = Vec::new();
        // The tokenizer is made on one core beside the executor, which has phases of its own that take one core.
        let chat_template = self.chat_template.as_deref();
        let (text, built) = std::thread::scope(|scope| {
            let text = scope.spawn(|| {
                let begun = Instant::now();
                TextSide::open(&model, chat_template).map(|text| (text, begun.elapsed()))
            });
            let built = self.executor(&model, &summary, &cache, &mut notes);
            (text.join(), built)
        });
        let (text, text_took) = text.map_err(|_| anyhow::anyhow!("making the tokenizer panicked; this is a bug"))??;
        let Built { limits, executor, workspace_bytes, stages } = built?;
        if !model.unused_tensors().is_empty() {
            notes.push(format!("the checkpoint has tensors that are not used: {}", model.unused_tensors().join(", ")));
        }
        if text.tokenizer.vocab_size() > model.spec().vocab_size {
            notes.push(format!(
                "the tokenizer has {} tokens and the model {vocab_size}: text with tokens that the model lacks will be refused",
                text.tokenizer.vocab_size()
            ));
        }
        // A GPU takes a second for its slowest step; a CPU that pages a large model in may take many minutes.
        let step_timeout = Duration::from_secs(if executor.facts().executor == "cuda" { 120 } else { 1800 });
        let engine = Engine::start(
            EngineConfig {
                limits,
                max_queue: self.max_queue,
                prefix_caching: !self.no_enable_prefix_caching,
                async_scheduling: true,
                pace_prompts: self.prefill_pace == PrefillPace::Auto,
                vocab_size,
                stall_timeout: Duration::from_secs(u64::from(self.stall_timeout.max(1))),
                step_timeout: Some(self.step_timeout.unwrap_or(step_timeout)).filter(|limit| !limit.is_zero()),
            },
            executor,
        )?;
        Ok(Loaded {
            engine,
            text,
            name: resolved.name,
            architecture: summary.architecture.clone(),
            dtype: formats(&summary),
            vocab_size,
            load_seconds: started.elapsed().as_secs_f64(),
            load_stages: [stage("files", opened), stage("text", text_took)].into_iter().chain(stages).collect(),
            workspace_bytes,
            notes,
        })
    }

    fn executor(
        &self,
        model: &Model,
        summary: &Summary,
        cache: &Path,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<Built> {
        if let Some(ordinal) = self.gpu(notes)? {
            return self.cuda_executor(model, ordinal, cache.join("kernels"));
        }
        if self.dtype != Dtype::Auto {
            anyhow::bail!(
                "--dtype is for GPUs, and this runs on the CPU, which computes with weights as they are stored; leave it out, or give --device cuda"
            );
        }
        let is_reference = self.device == Device::Reference;
        let max_num_seqs = self.max_num_seqs.unwrap_or(64);
        let max_num_batched_tokens = self.max_num_batched_tokens.unwrap_or(max_num_seqs.max(512));
        let kv_dtype = if is_reference { KvDtype::F32 } else { self.kv_cache_dtype };
        let weights_bytes = if is_reference { 4 * summary.parameters } else { summary.weight_bytes };
        let workspace_bytes = capacity::workspace_bytes(model.spec(), max_num_batched_tokens);
        let capacity = capacity::plan(
            Wanted {
                max_model_len: self.max_model_len,
                max_num_seqs,
                max_num_batched_tokens,
                block_size: self.block_size,
                kv_cache: self.kv_cache_memory,
            },
            Given {
                context_len: u32::try_from(model.spec().context_len).unwrap_or(u32::MAX),
                kv_bytes_per_token: kv_dtype.position_bytes(model.spec()),
                weights_bytes,
                workspace_bytes,
                available_bytes: memory::available_bytes(),
            },
        )?;
        if capacity.shortened {
            let (len, own) = (capacity.max_model_len, model.spec().context_len);
            notes.push(format!(
                "the KV cache holds {len} of the model's {own} tokens; raise --kv-cache-memory for more"
            ));
        }
        let limits = StepLimits {
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len: capacity.max_model_len,
            block_size: self.block_size,
        };
        if is_reference {
            let begun = Instant::now();
            let executor = Box::new(Reference::new(model, limits, capacity.kv_blocks));
            let stages = vec![stage("weights", begun.elapsed())];
            return Ok(Built { limits, executor, workspace_bytes: None, stages });
        }
        let config = CpuConfig {
            threads: self.threads,
            kv_dtype,
            kv_cache_bytes: Some(capacity.kv_bytes),
            activations: self.cpu_activations,
            simd: self.simd,
            ..CpuConfig::default()
        };
        let executor = CpuExecutor::new(model, limits, config)?;
        let times = executor.build_times();
        Ok(Built {
            limits,
            workspace_bytes: Some(executor.workspace_bytes()),
            stages: vec![stage("weights", times.weights), stage("memory", times.memory)],
            executor: Box::new(executor),
        })
    }

    /// The number of the GPU to use, if one is. `auto` takes the first where there is one, and says why where a build for GPUs
    /// finds none.
    fn gpu(&self, notes: &mut Vec<String>) -> anyhow::Result<Option<u32>> {
        match self.device {
            Device::Cpu | Device::Reference => Ok(None),
            Device::Cuda(ordinal) => Ok(Some(ordinal)),
            Device::Auto => match powertrain_cuda::probe(0) {
                Ok(()) => Ok(Some(0)),
                Err(CudaError::NotBuilt) => Ok(None),
                Err(error) => {
                    notes.push(format!("running on the CPU: {error}"));
                    Ok(None)
                }
            },
        }
    }

    fn cuda_executor(&self, model: &Model, ordinal: u32, kernel_choices: PathBuf) -> anyhow::Result<Built> {
        let limits = StepLimits {
            max_num_seqs: self.max_num_seqs.unwrap_or(256),
            max_num_batched_tokens: self.max_num_batched_tokens.unwrap_or(8192),
            max_model_len: self.max_model_len.unwrap_or(u32::try_from(model.spec().context_len).unwrap_or(u32::MAX)),
            block_size: self.block_size,
        };
        let options = CudaOptions {
            ordinal,
            gpu_memory_utilization: self.gpu_memory_utilization,
            kv_cache_bytes: self.kv_cache_memory.map(|bytes| bytes.0),
            element: match self.dtype {
                Dtype::Auto => None,
                Dtype::Bfloat16 => Some(Element::Bf16),
                Dtype::Float16 => Some(Element::F16),
            },
            enforce_eager: self.enforce_eager,
            deterministic: self.deterministic,
            kernel_choices: Some(kernel_choices),
            ..CudaOptions::default()
        };
        let begun = Instant::now();
        let executor = powertrain_cuda::load(model, &limits, &options)?;
        let workspace_bytes = executor.facts().device_memory.map(|memory| memory.workspace);
        Ok(Built { limits, executor, workspace_bytes, stages: vec![stage("device", begun.elapsed())] })
    }
}

fn stage(name: &'static str, took: Duration) -> LoadStage {
    LoadStage { name, seconds: took.as_secs_f64() }
}

/// The formats of the weights, the one with most bytes first.
fn formats(summary: &Summary) -> String {
    let mut formats = summary.formats.clone();
    formats.sort_by_key(|format| std::cmp::Reverse(format.bytes));
    formats.iter().map(|format| format!("{:?}", format.format)).collect::<Vec<_>>().join(" + ")
}
