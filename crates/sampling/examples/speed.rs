//! What one token's choice costs here: `cargo run --release -p powertrain-sampling --example speed`.
#![expect(clippy::print_stdout, reason = "its purpose")]

use powertrain_sampling::{History, Sampler, SamplingParams};
use std::{hint::black_box, time::Instant};

fn main() {
    for vocab in [49_152usize, 151_936] {
        let logits: Vec<f32> = (0..vocab as u32)
            .map(|i| (f64::from(i.wrapping_mul(0x9E37_79B9)) / 4_294_967_296.0 * 16.0 - 8.0) as f32)
            .collect();
        let cases = [
            ("greedy", SamplingParams { temperature: 0.0, ..Default::default() }),
            ("greedy, 5 logprobs", SamplingParams { temperature: 0.0, logprobs: Some(5), ..Default::default() }),
            ("temperature 1", SamplingParams::default()),
            ("temperature 0.7, top-k 40", SamplingParams { temperature: 0.7, top_k: 40, ..Default::default() }),
            ("temperature 0.7, top-p 0.9", SamplingParams { temperature: 0.7, top_p: 0.9, ..Default::default() }),
            ("temperature 0.7, min-p 0.05", SamplingParams { temperature: 0.7, min_p: 0.05, ..Default::default() }),
        ];
        let mut sampler = Sampler::new(vocab);
        let history = History::default();
        for (name, params) in cases {
            let mut best = f64::INFINITY;
            for round in 0..200 {
                let begin = Instant::now();
                black_box(sampler.sample(black_box(&logits), &params, &history, round).is_ok());
                best = best.min(begin.elapsed().as_secs_f64());
            }
            println!("{vocab:>7} logits, {name:<28} {:>8.1} us", best * 1e6);
        }
    }
}
