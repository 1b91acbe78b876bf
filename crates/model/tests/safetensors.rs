//! Safetensors files and folders, right and wrong: what is read, and what is said.

mod support;

use std::path::Path;

use powertrain_model::bytes::FileBytes;
use powertrain_model::weights::WeightFormat;
use powertrain_model::{Checkpoint, ModelError};
use safetensors::tensor::{Dtype, TensorView, serialize};
use support::{Folder, safetensors, safetensors_f32};

fn open(bytes: Vec<u8>) -> Result<Checkpoint, ModelError> {
    Checkpoint::from_safetensors(FileBytes::Owned(bytes), Path::new("tiny.safetensors"))
}

#[test]
fn what_the_reference_writes_is_read() {
    let data: Vec<u8> = (0..48).collect();
    let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), &data[..bytes]).unwrap();
    let bytes = serialize(
        [
            ("matrix", view(Dtype::BF16, &[2, 3], 12)),
            ("vector", view(Dtype::F32, &[5], 20)),
            ("half \"quoted\"", view(Dtype::F16, &[2, 2, 6], 48)),
            ("scalar", view(Dtype::F32, &[], 4)),
            ("positions", view(Dtype::I64, &[3], 24)),
            ("eight", view(Dtype::F8_E4M3, &[8], 8)),
        ],
        Some([("format".to_owned(), "pt".to_owned())].into()),
    )
    .unwrap();
    let checkpoint = open(bytes).unwrap();
    assert_eq!(checkpoint.tensor_names().collect::<Vec<_>>(), ["half \"quoted\"", "matrix", "scalar", "vector"]);
    let cases = [
        ("matrix", WeightFormat::BF16, 2, 3, 12),
        ("vector", WeightFormat::F32, 1, 5, 20),
        ("half \"quoted\"", WeightFormat::F16, 4, 6, 48),
        ("scalar", WeightFormat::F32, 1, 1, 4),
    ];
    for (name, format, rows, columns, bytes) in cases {
        let tensor = checkpoint.tensor(name).unwrap();
        assert_eq!((tensor.format, tensor.rows, tensor.columns), (format, rows, columns), "{name}");
        assert_eq!(tensor.data, &data[..bytes], "{name}");
    }
    assert_eq!(checkpoint.unread_dtype("positions"), Some("I64"));
    assert_eq!(checkpoint.unread_dtype("eight"), Some("F8_E4M3"));
    assert_eq!(checkpoint.unread_dtype("matrix"), None);
    assert!(checkpoint.metadata().is_none());
}

#[test]
fn a_bad_file_is_explained() {
    let one = |entry: &str| safetensors(&format!(r#"{{"w":{entry}}}"#), &[0; 16]);
    let json = "expected JSON of tensors, as safetensors writes it";
    let damaged = "; the file is damaged or incomplete: download it again";
    let cases: Vec<(Vec<u8>, String)> = vec![
        (vec![1, 2, 3], "header length: found a file of 3 bytes, expected 8 bytes".into()),
        (u64::MAX.to_le_bytes().into(), "header length: found 18446744073709551615, expected at most 0".into()),
        (
            [&200_000_000u64.to_le_bytes()[..], b"{}"].concat(),
            "header length: found 200000000, expected at most 2".into(),
        ),
        (safetensors("", &[]), format!("header: found EOF while parsing a value at line 1 column 0, {json}")),
        (
            safetensors("[]", &[]),
            format!("header: found invalid type: sequence, expected an object of tensors at line 1 column 0, {json}"),
        ),
        (
            one("3"),
            format!(
                "header: found tensor \"w\": invalid type: integer `3`, expected an object of dtype, shape and data_offsets at line 1 column 6, {json}"
            ),
        ),
        (
            one(r#"{"dtype":"F32","data_offsets":[0,16]}"#),
            format!("header: found tensor \"w\": missing field `shape` at line 1 column 42, {json}"),
        ),
        (
            one(r#"{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}"#),
            format!(
                "header: found tensor \"w\": invalid value: integer `-4`, expected u64 at line 1 column 31, {json}"
            ),
        ),
        (
            one(r#"{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,16]}"#),
            format!(
                "header: found tensor \"w\": invalid length 9, expected a shape of at most 8 dimensions at line 1 column 47, {json}"
            ),
        ),
        (
            one(r#"{"dtype":"F32","shape":[5],"data_offsets":[0,16]}"#),
            r#"shape of tensor "w": found [5] of F32, expected a shape of 16 bytes"#.into(),
        ),
        (
            one(r#"{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}"#),
            r#"shape of tensor "w": found [4611686018427387904, 4] of F32, expected a shape of 0 bytes"#.into(),
        ),
        (
            one(r#"{"dtype":"F32","shape":[5],"data_offsets":[0,20]}"#),
            r#"data of tensor "w": found bytes 0 to 20, expected offsets in order within the file's 16 bytes of data"#
                .into(),
        ),
        (
            one(r#"{"dtype":"F32","shape":[5],"data_offsets":[16,0]}"#),
            r#"data of tensor "w": found bytes 16 to 0, expected offsets in order within the file's 16 bytes of data"#
                .into(),
        ),
        (
            safetensors(
                r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
                &[0; 16],
            ),
            r#"tensor "w": found two entries, expected one; the file is damaged: download it again"#.into(),
        ),
        (
            safetensors(&format!("{{\"__metadata__\":{}", "[".repeat(100_000)), &[]),
            format!("header: found EOF while parsing a list at line 1 column 100016, {json}"),
        ),
    ];
    for (bytes, expected) in cases {
        let found = open(bytes).unwrap_err().to_string();
        let advice = if expected.contains(';') { "" } else { damaged };
        assert_eq!(found, format!("tiny.safetensors: {expected}{advice}"));
    }
}

#[test]
fn every_cut_is_an_error_and_no_panic() {
    let whole = safetensors_f32(&[("a", &[2, 2], &[1.0, 2.0, 3.0, 4.0]), ("b", &[1], &[5.0])]);
    open(whole.clone()).unwrap();
    for len in 0..whole.len() {
        let found = open(whole[..len].to_vec()).unwrap_err().to_string();
        assert!(found.contains("download it again"), "cut at {len}: {found}");
    }
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = Folder::new();
    folder.write("one.safetensors", safetensors_f32(&[("a", &[2], &[1.0, 2.0]), ("stray", &[1], &[9.0])]));
    folder.write("two.safetensors", safetensors_f32(&[("b", &[1, 2], &[3.0, 4.0])]));
    folder.write(
        "model.safetensors.index.json",
        r#"{"metadata":{"total_size":16},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#,
    );
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensor_names().collect::<Vec<_>>(), ["a", "b"], "what the index does not name is not there");
    assert_eq!(checkpoint.tensor("a").unwrap().data, [1.0f32, 2.0].map(f32::to_le_bytes).as_flattened());
    assert_eq!(checkpoint.tensor("b").unwrap().data, [3.0f32, 4.0].map(f32::to_le_bytes).as_flattened());
    assert_eq!(checkpoint.path(), folder.path());
}

#[test]
fn a_bad_folder_is_explained() {
    let folder = Folder::new();
    folder.write("one.safetensors", safetensors_f32(&[("a", &[1], &[1.0])]));
    let at = |name: &str| folder.path().join(name).display().to_string();
    let index = at("model.safetensors.index.json");
    let damaged = "the index is damaged: download it again";
    let cases = [
        (
            r#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#,
            format!(
                "{index}: shard \"two.safetensors\": found no such file in the folder, expected every shard the index names; \
                 the download is incomplete: download the model again"
            ),
        ),
        (
            r#"{"weight_map":{"a":"one.safetensors","b":"one.safetensors"}}"#,
            format!(
                "{}: tensor \"b\": found nothing, expected the tensor, as model.safetensors.index.json says it is here; \
                 index and shards are of different versions: download the model again",
                at("one.safetensors")
            ),
        ),
        (
            r#"{"weight_map":{"a":"../one.safetensors"}}"#,
            format!(
                "{index}: weight_map: found \"../one.safetensors\", expected the name of a file in the same folder; {damaged}"
            ),
        ),
        (r#"{"weight_map":{}}"#, format!("{index}: weight_map: found 0 shards, expected 1 to 4096; {damaged}")),
        (
            "{}",
            format!(
                "{index}: index: found missing field `weight_map` at line 1 column 2, \
                 expected JSON with a weight_map from tensor to file; {damaged}"
            ),
        ),
    ];
    for (text, expected) in cases {
        folder.write("model.safetensors.index.json", text);
        assert_eq!(Checkpoint::open(folder.path()).unwrap_err().to_string(), expected);
    }
}

#[test]
fn what_is_no_checkpoint_is_explained() {
    let folder = Folder::new();
    let name_one =
        "name a GGUF file, a safetensors file, or a folder with model.safetensors or model.safetensors.index.json";
    let opened = |name: &str, content: &[u8]| {
        let path = folder.write(name, content);
        let message = Checkpoint::open(&path).unwrap_err().to_string();
        message.strip_prefix(&format!("{}: ", path.display())).unwrap().to_owned()
    };
    assert_eq!(
        opened("zip", b"PK\x03\x04..."),
        format!(r#"first bytes: found "PK\x03\x04", expected "GGUF", or a file named .safetensors; {name_one}"#)
    );
    assert!(opened("empty", b"").starts_with(r#"first bytes: found "", expected "GGUF""#));
    assert!(
        opened("pointer.gguf", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 98\n")
            .ends_with("this is a Git LFS pointer, not the model: run git lfs pull, or download the file itself")
    );
    assert!(
        opened("page.gguf", b"\n<!DOCTYPE html>")
            .ends_with("this is a web page, not the model: download the file itself")
    );
    folder.write("pytorch_model.bin", b"");
    assert_eq!(
        Checkpoint::open(folder.path()).unwrap_err().to_string(),
        format!(
            "{}: folder: found page.gguf, pointer.gguf, pytorch_model.bin, \
             expected model.safetensors or model.safetensors.index.json; {name_one}",
            folder.path().display()
        )
    );
    let missing = folder.path().join("none.gguf");
    let message = Checkpoint::open(&missing).unwrap_err().to_string();
    assert!(message.starts_with(&format!("cannot open {}: ", missing.display())), "{message}");
}
