//! Checks the executor on the GPU of this machine against the scalar reference, and measures it.
//!
//! ```text
//! cuda_check products              every product kernel against f64
//! cuda_check models [FOLDER...]    whole models against the reference: synthetic shapes, and checkpoints given
//! cuda_check profile SHAPE...      where the time of a step goes
//! cuda_check engine SHAPE...       throughput through the real engine, without HTTP
//! cuda_check bench SHAPE...        decode and prefill of a config.json with dummy weights
//! ```
#![expect(clippy::print_stdout, reason = "its purpose")]

#[path = "cuda_check/bench.rs"]
mod bench;
#[path = "cuda_check/engine.rs"]
mod engine;
#[path = "cuda_check/models.rs"]
mod models;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let failures = match arguments.first().map(String::as_str) {
        Some("products") => products(),
        Some("models") => models::check_all(&arguments[1..]),
        Some("engine") => engine::measure_all(&arguments[1..]),
        Some("profile") => bench::profile_all(&arguments[1..]),
        Some("bench") => bench::bench_all(&arguments[1..]),
        _ => {
            println!(
                "usage: cuda_check products | models [FOLDER...] | profile CONFIG_FOLDER... | engine CONFIG_FOLDER... | bench CONFIG_FOLDER..."
            );
            return ExitCode::from(2);
        }
    };
    println!("{}", if failures == 0 { "all passed".to_owned() } else { format!("{failures} FAILED") });
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn products() -> usize {
    let findings = match powertrain_cuda::check::products() {
        Ok(findings) => findings,
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
