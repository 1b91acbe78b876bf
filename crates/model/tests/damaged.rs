//! Headers damaged at random: an error or a readable checkpoint, never a panic, never more memory than a small multiple of
//! the file. The fuzz targets in `fuzz/` run the same functions without end; `SEED=n` repeats a run of this.

mod support;

use std::path::Path;

use peak_alloc::PeakAlloc;
use powertrain_model::Checkpoint;
use powertrain_model::bytes::FileBytes;
use powertrain_model::gguf::{self, Metadata};
use powertrain_model::safetensors;
use support::GgufWriter;
use support::damage::{Random, damage, seed};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// Damaged files of each kind.
const FILES: u64 = 30_000;
/// Bytes a parse may have allocated at once, beside the file: per byte of file, and whatever the file.
const ALLOCATED_PER_BYTE_MAX: usize = 16;
const ALLOCATED_BASE_MAX: usize = 16 << 10;

fn gguf_file() -> Vec<u8> {
    GgufWriter::new()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .f32("llama.rope.freq_base", 10000.0)
        .bool("tokenizer.ggml.add_bos_token", true)
        .raw("a.u64", 10, (1u64 << 40).to_le_bytes())
        .raw("a.f64", 12, 0.5f64.to_le_bytes())
        .strs("tokenizer.ggml.tokens", &["a", "", "ĠΩ", "<|end|>"])
        .f32s("tokenizer.ggml.scores", &[0.0, -1.5])
        .i32s("tokenizer.ggml.token_type", &[1, 3])
        .f32_tensor("output_norm.weight", &[3], &[1.0, 2.0, 3.0])
        .tensor("blk.0.ffn_up.weight", &[64, 2], 8, vec![7; 4 * 34])
        .tensor("blk.0.ffn_down.weight", &[256], 12, vec![7; 144])
        .bytes()
}

fn safetensors_file() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"model.embed_tokens.weight":{"dtype":"BF16","shape":[4,8],"data_offsets":[0,64]},"model.norm.weight":{"dtype":"F32","shape":[8],"data_offsets":[64,96]},"step":{"dtype":"I64","shape":[],"data_offsets":[96,104]}}"#;
    support::safetensors(header, &[3; 104])
}

/// Asks a checkpoint for everything it has.
fn read_everything(checkpoint: &Checkpoint) {
    for name in checkpoint.tensor_names() {
        let tensor = checkpoint.tensor(name).expect("it was just named");
        let row_bytes = tensor.format.row_bytes(tensor.columns).expect("rows are whole blocks");
        assert_eq!(tensor.data.len(), tensor.rows * row_bytes, "{name}");
    }
    if let Some(metadata) = checkpoint.metadata() {
        for key in metadata.keys() {
            // Each of the wrong type makes its error, which is part of what is tested.
            let getters: [fn(&Metadata, &str) -> bool; 8] = [
                |metadata, key| metadata.get_u32(key).is_ok(),
                |metadata, key| metadata.get_u64(key).is_ok(),
                |metadata, key| metadata.get_f32(key).is_ok(),
                |metadata, key| metadata.get_bool(key).is_ok(),
                |metadata, key| metadata.get_str(key).is_ok(),
                |metadata, key| metadata.get_strs(key).is_ok(),
                |metadata, key| metadata.get_u32s(key).is_ok(),
                |metadata, key| metadata.get_f32s(key).is_ok(),
            ];
            let read = getters.iter().filter(|getter| getter(metadata, key)).count();
            // An integer reads as u32 and as u64; nothing else reads as two types.
            assert!(read <= 2, "{key} is {read} types at once");
        }
    }
}

/// Runs `check` on damaged copies of `whole`; returns how many it called readable.
fn run(seed: u64, whole: &[u8], check: impl Fn(Vec<u8>) -> bool) -> u64 {
    let mut readable = 0;
    for case in 0..FILES {
        let mut random = Random(seed.wrapping_add(case << 32));
        let mut file = whole.to_vec();
        damage(&mut file, &mut random);
        let len = file.len();
        ALLOCATED.reset_peak_usage();
        let before = ALLOCATED.current_usage();
        readable += u64::from(check(file));
        let allocated = ALLOCATED.peak_usage().saturating_sub(before);
        let allowed = ALLOCATED_BASE_MAX + len * ALLOCATED_PER_BYTE_MAX;
        assert!(allocated <= allowed, "SEED={seed} case {case}: {allocated} bytes allocated for a file of {len}");
    }
    readable
}

/// One test, not two: the allocator counts for the whole process.
#[test]
fn damaged_headers_are_errors_and_take_little_memory() {
    let seed = seed();
    let path = Path::new("damaged");

    let whole = gguf_file();
    let readable = run(seed, &whole, |file| {
        let parsed = gguf::parse(&file, path).is_ok();
        let opened = Checkpoint::from_gguf(FileBytes::Owned(file), path);
        assert!(parsed || opened.is_err());
        opened.inspect(read_everything).is_ok()
    });
    assert!(
        (FILES / 20..FILES / 2).contains(&readable),
        "{readable} of {FILES} GGUF files survived: is damage still done?"
    );

    let whole = safetensors_file();
    let readable = run(seed, &whole, |file| {
        let parsed = safetensors::parse(&file, path).is_ok();
        let opened = Checkpoint::from_safetensors(FileBytes::Owned(file), path);
        assert!(parsed || opened.is_err());
        opened.inspect(read_everything).is_ok()
    });
    assert!(
        (FILES / 20..FILES / 2).contains(&readable),
        "{readable} of {FILES} safetensors files survived: is damage still done?"
    );

    claims_at_their_cheapest(path);
}

/// Files made to cost the most memory per byte: nothing but the smallest entries.
fn claims_at_their_cheapest(path: &Path) {
    let allocated = |file: Vec<u8>, parse: &dyn Fn(&[u8])| {
        ALLOCATED.reset_peak_usage();
        let before = ALLOCATED.current_usage();
        parse(&file);
        let allocated = ALLOCATED.peak_usage() - before;
        assert!(
            allocated <= ALLOCATED_BASE_MAX + file.len() * ALLOCATED_PER_BYTE_MAX,
            "{allocated} bytes for a file of {}",
            file.len()
        );
    };
    let mut entries = GgufWriter::new();
    let mut tensors = GgufWriter::new();
    let mut json = String::from("{");
    for index in 0..20_000 {
        let name = format!("{index:x}");
        entries = entries.raw(&name, 0, [0]);
        tensors = tensors.tensor(&name, &[1], 0, [0; 4]);
        json += &format!(r#""{name}":{{"dtype":"F32","shape":[],"data_offsets":[0,4]}},"#);
    }
    json.replace_range(json.len() - 1.., "}");
    allocated(entries.bytes(), &|file| drop(gguf::parse(file, path).unwrap()));
    allocated(tensors.bytes(), &|file| drop(gguf::parse(file, path).unwrap()));
    allocated(support::safetensors(&json, &[0; 4]), &|file| drop(safetensors::parse(file, path).unwrap()));
    let strings = GgufWriter::new().array("a", 8, 100_000, &[0; 800_000]).bytes();
    allocated(strings, &|file| drop(gguf::parse(file, path).unwrap()));
}
