//! Checks the executor on the GPU of this machine against the scalar reference, and measures it.
//!
//! ```text
//! cuda_check products [NAME]       every product kernel against f64, or one of skinny, general, gated, overflow
//! cuda_check sampling              the choice of tokens, all parameters, against the scalar sampler
//! cuda_check deterministic [SHAPE...]  --deterministic: a request alone, in batches, chunked, cached, preempted
//! cuda_check gated [ROWS...]       gate and up of many rows against cuBLASLt and a kernel for the activation, in time
//! cuda_check skinny                products of 1 to 128 rows: cuBLASLt, the streaming kernel and skinny.cu, in time
//! cuda_check models [only:TEXT...] [FOLDER...]   whole models against the reference: synthetic shapes (those named), and checkpoints given
//! cuda_check damaged               keys that are NaN: who attends to them is refused, nobody else
//! cuda_check faults                no memory for graphs, a freed cache, a stream that hangs: what the engine makes of it
//! cuda_check profile [case:ROWSxLENGTH@BEFORE | mixed:DECODESxPOSITIONS...] SHAPE...      where the time of a step goes, of all cases or of these
//! cuda_check decode SHAPE...       the same, of decodes alone
//! cuda_check engine SHAPE...       throughput through the real engine, without HTTP
//! cuda_check bench SHAPE...        decode and prefill of a config.json with dummy weights
//! cuda_check mixed SHAPE...        steps of decodes beside prompts
//! cuda_check bench-sampling SHAPE...   decode with penalties and log-probabilities, and with --deterministic, beside plain
//! ```
#![expect(clippy::print_stdout, reason = "its purpose")]

#[path = "cuda_check/bench.rs"]
mod bench;
#[path = "cuda_check/damaged.rs"]
mod damaged;
#[path = "cuda_check/deterministic.rs"]
mod deterministic;
#[path = "cuda_check/engine.rs"]
mod engine;
#[path = "cuda_check/faults.rs"]
mod faults;
#[path = "cuda_check/models.rs"]
mod models;

use powertrain_cuda::{CudaOptions, Element};
use std::{process::ExitCode, sync::OnceLock};

/// What is checked computes with: bf16, or f16 where that is the first argument.
static ELEMENT: OnceLock<Element> = OnceLock::new();

fn element() -> Element {
    *ELEMENT.get_or_init(|| Element::Bf16)
}

/// What checks and measurements start from.
fn options() -> CudaOptions {
    CudaOptions { element: Some(element()), ..CudaOptions::default() }
}

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "f16") {
        arguments.remove(0);
        ELEMENT.set(Element::F16).expect("set once");
    }
    let failures = match arguments.first().map(String::as_str) {
        Some("products") => products(arguments.get(1).map(String::as_str)),
        Some("sampling") => sampling(),
        Some("deterministic") => deterministic::check_all(&arguments[1..]),
        Some("gated") => gated(&arguments[1..]),
        Some("skinny") => skinny(&arguments[1..]),
        Some("models") => models::check_all(&arguments[1..]),
        Some("damaged") => damaged::check_all(),
        Some("faults") => faults::check_all(&arguments[1..]),
        Some("engine") => engine::measure_all(&arguments[1..]),
        Some("profile") => bench::profile_all(&arguments[1..], true),
        Some("decode") => bench::profile_all(&arguments[1..], false),
        Some("bench") => bench::bench_all(&arguments[1..]),
        Some("mixed") => bench::mixed_all(&arguments[1..]),
        Some("bench-sampling") => bench::sampling_all(&arguments[1..]),
        _ => {
            println!(
                "usage: cuda_check [f16] products [skinny | general | gated | overflow | best] | sampling | deterministic [CONFIG_FOLDER...] | gated [ROWS...] | skinny [ROWS...] | models [only:TEXT...] [FOLDER...] | damaged | faults | profile [case:ROWSxLENGTH@BEFORE | mixed:DECODESxPOSITIONS...] CONFIG_FOLDER... | decode CONFIG_FOLDER... | engine CONFIG_FOLDER... | bench CONFIG_FOLDER... | mixed CONFIG_FOLDER... | bench-sampling CONFIG_FOLDER..."
            );
            return ExitCode::from(2);
        }
    };
    println!("{}", if failures == 0 { "all passed".to_owned() } else { format!("{failures} FAILED") });
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn products(only: Option<&str>) -> usize {
    use powertrain_cuda::check;
    type Check = fn(Element) -> Result<Vec<check::Finding>, powertrain_cuda::CudaError>;
    let all: [(&str, Check); 5] = [
        ("skinny", check::skinny),
        ("general", check::products),
        ("gated", check::gated),
        ("overflow", check::overflow),
        ("best", check::best),
    ];
    let wanted = all.into_iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
    let findings: Result<Vec<_>, _> = wanted.map(|(_, check)| check(element())).collect();
    let findings = match findings {
        Ok(findings) => findings.concat(),
        Err(error) => {
            println!("error: {error}");
            return 1;
        }
    };
    let failed: Vec<_> = findings.iter().filter(|finding| !finding.passes()).collect();
    for finding in failed.iter().take(40) {
        println!("FAILED {} : {:.2e} > {:.0e}", finding.case, finding.relative_error, finding.allowed);
    }
    let worst = findings.iter().map(|finding| finding.relative_error).fold(0.0, f64::max);
    println!("{} products compared, largest relative error {worst:.2e}, {} failed", findings.len(), failed.len());
    failed.len()
}

fn skinny(rows: &[String]) -> usize {
    use powertrain_cuda::check::{Timed, skinny_times};
    let rows: Vec<usize> = match rows {
        [] => vec![1, 8, 10, 16, 32, 64, 128],
        rows => rows.iter().filter_map(|rows| rows.parse().ok()).collect(),
    };
    let shapes = [
        (2048, 1536, Timed::Residual),
        (1536, 1536, Timed::Residual),
        (17920, 1536, Timed::Gated),
        (1536, 8960, Timed::Residual),
        (151_936, 1536, Timed::Logits),
        (6144, 4096, Timed::Residual),
        (4096, 4096, Timed::Residual),
        (28672, 4096, Timed::Gated),
        (4096, 14336, Timed::Residual),
        (128_256, 4096, Timed::Logits),
    ];
    for (n, k, timed) in shapes {
        for &m in &rows {
            match skinny_times(element(), m, n, k, timed) {
                Ok(times) => {
                    let times: Vec<_> = times.iter().map(|(name, us)| format!("{name} {us:.1}")).collect();
                    println!("{timed:?} {m} x {n} x {k}, us: {}", times.join(" | "));
                }
                Err(error) => {
                    println!("FAILED {m} x {n} x {k}: {error}");
                    return 1;
                }
            }
        }
    }
    0
}

fn sampling() -> usize {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    match powertrain_cuda::check::sampling(seed, 4) {
        Ok(findings) => {
            for failure in findings.failures.iter().take(20) {
                println!("FAILED {failure}");
            }
            println!(
                "sampling, seed {seed}: {} tokens compared ({} rows damaged on both sides), {} log-probabilities, worst difference {:.1e}, {} failed",
                findings.compared,
                findings.damaged,
                findings.logprobs,
                findings.worst,
                findings.failures.len()
            );
            findings.failures.len()
        }
        Err(error) => {
            println!("error: {error}");
            1
        }
    }
}

fn gated(rows: &[String]) -> usize {
    let rows: Vec<usize> = match rows {
        [] => vec![64, 128, 192, 256, 320, 384, 512, 576, 640, 768, 1024, 1280, 1536, 2048, 4096, 8192],
        rows => rows.iter().filter_map(|rows| rows.parse().ok()).collect(),
    };
    for (n, k) in [(28672, 4096), (17920, 1536), (3072, 576)] {
        for &m in &rows {
            match powertrain_cuda::check::gated_times(element(), m, n, k) {
                Ok([apart, fused, widths @ ..]) => {
                    let rate = |us: f32| 2.0 * m as f32 * n as f32 * k as f32 / us / 1e6;
                    println!(
                        "gated {m:>4} x {n} x {k}: cuBLASLt and activation {apart:.1} us ({:.0} TFLOP/s), fused {fused:.1} us ({:.0} TFLOP/s), {:.3}; tiles of 256, 224, 192: {widths:.1?}",
                        rate(apart),
                        rate(fused),
                        apart / fused
                    );
                }
                Err(error) => {
                    println!("FAILED {m} x {n} x {k}: {error}");
                    return 1;
                }
            }
        }
    }
    0
}
