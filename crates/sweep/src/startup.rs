//! What servers say about their memory while they start: vLLM, SGLang, llama.cpp and TensorRT-LLM in their logs, ours at
//! `GET /v1/engine`.
//!
//! A fact that was not printed is absent. The one number that is computed, the concurrency where only tokens are known,
//! says so.

use serde::{Deserialize, Serialize};
use serde_json::Value;

const GIB: f64 = (1_u64 << 30) as f64;
/// SGLang's and older vLLM's GB are GiB (`1 << 30`).
const UNITS: [(&str, f64); 4] = [("GiB", 1.0), ("GB", 1.0), ("MiB", 1.0 / 1024.0), ("MB", 1.0 / 1024.0)];

/// A server's memory in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StartUp {
    /// Weights.
    pub weights_gib: Option<f64>,
    /// KV cache.
    pub kv_gib: Option<f64>,
    /// Tokens it holds.
    pub kv_tokens: Option<u64>,
    /// Longest sequence.
    pub max_model_len: Option<u64>,
    /// Sequences of that length that fit.
    pub max_concurrency: Option<f64>,
    /// That number is `kv_tokens / max_model_len`, not the server's own.
    pub concurrency_computed: bool,
    /// The lines that the facts were read from.
    pub lines: Vec<String>,
}

impl StartUp {
    /// Reads a log and, where the server has it, its `/v1/engine`.
    pub fn read(log: &str, engine: Option<&Value>) -> Self {
        let mut facts = Self::default();
        for line in log.lines() {
            if facts.take(line) {
                let plain: String = line.chars().filter(|character| !character.is_control()).take(300).collect();
                facts.lines.push(plain);
            }
        }
        if let Some(engine) = engine {
            facts.take_engine(engine);
        }
        if facts.max_concurrency.is_none()
            && let (Some(tokens), Some(length)) = (facts.kv_tokens, facts.max_model_len.filter(|&length| length > 0))
        {
            facts.max_concurrency = Some(tokens as f64 / length as f64);
            facts.concurrency_computed = true;
        }
        facts
    }

    /// Ours.
    fn take_engine(&mut self, engine: &Value) {
        let gib = |name: &str| engine[name].as_f64().map(|bytes| bytes / GIB);
        self.weights_gib = gib("weights_bytes").or(self.weights_gib);
        self.kv_gib = gib("kv_cache_bytes").or(self.kv_gib);
        self.kv_tokens = engine["kv_cache_tokens"].as_u64().or(self.kv_tokens);
        self.max_model_len = engine["max_model_len"].as_u64().or(self.max_model_len);
        self.max_concurrency = engine["max_concurrency_at_max_model_len"].as_f64().or(self.max_concurrency);
    }

    /// Takes what a line says; whether it said something.
    fn take(&mut self, line: &str) -> bool {
        let mut found = false;
        // Of tensor-parallel ranks each prints its own share: the first stands for all.
        // vLLM.
        first(&mut found, &mut self.weights_gib, after(line, "Model loading took ").and_then(size));
        first(&mut found, &mut self.kv_gib, after(line, "Available KV cache memory: ").and_then(size));
        first(&mut found, &mut self.max_concurrency, vllm_concurrency(line));
        // Its CPU build: `Explicitly set (1.0/23.54) GiB for KV cache`, of so much memory.
        if line.contains("GiB for KV cache") {
            first(&mut found, &mut self.kv_gib, after(line, "Explicitly set (").and_then(number));
        }
        // SGLang.
        if line.contains("Load weight end") {
            first(&mut found, &mut self.weights_gib, after(line, "mem usage=").and_then(size));
        }
        if line.contains("KV Cache is allocated") {
            let both = after(line, "K size: ").and_then(size).zip(after(line, "V size: ").and_then(size));
            first(
                &mut found,
                &mut self.kv_gib,
                both.map(|(k, v)| k + v).or_else(|| after(line, "KV size: ").and_then(size)),
            );
        }
        // TensorRT-LLM.
        if line.contains("for max tokens in paged KV cache") {
            first(&mut found, &mut self.kv_gib, after(line, "Allocated ").and_then(size));
        }
        // llama.cpp, whose weights lie in several buffers.
        if let Some(mib) = after(line, "model buffer size =").filter(|_| line.contains("load_tensors:")).and_then(size)
        {
            self.weights_gib = Some(self.weights_gib.unwrap_or(0.0) + mib);
            found = true;
        }
        let is_llama_cache = line.contains("llama_kv_cache") && line.contains(" cells,");
        if is_llama_cache {
            first(&mut found, &mut self.kv_gib, after(line, "size =").and_then(size));
        }
        first(
            &mut found,
            &mut self.kv_tokens,
            after(line, "GPU KV cache size: ").or_else(|| after(line, "CPU KV cache size: ")).and_then(count),
        );
        first(&mut found, &mut self.max_model_len, after(line, "Maximum concurrency for ").and_then(count));
        if line.contains("KV Cache is allocated") {
            first(&mut found, &mut self.kv_tokens, after(line, "#tokens: ").and_then(count));
        }
        first(&mut found, &mut self.kv_tokens, after(line, "max_total_num_tokens=").and_then(count));
        if line.contains("max_total_num_tokens=") {
            first(&mut found, &mut self.max_model_len, after(line, "context_len=").and_then(count));
        }
        first(&mut found, &mut self.kv_tokens, after(line, "tokens in paged KV cache (").and_then(count));
        first(&mut found, &mut self.max_model_len, after(line, "[TRT-LLM] [I] max_seq_len=").and_then(count));
        if is_llama_cache {
            first(&mut found, &mut self.kv_tokens, llama_tokens(line));
        }
        if line.contains("llama_context: n_ctx_seq") || line.contains("llama_context: n_ctx_per_seq") {
            first(&mut found, &mut self.max_model_len, after(line, "= ").and_then(count));
        }
        found
    }
}

/// Takes a value where there is none yet, and notes that there was one.
fn first<T>(found: &mut bool, place: &mut Option<T>, value: Option<T>) {
    *found |= value.is_some();
    if place.is_none() {
        *place = value;
    }
}

/// `size = 90.00 MiB (  1024 cells,  30 layers,  4/2 seqs)`: cells of each of 2 streams, which 4 sequences share.
fn llama_tokens(line: &str) -> Option<u64> {
    let cells = after(line, "MiB (").and_then(count)?;
    let streams = after(line, " layers,").and_then(|rest| after(rest, "/")).and_then(count);
    Some(cells * streams.unwrap_or(1))
}

/// `Maximum concurrency for 4,096 tokens per request: 46.02x`.
fn vllm_concurrency(line: &str) -> Option<f64> {
    let rest = after(line, "Maximum concurrency for ")?;
    let text = after(rest, "per request: ")?;
    number(text)
}

fn after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    line.find(mark).map(|place| &line[place + mark.len()..])
}

/// The number that a text begins with, commas of thousands left out.
fn number(text: &str) -> Option<f64> {
    let text = text.trim_start();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ',')).unwrap_or(text.len());
    text[..end].trim_end_matches([',', '.']).replace(',', "").parse().ok()
}

fn count(text: &str) -> Option<u64> {
    number(text).map(|number| number as u64)
}

/// A size with its unit, in GiB.
fn size(text: &str) -> Option<f64> {
    let text = text.trim_start();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ',')).unwrap_or(text.len());
    let unit = text[end..].trim_start();
    let (_, factor) = UNITS.into_iter().find(|(name, _)| unit.starts_with(name))?;
    Some(number(text)? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn facts(
        weights: Option<f64>,
        kv: Option<f64>,
        tokens: Option<u64>,
        len: Option<u64>,
        most: Option<f64>,
    ) -> StartUp {
        StartUp {
            weights_gib: weights,
            kv_gib: kv,
            kv_tokens: tokens,
            max_model_len: len,
            max_concurrency: most,
            ..StartUp::default()
        }
    }

    #[track_caller]
    fn check(log: &str, expected: StartUp) {
        let found = StartUp { lines: Vec::new(), concurrency_computed: false, ..StartUp::read(log, None) };
        let near = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-6,
            (a, b) => a == b,
        };
        assert!(
            near(found.weights_gib, expected.weights_gib)
                && near(found.kv_gib, expected.kv_gib)
                && near(found.max_concurrency, expected.max_concurrency)
                && (found.kv_tokens, found.max_model_len) == (expected.kv_tokens, expected.max_model_len),
            "{found:?}\n{expected:?}"
        );
    }

    #[test]
    fn vllm_is_read() {
        check(
            "(EngineCore pid=1) INFO 06-01 21:40:51 [gpu_model_runner.py:5131] Model loading took 14.99 GiB memory and 2.8 seconds\n\
             INFO [gpu_worker.py:2] Available KV cache memory: 25.19 GiB\n\
             INFO [kv_cache_utils.py:864] GPU KV cache size: 188,512 tokens\n\
             INFO [kv_cache_utils.py:868] Maximum concurrency for 4,096 tokens per request: 46.02x\n",
            facts(Some(14.99), Some(25.19), Some(188_512), Some(4096), Some(46.02)),
        );
        // One line for both, as some versions have it.
        check(
            "Model loading took 0.5151 GiB and 5.8 seconds\nGPU KV cache size: 1,000 tokens, Maximum concurrency for 500 tokens per request: 2.00x",
            facts(Some(0.5151), None, Some(1000), Some(500), Some(2.0)),
        );
        // Its CPU build, 0.32.0.
        check(
            "(Worker pid=7) INFO 11-22 09:31:58 [cpu_worker.py:260] Explicitly set (1.0/23.54) GiB for KV cache on node 0.\n\
             (EngineCore pid=5) INFO 11-22 09:31:58 [kv_cache_utils.py:2327] CPU KV cache size: 46,592 tokens, \
             Maximum concurrency for 2,048 tokens per request: 22.75x\n",
            facts(None, Some(1.0), Some(46_592), Some(2048), Some(22.75)),
        );
    }

    #[test]
    fn sglang_is_read() {
        check(
            "[2025-03-25 16:37:06 TP0] Load weight end. type=LlamaForCausalLM, dtype=torch.bfloat16, avail mem=63.48 GB, mem usage=15.11 GB.\n\
             [2025-03-25 16:37:06 TP0] KV Cache is allocated. #tokens: 442750, K size: 27.02 GB, V size: 27.02 GB\n\
             [TP0] max_total_num_tokens=442750, chunked_prefill_size=8192, max_running_requests=4096, context_len=131072\n",
            facts(Some(15.11), Some(54.04), Some(442_750), Some(131_072), Some(442_750.0 / 131_072.0)),
        );
    }

    #[test]
    fn tensorrt_llm_is_read() {
        check(
            "[TensorRT-LLM][INFO] [MemUsageChange] Allocated 26.91 GiB for max tokens in paged KV cache (220480).\n\
             [02/14/2025-09:38:53] [TRT-LLM] [I] max_seq_len=131072, max_num_requests=2048, max_num_tokens=8192\n",
            facts(None, Some(26.91), Some(220_480), Some(131_072), Some(220_480.0 / 131_072.0)),
        );
    }

    #[test]
    fn llama_cpp_is_read() {
        check(
            "load_tensors:   CPU_Mapped model buffer size =    64.00 MiB\n\
             load_tensors:        CUDA0 model buffer size =   448.00 MiB\n\
             llama_context: n_ctx_seq     = 2048\n\
             llama_kv_cache: size =  512.00 MiB (  2048 cells,  32 layers,  4/4 seqs), K (f16):  256.00 MiB, V (f16):  256.00 MiB\n",
            facts(Some(0.5), Some(0.5), Some(8192), Some(2048), Some(4.0)),
        );
        // As it prints with `-lv 4` (of the source in llama-cpp-python 0.3.36): four streams of 1024.
        check(
            "0.01.417.204 I load_tensors:   CPU_Mapped model buffer size =    96.00 MiB\n\
             0.01.422.231 I llama_context: n_ctx_seq             = 1024\n\
             0.01.422.472 I llama_kv_cache:        CPU KV buffer size =    90.00 MiB\n\
             0.01.516.025 I llama_kv_cache: size =   90.00 MiB (  1024 cells,  30 layers,  4/4 seqs), K (f16):   45.00 MiB, V (f16):   45.00 MiB\n",
            facts(Some(0.09375), Some(90.0 / 1024.0), Some(4096), Some(1024), Some(4.0)),
        );
        // One stream that all sequences share (`--kv-unified`).
        check(
            "llama_context: n_ctx_seq = 4096\nllama_kv_cache: size = 90.00 MiB (  4096 cells,  30 layers,  4/1 seqs), K (f16): 45.00 MiB\n",
            facts(None, Some(90.0 / 1024.0), Some(4096), Some(4096), Some(1.0)),
        );
    }

    #[test]
    fn ours_is_asked() {
        let engine = json!({"weights_bytes": 1 << 30, "kv_cache_bytes": 3_u64 << 30, "kv_cache_tokens": 1000, "max_model_len": 500,
                            "max_concurrency_at_max_model_len": 2.0});
        let found = StartUp::read("nothing\n", Some(&engine));
        assert_eq!(found, facts(Some(1.0), Some(3.0), Some(1000), Some(500), Some(2.0)));
        assert_eq!(StartUp::read("", None), StartUp::default());
    }
}
