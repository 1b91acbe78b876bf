//! Tiny models of every family against what transformers computes with them.

mod support;

use powertrain_cpu::{Activations, CpuConfig, KvDtype, SimdLevel};
use support::{Driver, expected, largest_error, limits, mean_error, open};

const FOLDERS: [&str; 10] = [
    "gemma3",
    "gemma3-scaled",
    "llama",
    "llama-linear-bias",
    "llama-tied-rope3",
    "mistral-window",
    "qwen2",
    "qwen2-window",
    "qwen2-yarn",
    "qwen3",
];

fn check_exact(name: &str, config: CpuConfig) {
    let expected = expected(name);
    let limits = limits(32);
    let mut driver = Driver::new(open(name, limits, config.clone()), limits, Some(7));
    let (scores, tokens) = driver.generate(&expected.prompt, expected.greedy.len(), 32);
    let error = largest_error(&scores, &expected);
    assert!(error < 1e-4, "{name} {config:?}: log-probabilities differ by {error}");
    assert_eq!(tokens, expected.greedy, "{name} {config:?}");
}

fn reference_mode(simd: Option<SimdLevel>) -> CpuConfig {
    CpuConfig {
        threads: Some(2),
        kv_dtype: KvDtype::F32,
        activations: Activations::F32,
        simd,
        kv_cache_bytes: Some(4 << 20),
        ..CpuConfig::default()
    }
}

#[test]
fn reference_mode_equals_transformers_on_every_family() {
    for name in FOLDERS.into_iter().chain(["llama-Q8_0.gguf"]) {
        check_exact(name, reference_mode(None));
    }
}

#[test]
fn every_simd_level_equals_transformers() {
    for level in SimdLevel::ALL.into_iter().filter(|level| level.is_available()) {
        for name in ["gemma3", "llama", "llama-Q8_0.gguf"] {
            check_exact(name, reference_mode(Some(level)));
        }
    }
}

#[test]
fn the_default_mode_stays_close() {
    for name in FOLDERS.into_iter().chain(["llama-Q8_0.gguf", "qwen2-BF16.gguf"]) {
        let folder = match name {
            "qwen2-BF16.gguf" => "qwen2",
            other => other,
        };
        let expected = expected(folder);
        let limits = limits(32);
        let config = CpuConfig { threads: Some(2), kv_cache_bytes: Some(4 << 20), ..CpuConfig::default() };
        let mut driver = Driver::new(open(name, limits, config), limits, None);
        let (scores, _) = driver.generate(&expected.prompt, 1, 32);
        // 8 bits of mantissa through weights that are made to amplify differences.
        let error = mean_error(&scores, &expected);
        assert!(error < 0.25, "{name}: log-probabilities differ by {error} on average");
    }
}
