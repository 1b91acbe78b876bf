//! The reference's logits of a prompt beside those another program wrote: `compare_logits MODEL PROMPTS.json LOGITS.f32`.
//!
//! `PROMPTS.json` is an array whose first element has the token ids as `prompt`; `LOGITS.f32` holds little-endian f32,
//! `[position, vocabulary]`. See `tests/fixtures/smollm2.py`.
#![expect(clippy::print_stdout, reason = "this is what it is for")]

use powertrain_model::{Model, reference};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompts, logits] = arguments.as_slice() else {
        return Err("usage: compare_logits MODEL PROMPTS.json LOGITS.f32".into());
    };
    let prompts: serde_json::Value = serde_json::from_slice(&std::fs::read(prompts)?)?;
    let prompt = prompts[0]["prompt"].as_array().ok_or("no [0].prompt")?;
    let prompt: Vec<u32> = prompt.iter().filter_map(|id| id.as_u64()?.try_into().ok()).collect();
    let bytes = std::fs::read(logits)?;
    let expected: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();

    let model = Model::open(Path::new(model))?;
    let vocab_size = model.spec().vocab_size;
    if expected.len() != prompt.len() * vocab_size {
        return Err(format!("{} logits, not {} x {vocab_size}", expected.len(), prompt.len()).into());
    }
    for (position, (found, expected)) in
        reference::logits(&model, &prompt).iter().zip(expected.chunks(vocab_size)).enumerate()
    {
        let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let highest = |logits: &[f32]| logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        println!("position {position}: largest error {error:.2e}, highest logit {:.4}", highest(expected));
    }
    Ok(())
}
