//! Whole models: every fixture opens, and what does not fit together is explained.

mod support;

use std::path::{Path, PathBuf};

use powertrain_model::bytes::FileBytes;
use powertrain_model::family::describe_gguf;
use powertrain_model::model::Source;
use powertrain_model::summary::FormatUse;
use powertrain_model::weights::{LayerSlot, Slot, WeightFormat};
use powertrain_model::{Checkpoint, Model, ModelError};
use support::{Folder, GgufWriter, safetensors, safetensors_f32};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A Llama of one layer: width 4, two heads of 2 over one of keys and values, feed-forward 8, vocabulary 3.
const TENSORS: [(&str, &[u64]); 11] = [
    ("token_embd.weight", &[4, 3]),
    ("output_norm.weight", &[4]),
    ("blk.0.attn_norm.weight", &[4]),
    ("blk.0.attn_q.weight", &[4, 4]),
    ("blk.0.attn_k.weight", &[4, 2]),
    ("blk.0.attn_v.weight", &[4, 2]),
    ("blk.0.attn_output.weight", &[4, 4]),
    ("blk.0.ffn_norm.weight", &[4]),
    ("blk.0.ffn_gate.weight", &[4, 8]),
    ("blk.0.ffn_up.weight", &[4, 8]),
    ("blk.0.ffn_down.weight", &[8, 4]),
];

fn tiny_gguf(tensors: &[(&str, &[u64])]) -> Vec<u8> {
    let head = GgufWriter::new()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 16)
        .u32("llama.embedding_length", 4)
        .u32("llama.feed_forward_length", 8)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let file = tensors.iter().fold(head, |file, (name, dims)| {
        file.f32_tensor(name, dims, &vec![0.5; dims.iter().product::<u64>() as usize])
    });
    file.bytes()
}

fn assemble_gguf(bytes: Vec<u8>) -> Result<Model, ModelError> {
    let checkpoint = Checkpoint::from_gguf(FileBytes::Owned(bytes), Path::new("tiny.gguf"))?;
    let described = describe_gguf(checkpoint.metadata().unwrap(), &|name| checkpoint.tensor(name))?;
    Model::assemble(described, checkpoint, None)
}

#[test]
fn every_fixture_opens_with_every_slot_filled() {
    let mut opened = 0;
    for entry in fixtures().read_dir().unwrap() {
        let path = entry.unwrap().path();
        if !path.join("config.json").exists() && path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let model = Model::open(&path).unwrap_or_else(|error| panic!("{error}"));
        for slot in model.spec().slots() {
            let tensor = model.tensor(slot).unwrap();
            assert_eq!((tensor.rows, tensor.columns), model.spec().shape(slot), "{} {slot:?}", path.display());
            assert_eq!(tensor.data.len(), tensor.rows * tensor.format.row_bytes(tensor.columns).unwrap());
        }
        assert!(model.tensor(Slot::Head).is_some(), "{}: a tied head is the embedding", path.display());
        assert!(model.tensor(Slot::Layer(model.spec().layers.len(), LayerSlot::Query)).is_none());
        assert_eq!(model.unused_tensors(), [""; 0], "{}", path.display());
        assert_eq!(matches!(model.source(), Source::Folder(folder) if folder == path), path.is_dir());
        opened += 1;
    }
    assert!(opened >= 10, "{opened} fixtures");
}

#[test]
fn the_summary_adds_up() {
    let model = assemble_gguf(tiny_gguf(&TENSORS)).unwrap();
    let summary = model.summary();
    let elements = 12 + 4 + 4 + 16 + 8 + 8 + 16 + 4 + 32 + 32 + 32;
    assert_eq!(summary.architecture, "llama");
    assert_eq!(summary.formats, [FormatUse { format: WeightFormat::F32, tensors: 11, elements, bytes: 4 * elements }]);
    assert_eq!((summary.parameters, summary.weight_bytes), (elements, 4 * elements));
    assert_eq!(summary.kv_bytes_per_token(2), 2 * 2 * 2, "keys and values, one head of 2, two bytes each");
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    for (index, (name, dims)) in TENSORS.iter().enumerate() {
        // The embedding says the size of the vocabulary, so the family already misses it.
        if *name == "token_embd.weight" {
            continue;
        }
        let shape = match dims {
            [columns] => format!("[{columns}]"),
            _ => format!("[{}, {}]", dims[1], dims[0]),
        };
        let mut without = TENSORS.to_vec();
        without.remove(index);
        assert_eq!(
            assemble_gguf(tiny_gguf(&without)).unwrap_err().to_string(),
            format!(
                "tiny.gguf: tensor \"{name}\": found nothing, expected {shape}; \
                 weights are incomplete, or of another model: download or convert it again"
            )
        );
        let mut misshapen = TENSORS.to_vec();
        misshapen[index].1 = &[6, 5];
        assert_eq!(
            assemble_gguf(tiny_gguf(&misshapen)).unwrap_err().to_string(),
            format!(
                "tiny.gguf: tensor \"{name}\": found [5, 6], expected {shape}; \
                 weights and configuration are not of one model: download or convert it again"
            )
        );
    }
}

#[test]
fn a_tensor_no_slot_takes_is_told() {
    let mut tensors = TENSORS.to_vec();
    tensors.push(("blk.0.attn_sinks.weight", &[2]));
    assert_eq!(assemble_gguf(tiny_gguf(&tensors)).unwrap().unused_tensors(), ["blk.0.attn_sinks.weight"]);
}

/// The config of the fixture `llama`, alone in a folder.
fn folder_with_config() -> Folder {
    let folder = Folder::new();
    folder.write("config.json", std::fs::read(fixtures().join("llama/config.json")).unwrap());
    folder
}

#[test]
fn a_dtype_that_cannot_be_read_is_named() {
    let folder = folder_with_config();
    let header = r#"{"model.embed_tokens.weight":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}"#;
    folder.write("model.safetensors", safetensors(header, &[0; 2]));
    assert_eq!(
        Model::open(folder.path()).unwrap_err().to_string(),
        format!(
            "{}: tensor \"model.embed_tokens.weight\": found \"F8_E4M3\", expected [256, 32]; \
             use a model in F32, F16 or BF16, or a GGUF file of it",
            folder.path().display()
        )
    );
}

#[test]
fn a_folder_without_its_parts_is_explained() {
    let folder = folder_with_config();
    let message = Model::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("folder: found no weight files, expected model.safetensors or"), "{message}");

    let folder = Folder::new();
    let path = folder.write("model.safetensors", safetensors_f32(&[("a", &[1], &[1.0])]));
    for model in [folder.path(), &path] {
        let message = Model::open(model).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("cannot open {}: ", folder.path().join("config.json").display())),
            "{message}"
        );
    }
}

#[test]
fn one_safetensors_file_finds_its_config_beside_it() {
    let folder = fixtures().join("qwen3");
    let model = Model::open(&folder.join("model.safetensors")).unwrap();
    assert!(matches!(model.source(), Source::Folder(found) if found == folder));
}
