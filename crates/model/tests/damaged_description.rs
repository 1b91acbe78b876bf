//! GGUF files whose metadata is damaged at random: families refuse or describe them, never a panic. `SEED=n` repeats a run.

mod support;

use std::path::Path;

use powertrain_model::bytes::FileBytes;
use powertrain_model::family::describe_gguf;
use powertrain_model::{Checkpoint, Model};
use support::GgufWriter;
use support::damage::{Random, damage, seed};

/// Damaged files.
const FILES: u64 = 30_000;

/// A Llama with all that families read; only the tensors of its layer are missing.
fn describable_file() -> Vec<u8> {
    let head = GgufWriter::new()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 16)
        .u32("llama.embedding_length", 4)
        .u32("llama.feed_forward_length", 8)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .u32("llama.rope.dimension_count", 2)
        .f32("llama.rope.freq_base", 10000.0)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let tensor = |file: GgufWriter, name: &str, dims: &[u64]| {
        file.f32_tensor(name, dims, &vec![0.5; dims.iter().product::<u64>() as usize])
    };
    let file = tensor(head, "token_embd.weight", &[4, 3]);
    let file = tensor(file, "rope_freqs.weight", &[1]);
    tensor(file, "output_norm.weight", &[4]).bytes()
}

#[test]
fn damaged_descriptions_are_errors() {
    let seed = seed();
    let whole = describable_file();
    let mut described = 0;
    for case in 0..FILES {
        let mut random = Random(seed.wrapping_add(case << 32));
        let mut file = whole.clone();
        damage(&mut file, &mut random);
        let Ok(checkpoint) = Checkpoint::from_gguf(FileBytes::Owned(file), Path::new("damaged")) else { continue };
        let metadata = checkpoint.metadata().expect("a GGUF file has metadata");
        let Ok(description) = describe_gguf(metadata, &|name| checkpoint.tensor(name)) else { continue };
        described += 1;
        Model::assemble(description, checkpoint, None).expect_err("the layer has no tensors");
    }
    assert!(described > 0, "SEED={seed}: no damaged file was described: is too much damage done?");
}
