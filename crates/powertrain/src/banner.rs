//! What `serve` says once it is ready: the same facts as `GET /v1/engine`.

use crate::size::Bytes;
use powertrain_server::EngineReport;
use std::{fmt::Write, net::SocketAddr};

pub(crate) fn print(report: &EngineReport, address: SocketAddr) -> anyhow::Result<()> {
    crate::print(&text(report, address))
}

fn text(report: &EngineReport, address: SocketAddr) -> String {
    let mut text = format!("powertrain {}\n", report.version);
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| _ = writeln!(text, "  {name:22}{value}");
    line("model", report.model.clone());
    line("architecture", report.architecture.clone());
    line("dtype", report.dtype.clone());
    line("max model length", format!("{} tokens", report.max_model_len));
    line("weights memory", Bytes(report.weights_bytes).to_string());
    line("KV cache memory", format!("{} ({})", Bytes(report.kv_cache_bytes), report.kv_cache_dtype));
    if let Some(bytes) = report.workspace_bytes {
        line("workspace memory", Bytes(bytes).to_string());
    }
    if let Some(memory) = &report.device_memory {
        let (total, others, reserved) = (memory.total_bytes, memory.others_bytes, memory.reserved_bytes);
        let words = format!(
            "{}; driver and others {}, reserved for graphs and sampling {}",
            Bytes(total),
            Bytes(others),
            Bytes(reserved)
        );
        line("GPU memory", words);
    }
    line("KV bytes per token", report.kv_bytes_per_token.to_string());
    line("KV cache tokens", report.kv_cache_tokens.to_string());
    let (concurrency, length) = (report.max_concurrency_at_max_model_len, report.max_model_len);
    line("max concurrency", format!("{concurrency:.1} sequences of {length} tokens"));
    line("executor", format!("{}: {}", report.executor, report.device));
    line("threads", report.threads.to_string());
    line("SIMD level", report.simd.clone());
    let stages: Vec<_> =
        report.load_stages.iter().map(|stage| format!("{} {:.3} s", stage.name, stage.seconds)).collect();
    line("loaded in", format!("{:.3} s ({})", report.load_seconds, stages.join(", ")));
    line("listening on", format!("http://{address}"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use powertrain_server::{LoadStage, MemoryReport};

    #[test]
    fn says_every_fact() {
        let report = EngineReport {
            version: "1.2.3",
            model: "smollm2".to_owned(),
            architecture: "llama".to_owned(),
            dtype: "Q4_1".to_owned(),
            executor: "cpu",
            device: "CPU, 2 threads".to_owned(),
            threads: 2,
            simd: "avx2".to_owned(),
            max_model_len: 8192,
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            block_size: 16,
            weights_bytes: 100 << 20,
            kv_cache_bytes: 3 << 30,
            workspace_bytes: Some(17 << 20),
            device_memory: Some(MemoryReport {
                total_bytes: 80 << 30,
                others_bytes: 600 << 20,
                reserved_bytes: 200 << 20,
            }),
            kv_cache_dtype: "f16",
            kv_bytes_per_token: 23_040,
            kv_cache_tokens: 139_808,
            kv_blocks: 8738,
            max_concurrency_at_max_model_len: 17.07,
            prefill_pace: "full",
            step_costs: None,
            load_seconds: 0.3141,
            load_stages: vec![LoadStage { name: "text", seconds: 0.021 }, LoadStage { name: "weights", seconds: 0.27 }],
        };
        assert_eq!(
            text(&report, "127.0.0.1:8000".parse().unwrap()),
            "powertrain 1.2.3
  model                 smollm2
  architecture          llama
  dtype                 Q4_1
  max model length      8192 tokens
  weights memory        100 MiB
  KV cache memory       3.00 GiB (f16)
  workspace memory      17.0 MiB
  GPU memory            80.0 GiB; driver and others 600 MiB, reserved for graphs and sampling 200 MiB
  KV bytes per token    23040
  KV cache tokens       139808
  max concurrency       17.1 sequences of 8192 tokens
  executor              cpu: CPU, 2 threads
  threads               2
  SIMD level            avx2
  loaded in             0.314 s (text 0.021 s, weights 0.270 s)
  listening on          http://127.0.0.1:8000
"
        );
    }
}
