//! What the scheduler makes of a load when steps take what they were measured to take on one H100: throughput, first tokens and gaps, with prompts
//! spread over steps and without. No device, no threads: the scheduler itself, driven by a clock that adds up steps.
//!
//! ```text
//! simulate                 closed loops of 512/128, and open ones, of two models
//! ```
//! Times of steps: what the executor measures when it is loaded, times what they take longer under load (`cuda_check profile mixed:...`:
//! docs/benchmarks/h100-raw/profile-8.txt), attention of decodes by its bytes, of prompts by its operations.
#![expect(clippy::print_stdout, reason = "its purpose")]

mod load;

use load::{DEVICES, Load, Run, arrivals, percentile};

fn main() {
    println!("model, load                     pace   tok/s  TTFT p50   p95   p99  TPOT p50  gap p99   max (ms)");
    for device in &DEVICES {
        let closed = [(1, 16), (10, 160), (50, 500), (100, 1000), (256, 2560)].map(|(clients, requests)| {
            (format!("{clients} clients, 512/128"), Load::Closed { clients, requests }, 512, 128)
        });
        // Shares of what it could do at most, nearly.
        let most = if device.name == "A" { 54.0 } else { 220.0 };
        let open =
            [(0.3, 512, 128), (0.5, 512, 128), (0.8, 512, 128), (0.95, 512, 128), (0.3, 8000, 128), (0.8, 8000, 128)];
        let open = open.map(|(share, prompt, output)| {
            let per_second = most * share * if prompt > 4000 { 512.0 / f64::from(prompt) } else { 1.0 };
            let load = Load::Open { arrivals: arrivals(per_second, if prompt > 4000 { 200 } else { 2000 }) };
            (format!("{per_second:.1}/s, {prompt}/{output}"), load, prompt, output)
        });
        for (name, load, prompt, output) in closed.into_iter().chain(open) {
            for (pace, paced) in [("auto", true), ("full", false)] {
                let mut run = Run::new(device, paced, prompt, output);
                let rate = run.run(&load);
                println!(
                    "{} {name:<28} {pace}  {rate:>7.0}  {:>8.0} {:>5.0} {:>5.0}  {:>8.2}  {:>7.1} {:>5.0}",
                    device.name,
                    percentile(&mut run.first_tokens, 0.5),
                    percentile(&mut run.first_tokens, 0.95),
                    percentile(&mut run.first_tokens, 0.99),
                    percentile(&mut run.per_token, 0.5),
                    percentile(&mut run.gaps, 0.99),
                    percentile(&mut run.gaps, 1.0)
                );
            }
        }
    }
}
