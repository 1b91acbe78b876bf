//! The flags of every subcommand that runs a model. Names are vLLM's where it has them.

use crate::size::Bytes;
use powertrain_cpu::{Activations, KvDtype, Numa, SimdLevel};
use std::{path::PathBuf, time::Duration};

/// Which model, how much of it at once, in how much memory, on what.
#[derive(Clone, clap::Args)]
pub(crate) struct EngineFlags {
    /// A GGUF file, a Hugging Face folder, `smollm2`, or a repository: org/repo, org/repo@revision, org/repo:file.gguf
    #[arg(default_value = "smollm2")]
    pub(crate) model: String,

    /// `dummy` makes random weights of the right shape from config.json alone, for capacity and speed work
    #[arg(long, value_enum, default_value_t = LoadFormat::Auto, help_heading = "Model")]
    pub(crate) load_format: LoadFormat,

    /// File with a chat template (Jinja) to use instead of the model's
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub(crate) chat_template: Option<PathBuf>,

    /// Tokens of prompt and output together, at most [default: the model's, or what the KV cache holds if that is less]
    #[arg(long, value_name = "TOKENS", help_heading = "Model")]
    pub(crate) max_model_len: Option<u32>,

    /// Sequences that run at once; others wait [default: 64, on a GPU 256]
    #[arg(long, value_name = "COUNT", help_heading = "Scheduling")]
    pub(crate) max_num_seqs: Option<u32>,

    /// Tokens computed in one step, of all sequences together: higher for throughput, lower for steadier streams
    /// [default: 512, on a GPU 8192]
    #[arg(long, value_name = "TOKENS", help_heading = "Scheduling")]
    pub(crate) max_num_batched_tokens: Option<u32>,

    /// How many of those tokens may be prompts' while other sequences generate. On a GPU `auto` spreads prompts over steps by what steps of
    /// several sizes took at start, more a step the more come; on CPUs it is `full`
    #[arg(long, value_enum, default_value_t = PrefillPace::Auto, help_heading = "Scheduling")]
    pub(crate) prefill_pace: PrefillPace,

    /// Requests that may wait; past it the answer is 429 with Retry-After
    #[arg(long, value_name = "COUNT", default_value_t = 1024, help_heading = "Scheduling")]
    pub(crate) max_queue: u32,

    /// Seconds without a finished step, while there is work, after which /health says so; more than the slowest step takes
    #[arg(long, value_name = "SECONDS", default_value_t = 300, help_heading = "Scheduling")]
    pub(crate) stall_timeout: u32,

    /// Seconds a step may take. One that takes longer hangs: its requests end with an error and the process with code 1, for its supervisor;
    /// 0 for any time [default: 1800, on a GPU 120]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = "Scheduling")]
    pub(crate) step_timeout: Option<Duration>,

    /// Memory for the KV cache, as 4GiB or 512MiB [default: a quarter of what is free, but no more than all sequences need; on a
    /// GPU what --gpu-memory-utilization leaves]
    #[arg(long, value_name = "SIZE", alias = "kv-cache-memory-bytes", help_heading = "KV cache")]
    pub(crate) kv_cache_memory: Option<Bytes>,

    /// Element type of the KV cache on CPUs: f32, f16, bf16, or int8 with a scale per head and token, which `auto` takes
    #[arg(long, value_name = "TYPE", default_value = "auto", help_heading = "KV cache")]
    pub(crate) kv_cache_dtype: KvDtype,

    /// Tokens in a block of KV cache
    #[arg(long, value_name = "TOKENS", default_value_t = 16, help_heading = "KV cache")]
    pub(crate) block_size: u32,

    /// Keep the KV cache of finished requests for prompts that begin alike [the default]
    #[arg(long, overrides_with = "no_enable_prefix_caching", help_heading = "KV cache")]
    enable_prefix_caching: bool,

    /// Compute every prompt anew
    #[arg(long, overrides_with = "enable_prefix_caching", help_heading = "KV cache")]
    pub(crate) no_enable_prefix_caching: bool,

    /// What computes: `cpu`, `cuda` or `cuda:N`, or the slow scalar `reference` that everything else is checked against; `auto`
    /// takes the best there is
    #[arg(long, default_value = "auto", help_heading = "Device")]
    pub(crate) device: Device,

    /// What a GPU computes with and keeps its KV cache in; `auto` takes float16 where all matrices are stored in it, else bfloat16. CPUs
    /// compute with weights as they are stored
    #[arg(long, value_enum, default_value_t = Dtype::Auto, help_heading = "Device")]
    pub(crate) dtype: Dtype,

    /// Share of the GPU's memory to use for weights, KV cache and all else
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, help_heading = "Device")]
    pub(crate) gpu_memory_utilization: f32,

    /// Launch every GPU kernel of every step instead of replaying captured graphs: slower, easier to debug
    #[arg(long, help_heading = "Device")]
    pub(crate) enforce_eager: bool,

    /// Let a request's tokens and log-probabilities depend on nothing but itself: not on the batch, the chunks of its prompt, what of
    /// it was cached, or a preemption. On a GPU this takes one algorithm a matrix and one attention kernel for all steps, and is slower;
    /// the same on the same GPU model, driver, cuBLASLt version and build. CPUs always compute so
    #[arg(long, help_heading = "Device")]
    pub(crate) deterministic: bool,

    /// Threads that compute [default: the cores this process may use]
    #[arg(long, value_name = "COUNT", help_heading = "Device")]
    pub(crate) threads: Option<usize>,

    /// NUMA nodes whose cores and memory the model may use, as 0 or 0,2 or 0-3; one process a node is the fast way to use all
    #[arg(long, value_name = "NODES", default_value = "off", help_heading = "Device")]
    pub(crate) numa: Numa,

    /// Instructions to use: scalar, neon, avx2, avx512 or avx512-bf16 [default: the widest there are]
    #[arg(long, value_name = "LEVEL", help_heading = "Device")]
    pub(crate) simd: Option<SimdLevel>,

    /// How activations enter products with quantised weights: int8 is fast, f32 is exact
    #[arg(long, value_name = "TYPE", default_value = "int8", help_heading = "Device")]
    pub(crate) cpu_activations: Activations,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LoadFormat {
    /// From the model's files
    Auto,
    /// Made up
    Dummy,
}

/// What a GPU computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Dtype {
    /// By what the weights are stored in
    Auto,
    /// The range of f32
    Bfloat16,
    /// Three bits more, values up to 65504
    #[value(alias = "half")]
    Float16,
}

/// How prompts share steps with sequences that generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PrefillPace {
    /// Spread over steps: more throughput under load and short gaps within streams, for first tokens somewhat later where few wait
    Auto,
    /// As many a step as --max-num-batched-tokens leaves: fewer, longer steps, for which every stream stands still
    Full,
}

/// No time is longer: a sum with the clock's must not overflow.
const SECONDS_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    let most = SECONDS_MAX.as_secs();
    let time = Duration::try_from_secs_f64(number).ok().filter(|time| *time <= SECONDS_MAX);
    time.ok_or_else(|| format!("give 0 to {most} seconds (a year)"))
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Auto,
    Cpu,
    /// The GPU of this number.
    Cuda(u32),
    Reference,
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "reference" => Ok(Self::Reference),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda, cuda:N or reference".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        for (text, device) in [
            ("auto", Some(Device::Auto)),
            ("cpu", Some(Device::Cpu)),
            ("cuda", Some(Device::Cuda(0))),
            ("cuda:3", Some(Device::Cuda(3))),
            ("reference", Some(Device::Reference)),
            ("cuda:", None),
            ("cuda:-1", None),
            ("gpu", None),
        ] {
            assert_eq!(text.parse::<Device>().ok(), device, "{text}");
        }
    }
}
